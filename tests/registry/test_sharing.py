from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Final

import pytest
from sqlalchemy import Connection

from brewos_relay.errors import DeviceUnknown, NotAnOwner
from brewos_relay.registry.access import access_of, give, leave, set_role, take
from brewos_relay.registry.activity import activity_of
from brewos_relay.registry.database import Database
from brewos_relay.registry.devices import add_devices, remove_device
from brewos_relay.registry.records import Access, NewDevice, PairingResult, Share
from brewos_relay.registry.sharing import (
    SHARES_AT_MOST,
    accept_share,
    accept_share_code,
    new_share,
    revoke_share,
    shares_of,
)
from brewos_relay.vocabulary import GuestRole
from support.registry_files import DAY_MS, NOW_MS, hash_of

ID: Final = "BRW-0000001A"
OTHER_ID: Final = "BRW-0000002B"
SUNDAY_MS: Final = NOW_MS + 3 * DAY_MS


@pytest.fixture
def database(url: str) -> Iterator[Database]:
    with Database.open(url) as database, database.writing() as db:
        rows = [
            NewDevice(id=id_, key_hash=hash_of("k"), name="Küche", user_id="olga") for id_ in (ID, OTHER_ID)
        ]
        add_devices(db, rows, now_ms=NOW_MS)
        db.commit()
        yield database


@pytest.fixture
def db(database: Database) -> Iterator[Connection]:
    with database.writing() as db:
        yield db


def share(
    db: Connection,
    name: str = "s",
    *,
    role: GuestRole = "member",
    until_ms: int | None = None,
    uses_left: int | None = None,
    created_by: str = "olga",
    device_id: str = ID,
    now_ms: int = NOW_MS,
) -> Share:
    return new_share(
        db,
        share_id=name,
        device_id=device_id,
        token_hash=hash_of(f"token {name}"),
        code_hash=hash_of(f"code {name}"),
        role=role,
        until_ms=until_ms,
        uses_left=uses_left,
        created_by=created_by,
        now_ms=now_ms,
        expires_at_ms=now_ms + DAY_MS,
    )


def follow(
    db: Connection, user_id: str, name: str = "s", *, device_id: str = ID, now_ms: int = NOW_MS
) -> PairingResult | None:
    token_hash = hash_of(f"token {name}")
    return accept_share(db, device_id=device_id, token_hash=token_hash, user_id=user_id, now_ms=now_ms)


def type_in(db: Connection, user_id: str, name: str = "s", *, now_ms: int = NOW_MS) -> PairingResult | None:
    return accept_share_code(db, code_hash=hash_of(f"code {name}"), user_id=user_id, now_ms=now_ms)


def access(db: Connection, user_id: str, *, now_ms: int = NOW_MS) -> tuple[str, int | None] | None:
    found: Access | None = access_of(db, [(user_id, ID)], now_ms=now_ms).get((user_id, ID))
    return None if found is None else (found.role, found.until_ms)


def test_a_share_by_link_and_by_code(db: Connection) -> None:
    made = share(db, role="viewer", until_ms=SUNDAY_MS)
    assert made == Share(
        id="s",
        device_id=ID,
        role="viewer",
        until_ms=SUNDAY_MS,
        uses_left=None,
        created_by="olga",
        created_at_ms=NOW_MS,
        expires_at_ms=NOW_MS + DAY_MS,
    )
    answer = PairingResult(device_id=ID, device_name="Küche", role="viewer", until_ms=SUNDAY_MS)
    assert follow(db, "mia") == follow(db, "mia") == answer
    assert type_in(db, "tom") == answer
    assert access(db, "mia") == access(db, "tom") == ("viewer", SUNDAY_MS)
    assert access(db, "mia", now_ms=SUNDAY_MS) is None
    assert shares_of(db, ID, now_ms=NOW_MS) == [made]
    told = [(entry.kind, entry.user_id, entry.detail) for entry in activity_of(db, ID)]
    detail = {"share": "s", "role": "viewer"}
    assert told == [
        ("share_claimed", "tom", detail),
        ("share_claimed", "mia", detail),
        ("shared", "olga", detail),
    ]


@pytest.mark.parametrize("how", [follow, type_in])
def test_invalid_share_gives_nothing(db: Connection, how: Any) -> None:
    share(db)
    share(db, "short", until_ms=NOW_MS + 1)
    assert how(db, "sam", "guessed") is None
    assert how(db, "sam", now_ms=NOW_MS + DAY_MS) is None
    assert how(db, "sam", "short", now_ms=NOW_MS + 1) is None
    assert [each.id for each in shares_of(db, ID, now_ms=NOW_MS + 1)] == ["s"]
    assert {entry.kind for entry in activity_of(db, ID)} == {"shared"}
    assert shares_of(db, ID, now_ms=NOW_MS + DAY_MS) == []
    assert how(db, "sam", now_ms=NOW_MS + DAY_MS - 1) is not None


def test_a_link_to_another_device_gives_nothing(db: Connection) -> None:
    share(db)
    assert follow(db, "sam", device_id=OTHER_ID) is None
    assert access(db, "sam") is None


def test_share_of_a_removed_device_gives_nothing(db: Connection, monkeypatch: pytest.MonkeyPatch) -> None:
    share(db)

    def gone(_db: Connection, device_id: str) -> None:
        remove_device(db, device_id, now_ms=NOW_MS)
        raise DeviceUnknown(device_id)

    monkeypatch.setattr("brewos_relay.registry.sharing.lock_device", gone)
    assert follow(db, "sam") is None


HAVE_AND_GET: Final = [
    # access before, the share, access after: never less, and never more than the share gives
    (None, ("viewer", None), ("viewer", None)),
    (("viewer", None), ("viewer", SUNDAY_MS), ("viewer", None)),
    (("viewer", NOW_MS + 1), ("viewer", SUNDAY_MS), ("viewer", SUNDAY_MS)),
    (("viewer", SUNDAY_MS), ("member", SUNDAY_MS), ("member", SUNDAY_MS)),
    (("viewer", SUNDAY_MS), ("member", None), ("member", None)),
    (("viewer", None), ("member", SUNDAY_MS), ("viewer", None)),
    (("member", SUNDAY_MS), ("viewer", None), ("member", SUNDAY_MS)),
    (("member", None), ("viewer", None), ("member", None)),
    (("member", None), ("member", SUNDAY_MS), ("member", None)),
    (("owner", None), ("viewer", SUNDAY_MS), ("owner", None)),
    (("owner", None), ("member", None), ("owner", None)),
]


@pytest.mark.parametrize(("has", "says", "then"), HAVE_AND_GET)
@pytest.mark.parametrize("uses_left", [None, 1])
def test_share_never_reduces_or_exceeds_access(
    db: Connection, has: Any, says: Any, then: Any, uses_left: int | None
) -> None:
    if has is not None:
        give(db, ID, "mia", role=has[0], until_ms=has[1], now_ms=NOW_MS)
    share(db, role=says[0], until_ms=says[1], uses_left=uses_left)
    answer = follow(db, "mia")
    assert answer is not None
    assert (answer.role, answer.until_ms) == access(db, "mia") == then
    # Only users who gained access use it up.
    assert (follow(db, "tom") is None) is (uses_left == 1 and has != then)


def test_share_with_one_use(db: Connection) -> None:
    share(db, uses_left=1)
    assert follow(db, "mia")
    assert follow(db, "mia")  # a retry
    assert follow(db, "sam") is None
    assert type_in(db, "sam") is None
    assert shares_of(db, ID, now_ms=NOW_MS) == []
    share(db, "two", uses_left=2)
    follow(db, "sam", "two")
    assert [each.uses_left for each in shares_of(db, ID, now_ms=NOW_MS)] == [1]


def test_concurrent_uses_of_the_last_place_succeed_once(database: Database) -> None:
    for number in range(10):
        with database.writing() as db:
            share(db, f"s{number}", uses_left=1)

        def go(user_id: str, number: int = number) -> PairingResult | None:
            with database.writing() as db:
                return follow(db, f"{user_id}{number}", f"s{number}")

        with ThreadPoolExecutor(4) as pool:
            assert sum(answer is not None for answer in pool.map(go, ("ada", "bob", "eve", "sam"))) == 1


def test_revoking_a_share(db: Connection) -> None:
    share(db)
    follow(db, "mia")
    assert not revoke_share(db, OTHER_ID, "s", now_ms=NOW_MS)
    assert not revoke_share(db, ID, "unknown", now_ms=NOW_MS)
    assert revoke_share(db, ID, "s", now_ms=NOW_MS, user_id="olga")
    assert not revoke_share(db, ID, "s", now_ms=NOW_MS)
    assert follow(db, "sam") is None
    assert type_in(db, "sam") is None
    assert access(db, "mia") == ("member", None)
    latest = activity_of(db, ID)[0]
    assert (latest.kind, latest.user_id, latest.detail["share"]) == ("share_revoked", "olga", "s")


@pytest.mark.parametrize("who", ["mia", "vic", "gus", "sam"])
def test_only_an_owner_shares(db: Connection, who: str) -> None:
    give(db, ID, "mia", role="member", now_ms=NOW_MS)
    give(db, ID, "vic", role="viewer", now_ms=NOW_MS)
    give(db, ID, "gus", role="member", until_ms=NOW_MS, now_ms=NOW_MS - 1)
    with pytest.raises(NotAnOwner, match=ID):
        share(db, created_by=who)
    assert shares_of(db, ID, now_ms=NOW_MS) == []
    with pytest.raises(DeviceUnknown):
        share(db, device_id="BRW-0000FFFF")


@pytest.mark.parametrize(
    ("terms", "problem"),
    [
        ({"role": "owner"}, "must be member or viewer, got 'owner'"),
        ({"until_ms": NOW_MS}, "ended already"),
        ({"uses_left": 0}, "uses_left must be 1 or more"),
    ],
)
def test_invalid_shares_are_refused(db: Connection, terms: Any, problem: str) -> None:
    with pytest.raises(ValueError, match=problem):
        share(db, **terms)


@pytest.mark.parametrize("how", ["removed", "demoted", "left"])
def test_share_of_a_former_owner_gives_nothing(db: Connection, how: str) -> None:
    give(db, ID, "otto", role="owner", now_ms=NOW_MS)
    share(db, created_by="otto")
    if how == "removed":
        take(db, ID, "otto", now_ms=NOW_MS)
    elif how == "demoted":
        set_role(db, ID, "otto", role="viewer", now_ms=NOW_MS)
    else:
        leave(db, ID, "otto", now_ms=NOW_MS)
    assert shares_of(db, ID, now_ms=NOW_MS) == []
    for user_id in ("otto", "sam"):
        before = access(db, user_id)
        assert follow(db, user_id) is None
        assert type_in(db, user_id) is None
        assert access(db, user_id) == before


@pytest.mark.parametrize("how", ["removed", "demoted"])
def test_removed_user_does_not_return_by_a_known_link(db: Connection, how: str) -> None:
    share(db)
    follow(db, "mia")
    if how == "removed":
        take(db, ID, "mia", now_ms=NOW_MS)
    else:
        set_role(db, ID, "mia", role="viewer", now_ms=NOW_MS)
    assert follow(db, "mia") is None
    assert access(db, "mia") in (None, ("viewer", None))


def test_a_promotion_ends_no_share(db: Connection) -> None:
    share(db, role="viewer")
    follow(db, "mia")
    set_role(db, ID, "mia", role="owner", now_ms=NOW_MS)
    assert follow(db, "tom") is not None


def test_the_oldest_of_too_many_shares_ends(db: Connection) -> None:
    for number in range(SHARES_AT_MOST + 3):
        share(db, f"s{number}", now_ms=NOW_MS + number)
    share(db, "elsewhere", device_id=OTHER_ID)
    left = [each.id for each in shares_of(db, ID, now_ms=NOW_MS + 100)]
    assert left == [f"s{number}" for number in range(3, SHARES_AT_MOST + 3)]

"""Who gets a machine by its token, and which key it has then; random lives are in test_takeovers.py."""

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from typing import Any, Final

import pytest
from sqlalchemy import Connection, select

from brewos_relay.errors import QuotaReached, TooManyUnproven
from brewos_relay.networks import network_of, networks_of
from brewos_relay.registry.access import access_of, give, leave, take
from brewos_relay.registry.activity import activity_of, add_activity
from brewos_relay.registry.database import Database
from brewos_relay.registry.device_keys import add_next_key, use_next_key
from brewos_relay.registry.devices import find_devices
from brewos_relay.registry.pairing import Registered, pair_device, register_pairing
from brewos_relay.registry.pairing_proof import UNPROVEN_PER_ACCOUNT, confirm_key
from brewos_relay.registry.pairing_tokens import NETWORKS_AT_MOST, TOKENS_PER_NETWORK, WIDEST_AT_MOST
from brewos_relay.registry.records import Activity, Device, PairingResult
from brewos_relay.registry.schema import claims
from support.change_rows import read_changes
from support.registry_files import DAY_MS, MINUTE_MS, NOW_MS, hash_of

ID: Final = "BRW-0000001A"
OTHER_ID: Final = "BRW-0000002B"
LIFE_MS: Final = 10 * MINUTE_MS


def register(
    db: Connection,
    token: str,
    *,
    key: str = "first",
    device_id: str = ID,
    now_ms: int = NOW_MS,
    network: str = "",
    around: Sequence[str] = (),
) -> Registered:
    return register_pairing(
        db,
        device_id=device_id,
        key_hash=hash_of(key),
        token_hash=hash_of(token),
        now_ms=now_ms,
        expires_at_ms=now_ms + LIFE_MS,
        networks=(*around, network),
    )


def scan(
    db: Connection,
    token: str,
    user_id: str,
    *,
    device_id: str = ID,
    name: str | None = None,
    now_ms: int = NOW_MS,
) -> PairingResult | None:
    return pair_device(
        db, device_id=device_id, token_hash=hash_of(token), user_id=user_id, name=name, now_ms=now_ms
    )


def device(db: Connection) -> Device:
    [found] = find_devices(db, [ID])
    return found


def role_of(db: Connection, user_id: str) -> str | None:
    access = access_of(db, [(user_id, ID)], now_ms=NOW_MS).get((user_id, ID))
    return None if access is None else access.role


def kinds(db: Connection) -> list[str]:
    return [change.kind for change in read_changes(db, 0)]


# The table: who pairs, the users of the device, and the token


def set_up(db: Connection, household: str) -> None:
    """Create a device with the key `first` and the sent key `sent`, and a token of each kind."""
    people = {
        "no users": (),
        "owned": (("olga", "owner"), ("mia", "member"), ("vic", "viewer"), ("ute", "member")),
        "no owner": (("mia", "member"), ("vic", "viewer")),
    }
    assert register(db, "its", key="first") == "stored"
    add_next_key(db, ID, hash_of("sent"), now_ms=NOW_MS)
    register(db, "early", now_ms=NOW_MS - LIFE_MS)
    if household == "no users":
        # The newest key becomes the key here; the one before was registered with a token as well.
        assert register(db, "another's", key="another") == "replaced"
    give_to = people[household]
    for user_id, role in give_to:
        give(db, ID, user_id, role=role, now_ms=NOW_MS)  # type: ignore[arg-type]
    # A user whose access has ended.
    give(db, ID, "gus", role="member", until_ms=NOW_MS, now_ms=NOW_MS - DAY_MS)
    register(db, "of the sent key", key="sent")
    if household != "no users":
        assert register(db, "another's", key="another") == "pending"
    register(db, "of two keys")
    if household == "no users":
        register(db, "of two keys", key="another")
        register(db, "its newest")
        add_next_key(db, ID, hash_of("sent"), now_ms=NOW_MS)
    else:
        assert register(db, "of two keys", key="another") == "pending"
    register(db, "elsewhere", device_id=OTHER_ID, key="elsewhere")


PEOPLE: Final = ("olga", "mia", "vic", "gus", "sam")
"""An owner, a member, a viewer, if there are such, a guest whose time is over, and a stranger."""

OWNER, MEMBER, NO = "owner", "member", None
NOBODY_ELSE: Final = (NO, NO, NO, NO, NO)
TABLE: Final = {
    # token: (who gets what, the key afterwards), for a device with an owner …
    ("owned", "its"): ((OWNER, MEMBER, MEMBER, MEMBER, MEMBER), "first"),
    ("owned", "of the sent key"): ((OWNER, MEMBER, MEMBER, MEMBER, MEMBER), "first"),
    ("owned", "another's"): ((OWNER, NO, NO, NO, NO), "another"),
    ("owned", "early"): (NOBODY_ELSE, "first"),
    ("owned", "of two keys"): (NOBODY_ELSE, "first"),
    ("owned", "elsewhere"): (NOBODY_ELSE, "first"),
    ("owned", "guessed"): (NOBODY_ELSE, "first"),
    # … without users …
    ("no users", "its newest"): ((OWNER, OWNER, OWNER, OWNER, OWNER), "first"),
    ("no users", "of the sent key"): ((OWNER, OWNER, OWNER, OWNER, OWNER), "sent"),
    ("no users", "another's"): ((OWNER, OWNER, OWNER, OWNER, OWNER), "another"),
    ("no users", "early"): (NOBODY_ELSE, "first"),
    ("no users", "of two keys"): (NOBODY_ELSE, "first"),
    ("no users", "elsewhere"): (NOBODY_ELSE, "first"),
    ("no users", "guessed"): (NOBODY_ELSE, "first"),
    # … and with users but no owner.
    ("no owner", "its"): ((OWNER, OWNER, OWNER, OWNER, OWNER), "first"),
    ("no owner", "of the sent key"): ((OWNER, OWNER, OWNER, OWNER, OWNER), "first"),
    ("no owner", "another's"): (NOBODY_ELSE, "first"),
    ("no owner", "of two keys"): (NOBODY_ELSE, "first"),
    ("no owner", "guessed"): (NOBODY_ELSE, "first"),
}
ROWS: Final = [
    pytest.param(household, token, who, role, key if role else "first", id=f"{household}: {who}, {token}")
    for (household, token), (roles, key) in TABLE.items()
    for who, role in zip(PEOPLE, roles, strict=True)
]


@pytest.mark.parametrize(("household", "token", "who", "role", "key"), ROWS)
def test_access_and_key_after_pairing(
    db: Connection, household: str, token: str, who: str, role: str | None, key: str
) -> None:
    set_up(db, household)
    before = {each: role_of(db, each) for each in PEOPLE}
    answer = scan(db, token, who)
    assert (answer and answer.role) == role
    assert {each: role_of(db, each) for each in PEOPLE} == before | {who: role or before[who]}
    assert device(db).key_hash == hash_of(key)
    if answer is not None:
        assert answer.key_changed is (key != "first")
        assert scan(db, token, who) == PairingResult(device_id=ID, device_name=None, role=answer.role)
        assert scan(db, token, "tom") is None
        assert role_of(db, "tom") is None
    else:
        # An attempt without rights does not use the token up.
        roles, _ = TABLE[household, token]
        for other, wins in zip(PEOPLE, roles, strict=True):
            if wins:
                assert scan(db, token, other) is not None
                break


@pytest.mark.parametrize(
    ("key", "household", "outcome", "key_after"),
    [
        ("first", "no users", "refreshed", "first"),
        ("sent", "no users", "refreshed", "first"),
        ("new", "no users", "replaced", "new"),
        ("first", "owned", "refreshed", "first"),
        ("sent", "owned", "refreshed", "first"),
        ("new", "owned", "pending", "first"),
        ("new", "no owner", "pending", "first"),
    ],
)
def test_outcomes_of_registering_a_key(
    db: Connection, key: str, household: str, outcome: str, key_after: str
) -> None:
    set_up(db, household)
    for _ in range(3):
        assert register(db, "t", key=key) == outcome
        outcome = "refreshed" if outcome == "replaced" else outcome
        assert device(db).key_hash == hash_of(key_after)
    assert (device(db).key_pending_since_ms is not None) is (outcome == "pending")


# Tokens


def test_pairing_result_and_stored_rows(db: Connection) -> None:
    assert register(db, "t") == "stored"
    answer = scan(db, "t", "olga", name="Küche")
    assert answer == PairingResult(device_id=ID, device_name="Küche", role="owner")
    assert device(db).name == "Küche"
    access = access_of(db, [("olga", ID)], now_ms=NOW_MS)["olga", ID]
    assert (access.until_ms, access.claimed_at_ms) == (None, NOW_MS)
    [claimed] = [entry for entry in activity_of(db, ID) if entry.kind == "claimed"]
    assert (claimed.user_id, claimed.detail) == ("olga", {"role": "owner"})


def test_activity_of_a_pairing_is_in_order(db: Connection) -> None:
    register(db, "t")
    scan(db, "t", "olga")
    register(db, "u", key="second")
    assert scan(db, "u", "olga", name="Küche")
    newest_first = [(entry.kind, entry.user_id) for entry in activity_of(db, ID)]
    assert newest_first == [
        ("renamed", "olga"),
        ("key_changed", "olga"),
        ("claimed", "olga"),
        ("key_pending", None),
        ("claimed", "olga"),
    ]


@pytest.mark.parametrize("before", ["the owner left", "the guest's time is over", "nobody had it"])
def test_next_owner_does_not_see_earlier_activity(db: Connection, before: str) -> None:
    register(db, "t")
    if before == "the owner left":
        scan(db, "t", "olga")
        leave(db, ID, "olga", now_ms=NOW_MS)
    elif before == "the guest's time is over":
        give(db, ID, "olga", role="member", until_ms=NOW_MS, now_ms=NOW_MS - 1)
    # The server writes the activity a moment later.
    note = Activity(device_id=ID, at_ms=NOW_MS, kind="client_went", user_id="olga")
    add_activity(db, [note, replace(note, device_id=OTHER_ID)])
    register(db, "u")
    assert scan(db, "guessed", "sam") is None
    assert len(activity_of(db, ID)) == 1
    assert scan(db, "u", "sam", name="Bar")
    noted = [(entry.kind, entry.user_id) for entry in activity_of(db, ID)]
    assert noted == [("renamed", "sam"), ("claimed", "sam")]
    assert len(activity_of(db, OTHER_ID)) == 1
    # It stays if the device has users.
    register(db, "v")
    assert scan(db, "v", "mia")
    assert scan(db, "u", "sam")
    assert len(activity_of(db, ID)) == 3


def test_only_an_owner_names_the_machine(db: Connection) -> None:
    register(db, "t")
    scan(db, "t", "olga", name="Küche")
    register(db, "u")
    assert scan(db, "u", "mia", name="Mine") == PairingResult(
        device_id=ID, device_name="Küche", role="member"
    )
    assert device(db).name == "Küche"
    register(db, "v")
    with pytest.raises(ValueError, match="a name"):
        scan(db, "v", "olga", name="\0")


def test_a_guest_with_the_machine_in_front_of_them_stays(db: Connection) -> None:
    register(db, "t")
    scan(db, "t", "olga")
    give(db, ID, "gus", role="viewer", until_ms=NOW_MS + 1, now_ms=NOW_MS)
    register(db, "u")
    assert scan(db, "u", "gus") == PairingResult(device_id=ID, device_name=None, role="member", until_ms=None)
    assert kinds(db).count("access_changed") >= 1


def test_a_token_that_is_sent_again_lives_longer_and_stays_used(db: Connection) -> None:
    register(db, "t")
    register(db, "t", now_ms=NOW_MS + LIFE_MS - 1)
    assert scan(db, "t", "olga", now_ms=NOW_MS + LIFE_MS)
    register(db, "t", now_ms=NOW_MS + LIFE_MS)
    assert scan(db, "t", "sam", now_ms=NOW_MS + LIFE_MS) is None
    assert scan(db, "t", "olga", now_ms=NOW_MS + 2 * LIFE_MS - 1)
    assert scan(db, "t", "olga", now_ms=NOW_MS + 2 * LIFE_MS) is None


def test_used_token_does_not_restore_removed_access(db: Connection) -> None:
    register(db, "t")
    scan(db, "t", "olga")
    register(db, "u")
    scan(db, "u", "mia")
    assert take(db, ID, "mia", now_ms=NOW_MS)
    assert scan(db, "u", "mia") is None
    register(db, "u")
    assert scan(db, "u", "mia") is None
    assert role_of(db, "mia") is None


def test_a_used_token_does_not_bring_an_older_key_back(db: Connection) -> None:
    register(db, "t")
    scan(db, "t", "olga")
    for key in ("second", "third"):
        register(db, f"of {key}", key=key)
        answer = scan(db, f"of {key}", "olga")
        assert answer is not None
        assert answer.key_changed
    scan(db, "of second", "olga")
    assert device(db).key_hash == hash_of("third")


def test_token_registered_again_with_another_key_is_invalid(db: Connection) -> None:
    register(db, "shown")
    assert register(db, "shown", key="eve's") == "replaced"
    assert scan(db, "shown", "olga") is None
    assert register(db, "shown too") == "replaced"
    assert scan(db, "shown too", "olga")
    assert device(db).key_hash == hash_of("first")
    register(db, "shown again")
    assert register(db, "shown again", key="eve's") == "pending"
    assert scan(db, "shown again", "olga") is None
    assert device(db).key_hash == hash_of("first")


def test_a_machine_that_took_its_new_key_keeps_its_token(db: Connection) -> None:
    register(db, "t")
    scan(db, "t", "olga")
    add_next_key(db, ID, hash_of("sent"), now_ms=NOW_MS)
    register(db, "u")
    assert register(db, "u", key="sent") == "refreshed"
    assert use_next_key(db, ID, hash_of("sent"), now_ms=NOW_MS)
    assert scan(db, "u", "mia")


def test_an_older_token_does_not_bring_a_key_back_that_was_rotated_away(db: Connection) -> None:
    register(db, "t")
    scan(db, "t", "olga")
    register(db, "u")
    add_next_key(db, ID, hash_of("sent"), now_ms=NOW_MS)
    use_next_key(db, ID, hash_of("sent"), now_ms=NOW_MS)
    assert scan(db, "u", "olga") is None
    assert device(db).key_hash == hash_of("sent")


def test_keys_that_were_sent_end_when_the_machine_has_another(db: Connection) -> None:
    register(db, "t")
    scan(db, "t", "olga")
    add_next_key(db, ID, hash_of("sent"), now_ms=NOW_MS)
    register(db, "u", key="second")
    scan(db, "u", "olga")
    assert device(db).next_key_hashes == ()
    assert kinds(db)[-1] == "key_changed"


def test_device_without_owner_can_be_paired_by_any_user(db: Connection) -> None:
    register(db, "t")
    scan(db, "t", "olga")
    register(db, "u")
    assert leave(db, ID, "olga", now_ms=NOW_MS) == "removed"
    assert scan(db, "u", "sam") is None
    # The machine's screen still shows it to everyone: it stays invalid for every key.
    register(db, "u", key="eve's")
    assert scan(db, "u", "sam") is None
    assert register(db, "v", key="second") == "replaced"
    assert scan(db, "v", "sam")
    assert role_of(db, "sam") == "owner"
    assert role_of(db, "olga") is None


# Notification of a pending key


def test_owners_are_notified_of_a_pending_key_once(db: Connection) -> None:
    register(db, "t")
    scan(db, "t", "olga")
    for number in range(20):
        register(db, f"eve's {number}", key=f"eve's {number}")
    assert kinds(db).count("key_pending") == 1
    assert [entry.kind for entry in activity_of(db, ID)].count("key_pending") == 1
    assert device(db).key_pending_since_ms == NOW_MS
    # After those have expired, the next one is notified again.
    register(db, "her own", key="second", now_ms=NOW_MS + LIFE_MS)
    assert kinds(db).count("key_pending") == 2
    assert device(db).key_pending_since_ms == NOW_MS


@pytest.mark.parametrize("ends", ["the machine is back", "an owner claims it", "the owner claims the other"])
def test_a_pending_key_is_forgotten(db: Connection, ends: str) -> None:
    register(db, "t")
    scan(db, "t", "olga")
    register(db, "u")
    register(db, "v", key="second")
    assert device(db).key_pending_since_ms == NOW_MS
    if ends == "the machine is back":
        register(db, "w")
    else:
        assert scan(db, "v" if ends == "an owner claims it" else "u", "olga")
    assert device(db).key_pending_since_ms is None


def test_a_replaced_key_ends_the_connection_that_was_made_with_the_old_one(db: Connection) -> None:
    register(db, "t")
    assert kinds(db) == []
    register(db, "u", key="second")
    [change] = read_changes(db, 0)
    assert (change.kind, change.device_id) == ("key_changed", ID)


# Limits


def tokens(db: Connection) -> set[bytes]:
    return set(db.scalars(select(claims.c.token_hash).where(claims.c.device_id == ID)))


def test_ninth_token_replaces_the_oldest(db: Connection) -> None:
    for number in range(30):
        register(db, f"t{number}", now_ms=NOW_MS + number)
        assert len(tokens(db)) <= TOKENS_PER_NETWORK
    assert hash_of("t29") in tokens(db)
    assert scan(db, "t1", "olga") is None
    assert scan(db, "t28", "olga") is not None


def test_network_cannot_evict_the_token_of_another_one(db: Connection) -> None:
    register(db, "its", network="home")
    for number in range(30):
        register(db, f"eve's {number}", key=f"eve's {number}", network="eve's", now_ms=NOW_MS + number)
    assert len(tokens(db)) == TOKENS_PER_NETWORK + 1
    assert scan(db, "its", "olga")
    assert device(db).key_hash == hash_of("first")


def test_number_of_networks_with_tokens_is_limited(db: Connection) -> None:
    register(db, "its", network="home")
    for number in range(2 * NETWORKS_AT_MOST):
        register(db, f"eve's {number}", key="eve's", network=f"eve's {number}", now_ms=NOW_MS + number)
    assert len(tokens(db)) == NETWORKS_AT_MOST
    assert scan(db, "its", "olga")


def test_working_key_of_an_owned_device_finds_room_beside_many_networks(db: Connection) -> None:
    register(db, "its", network="home")
    scan(db, "its", "olga")
    for number in range(NETWORKS_AT_MOST):
        register(db, f"eve's {number}", key="eve's", network=f"eve's {number}", now_ms=NOW_MS + number)
    register(db, "on the road", network="elsewhere", now_ms=NOW_MS + 100)
    assert hash_of("on the road") in tokens(db)
    assert hash_of("its") in tokens(db)
    assert len({*tokens(db)}) == NETWORKS_AT_MOST
    # If all networks have tokens of the working key, none is dropped.
    for number in range(NETWORKS_AT_MOST):
        register(db, f"ours {number}", network=f"eve's {number}", now_ms=NOW_MS + 200)
    register(db, "too many", network="one more", now_ms=NOW_MS + 300)
    assert hash_of("too many") not in tokens(db)


def register_at(db: Connection, token: str, address: str, **more: Any) -> None:
    """Register a token from an address, with the networks around it, like the API does."""
    *around, network = networks_of(network_of(address))
    register(db, token, network=network, around=around, **more)


WIDE = {
    "a /48": ([f"2001:db8:0:{number:x}00::1" for number in range(100)], WIDEST_AT_MOST),
    "a /56": ([f"2001:db8:0:{number:x}::1" for number in range(100)], WIDEST_AT_MOST // 2),
    "a /24": ([f"203.0.113.{number}" for number in range(100)], WIDEST_AT_MOST),
}


@pytest.mark.parametrize(("addresses", "kept"), WIDE.values(), ids=WIDE)
def test_wide_network_cannot_take_all_slots_of_a_new_machine(
    db: Connection, addresses: list[str], kept: int
) -> None:
    for number, address in enumerate(addresses):
        register_at(db, f"eve's {number}", address, key="eve's", now_ms=NOW_MS + number)
    assert len(tokens(db)) == kept
    register_at(db, "its", "2001:db8:1::1", now_ms=NOW_MS + 1000)
    register_at(db, "its second", "198.51.100.1", now_ms=NOW_MS + 1000)
    assert {hash_of("its"), hash_of("its second")} < tokens(db)
    assert scan(db, "its", "olga")
    assert role_of(db, "olga") == "owner"


def test_customer_with_many_networks_keeps_no_neighbour_out(db: Connection) -> None:
    for number in range(100):
        register_at(db, f"eve's {number}", f"2001:db8:0:{number:x}::1", key="eve's")
    register_at(db, "its", "2001:db8:0:100::1")
    assert scan(db, "its", "olga")


def test_working_key_of_an_owned_device_finds_room_in_a_crowded_network(db: Connection) -> None:
    register_at(db, "its", "198.51.100.1")
    scan(db, "its", "olga")
    for number in range(100):
        register_at(db, f"eve's {number}", f"2001:db8:0:{number:x}::1", key="eve's", now_ms=NOW_MS + number)
    before = tokens(db)
    register_at(db, "at eve's", "2001:db8:0:ff::1", now_ms=NOW_MS + 1000)
    assert tokens(db) == before - {hash_of("eve's 0")} | {hash_of("at eve's")}


def test_a_flood_of_other_keys_costs_the_machine_none_of_its_tokens(db: Connection) -> None:
    register(db, "t")
    scan(db, "t", "olga")
    for number in range(30):
        register(db, f"its {number}", now_ms=NOW_MS + number)
    mine = tokens(db)
    for number in range(30):
        register(db, f"eve's {number}", key=f"eve's {number}", now_ms=NOW_MS + 100 + number)
        assert mine < tokens(db)
        assert len(tokens(db)) <= TOKENS_PER_NETWORK
    # One place is left for the machine's own key, in case it lost the working one.
    assert hash_of("eve's 29") in tokens(db)
    register(db, "its 30", now_ms=NOW_MS + 200)
    assert hash_of("its 30") in tokens(db)


# Races


def test_concurrent_pairings_with_a_token_succeed_once(database: Database) -> None:
    for number in range(10):
        device_id = f"BRW-{number:08X}"
        with database.writing() as db:
            register(db, "t", device_id=device_id)

        def go(user_id: str, device_id: str = device_id) -> PairingResult | None:
            with database.writing() as db:
                return scan(db, "t", user_id, device_id=device_id)

        with ThreadPoolExecutor(4) as pool:
            answers = list(pool.map(go, ("ada", "bob", "eve", "sam")))
        assert [answer.role for answer in answers if answer is not None] == ["owner"]


def test_a_device_that_registers_twice_at_once(database: Database) -> None:
    def go(number: int) -> str:
        with database.writing() as db:
            return register(db, f"t{number % 2}")

    with ThreadPoolExecutor(6) as pool:
        outcomes = list(pool.map(go, range(6)))
    assert sorted(outcomes) == ["refreshed"] * 5 + ["stored"]


def test_a_device_that_another_connection_added_a_moment_before(
    db: Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    # A missing row cannot be locked, so two transactions may both find it missing.
    register(db, "t")
    monkeypatch.setattr("brewos_relay.registry.pairing._lock", lambda *_: None)
    assert register(db, "u") == "refreshed"
    assert len(tokens(db)) == 2


# Quotas


def test_number_of_machines_of_an_account_is_limited(db: Connection) -> None:
    for number in range(3):
        id_ = f"BRW-{number:08X}"
        register(db, f"t{number}", device_id=id_)
        confirm_key(db, id_, hash_of("first"))
    got = partial(pair_device, db, user_id="olga", name=None, now_ms=NOW_MS, machines_at_most=2)
    for number in range(2):
        assert got(device_id=f"BRW-{number:08X}", token_hash=hash_of(f"t{number}"))
    with pytest.raises(QuotaReached):
        got(device_id="BRW-00000002", token_hash=hash_of("t2"))
    # A retry gets the same answer, and a wrong token reveals nothing.
    assert got(device_id="BRW-00000000", token_hash=hash_of("t0"))
    assert got(device_id="BRW-00000002", token_hash=hash_of("guessed")) is None


def test_account_owns_few_machines_that_never_connected(db: Connection) -> None:
    got = partial(pair_device, db, user_id="olga", name=None, now_ms=NOW_MS, machines_at_most=50)
    for number in range(UNPROVEN_PER_ACCOUNT + 1):
        register(db, f"t{number}", device_id=f"BRW-{number:08X}")
    for number in range(UNPROVEN_PER_ACCOUNT):
        assert got(device_id=f"BRW-{number:08X}", token_hash=hash_of(f"t{number}"))
    last: Any = {
        "device_id": f"BRW-{UNPROVEN_PER_ACCOUNT:08X}",
        "token_hash": hash_of(f"t{UNPROVEN_PER_ACCOUNT}"),
    }
    with pytest.raises(TooManyUnproven):
        got(**last)
    confirm_key(db, "BRW-00000000", hash_of("first"))
    assert got(**last)

import pytest
from sqlalchemy import Connection, func, insert, select

from brewos_relay.errors import DeviceUnknown, LastOwner
from brewos_relay.registry.access import access_of, devices_of, give, leave, release, set_role, take, users_of
from brewos_relay.registry.activity import activity_of, add_activity
from brewos_relay.registry.devices import add_devices, find_devices
from brewos_relay.registry.records import Access, Activity
from brewos_relay.registry.schema import claims, device_users, devices, shares, users
from brewos_relay.vocabulary import Role
from support.change_rows import read_changes
from support.registry import NOW_MS, device_id, new_device

ONE, TWO = device_id(1), device_id(2)
SOON_MS = NOW_MS + 1000
LATER_MS = NOW_MS + 2000


def roles_of(db: Connection, id_: str, *, now_ms: int = NOW_MS) -> dict[str, tuple[str, int | None]]:
    return {each.user_id: (each.role, each.until_ms) for each in users_of(db, id_, now_ms=now_ms)}


def changes_of(db: Connection) -> list[tuple[str, str | None, str | None]]:
    return [(change.kind, change.device_id, change.user_id) for change in read_changes(db, 0)]


def last_id(db: Connection) -> int:
    return max([change.id for change in read_changes(db, 0)], default=0)


def share(db: Connection, number: int) -> None:
    row = {
        "id": str(number),
        "device_id": device_id(number),
        "token_hash": bytes([number]) * 32,
        "code_hash": bytes([number]) * 32,
        "role": "member",
        "created_by": "ada",
        "created_at_ms": 1,
        "expires_at_ms": LATER_MS,
    }
    db.execute(insert(shares), row)


# Reading


def test_access_is_found_by_user_and_device(db: Connection) -> None:
    add_devices(db, [new_device(1, "ada"), new_device(2, "bob", role="viewer")], now_ms=NOW_MS)
    pairs = [(user, device_id(number)) for user in ("ada", "bob", "eve") for number in (1, 2, 3)]
    assert access_of(db, pairs, now_ms=NOW_MS) == {
        ("ada", ONE): Access(user_id="ada", device_id=ONE, role="owner", claimed_at_ms=NOW_MS),
        ("bob", TWO): Access(user_id="bob", device_id=TWO, role="viewer", claimed_at_ms=NOW_MS),
    }
    assert access_of(db, [], now_ms=NOW_MS) == {}
    many = [("ada", device_id(number)) for number in range(1200)]
    assert len(access_of(db, many, now_ms=NOW_MS)) == 1


def test_the_devices_of_a_user(db: Connection) -> None:
    rows = [new_device(3, "ada", "bob", "eve"), new_device(1, "ada"), new_device(2, "bob"), new_device(4)]
    add_devices(db, rows, now_ms=NOW_MS)
    owned = devices_of(db, "ada", now_ms=NOW_MS)
    assert [(each.device.id, each.user_count) for each in owned] == [(ONE, 1), (device_id(3), 3)]
    assert owned[0].device == find_devices(db, [ONE])[0]
    assert owned[0].access == Access(user_id="ada", device_id=ONE, role="owner", claimed_at_ms=NOW_MS)
    assert devices_of(db, "nobody", now_ms=NOW_MS) == []


def test_the_users_of_a_device(db: Connection) -> None:
    add_devices(db, [new_device(1, "u1"), new_device(2, "u2")], now_ms=NOW_MS)
    account = {
        "id": "u1",
        "email": "ada@example.org",
        "name": "Ada",
        "picture_url": "https://x/a.png",
        "is_admin": False,
        "created_at_ms": 1,
    }
    db.execute(insert(users), account)
    give(db, ONE, "old", role="member", now_ms=NOW_MS - 1)
    db.execute(insert(device_users), {"user_id": "oldest", "device_id": ONE, "role": "viewer"})
    found = users_of(db, ONE, now_ms=NOW_MS)
    assert [each.user_id for each in found] == ["oldest", "old", "u1"]
    assert (found[0].email, found[0].name, found[0].picture_url) == (None, None, None)
    assert (found[2].email, found[2].name, found[2].picture_url) == (
        "ada@example.org",
        "Ada",
        "https://x/a.png",
    )
    assert (found[2].role, found[2].claimed_at_ms, found[2].device_id) == ("owner", NOW_MS, ONE)


def test_access_ends_at_its_time(db: Connection) -> None:
    add_devices(db, [new_device(1, "ada")], now_ms=NOW_MS)
    give(db, ONE, "bob", role="member", until_ms=SOON_MS, now_ms=NOW_MS)
    for now_ms, there in ((SOON_MS - 1, True), (SOON_MS, False), (LATER_MS, False)):
        assert (("bob", ONE) in access_of(db, [("bob", ONE)], now_ms=now_ms)) is there
        assert [each.device.id for each in devices_of(db, "bob", now_ms=now_ms)] == [ONE] * there
        assert ("bob" in roles_of(db, ONE, now_ms=now_ms)) is there
        assert devices_of(db, "ada", now_ms=now_ms)[0].user_count == 1 + there
    # Access that has ended cannot be taken.
    assert not take(db, ONE, "bob", now_ms=SOON_MS)
    assert not set_role(db, ONE, "bob", role="owner", now_ms=SOON_MS)
    assert leave(db, ONE, "bob", now_ms=SOON_MS) is None
    # Access that has ended does not prevent new access.
    assert give(db, ONE, "bob", role="viewer", now_ms=SOON_MS)
    assert roles_of(db, ONE, now_ms=LATER_MS)["bob"] == ("viewer", None)


# Giving


def test_giving_a_device(db: Connection) -> None:
    add_devices(db, [new_device(1, "ada"), new_device(2)], now_ms=NOW_MS)
    assert give(db, ONE, "bob", role="owner", now_ms=SOON_MS)
    assert not give(db, ONE, "bob", role="owner", now_ms=LATER_MS)
    assert access_of(db, [("bob", ONE), ("bob", TWO)], now_ms=LATER_MS) == {
        ("bob", ONE): Access(user_id="bob", device_id=ONE, role="owner", claimed_at_ms=SOON_MS)
    }


@pytest.mark.parametrize(
    ("had", "given", "kept"),
    [
        (("viewer", None), ("member", None), False),
        (("viewer", SOON_MS), ("viewer", LATER_MS), False),
        (("viewer", SOON_MS), ("member", None), False),
        (("member", LATER_MS), ("owner", None), False),
        (("member", None), ("viewer", None), True),
        (("member", None), ("member", SOON_MS), True),
        (("owner", None), ("member", SOON_MS), True),
        # More in one way, and less in another.
        (("viewer", None), ("member", SOON_MS), True),
        (("member", SOON_MS), ("viewer", None), True),
    ],
)
def test_giving_never_reduces_access(
    db: Connection, had: tuple[Role, int | None], given: tuple[Role, int | None], kept: bool
) -> None:
    add_devices(db, [new_device(1)], now_ms=NOW_MS)
    give(db, ONE, "bob", role=had[0], until_ms=had[1], now_ms=NOW_MS)
    assert give(db, ONE, "bob", role=given[0], until_ms=given[1], now_ms=NOW_MS) is not kept
    assert roles_of(db, ONE)["bob"] == (had if kept else given)


def test_unknown_device_cannot_be_given_or_taken(db: Connection) -> None:
    with pytest.raises(DeviceUnknown):
        give(db, ONE, "ada", role="owner", now_ms=NOW_MS)
    with pytest.raises(DeviceUnknown):
        set_role(db, ONE, "ada", role="owner", now_ms=NOW_MS)
    with pytest.raises(DeviceUnknown):
        take(db, ONE, "ada", now_ms=NOW_MS)
    with pytest.raises(DeviceUnknown):
        leave(db, ONE, "ada", now_ms=NOW_MS)


def test_owner_access_has_no_end(db: Connection) -> None:
    add_devices(db, [new_device(1, "ada")], now_ms=NOW_MS)
    with pytest.raises(ValueError, match="an owner has a device for ever"):
        give(db, ONE, "bob", role="owner", until_ms=SOON_MS, now_ms=NOW_MS)
    with pytest.raises(ValueError, match="an owner has a device for ever"):
        set_role(db, ONE, "ada", role="owner", until_ms=SOON_MS, now_ms=NOW_MS)


# Changing roles


def test_changing_a_role(db: Connection) -> None:
    add_devices(db, [new_device(1, "ada", "bob")], now_ms=NOW_MS)
    assert set_role(db, ONE, "bob", role="viewer", until_ms=LATER_MS, now_ms=SOON_MS, by_user_id="ada")
    assert roles_of(db, ONE) == {"ada": ("owner", None), "bob": ("viewer", LATER_MS)}
    assert access_of(db, [("bob", ONE)], now_ms=SOON_MS)["bob", ONE].claimed_at_ms == NOW_MS
    assert changes_of(db) == [("access_changed", ONE, "bob")]
    (entry,) = activity_of(db, ONE)
    assert (entry.kind, entry.user_id, entry.at_ms) == ("role_changed", "ada", SOON_MS)
    assert entry.detail == {"user": "bob", "role": "viewer", "until": LATER_MS}
    assert set_role(db, ONE, "bob", role="member", now_ms=SOON_MS)
    assert activity_of(db, ONE)[0].detail == {"user": "bob", "role": "member"}
    assert not set_role(db, ONE, "eve", role="owner", now_ms=SOON_MS)
    assert "eve" not in roles_of(db, ONE)


def test_last_owner_keeps_the_role(db: Connection) -> None:
    add_devices(db, [new_device(1, "ada", "bob")], now_ms=NOW_MS)
    set_role(db, ONE, "bob", role="member", now_ms=NOW_MS)
    before = last_id(db)
    with pytest.raises(LastOwner, match=ONE):
        set_role(db, ONE, "ada", role="member", now_ms=NOW_MS)
    with pytest.raises(LastOwner, match=ONE):
        take(db, ONE, "ada", now_ms=NOW_MS)
    assert roles_of(db, ONE) == {"ada": ("owner", None), "bob": ("member", None)}
    assert last_id(db) == before
    assert set_role(db, ONE, "ada", role="owner", now_ms=NOW_MS)
    assert set_role(db, ONE, "bob", role="owner", now_ms=NOW_MS)
    assert set_role(db, ONE, "ada", role="viewer", now_ms=NOW_MS)


# Taking, and leaving


def test_taking_a_device(db: Connection) -> None:
    add_devices(db, [new_device(1, "ada", "bob"), new_device(2, "bob")], now_ms=NOW_MS)
    assert take(db, ONE, "bob", now_ms=SOON_MS, by_user_id="ada")
    assert roles_of(db, ONE) == {"ada": ("owner", None)}
    assert roles_of(db, TWO) == {"bob": ("owner", None)}
    assert changes_of(db) == [("access_changed", ONE, "bob")]
    (entry,) = activity_of(db, ONE)
    assert (entry.kind, entry.user_id, entry.at_ms, entry.detail) == (
        "user_removed",
        "ada",
        SOON_MS,
        {"user": "bob"},
    )
    assert not take(db, ONE, "bob", now_ms=SOON_MS)
    assert len(changes_of(db)) == 1


def test_one_of_several_users_leaves(db: Connection) -> None:
    add_devices(db, [new_device(1, "ada", "bob")], now_ms=NOW_MS)
    assert leave(db, ONE, "eve", now_ms=NOW_MS) is None
    assert leave(db, ONE, "ada", now_ms=NOW_MS) == "left"
    assert roles_of(db, ONE) == {"bob": ("owner", None)}
    assert changes_of(db) == [("access_changed", ONE, "ada")]
    (entry,) = activity_of(db, ONE)
    assert (entry.kind, entry.user_id, entry.detail) == ("user_removed", "ada", {"user": "ada"})


def test_device_has_no_users_after_the_last_owner_leaves(db: Connection) -> None:
    rows = [new_device(1, "ada", name="Kitchen"), new_device(2, "ada")]
    add_devices(db, rows, now_ms=NOW_MS)
    give(db, ONE, "bob", role="member", now_ms=NOW_MS)
    give(db, ONE, "eve", role="viewer", until_ms=NOW_MS - 1, now_ms=NOW_MS - 2)
    db.execute(devices.update().values(key_pending_since_ms=5))
    for number in (1, 2):
        share(db, number)
        claim = {"device_id": device_id(number), "token_hash": b"t" * 32, "key_hash": b"k" * 32}
        db.execute(insert(claims), {**claim, "expires_at_ms": LATER_MS})
    add_activity(db, [Activity(device_id=id_, at_ms=1, kind="online") for id_ in (ONE, TWO)])
    before = last_id(db)
    assert leave(db, ONE, "ada", now_ms=NOW_MS) == "removed"
    assert users_of(db, ONE, now_ms=0) == []
    told = {(change.kind, change.device_id, change.user_id) for change in read_changes(db, before)}
    assert told == {("access_changed", ONE, "ada"), ("access_changed", ONE, "bob")}
    assert db.scalars(select(shares.c.device_id)).all() == [TWO]
    # Pairing tokens stay but are invalid: a stranger may have seen a token that the machine still shows.
    unused = select(claims.c.device_id).where(claims.c.used_by.is_(None))
    assert db.scalars(unused).all() == [TWO]
    assert activity_of(db, ONE) == []
    assert len(activity_of(db, TWO)) == 1
    (device,) = find_devices(db, [ONE])
    assert (device.key_hash, device.name, device.key_pending_since_ms) == (b"\x01" * 32, None, None)
    assert roles_of(db, TWO) == {"ada": ("owner", None)}
    assert find_devices(db, [TWO])[0].key_pending_since_ms == 5


def test_demoted_user_does_not_regain_access_by_a_share(db: Connection) -> None:
    add_devices(db, [new_device(1, "ada", "bob"), new_device(2, "ada")], now_ms=NOW_MS)
    share(db, 1)
    share(db, 2)
    set_role(db, ONE, "bob", role="owner", now_ms=NOW_MS)
    assert len(db.scalars(select(shares.c.id)).all()) == 2
    set_role(db, ONE, "bob", role="member", now_ms=NOW_MS)
    assert db.scalars(select(shares.c.device_id)).all() == [TWO]
    share(db, 1)
    set_role(db, ONE, "bob", role="owner", now_ms=NOW_MS)
    assert len(db.scalars(select(shares.c.id)).all()) == 2
    take(db, ONE, "bob", now_ms=NOW_MS)
    assert db.scalars(select(shares.c.device_id)).all() == [TWO]


def test_leaving_does_not_end_shares(db: Connection) -> None:
    add_devices(db, [new_device(1, "ada")], now_ms=NOW_MS)
    give(db, ONE, "eve", role="viewer", now_ms=NOW_MS)
    share(db, 1)
    assert take(db, ONE, "eve", now_ms=NOW_MS, by_user_id="eve")
    assert db.scalars(select(shares.c.device_id)).all() == [ONE]


def test_release_removes_all_users(db: Connection) -> None:
    add_devices(db, [new_device(1, "ada", "bob")], now_ms=NOW_MS)
    release(db, ONE, now_ms=NOW_MS)
    assert users_of(db, ONE, now_ms=NOW_MS) == []
    assert sorted(changes_of(db)) == [("access_changed", ONE, "ada"), ("access_changed", ONE, "bob")]
    assert len(find_devices(db, [ONE])) == 1
    with pytest.raises(DeviceUnknown):
        release(db, TWO, now_ms=NOW_MS)


def test_a_member_who_leaves_takes_nothing_from_the_others(db: Connection) -> None:
    add_devices(db, [new_device(1)], now_ms=NOW_MS)
    give(db, ONE, "ada", role="member", now_ms=NOW_MS)
    give(db, ONE, "bob", role="viewer", now_ms=NOW_MS)
    assert leave(db, ONE, "ada", now_ms=NOW_MS) == "left"
    assert leave(db, ONE, "bob", now_ms=NOW_MS, by_user_id="root") == "left"
    assert activity_of(db, ONE)[0].user_id == "root"
    assert db.scalar(select(func.count()).select_from(device_users)) == 0

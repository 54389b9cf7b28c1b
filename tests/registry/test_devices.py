import time

import pytest
from sqlalchemy import Connection, event, select, update

from brewos_relay.errors import DeviceExists, DeviceUnknown, RegistryError
from brewos_relay.registry.access import devices_of, users_of
from brewos_relay.registry.activity import activity_of, add_activity
from brewos_relay.registry.database import Database
from brewos_relay.registry.devices import (
    add_devices,
    all_devices,
    find_devices,
    lock_device,
    record_info,
    record_seen,
    remove_device,
    set_name,
)
from brewos_relay.registry.records import Activity, Device, NewDevice
from brewos_relay.registry.schema import devices
from support.change_rows import read_changes
from support.kinds import ON_SQLITE
from support.registry import NOW_MS, device_id, new_device, register


def test_added_devices_are_found(db: Connection) -> None:
    add_devices(db, [new_device(2, name="Küche"), new_device(1)], now_ms=NOW_MS)
    first, second = all_devices(db)
    assert first == Device(
        id="BRW-00000001", key_hash=b"\x01" * 32, name=None, created_at_ms=NOW_MS, last_seen_ms=None
    )
    assert (second.id, second.name) == ("BRW-00000002", "Küche")


def test_devices_by_id(db: Connection) -> None:
    add_devices(db, [new_device(number) for number in range(5)], now_ms=NOW_MS)
    found = find_devices(db, ["BRW-00000003", "BRW-00000001", "BRW-0000FFFF"])
    assert sorted(device.id for device in found) == ["BRW-00000001", "BRW-00000003"]
    assert find_devices(db, []) == []
    assert find_devices(db, ["BRW-00000001", "BRW-00000001"]) == find_devices(db, ["BRW-00000001"])


def test_more_ids_than_fit_one_query(db: Connection) -> None:
    add_devices(db, [new_device(number) for number in range(1201)], now_ms=NOW_MS)
    assert len(find_devices(db, [device_id(number) for number in range(2000)])) == 1201


def test_a_lookup_is_one_statement(database: Database) -> None:
    statements: list[str] = []

    @event.listens_for(database._engine, "before_cursor_execute")
    def _count(_connection: object, _cursor: object, statement: str, *_rest: object) -> None:
        statements.append(statement)

    with database.reading() as db:
        find_devices(db, [device_id(number) for number in range(64)])
    assert len(statements) == 1


def test_registered_device_is_refused(database: Database) -> None:
    register(database, [new_device(1, name="old"), new_device(2)])
    with pytest.raises(DeviceExists) as caught:
        register(database, [new_device(2), new_device(3), new_device(1, name="new")])
    assert caught.value.device_ids == ("BRW-00000001", "BRW-00000002")
    with database.reading() as db:
        assert [(each.id, each.name) for each in all_devices(db)] == [
            ("BRW-00000001", "old"),
            ("BRW-00000002", None),
        ]


def test_duplicate_ids_are_refused(database: Database) -> None:
    with pytest.raises(DeviceExists, match="BRW-00000001"):
        register(database, [new_device(1), new_device(2), new_device(1)])
    with database.reading() as db:
        assert all_devices(db) == []


def test_none_is_added_if_a_later_one_cannot_be(database: Database) -> None:
    bad = NewDevice(id=device_id(2500), key_hash=None)  # type: ignore[arg-type]
    with pytest.raises(RegistryError, match=r"could not be changed: (NOT NULL|null value)") as caught:
        register(database, [*(new_device(number) for number in range(2500)), bad])
    assert not isinstance(caught.value, DeviceExists)
    with database.reading() as db:
        assert all_devices(db) == []


def test_progress_adds_up(db: Connection) -> None:
    progress: list[int] = []
    rows = [new_device(number) for number in range(2345)]
    add_devices(db, rows, now_ms=NOW_MS, on_progress=progress.append)
    add_devices(db, [], now_ms=NOW_MS, on_progress=progress.append)
    assert progress == [1000, 1000, 345]


@ON_SQLITE  # the others take as long
def test_a_hundred_thousand_devices_take_seconds(db: Connection) -> None:
    rows = [new_device(number, "ada") for number in range(100_000)]
    started_s = time.process_time()
    add_devices(db, rows, now_ms=NOW_MS)
    assert time.process_time() - started_s < 20
    assert len(all_devices(db)) == 100_000


def test_users_of_a_new_device_have_the_same_role(db: Connection) -> None:
    add_devices(db, [new_device(1, "ada", "bob", "ada", role="viewer")], now_ms=NOW_MS)
    found = [(each.user_id, each.role, each.claimed_at_ms) for each in users_of(db, device_id(1), now_ms=1)]
    assert found == [("ada", "viewer", NOW_MS), ("bob", "viewer", NOW_MS)]


def test_removing_a_device(db: Connection) -> None:
    add_devices(db, [new_device(1, "ada"), new_device(2, "ada")], now_ms=NOW_MS)
    add_activity(db, [Activity(device_id=device_id(n), at_ms=1, kind="online") for n in (1, 2)])
    assert remove_device(db, device_id(1), now_ms=NOW_MS)
    assert not remove_device(db, device_id(1), now_ms=NOW_MS)
    assert [each.device.id for each in devices_of(db, "ada", now_ms=NOW_MS)] == [device_id(2)]
    (change,) = read_changes(db, 0)
    assert (change.kind, change.device_id, change.at_ms) == ("device_removed", device_id(1), NOW_MS)
    # Former users get no access to a new machine with this id, and no user sees its earlier activity.
    add_devices(db, [new_device(1)], now_ms=NOW_MS)
    assert users_of(db, device_id(1), now_ms=NOW_MS) == []
    assert activity_of(db, device_id(1)) == []
    assert len(activity_of(db, device_id(2))) == 1


def test_keys_that_a_device_has_not_used_yet(db: Connection) -> None:
    add_devices(db, [new_device(1)], now_ms=NOW_MS)
    db.execute(update(devices).values(next_key_hashes=b"a" * 32 + b"b" * 32, key_pending_since_ms=7))
    (device,) = all_devices(db)
    assert device.next_key_hashes == (b"a" * 32, b"b" * 32)
    assert device.key_pending_since_ms == 7


def test_locking_reads(db: Connection) -> None:
    add_devices(db, [new_device(1)], now_ms=NOW_MS)
    assert [lock_device(db, device_id(1))] == all_devices(db)
    with pytest.raises(DeviceUnknown, match=r"^BRW-00000002 is not registered; .*device list") as caught:
        lock_device(db, device_id(2))
    assert caught.value.device_id == device_id(2)


def test_renaming_a_device(db: Connection) -> None:
    add_devices(db, [new_device(1, name="old"), new_device(2, name="other")], now_ms=NOW_MS)
    assert set_name(db, device_id(1), "Küche", now_ms=NOW_MS, by_user_id="ada")
    assert not set_name(db, device_id(3), "x", now_ms=NOW_MS)
    assert [device.name for device in all_devices(db)] == ["Küche", "other"]
    (entry,) = activity_of(db, device_id(1))
    assert (entry.kind, entry.user_id, entry.at_ms, entry.detail) == (
        "renamed",
        "ada",
        NOW_MS,
        {"name": "Küche"},
    )
    with pytest.raises(ValueError, match="a name must have 1 to 100"):
        set_name(db, device_id(1), "", now_ms=NOW_MS)
    assert set_name(db, device_id(1), None, now_ms=NOW_MS)
    assert all_devices(db)[0].name is None
    assert activity_of(db, device_id(1))[0].detail == {}


def test_when_devices_were_seen(db: Connection) -> None:
    add_devices(db, [new_device(number) for number in range(3)], now_ms=NOW_MS)
    record_seen(db, {"BRW-00000000": 1000, "BRW-00000001": 2000, "BRW-0000FFFF": 5})
    record_seen(db, {"BRW-00000000": 999, "BRW-00000001": 2001})
    record_seen(db, {})
    assert [device.last_seen_ms for device in all_devices(db)] == [1000, 2001, None]


def test_reported_info_is_stored(db: Connection) -> None:
    add_devices(db, [new_device(1), new_device(2)], now_ms=NOW_MS)
    record_info(db, device_id(1), firmware_version="1.2.3", machine_type="x" * 51)
    record_info(db, device_id(1), firmware_version=None, machine_type=None)
    record_info(db, device_id(1), firmware_version="1.2.4", machine_type=None)
    found = [(device.firmware_version, device.machine_type) for device in all_devices(db)]
    assert found == [("1.2.4", "x" * 50), (None, None)]


def test_unchanged_info_is_not_written(db: Connection) -> None:
    add_devices(db, [new_device(1)], now_ms=NOW_MS)
    record_info(db, device_id(1), firmware_version="1.2.3", machine_type="dual")
    written: list[int] = []
    event.listen(db, "after_cursor_execute", lambda _db, cursor, *_rest: written.append(cursor.rowcount))
    record_info(db, device_id(1), firmware_version="1.2.3", machine_type="dual")
    assert written == [0]
    assert db.scalar(select(devices.c.machine_type)) == "dual"

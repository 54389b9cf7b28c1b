import pytest
from sqlalchemy import Connection, update

from brewos_relay.registry.activity import (
    activity_of,
    add_activity,
    add_activity_of_known,
    forget_activity,
)
from brewos_relay.registry.devices import add_devices
from brewos_relay.registry.records import Activity, StoredActivity
from brewos_relay.registry.schema import devices
from brewos_relay.vocabulary import Detail
from support.registry import NOW_MS, device_id, new_device

ONE, TWO = device_id(1), device_id(2)


def test_activity_is_listed_newest_first(db: Connection) -> None:
    command = {"type": "set_temp", "note": 'é"\n\x00\ud800'}
    entries = [
        Activity(device_id=ONE, at_ms=NOW_MS, kind="online"),
        Activity(device_id=TWO, at_ms=NOW_MS, kind="offline"),
        Activity(device_id=ONE, at_ms=NOW_MS, kind="command", user_id="ada", detail=command),
    ]
    add_activity(db, entries)
    add_activity(db, [])
    newest, oldest = activity_of(db, ONE)
    assert newest == StoredActivity(
        id=newest.id, device_id=ONE, at_ms=NOW_MS, kind="command", user_id="ada", detail=command
    )
    assert (oldest.kind, oldest.user_id, oldest.detail) == ("online", None, {})
    assert newest.id > oldest.id
    assert activity_of(db, device_id(3)) == []


def test_page_by_page(db: Connection) -> None:
    add_activity(db, [Activity(device_id=ONE, at_ms=at_ms, kind="online") for at_ms in range(250)])
    add_activity(db, [Activity(device_id=TWO, at_ms=1, kind="online")])
    seen: list[int] = []
    before_id = None
    while page := activity_of(db, ONE, before_id=before_id, limit=60):
        assert len(page) <= 60
        seen += [entry.at_ms for entry in page]
        before_id = page[-1].id
    assert seen == list(reversed(range(250)))
    assert len(activity_of(db, ONE)) == 100


@pytest.mark.parametrize(
    ("user_id", "kept"), [("x" * 300, "x" * 256), ("a\0b", "a?b"), ("\ud800", "?"), ("é", "é")]
)
def test_malformed_user_id_does_not_block_other_entries(db: Connection, user_id: str, kept: str) -> None:
    add_activity(db, [Activity(device_id=ONE, at_ms=1, kind="online", user_id=user_id)])
    assert activity_of(db, ONE)[0].user_id == kept


def test_forgetting_activity(db: Connection) -> None:
    add_activity(db, [Activity(device_id=id_, at_ms=1, kind="online") for id_ in (ONE, TWO)])
    forget_activity(db, ONE)
    assert activity_of(db, ONE) == []
    assert len(activity_of(db, TWO)) == 1


def test_activity_of_removed_or_unowned_devices_is_not_stored(db: Connection) -> None:
    numbers, gone, unowned, by_hand = range(1, 600), *[device_id(number) for number in (1000, 1001, 1002)]
    add_devices(db, [new_device(number, "ada", "eve") for number in numbers], now_ms=NOW_MS)
    add_devices(db, [new_device(1001), new_device(1002)], now_ms=NOW_MS)
    db.execute(update(devices).where(devices.c.id == unowned).values(registered_itself=True))
    db.execute(update(devices).where(devices.c.id == device_id(1)).values(registered_itself=True))
    there = [device_id(number) for number in numbers]
    entries = [
        Activity(device_id=id_, at_ms=NOW_MS, kind="offline") for id_ in (*there, gone, unowned, by_hand)
    ]
    add_activity_of_known(db, entries)
    add_activity_of_known(db, [])
    assert all(len(activity_of(db, id_)) == 1 for id_ in there)
    assert activity_of(db, gone) == activity_of(db, unowned) == []
    assert len(activity_of(db, by_hand)) == 1


def test_numbers_are_numbers_also_in_entries_of_earlier_versions(db: Connection) -> None:
    numbers: Detail = {
        "code": 1001,
        "connectedS": 2.5,
        "messages": 7,
        "roundTripMs": 42.1,
        "by": "peer",
        "share": "12",
    }
    texts: Detail = {name: str(value) for name, value in numbers.items()}
    details: list[Detail] = [numbers, texts, {"code": "x"}]
    for detail in details:
        add_activity(db, [Activity(device_id=ONE, at_ms=1, kind="offline", detail=detail)])
    assert [entry.detail for entry in activity_of(db, ONE)] == [{"code": "x"}, numbers, numbers]

import time

import pytest
from sqlalchemy import Connection, delete, insert

from brewos_relay.registry.change_feed import GAP_S, GAPS_AT_MOST, ChangeReader, read_changes
from brewos_relay.registry.changes import note_change
from brewos_relay.registry.database import Database
from brewos_relay.registry.records import Change
from brewos_relay.registry.schema import changes
from support.registry import NOW_MS, device_id


def commit(db: Connection, *ids: int) -> None:
    """Make changes with these ids visible, like transactions that commit late."""
    rows = [{"id": id_, "at_ms": NOW_MS, "kind": "access_changed"} for id_ in ids]
    db.execute(insert(changes), rows)


def read_ids(follower: ChangeReader, db: Connection) -> list[int]:
    return [change.id for change in follower.read(db)]


def test_changes_are_read_in_their_order(db: Connection) -> None:
    note_change(db, "access_changed", device_id=device_id(1), user_id="ada", now_ms=NOW_MS)
    note_change(db, "session_ended", session_id="s", user_id="ada", now_ms=NOW_MS + 1)
    first, second = read_changes(db, 0)
    assert first == Change(
        id=first.id, at_ms=NOW_MS, kind="access_changed", device_id=device_id(1), user_id="ada"
    )
    assert second == Change(
        id=second.id, at_ms=NOW_MS + 1, kind="session_ended", session_id="s", user_id="ada"
    )
    assert read_changes(db, first.id) == [second]
    assert read_changes(db, second.id) == []


def test_ids_are_not_reused(db: Connection) -> None:
    note_change(db, "key_changed", now_ms=1)
    (first,) = read_changes(db, 0)
    db.execute(delete(changes))
    note_change(db, "key_changed", now_ms=1)
    assert read_changes(db, first.id) != []


def test_each_change_since_the_start_is_read_once(database: Database) -> None:
    with database.writing() as db:
        note_change(db, "key_changed", now_ms=1)
    with database.reading() as db:
        follower = ChangeReader(db)
        assert follower.read(db) == []
    for now_ms in (2, 3):
        with database.writing() as db:
            note_change(db, "key_changed", now_ms=now_ms)
            note_change(db, "key_pending", now_ms=now_ms)
        with database.reading() as db:
            found = [(change.kind, change.at_ms) for change in follower.read(db)]
            assert found == [("key_changed", now_ms), ("key_pending", now_ms)]
            assert follower.read(db) == []


def test_change_committed_after_a_later_id_is_read(db: Connection) -> None:
    commit(db, 10)
    follower = ChangeReader(db)
    commit(db, 12, 15)
    assert read_ids(follower, db) == [12, 15]
    commit(db, 11, 13, 16)
    assert read_ids(follower, db) == [11, 13, 16]
    assert read_ids(follower, db) == []
    commit(db, 14)
    assert read_ids(follower, db) == [14]
    assert read_ids(follower, db) == []


def test_change_started_before_the_reader_is_read(db: Connection) -> None:
    commit(db, 8, 10)
    follower = ChangeReader(db)
    assert read_ids(follower, db) == []
    commit(db, 7, 9)
    assert read_ids(follower, db) == [7, 9]
    assert read_ids(follower, db) == []


def gaps(follower: ChangeReader) -> list[tuple[int, int]]:
    return [(gap.first, gap.last) for gap in follower._gaps]


def test_missing_ids_are_abandoned_after_a_while(db: Connection, monkeypatch: pytest.MonkeyPatch) -> None:
    follower = ChangeReader(db)
    commit(db, 2)
    assert read_ids(follower, db) == [2]
    now_s = time.monotonic()
    monkeypatch.setattr(time, "monotonic", lambda: now_s + GAP_S - 1)
    assert read_ids(follower, db) == []
    assert gaps(follower) == [(1, 1)]
    monkeypatch.setattr(time, "monotonic", lambda: now_s + GAP_S + 1)
    assert read_ids(follower, db) == []
    assert gaps(follower) == []


def test_thousand_late_changes_are_read(db: Connection) -> None:
    commit(db, 10)
    follower = ChangeReader(db)
    commit(db, 1500)
    assert read_ids(follower, db) == [1500]
    commit(db, *range(11, 1011))
    assert read_ids(follower, db) == [*range(11, 1011)]
    assert gaps(follower) == [(1, 9), (1011, 1499)]
    commit(db, 1200, 1499)
    assert read_ids(follower, db) == [1200, 1499]
    assert gaps(follower) == [(1, 9), (1011, 1199), (1201, 1498)]


def test_number_of_gaps_is_limited(db: Connection) -> None:
    follower = ChangeReader(db)
    commit(db, *range(2, 2 * GAPS_AT_MOST + 6, 2))
    assert len(read_ids(follower, db)) == GAPS_AT_MOST + 2
    assert len(gaps(follower)) == GAPS_AT_MOST
    commit(db, 3, 5)
    assert read_ids(follower, db) == [5]


def test_reading_gaps_does_not_reread_all_changes(db: Connection) -> None:
    follower = ChangeReader(db)
    commit(db, 1, 2, 3)
    assert read_ids(follower, db) == [1, 2, 3]
    assert gaps(follower) == []

import time

import pytest
from sqlalchemy import Connection, delete, insert

from brewos_relay.registry.changes import LATE_AT_MOST, LATE_S, ChangeFollower, note_change, read_changes
from brewos_relay.registry.database import Database
from brewos_relay.registry.records import Change
from brewos_relay.registry.schema import changes
from support.registry import NOW_MS, device_id


def commit(db: Connection, *ids: int) -> None:
    """Let changes with these ids appear, as their transactions end."""
    rows = [{"id": id_, "at_ms": NOW_MS, "kind": "access_changed"} for id_ in ids]
    db.execute(insert(changes), rows)


def read_ids(follower: ChangeFollower, db: Connection) -> list[int]:
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


def test_an_id_is_not_used_again(db: Connection) -> None:
    note_change(db, "key_changed", now_ms=1)
    (first,) = read_changes(db, 0)
    db.execute(delete(changes))
    note_change(db, "key_changed", now_ms=1)
    assert read_changes(db, first.id) != []


def test_each_change_since_the_start_is_read_once(database: Database) -> None:
    with database.writing() as db:
        note_change(db, "key_changed", now_ms=1)
    with database.reading() as db:
        follower = ChangeFollower(db)
        assert follower.read(db) == []
    for now_ms in (2, 3):
        with database.writing() as db:
            note_change(db, "key_changed", now_ms=now_ms)
            note_change(db, "key_pending", now_ms=now_ms)
        with database.reading() as db:
            found = [(change.kind, change.at_ms) for change in follower.read(db)]
            assert found == [("key_changed", now_ms), ("key_pending", now_ms)]
            assert follower.read(db) == []


def test_a_change_that_appears_after_a_later_one(db: Connection) -> None:
    commit(db, 10)
    follower = ChangeFollower(db)
    commit(db, 12, 15)
    assert read_ids(follower, db) == [12, 15]
    commit(db, 11, 13, 16)
    assert read_ids(follower, db) == [11, 13, 16]
    assert read_ids(follower, db) == []
    commit(db, 14)
    assert read_ids(follower, db) == [14]
    assert read_ids(follower, db) == []


def test_a_change_of_before_the_start_that_appears_later(db: Connection) -> None:
    commit(db, 8, 10)
    follower = ChangeFollower(db)
    assert read_ids(follower, db) == []
    commit(db, 7, 9)
    assert read_ids(follower, db) == [7, 9]
    assert read_ids(follower, db) == []


def test_ids_that_never_appear_are_given_up(db: Connection, monkeypatch: pytest.MonkeyPatch) -> None:
    follower = ChangeFollower(db)
    commit(db, 2)
    assert read_ids(follower, db) == [2]
    now_s = time.monotonic()
    monkeypatch.setattr(time, "monotonic", lambda: now_s + LATE_S - 1)
    assert read_ids(follower, db) == []
    assert list(follower._late_since_s) == [1]
    monkeypatch.setattr(time, "monotonic", lambda: now_s + LATE_S + 1)
    assert read_ids(follower, db) == []
    assert list(follower._late_since_s) == []


def test_only_so_many_ids_are_looked_for_again(db: Connection) -> None:
    follower = ChangeFollower(db)
    commit(db, 60, 10_000, 10_050)
    assert read_ids(follower, db) == [60, 10_000, 10_050]
    late = list(follower._late_since_s)
    assert len(late) == LATE_AT_MOST
    assert late[-1] == 10_049
    commit(db, 10_049, 9_999, 1)
    assert read_ids(follower, db) == [9_999, 10_049]


def test_looking_again_does_not_read_all_again(db: Connection) -> None:
    follower = ChangeFollower(db)
    commit(db, 1, 2, 3)
    assert read_ids(follower, db) == [1, 2, 3]
    assert follower._late_since_s == {}

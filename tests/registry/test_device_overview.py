from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import event

from brewos_relay.registry.access import give
from brewos_relay.registry.accounts import add_user, find_users, lock_admins, set_admin, some_users
from brewos_relay.registry.database import Database
from brewos_relay.registry.device_overview import Totals, list_device_overviews, totals
from brewos_relay.registry.devices import add_devices, record_seen
from brewos_relay.registry.records import NewDevice

IDS = ["BRW-0000000A", "BRW-0000000B", "BRW-0000000C"]


@pytest.fixture
def database(url: str) -> Database:
    database = Database.open(url)
    with database.writing() as db:
        names = ["Kitchen", None, "100 % Office"]
        new = [NewDevice(id=id_, key_hash=b"k" * 32, name=name) for id_, name in zip(IDS, names, strict=True)]
        add_devices(db, new, now_ms=1)
        for email, name in (("ada@example.org", "Ada"), ("ben@example.org", None)):
            user = add_user(db, email=email, name=name, now_ms=1)
            give(db, IDS[0], user.id, role="owner", now_ms=1)
        give(db, IDS[0], "by-token", role="member", now_ms=1)
        give(db, IDS[1], "by-token", role="owner", now_ms=1)
    return database


def test_devices_come_in_order_with_their_owners(database: Database) -> None:
    with database as opened, opened.reading() as db:
        found = list_device_overviews(db, limit=10)
    assert [one.device.id for one in found] == IDS
    assert [one.owners for one in found] == [("ada@example.org", "ben@example.org"), ("by-token",), ()]


def test_pages_follow_each_other(database: Database) -> None:
    with database as opened, opened.reading() as db:
        assert [one.device.id for one in list_device_overviews(db, limit=2)] == IDS[:2]
        assert [one.device.id for one in list_device_overviews(db, after=IDS[1], limit=2)] == IDS[2:]
        assert list_device_overviews(db, after=IDS[2], limit=2) == []
        assert [one.email for one in some_users(db, limit=1)] == ["ada@example.org"]
        assert [one.email for one in some_users(db, after="ada@example.org", limit=9)] == ["ben@example.org"]


SORTED = [
    ({"sort": "name"}, [IDS[1], IDS[2], IDS[0]]),
    ({"sort": "name", "descending": True}, [IDS[0], IDS[2], IDS[1]]),
    ({"sort": "lastSeen"}, [IDS[0], IDS[2], IDS[1]]),
    ({"descending": True}, IDS[::-1]),
    ({"only": "unowned"}, IDS[2:]),
    ({"only": "newKey"}, []),
    ({"owner": "ADA@example.org"}, IDS[:1]),
    ({"owner": "by-token"}, IDS[1:2]),
    ({"owner": "%"}, []),
]


@pytest.mark.parametrize(("wanted", "ids"), SORTED)
@pytest.mark.parametrize("limit", [1, 2, 10])
def test_all_devices_are_sorted_and_filtered_not_only_those_of_a_page(
    database: Database, wanted: dict[str, Any], ids: list[str], limit: int
) -> None:
    with database as opened:
        with opened.writing() as db:
            record_seen(db, {IDS[2]: 5, IDS[1]: 9})
        with opened.reading() as db:
            found: list[str] = []
            while page := list_device_overviews(db, **wanted, after=found[-1] if found else "", limit=limit):
                found += [one.device.id for one in page]
    assert found == ids


def plan_of(db: Any, list_page: Callable[[], object]) -> list[str]:
    """Run a function, and return how SQLite answers its first query."""
    asked: list[tuple[str, Any]] = []
    event.listen(db, "before_cursor_execute", lambda *given: asked.append((given[2], given[3])))
    list_page()
    statement, values = asked[0]
    return [row[-1] for row in db.exec_driver_sql(f"EXPLAIN QUERY PLAN {statement}", values)]


@pytest.mark.parametrize("wanted", [{"find": "ada"}, {"only": "administrators"}])
def test_few_accounts_are_found_without_the_index_of_all(tmp_path: Path, wanted: dict[str, Any]) -> None:
    with Database.open(f"sqlite:///{tmp_path / 'registry.db'}") as opened, opened.reading() as db:
        plan = plan_of(db, lambda: some_users(db, limit=2))
        assert any("USING INDEX" in each for each in plan), plan
        plan = plan_of(db, lambda: some_users(db, **wanted, limit=2))
        assert not any("USING INDEX" in each for each in plan), plan


@pytest.mark.parametrize(
    ("wanted", "step"),
    [
        ({"only": "unowned", "sort": "lastSeen"}, "USING COVERING INDEX device_users_by_device_and_role"),
        ({"owner": "ada@example.org", "sort": "name"}, "SEARCH devices USING PRIMARY KEY"),
    ],
)
def test_owners_of_all_devices_are_not_read_to_filter_by_them(
    tmp_path: Path, wanted: dict[str, Any], step: str
) -> None:
    with Database.open(f"sqlite:///{tmp_path / 'registry.db'}") as opened, opened.reading() as db:
        plan = plan_of(db, lambda: list_device_overviews(db, **wanted, limit=2))
    assert any(step in each for each in plan), plan


@pytest.mark.parametrize(
    ("wanted", "names"),
    [
        ({}, ["ada", "ben", "cleo"]),
        ({"descending": True}, ["cleo", "ben", "ada"]),
        ({"sort": "name"}, ["ben", "ada", "cleo"]),
        ({"sort": "createdAt", "descending": True}, ["cleo", "ben", "ada"]),
        ({"only": "administrators"}, ["cleo"]),
    ],
)
@pytest.mark.parametrize("limit", [1, 10])
def test_all_accounts_are_sorted_and_filtered(
    database: Database, wanted: dict[str, Any], names: list[str], limit: int
) -> None:
    with database as opened:
        with opened.writing() as db:
            set_admin(db, add_user(db, email="cleo@example.org", name="cleo", now_ms=2).id, True)
        with opened.reading() as db:
            found: list[str] = []
            while page := some_users(db, **wanted, after=found[-1] if found else "", limit=limit):
                found += [one.email for one in page]
    assert [email.partition("@")[0] for email in found] == names


@pytest.mark.parametrize(
    ("find", "ids"),
    [("kitch", IDS[:1]), ("brw-", IDS), ("000c", IDS[2:]), ("%", IDS[2:]), ("_", []), ("nothing", [])],
)
def test_devices_are_found_by_id_and_name(database: Database, find: str, ids: list[str]) -> None:
    with database as opened, opened.reading() as db:
        assert [one.device.id for one in list_device_overviews(db, find=find, limit=10)] == ids


@pytest.mark.parametrize(
    ("find", "emails"),
    [("ADA", ["ada@example.org"]), ("@example", ["ada@example.org", "ben@example.org"]), ("%", [])],
)
def test_accounts_are_found_by_address_and_name(database: Database, find: str, emails: list[str]) -> None:
    with database as opened, opened.reading() as db:
        assert [one.email for one in some_users(db, find=find, limit=10)] == emails


def test_accounts_are_found_by_their_ids(database: Database) -> None:
    with database as opened, opened.reading() as db:
        ada, ben = some_users(db, limit=10)
        assert find_users(db, [ben.id, "nobody", ada.id]) == {ada.id: ada, ben.id: ben}
        assert find_users(db, []) == {}


def test_administrators_and_totals_are_counted(database: Database) -> None:
    with database as opened:
        with opened.writing() as db:
            ada, ben = some_users(db, limit=10)
            assert lock_admins(db) == []
            set_admin(db, ada.id, True)
            assert lock_admins(db) == [ada.id]
            set_admin(db, ben.id, True)
            assert lock_admins(db) == sorted([ada.id, ben.id])
        with opened.reading() as db:
            assert totals(db) == Totals(devices=3, users=2)

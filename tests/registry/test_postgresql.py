"""Tests of what differs for a registry in PostgreSQL; the other tests run on both."""

import sys
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import pytest
import trio
from sqlalchemy import Connection, func, insert, inspect, select, update
from sqlalchemy.engine import make_url

from brewos_relay.errors import RegistryBusy, RegistryError
from brewos_relay.registry import migrations
from brewos_relay.registry.access import users_of
from brewos_relay.registry.changes import publish_change
from brewos_relay.registry.database import Database, upgrade, version
from brewos_relay.registry.devices import all_devices, find_devices, lock_device, set_name
from brewos_relay.registry.engine import connect, database_file
from brewos_relay.registry.records import Change, Device, DeviceUser
from brewos_relay.registry.schema import devices, metadata, new_ids
from brewos_relay.registry.store import open_store
from brewos_relay.server.assembly import open_server
from brewos_relay.settings import Settings
from support.postgresql import PostgreSQL
from support.registry import NOW_MS, device_id, new_device, register

pytestmark = pytest.mark.postgresql

# As the first release made them.
_FIRST_TABLES = """
CREATE TABLE devices (
    id VARCHAR(12) NOT NULL, key_hash BYTEA NOT NULL, name VARCHAR(100), created_at_ms BIGINT NOT NULL,
    last_seen_ms BIGINT, PRIMARY KEY (id)
);
CREATE TABLE device_users (
    user_id VARCHAR(256) NOT NULL, device_id VARCHAR(12) NOT NULL, PRIMARY KEY (user_id, device_id),
    FOREIGN KEY(device_id) REFERENCES devices (id) ON DELETE CASCADE
);
CREATE INDEX device_users_by_device ON device_users (device_id);
INSERT INTO devices VALUES ('BRW-00000007', decode(repeat('07', 32), 'hex'), 'No. 7', 7, NULL);
INSERT INTO device_users VALUES ('ada', 'BRW-00000007'), ('bob', 'BRW-00000007');
"""


@pytest.fixture
def kind() -> str:
    return "postgresql"


@pytest.fixture
def empty(postgresql: PostgreSQL) -> Iterator[str]:
    """The URL of a database without a table."""
    with postgresql.new_database(empty=True) as url:
        yield url


@pytest.fixture
def old(empty: str) -> str:
    """The URL of a database of the first release, with rows."""
    database = Database(connect(empty))
    with database, database.writing() as db:
        db.exec_driver_sql(_FIRST_TABLES)
    return empty


# Location


@pytest.mark.parametrize("scheme", ["postgres", "postgresql", "postgresql+psycopg"])
def test_url_of_other_programs_is_accepted(url: str, scheme: str) -> None:
    with Database.open(url.replace("postgresql+psycopg", scheme)) as database:
        register(database, [new_device(1)])
        assert database.location.startswith("postgresql+psycopg://relay:***@/test_")
    assert database_file(url) is None


@pytest.mark.parametrize("where", ["", "&password=hunter2", "&sslpassword=hunter2"])
def test_no_password_is_shown(url: str, where: str) -> None:
    with Database.open(url + where) as database:
        assert "hunter2" not in database.location
    gone = make_url(url + where).set(database="hunter3").render_as_string(hide_password=False)
    assert "hunter2" in gone
    for attempt in (Database.open, upgrade, version):
        with pytest.raises(RegistryError, match='database "hunter3" does not exist') as caught:
            attempt(gone)
        assert "hunter2" not in str(caught.value)


@pytest.mark.parametrize(
    ("scheme", "advice"), [("postgresql", "brewos-relay[postgresql]"), ("postgresql+pg8000", "pg8000")]
)
def test_without_its_driver(monkeypatch: pytest.MonkeyPatch, scheme: str, advice: str) -> None:
    for name in ("psycopg", "pg8000"):
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(RegistryError) as caught:
        Database.open(f"{scheme}://relay:hunter2@db/relay")
    assert advice in str(caught.value)
    assert ("pip install" in str(caught.value)) is (scheme == "postgresql")
    assert "hunter2" not in str(caught.value)


def parameters_of(url: str) -> dict[str, str]:
    with Database.open(url) as database, database.reading() as db:
        found: dict[str, str] = db.connection.dbapi_connection.info.get_parameters()  # type: ignore[union-attr]
        return found


def test_dead_database_server_is_detected(url: str) -> None:
    wanted = {"connect_timeout": "10", "keepalives_idle": "30", "tcp_user_timeout": "30000"}
    assert wanted.items() <= parameters_of(url).items()
    assert parameters_of(f"{url}&connect_timeout=3")["connect_timeout"] == "3"


# Its tables


def test_tables_are_made_on_request_only(empty: str) -> None:
    assert version(empty)[1] is None
    with pytest.raises(RegistryError, match=r"its tables are missing, .*run `brewos-relay db upgrade`"):
        Database.open(empty)
    assert version(empty)[1] is None
    assert upgrade(empty) == list(migrations.VERSIONS)
    assert upgrade(empty) == []
    Database.open(empty).close()


def test_an_old_database_keeps_its_rows(old: str) -> None:
    with pytest.raises(RegistryError, match=r"version 0001, .* \d+; run `brewos-relay db upgrade`"):
        Database.open(old)
    assert upgrade(old) == list(migrations.VERSIONS[1:])
    with Database.open(old) as database, database.reading() as db:
        assert all_devices(db) == [
            Device(id=device_id(7), key_hash=b"\x07" * 32, name="No. 7", created_at_ms=7, last_seen_ms=None)
        ]
        assert users_of(db, device_id(7), now_ms=NOW_MS) == [
            DeviceUser(user_id=user, device_id=device_id(7), role="owner") for user in ("ada", "bob")
        ]


def describe(url: str) -> dict[str, object]:
    with Database.open(url) as database, database.reading() as db:
        tables = inspect(db)
        return {
            name: [
                sorted((column["name"], str(column["type"]), column["nullable"]) for column in columns),
                sorted(str(index) for index in tables.get_indexes(name)),
                sorted(str(key) for key in tables.get_foreign_keys(name)),
            ]
            for name in [*metadata.tables, "alembic_version"]
            if (columns := tables.get_columns(name))
        }


def test_an_old_database_ends_up_like_a_new_one(old: str, url: str) -> None:
    upgrade(old)
    assert describe(old) == describe(url)


def test_all_of_it_or_nothing(old: str, monkeypatch: pytest.MonkeyPatch) -> None:
    run_alembic = migrations._run_alembic

    def fail_in_the_end(*args: object) -> None:
        run_alembic(*args)  # type: ignore[arg-type]
        raise RegistryError("the disk is full")

    with monkeypatch.context() as patch:
        patch.setattr(migrations, "_run_alembic", fail_in_the_end)
        with pytest.raises(RegistryError, match="the disk is full"):
            upgrade(old)
    assert version(old)[1] == "0001"
    assert upgrade(old) == list(migrations.VERSIONS[1:])


def test_concurrent_upgrades_are_safe(empty: str) -> None:
    with ThreadPoolExecutor(4) as pool:
        added = list(pool.map(upgrade, [empty] * 4))
    assert sorted(added) == [[], [], [], list(migrations.VERSIONS)]


def test_database_of_a_newer_version_is_unchanged(url: str) -> None:
    with Database.open(url) as database, database.writing() as db:
        db.exec_driver_sql("UPDATE alembic_version SET version_num = '9999'")
    for refused in (Database.open, upgrade):
        with pytest.raises(
            RegistryError, match=r"a newer brewos-relay .* version 9999, .* up to \d+; install"
        ):
            refused(url)


# Reading and writing


def rename(db: Connection, name: str) -> None:
    db.execute(update(devices).values(name=name))


def names(database: Database) -> list[str | None]:
    with database.reading() as db:
        return [device.name for device in all_devices(db)]


def test_a_reader_does_not_wait_for_a_writer(database: Database) -> None:
    register(database, [new_device(1, name="old")])
    with database.writing() as db:
        rename(db, "new")
        assert names(database) == ["old"]
    assert names(database) == ["new"]


def test_reading_needs_no_transaction(database: Database) -> None:
    with database.reading() as db:
        assert all_devices(db) == []
        register(database, [new_device(1)])
        assert len(all_devices(db)) == 1  # a concurrent commit is visible


def test_a_writer_waits_for_another(database: Database, postgresql: PostgreSQL) -> None:
    register(database, [new_device(1)])

    def rename_second() -> None:
        with database.writing() as db:
            rename(db, "second")

    with ThreadPoolExecutor(1) as pool:
        with database.writing() as db:
            rename(db, "first")
            second = pool.submit(rename_second)
            postgresql.wait_until_one_waits()
        second.result(30)
    assert names(database) == ["second"]


def test_writer_times_out(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("brewos_relay.registry.engine.BUSY_TIMEOUT_S", 0.1)
    with Database.open(url) as database:
        register(database, [new_device(1)])
        with database.writing() as db:
            rename(db, "first")
            with pytest.raises(RegistryError, match="lock timeout"), database.writing() as other:
                rename(other, "second")


# Its connections


def test_wait_for_a_connection_is_limited(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("brewos_relay.registry.engine.BUSY_TIMEOUT_S", 0.1)
    with Database.open(url, connections=2) as database:
        with (
            database.reading(),
            database.writing(),
            pytest.raises(RegistryBusy, match="could not be read"),
            database.reading(),
        ):
            pytest.fail("this is the third connection")
        assert names(database) == []


async def test_two_connections_are_enough_for_everything(url: str, postgresql: PostgreSQL) -> None:
    long_ago = [new_device(1, "ada"), new_device(2, "ada")]
    with Database.open(url) as database:
        register(database, long_ago, now_ms=1)
        with database.writing() as db:
            publish_change(db, "access_changed", device_id=device_id(1), now_ms=1)
            db.execute(insert(new_ids).values(network="192.0.2.1", since_ms=1, count=1))
    applied: list[Change] = []

    async def apply(batch: Sequence[Change]) -> None:
        applied.extend(batch)

    with trio.fail_after(30), postgresql.counting_connections(url) as count:
        async with open_store(url, connections=2) as store, trio.open_nursery() as nursery:
            store.watch_changes(apply)
            with Database.open(url) as other:
                with other.writing() as db:
                    lock_device(db, device_id(1))
                    for number in range(10):
                        nursery.start_soon(
                            partial(store.write, set_name, device_id(1), str(number), now_ms=1)
                        )
                    while store.waiting_for_connection()["write"] < 9:  # noqa: ASYNC110 - nothing tells
                        await trio.sleep(0.01)
                    assert store.connections_busy()["write"] == 1
                    # A writer that waits for a lock keeps no reader waiting, and no change.
                    assert await store.find_device(device_id(2)) is not None
                    assert await store.access_of("ada", device_id(1)) is not None
                    publish_change(db, "key_changed", device_id=device_id(2), now_ms=1)
                for _ in range(20):
                    nursery.start_soon(store.find_device, device_id(2))
                    nursery.start_soon(store.read, all_devices)
            await store.catch_up()
            store.write_behind.record_seen(device_id(2), 7)
            while await store.read(lambda db: db.execute(select(new_ids)).first()) is not None:  # noqa: ASYNC110
                await trio.sleep(0.05)
            assert applied[-1].kind == "key_changed"
        with Database.open(url) as database, database.reading() as db:
            [seen] = find_devices(db, [device_id(2)])
            assert seen.last_seen_ms == 7
        # The store's, and one each of `other` and `database`, which close theirs in their own time.
        assert count() <= 4


async def test_servers_stay_within_their_connections(
    url: str, tmp_path: Path, postgresql: PostgreSQL
) -> None:
    pool, many = 3, 3
    with trio.fail_after(60), postgresql.limited_role(url, connections=pool * many) as limited:
        settings = [
            Settings(
                host="127.0.0.1",
                port=0,
                jwt_secret="s" * 32,
                data_dir=tmp_path / str(number),
                database_url=limited,
                database_pool=pool,
            )
            for number in range(many)
        ]
        async with (
            open_server(settings[0]) as one,
            open_server(settings[1]) as two,
            open_server(settings[2]) as three,
        ):
            with postgresql.counting_connections(limited) as count:
                async with trio.open_nursery() as nursery:
                    for store in (one.store, two.store, three.store):
                        for _ in range(15):
                            nursery.start_soon(partial(store.read, sleep, for_s=0.05))
                            nursery.start_soon(partial(store.write, sleep, for_s=0.05))
                            nursery.start_soon(store.find_device, device_id(1))
                            nursery.start_soon(store.check)
            # Each server has one connection for lookups, which are short, so it may be idle meanwhile.
            assert (pool - 1) * many <= count() <= pool * many


def sleep(db: Connection, *, for_s: float) -> None:
    db.execute(select(func.pg_sleep(for_s)))

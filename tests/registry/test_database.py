import contextlib
import os
import signal
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from sqlalchemy import insert, inspect, select
from sqlalchemy.exc import OperationalError

from brewos_relay.errors import DeviceUnknown, RegistryError
from brewos_relay.registry import engine as engine_module
from brewos_relay.registry import migrations
from brewos_relay.registry.database import Database, upgrade, version
from brewos_relay.registry.devices import add_devices, all_devices, find_devices
from brewos_relay.registry.engine import database_file
from brewos_relay.registry.schema import activity, changes, claims, device_users, devices
from support.kinds import ON_POSTGRESQL, ON_SQLITE
from support.registry import device_id, new_device, register

DEADLINE_S = 30.0


class Stop(Exception):
    """Ends a transaction."""


def count(database: Database) -> int:
    with database.reading() as db:
        return len(all_devices(db))


# The database itself


def test_the_file_keeps_everything(url: str) -> None:
    with Database.open(url) as database:
        register(database, [new_device(1)])
    with Database.open(url) as database:
        assert count(database) == 1
    database.close()


def test_folders_are_made(tmp_path: Path) -> None:
    Database.open(f"sqlite:///{tmp_path}/a b/c/registry.db").close()
    assert (tmp_path / "a b" / "c" / "registry.db").exists()


def mode_of(path: Path) -> int:
    return path.stat().st_mode & 0o777


@pytest.fixture
def no_umask() -> Iterator[None]:
    before = os.umask(0)
    yield
    os.umask(before)


@pytest.mark.usefixtures("no_umask")
def test_new_files_are_private(tmp_path: Path) -> None:
    with Database.open(f"sqlite:///{tmp_path}/data/registry.db") as database:
        register(database, [new_device(1)])
        made = {path.name: mode_of(path) for path in (tmp_path / "data").iterdir()}
    assert made.pop("registry.db") == 0o600
    assert set(made) == {"registry.db-wal", "registry.db-shm"}
    assert set(made.values()) == {0o600}
    assert mode_of(tmp_path / "data") == 0o700


@pytest.mark.usefixtures("no_umask")
def test_existing_files_keep_their_mode(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir(mode=0o750)
    (tmp_path / "data" / "registry.db").touch(mode=0o640)
    Database.open(f"sqlite:///{tmp_path}/data/registry.db").close()
    assert mode_of(tmp_path / "data") == 0o750
    assert mode_of(tmp_path / "data" / "registry.db") == 0o640


@pytest.mark.parametrize(
    ("url", "file"),
    [
        ("sqlite:///data/x.db", Path("data/x.db")),
        ("sqlite:////data/a b.db?timeout=3", Path("/data/a b.db")),
        ("sqlite+pysqlite:///x.db", Path("x.db")),
        ("sqlite:///file:x.db?uri=true", None),
        ("sqlite://", None),
        ("sqlite:///:memory:", None),
        ("postgresql://ada:hunter2@db/x", None),
    ],
)
def test_the_file_of_a_url(url: str, file: Path | None) -> None:
    assert database_file(url) == file


def test_malformed_url_has_no_file() -> None:
    with pytest.raises(RegistryError, match="database URL is malformed"):
        database_file("espresso")


@ON_SQLITE
def test_location_and_version_are_read_without_changes(url: str, tmp_path: Path) -> None:
    path = tmp_path / "registry.db"
    sqlite3.connect(path).close()
    for _ in range(2):  # reading the version does not change it
        assert version(url) == (str(path), None)
    upgrade(url)
    assert version(url) == (str(path), migrations.HEAD)
    # A version of a newer program is reported as well.
    with contextlib.closing(sqlite3.connect(path)) as connection:
        connection.execute("UPDATE alembic_version SET version_num = '9999'")
        connection.commit()
    assert version(url) == (str(path), "9999")
    with contextlib.closing(sqlite3.connect(path)) as connection:
        connection.executescript("DROP TABLE alembic_version")
    assert version(url) == (str(path), "0001")


def test_version_of_another_file_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(RegistryError, match="database URL is malformed"):
        version("espresso")
    (tmp_path / "registry.db").write_bytes(b"espresso" * 1000)
    with pytest.raises(RegistryError, match="file is not a database"):
        version(f"sqlite:///{tmp_path}/registry.db")


@ON_SQLITE
def test_location_is_the_path_or_the_url(
    database: Database, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert database.location == str(tmp_path / "registry.db")
    monkeypatch.chdir(tmp_path)
    with Database.open("sqlite:///x.db") as other:
        assert other.location == str(tmp_path / "x.db")
    with Database.open(f"sqlite:///file:{tmp_path}/y.db?uri=true") as other:
        assert other.location.endswith(f"{tmp_path}/y.db?uri=true")
    assert (tmp_path / "y.db").exists()


@ON_SQLITE
def test_sqlite_is_configured_for_durability(database: Database, tmp_path: Path) -> None:
    with contextlib.closing(sqlite3.connect(tmp_path / "registry.db")) as connection:
        assert connection.execute("PRAGMA journal_mode").fetchone() == ("wal",)
    with database._engine.connect() as checked:
        assert checked.exec_driver_sql("PRAGMA synchronous").scalar_one() == 2  # FULL
        assert checked.exec_driver_sql("PRAGMA foreign_keys").scalar_one() == 1
        assert checked.exec_driver_sql("PRAGMA cache_size").scalar_one() == -512  # KiB
        assert checked.exec_driver_sql("PRAGMA busy_timeout").scalar_one() == 10_000


@ON_SQLITE
def test_a_reader_does_not_wait_for_a_writer(database: Database, tmp_path: Path) -> None:
    register(database, [new_device(1)])
    with contextlib.closing(sqlite3.connect(tmp_path / "registry.db")) as writer:
        writer.execute("BEGIN EXCLUSIVE")
        assert count(database) == 1
        writer.rollback()


@ON_SQLITE
def test_a_writer_waits_for_another(database: Database, tmp_path: Path) -> None:
    with contextlib.closing(sqlite3.connect(tmp_path / "registry.db", check_same_thread=False)) as writer:
        writer.execute("BEGIN IMMEDIATE")
        release = threading.Timer(0.2, writer.rollback)
        release.start()
        register(database, [new_device(1)])
        release.join(DEADLINE_S)
    assert count(database) == 1


def test_several_threads_at_once(database: Database) -> None:
    failures: list[BaseException] = []

    def work(first: int) -> None:
        try:
            for number in range(first, first + 10):
                register(database, [new_device(number)])
                with database.reading() as db:
                    assert len(find_devices(db, [device_id(number)])) == 1
        except BaseException as failure:
            failures.append(failure)

    threads = [threading.Thread(target=work, args=(first,)) for first in (0, 10, 20, 30)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(DEADLINE_S)
    assert failures == []
    assert count(database) == 40


_OPEN_AND_ADD = """
import sys
from brewos_relay.registry.database import Database
from brewos_relay.registry.devices import add_devices
from brewos_relay.registry.records import NewDevice
with Database.open(sys.argv[1]) as database, database.writing() as db:
    add_devices(db, [NewDevice(id=f"BRW-0000000{sys.argv[2]}", key_hash=bytes(32))], now_ms=1)
"""


def test_several_processes_may_start_on_an_empty_file_at_once(url: str) -> None:
    children = [subprocess.Popen([sys.executable, "-c", _OPEN_AND_ADD, url, str(n)]) for n in range(4)]
    assert [child.wait(DEADLINE_S) for child in children] == [0] * 4
    with Database.open(url) as database:
        assert count(database) == 4


# Durability


_REGISTER = """
import itertools
import sys
from sqlalchemy import insert
from brewos_relay.registry.activity import add_activity
from brewos_relay.registry.changes import publish_change
from brewos_relay.registry.database import Database
from brewos_relay.registry.devices import add_devices
from brewos_relay.registry.records import Activity, NewDevice
from brewos_relay.registry.schema import claims
with Database.open(sys.argv[1]) as database:
    for number in itertools.count():
        id_ = f"BRW-{number:08X}"
        with database.writing() as db:
            add_devices(db, [NewDevice(id=id_, key_hash=bytes(32), user_id="ada")], now_ms=number)
            row = {"device_id": id_, "token_hash": b"t" * 32, "key_hash": bytes(32), "expires_at_ms": 9}
            db.execute(insert(claims), row)
            add_activity(db, [Activity(device_id=id_, at_ms=number, kind="key_pending")])
            publish_change(db, "key_pending", device_id=id_, now_ms=number)
        print(number, flush=True)
"""


@pytest.mark.parametrize("after", [1, 100, 500])
def test_acknowledged_write_survives_a_kill(url: str, kind: str, tmp_path: Path, after: int) -> None:
    with subprocess.Popen([sys.executable, "-c", _REGISTER, url], stdout=subprocess.PIPE, text=True) as child:
        assert child.stdout is not None
        watchdog = threading.Timer(DEADLINE_S, child.kill)
        watchdog.start()
        acknowledged = [int(child.stdout.readline()) for _ in range(after)]
        child.send_signal(signal.SIGKILL)
        acknowledged += [int(line) for line in child.stdout if line.endswith("\n")]
        watchdog.cancel()
    # The server may commit the last transaction only now: a snapshot has all of it, or nothing.
    with Database.open(url) as database, database.snapshot() as db:
        rows = [
            {row[0] for row in db.execute(select(table.c.device_id))}
            for table in (claims, device_users, activity, changes)
        ]
        ids = [device.id for device in all_devices(db)]
    assert child.returncode == -signal.SIGKILL
    assert acknowledged == list(range(len(acknowledged)))
    assert set(ids) >= {device_id(number) for number in acknowledged}
    # Transactions under way were stored completely or not at all.
    assert rows == [set(ids)] * 4
    assert len(ids) <= len(acknowledged) + 1
    if kind == "sqlite":
        with contextlib.closing(sqlite3.connect(tmp_path / "registry.db")) as connection:
            assert connection.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
            assert connection.execute("PRAGMA foreign_key_check").fetchall() == []


# Transactions


def test_a_transaction_that_fails_leaves_nothing(database: Database) -> None:
    with contextlib.suppress(Stop), database.writing() as db:
        add_devices(db, [new_device(1)], now_ms=1)
        raise Stop
    assert count(database) == 0
    assert database._engine.pool.checkedout() == 0  # type: ignore[attr-defined]


def test_table_creation_is_rolled_back_too(database: Database) -> None:
    with contextlib.suppress(Stop), database.writing() as db:
        db.exec_driver_sql("CREATE TABLE half_done (x INTEGER)")
        db.exec_driver_sql("DROP TABLE claims")
        raise Stop
    with database.reading() as db:
        tables = inspect(db).get_table_names()
    assert "half_done" not in tables
    assert "claims" in tables


@ON_SQLITE
def test_rows_do_not_change_within_a_write_transaction(database: Database, tmp_path: Path) -> None:
    with contextlib.closing(sqlite3.connect(tmp_path / "registry.db", timeout=0)) as other:
        with database.writing() as db:
            assert all_devices(db) == []
            with pytest.raises(sqlite3.OperationalError, match="locked"):
                other.execute("BEGIN IMMEDIATE")
        other.execute("BEGIN IMMEDIATE")
        other.rollback()


@ON_SQLITE
def test_reading_needs_no_transaction(database: Database) -> None:
    statements: list[str] = []
    with contextlib.closing(sqlite3.connect(database.location)) as other, database.reading() as db:
        db.connection.dbapi_connection.set_trace_callback(statements.append)  # type: ignore[union-attr]
        assert all_devices(db) == []
        # A concurrent commit is visible.
        other.execute(
            "INSERT INTO devices (id, key_hash, created_at_ms, last_seen_ms)"
            " VALUES ('BRW-00000001', x'00', 1, 1)"
        )
        other.commit()
        assert len(all_devices(db)) == 1
        db.connection.dbapi_connection.set_trace_callback(None)  # type: ignore[union-attr]
    assert [statement.split()[0] for statement in statements] == ["SELECT"] * 2


def test_after_reading_a_connection_writes_in_transactions_as_before(database: Database) -> None:
    for _ in range(3):
        assert count(database) == 0
        with contextlib.suppress(Stop), database.writing() as db:
            add_devices(db, [new_device(1)], now_ms=1)
            raise Stop
    assert database._engine.pool.checkedin() == 1  # type: ignore[attr-defined]


# Failures


@pytest.mark.parametrize("url", ["", "espresso", "sqlite:", "://x", "sqlite://user:hunter2@host:port/x"])
def test_malformed_url_is_refused(url: str) -> None:
    with pytest.raises(RegistryError, match="the database URL is malformed: it must be like") as caught:
        Database.open(url)
    assert "hunter2" not in str(caught.value)


@pytest.mark.parametrize("url", ["sqlite://", "sqlite:///:memory:"])
def test_in_memory_database_is_refused(url: str) -> None:
    with pytest.raises(RegistryError, match=r"in-memory.*name a file"):
        Database.open(url)


def test_missing_driver_is_reported() -> None:
    with pytest.raises(RegistryError, match=r"cannot use the database espresso://ada:\*\*\*@db/x") as caught:
        Database.open("espresso://ada:hunter2@db/x")
    assert "hunter2" not in str(caught.value)


def test_other_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "registry.db").write_bytes(b"espresso" * 1000)
    with pytest.raises(
        RegistryError, match=r"cannot open the database .*registry\.db: file is not a database"
    ):
        Database.open(f"sqlite:///{tmp_path}/registry.db")


def test_a_folder_that_is_a_file(tmp_path: Path) -> None:
    (tmp_path / "data").write_bytes(b"")
    with pytest.raises(RegistryError, match="cannot open the database"):
        Database.open(f"sqlite:///{tmp_path}/data/registry.db")


def test_a_file_that_is_a_folder(tmp_path: Path) -> None:
    with pytest.raises(RegistryError, match="unable to open database file"):
        Database.open(f"sqlite:///{tmp_path}")


def test_a_file_that_stays_locked_while_it_is_set_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engine_module, "BUSY_TIMEOUT_S", 0.1)
    with contextlib.closing(sqlite3.connect(tmp_path / "registry.db")) as other:
        other.execute("BEGIN EXCLUSIVE")
        with pytest.raises(RegistryError, match="database is locked"):
            Database.open(f"sqlite:///{tmp_path}/registry.db")
        other.rollback()


def test_a_lock_that_is_released_while_it_is_set_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "registry.db"
    slept_s: list[float] = []
    with contextlib.closing(sqlite3.connect(path)) as other:
        other.execute("BEGIN EXCLUSIVE")

        def release(duration_s: float) -> None:
            slept_s.append(duration_s)
            other.rollback()

        # Without any waiting by SQLite itself, which is its worst case.
        monkeypatch.setattr(engine_module, "_engine_options", lambda *_: {"connect_args": {"timeout": 0}})
        monkeypatch.setattr(time, "sleep", release)
        Database.open(f"sqlite:///{path}").close()
    assert len(slept_s) == 1


def test_errors_of_the_database_are_translated_and_keep_their_parameters(database: Database) -> None:
    new = new_device(65)
    register(database, [new])
    row = {"id": new.id, "key_hash": new.key_hash, "created_at_ms": 1}
    with (
        pytest.raises(
            RegistryError, match=r"^the registry could not be changed: (UNIQUE|duplicate)"
        ) as caught,
        database.writing() as db,
    ):
        db.execute(insert(devices), row)
    assert repr(new.key_hash) not in str(caught.value.__cause__)
    with database.writing() as db:
        db.exec_driver_sql("ALTER TABLE devices RENAME TO gone")
    with pytest.raises(
        RegistryError, match=r"^the registry could not be read: (no such table|relation)"
    ) as caught:
        count(database)
    assert "\n" not in str(caught.value)


# Storage failures


def fill_up(database: Database) -> None:
    """Write until it fails."""
    for _ in range(10_000):
        with database.writing() as db:
            db.exec_driver_sql("CREATE TABLE IF NOT EXISTS filler (data BLOB)")
            db.exec_driver_sql("INSERT INTO filler VALUES (zeroblob(100000))")


@ON_SQLITE
def test_full_disk_is_reported_until_something_can_be_written(database: Database) -> None:
    with database.reading() as db:
        pages = db.exec_driver_sql("PRAGMA page_count").scalar_one()
    with database.writing() as db:
        db.exec_driver_sql(f"PRAGMA max_page_count = {pages + 5}")
    with pytest.raises(RegistryError, match="disk is full"):
        fill_up(database)
    assert database.write_problem == ("disk_full", "the registry's disk is full")
    with database.writing() as db:
        database.probe(db)


@ON_SQLITE
def test_read_only_database_is_reported(database: Database) -> None:
    def change() -> None:
        with database.writing() as db:
            db.exec_driver_sql("PRAGMA query_only = ON")
            database.probe(db)

    with pytest.raises(RegistryError):
        change()
    assert database.write_problem is not None
    assert database.write_problem[0] == "read_only"


@ON_POSTGRESQL
def test_read_only_postgresql_is_reported(database: Database) -> None:
    def change() -> None:
        with database.writing() as db:
            db.exec_driver_sql("SET TRANSACTION READ ONLY")
            database.probe(db)

    with pytest.raises(RegistryError, match="read-only"):
        change()
    assert database.write_problem == ("read_only", "the database is read-only")


@pytest.mark.parametrize(
    ("code", "word"),
    [
        ("SQLITE_FULL", "disk_full"),
        ("SQLITE_IOERR_WRITE", "write_failed"),
        ("SQLITE_CANTOPEN", "write_failed"),
        ("SQLITE_CONSTRAINT", None),
        ("53100", "disk_full"),
        ("58030", "write_failed"),
        ("23505", None),
    ],
)
def test_storage_failures_are_classified(database: Database, code: str, word: str | None) -> None:
    class Failure(Exception):
        pass

    # Each driver has one of these.
    setattr(Failure, "sqlite_errorname" if code.startswith("SQLITE") else "sqlstate", code)

    def fail() -> None:
        with database.writing():
            raise OperationalError("UPDATE", {}, Failure("scripted"))

    with pytest.raises(RegistryError):
        fail()
    assert (database.write_problem or (None,))[0] == word


def test_refused_write_is_not_a_storage_failure(database: Database) -> None:
    def refuse() -> None:
        with database.writing():
            raise DeviceUnknown("BRW-00000001")

    with pytest.raises(DeviceUnknown):
        refuse()
    assert database.write_problem is None

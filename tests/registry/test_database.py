import contextlib
import os
import signal
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from sqlalchemy import event

from brewos_relay.errors import DeviceExists, RegistryError
from brewos_relay.registry import database as database_module
from brewos_relay.registry.database import Database, Device, NewDevice, database_file

DEADLINE_S = 30.0


def new_device(number: int, *, name: str | None = None, user_id: str | None = None) -> NewDevice:
    return NewDevice(id=f"BRW-{number:08X}", key_hash=bytes([number % 256]) * 32, name=name, user_id=user_id)


@pytest.fixture
def url(tmp_path: Path) -> str:
    return f"sqlite:///{tmp_path}/registry.db"


@pytest.fixture
def database(url: str) -> Iterator[Database]:
    with Database.open(url) as database:
        yield database


# Devices


def test_what_was_added_is_found(database: Database) -> None:
    before_ms = time.time_ns() // 1_000_000
    database.add_devices([new_device(2, name="Küche"), new_device(1)])
    first, second = database.devices()
    assert before_ms <= first.created_at_ms <= time.time_ns() // 1_000_000
    assert first == Device(
        id="BRW-00000001",
        key_hash=b"\x01" * 32,
        name=None,
        created_at_ms=first.created_at_ms,
        last_seen_ms=None,
    )
    assert (second.id, second.name) == ("BRW-00000002", "Küche")


def test_devices_by_id(database: Database) -> None:
    database.add_devices([new_device(number) for number in range(5)])
    found = database.devices(["BRW-00000003", "BRW-00000001", "BRW-0000FFFF"])
    assert sorted(device.id for device in found) == ["BRW-00000001", "BRW-00000003"]
    assert database.devices([]) == []
    assert database.devices(["BRW-00000001", "BRW-00000001"]) == database.devices(["BRW-00000001"])


def test_more_ids_than_fit_one_query(database: Database) -> None:
    database.add_devices([new_device(number) for number in range(1201)])
    assert len(database.devices([f"BRW-{number:08X}" for number in range(2000)])) == 1201


def test_what_is_registered_is_not_registered_again(database: Database) -> None:
    database.add_devices([new_device(1, name="old"), new_device(2)])
    with pytest.raises(DeviceExists) as caught:
        database.add_devices([new_device(2), new_device(3), new_device(1, name="new")])
    assert caught.value.device_ids == ("BRW-00000001", "BRW-00000002")
    assert [(device.id, device.name) for device in database.devices()] == [
        ("BRW-00000001", "old"),
        ("BRW-00000002", None),
    ]


def test_a_device_twice_in_one_go(database: Database) -> None:
    with pytest.raises(DeviceExists, match="BRW-00000001"):
        database.add_devices([new_device(1), new_device(2), new_device(1)])
    assert database.devices() == []


def test_none_is_added_if_a_later_one_cannot_be(database: Database) -> None:
    database.add_devices([new_device(2500)])
    progress: list[int] = []
    with pytest.raises(DeviceExists):
        database.add_devices([new_device(number) for number in range(2600)], on_progress=progress.append)
    assert progress == [1000, 1000]
    assert len(database.devices()) == 1


def test_nothing_to_add(database: Database) -> None:
    database.add_devices([])
    assert database.devices() == []


def test_progress_adds_up(database: Database) -> None:
    progress: list[int] = []
    database.add_devices([new_device(number) for number in range(2345)], on_progress=progress.append)
    assert progress == [1000, 1000, 345]


def test_a_hundred_thousand_devices_take_seconds(database: Database) -> None:
    rows = [new_device(number, user_id="ada") for number in range(100_000)]
    started_s = time.process_time()
    database.add_devices(rows)
    assert time.process_time() - started_s < 20
    assert len(database.devices()) == 100_000


def test_a_conflict_that_is_no_taken_id_is_an_error(database: Database) -> None:
    bad = NewDevice(id="BRW-00000001", key_hash=None)  # type: ignore[arg-type]
    with pytest.raises(RegistryError, match="could not register devices: NOT NULL") as caught:
        database.add_devices([bad])
    assert not isinstance(caught.value, DeviceExists)


def test_removing_a_device(database: Database) -> None:
    database.add_devices([new_device(1, user_id="ada"), new_device(2, user_id="ada")])
    assert database.remove_device("BRW-00000001")
    assert not database.remove_device("BRW-00000001")
    assert [device.id for device in database.devices_of("ada")] == ["BRW-00000002"]
    # Who had it does not get it back with a new machine of that id.
    database.add_devices([new_device(1)])
    assert database.ownerships([("ada", "BRW-00000001")]) == set()


# Users


def test_the_devices_of_a_user(database: Database) -> None:
    shared = NewDevice(id="BRW-00000003", key_hash=bytes(32), user_id="ada", more_user_ids=("bob", "ada"))
    database.add_devices([shared, new_device(1, user_id="ada"), new_device(2, user_id="bob"), new_device(4)])
    assert [device.id for device in database.devices_of("ada")] == ["BRW-00000001", "BRW-00000003"]
    assert [device.id for device in database.devices_of("bob")] == ["BRW-00000002", "BRW-00000003"]
    assert database.devices_of("eve") == []


def test_who_has_which_device(database: Database) -> None:
    database.add_devices([new_device(1, user_id="ada"), new_device(2, user_id="bob")])
    pairs = [(user, f"BRW-0000000{number}") for user in ("ada", "bob", "eve") for number in (1, 2, 3)]
    assert database.ownerships(pairs) == {("ada", "BRW-00000001"), ("bob", "BRW-00000002")}
    assert database.ownerships([]) == set()


def test_giving_a_device(database: Database) -> None:
    database.add_devices([new_device(1, user_id="ada"), new_device(2)])
    assert database.give_device("BRW-00000001", ["bob", "ada", "bob"]) == ["ada"]
    assert database.give_device("BRW-00000001", ["bob"]) == ["bob"]
    assert database.give_device("BRW-00000001", []) == []
    pairs = [(user, f"BRW-0000000{number}") for user in ("ada", "bob") for number in (1, 2)]
    assert database.ownerships(pairs) == {("ada", "BRW-00000001"), ("bob", "BRW-00000001")}


def test_taking_a_device(database: Database) -> None:
    shared = NewDevice(id="BRW-00000001", key_hash=bytes(32), more_user_ids=("ada", "bob", "eve"))
    database.add_devices([shared, new_device(2, user_id="ada")])
    database.take_device("BRW-00000001", ["ada", "eve", "ada"])
    assert [device.id for device in database.devices_of("ada")] == ["BRW-00000002"]
    assert [device.id for device in database.devices_of("bob")] == ["BRW-00000001"]
    assert database.devices_of("eve") == []


def test_a_device_is_taken_from_all_or_none(database: Database) -> None:
    database.add_devices([new_device(1, user_id="ada"), new_device(2, user_id="eve")])
    with pytest.raises(RegistryError, match=r"^eve does not have BRW-00000001; nothing was changed$"):
        database.take_device("BRW-00000001", ["ada", "eve"])
    with pytest.raises(RegistryError, match=r"^eve, bob do not have BRW-00000001;"):
        database.take_device("BRW-00000001", ["eve", "ada", "bob", "eve"])
    assert len(database.devices_of("ada")) == 1


def test_what_is_not_registered_is_not_given_or_taken(database: Database) -> None:
    for change in (database.give_device, database.take_device):
        with pytest.raises(RegistryError, match=r"^BRW-00000001 is not registered; .*device list"):
            change("BRW-00000001", ["ada"])


def test_a_device_does_not_change_hands_while_it_is_removed(database: Database, tmp_path: Path) -> None:
    database.add_devices([new_device(1)])
    with contextlib.closing(sqlite3.connect(tmp_path / "registry.db", check_same_thread=False)) as other:
        other.execute("PRAGMA foreign_keys = ON")
        other.execute("DELETE FROM devices")
        release = threading.Timer(0.2, other.commit)
        release.start()
        with pytest.raises(RegistryError, match="BRW-00000001 is not registered"):
            database.give_device("BRW-00000001", ["ada"])
        release.join(DEADLINE_S)


# Last seen


def test_when_devices_were_seen(database: Database) -> None:
    database.add_devices([new_device(number) for number in range(3)])
    database.note_seen({"BRW-00000000": 1000, "BRW-00000001": 2000, "BRW-0000FFFF": 5})
    database.note_seen({"BRW-00000000": 999, "BRW-00000001": 2001})
    database.note_seen({})
    assert [device.last_seen_ms for device in database.devices()] == [1000, 2001, None]


# The database itself


def test_the_file_keeps_everything(url: str) -> None:
    with Database.open(url) as database:
        database.add_devices([new_device(1, user_id="ada")])
    with Database.open(url) as database:
        assert [device.id for device in database.devices_of("ada")] == ["BRW-00000001"]
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
def test_what_is_made_is_for_nobody_else(tmp_path: Path) -> None:
    with Database.open(f"sqlite:///{tmp_path}/data/registry.db") as database:
        database.add_devices([new_device(1)])
        made = {path.name: mode_of(path) for path in (tmp_path / "data").iterdir()}
    assert made.pop("registry.db") == 0o600
    assert set(made) == {"registry.db-wal", "registry.db-shm"}
    assert set(made.values()) == {0o600}
    assert mode_of(tmp_path / "data") == 0o700


@pytest.mark.usefixtures("no_umask")
def test_what_is_there_keeps_its_mode(tmp_path: Path) -> None:
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


def test_the_file_of_a_url_that_is_none() -> None:
    with pytest.raises(RegistryError, match="URL cannot be read"):
        database_file("espresso")


def test_where_it_is(database: Database, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert database.location == str(tmp_path / "registry.db")
    monkeypatch.chdir(tmp_path)
    with Database.open("sqlite:///x.db") as other:
        assert other.location == str(tmp_path / "x.db")
    with Database.open(f"sqlite:///file:{tmp_path}/y.db?uri=true") as other:
        assert other.location.endswith(f"{tmp_path}/y.db?uri=true")
    assert (tmp_path / "y.db").exists()


def test_sqlite_is_set_up_for_keeping(database: Database, tmp_path: Path) -> None:
    with contextlib.closing(sqlite3.connect(tmp_path / "registry.db")) as connection:
        assert connection.execute("PRAGMA journal_mode").fetchone() == ("wal",)
    with database._engine.connect() as checked:
        assert checked.exec_driver_sql("PRAGMA synchronous").scalar_one() == 2  # FULL
        assert checked.exec_driver_sql("PRAGMA foreign_keys").scalar_one() == 1
        assert checked.exec_driver_sql("PRAGMA busy_timeout").scalar_one() == 10_000


def test_a_reader_does_not_wait_for_a_writer(database: Database, tmp_path: Path) -> None:
    database.add_devices([new_device(1)])
    with contextlib.closing(sqlite3.connect(tmp_path / "registry.db")) as writer:
        writer.execute("BEGIN EXCLUSIVE")
        assert len(database.devices()) == 1
        writer.rollback()


def test_a_writer_waits_for_another(database: Database, tmp_path: Path) -> None:
    with contextlib.closing(sqlite3.connect(tmp_path / "registry.db", check_same_thread=False)) as writer:
        writer.execute("BEGIN IMMEDIATE")
        release = threading.Timer(0.2, writer.rollback)
        release.start()
        database.add_devices([new_device(1)])
        release.join(DEADLINE_S)
    assert len(database.devices()) == 1


def test_several_threads_at_once(database: Database) -> None:
    failures: list[BaseException] = []

    def work(first: int) -> None:
        try:
            for number in range(first, first + 10):
                database.add_devices([new_device(number)])
                assert len(database.devices([f"BRW-{number:08X}"])) == 1
        except BaseException as failure:
            failures.append(failure)

    threads = [threading.Thread(target=work, args=(first,)) for first in (0, 10, 20, 30)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(DEADLINE_S)
    assert failures == []
    assert len(database.devices()) == 40


_OPEN_AND_ADD = """
import sys
from brewos_relay.registry.database import Database, NewDevice
with Database.open(sys.argv[1]) as database:
    database.add_devices([NewDevice(id=f"BRW-0000000{sys.argv[2]}", key_hash=bytes(32))])
"""


def test_several_processes_may_start_on_an_empty_file_at_once(url: str) -> None:
    children = [subprocess.Popen([sys.executable, "-c", _OPEN_AND_ADD, url, str(n)]) for n in range(4)]
    assert [child.wait(DEADLINE_S) for child in children] == [0] * 4
    with Database.open(url) as database:
        assert len(database.devices()) == 4


_ADD_ONE_BY_ONE = """
import itertools, sys
from brewos_relay.registry.database import Database, NewDevice
with Database.open(sys.argv[1]) as database:
    for number in itertools.count():
        database.add_devices([NewDevice(id=f"BRW-{number:08X}", key_hash=bytes(32), user_id="ada")])
        print(number, flush=True)
"""


def test_what_was_acknowledged_survives_a_kill(url: str) -> None:
    with subprocess.Popen(
        [sys.executable, "-c", _ADD_ONE_BY_ONE, url], stdout=subprocess.PIPE, text=True
    ) as child:
        assert child.stdout is not None
        watchdog = threading.Timer(DEADLINE_S, child.kill)
        watchdog.start()
        acknowledged = [int(child.stdout.readline()) for _ in range(50)]
        child.send_signal(signal.SIGKILL)
        acknowledged += [int(line) for line in child.stdout if line.endswith("\n")]
        watchdog.cancel()
    with Database.open(url) as database:
        ids = [device.id for device in database.devices()]
        assert len(database.devices_of("ada")) == len(ids)
    assert acknowledged == list(range(len(acknowledged)))
    assert len(acknowledged) <= len(ids) <= len(acknowledged) + 1


# What can go wrong


@pytest.mark.parametrize("url", ["", "espresso", "sqlite:", "://x", "sqlite://user:hunter2@host:port/x"])
def test_a_url_that_is_none(url: str) -> None:
    with pytest.raises(RegistryError, match="the database's URL cannot be read: it must be like") as caught:
        Database.open(url)
    assert "hunter2" not in str(caught.value)


@pytest.mark.parametrize("url", ["sqlite://", "sqlite:///:memory:"])
def test_a_database_in_memory(url: str) -> None:
    with pytest.raises(RegistryError, match=r"in memory.*name a file"):
        Database.open(url)


def test_a_database_without_a_driver() -> None:
    with pytest.raises(RegistryError, match=r"cannot use the database espresso://ada:\*\*\*@db/x") as caught:
        Database.open("espresso://ada:hunter2@db/x")
    assert "hunter2" not in str(caught.value)


def test_a_file_that_is_no_database(tmp_path: Path) -> None:
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
    monkeypatch.setattr(database_module, "BUSY_TIMEOUT_S", 0.1)
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

        # SQLite itself does not wait at all here, which is what it does in the worst case.
        monkeypatch.setattr(database_module, "_engine_options", lambda _url: {"connect_args": {"timeout": 0}})
        monkeypatch.setattr(time, "sleep", release)
        Database.open(f"sqlite:///{path}").close()
    assert len(slept_s) == 1


def test_errors_of_the_database_are_translated_and_keep_their_parameters(database: Database) -> None:
    database.add_devices([new_device(1)])
    with database._engine.begin() as connection:
        connection.exec_driver_sql("DROP TABLE device_users")
        connection.exec_driver_sql("DROP TABLE devices")
    hash_text = repr(new_device(65).key_hash)
    calls: list[Callable[[], object]] = [
        lambda: database.add_devices([new_device(65)]),
        lambda: database.remove_device("BRW-00000001"),
        lambda: database.devices(["BRW-00000001"]),
        lambda: database.devices(),
        lambda: database.devices_of("ada"),
        lambda: database.ownerships([("ada", "BRW-00000001")]),
        lambda: database.note_seen({"BRW-00000001": 5}),
        lambda: database.give_device("BRW-00000001", ["ada"]),
        lambda: database.take_device("BRW-00000001", ["ada"]),
    ]
    for call in calls:
        with pytest.raises(RegistryError, match=r"^the registry could not .*: no such table") as caught:
            call()
        assert "\n" not in str(caught.value)
        assert hash_text not in str(caught.value.__cause__)


def test_a_lookup_is_one_statement(database: Database) -> None:
    statements: list[str] = []

    @event.listens_for(database._engine, "before_cursor_execute")
    def _count(_connection: object, _cursor: object, statement: str, *_rest: object) -> None:
        statements.append(statement)

    database.devices([f"BRW-{number:08X}" for number in range(64)])
    assert len(statements) == 1

import contextlib
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from alembic import command
from alembic.autogenerate import compare_metadata
from alembic.config import Config
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import delete, insert, inspect, select, text

from brewos_relay.errors import RegistryError
from brewos_relay.registry import migrations
from brewos_relay.registry.access import users_of
from brewos_relay.registry.accounts import all_users, find_user_by_email
from brewos_relay.registry.database import Database, upgrade
from brewos_relay.registry.devices import all_devices
from brewos_relay.registry.engine import connect
from brewos_relay.registry.records import Device, DeviceUser
from brewos_relay.registry.schema import claims, device_users, metadata, users
from support.kinds import ON_SQLITE
from support.registry import NOW_MS, device_id, new_device, register

DEADLINE_S = 30.0
ROWS = 1000

# As the first release made them.
_FIRST_TABLES = """
CREATE TABLE IF NOT EXISTS devices (
    id VARCHAR(12) NOT NULL, key_hash BLOB NOT NULL, name VARCHAR(100), created_at_ms BIGINT NOT NULL,
    last_seen_ms BIGINT, PRIMARY KEY (id)
) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS device_users (
    user_id VARCHAR(256) NOT NULL, device_id VARCHAR(12) NOT NULL, PRIMARY KEY (user_id, device_id),
    FOREIGN KEY(device_id) REFERENCES devices (id) ON DELETE CASCADE
) WITHOUT ROWID;
CREATE INDEX IF NOT EXISTS device_users_by_device ON device_users (device_id);
"""


def make_version(database: Database, version: str) -> None:
    """Create the tables of an earlier version."""
    with database.writing() as db:
        if not database.one_writer:
            db.exec_driver_sql("DROP SCHEMA public CASCADE")
            db.exec_driver_sql("CREATE SCHEMA public")
        config = Config()
        config.set_main_option("script_location", str(Path(migrations.__file__).parent))
        config.attributes["connection"] = db
        command.upgrade(config, version)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "registry.db"


@pytest.fixture
def old(file: Path) -> Path:
    """A database of the first release, with rows."""
    with contextlib.closing(sqlite3.connect(file)) as connection:
        connection.execute("PRAGMA journal_mode = WAL")
        connection.executescript(_FIRST_TABLES)
        rows = [(device_id(n), bytes([n % 256]) * 32, f"No. {n}", n, n or None) for n in range(ROWS)]
        connection.executemany("INSERT INTO devices VALUES (?, ?, ?, ?, ?)", rows)
        for user in ("ada", "bob"):
            users = [(user, device_id(n)) for n in range(ROWS)]
            connection.executemany("INSERT INTO device_users VALUES (?, ?)", users)
        connection.commit()
    return file


def dump(file: Path) -> list[str]:
    with contextlib.closing(sqlite3.connect(file)) as connection:
        return list(connection.iterdump())


def test_the_tables_are_as_described(database: Database) -> None:
    with database.reading() as db:
        context = MigrationContext.configure(db, opts={"compare_type": True, "compare_server_default": True})
        assert compare_metadata(context, metadata) == []
        # Alembic does not compare these.
        for table in metadata.sorted_tables:
            columns = [column["name"] for column in inspect(db).get_columns(table.name)]
            assert columns == [column.name for column in table.columns]
            for foreign_key in inspect(db).get_foreign_keys(table.name):
                assert foreign_key["options"] == {"ondelete": "CASCADE"}
            if not database.one_writer:
                continue
            (statement,) = db.exec_driver_sql(
                "SELECT sql FROM sqlite_master WHERE type = 'table' AND name = ?", (table.name,)
            ).one()
            assert ("WITHOUT ROWID" in statement) is not table.dialect_options["sqlite"]["with_rowid"]
            assert ("AUTOINCREMENT" in statement) is table.dialect_options["sqlite"]["autoincrement"]


def test_the_program_knows_every_version() -> None:
    config = Config()
    config.set_main_option("script_location", str(Path(migrations.__file__).parent))
    scripts = list(ScriptDirectory.from_config(config).walk_revisions())
    assert tuple(script.revision for script in reversed(scripts)) == migrations.VERSIONS
    assert migrations.VERSIONS[-1] == migrations.HEAD


def test_a_new_file_has_the_newest_version(database: Database, url: str) -> None:
    with database.reading() as db:
        assert migrations.version_of(db) == migrations.HEAD
    assert upgrade(url) == []


@ON_SQLITE
def test_applied_versions_are_logged(url: str, file: Path) -> None:
    assert upgrade(url) == list(migrations.VERSIONS)
    assert file.exists()


@ON_SQLITE
def test_an_old_database_keeps_its_rows(url: str, old: Path) -> None:
    with Database.open(url) as database, database.reading() as db:
        assert migrations.version_of(db) == migrations.HEAD
        devices = all_devices(db)
        users = users_of(db, device_id(7), now_ms=NOW_MS)
        count = db.exec_driver_sql("SELECT count(*) FROM device_users").scalar_one()
    assert len(devices) == ROWS
    assert devices[7] == Device(
        id=device_id(7), key_hash=b"\x07" * 32, name="No. 7", created_at_ms=7, last_seen_ms=7
    )
    assert users == [
        DeviceUser(user_id=user, device_id=device_id(7), role="owner") for user in ("ada", "bob")
    ]
    assert count == 2 * ROWS
    with contextlib.closing(sqlite3.connect(old)) as connection:
        assert connection.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
        assert connection.execute("PRAGMA foreign_key_check").fetchall() == []


@ON_SQLITE
def test_an_old_database_ends_up_like_a_new_one(url: str, old: Path, tmp_path: Path) -> None:
    def describe(file: Path) -> list[object]:
        with contextlib.closing(sqlite3.connect(file)) as connection:
            tables = connection.execute("SELECT name FROM sqlite_master ORDER BY name").fetchall()
            return [
                (name, connection.execute(f"PRAGMA table_xinfo({name})").fetchall()) for (name,) in tables
            ]

    Database.open(url).close()
    Database.open(f"sqlite:///{tmp_path}/new.db").close()
    assert describe(old) == describe(tmp_path / "new.db")


@ON_SQLITE
def test_versions_that_are_missing_are_added(url: str, old: Path) -> None:
    assert upgrade(url) == list(migrations.VERSIONS[1:])


@pytest.mark.parametrize("fresh", [True, False])
@ON_SQLITE
def test_all_of_it_or_nothing(
    url: str, file: Path, fresh: bool, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not fresh:
        request.getfixturevalue("old")
    else:
        sqlite3.connect(file).close()
    before = dump(file)
    run_alembic = migrations._run_alembic

    def fail_in_the_end(*args: object) -> None:
        run_alembic(*args)  # type: ignore[arg-type]
        raise RegistryError("the disk is full")

    monkeypatch.setattr(migrations, "_run_alembic", fail_in_the_end)
    with pytest.raises(RegistryError, match=r"cannot use the database .*registry\.db: the disk is full"):
        Database.open(url)
    assert dump(file) == before
    monkeypatch.undo()
    Database.open(url).close()
    assert dump(file) != before


_OPEN = """
import sys
from brewos_relay.registry.database import Database
sys.stdin.readline()
Database.open(sys.argv[1]).close()
"""


@pytest.fixture
def children(url: str) -> Iterator[list["subprocess.Popen[bytes]"]]:
    command = [sys.executable, "-c", _OPEN, url]
    children = [subprocess.Popen(command, stdin=subprocess.PIPE) for _ in range(4)]
    yield children
    for child in children:
        child.kill()
        child.communicate()


@pytest.mark.usefixtures("old")
@ON_SQLITE
def test_several_processes_may_open_an_old_file_at_once(
    url: str, children: list["subprocess.Popen[bytes]"]
) -> None:
    for child in children:
        assert child.stdin is not None
        child.stdin.write(b"\n")
        child.stdin.flush()
    assert [child.wait(DEADLINE_S) for child in children] == [0] * 4
    with Database.open(url) as database, database.reading() as db:
        assert len(all_devices(db)) == ROWS
        assert db.exec_driver_sql("SELECT count(*) FROM alembic_version").scalar_one() == 1


def test_concurrent_upgrade_finds_nothing_to_do(database: Database) -> None:
    with database.writing() as db:
        assert migrations.apply(db) == []


@ON_SQLITE
def test_database_of_a_newer_version_is_unchanged(database: Database, url: str, file: Path) -> None:
    register(database, [new_device(1)])
    with database.writing() as db:
        db.exec_driver_sql("UPDATE alembic_version SET version_num = '9999'")
    before = dump(file)
    for refused in (Database.open, upgrade):
        with pytest.raises(
            RegistryError, match=r"a newer brewos-relay .* version 9999, .* up to \d+; install"
        ):
            refused(url)
    assert dump(file) == before


_IMPORTED = """
import logging, sys
logging.basicConfig(level=logging.INFO)
from brewos_relay.registry.database import Database
Database.open(sys.argv[1]).close()
print("alembic" in sys.modules)
"""


@ON_SQLITE
def test_alembic_is_imported_only_when_there_is_something_to_do(url: str) -> None:
    said = []
    for _ in range(2):
        command = [sys.executable, "-c", _IMPORTED, url]
        said.append(
            subprocess.run(command, capture_output=True, check=True, timeout=DEADLINE_S).stdout.strip()
        )
    assert said == [b"True", b"False"]


@ON_SQLITE
def test_accounts_with_equal_addresses_are_all_kept(url: str, file: Path) -> None:
    kelvin = "mi\N{KELVIN SIGN}e@x.org"
    broken = "\ufdfa" * 30 + "@x.org"  # its key is too long
    with contextlib.closing(Database(connect(url))) as database:
        make_version(database, "0004")
    with contextlib.closing(sqlite3.connect(file)) as connection, connection:
        rows = [("young", "mike@x.org", 2), ("old", kelvin, 1), ("odd", broken, 3), ("ada", "ada@x.org", 4)]
        connection.executemany(
            "INSERT INTO users (id, email, is_admin, created_at_ms) VALUES (?, ?, 0, ?)", rows
        )
        connection.execute("INSERT INTO invites VALUES (x'00', 'Straße@x.org', 1, 1, ?)", (NOW_MS + 1,))
        connection.execute("INSERT INTO invites VALUES (x'01', ?, 1, 1, ?)", (broken, NOW_MS + 1))
    with Database.open(url) as database, database.reading() as db:
        for id_, email, _ in rows:
            found = find_user_by_email(db, email)
            assert email == broken or (found is not None and found.id == id_)
        assert {user.id for user in all_users(db)} == {"young", "old", "odd", "ada"}
        keys = {row[0]: row[1] for row in db.exec_driver_sql("SELECT id, email_key FROM users")}
        invited = set(db.exec_driver_sql("SELECT email_key FROM invites").scalars())
    assert keys == {"old": "mike@x.org", "young": "mike@x.org young", "odd": " odd", "ada": "ada@x.org"}
    assert invited == {"strasse@x.org", broken}


_ADA, _GONE = "0" * 12 + "4" + "0" * 3 + "8" + "0" * 15, "1" * 12 + "4" + "1" * 3 + "8" + "1" * 15
_USERS = {0: [_GONE], 1: [_GONE, "bob"], 2: [_ADA], 3: ["script"]}


def _with_orphans(database: Database) -> None:
    """Create the tables of version 0003, with devices of an account, of a removed account and of tokens."""
    make_version(database, "0003")
    with database.writing() as db:
        db.execute(
            text(
                "INSERT INTO users (id, email, is_admin, created_at_ms)"
                " VALUES (:id, 'ada@example.org', :no, 1)"
            ),
            {"id": _ADA, "no": False},
        )
        for number, users in _USERS.items():
            device = {"id": device_id(number), "hash": b"k" * 32}
            db.execute(
                text(
                    "INSERT INTO devices (id, key_hash, name, created_at_ms) VALUES (:id, :hash, 'Mine', 1)"
                ),
                device,
            )
            db.execute(
                text(
                    "INSERT INTO claims (device_id, token_hash, key_hash, expires_at_ms)"
                    " VALUES (:id, :hash, :hash, 1)"
                ),
                device,
            )
            for user in users:
                row = {"user": user, "device": device_id(number)}
                db.execute(text("INSERT INTO device_users (user_id, device_id) VALUES (:user, :device)"), row)


@pytest.fixture
def empty(kind: str, file: Path, request: pytest.FixtureRequest) -> Iterator[Database]:
    """A database without tables."""
    if kind == "sqlite":
        url = f"sqlite:///{file}"
        with contextlib.closing(Database(connect(url))) as database:
            yield database
    else:
        cluster = request.getfixturevalue("postgresql")
        with cluster.new_database() as url, contextlib.closing(Database(connect(url))) as database:
            yield database


def test_access_of_removed_accounts_is_repaired(empty: Database) -> None:
    _with_orphans(empty)
    with empty.writing() as db:
        assert migrations.apply(db)[-1] == migrations.HEAD
    with empty.reading() as db:
        rows = db.execute(select(device_users.c.device_id, device_users.c.user_id, device_users.c.account_id))
        assert {tuple(row) for row in rows} == {
            (device_id(1), "bob", None),
            (device_id(2), _ADA, _ADA),
            (device_id(3), "script", None),
        }
        names = {device.id: device.name for device in all_devices(db)}
        assert names == {device_id(0): None, **{device_id(n): "Mine" for n in (1, 2, 3)}}
        used = db.scalars(select(claims.c.device_id).where(claims.c.used_by == "")).all()
        assert used == [device_id(0)]
    with empty.writing() as db:
        db.execute(delete(users).where(users.c.id == _ADA))
        assert db.scalars(select(device_users.c.user_id).order_by("user_id")).all() == ["bob", "script"]


def test_access_cannot_name_an_account_that_is_missing(database: Database) -> None:
    register(database, [new_device(1)])
    row = {"user_id": _GONE, "device_id": device_id(1), "account_id": _GONE}
    with pytest.raises(RegistryError), database.writing() as db:
        db.execute(insert(device_users), row)

"""A PostgreSQL for the tests: a cluster in a temporary folder, reached by a Unix socket only."""

import os
import pwd
import shutil
import signal
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import count
from pathlib import Path
from typing import Any, Final
from urllib.parse import quote

import psycopg
import pytest
from sqlalchemy import create_engine, text
from sqlalchemy.engine import make_url
from sqlalchemy.pool import NullPool

from brewos_relay.registry.database import upgrade

REQUIRED: Final = os.environ.get("BREWOS_RELAY_POSTGRESQL_TESTS") == "required"
USER: Final = "relay"

_WITHIN_S: Final = 30.0
_MIGRATED: Final = "migrated"
_CLEANER: Final = "cleaner"
"""The role that makes databases empty. Tests count the connections of the other one."""
_GROWTH_BYTES: Final = 1_000_000
"""A database that has grown by more is dropped: what is deleted still takes time to read."""
_END_OTHERS: Final = (
    "SELECT pg_terminate_backend(pid, 10000) FROM pg_stat_activity"
    " WHERE datname = current_database() AND pid <> pg_backend_pid()"
)
_DESCRIBE_SCHEMA: Final = """
SELECT (SELECT version_num FROM alembic_version),
  (SELECT string_agg(pg_describe_object(classid, objid, objsubid), ' ' ORDER BY 1)
    FROM (SELECT 'pg_class'::regclass AS classid, attrelid AS objid, attnum AS objsubid
    FROM pg_attribute WHERE attrelid >= 16384 AND NOT attisdropped) AS columns),
  (SELECT count(*) FROM pg_constraint WHERE oid >= 16384),
  (SELECT count(*) FROM pg_trigger)
"""
_SETTINGS: Final = {
    "listen_addresses": "",
    "fsync": "off",
    "full_page_writes": "off",
    "autovacuum": "off",
    "deadlock_timeout": "50ms",
    "shared_buffers": "16MB",
    "max_wal_size": "256MB",
    "timezone": "UTC",
}


def find_programs() -> Path | None:
    """Find the folder with `initdb` and `postgres`, the newest one where there are several."""
    # Debian keeps them out of PATH, in a folder for each version.
    by_version = [path for path in Path("/usr/lib/postgresql").glob("*/bin") if path.parent.name.isdigit()]
    folders = sorted(by_version, key=lambda path: int(path.parent.name), reverse=True)
    found = shutil.which("initdb")
    # The program in PATH may be a link.
    folders += [Path(found).parent, Path(found).resolve().parent] if found else []
    for folder in folders:
        if all((folder / name).exists() for name in ("initdb", "postgres")):
            return folder
    return None


class PostgreSQL:
    """A cluster. It can be stopped as by a crash, and started again; `new_database` gives URLs.

    To make a database takes 80 ms, to empty one 10 ms: one in which a test has left only rows is used again.
    """

    def __init__(self, programs: Path, folder: Path) -> None:
        self._programs = programs
        self._folder = folder
        self._process: subprocess.Popen[bytes] | None = None
        self._numbers = count(1)
        # It refuses to be root.
        self._as: dict[str, Any] = {}
        if os.geteuid() == 0:
            nobody = pwd.getpwnam("nobody")
            self._as = {"user": nobody.pw_uid, "group": nobody.pw_gid, "extra_groups": []}
            os.chown(folder, nobody.pw_uid, nobody.pw_gid)
        self._data = folder / "data"
        command = [str(programs / "initdb"), "--no-sync", "--auth=trust", "--encoding=UTF8", "--locale=C"]
        subprocess.run(
            [*command, f"--username={USER}", str(self._data)],
            cwd=folder,
            check=True,
            capture_output=True,
            timeout=_WITHIN_S,
            **self._as,
        )
        self.start()
        self._admin = create_engine(self.url_of("postgres"), isolation_level="AUTOCOMMIT", poolclass=NullPool)
        self._run(f"CREATE DATABASE {_MIGRATED}")
        upgrade(self.url_of(_MIGRATED))
        self._run(f"CREATE ROLE {_CLEANER} SUPERUSER LOGIN")
        self._cleaners: dict[str, psycopg.Connection] = {}
        self._spare: list[str] = []
        with self._connect(_MIGRATED) as db:
            self._schema = db.execute(_DESCRIBE_SCHEMA).fetchone()
            self._size = self._size_of(db)
            identity = db.execute("SELECT * FROM registry_identity").fetchone()
            tables = [name for (name,) in db.execute("SELECT relname FROM pg_stat_user_tables")]
        assert identity is not None
        self._empty = "; ".join(
            (
                "SET session_replication_role = replica",  # no table refers to another meanwhile
                *(f'DELETE FROM "{table}"' for table in tables if table != "alembic_version"),
                f"INSERT INTO registry_identity VALUES {tuple(identity)}",
                "SELECT setval(oid::regclass, 1, false) FROM pg_class WHERE relkind = 'S'",
            )
        )

    def url_of(self, name: str) -> str:
        """Give the URL of a database."""
        return f"postgresql+psycopg://{USER}:hunter2@/{name}?host={quote(str(self._folder), safe='')}"

    def start(self) -> None:
        """Start it, and wait until it answers."""
        options = [f"--{name}={value}" for name, value in _SETTINGS.items()]
        command = [str(self._programs / "postgres"), "-D", str(self._data), "-k", str(self._folder), *options]
        with (self._folder / "log").open("ab") as log:
            self._process = subprocess.Popen(
                command,
                cwd=self._folder,
                stdout=log,
                stderr=log,
                **self._as,
            )
        deadline_s = time.monotonic() + _WITHIN_S
        while "ready" not in self._status():
            assert self._process.poll() is None, (self._folder / "log").read_text()
            assert time.monotonic() < deadline_s, (self._folder / "log").read_text()
            time.sleep(0.01)

    def stop(self) -> None:
        """End it at once: connections break, transactions are lost, and the next start recovers."""
        if self._process is not None:
            self._process.send_signal(signal.SIGQUIT)
            try:
                self._process.wait(_WITHIN_S)
            except subprocess.TimeoutExpired:
                self._process.kill()
                raise
        self._process = None

    def close(self) -> None:
        """Stop it, at the end of the tests."""
        for db in self._cleaners.values():
            db.close()
        self.stop()

    @contextmanager
    def new_database(self, *, empty: bool = False) -> Iterator[str]:
        """Return the URL of a database with the registry's tables and no rows, or without tables."""
        if not empty and self._spare:
            name = self._spare.pop()
        else:
            name = f"test_{next(self._numbers)}"
            self._run(f"CREATE DATABASE {name} TEMPLATE {'template0' if empty else _MIGRATED}")
        try:
            yield self.url_of(name)
        finally:
            if not empty and self._make_empty(name):
                self._spare.append(name)
            else:
                self._run(f"DROP DATABASE {name} WITH (FORCE)")

    def _make_empty(self, name: str) -> bool:
        """Delete all rows of a database; return False if it cannot be used again."""
        # The connection stays open, because a new one would read the catalogue again.
        db = self._cleaners.pop(name, None)
        try:
            db = db or self._connect(name)
            db.execute(_END_OTHERS)
            if db.execute(_DESCRIBE_SCHEMA).fetchone() != self._schema:
                return False
            db.execute(self._empty)
            if self._size_of(db) > self._size + _GROWTH_BYTES:
                return False
            self._cleaners[name], db = db, None
            return True
        except psycopg.Error:
            return False
        finally:
            if db is not None:
                db.close()

    def _connect(self, name: str) -> psycopg.Connection:
        return psycopg.connect(host=str(self._folder), user=_CLEANER, dbname=name, autocommit=True)

    def _size_of(self, db: psycopg.Connection) -> int:
        (size,) = db.execute("SELECT pg_database_size(current_database())").fetchone() or (0,)
        return int(size)

    @contextmanager
    def limited_role(self, url: str, *, connections: int) -> Iterator[str]:
        """Return the URL of a database for a role that may open only so many connections at a time."""
        role = f"limited_{next(self._numbers)}"
        self._run(f"CREATE ROLE {role} LOGIN CONNECTION LIMIT {connections}")
        owner = create_engine(url, isolation_level="AUTOCOMMIT", poolclass=NullPool)
        try:
            with owner.connect() as db:
                for kind in ("TABLES", "SEQUENCES"):
                    db.exec_driver_sql(f"GRANT ALL ON ALL {kind} IN SCHEMA public TO {role}")
            yield make_url(url).set(username=role).render_as_string(hide_password=False)
        finally:
            with owner.connect() as db:
                db.exec_driver_sql(f"DROP OWNED BY {role}")
            self._run(f"DROP ROLE {role}")

    @contextmanager
    def counting_connections(self, url: str) -> Iterator[Callable[[], int]]:
        """Count the connections of a role to a database. The result returns the most at one time so far."""
        parsed = make_url(url)
        query = text(
            "SELECT count(*) FROM pg_stat_activity WHERE datname = :database AND usename = :username"
        ).bindparams(database=parsed.database, username=parsed.username)
        most, ended = 0, threading.Event()

        def count() -> None:
            nonlocal most
            with self._admin.connect() as db:
                while not ended.wait(0.005):
                    most = max(most, db.execute(query).scalar_one())

        counter = threading.Thread(target=count)
        counter.start()
        try:
            yield lambda: most
        finally:
            ended.set()
            counter.join()

    def wait_until_one_waits(self) -> None:
        """Wait until a transaction waits for another one."""
        waiting = "SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock'"
        deadline_s = time.monotonic() + _WITHIN_S
        with self._admin.connect() as db:
            while db.exec_driver_sql(waiting).scalar_one() == 0:
                assert time.monotonic() < deadline_s, "nobody waits"
                time.sleep(0.01)

    def _run(self, statement: str) -> None:
        with self._admin.connect() as db:
            db.exec_driver_sql(statement)

    def _status(self) -> str:
        # Its last line is "ready" from when connections are accepted.
        file = self._data / "postmaster.pid"
        lines = file.read_text().splitlines() if file.exists() else []
        return lines[7] if len(lines) > 7 else ""


@contextmanager
def open_postgresql() -> Iterator[PostgreSQL]:
    """Run a cluster for as long as the body does; without the programs, the test is skipped or fails."""
    programs = find_programs()
    if programs is None:
        if REQUIRED:
            pytest.fail("there is no PostgreSQL here, and BREWOS_RELAY_POSTGRESQL_TESTS=required")
        pytest.skip(
            "there is no PostgreSQL here; BREWOS_RELAY_POSTGRESQL_TESTS=required makes this a failure"
        )
    with tempfile.TemporaryDirectory(prefix="relay-pg-", ignore_cleanup_errors=True) as folder:
        cluster = PostgreSQL(programs, Path(folder))
        try:
            yield cluster
        finally:
            cluster.close()

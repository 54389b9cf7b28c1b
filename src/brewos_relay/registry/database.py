"""Database: transactions on the registry's SQLite file or PostgreSQL database.

The modules next to this one contain the queries. Commands call those directly; the server calls them through
`registry.store`, in worker threads.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from types import TracebackType
from typing import Final, Self

from sqlalchemy import Connection, Engine, text
from sqlalchemy.exc import DBAPIError, SQLAlchemyError
from sqlalchemy.exc import TimeoutError as PoolTimeout

from brewos_relay.errors import RegistryBusy, RegistryError
from brewos_relay.registry import migrations
from brewos_relay.registry.engine import (
    CONNECTIONS,
    READING,
    WITHIN_S,
    connect,
    file_of,
    is_sqlite,
    reason_of,
    shown_url,
)

# Unique and foreign key violations, deadlocks and serialization failures.
# postgresql.org/docs/current/errcodes-appendix.html
_CROSSED: Final = ("23505", "23503", "40P01", "40001")

# Lock timeout and statement timeout.
_BUSY: Final = ("55P03", "57014")

# Storage failures, by the start of SQLite's error name or PostgreSQL's error code: a code and a message.
_STORAGE: Final = {
    "SQLITE_FULL": ("disk_full", "the registry's disk is full"),
    "53100": ("disk_full", "the database's disk is full"),
    "SQLITE_READONLY": ("read_only", "the registry's disk is read-only"),
    "25006": ("read_only", "the database is read-only"),
    "SQLITE_IOERR": ("write_failed", "the registry's disk failed a write"),
    "SQLITE_CANTOPEN": ("write_failed", "the registry's files cannot be opened"),
    "SQLITE_CORRUPT": ("write_failed", "the registry's file is damaged"),
    "58030": ("write_failed", "the database's disk failed a write"),
}
_TOUCH: Final = text("UPDATE alembic_version SET version_num = version_num")


class Database:
    """An open registry. Thread-safe, and a context manager that closes it.

    SQLite uses a write-ahead log, so readers never wait for a writer, and syncs each commit: when `writing`
    is left, its changes are on disk. Every database failure is raised as RegistryError.
    """

    def __init__(self, engine: Engine, *, connections: int = CONNECTIONS) -> None:
        self._engine = engine
        self.connections = connections
        """How many connections it opens at most. SQLite has no such limit."""
        self._closed = False
        self.write_problem: tuple[str, str] | None = None
        """Why the storage failed the last write, as a code and a message.

        `probe` tells whether it has recovered.
        """
        # A single reading statement needs no transaction. On SQLite, only `_begin` starts transactions;
        # changing the isolation level would undo that.
        self._reading = (
            engine.execution_options(**{READING: True})
            if is_sqlite(engine)
            else engine.execution_options(isolation_level="AUTOCOMMIT")
        )

    @classmethod
    def open(cls, url: str, *, connections: int = CONNECTIONS, unfinished: bool = False) -> Self:
        """Connect to a database. An SQLite file is created if it is missing, and upgraded if it is older.

        A new file and its folder are accessible to this user only. Other databases must be up to date. Raises
        RegistryError, with advice, if this version does not fit the database.

        `url` is an SQLAlchemy URL like `sqlite:///data/brewos-relay.db`. PostgreSQL URLs of other programs
        work too. Errors never contain its password. PostgreSQL gets at most `connections`; a thread that
        needs another one waits up to 10 s for it. With `unfinished`, a registry is accepted whose import is
        not complete.
        """
        database = cls(connect(url, connections=connections), connections=connections)
        try:
            with database.reading() as db:
                version = migrations.version_of(db)
            if unfinished and version == migrations.IMPORTING:
                return database
            migrations.check_known(version)
            if version == migrations.HEAD:
                return database
            if is_sqlite(database._engine):
                database._upgrade()
            else:
                have = "its tables are missing" if version is None else f"its tables have version {version}"
                raise RegistryError(f"{have}, and not {migrations.HEAD}; run `brewos-relay db upgrade`")
        except RegistryError as problem:
            database.close()
            raise RegistryError(f"cannot use the database {database.location}: {problem}") from problem
        return database

    def close(self) -> None:
        """Close all idle connections, and connections in use once they are returned."""
        self._closed = True
        # Not the engine's `dispose`: it would leave connections open that return to the old pool.
        self._engine.pool.dispose()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    @property
    def location(self) -> str:
        """The absolute path of the file, or the URL without its password."""
        file = file_of(self._engine.url)
        if file is not None:
            return str(file.absolute())
        return shown_url(self._engine.url)

    @property
    def one_writer(self) -> bool:
        """Whether the database allows one writer at a time."""
        return is_sqlite(self._engine)

    @contextmanager
    def reading(self) -> Iterator[Connection]:
        """Provide a connection for reading. Each statement sees the data committed at its start."""
        with (
            self._closing_late_ones(),
            _translated("could not be read"),
            self._reading.connect() as connection,
        ):
            yield connection

    @contextmanager
    def snapshot(self) -> Iterator[Connection]:
        """Provide a connection for reading. Every statement sees the data committed before the first one."""
        engine = (
            self._reading
            if self.one_writer
            else self._engine.execution_options(isolation_level="REPEATABLE READ", postgresql_readonly=True)
        )
        with (
            self._closing_late_ones(),
            _translated("could not be read"),
            engine.connect() as connection,
            connection.begin(),
        ):
            if self.one_writer:
                connection.exec_driver_sql("BEGIN")
            yield connection

    @contextmanager
    def writing(self, *, within_s: float | None = None) -> Iterator[Connection]:
        """Provide a connection in a transaction, which is rolled back if the body fails.

        `within_s` limits each wait for a lock (otherwise 10 s), and on PostgreSQL each statement. Raises
        RegistryBusy at the limit.

        On SQLite no other writer runs meanwhile, so rows stay as they were read. Other databases need row
        locks for that.
        """
        with (
            self._closing_late_ones(),
            self._noting_storage(),
            _translated("could not be changed"),
            self._engine.connect() as connection,
        ):
            connection.execution_options(**{WITHIN_S: within_s})
            with connection.begin():
                yield connection

    def probe(self, db: Connection) -> None:
        """Write something that changes nothing, in a transaction."""
        db.execute(_TOUCH)

    @contextmanager
    def _noting_storage(self) -> Iterator[None]:
        try:
            yield
        except RegistryError as problem:
            self.write_problem = _storage_problem(problem) or self.write_problem
            raise

    @contextmanager
    def _closing_late_ones(self) -> Iterator[None]:
        """Close a connection that is returned after the database was closed."""
        try:
            yield
        finally:
            if self._closed:
                self._engine.pool.dispose()

    def _upgrade(self) -> list[str]:
        with self.reading() as db:
            version = migrations.version_of(db)
        migrations.check_known(version)
        if version == migrations.HEAD:
            return []
        with self.writing() as db:
            return migrations.apply(db)


def upgrade(url: str) -> list[str]:
    """Upgrade the tables of a database, all or nothing. Returns the versions that were applied.

    Several processes may do so at once. Raises RegistryError.
    """
    database = Database(connect(url))
    try:
        return database._upgrade()
    finally:
        database.close()


def version(url: str) -> tuple[str, str | None]:
    """Return the location of a registry and the version of its tables, None without tables. Changes nothing.

    Raises RegistryError.
    """
    database = Database(connect(url))
    try:
        with database.reading() as db:
            return database.location, migrations.version_of(db)
    finally:
        database.close()


def crossed(problem: RegistryError) -> bool:
    """Tell whether a change failed because of a concurrent change, so that a retry may succeed.

    The two deadlocked, or both added the same row. SQLite has one writer at a time and never needs this.
    """
    cause = problem.__cause__
    state = getattr(cause.orig, "sqlstate", None) if isinstance(cause, DBAPIError) else None
    return state is not None and state.startswith(_CROSSED)


def _storage_problem(problem: RegistryError) -> tuple[str, str] | None:
    cause = problem.__cause__
    inner = cause.orig if isinstance(cause, DBAPIError) else None
    code = getattr(inner, "sqlite_errorname", None) or getattr(inner, "sqlstate", None) or ""
    return next((found for begins, found in _STORAGE.items() if code.startswith(begins)), None)


@contextmanager
def _translated(what: str) -> Iterator[None]:
    try:
        yield
    except SQLAlchemyError as problem:
        text = f"the registry {what}: {reason_of(problem)}"
        raise (RegistryBusy(text) if _is_busy(problem) else RegistryError(text)) from problem


def _is_busy(problem: SQLAlchemyError) -> bool:
    """Tell whether a lock, a statement or the wait for a connection timed out."""
    if isinstance(problem, PoolTimeout):
        return True
    inner = problem.orig if isinstance(problem, DBAPIError) else None
    state = getattr(inner, "sqlstate", None)
    return getattr(inner, "sqlite_errorname", "").startswith("SQLITE_BUSY") or state in _BUSY

"""Database: the registry's connections. What is read and written through them is in the modules next to this.

The command line calls those directly; the server goes through `registry.store`, in worker threads.
"""

import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self

from sqlalchemy import Connection, Engine, create_engine, event, text
from sqlalchemy.engine import URL, make_url
from sqlalchemy.exc import ArgumentError, DBAPIError, OperationalError, SQLAlchemyError

from brewos_relay.errors import RegistryBusy, RegistryError
from brewos_relay.registry import migrations

BUSY_TIMEOUT_S: Final = 10.0
"""How long a write waits for another one, say for an import to end, unless it is given a time of its own."""

_KEPT_WAL_BYTES: Final = 16 * 1024 * 1024

# Execution options of a connection.
_READING: Final = "brewos_relay_reading"
_WITHIN_S: Final = "brewos_relay_within_s"

# Rows that are there already, or are there no more; a deadlock, and a transaction that cannot be serialized.
# postgresql.org/docs/current/errcodes-appendix.html
_CROSSED: Final = ("23505", "23503", "40P01", "40001")

# A lock that was not to be had in time, and a statement that took longer than it had.
_BUSY: Final = ("55P03", "57014")

# What says that nothing can be written, by the beginning of SQLite's name or PostgreSQL's code for it: the
# word for it, and a text for everyone.
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

_PASSWORDS: Final = ("password", "sslpassword")
"""Where in the query of a URL there may be one."""

# A computer that is gone says nothing, and the system would wait for it for a quarter of an hour or for ever,
# with each of the registry's threads. postgresql.org/docs/current/libpq-connect.html
_LIBPQ: Final = {
    "connect_timeout": 10,  # s
    "keepalives_idle": 30,  # s
    "keepalives_interval": 10,  # s
    "keepalives_count": 3,
    "tcp_user_timeout": 30_000,  # ms
}


class Database:
    """An open registry; usable from several threads at once, and as a context manager that closes it.

    SQLite runs with a write-ahead log, so that readers never wait for a writer, and syncs each commit: what
    was written when `writing` is left is on disk. Every failure of the database is a RegistryError.
    """

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._closed = False
        self.write_problem: tuple[str, str] | None = None
        """Why the storage failed the last write, as a word and a text; `probe` looks whether that is over."""
        # Reading needs no transaction around a single statement. On SQLite, there is one only where
        # `_begin` makes one; a change of the isolation level would undo that.
        self._reading = (
            engine.execution_options(**{_READING: True})
            if _is_sqlite(engine)
            else engine.execution_options(isolation_level="AUTOCOMMIT")
        )

    @classmethod
    def open(cls, url: str) -> Self:
        """Connect to a database; an SQLite file is made if it is missing, and brought up to date if need be.

        A file that is made, and the folder that is made for it, are for this user of the computer only. Any
        other database has to be up to date. RegistryError says what to do if this program and the database
        do not fit.

        `url` is an SQLAlchemy URL, as in `sqlite:///data/brewos-relay.db`; for PostgreSQL, those that other
        programs take are good too. No error repeats its password.
        """
        database = cls(_connect(url))
        try:
            if _is_sqlite(database._engine):
                database._upgrade()
            else:
                with database.reading() as db:
                    version = migrations.version_of(db)
                migrations.check_known(version)
                if version != migrations.HEAD:
                    have = (
                        "there are none of its tables"
                        if version is None
                        else f"its tables have version {version}"
                    )
                    raise RegistryError(
                        f"{have}, and not {migrations.HEAD}; `brewos-relay db upgrade` brings them there"
                    )
        except RegistryError as problem:
            database.close()
            raise RegistryError(f"cannot use the database {database.location}: {problem}") from problem
        return database

    def close(self) -> None:
        """Close every connection that is not in use, and from now on each one when it comes back."""
        self._closed = True
        # Not the engine's `dispose`, after which nobody would close what comes back to the old pool.
        self._engine.pool.dispose()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    @property
    def location(self) -> str:
        """Where the registry is: the whole path of its file, or its URL without the password."""
        file = _file_of(self._engine.url)
        if file is not None:
            return str(file.absolute())
        return _shown(self._engine.url)

    @property
    def one_writer(self) -> bool:
        """Whether writers wait for each other anyway."""
        return _is_sqlite(self._engine)

    @contextmanager
    def reading(self) -> Iterator[Connection]:
        """Give a connection for reading; each statement sees what is committed at its start."""
        with (
            self._closing_late_ones(),
            _translated("could not be read"),
            self._reading.connect() as connection,
        ):
            yield connection

    @contextmanager
    def writing(self, *, within_s: float | None = None) -> Iterator[Connection]:
        """Give a connection in a transaction, which is undone if the body fails.

        `within_s` bounds each wait for a lock, 10 s without it, and on PostgreSQL also each statement.
        Raises RegistryBusy if that was not enough.

        On SQLite nobody else writes meanwhile, so what was read stays so; elsewhere, that is for row locks.
        """
        with (
            self._closing_late_ones(),
            self._noting_storage(),
            _translated("could not be changed"),
            self._engine.connect() as connection,
        ):
            connection.execution_options(**{_WITHIN_S: within_s})
            with connection.begin():
                yield connection

    def probe(self, db: Connection) -> None:
        """Write what changes nothing, in a transaction."""
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
        """Close a connection that comes back to a database that was closed meanwhile."""
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
    """Bring the tables of a database up to date, all or nothing; give the versions that were added.

    Safe when several do so at once. Raises RegistryError.
    """
    database = Database(_connect(url))
    try:
        return database._upgrade()
    finally:
        database.close()


def version(url: str) -> tuple[str, str | None]:
    """Tell where a registry is and which version its tables have, None if there are none; nothing is changed.

    Raises RegistryError.
    """
    database = Database(_connect(url))
    try:
        with database.reading() as db:
            return database.location, migrations.version_of(db)
    finally:
        database.close()


def crossed(problem: RegistryError) -> bool:
    """Tell whether a change failed for what another one did meanwhile: tried anew, it may well succeed.

    Each waited for the other, or both added the same. SQLite has one writer at a time, and nothing of this.
    """
    cause = problem.__cause__
    state = getattr(cause.orig, "sqlstate", None) if isinstance(cause, DBAPIError) else None
    return state is not None and state.startswith(_CROSSED)


def _storage_problem(problem: RegistryError) -> tuple[str, str] | None:
    cause = problem.__cause__
    inner = cause.orig if isinstance(cause, DBAPIError) else None
    code = getattr(inner, "sqlite_errorname", None) or getattr(inner, "sqlstate", None) or ""
    return next((found for begins, found in _STORAGE.items() if code.startswith(begins)), None)


def database_file(url: str) -> Path | None:
    """Give the file of the SQLite database at an SQLAlchemy URL; None if what it names is not simply a file.

    RegistryError if the URL cannot be read.
    """
    return _file_of(_parse_url(url))


def postgresql_url(url: str) -> str | None:
    """Give the URL of a PostgreSQL as its own programs take it, without the password; None for others.

    RegistryError if the URL cannot be read.
    """
    parsed = _parse_url(url)
    if not _is_postgresql(parsed):
        return None
    shown = parsed.set(drivername="postgresql").difference_update_query(_PASSWORDS)
    return URL.create(
        shown.drivername, shown.username, None, shown.host, shown.port, shown.database, shown.query
    ).render_as_string()


def _connect(url: str) -> Engine:
    parsed = _parse_url(url)
    shown = _shown(parsed)
    try:
        # Parameters are kept out of errors: some of them are key hashes.
        engine = create_engine(parsed, hide_parameters=True, **_engine_options(parsed))
    except (SQLAlchemyError, ImportError, TypeError, ValueError) as problem:
        reason = _reason(problem)
        if isinstance(problem, ImportError) and parsed.get_driver_name() == "psycopg":
            reason += "; install its driver with `pip install 'brewos-relay[postgresql]'`"
        raise RegistryError(f"cannot use the database {shown}: {reason}") from None
    try:
        if _is_sqlite(engine):
            _prepare_sqlite(engine)
        elif _is_postgresql(engine.url):
            _prepare_postgresql(engine)
    except (SQLAlchemyError, OSError) as problem:
        engine.dispose()
        raise RegistryError(f"cannot open the database {shown}: {_reason(problem)}") from problem
    return engine


def _is_sqlite(engine: Engine) -> bool:
    return engine.dialect.name == "sqlite"


def _is_postgresql(url: URL) -> bool:
    return url.get_backend_name() == "postgresql"


def _shown(url: URL) -> str:
    """Write a URL without its password, wherever in it that is."""
    hidden = {name: "hidden" for name in _PASSWORDS if name in url.query}
    return url.update_query_dict(hidden).render_as_string(hide_password=True)


def _file_of(url: URL) -> Path | None:
    # With `uri`, the name is not that of the file.
    if url.get_backend_name() != "sqlite" or url.database in (None, "", ":memory:") or "uri" in url.query:
        return None
    return Path(str(url.database))


def _parse_url(url: str) -> URL:
    try:
        parsed = make_url(url)
        # As platforms and other programs write it: whichever driver that is.
        if parsed.drivername in {"postgres", "postgresql"}:
            parsed = parsed.set(drivername="postgresql+psycopg")
        return parsed
    except (ArgumentError, ValueError):
        raise RegistryError(
            "the database's URL cannot be read: it must be like sqlite:////var/lib/brewos-relay/relay.db"
        ) from None


def _engine_options(url: URL) -> dict[str, Any]:
    if _is_postgresql(url):
        is_libpq = url.get_driver_name().startswith("psycopg")
        chosen = {name: value for name, value in _LIBPQ.items() if is_libpq and name not in url.query}
        return {"pool_pre_ping": True, "connect_args": chosen}
    if url.get_backend_name() != "sqlite":
        return {"pool_pre_ping": True}
    if url.database in (None, "", ":memory:"):
        raise ValueError("it is in memory, where each thread would see one of its own; name a file")
    return {"connect_args": {"timeout": BUSY_TIMEOUT_S}}


def _prepare_sqlite(engine: Engine) -> None:
    if (file := _file_of(engine.url)) is not None:
        file.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        # Only where there is none: to close a file that is in use would end this process's locks on it.
        # SQLite gives the files that it puts next to this one the same mode.
        with suppress(FileExistsError):
            file.touch(mode=0o600, exist_ok=False)

    @event.listens_for(engine, "connect")
    def _on_connect(connection: Any, _record: object) -> None:
        # Python's module would begin transactions by itself: late, and not before the making of a table.
        connection.isolation_level = None
        cursor = connection.cursor()
        cursor.execute("PRAGMA synchronous = FULL")
        cursor.execute("PRAGMA foreign_keys = ON")
        # What a large transaction or a long reader has made of the write-ahead log is given back after that.
        cursor.execute(f"PRAGMA journal_size_limit = {_KEPT_WAL_BYTES}")
        # KiB for each connection; the system keeps the file in memory anyway, once for all of them.
        cursor.execute("PRAGMA cache_size = -512")
        cursor.close()

    @event.listens_for(engine, "begin")
    def _begin(connection: Connection) -> None:
        options = connection.get_execution_options()
        if options.get(_READING):
            return
        if (within_s := options.get(_WITHIN_S)) is None:
            connection.exec_driver_sql("BEGIN IMMEDIATE")
            return
        connection.exec_driver_sql(f"PRAGMA busy_timeout = {max(0, within_s) * 1000:.0f}")
        try:
            connection.exec_driver_sql("BEGIN IMMEDIATE")
        finally:
            # The connection goes back to others, and this transaction waits for no other lock.
            connection.exec_driver_sql(f"PRAGMA busy_timeout = {BUSY_TIMEOUT_S * 1000:.0f}")

    # The file remembers this one. Changing it needs the file for oneself, and SQLite does not always wait
    # for that, whatever the timeout: of processes that start together, now and then one would be refused.
    deadline_s = time.monotonic() + BUSY_TIMEOUT_S
    while True:
        try:
            with engine.execution_options(**{_READING: True}).connect() as connection:
                connection.exec_driver_sql("PRAGMA journal_mode = WAL")
            return
        except OperationalError as problem:
            if "locked" not in str(problem.orig) or time.monotonic() > deadline_s:
                raise
        time.sleep(0.02)


def _prepare_postgresql(engine: Engine) -> None:
    @event.listens_for(engine, "connect")
    def _on_connect(connection: Any, _record: object) -> None:
        # Not among the parameters of the connection: what pools connections between does not take it there.
        cursor = connection.cursor()
        cursor.execute(f"SET lock_timeout = {BUSY_TIMEOUT_S * 1000:.0f}")
        cursor.close()
        connection.commit()

    @event.listens_for(engine, "begin")
    def _begin(connection: Connection) -> None:
        if (within_s := connection.get_execution_options().get(_WITHIN_S)) is not None:
            ms = max(1, round(within_s * 1000))  # 0 would be for ever
            connection.exec_driver_sql(
                f"SELECT set_config('lock_timeout', '{ms}', true),"
                f" set_config('statement_timeout', '{ms}', true)"
            )


@contextmanager
def _translated(what: str) -> Iterator[None]:
    try:
        yield
    except SQLAlchemyError as problem:
        text = f"the registry {what}: {_reason(problem)}"
        raise (RegistryBusy(text) if _is_busy(problem) else RegistryError(text)) from problem


def _is_busy(problem: SQLAlchemyError) -> bool:
    """Tell whether a lock was not to be had, or a statement took too long."""
    inner = problem.orig if isinstance(problem, DBAPIError) else None
    state = getattr(inner, "sqlstate", None)
    return getattr(inner, "sqlite_errorname", "").startswith("SQLITE_BUSY") or state in _BUSY


def _reason(problem: Exception) -> str:
    """Give what went wrong in one line, without the statement and its parameters."""
    inner = problem.orig if isinstance(problem, DBAPIError) and problem.orig is not None else problem
    # What PostgreSQL says below that (DETAIL) repeats the values of the row.
    return next(iter(str(inner).strip().splitlines()), type(inner).__name__)

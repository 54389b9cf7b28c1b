"""Engine: connecting SQLAlchemy to SQLite or PostgreSQL, with the settings that the registry relies on."""

import time
from contextlib import suppress
from pathlib import Path
from typing import Any, Final

from sqlalchemy import Connection, Engine, create_engine, event
from sqlalchemy.engine import URL, make_url
from sqlalchemy.exc import ArgumentError, DBAPIError, OperationalError, SQLAlchemyError

from brewos_relay.errors import RegistryError

BUSY_TIMEOUT_S: Final = 10.0
"""How long a write waits for another writer, like an import, unless it is given another time."""

CONNECTIONS: Final = 8
"""How many connections to PostgreSQL one process opens at most, unless it is given another number."""

_KEPT_WAL_BYTES: Final = 16 * 1024 * 1024

# Execution options of a connection.
READING: Final = "brewos_relay_reading"

WITHIN_S: Final = "brewos_relay_within_s"

_PASSWORDS: Final = ("password", "sslpassword")
"""Query parameters of a URL that may contain a password."""

# Detect a dead database server. By default the system would wait for a quarter of an hour or for ever, in
# each of the registry's threads. postgresql.org/docs/current/libpq-connect.html
_LIBPQ: Final = {
    "connect_timeout": 10,  # s
    "keepalives_idle": 30,  # s
    "keepalives_interval": 10,  # s
    "keepalives_count": 3,
    "tcp_user_timeout": 30_000,  # ms
}


def connect(url: str, *, connections: int = CONNECTIONS) -> Engine:
    """Prepare the connections to a database. PostgreSQL gets at most `connections`. Raises RegistryError."""
    parsed = _parse_url(url)
    shown = shown_url(parsed)
    try:
        # Hide parameters in errors: some of them are key hashes.
        engine = create_engine(parsed, hide_parameters=True, **_engine_options(parsed, connections))
    except (SQLAlchemyError, ImportError, TypeError, ValueError) as problem:
        reason = reason_of(problem)
        if isinstance(problem, ImportError) and parsed.get_driver_name() == "psycopg":
            reason += "; install its driver with `pip install 'brewos-relay[postgresql]'`"
        raise RegistryError(f"cannot use the database {shown}: {reason}") from None
    try:
        if is_sqlite(engine):
            _prepare_sqlite(engine)
        elif _is_postgresql(engine.url):
            _prepare_postgresql(engine)
    except (SQLAlchemyError, OSError) as problem:
        engine.dispose()
        raise RegistryError(f"cannot open the database {shown}: {reason_of(problem)}") from problem
    return engine


def database_file(url: str) -> Path | None:
    """Return the file of an SQLite URL. None if the database is not a plain file.

    Raises RegistryError if the URL is malformed.
    """
    return file_of(_parse_url(url))


def postgresql_url(url: str) -> str | None:
    """Return a PostgreSQL URL for PostgreSQL's own programs, without the password. None for other databases.

    Raises RegistryError if the URL is malformed.
    """
    parsed = _parse_url(url)
    if not _is_postgresql(parsed):
        return None
    shown = parsed.set(drivername="postgresql").difference_update_query(_PASSWORDS)
    return URL.create(
        shown.drivername, shown.username, None, shown.host, shown.port, shown.database, shown.query
    ).render_as_string()


def is_sqlite(engine: Engine) -> bool:
    return engine.dialect.name == "sqlite"


def file_of(url: URL) -> Path | None:
    # With `uri`, the name is not a file name.
    if url.get_backend_name() != "sqlite" or url.database in (None, "", ":memory:") or "uri" in url.query:
        return None
    return Path(str(url.database))


def shown_url(url: URL) -> str:
    """Write a URL without its passwords."""
    hidden = {name: "hidden" for name in _PASSWORDS if name in url.query}
    return url.update_query_dict(hidden).render_as_string(hide_password=True)


def reason_of(problem: Exception) -> str:
    """Return the reason of a failure in one line, without the statement and its parameters."""
    inner = problem.orig if isinstance(problem, DBAPIError) and problem.orig is not None else problem
    # PostgreSQL's next lines (DETAIL) contain values of the row.
    return next(iter(str(inner).strip().splitlines()), type(inner).__name__)


def _is_postgresql(url: URL) -> bool:
    return url.get_backend_name() == "postgresql"


def _parse_url(url: str) -> URL:
    try:
        parsed = make_url(url)
        # Platforms and other programs write URLs without a driver.
        if parsed.drivername in {"postgres", "postgresql"}:
            parsed = parsed.set(drivername="postgresql+psycopg")
        return parsed
    except (ArgumentError, ValueError):
        raise RegistryError(
            "the database URL is malformed: it must be like sqlite:////var/lib/brewos-relay/relay.db"
        ) from None


def _engine_options(url: URL, connections: int) -> dict[str, Any]:
    shared = {
        "pool_pre_ping": True,
        "pool_size": connections,
        "max_overflow": 0,
        "pool_timeout": BUSY_TIMEOUT_S,
    }
    if _is_postgresql(url):
        is_libpq = url.get_driver_name().startswith("psycopg")
        chosen = {name: value for name, value in _LIBPQ.items() if is_libpq and name not in url.query}
        return {**shared, "connect_args": chosen}
    if url.get_backend_name() != "sqlite":
        return shared
    if url.database in (None, "", ":memory:"):
        raise ValueError("each thread would have an in-memory database of its own; name a file")
    return {"connect_args": {"timeout": BUSY_TIMEOUT_S}}


def _prepare_sqlite(engine: Engine) -> None:
    if (file := file_of(engine.url)) is not None:
        file.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        # Only if it is missing: closing a file that is in use would release this process's locks on it.
        # SQLite creates its other files with the same mode.
        with suppress(FileExistsError):
            file.touch(mode=0o600, exist_ok=False)

    @event.listens_for(engine, "connect")
    def _on_connect(connection: Any, _record: object) -> None:
        # Python's module would start transactions itself: too late, and not before CREATE TABLE.
        connection.isolation_level = None
        cursor = connection.cursor()
        cursor.execute("PRAGMA synchronous = FULL")
        cursor.execute("PRAGMA foreign_keys = ON")
        # Shrink a write-ahead log that a large transaction or a long reader has grown.
        cursor.execute(f"PRAGMA journal_size_limit = {_KEPT_WAL_BYTES}")
        # KiB for each connection. The system caches the file anyway, once for all connections.
        cursor.execute("PRAGMA cache_size = -512")
        cursor.close()

    @event.listens_for(engine, "begin")
    def _begin(connection: Connection) -> None:
        options = connection.get_execution_options()
        if options.get(READING):
            return
        if (within_s := options.get(WITHIN_S)) is None:
            connection.exec_driver_sql("BEGIN IMMEDIATE")
            return
        connection.exec_driver_sql(f"PRAGMA busy_timeout = {max(0, within_s) * 1000:.0f}")
        try:
            connection.exec_driver_sql("BEGIN IMMEDIATE")
        finally:
            # Reset: the connection is pooled, and this transaction waits for no other lock.
            connection.exec_driver_sql(f"PRAGMA busy_timeout = {BUSY_TIMEOUT_S * 1000:.0f}")

    # The file stores its journal mode. Changing it needs exclusive access, and SQLite does not always wait
    # for that despite the timeout: without a retry, one of several processes that start together could fail.
    deadline_s = time.monotonic() + BUSY_TIMEOUT_S
    while True:
        try:
            with engine.execution_options(**{READING: True}).connect() as connection:
                connection.exec_driver_sql("PRAGMA journal_mode = WAL")
            return
        except OperationalError as problem:
            if "locked" not in str(problem.orig) or time.monotonic() > deadline_s:
                raise
        time.sleep(0.02)


def _prepare_postgresql(engine: Engine) -> None:
    @event.listens_for(engine, "connect")
    def _on_connect(connection: Any, _record: object) -> None:
        # Not a connection parameter: connection poolers reject it there.
        cursor = connection.cursor()
        cursor.execute(f"SET lock_timeout = {BUSY_TIMEOUT_S * 1000:.0f}")
        cursor.close()
        connection.commit()

    @event.listens_for(engine, "begin")
    def _begin(connection: Connection) -> None:
        if (within_s := connection.get_execution_options().get(WITHIN_S)) is not None:
            ms = max(1, round(within_s * 1000))  # 0 would mean no limit
            connection.exec_driver_sql(
                f"SELECT set_config('lock_timeout', '{ms}', true),"
                f" set_config('statement_timeout', '{ms}', true)"
            )

"""Database: the registry's connections. What is read and written through them is in the modules next to this.

The command line calls those directly; the server goes through `registry.store`, in worker threads.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from types import TracebackType
from typing import Final, Self

from sqlalchemy import Connection, Engine, text
from sqlalchemy.exc import DBAPIError, SQLAlchemyError

from brewos_relay.errors import RegistryBusy, RegistryError
from brewos_relay.registry import migrations
from brewos_relay.registry.engine import READING, WITHIN_S, connect, file_of, is_sqlite, reason_of, shown_url

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
            engine.execution_options(**{READING: True})
            if is_sqlite(engine)
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
        database = cls(connect(url))
        try:
            if is_sqlite(database._engine):
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
        file = file_of(self._engine.url)
        if file is not None:
            return str(file.absolute())
        return shown_url(self._engine.url)

    @property
    def one_writer(self) -> bool:
        """Whether writers wait for each other anyway."""
        return is_sqlite(self._engine)

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
            connection.execution_options(**{WITHIN_S: within_s})
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
    database = Database(connect(url))
    try:
        return database._upgrade()
    finally:
        database.close()


def version(url: str) -> tuple[str, str | None]:
    """Tell where a registry is and which version its tables have, None if there are none; nothing is changed.

    Raises RegistryError.
    """
    database = Database(connect(url))
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


@contextmanager
def _translated(what: str) -> Iterator[None]:
    try:
        yield
    except SQLAlchemyError as problem:
        text = f"the registry {what}: {reason_of(problem)}"
        raise (RegistryBusy(text) if _is_busy(problem) else RegistryError(text)) from problem


def _is_busy(problem: SQLAlchemyError) -> bool:
    """Tell whether a lock was not to be had, or a statement took too long."""
    inner = problem.orig if isinstance(problem, DBAPIError) else None
    state = getattr(inner, "sqlstate", None)
    return getattr(inner, "sqlite_errorname", "").startswith("SQLITE_BUSY") or state in _BUSY

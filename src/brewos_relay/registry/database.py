"""Database: the registry's tables behind plain, blocking functions.

The command line calls it directly; the server goes through `registry.store`, in worker threads.
"""

import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self, TypeVar

from sqlalchemy import (
    Connection,
    Engine,
    bindparam,
    create_engine,
    delete,
    event,
    insert,
    or_,
    select,
    tuple_,
    update,
)
from sqlalchemy.engine import URL, make_url
from sqlalchemy.exc import ArgumentError, DBAPIError, IntegrityError, OperationalError, SQLAlchemyError
from sqlalchemy.schema import CreateIndex, CreateTable

from brewos_relay.errors import DeviceExists, RegistryError
from brewos_relay.registry.records import Device, NewDevice
from brewos_relay.registry.schema import device_users, devices, metadata

__all__ = ["Database", "Device", "NewDevice", "database_file"]

T = TypeVar("T")

BUSY_TIMEOUT_S: Final = 10.0
"""How long a write waits for another process's, say for an import to end."""

_IDS_AT_ONCE: Final = 500
_ROWS_AT_ONCE: Final = 1000

_DEVICES: Final = select(devices).order_by(devices.c.id)
_DEVICES_BY_ID: Final = select(devices).where(devices.c.id.in_(bindparam("ids", expanding=True)))
_DEVICES_OF_USER: Final = _DEVICES.join(device_users).where(device_users.c.user_id == bindparam("user_id"))
_OWNERSHIPS: Final = select(device_users.c.user_id, device_users.c.device_id).where(
    tuple_(device_users.c.user_id, device_users.c.device_id).in_(bindparam("pairs", expanding=True))
)
_OWNERS: Final = select(device_users.c.user_id).where(device_users.c.device_id == bindparam("device_id"))
_NOTE_SEEN: Final = (
    update(devices)
    .where(devices.c.id == bindparam("device_id"))
    .where(or_(devices.c.last_seen_ms.is_(None), devices.c.last_seen_ms < bindparam("at_ms")))
    .values(last_seen_ms=bindparam("at_ms"))
)


class Database:
    """An open registry; usable from several threads at once, and as a context manager that closes it.

    SQLite runs with a write-ahead log, so that readers never wait for a writer, and syncs each commit: what a
    method has returned from is on disk. Every failure of the database is a RegistryError.
    """

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        # Reading needs no transaction around a single statement.
        self._reading = engine.execution_options(isolation_level="AUTOCOMMIT")

    @classmethod
    def open(cls, url: str) -> Self:
        """Connect to a database, making the file and the tables if they are missing.

        A file that is made, and the folder that is made for it, are for this user of the computer only.

        `url` is an SQLAlchemy URL, as in `sqlite:///data/brewos-relay.db`. No error repeats its password.
        """
        parsed = _parse_url(url)
        shown = parsed.render_as_string(hide_password=True)
        try:
            # Parameters are kept out of errors: some of them are key hashes.
            engine = create_engine(parsed, hide_parameters=True, **_engine_options(parsed))
        except (SQLAlchemyError, ImportError, TypeError, ValueError) as problem:
            raise RegistryError(f"cannot use the database {shown}: {_reason(problem)}") from None
        try:
            if engine.dialect.name == "sqlite":
                _prepare_sqlite(engine)
            with engine.begin() as connection:
                # Not `create_all`, which looks first: two processes may start on an empty file at once.
                for table in metadata.sorted_tables:
                    connection.execute(CreateTable(table, if_not_exists=True))
                    for index in table.indexes:
                        connection.execute(CreateIndex(index, if_not_exists=True))
        except (SQLAlchemyError, OSError) as problem:
            engine.dispose()
            raise RegistryError(f"cannot open the database {shown}: {_reason(problem)}") from problem
        return cls(engine)

    def close(self) -> None:
        """Close every connection that is not in use; closing again closes those that were."""
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
        return self._engine.url.render_as_string(hide_password=True)

    def add_devices(
        self, rows: Sequence[NewDevice], *, on_progress: Callable[[int], None] | None = None
    ) -> None:
        """Register devices and give them to their users, all or none; DeviceExists names those there are.

        `on_progress` is told how many more rows were written, now and then.
        """
        ids = [row.id for row in rows]
        if len(set(ids)) < len(ids):
            raise DeviceExists(id_ for id_, times in Counter(ids).items() if times > 1)
        now_ms = time.time_ns() // 1_000_000
        with _translated("register devices"):
            try:
                with self._engine.begin() as connection:
                    for chunk in _chunks(rows, _ROWS_AT_ONCE):
                        connection.execute(insert(devices), [_device_row(row, now_ms) for row in chunk])
                        if owners := [row for new in chunk for row in _owner_rows(new)]:
                            connection.execute(insert(device_users), owners)
                        if on_progress is not None:
                            on_progress(len(chunk))
            except IntegrityError as problem:
                if taken := sorted(device.id for device in self.devices(ids)):
                    raise DeviceExists(taken) from problem
                raise

    def remove_device(self, device_id: str) -> bool:
        """Forget a device and who had it; False if it was not registered."""
        with _translated("remove a device"), self._engine.begin() as connection:
            return connection.execute(delete(devices).where(devices.c.id == device_id)).rowcount > 0

    def give_device(self, device_id: str, user_ids: Sequence[str]) -> list[str]:
        """Give a device to users, all of them or none, and tell which of them had it already.

        RegistryError if it is not registered. Whoever calls has checked the user ids.
        """
        with _translated("give a device to users"), self._engine.begin() as connection:
            owners = _read_owners(connection, device_id)
            wanted = dict.fromkeys(user_ids)
            if new := [each for each in wanted if each not in owners]:
                connection.execute(
                    insert(device_users), [{"user_id": each, "device_id": device_id} for each in new]
                )
            return [each for each in wanted if each in owners]

    def take_device(self, device_id: str, user_ids: Sequence[str]) -> None:
        """Take a device away from users, all of them or none.

        RegistryError if it is not registered, or if one of them does not have it.
        """
        with _translated("take a device from users"), self._engine.begin() as connection:
            owners = _read_owners(connection, device_id)
            if others := [each for each in dict.fromkeys(user_ids) if each not in owners]:
                raise RegistryError(
                    f"{', '.join(others)} {'does' if len(others) == 1 else 'do'} not have {device_id};"
                    " nothing was changed"
                )
            connection.execute(
                delete(device_users)
                .where(device_users.c.device_id == device_id)
                .where(device_users.c.user_id.in_(user_ids))
            )

    def devices(self, ids: Sequence[str] | None = None) -> list[Device]:
        """Read the devices with these ids, in any order, or all of them in the order of their ids."""
        with _translated("read devices"), self._reading.connect() as connection:
            if ids is None:
                return [_device(row) for row in connection.execute(_DEVICES)]
            return [
                _device(row)
                for chunk in _chunks(ids, _IDS_AT_ONCE)
                for row in connection.execute(_DEVICES_BY_ID, {"ids": chunk})
            ]

    def devices_of(self, user_id: str) -> list[Device]:
        """Read the devices that a user has, in the order of their ids."""
        with _translated("read a user's devices"), self._reading.connect() as connection:
            return [_device(row) for row in connection.execute(_DEVICES_OF_USER, {"user_id": user_id})]

    def ownerships(self, pairs: Sequence[tuple[str, str]]) -> set[tuple[str, str]]:
        """Tell which of these pairs of user id and device id are so."""
        with _translated("read who has a device"), self._reading.connect() as connection:
            return {
                (row[0], row[1])
                for chunk in _chunks(pairs, _IDS_AT_ONCE)
                for row in connection.execute(_OWNERSHIPS, {"pairs": chunk})
            }

    def note_seen(self, seen: Mapping[str, int]) -> None:
        """Remember when devices were last connected (id → Unix ms), in one transaction; never goes back."""
        if not seen:
            return
        rows = [{"device_id": device_id, "at_ms": at_ms} for device_id, at_ms in seen.items()]
        with _translated("note when devices were seen"), self._engine.begin() as connection:
            connection.execute(_NOTE_SEEN, rows)


def database_file(url: str) -> Path | None:
    """Give the file of the SQLite database at an SQLAlchemy URL; None if what it names is not simply a file.

    RegistryError if the URL cannot be read.
    """
    return _file_of(_parse_url(url))


def _file_of(url: URL) -> Path | None:
    # With `uri`, the name is not that of the file.
    if url.get_backend_name() != "sqlite" or url.database in (None, "", ":memory:") or "uri" in url.query:
        return None
    return Path(str(url.database))


def _parse_url(url: str) -> URL:
    try:
        return make_url(url)
    except (ArgumentError, ValueError):
        raise RegistryError(
            "the database's URL cannot be read: it must be like sqlite:////var/lib/brewos-relay/relay.db"
        ) from None


def _engine_options(url: URL) -> dict[str, Any]:
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
        cursor = connection.cursor()
        cursor.execute("PRAGMA synchronous = FULL")
        cursor.execute("PRAGMA foreign_keys = ON")
        cursor.close()

    # The file remembers this one. Changing it needs the file for oneself, and SQLite does not always wait
    # for that, whatever the timeout: of processes that start together, now and then one would be refused.
    deadline_s = time.monotonic() + BUSY_TIMEOUT_S
    while True:
        try:
            with engine.connect() as connection:
                connection.exec_driver_sql("PRAGMA journal_mode = WAL")
            return
        except OperationalError as problem:
            if "locked" not in str(problem.orig) or time.monotonic() > deadline_s:
                raise
        time.sleep(0.02)


@contextmanager
def _translated(what: str) -> Iterator[None]:
    try:
        yield
    except SQLAlchemyError as problem:
        raise RegistryError(f"the registry could not {what}: {_reason(problem)}") from problem


def _reason(problem: Exception) -> str:
    """Give what went wrong in one line, without the statement and its parameters."""
    inner = problem.orig if isinstance(problem, DBAPIError) and problem.orig is not None else problem
    return " ".join(str(inner).split())


def _read_owners(connection: Connection, device_id: str) -> set[str]:
    """Read who has a device, which stays so until the transaction ends; RegistryError if it is unknown."""
    # Writing first, if only what is there already, keeps all others from writing in between.
    unchanged = update(devices).where(devices.c.id == device_id).values(name=devices.c.name)
    if connection.execute(unchanged).rowcount == 0:
        raise RegistryError(f"{device_id} is not registered; `brewos-relay device list` shows what is")
    return set(connection.scalars(_OWNERS, {"device_id": device_id}))


def _chunks(items: Sequence[T], size: int) -> Iterator[Sequence[T]]:
    for start in range(0, len(items), size):
        yield items[start : start + size]


def _device(row: Sequence[Any]) -> Device:
    id_, key_hash, name, created_at_ms, last_seen_ms = row
    return Device(
        id=id_, key_hash=key_hash, name=name, created_at_ms=created_at_ms, last_seen_ms=last_seen_ms
    )


def _device_row(new: NewDevice, now_ms: int) -> dict[str, Any]:
    return {"id": new.id, "key_hash": new.key_hash, "name": new.name, "created_at_ms": now_ms}


def _owner_rows(new: NewDevice) -> Iterator[dict[str, str]]:
    for user_id in new.user_ids:
        yield {"user_id": user_id, "device_id": new.id}

"""Backup and restore of an SQLite registry, while other processes may use it.

Both write a new file and rename it into place, so that readers see the old or the new file, never a part.
"""

import errno
import fcntl
import os
import sqlite3
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from sqlalchemy import create_engine
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.pool import StaticPool

from brewos_relay.errors import RegistryError
from brewos_relay.registry import migrations
from brewos_relay.registry.engine import BUSY_TIMEOUT_S
from brewos_relay.registry.files import give_name, new_file, require_free, sync, sync_folder

# The lock bytes of an SQLite file (sqlite.org/fileformat2.html, the lock-byte page). With a write-ahead log,
# each program holds a lock on some of them for as long as it has the database open.
_LOCK_START: Final = 0x4000_0000
_LOCK_BYTES: Final = 512

_BESIDE: Final = ("-wal", "-journal", "-shm")
"""Suffixes of the files that belong to a database. All but the last have content."""


@dataclass(frozen=True, slots=True)
class Copy:
    """A completed copy: the version of its tables, and in `kept` the path of the replaced file."""

    size_bytes: int
    version: str
    devices: int
    kept: Path | None = None


def back_up(database: Path, target: Path, *, replace: bool = False) -> Copy:
    """Copy a registry as of one moment, without blocking writers.

    The copy is a single file that only this user can read. It is checked before it gets its name. Raises
    RegistryError; also if `target` exists, unless `replace` is true.
    """
    if target.exists() and _is_same(database, target):
        raise RegistryError(f"{target} is the registry itself; choose another name")
    require_free(target, replace=replace)
    with new_file(target.parent, beside=_BESIDE) as copy:
        version, devices = _copy(database, copy)
        size_bytes = copy.stat().st_size
        give_name(copy, target, replace=replace)
    return Copy(size_bytes=size_bytes, version=version, devices=devices)


def restore(source: Path, database: Path) -> Copy:
    """Replace a registry with a copy. The old file is kept beside it, with the time in its name.

    Changes nothing if the copy is damaged, not a registry or from a newer version, or if a server or command
    has the registry open. Raises RegistryError.
    """
    if not source.exists():
        raise RegistryError(f"{source} does not exist")
    if database.exists() and _is_same(database, source):
        raise RegistryError(f"{source} is the registry itself; name a copy of it")
    database.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    with new_file(database.parent, beside=_BESIDE) as copy:
        version, devices = _copy(source, copy)
        size_bytes = copy.stat().st_size
        kept = None
        if database.exists():
            with _alone_with(database):
                _leave_to_same_user(copy, database)
                kept = _keep(database)
                copy.replace(database)
        else:
            _leave_to_same_user(copy, database.parent)
            copy.replace(database)
    sync_folder(database.parent)
    return Copy(size_bytes=size_bytes, version=version, devices=devices, kept=kept)


def _copy(source: Path, target: Path) -> tuple[str, int]:
    """Copy a database into an empty file. Returns the version of its tables and the number of devices."""
    try:
        with (
            closing(_connect(source, "mode=rw" if os.access(source, os.W_OK) else "mode=ro")) as there,
            closing(_connect(target, "mode=rw")) as here,
        ):
            # In one step: a copy in several steps restarts whenever another process writes.
            there.backup(here)
            here.execute("PRAGMA journal_mode = DELETE")  # a single file, without a log beside it
            problems = [row[0] for row in here.execute("PRAGMA integrity_check(1)") if row[0] != "ok"]
            if not problems and here.execute("PRAGMA foreign_key_check").fetchone() is not None:
                problems = ["rows refer to missing rows"]
            if problems:
                raise RegistryError(f"{source} is damaged: {problems[0]}")
            version = _version_of(here)
            if version is None:
                raise RegistryError(f"{source} is not a registry: its tables are missing")
            migrations.check_known(version)
            [[devices]] = here.execute("SELECT count(*) FROM devices")
    except (sqlite3.Error, SQLAlchemyError) as problem:
        raise RegistryError(f"{source} cannot be copied: {problem}") from problem
    sync(target)
    return version, devices


def _connect(path: Path, query: str) -> sqlite3.Connection:
    return sqlite3.connect(f"{path.absolute().as_uri()}?{query}", uri=True, timeout=BUSY_TIMEOUT_S)


def _version_of(connection: sqlite3.Connection) -> str | None:
    engine = create_engine("sqlite://", creator=lambda: connection, poolclass=StaticPool)
    with engine.connect() as db:
        return migrations.version_of(db)


@contextmanager
def _alone_with(database: Path) -> Iterator[None]:
    """Keep other processes out of a database while the body runs. Raises RegistryError if one has it open.

    The database may be damaged. The body must not open the file: closing it would release the lock.
    """
    with database.open("rb+") as file:
        try:
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB, _LOCK_BYTES, _LOCK_START)
        except OSError as problem:
            if problem.errno not in {errno.EACCES, errno.EAGAIN}:
                raise
            raise RegistryError(
                f"{database.absolute()} is in use; stop the server and every other command first"
            ) from None
        yield


def _keep(database: Path) -> Path:
    """Give an unused database a second name, and remove the files that belong to its first name."""
    stem = f"{database.name}.before-{time.strftime('%Y%m%dT%H%M%SZ', time.gmtime())}"
    number = 1
    while (kept := database.with_name(stem if number == 1 else f"{stem}-{number}")).exists():
        number += 1
    # Link all files before removing any: the latest writes may be in the log only.
    for end in ("", *_BESIDE[:-1]):
        with suppress(FileNotFoundError):
            os.link(f"{database}{end}", f"{kept}{end}")
    for end in _BESIDE:
        Path(f"{database}{end}").unlink(missing_ok=True)
    return kept


def _leave_to_same_user(path: Path, pattern: Path) -> None:
    """Give a file the owner of another one: root restores for the server's user."""
    owner = pattern.stat()
    if os.geteuid() == 0:
        os.chown(path, owner.st_uid, owner.st_gid)


def _is_same(one: Path, other: Path) -> bool:
    return one.exists() and other.exists() and one.samefile(other)

"""Health checks: is the server ready for connections, and is its storage degraded?"""

import logging
import os
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, Protocol

import trio

from brewos_relay.core.relay import Relay
from brewos_relay.errors import RegistryError
from brewos_relay.registry.store import Store
from brewos_relay.server.certificates import CertificateFiles

log = logging.getLogger(__name__)

LOOK_EVERY_S: Final = 10.0
LOW_BYTES: Final = 64 * 1024 * 1024
LOW_SHARE: Final = 0.05
"""The disk is full with less free space than the smaller of these: 64 MiB, and 5 % of the disk."""
LARGE_WAL_BYTES: Final = 128 * 1024 * 1024

PROBLEMS: Final = ("disk_full", "read_only", "write_failed", "wal_large")
"""The storage problems, as in the metrics."""
_ADVICE: Final = {
    "disk_full": "free some space: without it, changes are refused and activity is lost",
    "read_only": "remount it writable: a disk error may have made it read-only",
    "write_failed": "check the disk, its quota and the kernel log",
    "wal_large": "look for a program that has read the registry for a long time, such as a hanging backup",
}
_MIB: Final = 1024 * 1024
_REGISTRY_S: Final = 2.0
"""How long the registry may take to respond."""
_GOOD_FOR_S: Final = 1.0
"""How long a result is reused, so that frequent health checks do not load the registry."""


class WritableStore(Protocol):
    """The methods of a Store that a StorageWatch needs."""

    @property
    def write_problem(self) -> tuple[str, str] | None:
        """The storage problem of the last write and a text for it, or None if the last write succeeded."""

    async def probe(self) -> None:
        """Test whether the registry can be written, without a change. Raises RegistryError."""


@dataclass(frozen=True, slots=True)
class Disk:
    """The result of one disk check: the free space, and texts by problem."""

    free_bytes: int | None = None
    problems: Mapping[str, str] = field(default_factory=dict)


def examine_disk(file: Path) -> Disk:
    """Check the disk of an SQLite file and the size of its write-ahead log."""
    problems: dict[str, str] = {}
    try:
        found = os.statvfs(file.parent)
    except OSError as error:
        return Disk(problems={"write_failed": f"the registry's folder cannot be examined: {error.strerror}"})
    free_bytes = found.f_bavail * found.f_frsize
    if free_bytes < min(LOW_BYTES, found.f_blocks * found.f_frsize * LOW_SHARE):
        problems["disk_full"] = f"the registry's disk is almost full: {free_bytes / _MIB:.1f} MiB are free"
    elif found.f_files and not found.f_favail:
        problems["disk_full"] = "the registry's disk has no room for another file"
    if found.f_flag & os.ST_RDONLY:
        problems["read_only"] = "the registry's disk is read-only"
    try:
        wal_bytes = file.with_name(f"{file.name}-wal").stat().st_size
    except OSError:
        wal_bytes = 0
    if wal_bytes > LARGE_WAL_BYTES:
        problems["wal_large"] = f"the registry's write-ahead log has grown to {wal_bytes / _MIB:.0f} MiB"
    return Disk(free_bytes, problems)


def advice_for(problem: str) -> str:
    """Return the advice for a problem."""
    return _ADVICE[problem]


class StorageWatch:
    """Watches the registry's storage: a failed write is a problem at once; the disk is checked every 10 s.

    After a failed write, each check attempts a test write. Its success ends the problem.
    """

    def __init__(
        self, store: WritableStore, file: Path | None, *, examine: Callable[[Path], Disk] = examine_disk
    ) -> None:
        """Watch a registry and its SQLite file; `file` is None for a database server."""
        self._store = store
        self._file = file
        self._examine = examine
        self._disk = Disk()
        self._told: frozenset[str] = frozenset()

    @property
    def free_bytes(self) -> int | None:
        """The free space at the last check, or None if unknown."""
        return self._disk.free_bytes

    @property
    def problems(self) -> dict[str, str]:
        """The current problems: public texts, by the names in PROBLEMS."""
        found = dict(self._disk.problems)
        if (failed := self._store.write_problem) is not None:
            found[failed[0]] = failed[1]
        return found

    async def run(self) -> None:
        """Check every 10 s until cancelled. Log when a problem begins and when it ends."""
        while True:
            await self.look()
            await trio.sleep(LOOK_EVERY_S)

    async def look(self) -> None:
        """Check once."""
        if self._file is not None:
            # The thread is abandoned on cancellation: a network disk may never respond.
            self._disk = await trio.to_thread.run_sync(self._examine, self._file, abandon_on_cancel=True)
        self._tell()
        if self._store.write_problem is not None:
            try:
                await self._store.probe()
            except RegistryError:
                return
            self._tell()

    def _tell(self) -> None:
        found = self.problems
        for problem in sorted(found.keys() - self._told):
            log.error("degraded: %s; %s", found[problem], advice_for(problem), extra={"problem": problem})
        for problem in sorted(self._told - found.keys()):
            log.info("no longer degraded: %s is over", problem, extra={"problem": problem})
        self._told = frozenset(found)


class ReadinessCheck:
    """Checks whether the server is ready for connections."""

    def __init__(self, *, relay: Relay, store: Store, tls: CertificateFiles | None) -> None:
        self._relay = relay
        self._store = store
        self._tls = tls
        self._asking = trio.Lock()
        self._asked_at_s = -_GOOD_FOR_S
        self._answers = True

    async def problems(self) -> list[str]:
        """Return the reasons why the server is not ready; empty if it is ready."""
        found = []
        if self._relay.closing:
            found.append("the relay is shutting down")
        if not await self._registry_answers():
            found.append("the registry does not answer")
        if self._tls is not None and self._tls.certificate.expires_at_s <= time.time():
            found.append("the certificate has expired")
        return found

    async def _registry_answers(self) -> bool:
        async with self._asking:
            if trio.current_time() - self._asked_at_s >= _GOOD_FOR_S:
                self._answers = await self._ask()
                self._asked_at_s = trio.current_time()
            return self._answers

    async def _ask(self) -> bool:
        try:
            with trio.fail_after(_REGISTRY_S):
                await self._store.check()
        except (RegistryError, trio.TooSlowError):
            return False
        return True

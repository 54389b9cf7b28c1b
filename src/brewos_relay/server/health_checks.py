"""Health checks: whether the server is ready for connections, and whether its storage is degraded."""

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
"""The disk counts as full with less free space than both of these leave: 64 MiB, or 5 % of a small disk."""
LARGE_WAL_BYTES: Final = 128 * 1024 * 1024

PROBLEMS: Final = ("disk_full", "read_only", "write_failed", "wal_large")
"""What can be wrong, in the words of the metrics."""
_ADVICE: Final = {
    "disk_full": "free some space: changes and activity are lost or refused when there is none",
    "read_only": "make it writable again: an error of the disk may have changed that",
    "write_failed": "look at the disk, its quota and the messages of the kernel",
    "wal_large": "look for a program that reads the registry for long, such as a copy that hangs",
}
_MIB: Final = 1024 * 1024
_REGISTRY_S: Final = 2.0
"""What the registry is given to answer."""
_GOOD_FOR_S: Final = 1.0
"""However often somebody asks, the registry is asked once in this time."""


class Written(Protocol):
    """What a StorageWatch needs of a Store."""

    @property
    def write_problem(self) -> tuple[str, str] | None:
        """The problem of the storage that the last failed write met, and a text; None after a good one."""

    async def probe(self) -> None:
        """Write something that changes nothing. Raises RegistryError."""


@dataclass(frozen=True, slots=True)
class Disk:
    """One look at the disk: the free space, and texts by problem."""

    free_bytes: int | None = None
    problems: Mapping[str, str] = field(default_factory=dict)


def examine_disk(file: Path) -> Disk:
    """Look at the disk of an SQLite file, and at its write-ahead log."""
    problems: dict[str, str] = {}
    try:
        found = os.statvfs(file.parent)
    except OSError as error:
        return Disk(problems={"write_failed": f"the registry's folder cannot be examined: {error.strerror}"})
    free_bytes = found.f_bavail * found.f_frsize
    if free_bytes < min(LOW_BYTES, found.f_blocks * found.f_frsize * LOW_SHARE):
        problems["disk_full"] = f"the registry's disk is almost full: {free_bytes / _MIB:.1f} MiB are free"
    elif found.f_files and not found.f_favail:
        problems["disk_full"] = "the registry's disk has room for no more files"
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
    """Say what to do about a problem."""
    return _ADVICE[problem]


class StorageWatch:
    """Knows what is wrong with the storage: a failed write counts at once, the disk is examined every 10 s.

    While the last write failed, each look tries one that changes nothing, which ends the problem.
    """

    def __init__(
        self, store: Written, file: Path | None, *, examine: Callable[[Path], Disk] = examine_disk
    ) -> None:
        """Take the registry and its SQLite file; None for a database whose disk is another computer's."""
        self._store = store
        self._file = file
        self._examine = examine
        self._disk = Disk()
        self._told: frozenset[str] = frozenset()

    @property
    def free_bytes(self) -> int | None:
        """The free space at the last look; None if it is not known."""
        return self._disk.free_bytes

    @property
    def problems(self) -> dict[str, str]:
        """What is wrong now, as texts for everyone by the words of PROBLEMS."""
        found = dict(self._disk.problems)
        if (failed := self._store.write_problem) is not None:
            found[failed[0]] = failed[1]
        return found

    async def run(self) -> None:
        """Look every 10 s, until cancelled; log when a problem begins, and when it ends."""
        while True:
            await self.look()
            await trio.sleep(LOOK_EVERY_S)

    async def look(self) -> None:
        """Look once."""
        if self._file is not None:
            # Left behind at the end: a disk of the network may never answer.
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
            log.info("not degraded any more: %s is over", problem, extra={"problem": problem})
        self._told = frozenset(found)


class ReadinessCheck:
    """Looks at what the server needs to be of use."""

    def __init__(self, *, relay: Relay, store: Store, tls: CertificateFiles | None) -> None:
        self._relay = relay
        self._store = store
        self._tls = tls
        self._asking = trio.Lock()
        self._asked_at_s = -_GOOD_FOR_S
        self._answers = True

    async def problems(self) -> list[str]:
        """Give the reasons why nobody should be sent here now; none if all is well."""
        found = []
        if self._relay.closing:
            found.append("the relay is leaving")
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

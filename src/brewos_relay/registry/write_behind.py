"""Write-behind: records of a running server, gathered in memory and written every few seconds."""

import logging
import threading
from collections import deque
from collections.abc import Mapping, Sequence
from typing import Final

import trio

from brewos_relay.errors import RegistryError
from brewos_relay.registry.activity import add_activity_of_known
from brewos_relay.registry.database import Database
from brewos_relay.registry.devices import record_info, record_seen
from brewos_relay.registry.held_writes import HeldWrite, HeldWrites, KeyUse, write_held
from brewos_relay.registry.login_sessions import record_attached
from brewos_relay.registry.pairing import HeldPairing
from brewos_relay.registry.records import Activity
from brewos_relay.vocabulary import now_ms

FLUSH_EVERY_S: Final = 5.0
CLOSE_S: Final = 5.0
"""How long closing waits for the last write at most."""
ENTRIES_AT_MOST: Final = 10_000
"""How many entries of activity may wait to be written."""
ENTRIES_AT_ONCE: Final = 500
"""How many entries trigger a write at once, so that a burst does not use much memory."""

_Said = Mapping[str, tuple[str | None, str | None]]

logger = logging.getLogger(__name__)


class WriteBehind:
    """Gathers connection times, reported infos and activity of devices. Its methods never fail or wait."""

    def __init__(self, database: Database, *, limiter: trio.CapacityLimiter) -> None:
        self._database = database
        self._limiter = limiter
        self._seen: dict[str, int] = {}
        self._said: dict[str, tuple[str | None, str | None]] = {}
        self._attached: dict[str, str] = {}  # the device of each session
        self._entries: deque[Activity] = deque()
        self._dropped = 0
        self._wanted = trio.Event()
        self._many = trio.Event()
        self._held = HeldWrites(now_ms=now_ms)

    def hold_pairing(self, pairing: HeldPairing) -> None:
        """Hold the token of a device with a working key until it can be stored."""
        self._held.hold_pairing(pairing)
        self._wanted.set()

    def hold_use(self, device_id: str, key_hash: bytes, use: KeyUse) -> None:
        """Hold that a device connected with a working key until that can be stored."""
        self._held.hold_use(device_id, key_hash, use)
        self._wanted.set()

    def held_pairings(self, device_id: str) -> Sequence[HeldPairing]:
        """Return the tokens of a device that wait to be stored."""
        return self._held.pairings_of(device_id)

    def record_seen(self, device_id: str, at_ms: int) -> None:
        """Record when a device was connected (Unix ms)."""
        self._seen[device_id] = max(at_ms, self._seen.get(device_id, at_ms))
        self._wanted.set()

    def record_info(self, device_id: str, *, firmware_version: str | None, machine_type: str | None) -> None:
        """Record what a device reports about itself."""
        self._said[device_id] = (firmware_version, machine_type)
        self._wanted.set()

    def record_attached(self, session_id: str, device_id: str) -> None:
        """Record the device that an app with a login session attached to."""
        if session_id in self._attached or len(self._attached) < ENTRIES_AT_MOST:
            self._attached[session_id] = device_id
            self._wanted.set()

    def record_activity(self, entry: Activity) -> None:
        """Record an activity. Dropped while 10,000 entries wait."""
        if len(self._entries) >= ENTRIES_AT_MOST:
            self._dropped += 1
            return
        self._entries.append(entry)
        self._wanted.set()
        if len(self._entries) == ENTRIES_AT_ONCE:  # not beyond it: after a failure, entries wait as usual
            self._many.set()

    async def run(self) -> None:
        """Write the records every few seconds until cancelled; then write the rest, in 5 s at most."""
        try:
            while True:
                await self._wanted.wait()
                await self._flush()
                with trio.move_on_after(FLUSH_EVERY_S):
                    await self._many.wait()
        finally:
            with trio.move_on_after(CLOSE_S, shield=True):
                await self._flush()

    async def _flush(self) -> None:
        if not (self._seen or self._said or self._attached or self._entries or self._held):
            return
        held = self._held.all()  # kept until written, so that pairing finds it
        if self._dropped:
            logger.warning("%d entries of activity were dropped: too many at once", self._dropped)
            self._dropped = 0
        seen, self._seen, self._wanted = self._seen, {}, trio.Event()
        said, self._said = self._said, {}
        attached, self._attached = self._attached, {}
        entries, self._entries, self._many = self._entries, deque(), trio.Event()
        turn = threading.Lock()  # its first holder writes the records or puts them back

        def write() -> None:
            if turn.acquire(blocking=False):
                self._write(held, seen, said, attached, list(entries))

        try:
            # Abandon the thread when time is up: another process may hold the database. Records that a thread
            # has taken are not put back, or some would be written twice.
            await trio.to_thread.run_sync(write, limiter=self._limiter, abandon_on_cancel=True)
            self._held.forget(held)
        except trio.Cancelled:
            if turn.acquire(blocking=False):  # it was still waiting for a thread
                self._put_back(seen, said, attached, entries)
            raise
        except RegistryError as problem:
            logger.warning("%s; trying again", problem)
            self._put_back(seen, said, attached, entries)
        except Exception as problem:
            if turn.acquire(blocking=False):  # it never started: no thread is available
                logger.warning("records of devices cannot be written yet: %s; trying again", problem)
                self._put_back(seen, said, attached, entries)
                return
            # It would fail every time, together with later records.
            self._held.forget(held)
            logger.exception("records of devices cannot be written and are lost")

    def _put_back(
        self,
        seen: Mapping[str, int],
        said: _Said,
        attached: Mapping[str, str],
        entries: deque[Activity],
    ) -> None:
        self._said = {**said, **self._said}
        self._attached = {**attached, **self._attached}
        for device_id, at_ms in seen.items():
            self.record_seen(device_id, at_ms)
        newer, self._entries = self._entries, entries
        for entry in newer:
            self.record_activity(entry)
        self._wanted.set()

    def _write(
        self,
        held: Sequence[HeldWrite],
        seen: Mapping[str, int],
        said: _Said,
        attached: Mapping[str, str],
        entries: Sequence[Activity],
    ) -> None:
        if held:  # first: the others must not be written twice
            with self._database.writing() as db:
                write_held(db, held, now_ms=now_ms())
        if attached:  # apart, since sessions are locked before devices
            with self._database.writing() as db:
                record_attached(db, attached)
        with self._database.writing() as db:
            record_seen(db, seen)
            for device_id, (firmware_version, machine_type) in said.items():
                record_info(db, device_id, firmware_version=firmware_version, machine_type=machine_type)
            add_activity_of_known(db, entries)

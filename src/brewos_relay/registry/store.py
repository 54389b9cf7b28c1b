"""Store: the registry for the server, over a Database in worker threads."""

import logging
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from typing import Final

import trio

from brewos_relay.errors import RegistryError
from brewos_relay.registry.batching import Batcher
from brewos_relay.registry.database import Database
from brewos_relay.registry.records import Device

FLUSH_EVERY_S: Final = 5.0
CLOSE_S: Final = 5.0
"""The longest that closing waits for what was noted to be written."""
_THREADS: Final = 4

logger = logging.getLogger(__name__)


class Store:
    """Devices and who has them. `open_store` makes one.

    Every method may raise RegistryError, except `note_seen`.
    """

    def __init__(self, database: Database) -> None:
        self._database = database
        self._limiter = trio.CapacityLimiter(_THREADS)
        self._devices = Batcher(self._query_devices, limiter=self._limiter)
        self._ownerships = Batcher(self._query_ownerships, limiter=self._limiter)
        self._seen: dict[str, int] = {}
        self._seen_noted = trio.Event()
        self._closing = False

    async def find_device(self, device_id: str) -> Device | None:
        """Find a device by its id; lookups that arrive together share one query."""
        return await self._devices.find(device_id)

    async def find_devices(self, ids: Iterable[str]) -> list[Device]:
        """Find those of these devices that are registered, in any order."""
        return await trio.to_thread.run_sync(self._database.devices, list(ids), limiter=self._limiter)

    async def all_devices(self) -> list[Device]:
        """List every device in the order of the ids."""
        return await trio.to_thread.run_sync(self._database.devices, limiter=self._limiter)

    async def devices_of(self, user_id: str) -> list[Device]:
        """List the devices that a user has in the order of the ids."""
        return await trio.to_thread.run_sync(self._database.devices_of, user_id, limiter=self._limiter)

    async def user_has_device(self, user_id: str, device_id: str) -> bool:
        """Tell whether a user has a device; questions that arrive together share one query."""
        return await self._ownerships.find((user_id, device_id)) is not None

    def note_seen(self, device_id: str, at_ms: int) -> None:
        """Remember when a device was connected (Unix ms); written within seconds, with others in one go."""
        self._seen[device_id] = max(at_ms, self._seen.get(device_id, at_ms))
        self._seen_noted.set()

    async def run(self) -> None:
        """Answer lookups and write what is noted, until cancelled; then write the rest.

        **Owns:** a task for each kind of batched lookup, and the one that writes.
        **Ends when:** cancelled.
        """
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._devices.run)
                nursery.start_soon(self._ownerships.run)
                nursery.start_soon(self._flush_regularly)
        finally:
            self._closing = True
            with trio.move_on_after(CLOSE_S, shield=True):
                await self._flush()

    async def _flush_regularly(self) -> None:
        while True:
            await self._seen_noted.wait()
            await self._flush()
            await trio.sleep(FLUSH_EVERY_S)

    async def _flush(self) -> None:
        if not self._seen:
            return
        seen, self._seen, self._seen_noted = self._seen, {}, trio.Event()
        written = False
        try:
            # Left behind rather than waited for when time is up: another process may hold the database.
            await trio.to_thread.run_sync(
                self._write_seen, seen, limiter=self._limiter, abandon_on_cancel=True
            )
            written = True
        except RegistryError as problem:
            logger.warning("%s; trying again", problem)
        finally:
            if not written:
                for device_id, at_ms in seen.items():
                    self.note_seen(device_id, at_ms)

    def _write_seen(self, seen: dict[str, int]) -> None:
        try:
            self._database.note_seen(seen)
        finally:
            if self._closing:  # left behind, perhaps: the connection came back after all others were closed
                self._database.close()

    def _query_devices(self, ids: list[str]) -> dict[str, Device]:
        return {device.id: device for device in self._database.devices(ids)}

    def _query_ownerships(self, pairs: list[tuple[str, str]]) -> dict[tuple[str, str], bool]:
        return dict.fromkeys(self._database.ownerships(pairs), True)


@asynccontextmanager
async def open_store(url: str) -> AsyncIterator[Store]:
    """Open the registry at an SQLAlchemy URL, and close it with everything noted written.

    **Owns:** a nursery around the body, with the store's task in it.
    **Ends when:** the body does.
    """
    database = await trio.to_thread.run_sync(Database.open, url)
    store = Store(database)
    try:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(store.run)
            try:
                yield store
            finally:
                nursery.cancel_scope.cancel()
    finally:
        database.close()

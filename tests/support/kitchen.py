"""A relay with faithful machines and apps around it, on a virtual clock."""

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import trio

from brewos_relay.core.counters import Counters
from support.faithful_app import FaithfulApp
from support.faithful_device import FaithfulDevice
from support.process import KEY, machine_id
from support.relay_here import MemoryStore, RelayHere, open_relay_here, token
from support.wire_client import WireClient, upgrade_head


class Kitchen:
    """The machines and apps around a relay. All end with the block of `open_kitchen`."""

    def __init__(self, here: RelayHere, store: MemoryStore, nursery: trio.Nursery) -> None:
        self.here = here
        self.store = store
        self.relay = here.relay
        self.nursery = nursery
        self.devices: list[FaithfulDevice] = []
        self._connections: list[WireClient] = []

    @property
    def counters(self) -> Counters:
        return self.relay.counters

    def device(self, number: int = 1, *, key: str = KEY, grace_s: float = 0.0) -> FaithfulDevice:
        """Switch a machine on."""
        device = FaithfulDevice(self.here.address, machine_id(number), key, grace_s=grace_s)
        self.devices.append(device)
        self.nursery.start_soon(device.run)
        return device

    def app(self, number: int = 1, new_token: Callable[[], str] = token) -> FaithfulApp:
        """Open an app of a machine."""
        app = FaithfulApp(self.here.address, machine_id(number), new_token)
        self.nursery.start_soon(app.run)
        return app

    def page(self, number: int = 1, new_token: Callable[[], str] = token) -> FaithfulApp:
        """Open an app of a machine in a tab that stays open."""
        app = FaithfulApp(self.here.address, machine_id(number), new_token)
        self.nursery.start_soon(app.run_page)
        return app

    async def connect(self, target: str) -> WireClient:
        """Open a WebSocket by hand."""
        connection = await WireClient.connect(self.here.address)
        self._connections.append(connection)
        assert (await connection.ask(upgrade_head(target))).status == 101
        return connection

    async def connect_device(self, number: int = 1) -> WireClient:
        """Open a WebSocket with the id and the key of a machine; it says nothing by itself."""
        return await self.connect(f"/ws/device?id={machine_id(number)}&key={KEY}")

    async def connect_client(self, number: int = 1) -> WireClient:
        """Open a WebSocket as a client."""
        return await self.connect(f"/ws/client?token={token()}&device={machine_id(number)}")

    def abort(self) -> None:
        """Drop the connections that were made by hand."""
        for connection in self._connections:
            connection.abort()


@asynccontextmanager
async def open_kitchen(**limits: Any) -> AsyncIterator[Kitchen]:
    """Open a relay that knows machines 1 to 9 by `KEY`; no machine may have lost its key in the end."""
    store = MemoryStore({machine_id(number): KEY for number in range(1, 10)})
    async with open_relay_here(store, **limits) as here, trio.open_nursery() as nursery:
        kitchen = Kitchen(here, store, nursery)
        try:
            yield kitchen
        finally:
            kitchen.abort()
        nursery.cancel_scope.cancel()
    destroyed = [device.device_id for device in kitchen.devices if device.keys_destroyed]
    assert not destroyed, f"lost their keys: {destroyed}"

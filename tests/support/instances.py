"""Several instances of the relay in one process, joined by a broker in memory."""

from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from typing import Any

import trio

from brewos_relay.client.codec import decode
from brewos_relay.cluster.devices import DeviceTable
from brewos_relay.cluster.member import Member, open_member
from brewos_relay.cluster.view import ClusterView
from brewos_relay.core.limits import Limits
from brewos_relay.core.peer import MemoryEnd, memory_peer
from brewos_relay.core.recording import ActivityEvent
from brewos_relay.core.relay import Relay, open_relay
from brewos_relay.dialect import BREWOS
from brewos_relay.errors import PeerGone
from brewos_relay.instances import Description
from support.memory_broker import MemoryBroker

DEVICE_ID = "BRW-00000001"


@dataclass
class Instance:
    """One instance."""

    name: str
    relay: Relay
    table: DeviceTable
    member: Member
    view: ClusterView
    activity: list[ActivityEvent]
    reads: list[float]
    """When another instance told that it had written changes."""

    def device(self, device_id: str = DEVICE_ID) -> MemoryEnd:
        """Connect a device, which does not speak yet."""
        peer, end = memory_peer()
        self.relay.attach_device(device_id, peer)
        return end

    async def online_device(self, device_id: str = DEVICE_ID) -> MemoryEnd:
        """Connect a device that sends a whole state."""
        end = self.device(device_id)
        await end.receive()  # connected
        await end.send({"type": "status", "seq": 1, "machine": {"mode": "on"}})
        return end

    async def client(self, device_id: str = DEVICE_ID, **options: Any) -> MemoryEnd:
        """Connect a client as the server does: after the device was looked for."""
        await self.view.find(device_id)
        peer, end = memory_peer()
        self.relay.attach_client(device_id, peer, **options)
        return end


@asynccontextmanager
async def open_instances(
    *names: str, broker: MemoryBroker | None = None, limits: Limits | None = None
) -> AsyncIterator[list[Instance]]:
    """Open instances that share a broker."""
    broker = broker if broker is not None else MemoryBroker()
    async with AsyncExitStack() as stack:
        yield [await stack.enter_async_context(open_instance(name, broker, limits=limits)) for name in names]


@asynccontextmanager
async def open_instance(
    name: str,
    broker: MemoryBroker,
    *,
    limits: Limits | None = None,
    elapsed: Callable[[], float] = trio.current_time,
) -> AsyncIterator[Instance]:
    """Open one instance, and wait until it has joined."""
    table = DeviceTable()
    activity: list[ActivityEvent] = []
    reads: list[float] = []
    async with (
        open_relay(limits=limits, dialect=BREWOS, remote=table, on_activity=activity.append) as relay,
        open_member(
            relay,
            table,
            broker,
            instance=name,
            describe=lambda: Description(devices=relay.device_count),
            read_changes=lambda: reads.append(trio.current_time()),
            elapsed=elapsed,
        ) as member,
    ):
        while broker.reachable and member.connection is None:  # noqa: ASYNC110 - the clock jumps
            await trio.sleep(0.01)
        yield Instance(name, relay, table, member, ClusterView(relay, table, member), activity, reads)


async def connect(owner: Instance, other: Instance) -> tuple[MemoryEnd, MemoryEnd]:
    """Connect a device to one instance, and a client that has read its first messages to another."""
    device = await owner.online_device()
    await trio.sleep(0.1)
    client = await other.client()
    await types(client)
    return device, client


async def contents(end: MemoryEnd, *, within_s: float = 0.5) -> list[dict[str, Any]]:
    """Return the messages that arrive within a time, without keepalives."""
    found: list[dict[str, Any]] = []
    with trio.move_on_after(within_s):
        try:
            while True:
                content = decode(await end.receive())
                assert content is not None
                if content["type"] != "keepalive":
                    found.append(content)
        except PeerGone:
            pass
    return found


async def types(end: MemoryEnd, *, within_s: float = 0.5) -> list[str]:
    """Return the types of the messages that arrive within a time."""
    return [content["type"] for content in await contents(end, within_s=within_s)]

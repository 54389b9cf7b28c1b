"""A broker in memory, for instances in one process: for tests, and as the model of the real one."""

from collections import defaultdict, deque
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from typing import TypeVar

import trio

from brewos_relay.cluster.broker import (
    LEASE_S,
    SWAPS,
    SWAPS_WITHIN_S,
    BrokerError,
    Claim,
    ClaimResult,
    Located,
    Mail,
    OwnerChanged,
    Receive,
    Since,
)

Result = TypeVar("Result")


class MemoryBroker:
    """The state of a broker. Each call takes one checkpoint, as if it went over a network.

    `clock` gives the broker's time in s. Tests can cut connections, refuse new ones, stop and delay what
    passes, fill outboxes, and lose all data.
    """

    def __init__(self, clock: Callable[[], float] | None = None) -> None:
        self._clock = clock if clock is not None else trio.current_time
        self._leases: dict[str, tuple[float, bytes]] = {}
        self._owners: dict[str, Since] = {}
        self._swaps: dict[str, deque[float]] = defaultdict(lambda: deque(maxlen=SWAPS))
        self._budgets: dict[str, tuple[float, float]] = {}
        self._connections: dict[str, MemoryConnection] = {}
        self.reachable = True
        """Whether instances can connect."""
        self.unreachable: set[str] = set()
        """Instances that cannot connect."""
        self.full: set[str] = set()
        """Instances whose outbox takes nothing more."""

    @asynccontextmanager
    async def connect(self, instance: str, receive: Receive) -> AsyncIterator["MemoryConnection"]:
        """Connect an instance; see `Broker.connect`."""
        await trio.lowlevel.checkpoint()
        if not self.reachable or instance in self.unreachable:
            raise BrokerError("the broker cannot be reached")
        connection = MemoryConnection(self, instance, receive)
        self._connections[instance] = connection
        try:
            yield connection
        finally:
            connection.lose("it was closed")

    def cut(self, instance: str) -> None:
        """Cut the connection of an instance."""
        if (connection := self._connections.get(instance)) is not None:
            connection.lose("it was cut")

    def stop(self, instance: str) -> None:
        """Let nothing pass between an instance and the broker, without losing anything."""
        if (connection := self._connections[instance]).stopped is None:
            connection.stopped = trio.Event()

    def go_on(self, instance: str) -> None:
        """Let everything pass again, beginning with what had to wait."""
        if (connection := self._connections.get(instance)) is not None:
            connection.go_on()

    def delay_replies(self, instance: str) -> None:
        """Hold the replies to the calls of an instance; announcements and mail still arrive."""
        self._connections[instance].delayed = trio.Event()

    def pass_replies(self, instance: str) -> None:
        """Let the replies arrive that were held."""
        self._connections[instance].pass_replies()

    def flush(self) -> None:
        """Lose all data, as a broker without persistence does when it restarts. Subscriptions stay."""
        self._leases.clear()
        self._owners.clear()
        self._swaps.clear()
        self._budgets.clear()

    # What the connections call

    def now_us(self) -> int:
        """Return the time in µs."""
        return round(self._clock() * 1e6)

    def renew(self, instance: str, info: bytes) -> bool:
        """See `BrokerConnection.renew`."""
        was_valid = instance in self.instances()
        self._leases[instance] = (self._clock() + LEASE_S, info)
        return was_valid

    def resign(self, instance: str) -> None:
        """See `BrokerConnection.resign`."""
        self._leases.pop(instance, None)

    def instances(self) -> dict[str, bytes]:
        """See `BrokerConnection.instances`."""
        return {name: info for name, (until, info) in self._leases.items() if until > self._clock()}

    def is_connected(self, instance: str) -> bool:
        """Whether an instance has a mailbox now."""
        return instance in self._connections

    def claim(self, instance: str, claim: Claim) -> ClaimResult:
        """See `BrokerConnection.claim`."""
        since = Since(claim.at_us, instance)
        recorded, before = self._owners.get(claim.device_id), self._owner(claim.device_id)
        if before is not None and before > since:
            return ClaimResult(since, before)
        self._owners[claim.device_id] = since
        self._announce(OwnerChanged(claim.device_id, since, since), recorded)
        return ClaimResult(since, since)

    def release(self, device_id: str, since: Since) -> None:
        """See `BrokerConnection.release`."""
        if self._owners.get(device_id) == since:
            del self._owners[device_id]
            self._announce(OwnerChanged(device_id, since, None), None)

    def locate(self, device_id: str) -> Located:
        """See `BrokerConnection.locate`."""
        swaps = self._swaps[device_id]
        contested = len(swaps) == SWAPS and self._clock() - swaps[0] < SWAPS_WITHIN_S
        owner = self._owner(device_id)
        return Located(owner, contested and owner is not None)

    def note_swap(self, device_id: str) -> None:
        """See `BrokerConnection.note_swap`."""
        self._swaps[device_id].append(self._clock())

    def send(self, instance: str, payload: bytes) -> None:
        """See `BrokerConnection.send`."""
        if (connection := self._connections.get(instance)) is not None:
            connection.receive(Mail(payload))

    def take_budget(self, key: str, *, amount: float, per_s: float, burst: float) -> bool:
        """See `BrokerConnection.take_budget`."""
        now = self._clock()
        left, at = self._budgets.get(key, (burst, now))
        left = min(burst, left + (now - at) * per_s)
        if left < amount:
            self._budgets[key] = (left, now)
            return False
        self._budgets[key] = (left - amount, now)
        return True

    def refund_budget(self, key: str, *, amount: float, burst: float) -> None:
        """See `BrokerConnection.refund_budget`."""
        if (budget := self._budgets.get(key)) is not None:
            self._budgets[key] = (min(burst, budget[0] + amount), budget[1])

    def forget(self, connection: "MemoryConnection") -> None:
        """Forget a connection that was lost."""
        if self._connections.get(connection.instance) is connection:
            del self._connections[connection.instance]

    def _owner(self, device_id: str) -> Since | None:
        owner = self._owners.get(device_id)
        return owner if owner is not None and owner.instance in self.instances() else None

    def _announce(self, change: OwnerChanged, before: Since | None) -> None:
        for connection in list(self._connections.values()):
            lost = before is not None and before.instance == connection.instance != change.since.instance
            if lost or change.device_id in connection.subscriptions:
                connection.receive(change)


class MemoryConnection:
    """The connection of one instance to a `MemoryBroker`; see `BrokerConnection`."""

    def __init__(self, broker: MemoryBroker, instance: str, receive: Receive) -> None:
        self._broker = broker
        self._receive = receive
        self._lost = trio.Event()
        self._why = ""
        self.instance = instance
        self.subscriptions: set[str] = set()
        self._arrived: deque[Mail | OwnerChanged] = deque()
        self._outbox: deque[tuple[str, bytes]] = deque()
        self.stopped: trio.Event | None = None
        """Set when everything passes again; None while it does."""
        self.delayed: trio.Event | None = None
        """Set when replies arrive again; None while they do."""

    def receive(self, message: Mail | OwnerChanged) -> None:
        """Pass on a message at the next turn of the event loop, as a network would."""
        if self._lost.is_set():
            return
        if not self._arrived:
            trio.lowlevel.current_trio_token().run_sync_soon(self._pass_on)
        self._arrived.append(message)

    def _pass_on(self) -> None:
        while self._arrived and not self._lost.is_set() and self.stopped is None:
            self._receive(self._arrived.popleft())

    def go_on(self) -> None:
        """See `MemoryBroker.go_on`."""
        if self.stopped is not None:
            self.stopped.set()
            self.stopped = None
            while self._outbox and not self._lost.is_set():
                self._broker.send(*self._outbox.popleft())
            self._pass_on()

    def pass_replies(self) -> None:
        """See `MemoryBroker.pass_replies`."""
        if self.delayed is not None:
            self.delayed.set()
            self.delayed = None

    def lose(self, why: str) -> None:
        """Lose the connection."""
        if not self._lost.is_set():
            self._why = why
            self._lost.set()
            self._broker.forget(self)
            self.go_on()
            self.pass_replies()

    async def wait_lost(self) -> str:
        """See `BrokerConnection.wait_lost`."""
        await self._lost.wait()
        return self._why

    async def _call(self, function: Callable[[MemoryBroker], Result]) -> Result:
        await trio.lowlevel.checkpoint()
        if self.stopped is not None:
            await self.stopped.wait()
        self._check()
        result = function(self._broker)
        if self.delayed is not None:
            await self.delayed.wait()
            self._check()
        return result

    def _check(self) -> None:
        if self._lost.is_set():
            raise BrokerError(f"the connection to the broker was lost: {self._why}")

    async def now_us(self) -> int:
        """See `BrokerConnection.now_us`."""
        return await self._call(lambda broker: broker.now_us())

    async def renew(self, info: bytes) -> bool:
        """See `BrokerConnection.renew`."""
        return await self._call(lambda broker: broker.renew(self.instance, info))

    async def resign(self) -> None:
        """See `BrokerConnection.resign`."""
        await self._call(lambda broker: broker.resign(self.instance))

    async def instances(self) -> dict[str, bytes]:
        """See `BrokerConnection.instances`."""
        return await self._call(lambda broker: broker.instances())

    async def count_mailboxes(self, instances: Sequence[str]) -> list[bool]:
        """See `BrokerConnection.count_mailboxes`."""
        return await self._call(lambda broker: [broker.is_connected(instance) for instance in instances])

    async def claim(self, claims: Sequence[Claim]) -> list[ClaimResult]:
        """See `BrokerConnection.claim`."""
        return await self._call(lambda broker: [broker.claim(self.instance, claim) for claim in claims])

    async def release(self, device_id: str, since: Since) -> None:
        """See `BrokerConnection.release`."""
        await self._call(lambda broker: broker.release(device_id, since))

    async def locate(self, device_ids: Sequence[str]) -> list[Located]:
        """See `BrokerConnection.locate`."""
        return await self._call(lambda broker: [broker.locate(device_id) for device_id in device_ids])

    async def note_swap(self, device_id: str) -> None:
        """See `BrokerConnection.note_swap`."""
        await self._call(lambda broker: broker.note_swap(device_id))

    async def subscribe(self, device_id: str) -> Located:
        """See `BrokerConnection.subscribe`."""

        def subscribe(broker: MemoryBroker) -> Located:
            self.subscriptions.add(device_id)
            return broker.locate(device_id)

        return await self._call(subscribe)

    async def unsubscribe(self, device_id: str) -> None:
        """See `BrokerConnection.unsubscribe`."""
        await self._call(lambda broker: self.subscriptions.discard(device_id))

    def send(self, instance: str, payload: bytes) -> bool:
        """See `BrokerConnection.send`."""
        if self._lost.is_set() or self.instance in self._broker.full:
            return False
        if self.stopped is not None:
            self._outbox.append((instance, payload))
        else:
            self._broker.send(instance, payload)
        return True

    async def take_budget(self, key: str, *, amount: float, per_s: float, burst: float) -> bool:
        """See `BrokerConnection.take_budget`."""
        return await self._call(
            lambda broker: broker.take_budget(key, amount=amount, per_s=per_s, burst=burst)
        )

    async def refund_budget(self, key: str, *, amount: float, burst: float) -> None:
        """See `BrokerConnection.refund_budget`."""
        await self._call(lambda broker: broker.refund_budget(key, amount=amount, burst=burst))

"""Member: this instance as one of many, joined by a broker."""

import logging
from collections import deque
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from typing import Any, Final

import msgspec
import trio

from brewos_relay.cluster.broker import (
    RENEW_EVERY_S,
    Broker,
    BrokerConnection,
    BrokerError,
    Claim,
    Mail,
    OwnerChanged,
    Since,
)
from brewos_relay.cluster.broker_clock import BrokerClock, elapsed_s
from brewos_relay.cluster.devices import DeviceRecord, DeviceTable
from brewos_relay.cluster.envelopes import (
    Command,
    DeviceMessages,
    DeviceState,
    Envelope,
    LiveAnswer,
    LiveRequest,
    NotHere,
    Outcome,
    StateAnswer,
    StateRequest,
    Unwatch,
    Watch,
    pack,
    pack_state,
    state_in,
    unpack,
)
from brewos_relay.cluster.remote_clients import RemoteClients
from brewos_relay.cluster.remote_commands import ANSWER_S, RemoteCommands
from brewos_relay.cluster.remote_device import RemoteDevice
from brewos_relay.cluster.requests import Requests
from brewos_relay.core.relay import Relay
from brewos_relay.core.remote import RemoteOutcome
from brewos_relay.errors import RelayClosing
from brewos_relay.live_devices import live_device
from brewos_relay.messages import Message
from brewos_relay.vocabulary import now_ms

log = logging.getLogger(__name__)

AT_ONCE: Final = 500
"""How many devices are told to the broker at once."""
FOLLOW_WITHOUT_BROKER_S: Final = 20.0
"""How long devices of other instances count as online while the broker cannot be reached."""
_TICK_S: Final = 0.25
_AUDIT_EVERY_S: Final = 1.0
_RETRY_S: Final = (0.1, 0.2, 0.4, 0.8)
"""Pauses before connecting again; the last one repeats."""


class Member:
    """This instance of a cluster: claims its devices, follows those of its clients, and exchanges messages.

    Made by `open_member`. Without the broker, local devices and clients go on as before.
    """

    def __init__(
        self,
        relay: Relay,
        table: DeviceTable,
        broker: Broker,
        *,
        instance: str,
        describe: Callable[[], Mapping[str, Any]],
        elapsed: Callable[[], float] = elapsed_s,
    ) -> None:
        self.instance = instance
        self.connection: BrokerConnection | None = None
        """The connection to the broker, while it lives."""
        self.joined = trio.Event()
        """Set when the instance has joined the cluster for the first time."""
        self.reconnects = 0
        """How often the connection to the broker was lost."""
        self.unreadable = 0
        """Mail that was dropped because it could not be read."""
        self._relay = relay
        self._table = table
        self._broker = broker
        self.describe = describe
        """Returns what the instance tells about itself."""
        self._clock = BrokerClock(elapsed)
        self.commands = RemoteCommands(instance, self._clock, self.send)
        """Commands for devices of other instances."""
        self.requests = Requests(instance, self.send)
        """Questions to other instances."""
        self._swapped: deque[str] = deque(maxlen=1000)
        self._lost_at = trio.current_time()

    # Tasks

    async def run(self) -> None:
        """Stay connected to the broker until cancelled."""
        failures = 0
        while True:
            why = "it closed the connection"
            try:
                async with self._broker.connect(self.instance, self._receive) as connection:
                    await self._renew(connection)
                    failures = 0
                    why = await self._stay(connection)
            except* BrokerError as problems:
                why = "; ".join(map(str, problems.exceptions))
            if failures == 0:
                log.warning("the bus is unavailable: %s; trying again", why)
            self._lose()
            await trio.sleep(_RETRY_S[min(failures, len(_RETRY_S) - 1)])
            failures += 1

    async def _stay(self, connection: BrokerConnection) -> str:
        """Use a connection until it is lost; return why it was.

        **Owns:** a nursery with three tasks: `_keep_lease`, `_tell_broker` and `_audit`.
        """
        self.connection = connection
        self.joined.set()
        log.info("joined the cluster as %s", self.instance)
        self._announce_again()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(_until_lost, self._keep_lease, connection)
            nursery.start_soon(_until_lost, self._tell_broker, connection)
            nursery.start_soon(_until_lost, self._audit, connection)
            why = await connection.wait_lost()
            nursery.cancel_scope.cancel()
        return why

    def _lose(self) -> None:
        """Note that the connection is lost: nothing that was sent has to arrive."""
        if self.connection is not None:
            self.reconnects += 1
            self._lost_at = trio.current_time()
        self.connection = None
        self._clock.forget()
        self.commands.lose()
        self.requests.lose()

    def _announce_again(self) -> None:
        """Tell everything again on a new connection."""
        for record in self._table.records.values():
            record.claimed = record.rival = None
            record.subscribed = record.located = False
            if record.clients is not None:
                record.clients.renew_state()
            self._table.mark(record.device_id)

    async def _keep_lease(self, connection: BrokerConnection) -> None:
        while True:
            await trio.sleep(RENEW_EVERY_S)
            if not await self._renew(connection):
                self._announce_again()

    async def _renew(self, connection: BrokerConnection) -> bool:
        began_at = self._clock.begin()
        self._clock.end(began_at, await connection.now_us())
        return await connection.renew(msgspec.json.encode(self.describe()))

    async def _tell_broker(self, connection: BrokerConnection) -> None:
        """Tell the broker what has changed, in the order of the changes."""
        while True:
            records = await self._table.next_marked(AT_ONCE)
            await self._claim(connection, records)
            for record in records:
                await self._compare(connection, record)
                if record.is_needless(trio.current_time()):
                    self._table.records.pop(record.device_id, None)
            while self._swapped:
                await connection.note_swap(self._swapped.popleft())

    async def _claim(self, connection: BrokerConnection, records: Sequence[DeviceRecord]) -> None:
        """Claim the devices that came."""
        now = trio.current_time()
        claiming = [
            (record, record.connected_at)
            for record in records
            if record.connected_at is not None and (record.claimed is None or record.at_us is None)
        ]
        if not claiming:
            return
        results = await connection.claim(
            [
                Claim(record.device_id, age_us=round((now - connected_at) * 1e6), at_us=record.at_us)
                for record, connected_at in claiming
            ]
        )
        for (record, connected_at), result in zip(claiming, results, strict=True):
            record.claimed = result.since if result.won else None
            if record.connected_at != connected_at:
                self._table.mark(record.device_id)  # it went or came again meanwhile
                continue
            record.at_us = result.since.at_us
            self._relay.set_since(record.device_id, result.since.at_us)
            rival, record.rival = record.rival, None
            self._note_owner(record, max(result.owner, rival) if rival is not None else result.owner)

    async def _compare(self, connection: BrokerConnection, record: DeviceRecord) -> None:
        """Bring the broker's knowledge of one device up to date."""
        is_wanted = record.is_wanted(trio.current_time())
        if not is_wanted and record.remote is not None:
            self.send(record.remote.owner.instance, pack(Unwatch(self.instance, record.device_id)))
            record.unfollow()
        if not record.is_local and record.claimed is not None:
            claimed, record.claimed = record.claimed, None
            await connection.release(record.device_id, claimed)
        if is_wanted and not record.is_local and not record.subscribed:
            record.subscribed = True
            self._note_owner(record, (await connection.subscribe(record.device_id)).owner)
        elif is_wanted and not record.is_local and record.located and record.remote is None:
            self._note_owner(record, record.owner)
        elif not is_wanted and record.subscribed:
            record.subscribed = record.located = False
            await connection.unsubscribe(record.device_id)

    async def _audit(self, connection: BrokerConnection) -> None:
        """Check what no message tells: instances that ended, and answers that did not come."""
        audit_at = 0.0
        while True:
            await trio.sleep(_TICK_S)
            now = trio.current_time()
            self.commands.expire(now)
            for record in self._table.records.values():
                if record.clients is not None and record.clients.is_stale:
                    record.clients.send_state()
                if record.held_until and not record.is_wanted(now):
                    record.held_until = 0.0
                    self._table.mark(record.device_id)
            if now >= audit_at:
                audit_at = now + _AUDIT_EVERY_S
                await self._audit_instances(connection)

    async def _audit_instances(self, connection: BrokerConnection) -> None:
        records = list(self._table.records.values())
        followed = {record.remote.owner.instance for record in records if record.remote is not None}
        served = {
            name for record in records if record.clients is not None for name in record.clients.instances
        }
        names = sorted(followed | served)
        reachable = dict(zip(names, await connection.count_mailboxes(names), strict=True)) if names else {}
        now = trio.current_time()
        doubtful = []
        for record in records:
            for name in record.clients.instances if record.clients is not None else ():
                if not reachable.get(name, True):
                    self._drop_client(record, name)
            if (remote := record.remote) is not None:
                remote.is_reachable = reachable.get(remote.owner.instance, True)
                if not remote.is_reachable or (not remote.has_state and now - remote.asked_at >= ANSWER_S):
                    doubtful.append(record)
        for start in range(0, len(doubtful), AT_ONCE):
            some = doubtful[start : start + AT_ONCE]
            located = await connection.locate([record.device_id for record in some])
            for record, found in zip(some, located, strict=True):
                if record.remote is not None and not record.is_local:
                    self._note_owner(record, found.owner)

    # The owner of a device

    def _note_owner(self, record: DeviceRecord, owner: Since | None) -> None:
        """Take the owner of a device, from the broker."""
        if record.is_local:
            if owner is None:
                return
            if record.at_us is None:  # the result of the claim decides
                record.rival = max(owner, record.rival) if record.rival is not None else owner
            elif owner.instance != self.instance and owner > Since(record.at_us, self.instance):
                self._yield(record, owner)
            return
        record.owner, record.located = owner, True
        if owner is None or owner.instance == self.instance:
            record.unfollow()
            record.settle()
        elif record.is_wanted(trio.current_time()):
            self._follow(record, owner)

    def _yield(self, record: DeviceRecord, owner: Since) -> None:
        """End the connection here, because another instance has a newer one."""
        device_id = record.device_id
        if self._relay.is_lively(device_id):
            self._swapped.append(device_id)
        record.connected_at = record.at_us = record.claimed = record.clients = None
        record.owner, record.located = owner, True
        log.info("device %s has a newer connection on %s", device_id, owner.instance)
        if not record.is_wanted(trio.current_time()) or not self._follow(record, owner):
            self._relay.yield_device(device_id)
        self._table.mark(device_id)

    def _follow(self, record: DeviceRecord, owner: Since) -> bool:
        """Let the device on another instance stand for the device here; False if the relay is closing."""
        remote = record.remote
        if remote is None or remote.is_closed or remote.owner.instance != owner.instance:
            remote = RemoteDevice(record.device_id, owner, self.commands)
            try:
                record.attachment = self._relay.attach_remote_device(record.device_id, remote)
            except RelayClosing:
                return False
            record.remote = remote
        remote.owner = owner
        remote.asked_at = trio.current_time()
        self.send(owner.instance, pack(Watch(self.instance, record.device_id)))
        return True

    # Mail

    def send(self, instance: str, payload: bytes) -> bool:
        """Send an envelope to an instance; False if that is not possible now."""
        return self.connection is not None and self.connection.send(instance, payload)

    def _receive(self, message: Mail | OwnerChanged) -> None:
        try:
            if isinstance(message, OwnerChanged):
                self._take_change(message)
            elif (envelope := unpack(message.payload)) is not None:
                self._take(envelope)
            else:
                self.unreadable += 1
        except Exception:
            log.exception("a message of another instance failed")

    def _take_change(self, change: OwnerChanged) -> None:
        record = self._table.records.get(change.device_id)
        if record is None:
            return
        if change.owner is None:
            if record.rival == change.since:
                record.rival = None
            if not record.is_local and record.owner == change.since:
                self._note_owner(record, None)
        elif change.owner.instance != self.instance and (
            record.is_local or record.owner is None or change.owner > record.owner
        ):
            self._note_owner(record, change.owner)

    def _take(self, envelope: Envelope) -> None:
        match envelope:
            case DeviceMessages():
                self._take_messages(envelope)
            case Command():
                self._take_command(envelope)
            case Outcome():
                self.commands.take(envelope)
            case Watch():
                self._take_watch(envelope)
            case Unwatch():
                if (record := self._table.records.get(envelope.device_id)) is not None:
                    self._drop_client(record, envelope.sender)
            case NotHere():
                record = self._followed(envelope.device_id, envelope.sender)
                if record is not None and record.remote is not None:
                    record.remote.has_state = False  # the audit locates it
            case DeviceState():
                self._take_state(envelope)
            case StateRequest():
                content = self._relay.state_of(envelope.device_id)
                encoded = msgspec.json.encode(content) if content is not None else None
                self.send(envelope.sender, pack(StateAnswer(envelope.number, encoded)))
            case LiveRequest():
                self._answer_live(envelope)
            case StateAnswer() | LiveAnswer():
                self.requests.take(envelope)

    def _answer_live(self, request: LiveRequest) -> None:
        devices = {
            device_id: live
            for device_id in request.device_ids[:AT_ONCE]
            if (live := live_device(self._relay, device_id)).is_online or live.user_ids
        }
        self.send(request.sender, pack(LiveAnswer(request.number, devices)))

    def _take_watch(self, watch: Watch) -> None:
        record = self._table.records.get(watch.device_id)
        if record is None or not record.is_local:
            self.send(watch.sender, pack(NotHere(self.instance, watch.device_id)))
            return
        if record.clients is None:
            record.clients = RemoteClients(self.instance, watch.device_id, self.send, self._pack_state)
        self._relay.set_remote_audience(watch.device_id, record.clients)
        record.clients.add(watch.sender)

    def _pack_state(self, device_id: str) -> bytes:
        state, last_seen_ms = self._relay.export_state(device_id)
        return pack_state(self.instance, device_id, state, last_seen_ms)

    def _drop_client(self, record: DeviceRecord, instance: str) -> None:
        if record.clients is not None:
            record.clients.discard(instance)
            if not len(record.clients):
                record.clients = None
                self._relay.set_remote_audience(record.device_id, None)

    def _take_state(self, envelope: DeviceState) -> None:
        record = self._followed(envelope.device_id, envelope.sender)
        if record is not None and record.remote is not None and record.attachment is not None:
            record.remote.has_state = True
            seen_ms = envelope.last_seen_ms if envelope.last_seen_ms is not None else now_ms()
            self._relay.take_remote_state(record.attachment, state_in(envelope), seen_ms)
            record.settle()

    def _take_messages(self, envelope: DeviceMessages) -> None:
        record = self._followed(envelope.device_id, envelope.sender)
        if record is not None and record.remote is not None and record.remote.has_state:
            record.remote.receive([Message(*payload) for payload in envelope.messages])

    def _followed(self, device_id: str, sender: str) -> DeviceRecord | None:
        """Return the record of a device that is followed on an instance; tell the instance if it is not."""
        record = self._table.records.get(device_id)
        if record is None or record.remote is None:
            self.send(sender, pack(Unwatch(self.instance, device_id)))
            return None
        return record if record.remote.owner.instance == sender else None

    def _take_command(self, command: Command) -> None:
        outcome: RemoteOutcome
        now_us = self._clock.now_us()
        if now_us is None or now_us > command.deadline_us:
            outcome = "unknown"  # its sender has told that already
        elif command.not_after_ms <= now_ms():
            outcome = "expired"
        else:
            outcome = self._relay.deliver_remote_command(command.device_id, Message(command.payload))
        if command.number:
            self.send(command.sender, pack(Outcome(command.number, outcome)))

    async def watch_absence(self) -> None:
        """Tell clients that devices of other instances went, once the broker was away for too long."""
        while True:
            await trio.sleep(_AUDIT_EVERY_S)
            if self.connection is None and trio.current_time() - self._lost_at >= FOLLOW_WITHOUT_BROKER_S:
                for record in list(self._table.records.values()):
                    record.unfollow()

    async def resign(self) -> None:
        """End the lease, so that no device counts as connected to this instance."""
        if self.connection is not None:
            with suppress(BrokerError):
                await self.connection.resign()


async def _until_lost(function: Callable[[BrokerConnection], Any], connection: BrokerConnection) -> None:
    """Run a task of a connection. The end of the connection ends it."""
    try:
        await function(connection)
    except BrokerError:
        await trio.lowlevel.checkpoint()  # `_stay` sees the loss, and ends all tasks


@asynccontextmanager
async def open_member(
    relay: Relay,
    table: DeviceTable,
    broker: Broker,
    *,
    instance: str,
    describe: Callable[[], Mapping[str, Any]],
    elapsed: Callable[[], float] = elapsed_s,
) -> AsyncIterator[Member]:
    """Join a cluster with a relay that was opened with `remote=table`. Leaving the block resigns.

    **Owns:** a nursery with two tasks, `Member.run` and `Member.watch_absence`.
    """
    member = Member(relay, table, broker, instance=instance, describe=describe, elapsed=elapsed)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(member.run)
        nursery.start_soon(member.watch_absence)
        try:
            yield member
        finally:
            with trio.move_on_after(1.0) as deadline:
                deadline.shield = True
                await member.resign()
            nursery.cancel_scope.cancel()

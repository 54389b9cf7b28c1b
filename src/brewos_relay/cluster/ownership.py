"""Ownership: claims the devices of this instance, and follows those of its clients."""

import logging
from collections import deque
from collections.abc import Callable, Sequence
from typing import Final

import trio

from brewos_relay.cluster.broker import (
    RENEW_EVERY_S,
    BrokerConnection,
    BrokerError,
    Claim,
    OwnerChanged,
    Since,
)
from brewos_relay.cluster.broker_clock import BrokerClock
from brewos_relay.cluster.devices import DeviceRecord, DeviceTable
from brewos_relay.cluster.envelopes import Unwatch, Watch, pack
from brewos_relay.cluster.remote_commands import ANSWER_S, RemoteCommands
from brewos_relay.cluster.remote_device import RemoteDevice
from brewos_relay.core.relay import Relay
from brewos_relay.errors import RelayClosing
from brewos_relay.vocabulary import LONG_AGO

log = logging.getLogger(__name__)

AT_ONCE: Final = 500
"""How many devices are told to the broker at once."""
AUDIT_EVERY_S: Final = 1.0
"""How often instances and records are checked."""
_SETTLES_S: Final = RENEW_EVERY_S + 1.0
"""The time in which all instances have noticed that the broker has lost its data, and claim again."""
_MOST_SWAPS: Final = 1000


class Ownership:
    """Decides with the broker which connection stands for each device in the table.

    `send` sends an envelope to an instance, if that is possible now.
    """

    def __init__(
        self,
        relay: Relay,
        table: DeviceTable,
        instance: str,
        commands: RemoteCommands,
        clock: BrokerClock,
        send: Callable[[str, bytes], bool],
    ) -> None:
        self._relay = relay
        self._table = table
        self._instance = instance
        self._commands = commands
        self._clock = clock
        self._send = send
        self._swapped: deque[str] = deque(maxlen=_MOST_SWAPS)
        self._settles_at = LONG_AGO
        self._without_lease: dict[str, float] = {}
        """Since when instances with a mailbox have no lease (trio time)."""

    # Telling the broker

    def announce_again(self, *, is_new: bool, knows_lease: bool) -> None:
        """Tell everything again, since the connection is new, or the broker has lost its data.

        If it does not know the lease of this instance, it may not know the owners of devices either. Devices
        that are followed stay so until their instances have claimed them again.
        """
        for record in self._table.records.values():
            record.must_claim = record.is_local
            record.subscribed = record.located = False
            if record.remote is not None:
                if not knows_lease:
                    self._settles_at = trio.current_time() + _SETTLES_S
                if is_new:
                    record.remote.has_state = False  # messages may be missing until it comes again
            self._table.mark(record.device_id)
            if record.clients is not None:
                record.clients.renew_state()

    async def tell_broker(self, connection: BrokerConnection) -> None:
        """Tell the broker what has changed, until the connection is lost.

        **Owns:** a nursery for each pass, with a `_compare` for each device that needs more than a claim.
        """
        while True:
            records = await self._table.next_marked(AT_ONCE)
            await self._claim(connection, records)
            async with trio.open_nursery() as nursery:
                for record in records:
                    if self._needs_comparison(record):
                        nursery.start_soon(self._compare, connection, record)
            for record in records:
                self._table.forget_if_needless(record, trio.current_time())
            while self._swapped:
                await connection.note_swap(self._swapped[0])
                self._swapped.popleft()

    async def _claim(self, connection: BrokerConnection, records: Sequence[DeviceRecord]) -> None:
        """Claim the devices that came."""
        now = trio.current_time()
        claims: list[Claim] = []
        claiming: list[tuple[DeviceRecord, float]] = []
        for record in records:
            if record.connected_at is not None and record.must_claim:
                record.must_claim = False
                record.is_unsure = True
                if record.at_us is None:
                    now_us = self._clock.now_us()
                    assert now_us is not None, "it was measured when the instance joined"
                    record.at_us = now_us - round((now - record.connected_at) * 1e6)
                claims.append(Claim(record.device_id, record.at_us))
                claiming.append((record, record.connected_at))
        if not claims:
            return
        results = await connection.claim(claims)
        for (record, connected_at), result in zip(claiming, results, strict=True):
            record.is_unsure = False
            is_own = result.owner.instance == self._instance
            record.claimed = result.owner if is_own else None
            if record.connected_at != connected_at:  # it went or came again meanwhile
                self._table.mark(record.device_id)
                continue
            record.at_us = result.since.at_us
            if is_own and not result.won:  # an earlier connection here counts as newer: the clock was changed
                record.at_us = result.owner.at_us + 1
                record.must_claim = True
                self._table.mark(record.device_id)
            self._relay.set_since(record.device_id, record.at_us)
            self._note_owner(record, result.owner)

    def _needs_comparison(self, record: DeviceRecord) -> bool:
        is_followed = record.subscribed or record.remote is not None
        if record.is_local:
            return is_followed and not record.is_wanted(trio.current_time())
        is_claimed = record.claimed is not None or record.is_unsure
        return is_claimed or is_followed or record.is_wanted(trio.current_time())

    async def _compare(self, connection: BrokerConnection, record: DeviceRecord) -> None:
        """Bring the broker's knowledge of one device up to date.

        Its state may change during each call of the broker. Then it is marked, and compared again.
        """
        try:
            if not record.is_wanted(trio.current_time()):
                self._stop_following(record)
            if not record.is_local:
                await self._release(connection, record)
            if not record.is_wanted(trio.current_time()):
                if record.subscribed:
                    record.subscribed = record.located = False
                    await connection.unsubscribe(record.device_id)
            elif not record.is_local:
                await self._find(connection, record)
        except BrokerError:
            raise
        except Exception:
            log.exception("the bus cannot be told of device %s", record.device_id)

    async def _release(self, connection: BrokerConnection, record: DeviceRecord) -> None:
        """Release what the broker may have of a device that has gone."""
        if (claimed := record.claimed) is not None:
            await connection.release(record.device_id, claimed)
            record.claimed = None
        if record.is_unsure:
            owner = (await connection.locate([record.device_id]))[0].owner
            if owner is not None and owner.instance == self._instance:
                await connection.release(record.device_id, owner)
            record.is_unsure = False

    async def _find(self, connection: BrokerConnection, record: DeviceRecord) -> None:
        """Find the owner of a device that is wanted here, and follow it."""
        if not record.subscribed:
            record.subscribed = True
            changes = record.changes
            found = await connection.subscribe(record.device_id)
            if record.changes == changes and record.subscribed:
                self._note_found(record, found.owner)
        elif record.located and record.remote is None:
            self._note_owner(record, record.owner)

    def _stop_following(self, record: DeviceRecord) -> None:
        if record.remote is not None:
            self._send(record.remote.owner.instance, pack(Unwatch(self._instance, record.device_id)))
            record.unfollow()

    # The owner of a device

    def take_change(self, change: OwnerChanged) -> None:
        """Take the announcement of an owner, which the broker sends in the order of the changes."""
        if (record := self._table.records.get(change.device_id)) is None:
            return
        record.changes += 1
        if record.is_local:
            record.owner, record.located = change.owner, record.subscribed
        if change.owner is not None or not record.is_local:
            self._note_owner(record, change.owner)

    def _note_found(self, record: DeviceRecord, owner: Since | None) -> None:
        """Take the owner that the broker has found. It may not know it again yet."""
        if owner is not None or record.remote is None or trio.current_time() >= self._settles_at:
            self._note_owner(record, owner)

    def _note_owner(self, record: DeviceRecord, owner: Since | None) -> None:
        """Take the owner of a device, from the broker."""
        if record.is_local:
            if owner is None or owner.instance == self._instance or record.at_us is None:
                return  # without a claim, the result of the first one decides
            if owner > Since(record.at_us, self._instance):
                self._yield(record, owner)
            return
        record.owner, record.located = owner, True
        if owner is None or owner.instance == self._instance:
            record.unfollow()
            record.settle()
        elif record.is_wanted(trio.current_time()):
            self._follow(record, owner)

    def _yield(self, record: DeviceRecord, owner: Since) -> None:
        """End the connection here, because another instance has a newer one."""
        device_id = record.device_id
        if self._relay.is_lively(device_id):
            self._swapped.append(device_id)
        record.go()
        record.claimed = None  # the broker has the other one's instead
        record.owner, record.located = owner, True
        log.info("device %s has a newer connection on %s", device_id, owner.instance)
        self._table.mark(device_id)
        if not record.is_wanted(trio.current_time()) or not self._follow(record, owner):
            self._relay.yield_device(device_id, connected_at=self._connected_at(owner))

    def _follow(self, record: DeviceRecord, owner: Since) -> bool:
        """Let the device on another instance stand for the device here; False if the relay is closing."""
        remote = record.remote
        if remote is None or remote.is_closed or remote.owner.instance != owner.instance:
            remote = RemoteDevice(record.device_id, owner, self._commands)
            try:
                attachment = self._relay.attach_remote_device(
                    record.device_id, remote, connected_at=self._connected_at(owner)
                )
            except RelayClosing:
                record.settle()
                return False
            record.remote, record.attachment = remote, attachment
        remote.owner = owner
        remote.ask()
        watch = Watch(self._instance, record.device_id, remote.has_state, record.has_clients)
        self._send(owner.instance, pack(watch))
        return True

    def _connected_at(self, owner: Since) -> float:
        """Return when the connection of an owner was made (trio time)."""
        now_us = self._clock.now_us()
        return trio.current_time() - (now_us - owner.at_us) / 1e6 if now_us is not None else LONG_AGO

    # Checks

    def check(self, now: float, *, is_connected: bool) -> None:
        """Check the records, about once a second."""
        can_send = is_connected
        for record in list(self._table.records.values()):
            if record.held_until and record.held_until <= now:
                record.held_until = 0.0
                self._table.mark(record.device_id)
            if can_send and record.clients is not None and record.clients.is_stale:
                try:
                    record.clients.send_state()
                except Exception:
                    log.exception("the state of device %s cannot be sent", record.device_id)
                else:
                    can_send = not record.clients.is_stale  # too much waits already
            if not is_connected:
                if not record.is_wanted(now):
                    record.unfollow()
                self._table.forget_if_needless(record, now)

    def unfollow_all(self) -> None:
        """Tell clients that the devices of other instances went: the broker was away for too long."""
        for record in list(self._table.records.values()):
            record.unfollow()

    async def audit(self, connection: BrokerConnection) -> None:
        """Check what no message tells, instances that have ended and states that do not come."""
        while True:
            await trio.sleep(AUDIT_EVERY_S)
            await self._check_instances(connection)
            await self._look_again(connection)

    async def _check_instances(self, connection: BrokerConnection) -> None:
        """Drop clients on instances that are not connected; mark the devices of those as unreachable."""
        records = list(self._table.records.values())
        names = {record.remote.owner.instance for record in records if record.remote is not None}
        for record in records:
            if record.clients is not None:
                names.update(record.clients.instances)
        if not names:
            return
        asked_at, listed = trio.current_time(), sorted(names)
        counted = await connection.count_mailboxes(listed)
        reachable = dict(zip(listed, counted, strict=True))
        for name in await self._find_hung(connection, records):
            reachable[name] = False
        for record in records:
            if record.clients is not None:
                for name in record.clients.instances:
                    is_new = record.clients.has_asked_since(name, asked_at)
                    if not reachable.get(name, True) and not is_new:
                        self.drop_client(record, name)
            if record.remote is not None:
                record.remote.is_reachable = reachable.get(record.remote.owner.instance, True)

    async def _find_hung(self, connection: BrokerConnection, records: Sequence[DeviceRecord]) -> list[str]:
        """Return the instances whose lease has ended, although they have a mailbox: their process hangs.

        One of their devices shows it. If the broker has lost its data, the next renewal restores the lease.
        """
        samples = {
            record.remote.owner.instance: (record, record.changes)
            for record in records
            if record.remote is not None
        }
        if not samples:
            return []
        located = await connection.locate([record.device_id for record, _ in samples.values()])
        now, since = trio.current_time(), self._without_lease
        self._without_lease = {
            name: since.get(name, now)
            for (name, (record, changes)), found in zip(samples.items(), located, strict=True)
            if found.owner is None and record.changes == changes
        }
        return [name for name, at in self._without_lease.items() if now - at >= _SETTLES_S]

    async def _look_again(self, connection: BrokerConnection) -> None:
        """Find devices again whose instance is not known or reachable, or has not sent their state."""
        asked_before = trio.current_time() - ANSWER_S
        doubtful = [
            (record, record.changes)
            for record in self._table.records.values()
            if (remote := record.remote) is not None
            if not (remote.is_reachable and record.located)
            or (remote.awaits_state and remote.asked_at <= asked_before)
        ]
        for start in range(0, len(doubtful), AT_ONCE):
            some = doubtful[start : start + AT_ONCE]
            located = await connection.locate([record.device_id for record, _ in some])
            for (record, changes), found in zip(some, located, strict=True):
                if record.remote is not None and not record.is_local and record.changes == changes:
                    self._note_found(record, found.owner)

    def drop_client(self, record: DeviceRecord, instance: str) -> None:
        """Send no more messages of a device to an instance."""
        if record.clients is not None:
            record.clients.discard(instance)
            if not len(record.clients):
                record.clients = None
                self._relay.set_remote_audience(record.device_id, None)

    def doubt(self, device_id: str) -> None:
        """Release a device that another instance believes to be here, if the broker believes it too."""
        record = self._table.record(device_id)
        if not record.is_local:
            record.is_unsure = True
            self._table.mark(device_id)

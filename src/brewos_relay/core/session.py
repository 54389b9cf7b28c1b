"""DeviceSession: the connection of one device and its clients, owned by one nursery."""

import functools
import math
from collections.abc import Awaitable, Callable, Collection, Sequence
from typing import Protocol

import trio

from brewos_relay import messages
from brewos_relay.core.attachment import (
    Attachment,
    ClientAttachment,
    DeviceAttachment,
    RemoteDeviceAttachment,
    Renew,
)
from brewos_relay.core.audience import Audience
from brewos_relay.core.commands import Commands
from brewos_relay.core.counters import Counters
from brewos_relay.core.grant import FULL, ClientCounts, Grant
from brewos_relay.core.histories import Histories
from brewos_relay.core.limits import Limits
from brewos_relay.core.merging import without_seq
from brewos_relay.core.peer import SHUT_DOWN, Peer, Receive
from brewos_relay.core.peer_tasks import end_peer, own_peer
from brewos_relay.core.presence import Presence
from brewos_relay.core.rate_limits import LogLineLimits, open_bucket
from brewos_relay.core.recording import (
    EventKind,
    end_details_of,
    log_came,
    log_contested,
    log_replaced,
    log_went,
    receive_logged,
)
from brewos_relay.core.remote import RemoteAudience, RemoteOutcome, RemotePeer, RemotePresence
from brewos_relay.core.snapshot import KnownState, Snapshot, SnapshotState
from brewos_relay.core.throttle import DeviceFeed
from brewos_relay.delivery import Delivery
from brewos_relay.dialect import Policy
from brewos_relay.errors import CloseCode
from brewos_relay.messages import CommandHead, Message
from brewos_relay.vocabulary import LONG_AGO, Detail, now_ms


class SessionHost(Protocol):
    """The part of the relay that a session uses."""

    limits: Limits
    policy: Policy
    """The right that each message of a client needs, and which commands may wait."""
    counters: Counters
    attached: set[Attachment]
    """Every peer that has not ended."""
    client_counts: ClientCounts
    """How many clients each user has."""
    lines: LogLineLimits
    """Decides which lines about peers that come and go are logged."""
    logs_messages: bool
    """Whether the types of messages are logged."""
    histories: Histories
    """The measurements of devices."""
    remote: RemotePresence
    """Takes note of the devices that this relay has and wants."""

    def session_emptied(self, session: "DeviceSession") -> None:
        """Forget a session that has no peers. It takes no more peers from here on."""

    def device_seen(self, device_id: str, at_ms: int) -> None:
        """Report that a device came or went."""

    def record_activity(self, device_id: str, kind: EventKind, user_id: str | None, detail: Detail) -> None:
        """Record activity of a device or a client."""

    def record_command(self, device_id: str, user_id: str | None, head: CommandHead, outcome: str) -> bool:
        """Record a command of a client; False if such commands are ignored at present."""


class DeviceSession:
    """All that is live for one device: its connection, if it has one, and its clients.

    **Owns:** a nursery with a task for each attached peer that needs one, and the tasks that peers start
    besides, run by `own_peers`. Its peers that need no task share one.
    **Ends when:** the last peer has ended. If it is cancelled, it closes every peer.
    """

    __slots__ = (
        "_audience",
        "_clock",
        "_commands",
        "_feed",
        "_host",
        "_limits",
        "device_id",
        "nursery",
        "presence",
        "staying",
        "waiting",
        "watcher",
    )

    def __init__(
        self,
        device_id: str,
        host: SessionHost,
        *,
        snapshot: Snapshot | None = None,
        gone_at: float = LONG_AGO,
    ) -> None:
        limits, dialect, counters = host.limits, host.policy.dialect, host.counters
        self.device_id = device_id
        self.presence = Presence(
            device_id,
            limits=limits,
            dialect=dialect,
            snapshot=snapshot,
            gone_at=gone_at,
            histories=host.histories if host.histories.is_on else None,
        )
        self._host = host
        self._clock = trio.lowlevel.current_clock()  # reading it directly saves two calls
        self._limits = limits
        self._audience = Audience(limits=limits, dialect=dialect, counters=counters, lines=host.lines)
        self._feed = DeviceFeed(
            self.presence,
            self._audience,
            limits=limits,
            dialect=dialect,
            counters=counters,
            lines=host.lines,
            recorder=host,
        )
        self._commands = Commands(
            self.presence,
            self._audience,
            limits=limits,
            policy=host.policy,
            counters=counters,
            recorder=host,
        )
        self.nursery: trio.Nursery | None = None
        self.waiting: list[tuple[Attachment, Receive]] = []
        self.staying: list[Attachment] | None = None
        self.watcher: trio.lowlevel.Task | None = None

    @property
    def device(self) -> DeviceAttachment | None:
        """The connection that stands for the device, if it is online."""
        return self.presence.present

    @property
    def has_device(self) -> bool:
        """Whether the device is connected to this instance."""
        return self.presence.present is not None and self.presence.present.remote is None

    @property
    def client_count(self) -> int:
        """How many clients are attached."""
        return len(self._audience)

    @property
    def lagging_count(self) -> int:
        """How many clients lag."""
        return self._audience.lagging_count

    @property
    def pending_count(self) -> int:
        """How many commands wait for the device."""
        return self._commands.pending_count

    @property
    def clients(self) -> list[ClientAttachment]:
        """The attached clients, and departed clients that still have a pending command."""
        return list(dict.fromkeys((*self._audience, *self._commands.senders)))

    def is_contested(self) -> bool:
        """Whether two devices use this id, so that another connection has to be refused."""
        return self.presence.is_contested(trio.current_time())

    # Attaching and detaching

    def attach_device(
        self,
        peer: Peer,
        *,
        credential: bytes | None = None,
        network: str = "",
        anonymous: bool = False,
        known_state: KnownState | None = None,
    ) -> DeviceAttachment:
        """Attach a connection of the device. It stands for the device from its first frame on."""
        limits = self._limits
        self.presence.set_anonymous(anonymous)
        greeting = Delivery((messages.connected_device(now_ms()),))
        attachment = DeviceAttachment(
            self,
            peer,
            bucket=open_bucket(limits.device_rate, burst=limits.device_burst),
            credential=credential,
            network=network,
        )
        if known_state is not None:
            held_at = trio.current_time() - (now_ms() - known_state.at_ms) / 1000
            attachment.known_before = (known_state.message, held_at)
            # It came later than the connection of that state, whatever the clock says.
            attachment.after_us = known_state.since_us
            attachment.since_us = max(attachment.since_us, known_state.since_us + 1)
        self._host.counters.devices_attached += 1
        attachment.number = self._host.counters.devices_attached
        earlier = self.presence.arrive(attachment)
        if earlier is not None:
            earlier.close(CloseCode.REPLACED, "a newer connection replaced this one")
        attachment.deliver(greeting)
        attachment.ping()  # a device that only listens answers this, which is its first frame
        self._start(attachment)
        if attachment.heard:
            self._arrives(attachment)
        return attachment

    def attach_client(
        self,
        peer: Peer,
        *,
        expires_at_s: float = math.inf,
        renew: Renew | None = None,
        grant: Grant = FULL,
        network: str = "",
    ) -> ClientAttachment:
        """Attach a client, and tell it the known state of the device."""
        limits = self._limits
        client = ClientAttachment(
            self,
            peer,
            bucket=open_bucket(limits.client_rate, burst=limits.client_burst),
            expires_at_s=expires_at_s,
            renew=renew,
            grant=grant,
            network=network,
        )
        online = self.device is not None
        told = [
            messages.connected_client(client.id, self.device_id, device_online=online, timestamp_ms=now_ms())
        ]
        if not self.presence.snapshot.empty:
            told += self.presence.state()
        is_first = not self._audience
        self._host.counters.clients_attached += 1
        client.number = self._host.counters.clients_attached
        self._host.client_counts.add(grant)
        log_came(client, self._host.lines)
        self._record("client_came", client, {})
        client.deliver(Delivery(told), keep=True)
        self._audience.join(client)
        self._start(client)
        if is_first:
            self._host.remote.device_wanted(self.device_id)
        return client

    def _start(self, attachment: DeviceAttachment | ClientAttachment) -> None:
        if not isinstance(attachment, RemoteDeviceAttachment):
            self._host.attached.add(attachment)
        receive: Receive = attachment.receive
        if self._host.logs_messages:
            receive = functools.partial(receive_logged, attachment, receive)
        if self.nursery is None:
            self.waiting.append((attachment, receive))
        else:
            self.nursery.start_soon(own_peer, self, attachment, receive, name=self.device_id)

    def end_peer(self, attachment: Attachment) -> None:
        """Start the task that closes a peer, which stayed without one until now."""
        end_peer(self, attachment)

    def start_soon(self, async_fn: Callable[..., Awaitable[object]], *args: object) -> None:
        """Start a task in the session's nursery; it must not raise."""
        assert self.nursery is not None
        self.nursery.start_soon(async_fn, *args)

    def detach(self, attachment: Attachment) -> None:
        """Detach a peer that has ended; see `PeerOwner.detach`."""
        end = attachment.end = attachment.end or SHUT_DOWN
        if isinstance(attachment, RemoteDeviceAttachment):
            self.remote_device_went(attachment)
        elif isinstance(attachment, DeviceAttachment):
            self._host.counters.count_end("device", end)
            if not self._device_went(attachment):
                log_went(attachment, self._host.lines, stood_for_device=False)
        else:
            assert isinstance(attachment, ClientAttachment)
            self._audience.leave(attachment)
            if not self._audience:
                self._host.remote.device_unwanted(self.device_id)
            self._host.client_counts.remove(attachment.grant)
            self._host.counters.count_end("client", end)
            log_went(attachment, self._host.lines)
            self._record("client_went", attachment, end_details_of(attachment))
        self._audience.settle()
        if not (self._audience or self.presence.present or self.presence.arriving):
            self._commands.forget()
            self._host.session_emptied(self)

    def give_up(self) -> None:
        """End before a peer was attached; see `PeerOwner.give_up`."""
        self._host.session_emptied(self)

    def forget(self, attachment: Attachment) -> None:
        """Forget a peer whose resources are closed; see `PeerOwner.forget`."""
        self._host.attached.discard(attachment)
        attachment.mark_ended()

    def _arrives(self, device: DeviceAttachment) -> bool:
        """Let a connection that gave its first sign of life stand for the device, if it may."""
        now = trio.current_time()
        if device.spoke_at is None:
            device.spoke_at = now
        if device is not self.presence.arriving or not self.presence.may_replace(now):
            return False
        self._device_came(now)
        return True

    def _device_came(self, now: float) -> None:
        """Let the arriving connection stand for the device, and tell the clients."""
        replaced = self.presence.replace(now)
        if replaced is not None:
            self._feed.end(replaced)
        self._feed.begin()
        device = self.presence.present
        assert device is not None
        self._record_seen()
        known_before, device.known_before = device.known_before, None
        if replaced is None:
            self.presence.restore(known_before, now)
            log_came(device, self._host.lines)
            self._host.record_activity(self.device_id, "online", None, {})
            self._audience.tell(messages.DEVICE_ONLINE)
        else:
            if replaced.remote is not None:
                self.presence.continue_remote(known_before, now)
            log_replaced(device, self._host.lines)
            replaced.close(CloseCode.REPLACED, "a newer connection replaced this one")
            if self.presence.is_contested(now):
                log_contested(device, self._host.lines)
        self._commands.restart_requests()
        if self.client_count or self._audience.remote is not None:
            self._commands.ask_for_state(device, now)
        self._commands.flush(device, now)
        self._host.remote.device_came(self.device_id, device.attached_at)

    def _device_went(self, device: DeviceAttachment) -> bool:
        """Handle the end of a connection of the device; False if it did not stand for the device."""
        if not self.presence.leave(device):
            return False
        self._feed.end(device)
        self._audience.remote = None
        self._host.remote.device_went(self.device_id)
        self.presence.mark_gone(trio.current_time())
        self._record_seen()
        log_went(device, self._host.lines)
        self._host.record_activity(self.device_id, "offline", None, end_details_of(device))
        self._audience.tell(messages.DEVICE_OFFLINE)
        return True

    def end_device(self, unless: Collection[bytes | None], *, code: int, reason: str) -> None:
        """Close the connections of the device with other credentials, and ignore their messages."""
        for connection in (self.presence.present, self.presence.arriving):
            if connection is None or connection.remote is not None:
                continue
            if connection.credential not in unless:
                connection.close(code, reason)
                if connection is self.presence.present:
                    self._feed.drop_held()
                self._device_went(connection)
        self.presence.forget_state(key_ended=True)  # it was the state of a device with another key

    def _record(self, kind: EventKind, client: ClientAttachment, detail: Detail) -> None:
        """Record activity of a client."""
        self._host.record_activity(self.device_id, kind, client.grant.user_id, detail)

    def _record_seen(self) -> None:
        self.presence.last_seen_ms = seen_ms = now_ms()
        self._host.device_seen(self.device_id, seen_ms)

    # Other instances

    def attach_remote_device(
        self, peer: RemotePeer, *, connected_at: float = LONG_AGO
    ) -> RemoteDeviceAttachment:
        """Let a connection on another instance stand for the device; see `Relay.attach_remote_device`."""
        device = RemoteDeviceAttachment(self, peer)
        before = self._yield_to(device, connected_at)
        device.has_state = before is not None
        self._feed.begin()
        self._start(device)
        if before is None:
            self._audience.tell(messages.DEVICE_ONLINE)
        self._commands.restart_requests()
        self._commands.flush(device, trio.current_time())
        return device

    def yield_device(self, *, connected_at: float = LONG_AGO) -> bool:
        """Let a connection on another instance stand for the device, with no clients here that follow it.

        Return whether a lively connection had to end for that.
        """
        device, lively = self.presence.present, self.presence.is_lively(trio.current_time())
        if device is not None and device.remote is None:
            self._yield_to(None, connected_at)
        return lively

    def _yield_to(
        self, device: RemoteDeviceAttachment | None, connected_at: float
    ) -> DeviceAttachment | None:
        """Replace the connection that stands for the device; its messages no longer count.

        Nor do those of one that does not stand for it yet, and is older than the new one.
        """
        arriving = self.presence.arriving
        if arriving is not None and arriving.attached_at < connected_at:
            self.presence.leave(arriving)
            arriving.close(CloseCode.REPLACED, "a newer connection replaced this one")
        before = self.presence.yield_to(device)
        if before is not None:
            self._feed.end(before)
            self._audience.remote = None
            before.close(CloseCode.REPLACED, "a newer connection replaced this one")
            if before.remote is None:
                self._host.remote.device_went(self.device_id)
        return before

    def take_remote_state(
        self, device: RemoteDeviceAttachment, state: SnapshotState, last_seen_ms: int
    ) -> None:
        """Take the state that the device's instance knows, and tell the clients."""
        if device is not self.presence.present:
            return
        self.presence.take_state(state)
        self.presence.last_seen_ms = last_seen_ms
        had_state, device.has_state = device.has_state, True
        if not self._audience or self.presence.snapshot.empty:
            return
        if had_state or self.presence.snapshot.stale_groups():  # the clients may have missed messages
            self._audience.tell(*map(without_seq, self.presence.state()))
        else:
            self._audience.tell(*self.presence.snapshot.messages())

    def take_from_remote_device(self, device: RemoteDeviceAttachment, received: Sequence[Message]) -> float:
        """Take messages of a connection of the device on another instance."""
        if device is self.presence.present:
            self._audience.settle()
            counted_bytes = self._host.counters.bytes_from_devices
            self._feed.pass_on(device, received)
            self._audience.settle()  # adds their bytes, which the device's instance counts
            self._host.counters.bytes_from_devices = counted_bytes
        return 0.0

    def remote_device_went(self, device: RemoteDeviceAttachment) -> None:
        """Tell clients that a device on another instance went, if this connection stands for it."""
        if self.presence.leave(device):
            self._feed.end(device)
            self.presence.mark_gone(trio.current_time())
            self.presence.last_seen_ms = now_ms()
            self._audience.tell(messages.DEVICE_OFFLINE)

    def set_remote_audience(self, audience: RemoteAudience | None) -> bool:
        """Send the messages of the device to clients on other instances as well; False if it is not here."""
        device = self.presence.present
        if device is None or device.remote is not None:
            return False
        self._audience.remote = audience
        return True

    def ask_for_state(self) -> None:
        """Ask the device for its state, as when it comes to clients that wait for it."""
        if self.has_device and self.device is not None:
            self._commands.ask_for_state(self.device, trio.current_time())

    def take_remote_command(self, message: Message) -> RemoteOutcome:
        """Deliver a command of a client on another instance to the device."""
        device = self.presence.present
        if device is None or device.remote is not None:
            return "device_offline"
        return self._commands.deliver_remote(device, message, trio.current_time())

    # Messages

    def take_from_device(self, device: DeviceAttachment, received: Sequence[Message]) -> float:
        """Take messages of a connection of the device, if it stands for the device."""
        device.heard = True
        if device is not self.presence.present and not self._arrives(device):
            return 0.0
        feed = self._feed
        feed.counters.received_from_devices += len(received)
        if device.bucket is not None:
            now = self._clock.current_time()
            if feed.throttle is not None or device.bucket.take(len(received), now):
                return feed.hold(device, device.bucket, received, now)
        feed.pass_on(device, received)
        return 0.0

    def take_from_client(self, client: ClientAttachment, received: Sequence[Message]) -> float:
        """Take messages of a client; return for how many seconds to pause reading."""
        client.heard = True
        if not received:
            return 0.0
        now = self._clock.current_time()
        client.received += len(received)
        self._commands.take(client, received, now)
        return client.bucket.take(len(received), now) if client.bucket is not None else 0.0

    # Periodic checks

    def resume(self, now: float, unseen_s: float) -> None:
        """Start every silence timer again after a pause. `unseen_s` of it is missing on Trio's clock."""
        self.presence.resume(now, unseen_s)
        self._audience.resume(now, unseen_s)

    def run_checks(self, now: float) -> None:
        """Run the periodic checks; called about once a second."""
        if self.presence.run_checks(now, self._host.counters):
            self._device_came(now)
        if self.device is not None:
            self._feed.release(self.device, now)
        if told := self.presence.take_restored_state(now):
            self._audience.tell(*told)
            if self._audience.remote is not None:
                self._audience.remote.renew_state()
        self._commands.expire(now)
        self.presence.check_state(now)
        self._audience.run_checks(now, self.presence.state)

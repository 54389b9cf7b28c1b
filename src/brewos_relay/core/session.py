"""DeviceSession: all that is live for one device, owned by one nursery."""

import functools
import logging
import math
from collections.abc import Awaitable, Callable, Collection, Mapping, Sequence
from contextlib import suppress
from typing import Final, Literal, NamedTuple, Protocol, TypeAlias

import trio

from brewos_relay import messages
from brewos_relay.core.attachment import Attachment, ClientAttachment, DeviceAttachment, Renew
from brewos_relay.core.audience import Audience
from brewos_relay.core.commands import Commands
from brewos_relay.core.counters import Counters
from brewos_relay.core.grant import FULL, ClientCounts, Grant
from brewos_relay.core.limits import Limits
from brewos_relay.core.merging import unnumbered
from brewos_relay.core.peer import LEAVING, Peer, Receive
from brewos_relay.core.presence import Presence
from brewos_relay.core.rate_limits import LineLimits, TokenBucket, open_bucket
from brewos_relay.core.recording import (
    LEFT,
    end_of,
    log_came,
    log_contested,
    log_invalid,
    log_replaced,
    log_throttled,
    log_went,
    receive_logged,
)
from brewos_relay.core.snapshot import DeviceInfo, KnownState, SmallSnapshot, Snapshot
from brewos_relay.core.throttle import Throttle
from brewos_relay.dialect import Dialect, Policy
from brewos_relay.errors import CloseCode
from brewos_relay.messages import Delivery, Message
from brewos_relay.vocabulary import iso_time, now_ms

Happening: TypeAlias = Literal[
    "online", "offline", "client_came", "client_went", "command", "throttled", "throttle_ended"
]
"""The kinds of activity that are recorded."""


class ActivityEvent(NamedTuple):
    """Activity of a device or of its clients, for the history that its users can read."""

    device_id: str
    kind: Happening
    user_id: str | None
    """The user who caused it, if any."""
    detail: Mapping[str, str]
    anonymous: bool = False
    """Whether the device registered itself and has no user."""
    info: DeviceInfo | None = None
    """What a device that went offline has told about itself."""


class Host(Protocol):
    """What a session asks of the relay that it is part of."""

    limits: Limits
    policy: Policy
    """What each message of a client needs, and which commands may wait."""
    counters: Counters
    attached: set[Attachment]
    """Every peer whose goodbye is not said yet."""
    client_counts: ClientCounts
    """How many clients each user has."""
    lines: LineLimits
    """Which lines about peers that come and go are logged."""
    logs_messages: bool
    """Whether each pass of messages is logged."""

    def session_emptied(self, session: "DeviceSession") -> None:
        """Learn that nobody is attached any more; the session takes nobody on from here."""

    def device_seen(self, device_id: str, at_ms: int) -> None:
        """Learn that a device came or went."""

    def note(self, device_id: str, kind: Happening, user_id: str | None, detail: Mapping[str, str]) -> None:
        """Learn that something happened that somebody may want to look up."""


log = logging.getLogger(__name__)

_THROTTLES_NOTED_EVERY_S: Final = 60.0
"""How often it is noted that a device is throttled: its timeline keeps room for other things."""


class DeviceSession:
    """Everything that is live for one device: its connection, if it has one, and its clients.

    **Owns:** a nursery with one task for each attached peer, and what those peers start beside their reading.
    **Ends when:** the last peer has ended. Cancelled, it closes every peer with a goodbye.
    """

    __slots__ = (
        "_audience",
        "_commands",
        "_heard_before",
        "_host",
        "_limits",
        "_nursery",
        "_presence",
        "_show_at",
        "_waiting",
        "anonymous",
        "device_id",
        "gone_at",
        "last_seen_ms",
        "snapshot",
    )

    def __init__(
        self, device_id: str, host: Host, *, snapshot: Snapshot | None = None, gone_at: float = -math.inf
    ) -> None:
        self.device_id = device_id
        self.last_seen_ms: int | None = None
        self.snapshot = snapshot if snapshot is not None else Snapshot(host.policy.dialect)
        self.anonymous = False
        """Whether nobody vouches for the device: little is kept of it, and nothing once it has gone."""
        self.gone_at = gone_at
        """When the device went (trio time)."""
        self._host = host
        self._limits = host.limits
        self._heard_before = 0  # how many messages came from the device before its present connection
        self._presence = Presence(host.limits)
        self._commands = Commands(
            limits=host.limits, policy=host.policy, counters=host.counters, note_activity=host.note
        )
        self._audience = Audience(
            limits=host.limits, dialect=host.policy.dialect, counters=host.counters, lines=host.lines
        )
        self._show_at = math.inf  # when clients are told of a state from before an absence
        self._nursery: trio.Nursery | None = None
        self._waiting: list[Attachment] = []  # attached before the nursery was open

    @property
    def _dialect(self) -> Dialect:
        return self._host.policy.dialect

    @property
    def device(self) -> DeviceAttachment | None:
        """The connection that stands for the device, if it is there."""
        return self._presence.present

    @property
    def client_count(self) -> int:
        """How many clients are attached."""
        return len(self._audience)

    @property
    def lagging_count(self) -> int:
        """How many of them are too far behind to be told everything."""
        return self._audience.lagging_count

    @property
    def pending_count(self) -> int:
        """How many commands wait for the device."""
        return self._commands.pending_count

    @property
    def clients(self) -> list[ClientAttachment]:
        """Everybody who is attached as a client, and whoever has left with a command of theirs waiting."""
        return list(dict.fromkeys((*self._audience, *self._commands.senders)))

    def is_contested(self) -> bool:
        """Whether two machines fight for this device id, so that no other connection is to be let in."""
        return self._presence.is_contested(trio.current_time())

    async def run(self) -> None:
        """Keep the session until its last peer has ended."""
        async with trio.open_nursery() as nursery:
            self._nursery = nursery
            waiting, self._waiting = self._waiting, []
            for attachment in waiting:
                nursery.start_soon(self._keep, attachment)
        self._nursery = None  # it leads back here
        if not waiting:  # whoever it was for could not be attached
            self._host.session_emptied(self)

    # Coming and going

    def attach_device(
        self,
        peer: Peer,
        *,
        credential: bytes | None = None,
        network: str = "",
        anonymous: bool = False,
        known_state: KnownState | None = None,
    ) -> DeviceAttachment:
        """Take a connection of the device on. It stands for the device from its first frame on."""
        limits = self._limits
        self.set_anonymous(anonymous)
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
        self._host.counters.devices_attached += 1
        attachment.number = self._host.counters.devices_attached
        earlier = self._presence.arrive(attachment)
        if earlier is not None:
            earlier.close(CloseCode.REPLACED, "a newer connection took this one's place")
        attachment.deliver(greeting)
        attachment.ping()  # whoever only listens answers this, and is there
        self._start(attachment)
        if attachment.heard:
            self._arrives(attachment)
        return attachment

    def set_anonymous(self, anonymous: bool) -> None:
        """Keep little of the device's state if nobody vouches for the device, from its next message on."""
        if anonymous != self.anonymous:
            self.anonymous = anonymous
            self.snapshot = SmallSnapshot(self._dialect) if anonymous else self.snapshot.grown()

    def attach_client(
        self,
        peer: Peer,
        *,
        expires_at_s: float = math.inf,
        renew: Renew | None = None,
        grant: Grant = FULL,
        network: str = "",
    ) -> ClientAttachment:
        """Take a client on, and tell it what is known of the device."""
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
        if not self.snapshot.empty:
            told += self.state()
        self._host.counters.clients_attached += 1
        client.number = self._host.counters.clients_attached
        self._host.client_counts.add(grant)
        log_came(client, self._host.lines)
        self._note("client_came", client, {})
        client.deliver(Delivery(told), keep=True)
        self._audience.join(client)
        self._start(client)
        return client

    def _start(self, attachment: Attachment) -> None:
        self._host.attached.add(attachment)
        if self._nursery is None:
            self._waiting.append(attachment)
        else:
            self._nursery.start_soon(self._keep, attachment)

    def start_soon(self, async_fn: Callable[..., Awaitable[object]], *args: object) -> None:
        """Start a task in the session's nursery; it must not raise."""
        assert self._nursery is not None
        self._nursery.start_soon(async_fn, *args)

    async def _keep(self, attachment: Attachment) -> None:
        """Own a peer from its first message to its goodbye. Its failure is its own."""
        receive: Receive
        if isinstance(attachment, DeviceAttachment):
            receive = functools.partial(self._take_from_device, attachment)
        else:
            assert isinstance(attachment, ClientAttachment)
            receive = functools.partial(self._take_from_client, attachment)
        if self._host.logs_messages:
            receive = functools.partial(receive_logged, attachment, receive)
        try:
            try:
                attachment.end = await attachment.peer.run(attachment, receive) or attachment.end or LEFT
            except* Exception as errors:
                attachment.fail(errors)
            finally:
                try:
                    self._detach(attachment)
                finally:
                    await attachment.peer.aclose()
        except* Exception:
            with suppress(Exception):  # there may be no memory for it
                log.exception("a peer of device %s could not say goodbye", self.device_id)
        finally:
            self._host.attached.discard(attachment)
            attachment.note_ended()

    def _detach(self, attachment: Attachment) -> None:
        end = attachment.end = attachment.end or LEAVING
        if isinstance(attachment, DeviceAttachment):
            self._host.counters.note_end("device", end)
            if not self._device_went(attachment):
                log_went(attachment, self._host.lines, stood_for_device=False)
        else:
            assert isinstance(attachment, ClientAttachment)
            self._audience.leave(attachment)
            self._host.client_counts.remove(attachment.grant)
            self._host.counters.note_end("client", end)
            log_went(attachment, self._host.lines)
            self._note("client_went", attachment, end_of(attachment))
        self._audience.settle()
        if not (self._audience or self._presence.present or self._presence.arriving):
            self._commands.forget()
            self._host.session_emptied(self)

    def _arrives(self, device: DeviceAttachment) -> bool:
        """Let a connection that has given its first sign of life stand for the device, if it may."""
        now = trio.current_time()
        if device.spoke_at is None:
            device.spoke_at = now
        if device is not self._presence.arriving or not self._presence.may_replace(now):
            return False
        self._device_came(now)
        return True

    def _device_came(self, now: float) -> None:
        """Let the connection that has just spoken for the first time stand for the device."""
        replaced = self._presence.replace(now)
        if replaced is not None:
            self._end_throttle(replaced)
            replaced.received = self._audience.heard - self._heard_before
        self._heard_before = self._audience.heard
        device = self._presence.present
        assert device is not None
        self._note_seen()
        known_before, device.known_before = device.known_before, None
        if replaced is None:
            self._restore(known_before, now)
            log_came(device, self._host.lines)
            self._host.note(self.device_id, "online", None, {})
            self._audience.tell(messages.DEVICE_ONLINE)
        else:
            log_replaced(device, self._host.lines)
            replaced.close(CloseCode.REPLACED, "a newer connection took this one's place")
            if self._presence.is_contested(now):
                log_contested(device, self._host.lines)
        if self.client_count:
            self._commands.ask_for_state(device, now)
        self._commands.flush(self, device, now)

    def _restore(self, known_before: tuple[Message, float] | None, now: float) -> None:
        """Go on from what was known before the device's absence, which may have ended since.

        A machine says its whole state on the first connection of a boot, and when it has changed; else only
        after minutes. Clients are told the earlier state once a machine that says all of it has had the time
        to do so.
        """
        if (known := self.snapshot.known(now) or known_before) is None:
            return
        message, held_at = known
        if self.snapshot.restore(message, at=held_at):
            is_recent = 0 <= now - held_at < self._limits.restored_state_s
            self._show_at = now + self._dialect.says_state_within_s if is_recent else math.inf

    def _show_restored(self) -> None:
        """Tell the clients what was known before the absence, with what the device has said since."""
        self._show_at = math.inf
        if self.snapshot.show():
            self._audience.tell(*map(unnumbered, self.state()))

    def forget_state(self) -> None:
        """Forget the state of an absent device, as when it is another user's from now on."""
        if self.device is None:
            self.snapshot = (SmallSnapshot if self.anonymous else Snapshot)(self._dialect)
            for arriving in filter(None, (self._presence.arriving,)):
                arriving.known_before = None

    def _device_went(self, device: DeviceAttachment) -> bool:
        """Believe nothing more that a connection of the device says; False if it did not stand for it."""
        if not self._presence.leave(device):
            return False
        self._end_throttle(device)
        device.received = self._audience.heard - self._heard_before
        self._show_at = math.inf
        self.gone_at = trio.current_time()
        self.snapshot.age_s(self.gone_at)  # nobody may look again for long
        self._note_seen()
        log_went(device, self._host.lines)
        self._host.note(self.device_id, "offline", None, end_of(device))
        self._audience.tell(messages.DEVICE_OFFLINE)
        return True

    def end_device(self, unless: Collection[bytes | None], *, code: int, reason: str) -> None:
        """Close the device's connections whose credential is none of these; they have no say any more."""
        for connection in (self._presence.present, self._presence.arriving):
            if connection is not None and connection.credential not in unless:
                connection.close(code, reason)
                if connection.throttle is not None:
                    connection.throttle.drop_all()
                self._device_went(connection)
        self.forget_state()  # it was that of another key

    def _note(self, kind: Happening, client: ClientAttachment, detail: Mapping[str, str]) -> None:
        """Note what a client did."""
        self._host.note(self.device_id, kind, client.grant.user_id, detail)

    def _note_seen(self) -> None:
        self.last_seen_ms = now_ms()
        self._host.device_seen(self.device_id, self.last_seen_ms)

    # Messages

    def _take_from_device(self, device: DeviceAttachment, received: Sequence[Message]) -> float:
        """Pass on what the device says; a connection that does not stand for it has no say."""
        device.heard = True
        if device is not self._presence.present and not self._arrives(device):
            return 0.0
        self._host.counters.received_from_devices += len(received)
        if device.bucket is not None:
            now = trio.current_time()
            if device.throttle is not None or device.bucket.take(len(received), now):
                return self._take_too_much(device, device.bucket, received, now)
        self._pass_on(device, received)
        return 0.0

    def _pass_on(self, device: DeviceAttachment, received: Sequence[Message]) -> None:
        """Note what the device says of its state, and tell every client."""
        note = self.snapshot.note
        invalid = size_bytes = 0
        for message in received:
            size_bytes += len(message.payload)
            head = message.peek()
            if head is None:
                invalid += 1
            else:
                note(message, head.type, head.seq)
        if invalid:
            self._host.counters.invalid += invalid
            log_invalid(device, received, self._host.lines)
            received = [message for message in received if message.peek() is not None]
            size_bytes = sum(len(message.payload) for message in received)
        if received:
            self._audience.broadcast(Delivery(received), size_bytes)

    def _take_too_much(
        self, device: DeviceAttachment, bucket: TokenBucket, received: Sequence[Message], now: float
    ) -> float:
        """Hold what a device sends beyond its rate, and pass on as much as its rate allows."""
        throttle = device.throttle
        count, size_bytes = len(received), sum(len(message.payload) for message in received)
        if throttle is None:
            allowed = bucket.level(now) + count
            bucket.owe(0, now)
            throttle = device.throttle = self._throttle(device, allowed % 1, now)
            self._pass_on(device, received[: int(allowed)])
            received = received[int(allowed) :]
        else:
            bucket.owe(count, now)
        heads = [(message, head) for message in received if (head := message.peek()) is not None]
        counters = self._host.counters
        if len(heads) < len(received):
            counters.invalid += len(received) - len(heads)
            log_invalid(device, received, self._host.lines)
        counters.bytes_from_devices += sum(len(message.payload) for message, _ in heads)
        self._heard_before -= len(heads)
        throttle.hold(heads)
        self._release(device, now)
        return throttle.count_read(count, size_bytes, now)

    def _throttle(self, device: DeviceAttachment, allowed: float, now: float) -> Throttle:
        """Begin to hold what a device sends; `allowed` messages may be passed on at once."""
        self._host.counters.throttled += 1
        if now - device.throttle_noted_at >= _THROTTLES_NOTED_EVERY_S:
            device.throttle_noted_at = now
            log_throttled(device, self._host.lines)
            self._host.note(self.device_id, "throttled", None, {})
        limits = self._limits
        return Throttle(
            self._dialect,
            rate_per_s=limits.device_rate,
            burst=limits.device_burst,
            allowed=allowed,
            anonymous=self.anonymous,
            now=now,
        )

    def _release(self, device: DeviceAttachment, now: float) -> None:
        """Pass on what is held of a device, as far as its rate allows; end that once it is slow again."""
        throttle, bucket = device.throttle, device.bucket
        if throttle is None or bucket is None:
            return
        self._pass_on_held(device, throttle.release(now))
        if not len(throttle) and bucket.is_full(now):
            self._end_throttle(device)

    def _pass_on_held(self, device: DeviceAttachment, released: Sequence[Message]) -> None:
        if released:
            self._heard_before += len(released)
            self._pass_on(device, released)
            self._audience.settle()  # counts their bytes, which were counted when they came
            self._host.counters.bytes_from_devices -= sum(len(message.payload) for message in released)

    def _end_throttle(self, device: DeviceAttachment) -> None:
        """Pass on all that is held of a device, and hold no more."""
        throttle, device.throttle = device.throttle, None
        if throttle is None:
            return
        self._pass_on_held(device, throttle.release_all())
        counters = self._host.counters
        counters.merged += throttle.merged
        counters.over_rate += throttle.dropped
        if throttle.began_at == device.throttle_noted_at:
            self._host.note(self.device_id, "throttle_ended", None, throttle.summary(trio.current_time()))

    def _take_from_client(self, client: ClientAttachment, received: Sequence[Message]) -> float:
        client.heard = True
        if not received:
            return 0.0
        now = trio.current_time()
        client.received += len(received)
        self._commands.take(self, client, received, now)
        return client.bucket.take(len(received), now) if client.bucket is not None else 0.0

    def state(self) -> list[Message]:
        """Give what a client has to be told of the device: whether it is there, and what is known of it."""
        return [self.status(), *self.snapshot.messages()]

    def status(self) -> Message:
        """Say whether the device is there, and how old what is known of it is."""
        age_s = self.snapshot.age_s(trio.current_time())
        return messages.device_status(
            self.device_id,
            online=self.device is not None,
            last_seen=iso_time(self.last_seen_ms),
            snapshotAgeMs=round(age_s * 1000) if math.isfinite(age_s) else None,
            **({"staleGroups": stale} if (stale := self.snapshot.stale_groups()) else {}),
        )

    def snapshot_messages(self) -> list[Message]:
        """Give what is known of the device's state, its status first."""
        return self.snapshot.messages()

    # What time brings

    def resume(self, now: float, unseen_s: float) -> None:
        """Judge no peer by a pause that has just ended; `unseen_s` of it Trio's clock has not counted."""
        self._presence.resume(now)
        self._audience.resume(now, unseen_s)
        self.snapshot.count_pause(unseen_s)
        self.gone_at -= unseen_s

    def run_checks(self, now: float) -> None:
        """Do what is due by time; called about once a second."""
        if self._presence.run_checks(now, self._host.counters):
            self._device_came(now)
        if self.device is not None:
            self._release(self.device, now)
        if now >= self._show_at:
            self._show_restored()
        self._commands.expire(self, now)
        self.snapshot.age_s(now)
        self._audience.run_checks(now, self.state)
        if self.device is None and now - self.gone_at >= self._limits.snapshot_s:
            self.snapshot = (SmallSnapshot if self.anonymous else Snapshot)(self._dialect)

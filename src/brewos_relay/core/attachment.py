"""Attachment: one peer in a session, and what the session knows of it."""

import logging
import math
import secrets
import time
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from typing import Protocol, TypeAlias

import trio

from brewos_relay.core.grant import FULL, Grant
from brewos_relay.core.peer import Peer, PeerEnd
from brewos_relay.core.peer_tasks import run_beside
from brewos_relay.core.rate_limits import TokenBucket
from brewos_relay.core.remote import RemotePeer, TakeOutcome
from brewos_relay.delivery import Delivery
from brewos_relay.errors import CloseCode
from brewos_relay.messages import Message
from brewos_relay.vocabulary import LONG_AGO

log = logging.getLogger(__name__)

_SAME_END_S = 1.0
"""Two expiry times closer than this are the same time, read by two clocks."""

Renew: TypeAlias = Callable[[str], int]
"""Takes a fresh token of the same user and returns when it expires, in s since the epoch. Raises
TokenRejected."""


class AttachmentHost(Protocol):
    """The part of a session that an attachment uses."""

    device_id: str

    def start_soon(self, async_fn: Callable[..., Awaitable[object]], *args: object) -> None:
        """Start a task in the session's nursery; it must not raise."""

    def end_peer(self, attachment: "Attachment") -> None:
        """Start the task that closes a peer, which stayed without one until now."""

    def take_from_device(self, device: "DeviceAttachment", received: Sequence[Message]) -> float:
        """Take messages of a connection of the device; return for how many seconds to pause reading."""

    def take_from_remote_device(self, device: "RemoteDeviceAttachment", received: Sequence[Message]) -> float:
        """Take messages of a connection of the device on another instance."""

    def take_from_client(self, client: "ClientAttachment", received: Sequence[Message]) -> float:
        """Take messages of a client; return for how many seconds to pause reading."""

    def remote_device_went(self, device: "RemoteDeviceAttachment") -> None:
        """Tell clients that a device on another instance went, if this connection stands for it."""


class Attachment:
    """One peer in a session, a device or a client. It starts the tasks of its peer."""

    __slots__ = (
        "_ended",
        "attached_at",
        "bucket",
        "end",
        "heard",
        "heard_at",
        "network",
        "number",
        "peer",
        "pinged_at",
        "received",
        "session",
    )

    def __init__(
        self, session: AttachmentHost, peer: Peer, *, bucket: TokenBucket | None, network: str = ""
    ) -> None:
        self.session = session
        self.peer = peer
        self.bucket = bucket
        self.network = network
        """The network of the peer, as the caller of the relay names it."""
        self.attached_at = trio.current_time()
        self.heard_at = self.attached_at
        """When the peer last gave a sign of life, as of the last check (trio time)."""
        self.heard = False
        """Whether the peer has given a sign of life since the last check."""
        self.pinged_at = self.attached_at
        """When the peer was last pinged (trio time)."""
        self.end: PeerEnd | None = None
        """How the peer ended, or how the relay asked it to end."""
        self.number = 0
        """The number of this connection, counted for devices and for clients."""
        self.received = 0
        """How many messages it has sent."""
        self._ended: trio.Event | bool = False

    def close(self, code: int, reason: str) -> None:
        """Ask the peer to end with this close code."""
        if self.end is None:
            self.end = PeerEnd("relay", code, reason)
        try:
            self.peer.close(code, reason)
        except Exception:
            with suppress(Exception):
                log.exception("a peer of device %s cannot be closed", self.session.device_id)

    def deliver(self, delivery: Delivery, *, keep: bool = False) -> bool:
        """Deliver messages to the peer. With `keep`, also to one that lags. A peer that fails is closed."""
        try:
            return self.peer.deliver(delivery, keep)
        except Exception as error:
            self.fail(error)
            return False

    def fail(self, error: Exception) -> None:
        """Close the peer because of an exception. No other peer ends, and nothing is raised."""
        self.close(CloseCode.INTERNAL_ERROR, "the relay failed")
        with suppress(Exception):  # logging needs memory, and there may be none
            log.error("a peer of device %s failed", self.session.device_id, exc_info=error)

    def start_soon(self, async_fn: Callable[..., Awaitable[object]], *args: object) -> None:
        """Start a task of the peer beside its `run`; see `peer.Tasks`."""
        self.session.start_soon(run_beside, self.fail, async_fn, args)

    def end_peer(self, end: PeerEnd) -> None:
        """End the peer, which stayed without a task until now; see `peer.Tasks`."""
        self.session.end_peer(self)
        self.end = end

    def ping(self) -> None:
        """Ask the peer for a sign of life."""
        try:
            if self.peer.ping():
                self.heard = True
        except Exception as error:
            self.fail(error)

    def silent_s(self, now: float) -> float:
        """Return for how many seconds the peer has given no sign of life."""
        if self.heard:
            self.heard = False
            self.heard_at = now
        return now - self.heard_at

    def restart_silence(self, now: float) -> None:
        """Start the silence timer of the peer again, after a pause in reading."""
        self.heard_at = self.pinged_at = now

    async def wait_closed(self) -> None:
        """Wait until the peer has ended and all its resources are closed."""
        if self._ended is False:
            self._ended = trio.Event()
        if isinstance(self._ended, trio.Event):
            await self._ended.wait()
        else:
            await trio.lowlevel.checkpoint()

    def mark_ended(self) -> None:
        """Mark the peer as ended with all its resources closed, which ends `wait_closed`."""
        waiting, self._ended = self._ended, True
        if isinstance(waiting, trio.Event):
            waiting.set()


class DeviceAttachment(Attachment):
    """A connection of a device. It stands for the device from its first frame on."""

    __slots__ = ("after_us", "credential", "known_before", "remote", "sent_invalid", "since_us", "spoke_at")

    def __init__(
        self,
        session: AttachmentHost,
        peer: Peer,
        *,
        bucket: TokenBucket | None,
        credential: bytes | None = None,
        network: str = "",
    ) -> None:
        super().__init__(session, peer, bucket=bucket, network=network)
        self.remote: RemotePeer | None = None
        """The peer, if the device is connected to another instance."""
        self.credential = credential
        """What the connection authenticated with, for `Relay.end_device`."""
        self.spoke_at: float | None = None
        """When its first frame was read (trio time)."""
        self.sent_invalid = False
        """Whether it has sent an unreadable message."""
        self.known_before: tuple[Message, float] | None = None
        """The last whole state of the device and when it was current (trio time), until the device is
        present."""
        self.after_us = 0
        """When an earlier connection came; this one came later."""
        self.since_us = time.time_ns() // 1000
        """When it came, in µs since the epoch. A stored state of an earlier connection never replaces one of
        a later connection."""

    def receive(self, received: Sequence[Message]) -> float:
        """Take messages of the device; see `peer.Receive`."""
        return self.session.take_from_device(self, received)


class RemoteDeviceAttachment(DeviceAttachment):
    """A connection of a device on another instance. It has no credential, rate or signs of life."""

    __slots__ = ("has_state",)

    def __init__(self, session: AttachmentHost, peer: RemotePeer) -> None:
        super().__init__(session, peer, bucket=None)
        self.remote = peer
        self.has_state = False
        """Whether the clients know a state of this connection, or of one that it has replaced."""

    def go(self) -> None:
        """Close the peer, because the device went. Clients are told at once."""
        self.session.remote_device_went(self)
        self.close(CloseCode.GOING_AWAY, "the device is not on the other instance any more")

    def send_command(self, message: Message, take_outcome: TakeOutcome | None, not_after_ms: float) -> None:
        """Send a message to the device; see `RemotePeer.send_command`. A peer that fails is closed."""
        assert self.remote is not None
        try:
            self.remote.send_command(message, take_outcome, not_after_ms)
        except Exception as error:
            self.fail(error)
            if take_outcome is not None:
                take_outcome("unknown")

    def receive(self, received: Sequence[Message]) -> float:
        """Take messages of the device; see `peer.Receive`."""
        return self.session.take_from_remote_device(self, received)


class ClientAttachment(Attachment):
    """A client, its token and its grant."""

    __slots__ = (
        "access_ends_at",
        "due_at",
        "expires_at",
        "grant",
        "id",
        "renew",
        "unrecorded_until",
        "warned",
    )

    def __init__(
        self,
        session: AttachmentHost,
        peer: Peer,
        *,
        bucket: TokenBucket | None,
        expires_at_s: float = math.inf,
        renew: Renew | None = None,
        grant: Grant = FULL,
        network: str = "",
    ) -> None:
        super().__init__(session, peer, bucket=bucket, network=network)
        self.id = secrets.token_hex(8)
        self.access_ends_at = math.inf
        """When its access ends (trio time)."""
        self.due_at = LONG_AGO
        """When its access and its token have to be checked next (trio time). A change sets this to now."""
        self.set_grant(grant)
        self.unrecorded_until = LONG_AGO
        """Until when its commands are known not to be recorded (trio time)."""
        self.expires_at = math.inf
        """When its token expires (trio time)."""
        self.renew = renew
        self.warned = False
        """Whether it was told that its token expires soon."""
        self.set_token_end(expires_at_s)

    def receive(self, received: Sequence[Message]) -> float:
        """Take messages of the client; see `peer.Receive`."""
        return self.session.take_from_client(self, received)

    def set_grant(self, grant: Grant) -> None:
        """Apply a grant from the next message on. A client whose access was ended keeps no access."""
        if self.access_ends_at > LONG_AGO:
            self.grant = grant
            left_s = grant.until_s - time.time()
            self.access_ends_at = trio.current_time() + left_s if left_s < math.inf else math.inf
            self.due_at = LONG_AGO

    def end_access(self, code: int, reason: str) -> None:
        """Close the client. Its messages, and its commands that wait, no longer reach the device."""
        self.access_ends_at = LONG_AGO
        self.close(code, reason)

    def count_pause(self, unseen_s: float) -> None:
        """Move both expiry times closer by `unseen_s`, which is missing on Trio's clock."""
        self.expires_at -= unseen_s
        self.access_ends_at -= unseen_s
        self.due_at = LONG_AGO

    def set_token_end(self, expires_at_s: float) -> None:
        """Set when the client's token expires, in s since the epoch."""
        expires_at = trio.current_time() + expires_at_s - time.time()
        if expires_at > self.expires_at + _SAME_END_S:  # a browser may send the same token again
            self.warned = False
        self.expires_at = expires_at
        self.due_at = LONG_AGO

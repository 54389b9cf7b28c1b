"""DeviceSession: all that is live for one device, owned by one nursery."""

import functools
import logging
import secrets
import time
from collections.abc import Awaitable, Callable, Sequence
from datetime import UTC, datetime
from typing import Protocol

import trio

from brewos_relay import messages
from brewos_relay.core.limits import Limits
from brewos_relay.core.peer import Peer
from brewos_relay.errors import CloseCode
from brewos_relay.messages import Delivery, Message

log = logging.getLogger(__name__)

_STATE_REQUESTS = frozenset({"request_state", "request_full_status"})


class Counters:
    """What a relay has done since it was opened."""

    __slots__ = (
        "invalid",
        "left_out",
        "oversized",
        "received_from_clients",
        "received_from_devices",
        "undeliverable",
    )

    def __init__(self) -> None:
        self.received_from_devices = 0
        self.received_from_clients = 0
        self.invalid = 0
        """Messages dropped since they were no object (or map) with a text `type`."""
        self.oversized = 0
        """Messages of devices that were read past since they were too large."""
        self.left_out = 0
        """Messages that a peer did not get since it was too far behind."""
        self.undeliverable = 0
        """Messages of clients for a device that was absent or did not take them."""


class Host(Protocol):
    """What a session asks of the relay that it is part of."""

    limits: Limits
    counters: Counters
    attached: set["Attachment"]
    """Every peer whose goodbye is not said yet."""

    def session_emptied(self, session: "DeviceSession") -> None:
        """Learn that nobody is attached any more; the session takes nobody on from here."""

    def device_seen(self, device_id: str, at_ms: int) -> None:
        """Learn that a device came or went."""


class Attachment:
    """One peer in a session, device or client, and where the peer starts its tasks."""

    __slots__ = ("_ended", "id", "is_device", "peer", "session")

    def __init__(self, session: "DeviceSession", peer: Peer, *, is_device: bool) -> None:
        self.session = session
        self.peer = peer
        self.is_device = is_device
        self.id = secrets.token_hex(8)
        self._ended: trio.Event | bool = False

    def close(self, code: int, reason: str) -> None:
        """Ask the peer to end with this close code."""
        try:
            self.peer.close(code, reason)
        except Exception:
            log.exception("a peer of device %s cannot be closed", self.session.device_id)

    def deliver(self, delivery: Delivery) -> bool:
        """Deliver to the peer; one that fails is closed."""
        try:
            return self.peer.deliver(delivery)
        except Exception as error:
            self.fail(error)
            return False

    def fail(self, error: Exception) -> None:
        """Close the peer because of an exception, which is nobody else's concern."""
        log.error("a peer of device %s failed", self.session.device_id, exc_info=error)
        self.close(CloseCode.INTERNAL_ERROR, "the relay failed")

    def start_soon(self, async_fn: Callable[..., Awaitable[object]], *args: object) -> None:
        """Start a task of the peer, beside its reading; see `peer.Tasks`."""
        self.session.start_soon(self._run_beside, async_fn, args)

    async def _run_beside(self, async_fn: Callable[..., Awaitable[object]], args: tuple[object, ...]) -> None:
        try:
            await async_fn(*args)
        except* Exception as errors:
            self.fail(errors)

    async def wait_closed(self) -> None:
        """Wait until the peer has ended and everything of it is closed."""
        if self._ended is False:
            self._ended = trio.Event()
        if isinstance(self._ended, trio.Event):
            await self._ended.wait()
        else:
            await trio.lowlevel.checkpoint()

    def ended(self) -> None:
        """Note that everything of the peer is closed."""
        waiting, self._ended = self._ended, True
        if isinstance(waiting, trio.Event):
            waiting.set()


class DeviceSession:
    """Everything that is live for one device: its connection, if it has one, and its clients.

    **Owns:** a nursery with one task for each attached peer, and what those peers start beside their reading.
    **Ends when:** the last peer has ended. Cancelled, it closes every peer with a goodbye.
    """

    __slots__ = ("_clients", "_device", "_host", "_nursery", "_waiting", "device_id", "last_seen_ms")

    def __init__(self, device_id: str, host: Host) -> None:
        self.device_id = device_id
        self.last_seen_ms: int | None = None
        self._host = host
        self._device: Attachment | None = None
        self._clients: dict[Attachment, Callable[[Delivery], bool]] = {}
        self._nursery: trio.Nursery | None = None
        self._waiting: list[Attachment] = []  # attached before the nursery was open

    @property
    def online(self) -> bool:
        """Whether the device is there."""
        return self._device is not None

    @property
    def client_count(self) -> int:
        """How many clients are attached."""
        return len(self._clients)

    async def run(self) -> None:
        """Keep the session until its last peer has ended."""
        async with trio.open_nursery() as nursery:
            self._nursery = nursery
            waiting, self._waiting = self._waiting, []
            for attachment in waiting:
                nursery.start_soon(self._keep, attachment)

    def attach_device(self, peer: Peer) -> Attachment:
        """Take a device's connection on; an earlier one is replaced and closed."""
        attachment = Attachment(self, peer, is_device=True)
        replaced, self._device = self._device, attachment
        self._note_seen()
        attachment.deliver(Delivery((messages.connected_device(_now_ms()),)))
        if replaced is not None:
            log.info("device %s replaced its earlier connection", self.device_id)
            replaced.close(CloseCode.REPLACED, "a newer connection took this one's place")
        else:
            log.info("device %s came", self.device_id)
            self._broadcast(Delivery((messages.DEVICE_ONLINE,)))
        self._start(attachment)
        return attachment

    def attach_client(self, peer: Peer) -> Attachment:
        """Take a client on and tell it whether the device is there."""
        attachment = Attachment(self, peer, is_device=False)
        self._clients[attachment] = peer.deliver
        log.info("client %s of device %s came", attachment.id, self.device_id)
        greeting = messages.connected_client(
            attachment.id, self.device_id, device_online=self.online, timestamp_ms=_now_ms()
        )
        attachment.deliver(Delivery((greeting,)))
        self._start(attachment)
        return attachment

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
        take = self._take_from_device if attachment.is_device else self._take_from_client
        try:
            try:
                await attachment.peer.run(attachment, functools.partial(take, attachment))
            except* Exception as errors:
                attachment.fail(errors)
            finally:
                self._detach(attachment)
                await attachment.peer.aclose()
        except* Exception:
            log.exception("a peer of device %s could not say goodbye", self.device_id)
        finally:
            self._host.attached.discard(attachment)
            attachment.ended()

    def _detach(self, attachment: Attachment) -> None:
        if attachment is self._device:
            self._device = None
            self._note_seen()
            log.info("device %s went", self.device_id)
            self._broadcast(Delivery((messages.DEVICE_OFFLINE,)))
        elif self._clients.pop(attachment, None) is not None:
            log.info("client %s of device %s went", attachment.id, self.device_id)
        else:
            return  # a device that was replaced: it had left already
        if self._device is None and not self._clients:
            self._host.session_emptied(self)

    def _note_seen(self) -> None:
        self.last_seen_ms = _now_ms()
        self._host.device_seen(self.device_id, self.last_seen_ms)

    def _take_from_device(self, attachment: Attachment, received: Sequence[Message]) -> None:
        """Pass on what the device says; a connection that was replaced has no say."""
        if attachment is not self._device:
            return
        counters = self._host.counters
        counters.received_from_devices += len(received)
        for message in received:
            if message.peek_type() is None:
                valid = [m for m in received if m.peek_type() is not None]
                counters.invalid += len(received) - len(valid)
                received = valid
                break
        if received and self._clients:
            self._broadcast(Delivery(received))

    def _broadcast(self, delivery: Delivery) -> None:
        for client, deliver in self._clients.items():
            try:
                if not deliver(delivery):
                    self._host.counters.left_out += len(delivery.messages)
            except Exception as error:
                client.fail(error)

    def _take_from_client(self, client: Attachment, received: Sequence[Message]) -> None:
        """Pass on what a client asks of the device, or tell it why not."""
        self._host.counters.received_from_clients += len(received)
        commands: list[Message] = []
        answers: list[Message] = []
        for message in received:
            text = message.as_text()
            message_type = text.peek_type() if text is not None else None
            if text is None or message_type is None:
                self._host.counters.invalid += 1
                answers.append(messages.INVALID_MESSAGE)
            elif len(text.payload) > self._host.limits.client_message_bytes:
                answers.append(messages.MESSAGE_TOO_BIG)
            elif self._device is None:
                self._host.counters.undeliverable += 1
                answers.append(self._answer_for_absent(message_type))
            else:
                commands.append(text)
        if commands and self._device is not None and not self._device.deliver(Delivery(commands)):
            self._host.counters.undeliverable += len(commands)
            answers.append(messages.DEVICE_BUSY)
        if answers:
            client.deliver(Delivery(answers))

    def _answer_for_absent(self, message_type: str) -> Message:
        if message_type in _STATE_REQUESTS:
            return messages.device_status(self.device_id, last_seen=_iso_time(self.last_seen_ms))
        return messages.device_offline_error(self.device_id)


def _now_ms() -> int:
    return time.time_ns() // 1_000_000


def _iso_time(at_ms: int | None) -> str | None:
    if at_ms is None:
        return None
    at = datetime.fromtimestamp(at_ms / 1000, UTC)
    return at.isoformat(timespec="milliseconds").replace("+00:00", "Z")

"""WebSocketConnection: a core Peer, made of a transport and a frame parser."""

import contextlib
import logging
import math
from collections.abc import Awaitable, Callable, Sequence
from typing import Final

import trio

from brewos_relay.core.counters import Counters
from brewos_relay.core.limits import Limits
from brewos_relay.core.peer import STAYS, PeerEnd, Receive, Tasks
from brewos_relay.core.rate_limits import TokenBucket
from brewos_relay.delivery import Delivery
from brewos_relay.errors import CloseCode
from brewos_relay.messages import Message
from brewos_relay.wire.frames import (
    PING_FRAME,
    FrameParser,
    Parsed,
    StreamEnd,
    encode_close,
    encode_delivery,
    encode_pongs,
)
from brewos_relay.wire.poller import PolledConnection, Poller
from brewos_relay.wire.transport import Transport

log = logging.getLogger(__name__)

_SMALL_AT_ONCE: Final = 200.0
_SMALL_PER_S: Final = 50.0
"""The rate of control frames and small fragments of one peer. They are no messages, but cost as much."""
_SMALL_IN_A_READ: Final = 4
"""Fewer of them in one read are not counted: the read itself costs more."""

_MOST_PAUSE_S: Final = 1.0
"""The longest pause for them. A machine takes its connection for lost if a ping is not answered in 8 s."""
_SKIPPED_BYTES_PER_S: Final = 1024.0 * 1024
"""The rate at which messages that are too large are skipped."""

_ANONYMOUS_MESSAGE_BYTES: Final = 4 * 1024
"""The largest message of an anonymous device. A machine sends 2 KiB at most."""
_ANONYMOUS_OUTBOX_BYTES: Final = 8 * 1024
"""The outbox of an anonymous device. Without apps, it is sent little but pongs."""
_FAILED: Final = StreamEnd(CloseCode.INTERNAL_ERROR, "the relay failed", by_peer=False)
"""Made in advance: there may be no memory for it later."""

_UNREAD = Counters()
"""Nothing reads these; they serve connections that are opened without counters."""


def _ignore(_messages: Sequence[Message]) -> float:
    return 0.0


class WebSocketConnection(PolledConnection):
    """A WebSocket after its handshake.

    **Owns:** its transport, a writer task while the outbox is not empty, and a timer task while a message is
    incomplete.

    **Ends when:** the peer closes it or violates the protocol, `close` was called, or it is cancelled; then
    `aclose` sends the close frame. A connection that is held does not end before `Limits.safe_to_end_at`,
    unless the peer has gone.
    """

    __slots__ = (
        "_closing",
        "_counters",
        "_ending",
        "_gone",
        "_initial",
        "_is_held",
        "_limits",
        "_opened_at",
        "_overdue",
        "_parser",
        "_pinged_at",
        "_poller",
        "_receive",
        "_round_trip_s",
        "_sent_close_frame",
        "_skipped",
        "_small",
        "_spoke_at",
        "_stays",
        "_stream_ending",
        "_tasks",
        "_transport",
    )

    def __init__(
        self,
        transport: Transport,
        parser: FrameParser,
        *,
        poller: Poller,
        limits: Limits,
        counters: Counters | None = None,
        is_held: bool = False,
        initial: bytes = b"",
    ) -> None:
        self._transport = transport
        self._receive: Receive = _ignore
        self._tasks: Tasks | None = None
        self._parser = parser
        self._poller = poller
        self._limits = limits
        self._counters = counters or _UNREAD
        self._is_held = is_held
        self._initial = initial
        self._opened_at = trio.current_time()
        self._spoke_at: float | None = None  # when the first bytes after the 101 were read, if it is held
        self._ending: StreamEnd | None = None
        self._stream_ending: StreamEnd | None = None  # by a close frame of the peer, or by a fault
        self._gone = False
        self._closing = False
        self._sent_close_frame = False
        self._stays = False  # from the end of `run` to the end of the connection
        self._pinged_at: float | None = None  # when the unanswered ping was sent
        self._round_trip_s: float | None = None
        self._small: TokenBucket | None = None  # made at the first read with many small frames
        self._skipped: TokenBucket | None = None  # made at the first message that is too large
        self._overdue: trio.CancelScope | None = None  # around a task, while a message is incomplete

    async def run(self, tasks: Tasks, receive: Receive) -> PeerEnd | None:
        """Pass on what the peer sends; see `Peer.run`. Unless it ends at once, it stays without a task."""
        self._receive, self._tasks = receive, tasks
        transport = self._transport
        transport.owner = self
        if transport.outbox_bytes:
            self.start_writing()
        data, self._initial = self._initial, b""
        self._poller.watch(transport.fd, self)
        if data:
            self.take(data)
        if self._ending is not None:
            return self._end()
        self._stays = True
        return STAYS

    def _stop(self) -> None:
        """Read no more. What refers to this connection would keep it in memory."""
        self._stays = False
        self._poller.unwatch(self._transport.fd)
        self._transport.owner = None
        if self._overdue is not None:
            self._overdue.cancel()
            self._overdue = None
        self._receive, self._tasks = _ignore, None

    def _end(self) -> PeerEnd:
        ending = self._ending
        if ending is None:
            reason = "the connection was lost" if self._transport.broken else ""
            return PeerEnd("peer", None, reason, self._round_trip_s)
        return PeerEnd("peer" if ending.by_peer else "relay", ending.code, ending.reason, self._round_trip_s)

    def _wake(self) -> None:
        """Let the session end this connection."""
        if self._stays:
            assert self._tasks is not None
            self._tasks.end_peer(self._end())
            self._stays = False

    def read(self) -> bytes | None:
        """Read once; see `PolledConnection.read`. The first bytes prove that the peer has its 101."""
        data = self._transport.read()
        if self._is_held and self._spoke_at is None and data:
            self._spoke_at = trio.current_time()
        return data

    def take(self, data: bytes) -> None:
        """Process bytes that were read; empty bytes are the end of the stream. Raises nothing."""
        if not data:
            self._gone = True
            self._wake()
            return
        try:
            received = self._parser.feed(data)
            if type(received) is Parsed:
                self._process(received)
            elif self._ending is None:
                pause_s = self._receive(received)
                if pause_s > 0:
                    self._pause(pause_s)
        except Exception as error:  # it must not end the task that reads all sockets
            self.fail(error)

    def fail(self, error: Exception) -> None:
        """End the connection because of an exception, and log it. Raises nothing, even without memory."""
        if self._ending is None:
            self._ending = _FAILED
            with contextlib.suppress(Exception):
                self._wake()
            with contextlib.suppress(Exception):
                log.error("a connection failed", exc_info=error)

    def _process(self, parsed: Parsed) -> None:
        """Process a read that brought more than whole messages."""
        if parsed.ending is not None:
            self._stream_ending = parsed.ending  # first: passing on the messages may fail
        if parsed.pings:
            self._transport.write(encode_pongs(parsed.pings))
        self._counters.oversized += parsed.oversized
        if parsed.has_pong:
            self._measure_round_trip()
        pause_s = self._count_small(parsed.small)
        if parsed.skipped_bytes:
            pause_s = max(pause_s, self._count_skipped(parsed.skipped_bytes))
        if (parsed.messages or parsed.has_control or pause_s) and self._ending is None:
            pause_s = max(self._receive(parsed.messages), pause_s)
            if pause_s > 0:
                self._pause(pause_s)
        if parsed.ending is not None and self._ending is None:
            self._ending = parsed.ending
            self._wake()
        if not parsed.incomplete:
            if self._overdue is not None:
                self._overdue.cancel()
                self._overdue = None
        elif self._overdue is None:
            self._overdue = trio.CancelScope(deadline=trio.current_time() + pause_s + self._limits.message_s)
            self._start_soon(self._wait_for_message, self._overdue)
        elif parsed.messages or parsed.oversized:  # another message has begun
            self._overdue.deadline = trio.current_time() + pause_s + self._limits.message_s

    def _count_small(self, count: int) -> float:
        """Count small frames; return for how many seconds to pause reading."""
        now = trio.current_time()
        if self._small is None:
            if count <= _SMALL_IN_A_READ:
                return 0.0
            self._small = TokenBucket(rate_per_s=_SMALL_PER_S, burst=_SMALL_AT_ONCE, now=now)
        return min(self._small.take(count, now), _MOST_PAUSE_S) if count > _SMALL_IN_A_READ else 0.0

    def _count_skipped(self, size_bytes: int) -> float:
        """Count skipped bytes; return for how many seconds to pause reading."""
        now = trio.current_time()
        if self._skipped is None:
            self._skipped = TokenBucket(rate_per_s=_SKIPPED_BYTES_PER_S, burst=_SKIPPED_BYTES_PER_S, now=now)
        return min(self._skipped.take(size_bytes, now), _MOST_PAUSE_S)

    def _measure_round_trip(self) -> None:
        if self._pinged_at is not None:
            round_trip_s = trio.current_time() - self._pinged_at
            self._pinged_at = None
            self._round_trip_s = min(round_trip_s, self._round_trip_s or round_trip_s)

    def _pause(self, pause_s: float) -> None:
        """Pause reading: what the peer sends fills the buffers of the network, and slows the peer down."""
        self._poller.unwatch(self._transport.fd)
        self._start_soon(self._resume_reading, pause_s)

    async def _resume_reading(self, pause_s: float) -> None:
        await trio.sleep(pause_s)
        if self._stays:
            self._poller.watch(self._transport.fd, self)

    async def _wait_for_message(self, overdue: trio.CancelScope) -> None:
        """Close the peer if the message that has begun is not complete in time."""
        while True:
            with overdue:
                await trio.sleep_forever()
            if overdue is self._overdue and (data := self.read()) is not None:
                self.take(data)  # bytes that have arrived count, even if this task runs late
            if overdue is not self._overdue or self._gone:
                return
            if trio.current_time() >= overdue.deadline:
                self.close(CloseCode.POLICY_VIOLATION, "message not completed in time")
                return
            overdue = self._overdue = trio.CancelScope(deadline=overdue.deadline)  # for another message

    @property
    def backlog_bytes(self) -> int:
        """How many bytes wait in the outbox. The operating system may buffer more."""
        return self._transport.outbox_bytes

    def ping(self) -> bool:
        """Send a ping; see `Peer.ping`."""
        if self._ending is None:
            self._transport.write(PING_FRAME)
            self._pinged_at = trio.current_time()
        return False

    def deliver(self, delivery: Delivery, keep: bool = False) -> bool:
        """Send messages without waiting; False if they were not sent; see `Peer.deliver`."""
        if self._ending is not None:
            return False
        return self._transport.write(delivery.encoded or encode_delivery(delivery), keep)

    def _start_soon(self, async_fn: Callable[..., Awaitable[object]], *args: object) -> None:
        assert self._tasks is not None, "it is not running"
        self._tasks.start_soon(async_fn, *args)

    def start_writing(self) -> None:
        """Start the writer task: the outbox is no longer empty."""
        self._start_soon(self._write_outbox)

    async def _write_outbox(self) -> None:
        """Write the outbox; close a peer that reads none of it."""
        if self._closing:
            return
        try:
            if not await self._transport.flush(stall_s=self._limits.stall_s):
                self.close(CloseCode.TRY_AGAIN_LATER, "nothing was read for too long")
        except trio.ClosedResourceError:
            pass  # the connection ended first, and writes the rest itself

    def close(self, code: int, reason: str) -> None:
        """Let `run` end; `aclose` sends this code and reason. Later calls have no effect."""
        if self._ending is None:
            self._ending = StreamEnd(code, reason, by_peer=False)
        self._wake()

    async def aclose(self) -> None:
        """Hold the connection as long as it must be, exchange close frames, and close the socket.

        This takes at most the rest of `Limits.longest_hold_s`, and `close_s`, cancelled or not.
        """
        transport = self._transport
        self._stop()
        if transport.closed:
            await trio.lowlevel.checkpoint()
            return
        self._closing = True
        ending = self._ending or StreamEnd(CloseCode.GOING_AWAY, "the relay is shutting down", by_peer=False)
        self._ending = ending
        transport.wake()
        is_held = self._is_held and not ending.by_peer
        held_until = self._opened_at + self._limits.longest_hold_s if is_held else -math.inf
        close_s = self._limits.close_s
        try:
            with trio.move_on_at(max(trio.current_time(), held_until) + close_s, shield=True) as closing:
                if is_held:
                    await self._hold()
                    closing.deadline = trio.current_time() + close_s
                await self._exchange_close_frames(ending)
        finally:
            if not self._sent_close_frame and not self._gone:  # the process was paused past all deadlines
                self._send_close_frame(ending)
            transport.close()
        await trio.lowlevel.checkpoint()

    async def _hold(self) -> None:
        """Read and discard until the device may be ended, or has ended by itself."""
        while not self._peer_has_ended:
            with trio.move_on_at(self._safe_to_end_at):
                await self._transport.wait_readable()
            self._read_and_discard()  # even after that time: the first frame may wait to be read
            if trio.current_time() >= self._safe_to_end_at:
                return

    @property
    def _safe_to_end_at(self) -> float:
        return self._limits.safe_to_end_at(opened_at=self._opened_at, spoke_at=self._spoke_at)

    async def _exchange_close_frames(self, ending: StreamEnd) -> None:
        if self._gone:
            return
        answers = self._peer_has_closed
        self._send_close_frame(ending)
        await self._transport.flush(stall_s=self._limits.close_s)
        if self._stream_ending is not None:
            self._transport.finish_writing()  # the answer is not parsed any more: the peer may close at once
        if not answers:
            await self._discard_to_the_end()

    def _send_close_frame(self, ending: StreamEnd) -> None:
        self._sent_close_frame = True
        frame = encode_close(ending.code, ending.reason)
        if self._stream_ending is not None and self._stream_ending.by_peer:
            frame = encode_close(self._stream_ending.code)  # RFC 6455 §5.5.1: the answer echoes the code
        if not self._transport.write(frame):
            self._transport.drop_unsent_writes()
            self._transport.write(frame)

    async def _discard_to_the_end(self) -> None:
        """Read and discard until the peer has closed or gone."""
        while not self._peer_has_ended:
            await self._transport.wait_readable()
            self._read_and_discard()

    @property
    def _peer_has_ended(self) -> bool:
        """Whether the peer has closed or gone."""
        return self._gone or self._peer_has_closed

    @property
    def _peer_has_closed(self) -> bool:
        """Whether the peer has sent a close frame."""
        return self._stream_ending is not None and self._stream_ending.by_peer

    def _read_and_discard(self) -> None:
        """Read once, answer pings, and discard the rest."""
        received = self.read()
        if received:
            parsed = self._parser.feed(received)
            if type(parsed) is Parsed:
                self._stream_ending = self._stream_ending or parsed.ending
                if parsed.pings and not self._sent_close_frame:
                    self._transport.write(encode_pongs(parsed.pings))
        elif received is not None:
            self._gone = True


def device_connection(
    transport: Transport,
    *,
    poller: Poller,
    limits: Limits,
    counters: Counters,
    initial: bytes = b"",
    anonymous: bool = False,
) -> WebSocketConnection:
    """Make the connection of a device: large messages are skipped, and it is held until its key is safe.

    An `anonymous` device gets the little memory that a machine needs.
    """
    message_bytes = limits.device_message_bytes
    if anonymous:
        message_bytes = min(message_bytes, _ANONYMOUS_MESSAGE_BYTES)
        transport.limit_outbox(_ANONYMOUS_OUTBOX_BYTES)
    return WebSocketConnection(
        transport,
        FrameParser(max_message_bytes=message_bytes, skip_oversize=True),
        poller=poller,
        limits=limits,
        counters=counters,
        is_held=True,
        initial=initial,
    )


def client_connection(
    transport: Transport, *, poller: Poller, limits: Limits, initial: bytes = b""
) -> WebSocketConnection:
    """Make the connection of a client: a message that is too large ends it."""
    parser = FrameParser(max_message_bytes=limits.client_message_bytes)
    return WebSocketConnection(transport, parser, poller=poller, limits=limits, initial=initial)

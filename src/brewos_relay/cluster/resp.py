"""RESP3: one connection to a Redis server, for pipelined commands and for messages of its channels.

The only module that imports `hiredis`, an optional dependency.
"""

import ssl
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any, Final, TypeAlias

import hiredis
import trio

from brewos_relay.cluster.broker import BrokerError

OUTBOX_BYTES: Final = 4 * 1024 * 1024
PENDING_REPLIES: Final = 65_536
REPLY_BYTES: Final = 16 * 1024 * 1024
"""The size of the largest reply or message that is accepted."""

_READ_BYTES: Final = 64 * 1024
"""A larger buffer is above the threshold from which the C library maps memory for it: 12 µs for each read."""
_JOINED_BYTES: Final = 256 * 1024
"""Messages are joined into one of about this size. Redis does nothing else while it copies one."""
_JOINED: Final = b"j"
_LENGTH_BYTES: Final = 4
_COMMAND_BYTES: Final = 100
"""A guess at the size of a PUBLISH without its payload, and of a pending reply."""
_SHOWN_CHARACTERS: Final = 200

_PUBLISHED: Final = object()
_SUBSCRIBED: Final = object()
_MORE: Final = object()

Argument: TypeAlias = bytes | str | int | float
Command: TypeAlias = Sequence[Argument]
OnMessage: TypeAlias = Callable[[bytes, bytes], None]
"""Takes the channel and the payload of a message."""


class ErrorReply(Exception):
    """The reply to a command is an error."""


def join(payloads: Sequence[bytes]) -> bytes:
    """Join payloads into one, as `RespConnection.publish` does."""
    parts = [_JOINED]
    for payload in payloads:
        parts += (len(payload).to_bytes(_LENGTH_BYTES), payload)
    return b"".join(parts)


def split(joined: bytes) -> list[bytes] | None:
    """Split joined payloads. None if they were not joined; raises ValueError if they are malformed."""
    if joined[:1] != _JOINED:
        return None
    payloads = []
    at, end = 1, len(joined)
    while at < end:
        start = at + _LENGTH_BYTES
        at = start + int.from_bytes(joined[at:start])
        if at > end:
            raise ValueError("a joined payload is cut off")
        payloads.append(joined[start:at])
    return payloads


class _Exchange:
    """Commands whose replies one task waits for."""

    __slots__ = ("missing", "replies", "task")

    def __init__(self, missing: int, task: trio.lowlevel.Task) -> None:
        self.missing = missing
        self.replies: list[Any] = []
        self.task: trio.lowlevel.Task | None = task
        """None if it was cancelled."""


class _JoinedPublish:
    """A PUBLISH that waits in the outbox, with the payloads for one channel."""

    __slots__ = ("bytes", "channel", "parts")

    def __init__(self, channel: bytes) -> None:
        self.channel = channel
        self.parts = [_JOINED]
        self.bytes = 1

    def encode(self) -> bytes:
        channel = self.channel
        head = b"*3\r\n$7\r\nPUBLISH\r\n$%d\r\n%b\r\n$%d\r\n" % (len(channel), channel, self.bytes)
        return b"%b%b\r\n" % (head, b"".join(self.parts))


class RespConnection:
    """A connection to a Redis server. Commands of many tasks, and the messages of channels, share it.

    Commands of one turn of the event loop are written at once. Payloads for the same channel then form
    one PUBLISH, unless a command comes between them. Everything is bounded: the outbox, replies that Redis
    owes, and the size of a reply. When the connection is lost, the outbox is dropped and each call raises
    BrokerError. An error reply ends the connection too, unless it is NOSCRIPT.
    """

    def __init__(self, stream: trio.abc.Stream, on_message: OnMessage) -> None:
        self._stream = stream
        self._on_message = on_message
        self._reader = hiredis.Reader(
            protocolError=BrokerError, replyError=ErrorReply, errors="replace", notEnoughData=_MORE
        )
        self._queue: list[bytes | _JoinedPublish] = []
        self._queued_bytes = 0
        self._joined: dict[bytes, _JoinedPublish] = {}
        self._pending: deque[object] = deque()
        self._idle_writer: trio.lowlevel.Task | None = None
        self._room = trio.lowlevel.ParkingLot()
        self._scope = trio.CancelScope()
        self._lost = trio.Event()
        self.why_lost = ""
        self.outbox_bytes = 0
        """How much waits to be written."""

    @property
    def is_lost(self) -> bool:
        return self._lost.is_set()

    @property
    def pending_replies(self) -> int:
        """How many replies Redis owes."""
        return len(self._pending)

    async def run(self) -> None:
        """Read and write until the connection is lost, and close it.

        **Owns:** a task that reads and a task that writes. **Ends when:** the connection is lost.
        """
        try:
            with self._scope:
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(self._write)
                    nursery.start_soon(self._read)
        finally:
            self.lose("it was closed")
            await trio.aclose_forcefully(self._stream)

    def lose(self, why: str) -> None:
        """End the connection, if it has not ended yet."""
        if self._lost.is_set():
            return
        self.why_lost = why
        self._lost.set()
        self._queue.clear()
        self._joined.clear()
        self._queued_bytes = self.outbox_bytes = 0
        for each in self._pending:
            if isinstance(each, _Exchange) and each.task is not None:
                trio.lowlevel.reschedule(each.task)
                each.task = None
        self._pending.clear()
        self._room.unpark_all()
        self._scope.cancel()

    async def wait_lost(self) -> str:
        """Wait until the connection is lost; return why."""
        await self._lost.wait()
        return self.why_lost

    def check(self) -> None:
        """Raise BrokerError if the connection is lost."""
        if self._lost.is_set():
            raise BrokerError(f"the connection to Redis was lost: {self.why_lost}")

    async def call(self, commands: Sequence[Command]) -> list[Any]:
        """Send commands and return their replies. A reply may be an ErrorReply with NOSCRIPT.

        May be cancelled: replies that come later are dropped.
        """
        await trio.lowlevel.checkpoint_if_cancelled()
        while self.outbox_bytes >= OUTBOX_BYTES or len(self._pending) >= PENDING_REPLIES:
            await self._room.park()
        self.check()
        exchange = _Exchange(len(commands), trio.lowlevel.current_task())
        for command in commands:
            self._enqueue(command, exchange)

        def abort(_raise_cancel: object) -> trio.lowlevel.Abort:
            exchange.task = None
            return trio.lowlevel.Abort.SUCCEEDED

        if commands:
            await trio.lowlevel.wait_task_rescheduled(abort)
        if exchange.missing:
            self.check()
        return exchange.replies

    def publish_now(self, channel: bytes, payload: bytes) -> None:
        """Queue a PUBLISH by itself, beyond all limits. Its reply is dropped."""
        self._enqueue((b"PUBLISH", channel, payload), _PUBLISHED)

    def subscribe(self, channel: bytes) -> None:
        """Queue a SUBSCRIBE, beyond all limits. The next command is executed after it."""
        self._enqueue((b"SUBSCRIBE", channel), _SUBSCRIBED)

    def unsubscribe(self, channel: bytes) -> None:
        """Queue an UNSUBSCRIBE, beyond all limits."""
        self._enqueue((b"UNSUBSCRIBE", channel), _SUBSCRIBED)

    def publish(self, channel: bytes, payload: bytes) -> bool:
        """Queue a payload for a channel; False if too much waits, or the connection is lost.

        The channel gets it joined with others: see `split`.
        """
        size = len(payload) + _LENGTH_BYTES
        if (
            self._lost.is_set()
            or self.outbox_bytes + size > OUTBOX_BYTES
            or len(self._pending) >= PENDING_REPLIES
        ):
            return False
        joined = self._joined.get(channel)
        if joined is None or joined.bytes + size > _JOINED_BYTES:
            joined = self._joined[channel] = _JoinedPublish(channel)
            self._pending.append(_PUBLISHED)
            self._add(joined, _COMMAND_BYTES + size)
        else:
            self._queued_bytes += size
            self.outbox_bytes += size
        joined.parts += (len(payload).to_bytes(_LENGTH_BYTES), payload)
        joined.bytes += size
        return True

    async def flush(self) -> None:
        """Wait until the outbox is empty, or the connection is lost."""
        while self.outbox_bytes:
            await self._room.park()

    def _enqueue(self, command: Command, owner: object) -> None:
        if self._lost.is_set():
            return
        packed: bytes = hiredis.pack_command(tuple(command))  # type: ignore[arg-type]
        self._pending.append(owner)
        # Payloads that come later must not overtake the command.
        self._joined.clear()
        self._add(packed, len(packed))

    def _add(self, item: bytes | _JoinedPublish, size: int) -> None:
        self._queue.append(item)
        self._queued_bytes += size
        self.outbox_bytes += size
        if self._idle_writer is not None:
            trio.lowlevel.reschedule(self._idle_writer)
            self._idle_writer = None

    async def _write(self) -> None:
        def abort(_raise_cancel: object) -> trio.lowlevel.Abort:
            self._idle_writer = None
            return trio.lowlevel.Abort.SUCCEEDED

        try:
            while True:
                if not self._queue:
                    self._idle_writer = trio.lowlevel.current_task()
                    await trio.lowlevel.wait_task_rescheduled(abort)
                queue, self._queue = self._queue, []
                size, self._queued_bytes = self._queued_bytes, 0
                self._joined.clear()
                await self._stream.send_all(
                    b"".join([item if type(item) is bytes else item.encode() for item in queue])  # type: ignore[union-attr]
                )
                del queue
                if not self._lost.is_set():
                    self.outbox_bytes -= size
                if self._room:
                    self._room.unpark_all()
        except (OSError, ssl.SSLError, trio.BrokenResourceError) as error:
            self.lose(f"writing failed: {_shown(error)}")

    async def _read(self) -> None:
        unfinished_bytes = 0
        try:
            while data := await self._stream.receive_some(_READ_BYTES):
                self._reader.feed(data)  # type: ignore[arg-type]
                unfinished_bytes += len(data)
                if self._take_replies():
                    unfinished_bytes = 0
                if unfinished_bytes > REPLY_BYTES:
                    raise BrokerError(f"a reply has more than {REPLY_BYTES} bytes")
        except (OSError, ssl.SSLError, trio.BrokenResourceError) as error:
            self.lose(f"reading failed: {_shown(error)}")
        except BrokerError as error:
            self.lose(str(error))
        else:
            self.lose("Redis closed the connection")

    def _take_replies(self) -> bool:
        """Handle what the reader has; return whether that was at least one reply."""
        one = False
        while not self._lost.is_set():
            try:
                reply = self._reader.gets()
            except Exception as error:  # of many kinds, for malformed or huge replies
                raise BrokerError(f"Redis sent no RESP3: {_shown(error)}") from None
            if reply is _MORE:
                break
            one = True
            if type(reply) is hiredis.PushNotification:
                self._take_push(reply)
            else:
                self._take_reply(reply)
        if self._room and len(self._pending) < PENDING_REPLIES:
            self._room.unpark_all()
        return one

    def _take_push(self, push: list[Any]) -> None:
        if len(push) == 3 and push[0] == b"message":
            _, channel, payload = push
            if not isinstance(channel, bytes) or not isinstance(payload, bytes):
                raise BrokerError("Redis sent a malformed message")
            self._on_message(channel, payload)
        elif push and push[0] in (b"subscribe", b"unsubscribe"):
            exchange = self._pending.popleft() if self._pending else None
            if exchange is not _SUBSCRIBED:
                raise BrokerError("Redis confirmed a subscription that was not asked for")

    def _take_reply(self, reply: object) -> None:
        if isinstance(reply, ErrorReply) and not str(reply).startswith("NOSCRIPT"):
            raise BrokerError(f"Redis refused a command: {_shown(reply)}")
        exchange = self._pending.popleft() if self._pending else _SUBSCRIBED
        if exchange is _SUBSCRIBED:
            raise BrokerError("Redis sent a reply that was not asked for")
        if not isinstance(exchange, _Exchange):
            return
        exchange.missing -= 1
        if exchange.task is not None:
            exchange.replies.append(reply)
            if not exchange.missing:
                trio.lowlevel.reschedule(exchange.task)
                exchange.task = None


def _shown(error: BaseException) -> str:
    """Write the text of an error in one short line."""
    text = "".join(each if each.isprintable() else "?" for each in str(error))
    return text[:_SHOWN_CHARACTERS] or type(error).__name__

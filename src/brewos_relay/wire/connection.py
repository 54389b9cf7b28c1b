"""WebSocketConnection: a transport and a codec that make a core Peer."""

import functools
import logging
import math
from collections.abc import Sequence

import trio

from brewos_relay.core.limits import Limits
from brewos_relay.core.peer import Receive
from brewos_relay.errors import CloseCode
from brewos_relay.messages import Delivery, Message
from brewos_relay.wire.frames import Ending, FrameParser, encode_close, encode_delivery, encode_pongs
from brewos_relay.wire.poller import Poller
from brewos_relay.wire.transport import Transport

log = logging.getLogger(__name__)


def _ignore(_messages: Sequence[Message]) -> None:
    """Take messages of a connection that has no use for them."""


class WebSocketConnection:
    """A WebSocket of which the handshake is done.

    **Owns:** its transport, and a writer task while the outbox is not empty.
    **Ends when:** the peer closes or breaks the rules, `close` was called, or it is cancelled; then `aclose`
    says goodbye. A connection younger than `min_age_s` is not ended before it has that age, unless the peer
    has gone.
    """

    __slots__ = (
        "_ending",
        "_gone",
        "_incomplete",
        "_initial",
        "_life",
        "_limits",
        "_min_age_s",
        "_opened_at",
        "_parser",
        "_poller",
        "_receive",
        "_transport",
    )

    def __init__(
        self,
        transport: Transport,
        parser: FrameParser,
        *,
        poller: Poller,
        limits: Limits,
        min_age_s: float = 0.0,
        initial: bytes = b"",
    ) -> None:
        self._transport = transport
        self._parser = parser
        self._poller = poller
        self._limits = limits
        self._min_age_s = min_age_s
        self._initial = initial
        self._opened_at = trio.current_time()
        self._ending: Ending | None = None
        self._gone = False
        self._incomplete = False
        self._life = trio.CancelScope()
        self._receive: Receive = _ignore

    @property
    def oversized(self) -> int:
        """How many messages were read past since they were too large."""
        return self._parser.oversized

    async def run(self, nursery: trio.Nursery, receive: Receive) -> None:
        """Hand on what the peer sends until the connection is to end; see `Peer.run`."""
        self._receive = receive
        transport = self._transport
        transport.on_blocked = functools.partial(nursery.start_soon, self._write_on)
        if transport.outbox_bytes:
            transport.on_blocked()
        data, self._initial = self._initial, b""
        if data:
            self._take(data)
        self._poller.watch(transport.fd, self._on_readable)
        try:
            with self._life as life:
                if self._ending is None:
                    await trio.sleep_forever()
        finally:
            self._poller.unwatch(transport.fd)
            transport.on_blocked = None
        if life.cancelled_caught and self._ending is None and not self._gone:
            self.close(CloseCode.POLICY_VIOLATION, "message not completed in time")

    def _on_readable(self) -> None:
        try:
            data = self._transport.read()
            if data:
                self._take(data)
            elif data is not None:
                self._gone = True
                self._life.cancel()
        except Exception:
            log.exception("a connection failed")
            self.close(CloseCode.INTERNAL_ERROR, "the relay failed")

    def _take(self, data: bytes) -> None:
        parser = self._parser
        messages = parser.feed(data)
        if parser.pings:
            self._transport.write(encode_pongs(parser.pings))
            parser.pings.clear()
        if messages and self._ending is None:
            self._receive(messages)
        if parser.ending is not None and self._ending is None:
            self._ending = parser.ending
            self._life.cancel()
        if parser.incomplete:
            if not self._incomplete:
                self._incomplete = True
                self._life.deadline = trio.current_time() + self._limits.message_s
        elif self._incomplete:
            self._incomplete = False
            self._life.deadline = math.inf

    def deliver(self, delivery: Delivery) -> bool:
        """Send messages without waiting; False if they were left out; see `Peer.deliver`."""
        if self._ending is not None:
            return False
        return self._transport.write(delivery.encoded or encode_delivery(delivery))

    async def _write_on(self) -> None:
        """Write what waits in the outbox; close a peer that takes none of it."""
        try:
            if not await self._transport.flush(stall_s=self._limits.stall_s):
                self.close(CloseCode.TRY_AGAIN_LATER, "nothing was read for too long")
        except trio.ClosedResourceError:
            pass  # the connection ended first, and writes the rest itself

    def close(self, code: int, reason: str) -> None:
        """Let `run` end; `aclose` will give this code and reason. The first call counts."""
        if self._ending is None:
            self._ending = Ending(code, reason, by_peer=False)
            self._life.cancel()

    async def aclose(self) -> None:
        """End the connection as well as the peer lets us: hold it until it is old enough, close frame, close.

        Takes at most what is left of `min_age_s` and `close_s`, cancelled or not.
        """
        transport = self._transport
        if transport.closed:
            await trio.lowlevel.checkpoint()
            return
        ending = self._ending or Ending(CloseCode.GOING_AWAY, "the relay is leaving", by_peer=False)
        self._ending = ending
        transport.wake()
        old_enough_at = max(trio.current_time(), self._opened_at + self._min_age_s)
        deadline = old_enough_at + self._limits.close_s
        try:
            with trio.move_on_at(deadline, shield=True):
                await self._say_goodbye(ending, old_enough_at)
        finally:
            transport.close()
        await trio.lowlevel.checkpoint()

    async def _say_goodbye(self, ending: Ending, old_enough_at: float) -> None:
        if not ending.by_peer:
            with trio.move_on_at(old_enough_at):
                await self._read_to_the_end()
        if self._gone:
            return
        answered = self._parser.ending is not None and self._parser.ending.by_peer
        frame = encode_close(ending.code, ending.reason)
        if answered and self._parser.ending is not None:
            frame = encode_close(self._parser.ending.code)  # RFC 6455 §5.5.1: the answer echoes the code
        if not self._transport.write(frame):
            self._transport.keep_first_unsent()
            self._transport.write(frame)
        await self._transport.flush(stall_s=self._limits.close_s)
        if not answered:
            await self._read_to_the_end()

    async def _read_to_the_end(self) -> None:
        """Read and forget until the peer has closed, or has gone."""
        while not (self._gone or (self._parser.ending is not None and self._parser.ending.by_peer)):
            await self._transport.wait_readable()
            received = self._transport.read()
            if received:
                self._parser.feed(received)
            elif received is not None:
                self._gone = True


def device_connection(
    transport: Transport, *, poller: Poller, limits: Limits, initial: bytes = b""
) -> WebSocketConnection:
    """Make the connection of a device: large messages are read past, and it is never ended too young."""
    parser = FrameParser(max_message_bytes=limits.device_message_bytes, skip_oversize=True)
    return WebSocketConnection(
        transport, parser, poller=poller, limits=limits, min_age_s=limits.device_min_age_s, initial=initial
    )


def client_connection(
    transport: Transport, *, poller: Poller, limits: Limits, initial: bytes = b""
) -> WebSocketConnection:
    """Make the connection of a client: a large message ends it."""
    parser = FrameParser(max_message_bytes=limits.client_message_bytes)
    return WebSocketConnection(transport, parser, poller=poller, limits=limits, initial=initial)

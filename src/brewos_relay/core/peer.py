"""Peer: the interface of a connection to a device or a client, how a peer ends, and peers in memory."""

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Any, Final, Literal, Protocol, TypeAlias

import trio

from brewos_relay.delivery import Delivery
from brewos_relay.errors import CloseCode, PeerGone
from brewos_relay.messages import Message, encode
from brewos_relay.texts import one_line

By = Literal["peer", "relay"]

_REASON_CHARS: Final = 120
_STANDARD_CODES: Final = range(1000, 1016)
"""Close codes of peers that a metric shows. Codes of the relay are always shown; other codes count as
`other`."""


@dataclass(frozen=True, slots=True)
class PeerEnd:
    """How a peer ended; `code` is None if it ended without a close frame, for example by a lost connection.

    `round_trip_s` is the shortest time between a ping of the relay and its answer, if there was one.
    """

    by: By
    code: int | None
    reason: str = ""
    round_trip_s: float | None = None

    @property
    def label(self) -> str:
        """The close code as the label of a metric, with few values."""
        if self.code is None:
            return "none"
        known = self.code in _STANDARD_CODES or self.code in CloseCode.__members__.values()
        return str(self.code) if known else "other"

    def __str__(self) -> str:
        """Describe the end in a few words. The reason of a peer is made printable."""
        how = "without a goodbye" if self.code is None else f"with {self.code}"
        reason = shown(self.reason)
        return f"the {self.by} ended it {how}{reason and ': ' + reason}"


LEFT: Final = PeerEnd("peer", None)
"""The end of a peer that does not tell how it ended, and that the relay did not close."""
SHUT_DOWN: Final = PeerEnd("relay", CloseCode.GOING_AWAY, "the relay is shutting down")
"""The end of a peer that is attached when the relay closes."""


def end_details(end: PeerEnd, *, connected_s: float, received: int) -> dict[str, str | int | float]:
    """Return the details of an end as the activity keeps them."""
    detail: dict[str, str | int | float] = {
        "by": end.by,
        "connectedS": round(connected_s, 1),
        "messages": received,
    }
    if end.code is not None:
        detail["code"] = int(end.code)
    if reason := shown(end.reason):
        detail["reason"] = reason
    if end.round_trip_s is not None:
        detail["roundTripMs"] = round(end.round_trip_s * 1000, 1)
    return detail


def shown(text: str) -> str:
    """Cut a peer's text to one short printable line, for the log and the activity."""
    return one_line(text, longest_chars=_REASON_CHARS)


Receive: TypeAlias = Callable[[Sequence[Message]], float]
"""Takes the messages that a peer sent, in order; never blocks.

An empty sequence is a sign of life. The result is for how many seconds to pause reading from the peer, mostly
0.0. It is called only until `Peer.run` ends, or `Tasks.end_peer` was called.
"""


STAYS: Final = PeerEnd("peer", None, "it has not ended")
"""Not an end: `Peer.run` returns this if the peer stays without a task."""


class Tasks(Protocol):
    """Starts the tasks of a peer that run beside its `run`; they belong to the peer's session."""

    def end_peer(self, end: PeerEnd) -> None:
        """End a peer whose `run` has returned `STAYS`; called once."""

    def start_soon(self, async_fn: Callable[..., Awaitable[object]], *args: object) -> None:
        """Start `async_fn(*args)`. If it fails, this peer ends, and no other one."""


class Peer(Protocol):
    """A connection to one device or to one client.

    A session owns it: the session calls `run` once, in a task of its own, and always calls `aclose` after
    that.
    """

    async def run(self, tasks: Tasks, receive: Receive) -> PeerEnd | None:
        """Pass on what the peer sends, until it ends or `close` is called; return how it ended, if known.

        A peer that needs no task returns `STAYS` at once, goes on, and calls `Tasks.end_peer` instead of
        ending. A task is most of the memory of an idle connection.

        Tasks beside the reading, such as a writer, are started in `tasks`, and end with `aclose` at the
        latest.
        """

    def deliver(self, delivery: Delivery, keep: bool = False) -> bool:
        """Send messages without waiting; False if the peer is too far behind or ending, and takes none.

        With `keep`, a peer that is behind takes them as well, up to a second limit.
        """

    @property
    def backlog_bytes(self) -> int:
        """How many bytes wait for the peer, as far as this kind of peer can tell; 0 if none do."""

    def ping(self) -> bool:
        """Ask for a sign of life, which comes through `receive`; True if the peer is known to be alive."""

    def close(self, code: int, reason: str) -> None:
        """Ask `run` to end, with a WebSocket close code (errors.CloseCode). Later calls have no effect."""

    async def aclose(self) -> None:
        """Close the connection and free all resources, within a bounded time, cancelled or not.

        The peer itself knows how early its connection may be closed.
        """


_CAPACITY_MESSAGES: Final = 1000


class MemoryPeer:
    """The relay's side of a connection in memory; a `Peer`. Made by `memory_peer`."""

    def __init__(
        self, inbound: trio.MemoryReceiveChannel[Message], outbound: trio.MemorySendChannel[Message]
    ) -> None:
        self._inbound = inbound
        self._outbound = outbound
        self.close_code: int | None = None
        self.close_reason = ""

    async def run(self, tasks: Tasks, receive: Receive) -> PeerEnd | None:
        """Pass on what the other end sends; see `Peer.run`."""
        try:
            async for message in self._inbound:
                await trio.sleep(receive((message,)))
        except trio.ClosedResourceError:
            pass  # `close` was called
        return None  # the relay knows whether it ended the connection

    @property
    def backlog_bytes(self) -> int:
        """The number of messages that wait, since a memory channel does not know their sizes."""
        return self._outbound.statistics().current_buffer_used

    def ping(self) -> bool:
        """Return True: the other end lives until it closes."""
        return True

    def deliver(self, delivery: Delivery, keep: bool = False) -> bool:
        """Send messages to the other end, up to its capacity; see `Peer.deliver`."""
        if self.close_code is not None:
            return False
        state = self._outbound.statistics()
        room = state.max_buffer_size - state.current_buffer_used + state.tasks_waiting_receive
        if room < len(delivery.messages):
            return False
        try:
            for message in delivery.messages:
                self._outbound.send_nowait(message)
        except (trio.ClosedResourceError, trio.BrokenResourceError):
            return False
        return True

    def close(self, code: int, reason: str) -> None:
        """End `run` with this close code; see `Peer.close`."""
        if self.close_code is None:
            self.close_code, self.close_reason = code, reason
        self._inbound.close()

    async def aclose(self) -> None:
        """Close both directions; `MemoryEnd.receive` raises PeerGone from here on."""
        self._inbound.close()
        self._outbound.close()
        await trio.lowlevel.checkpoint()


class MemoryEnd:
    """The other side of a connection in memory, for a device or an app."""

    def __init__(
        self,
        peer: MemoryPeer,
        inbound: trio.MemoryReceiveChannel[Message],
        outbound: trio.MemorySendChannel[Message],
    ) -> None:
        self._peer = peer
        self._inbound = inbound
        self._outbound = outbound

    @property
    def close_code(self) -> int | None:
        """The close code of the relay, if it ended the connection."""
        return self._peer.close_code

    async def send(self, content: dict[str, Any] | Message) -> None:
        """Send a JSON object, or a message as it is, to the relay. Raises PeerGone."""
        message = content if isinstance(content, Message) else encode(content)
        try:
            await self._outbound.send(message)
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            raise self._gone() from None

    async def receive(self) -> Message:
        """Wait for the next message from the relay. Raises PeerGone when the connection has ended."""
        try:
            return await self._inbound.receive()
        except (trio.EndOfChannel, trio.ClosedResourceError):
            raise self._gone() from None

    def close(self) -> None:
        """Close this end."""
        self._inbound.close()
        self._outbound.close()

    def _gone(self) -> PeerGone:
        if self._peer.close_code is None:
            return PeerGone("the connection has ended")
        return PeerGone(f"the relay closed: {self._peer.close_code} {self._peer.close_reason}")


def memory_peer(*, capacity_messages: int = _CAPACITY_MESSAGES) -> tuple[MemoryPeer, MemoryEnd]:
    """Make a peer and its other end; up to `capacity_messages` may wait in each direction."""
    to_relay, from_end = trio.open_memory_channel[Message](capacity_messages)
    to_end, from_relay = trio.open_memory_channel[Message](capacity_messages)
    peer = MemoryPeer(from_end, to_end)
    return peer, MemoryEnd(peer, from_relay, to_relay)

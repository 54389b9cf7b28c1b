"""Peers in memory, for tests and for devices or apps that live in the relay's own process."""

from typing import Any, Final

import trio

from brewos_relay.core.ends import End
from brewos_relay.core.peer import Receive, Tasks
from brewos_relay.errors import PeerGone
from brewos_relay.messages import Delivery, Message, encode

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

    async def run(self, tasks: Tasks, receive: Receive) -> End | None:
        """Hand on what the other end sends; see `Peer.run`."""
        try:
            async for message in self._inbound:
                await trio.sleep(receive((message,)))
        except trio.ClosedResourceError:
            pass  # `close` was called
        return None  # who ended it: the relay knows whether it was the relay

    @property
    def backlog_bytes(self) -> int:
        """How many messages wait, which is all that is known here."""
        return self._outbound.statistics().current_buffer_used

    def ping(self) -> bool:
        """Be sure: the other end is there until it leaves."""
        return True

    def deliver(self, delivery: Delivery, keep: bool = False) -> bool:
        """Send messages to the other end, which may let a number of them wait; see `Peer.deliver`."""
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
        """Let `run` end, with this close code; see `Peer.close`."""
        if self.close_code is None:
            self.close_code, self.close_reason = code, reason
        self._inbound.close()

    async def aclose(self) -> None:
        """Let go of both directions; the other end's `receive` raises PeerGone from here on."""
        self._inbound.close()
        self._outbound.close()
        await trio.lowlevel.checkpoint()


class MemoryEnd:
    """The other side of a connection in memory: what a device or an app would hold."""

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
        """The close code that the relay gave, if it ended the connection."""
        return self._peer.close_code

    async def send(self, content: dict[str, Any] | Message) -> None:
        """Send a JSON object, or a message as it is, to the relay. Raises PeerGone."""
        message = content if isinstance(content, Message) else encode(content)
        try:
            await self._outbound.send(message)
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            raise self._gone() from None

    async def receive(self) -> Message:
        """Wait for the next message from the relay. Raises PeerGone once there will be none."""
        try:
            return await self._inbound.receive()
        except (trio.EndOfChannel, trio.ClosedResourceError):
            raise self._gone() from None

    def close(self) -> None:
        """Leave."""
        self._inbound.close()
        self._outbound.close()

    def _gone(self) -> PeerGone:
        if self._peer.close_code is None:
            return PeerGone("the connection has ended")
        return PeerGone(f"the relay closed: {self._peer.close_code} {self._peer.close_reason}")


def memory_peer(*, capacity_messages: int = _CAPACITY_MESSAGES) -> tuple[MemoryPeer, MemoryEnd]:
    """Make a peer and its other end, which may leave `capacity_messages` unread."""
    to_relay, from_end = trio.open_memory_channel[Message](capacity_messages)
    to_end, from_relay = trio.open_memory_channel[Message](capacity_messages)
    peer = MemoryPeer(from_end, to_end)
    return peer, MemoryEnd(peer, from_relay, to_relay)

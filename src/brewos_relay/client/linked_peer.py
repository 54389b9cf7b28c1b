"""What App and Device share: control of their link, a queue of received messages, the relay's clock."""

import time
from collections import deque
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from typing import Any, Generic, Literal, TypeVar

import trio

from brewos_relay.client.codec import is_number
from brewos_relay.client.reconnecting_link import LinkState, LinkStatus, ReconnectingLink, StatusIterator
from brewos_relay.messages import Message, encode
from brewos_relay.vocabulary import now_ms


class LinkedPeer:
    """The base class of App and Device: control and observation of their link."""

    _link: ReconnectingLink

    @property
    def status(self) -> LinkStatus:
        """The state of the link, and its reason."""
        return self._link.status

    @property
    def connected(self) -> bool:
        """Whether the link is connected."""
        return self._link.status.state is LinkState.CONNECTED

    @property
    def connections(self) -> int:
        """The number of connections so far."""
        return self._link.connections

    @property
    def enabled(self) -> bool:
        """Whether the link may connect; setting it to False closes an open connection."""
        return self._link.enabled

    @enabled.setter
    def enabled(self, enabled: bool) -> None:
        self._link.enabled = enabled

    def pause(self) -> None:
        """Close the connection until `resume`, for example during a download that needs the memory."""
        self._link.pause()

    def resume(self) -> None:
        """End a pause, and connect immediately."""
        self._link.resume()

    def kick(self) -> None:
        """Act now, for example when the network is back.

        A waiting link tries immediately, and its pauses are short again. A connected link checks its
        connection within 5 s. A stopped link starts again.
        """
        self._link.kick()

    async def wait_for_state(self, *states: LinkState) -> LinkStatus:
        """Wait until the link is in one of these states, and return its status."""
        return await self._link.wait_for_state(*states)

    def statuses(self) -> StatusIterator:
        """Iterate over the current status and each new one; a slow reader misses those in between."""
        return self._link.statuses()

    async def send(self, content: dict[str, Any] | Message, *, wait: bool = False) -> bool:
        """Send a message (as JSON text, unless it is a `Message`), and tell whether a connection accepted it.

        Without a connection, the message is dropped, unless `wait` is true. With `wait`, a message is sent
        again if the connection breaks while it is being sent, so it may arrive twice. Raises LinkStopped
        instead of waiting for a stopped link.
        """
        message = content if isinstance(content, Message) else encode(content)
        return await self._link.send(message, wait=wait)


@asynccontextmanager
async def run_link(link: ReconnectingLink) -> AsyncGenerator[None]:
    """Run a link while the block runs. Exceptions of the block or the link leave it unwrapped.

    **Owns:** the task of the link. **Ends when:** the block is left.
    """
    raised: BaseException
    try:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(link.run)
            yield
            nursery.cancel_scope.cancel()
        return
    except BaseExceptionGroup as group:
        raised = group
        while isinstance(raised, BaseExceptionGroup) and len(raised.exceptions) == 1:
            raised = raised.exceptions[0]
        if isinstance(raised, BaseExceptionGroup):
            raise
    raise raised


T = TypeVar("T")


class ReceiveQueue(Generic[T]):
    """A bounded queue of received messages; `put` never waits, `get` does.

    A full queue drops either the `"newest"` item, which is not added, or its `"oldest"`; `dropped` counts
    them.
    """

    def __init__(self, at_most: int, *, drops: Literal["newest", "oldest"]) -> None:
        if at_most < 1:
            raise ValueError(f"at_most must be at least 1, got {at_most}")
        self.dropped = 0
        self._at_most = at_most
        self._drops_newest = drops == "newest"
        self._items: deque[T] = deque()
        self._end: Exception | None = None
        self._waiting = trio.lowlevel.ParkingLot()

    def __len__(self) -> int:
        return len(self._items)

    def put(self, item: T) -> bool:
        """Add an item, and tell whether it was accepted."""
        if len(self._items) >= self._at_most:
            self.dropped += 1
            if self._drops_newest:
                return False
            self._items.popleft()
        self._items.append(item)
        self._waiting.unpark()
        return True

    async def get(self) -> T:
        """Remove the oldest item; wait for one if necessary. Raises the error of `end`."""
        await trio.lowlevel.checkpoint()
        while not self._items:
            if self._end is not None:
                raise self._end.with_traceback(None)
            await self._waiting.park()
        return self._items.popleft()

    def end(self, error: Exception | None) -> None:
        """Make `get` raise this error once the queue is empty; None makes it wait again."""
        self._end = error
        if error is not None:
            self._waiting.unpark_all()


class RelayClock:
    """The relay's clock, estimated from its greeting; this computer's clock until then.

    The times of commands refer to the relay's clock.
    """

    def __init__(self) -> None:
        self._ahead_ms: float | None = None

    def set(self, timestamp_ms: Any) -> None:
        """Set the clock from the `timestamp` of a greeting.

        The estimate is late by the travel time of the greeting, never early.
        """
        if is_number(timestamp_ms):
            self._ahead_ms = timestamp_ms - time.monotonic() * 1000

    def now_ms(self) -> int:
        """Return the relay's time in ms since 1970."""
        if self._ahead_ms is None:
            return now_ms()
        return int(time.monotonic() * 1000 + self._ahead_ms)

    def has_passed(self, not_after: Any) -> bool:
        """Tell whether the `notAfter` of a command has passed."""
        return is_number(not_after) and self.now_ms() > not_after

"""What App and Device share: control of their link, a queue of received messages, the relay's clock."""

import time
from collections import deque
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from typing import Any, Generic, Literal, TypeVar

import trio

from brewos_relay.client.codec import is_number
from brewos_relay.client.reconnecting_link import LinkState, LinkStatus, ReconnectingLink, Statuses
from brewos_relay.messages import Message, encode
from brewos_relay.vocabulary import now_ms


class LinkedPeer:
    """An end of a connection that comes back by itself."""

    _link: ReconnectingLink

    @property
    def status(self) -> LinkStatus:
        """How the link stands, and why."""
        return self._link.status

    @property
    def connected(self) -> bool:
        """Whether there is a connection."""
        return self._link.status.state is LinkState.CONNECTED

    @property
    def connections(self) -> int:
        """How many connections there have been."""
        return self._link.connections

    @property
    def enabled(self) -> bool:
        """Whether there is to be a connection at all; setting it to False closes the one that there is."""
        return self._link.enabled

    @enabled.setter
    def enabled(self, enabled: bool) -> None:
        self._link.enabled = enabled

    def pause(self) -> None:
        """Close the connection, and open none until `resume`, as for a download that needs the memory."""
        self._link.pause()

    def resume(self) -> None:
        """End a pause: connect at once."""
        self._link.resume()

    def kick(self) -> None:
        """Do something now, as when the network has come back.

        A link that waits tries at once, and its pauses are short again. One that is connected looks whether
        it still is, within 5 s. One that has stopped begins again.
        """
        self._link.kick()

    async def wait_for_state(self, *states: LinkState) -> LinkStatus:
        """Wait until the link is in one of these states, and give its status."""
        return await self._link.wait_for_state(*states)

    def statuses(self) -> Statuses:
        """Give the status, and then each new one; who is slow misses those in between."""
        return self._link.statuses()

    async def send(self, content: dict[str, Any] | Message, *, wait: bool = False) -> bool:
        """Send a message (as JSON text, unless it is a `Message`), and say whether a connection took it.

        While there is no connection it is dropped; with `wait` it waits for one, and is sent again if that
        breaks while it is being sent, so it may arrive twice. Raises LinkStopped if it would wait for a link
        that has stopped.
        """
        message = content if isinstance(content, Message) else encode(content)
        return await self._link.send(message, wait=wait)


@asynccontextmanager
async def run_link(link: ReconnectingLink) -> AsyncGenerator[None]:
    """Run a link as long as the block lasts; what the block or the link raises comes out as it is.

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
    """A bounded queue between who never waits and who does.

    When it is full, either the `"newest"` is not taken or the `"oldest"` gives way; `dropped` counts them.
    """

    def __init__(self, at_most: int, *, drops: Literal["newest", "oldest"]) -> None:
        if at_most < 1:
            raise ValueError(f"at_most is {at_most}; at least 1 has to have room")
        self.dropped = 0
        self._at_most = at_most
        self._drops_newest = drops == "newest"
        self._items: deque[T] = deque()
        self._end: Exception | None = None
        self._waiting = trio.lowlevel.ParkingLot()

    def __len__(self) -> int:
        return len(self._items)

    def put(self, item: T) -> bool:
        """Add an item, and say whether it was taken."""
        if len(self._items) >= self._at_most:
            self.dropped += 1
            if self._drops_newest:
                return False
            self._items.popleft()
        self._items.append(item)
        self._waiting.unpark()
        return True

    async def get(self) -> T:
        """Take the oldest item, waiting for one if need be; raises what it was ended with."""
        await trio.lowlevel.checkpoint()
        while not self._items:
            if self._end is not None:
                raise self._end.with_traceback(None)
            await self._waiting.park()
        return self._items.popleft()

    def end(self, error: Exception | None) -> None:
        """Let whoever waits for more get this error, from now on; None lets them wait again."""
        self._end = error
        if error is not None:
            self._waiting.unpark_all()


class RelayClock:
    """What time it is at the relay: by its greeting, and by our own clock as long as there was none."""

    def __init__(self) -> None:
        self._ahead_ms: float | None = None

    def set(self, timestamp_ms: Any) -> None:
        """Take the `timestamp` of a greeting. It was on its way for a moment, so we are late, never early."""
        if is_number(timestamp_ms):
            self._ahead_ms = timestamp_ms - time.monotonic() * 1000

    def now_ms(self) -> int:
        """Give the time at the relay in ms since 1970."""
        if self._ahead_ms is None:
            return now_ms()
        return int(time.monotonic() * 1000 + self._ahead_ms)

    def has_passed(self, not_after: Any) -> bool:
        """Say whether the time until which a command has a meaning is over."""
        return is_number(not_after) and self.now_ms() > not_after

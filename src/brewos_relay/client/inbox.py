"""What waits for a program that is busy: not more than so much of it."""

from collections import deque
from typing import Generic, Literal, TypeVar

import trio

T = TypeVar("T")


class Inbox(Generic[T]):
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

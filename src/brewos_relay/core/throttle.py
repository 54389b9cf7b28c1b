"""Throttle: what a device that exceeds its rate has sent, until it may be passed on.

The relay goes on reading from such a device and answers its pings: a machine whose ping waits behind a
backlog takes the connection for lost. Apps get fewer messages, which say the same.
"""

from collections import OrderedDict, deque
from collections.abc import Sequence
from typing import Any, Final

import msgspec

from brewos_relay.core.merging import raw_value, recoded, split_fields
from brewos_relay.core.rate_limits import TokenBucket
from brewos_relay.dialect import Dialect, StateKind
from brewos_relay.fields import MALFORMED, Fields, Key, join
from brewos_relay.messages import Head, Message

_MOST_WAIT_S: Final = 2.0
"""Messages that cannot be merged wait no longer than this: no more of them are held."""
_MOST_BYTES: Final = 64 * 1024
_ANONYMOUS_BYTES: Final = 8 * 1024
"""The same for an anonymous device, of which little is kept."""

_MOST_READ_PER_S: Final = 1000.0
"""Messages a second beyond which reading does pause. A machine sends 500 at most."""
_MOST_READ_BYTES_PER_S: Final = 1024.0 * 1024
_MOST_PAUSE_S: Final = 1.0
"""One pause, after which up to 64 KiB are read: a ping behind a short backlog is answered within 3 s."""


_STATE_KEY: Final = ""
"""The key of the merged state, beside the types of other messages."""
_MERGED: Final = (StateKind.WHOLE, StateKind.CHANGE)


class HeldState:
    """Several messages of a device about its state, merged into one: a whole state or a change.

    A whole state replaces the groups that it names; a change replaces what it names of a group. So apps
    that get the one message know the same as from all of them. The last `seq` is the message's.
    """

    __slots__ = ("_dialect", "_groups", "_is_text", "_is_whole", "_only", "_seq", "size_bytes")

    def __init__(self, dialect: Dialect, *, is_text: bool) -> None:
        self._dialect = dialect
        self._is_text = is_text
        self._groups: dict[Key, Fields | msgspec.Raw] = {}
        self._only: Message | None = None  # a single message passes unchanged
        self._is_whole = False
        self._seq: Any = None
        self.size_bytes = 0
        """No less than the size of the merged message."""

    def add(self, message: Message, head: Head) -> None:
        """Merge a message, which has to be one of this device's state."""
        if message.is_text == self._is_text:
            groups = split_fields(message.payload, is_text=self._is_text)
        else:
            groups = recoded(message, is_text=self._is_text)
        self._only = None if self._groups else message
        self.size_bytes += len(message.payload)
        if head.type == self._dialect.state:
            self._is_whole = True
            self._groups.update(groups)
        else:
            for name, group in groups.items():
                self._groups[name] = self._merged(self._groups.get(name), group)
        if isinstance(head.seq, int) and abs(head.seq) < 2**63:
            self._seq = head.seq

    def _merged(self, old: Fields | msgspec.Raw | None, new: msgspec.Raw) -> Fields | msgspec.Raw:
        """Put what `new` names over `old`, if both are maps; else it is `new`. Each is decoded only once."""
        if old is None:
            return new
        try:
            fields = split_fields(new, is_text=self._is_text)
            merged = split_fields(old, is_text=self._is_text) if isinstance(old, msgspec.Raw) else old
        except MALFORMED:
            return new
        merged.update(fields)
        return merged

    def message(self) -> Message:
        """Give all of it as one message."""
        if self._only is None:
            fields = {
                name: group
                if isinstance(group, msgspec.Raw)
                else msgspec.Raw(join(group, is_text=self._is_text))
                for name, group in self._groups.items()
            }
            kind = self._dialect.state if self._is_whole else self._dialect.state_change
            fields["type"] = raw_value(kind, is_text=self._is_text)
            if self._seq is not None:
                fields["seq"] = raw_value(self._seq, is_text=self._is_text)
            self._only = Message(join(fields, is_text=self._is_text), self._is_text)
            self.size_bytes = len(self._only.payload)
        return self._only


class Throttle:
    """Holds what a device sends beyond its rate, and gives it back at that rate.

    A message that the next one of its type replaces is replaced in its place; deltas are merged into the
    state that is held. All others leave in the order in which they came. There is a bound for what is held:
    beyond it the oldest is dropped, log lines first.
    """

    __slots__ = (
        "_bytes_read",
        "_dialect",
        "_droppable",
        "_held",
        "_most_bytes",
        "_most_queued",
        "_number",
        "_pace",
        "_queued",
        "_read",
        "_size_bytes",
        "began_at",
        "dropped",
        "merged",
    )

    def __init__(
        self,
        dialect: Dialect,
        *,
        rate_per_s: float,
        burst: float,
        allowed: float,
        anonymous: bool,
        now: float,
    ) -> None:
        self._dialect = dialect
        self._pace = TokenBucket(rate_per_s=rate_per_s, burst=max(1.0, burst), now=now)
        self._pace.take(max(1.0, burst) - allowed, now)
        read_per_s = max(_MOST_READ_PER_S, 2 * rate_per_s)
        self._read = TokenBucket(rate_per_s=read_per_s, burst=read_per_s, now=now)
        self._bytes_read = TokenBucket(
            rate_per_s=_MOST_READ_BYTES_PER_S, burst=_MOST_READ_BYTES_PER_S, now=now
        )
        self._most_bytes = _ANONYMOUS_BYTES if anonymous else _MOST_BYTES
        self._most_queued = max(1.0, _MOST_WAIT_S * rate_per_s)
        # By type where the next message replaces it, else by a number.
        self._held: OrderedDict[str | int, Message | HeldState] = OrderedDict()
        self._size_bytes = 0
        self._number = 0
        self._queued = 0  # how many are held by a number
        self._droppable: deque[int] = deque()  # those of them that go first
        self.began_at = now
        """When the device exceeded its rate (trio time)."""
        self.merged = 0
        """How many messages became part of another, or were replaced by one."""
        self.dropped = 0

    def __len__(self) -> int:
        return len(self._held)

    @property
    def size_bytes(self) -> int:
        """No less than the size of what is held."""
        return self._size_bytes

    def count_read(self, count: int, size_bytes: int, now: float) -> float:
        """Count what was read; return for how many seconds to read no more, mostly 0.0."""
        pause_s = max(self._read.take(count, now), self._bytes_read.take(size_bytes, now))
        return min(pause_s, _MOST_PAUSE_S)

    def hold(self, received: Sequence[tuple[Message, Head]]) -> None:
        """Hold messages, in the order in which they came."""
        for message, head in received:
            if self._dialect.state_kinds.get(head.type) in _MERGED:
                self._hold_state(message, head)
            elif self._dialect.is_superseded(head.type):
                self._replace(head.type, message)
            else:
                self._queue(message, head)
            if self._size_bytes > self._most_bytes or self._queued > self._most_queued:
                self._trim()

    def _hold_state(self, message: Message, head: Head) -> None:
        held = self._held.get(_STATE_KEY)
        state = held if isinstance(held, HeldState) else HeldState(self._dialect, is_text=message.is_text)
        before_bytes = state.size_bytes
        state.add(message, head)
        self._size_bytes += state.size_bytes - before_bytes
        self.merged += held is not None
        self._held[_STATE_KEY] = state

    def _replace(self, message_type: str, message: Message) -> None:
        replaced = self._held.get(message_type)
        if isinstance(replaced, Message):
            self.merged += 1
            self._size_bytes -= len(replaced.payload)
        self._held[message_type] = message
        self._size_bytes += len(message.payload)

    def _queue(self, message: Message, head: Head) -> None:
        self._number += 1
        self._held[self._number] = message
        self._queued += 1
        self._size_bytes += len(message.payload)
        if not self._dialect.must_reach(head.type, head.level):
            self._droppable.append(self._number)

    def _trim(self) -> None:
        """Drop what is too much: log lines first, then other messages, and the state last."""
        state = self._held.get(_STATE_KEY)
        if isinstance(state, HeldState):
            self._size_bytes -= state.size_bytes
            state.message()
            self._size_bytes += state.size_bytes
        while self._size_bytes > self._most_bytes or self._queued > self._most_queued:
            if self._droppable:
                key: str | int = self._droppable[0]
            else:
                key = next((key for key in self._held if isinstance(key, int)), next(iter(self._held)))
            self._take(key)
            self.dropped += 1

    def _take(self, key: str | int) -> Message:
        """Give a message back, and hold it no more."""
        held = self._held.pop(key)
        self._size_bytes -= held.size_bytes if isinstance(held, HeldState) else len(held.payload)
        if isinstance(key, int):
            self._queued -= 1
            if self._droppable and self._droppable[0] == key:
                self._droppable.popleft()
        return held.message() if isinstance(held, HeldState) else held

    def release(self, now: float) -> list[Message]:
        """Give back as many messages as may be passed on now."""
        count = min(len(self._held), int(self._pace.level(now)))
        if count:
            self._pace.take(count, now)
        return self._take_oldest(count)

    def release_all(self) -> list[Message]:
        """Give everything back: the device goes, and apps are to know what it said last."""
        return self._take_oldest(len(self._held))

    def drop_all(self) -> None:
        """Hold nothing more, and give nothing back."""
        self.dropped += len(self._take_oldest(len(self._held)))

    def summary(self, now: float) -> dict[str, str]:
        """Give what is kept of it: texts, as activity has them."""
        return {
            "throttledS": f"{now - self.began_at:.1f}",
            "merged": str(self.merged),
            "dropped": str(self.dropped),
        }

    def _take_oldest(self, count: int) -> list[Message]:
        return [self._take(next(iter(self._held))) for _ in range(count)]

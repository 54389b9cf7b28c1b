"""Throttle: the messages of a device on their way to its clients, held while it exceeds its rate.

The relay keeps reading from such a device and answers its pings: a machine whose ping waits behind a backlog
takes the connection for lost. Apps get fewer messages with the same content.
"""

from collections import OrderedDict, deque
from collections.abc import Sequence
from typing import Final

import trio

from brewos_relay.core.attachment import DeviceAttachment
from brewos_relay.core.audience import Audience
from brewos_relay.core.counters import Counters
from brewos_relay.core.limits import Limits
from brewos_relay.core.merging import HeldState
from brewos_relay.core.presence import Presence
from brewos_relay.core.rate_limits import LogLineLimits, TokenBucket
from brewos_relay.core.recording import Recorder, log_invalid, log_throttled
from brewos_relay.delivery import Delivery
from brewos_relay.dialect import Dialect, StateKind
from brewos_relay.messages import Head, Message, peek_json, peek_msgpack
from brewos_relay.raw_fields import MALFORMED
from brewos_relay.vocabulary import LONG_AGO

_MOST_WAIT_S: Final = 2.0
"""The relay holds at most as many messages that cannot be merged as it may release in this time."""
_MOST_BYTES: Final = 64 * 1024
_ANONYMOUS_BYTES: Final = 8 * 1024
"""The same for an anonymous device."""

_MOST_READ_PER_S: Final = 1000.0
"""Messages a second beyond which reading pauses after all. A machine sends 500 at most."""
_MOST_READ_BYTES_PER_S: Final = 1024.0 * 1024
_MOST_PAUSE_S: Final = 1.0
"""The longest pause. Up to 64 KiB are read after it, so a ping behind a short backlog is answered within 3
s."""


# A compiled module reads a constant faster than another variable.
_peek_json: Final = peek_json
_peek_msgpack: Final = peek_msgpack

_STATE_KEY: Final = ""
"""The key of the merged state, beside the types of other messages."""
_MERGED: Final = (StateKind.WHOLE, StateKind.CHANGE)


class Throttle:
    """Holds the messages of a device beyond its rate, and releases them at that rate.

    Changes are merged into the held state, and a message that the next one of its type supersedes is
    replaced. All other messages keep their order. There is a limit: beyond it the oldest messages are
    dropped, log lines first.
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
        # By type where the next message supersedes it, otherwise by number.
        self._held: OrderedDict[str | int, Message | HeldState] = OrderedDict()
        self._size_bytes = 0
        self._number = 0
        self._queued = 0  # how many are held by number
        self._droppable: deque[int] = deque()  # the numbers of messages that are dropped first
        self.began_at = now
        """When the device exceeded its rate (trio time)."""
        self.merged = 0
        """How many messages were merged into another one, or superseded by one."""
        self.dropped = 0

    def __len__(self) -> int:
        return len(self._held)

    @property
    def size_bytes(self) -> int:
        """An upper bound of the size of the held messages."""
        return self._size_bytes

    def count_read(self, count: int, size_bytes: int, now: float) -> float:
        """Count messages that were read; return for how many seconds to pause reading, mostly 0.0."""
        pause_s = max(self._read.take(count, now), self._bytes_read.take(size_bytes, now))
        return min(pause_s, _MOST_PAUSE_S)

    def hold(self, received: Sequence[tuple[Message, Head]]) -> None:
        """Hold messages in the order of their arrival."""
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
        """Drop what exceeds the limits: log lines first, then other messages, and the state last."""
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
        """Remove and return a message."""
        held = self._held.pop(key)
        self._size_bytes -= held.size_bytes if isinstance(held, HeldState) else len(held.payload)
        if isinstance(key, int):
            self._queued -= 1
            if self._droppable and self._droppable[0] == key:
                self._droppable.popleft()
        return held.message() if isinstance(held, HeldState) else held

    def release(self, now: float) -> list[Message]:
        """Release as many messages as the rate allows now."""
        count = min(len(self._held), int(self._pace.level(now)))
        if count:
            self._pace.take(count, now)
        return self._take_oldest(count)

    def release_all(self) -> list[Message]:
        """Release all messages, so that apps get the last messages of a device that goes."""
        return self._take_oldest(len(self._held))

    def drop_all(self) -> None:
        """Drop all messages."""
        self.dropped += len(self._take_oldest(len(self._held)))

    def summary(self, now: float) -> dict[str, str | int | float]:
        """Return the details that the activity keeps."""
        return {
            "throttledS": round(now - self.began_at, 1),
            "merged": self.merged,
            "dropped": self.dropped,
        }

    def _take_oldest(self, count: int) -> list[Message]:
        return [self._take(next(iter(self._held))) for _ in range(count)]


_RECORDED_EVERY_S: Final = 60.0
"""How often the activity of a device says that it is throttled; its history needs room for other entries."""


class DeviceFeed:
    """Messages of the device on their way to the snapshot and the clients.

    They pass at once while the device keeps its rate. Beyond it, a `Throttle` merges and holds them.
    """

    __slots__ = (
        "_audience",
        "_dialect",
        "_heard_before",
        "_limits",
        "_lines",
        "_presence",
        "_recorded_at",
        "_recorder",
        "counters",
        "throttle",
    )

    def __init__(
        self,
        presence: Presence,
        audience: Audience,
        *,
        limits: Limits,
        dialect: Dialect,
        counters: Counters,
        lines: LogLineLimits,
        recorder: Recorder,
    ) -> None:
        self._presence = presence
        self._audience = audience
        self._limits = limits
        self._dialect = dialect
        self.counters = counters
        self._lines = lines
        self._recorder = recorder
        self._heard_before = 0  # how many messages came before the present connection
        self._recorded_at = LONG_AGO  # when the activity last said that the device is throttled (trio time)
        self.throttle: Throttle | None = None
        """The held messages, while the device exceeds its rate."""

    def begin(self) -> None:
        """Count the messages of a new connection of the device from here on."""
        self._heard_before = self._audience.heard
        self._recorded_at = LONG_AGO

    def end(self, device: DeviceAttachment) -> None:
        """Release all held messages, and set how many messages the connection has sent."""
        self._end_throttle(device)
        device.received = self._audience.heard - self._heard_before

    def pass_on(self, device: DeviceAttachment, received: Sequence[Message]) -> None:
        """Keep the state, and send all messages to every client."""
        snapshot = self._presence.snapshot
        invalid = size_bytes = 0
        for message in received:
            payload = message.payload
            size_bytes += len(payload)
            try:  # as `Message.peek`, without a call for each message
                head: Head | None = (_peek_json if message.is_text else _peek_msgpack)(payload)
            except MALFORMED:
                head = message.peek()
            if head is None:
                invalid += 1
            else:
                snapshot.update(message, head.type, head.seq)
        if invalid:
            self.counters.invalid += invalid
            log_invalid(device, received, self._lines)
            received = [message for message in received if message.peek() is not None]
            size_bytes = sum(len(message.payload) for message in received)
        if received:
            self._audience.broadcast(Delivery(received), size_bytes)

    def hold(
        self, device: DeviceAttachment, bucket: TokenBucket, received: Sequence[Message], now: float
    ) -> float:
        """Hold messages beyond the rate; return for how many seconds to pause reading."""
        throttle = self.throttle
        count, size_bytes = len(received), sum(len(message.payload) for message in received)
        if throttle is None:
            allowed = bucket.level(now) + count
            bucket.owe(0, now)
            throttle = self.throttle = self._begin_throttle(device, allowed % 1, now)
            self.pass_on(device, received[: int(allowed)])
            received = received[int(allowed) :]
        else:
            bucket.owe(count, now)
        heads = [(message, head) for message in received if (head := message.peek()) is not None]
        if len(heads) < len(received):
            self.counters.invalid += len(received) - len(heads)
            log_invalid(device, received, self._lines)
        self.counters.bytes_from_devices += sum(len(message.payload) for message, _ in heads)
        self._heard_before -= len(heads)
        throttle.hold(heads)
        self.release(device, now)
        return throttle.count_read(count, size_bytes, now)

    def release(self, device: DeviceAttachment, now: float) -> None:
        """Release held messages as the rate allows; end the throttle once the device keeps its rate again."""
        throttle, bucket = self.throttle, device.bucket
        if throttle is None or bucket is None:
            return
        self._pass_on_held(device, throttle.release(now))
        if not len(throttle) and bucket.is_full(now):
            self._end_throttle(device)

    def drop_held(self) -> None:
        """Drop the held messages."""
        if self.throttle is not None:
            self.throttle.drop_all()

    def _begin_throttle(self, device: DeviceAttachment, allowed: float, now: float) -> Throttle:
        """Make the throttle; it may release `allowed` messages at once."""
        self.counters.throttled += 1
        if now - self._recorded_at >= _RECORDED_EVERY_S:
            self._recorded_at = now
            log_throttled(device, self._lines)
            self._recorder.record_activity(self._presence.device_id, "throttled", None, {})
        return Throttle(
            self._dialect,
            rate_per_s=self._limits.device_rate,
            burst=self._limits.device_burst,
            allowed=allowed,
            anonymous=self._presence.anonymous,
            now=now,
        )

    def _pass_on_held(self, device: DeviceAttachment, released: Sequence[Message]) -> None:
        if released:
            self._heard_before += len(released)
            self.pass_on(device, released)
            self._audience.settle()  # adds their bytes, which were counted when they came
            self.counters.bytes_from_devices -= sum(len(message.payload) for message in released)

    def _end_throttle(self, device: DeviceAttachment) -> None:
        """Release all held messages, and end the throttle."""
        throttle, self.throttle = self.throttle, None
        if throttle is None:
            return
        self._pass_on_held(device, throttle.release_all())
        self.counters.merged += throttle.merged
        self.counters.over_rate += throttle.dropped
        if throttle.began_at == self._recorded_at:
            summary = throttle.summary(trio.current_time())
            self._recorder.record_activity(self._presence.device_id, "throttle_ended", None, summary)

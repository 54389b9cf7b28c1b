"""History: recent measurements of a device, and its runs.

The snapshot hands over the messages that it has merged, unchanged. They are decoded later, outside of the
data path: `compact` reduces them to rows of numbers of a fixed size, and finds the runs in them. A run is the
time between the first and the last message with a sign that the device is at work: a shot of an espresso
machine.
"""

import itertools
import math
import struct
from collections.abc import Iterator, Mapping, Sequence
from typing import Final, NamedTuple

from brewos_relay.core.rate_limits import TokenBucket
from brewos_relay.core.reader import Reader
from brewos_relay.dialect import Dialect, Measure, Sign
from brewos_relay.messages import Message
from brewos_relay.raw_fields import MALFORMED

_UNKNOWN: Final = -0x8000
_MOST_STEPS: Final = 0x7FFF
_MOST_WHOLE: Final = 2**53
"""Larger integers are no measurements, and may have no float."""
_AT_WORK: Final = 1
_GONE: Final = 2

_unpack_head: Final = struct.Struct("<qB").unpack_from
"""Unpacks the time and the flags of a row."""

_APART_MS: Final = 250
"""Rows are at least this far apart. A machine sends two changes a second."""
_MARKED_S: Final = 1.0
"""How long before a mark its messages may have come: the time between two checks."""
_COMPACT_AFTER_S: Final = 30.0
"""Messages that say nothing about a run are decoded this long after they were handed over."""
_COMPACT_BYTES: Final = 8 * 1024
"""Or once they take this much memory."""
_MESSAGE_BYTES: Final = 128
"""The memory for a message besides its payload."""

TAIL_S: Final = 5.0
"""How long after its end the measurements belong to a run: coffee drips into the cup."""
_SHORTEST_S: Final = 2.0
"""A shorter run is not recorded."""
_LONGEST_S: Final = 300.0
"""A longer run is cut here: the device may have missed its end."""
_RUNS_PER_S: Final = 1 / 30
_RUNS_AT_ONCE: Final = 40.0
"""Limits of recorded runs of one device."""


class Samples(NamedTuple):
    """Measurements of a device, oldest first. A value is None if it is unknown; it holds until the next."""

    times_s: Sequence[float]
    """When each sample was taken (trio time)."""
    at_work: Sequence[bool]
    online: Sequence[bool]
    """False where the device went offline."""
    values: Mapping[str, Sequence[float | None]]
    """A list for each measure of the dialect."""


class Run(NamedTuple):
    """A time of work of a device, with the measurements until `TAIL_S` after its end."""

    began_at: float
    """Trio time."""
    ended_at: float
    complete: bool
    """Whether both its start and its end were seen."""
    samples: Samples


class _Segment:
    """Messages that were handed over: changes, and the message after them."""

    __slots__ = ("at", "changes", "is_end", "is_flat", "last", "marks", "size_bytes")

    def __init__(
        self,
        changes: Sequence[Message],
        marks: Sequence[tuple[int, float]],
        at: float,
        last: Message | None,
        is_flat: bool,
        is_end: bool,
        size_bytes: int,
    ) -> None:
        self.changes = changes
        self.marks = marks
        """Pairs of a number of changes, and the time by which the device had sent that many."""
        self.at = at
        self.last = last
        """A whole state, or a flat one."""
        self.is_flat = is_flat
        self.is_end = is_end
        """Whether the device went offline after these."""
        self.size_bytes = size_bytes


class Layout:
    """How rows of numbers are packed, and where the messages of a dialect have them."""

    def __init__(self, dialect: Dialect) -> None:
        self.measures = dialect.measures
        self.flat_type = dialect.flat_state
        self.steps = [measure.step for measure in dialect.measures]
        self.sign_values: list[object] = [sign.value for sign in dialect.at_work]
        self.row = struct.Struct(f"<qB{len(self.measures)}h")
        self.row_bytes = self.row.size
        self.nothing = [_UNKNOWN] * len(self.measures)
        self.rest = [False] * len(self.sign_values)
        fields: list[Measure | Sign] = [*dialect.measures, *dialect.at_work]
        self.reader = Reader([field.path for field in fields])
        """Reads the measures and then the signs of a message."""
        self.flat_reader = Reader([(field.flat,) if field.flat else () for field in fields])
        """The same for flat messages."""

    def samples(self, rows: bytes | bytearray | memoryview, origin: float) -> Samples:
        """Unpack rows."""
        columns = list(zip(*self.row.iter_unpack(rows), strict=True)) or [()] * (2 + len(self.measures))
        times, flags = columns[0], columns[1]
        return Samples(
            [origin + at / 1000 for at in times],
            [bool(flag & _AT_WORK) for flag in flags],
            [not flag & _GONE for flag in flags],
            {
                measure.name: [
                    None if steps == _UNKNOWN else _scaled(steps, measure.step) for steps in column
                ]
                for measure, column in zip(self.measures, columns[2:], strict=True)
            },
        )


class History:
    """The measurements of one device: messages that wait to be decoded, and rows of numbers."""

    __slots__ = (
        "_began_at",
        "_bucket",
        "_earlier_ms",
        "_ended_at",
        "_is_cut",
        "_last_flags",
        "_last_ms",
        "_layout",
        "_marks",
        "_marks_of",
        "_origin",
        "_rows",
        "_saw_rest",
        "_saw_start",
        "_segments",
        "_signs",
        "_taken_flat",
        "_urgent",
        "_values",
        "raw_bytes",
    )

    def __init__(self, layout: Layout, now: float) -> None:
        self._layout = layout
        self._origin = now  # the time zero of the rows (trio time)
        self._rows = bytearray()
        self._last_ms = self._earlier_ms = 0  # of the last row and the one before it, if there are any
        self._last_flags = 0
        self._segments: list[_Segment] = []  # few: a deque would take more memory
        self.raw_bytes = 0
        """The memory of the messages that wait."""
        self._marks: list[tuple[int, float]] = []
        self._marks_of: Sequence[Message] | None = None
        self._taken_flat: Message | None = None
        self._urgent = False
        self._values = layout.nothing.copy()
        self._signs = layout.rest.copy()
        self._saw_rest = False  # whether the device was seen not at work, so that a run begins visibly
        self._saw_start = False
        self._began_at: float | None = None
        self._ended_at: float | None = None
        self._is_cut = False  # whether the present run was recorded up to its longest time
        self._bucket: TokenBucket | None = None

    @property
    def size_bytes(self) -> int:
        """The memory of the messages and the rows."""
        return self.raw_bytes + len(self._rows)

    @property
    def rows_bytes(self) -> int:
        """The memory of the rows."""
        return len(self._rows)

    # The data path, a few times a minute

    def mark(self, changes: Sequence[Message], now: float) -> None:
        """Note that the device has sent these changes by now."""
        if changes is not self._marks_of:
            self._marks_of, self._marks = changes, []
        if changes and (not self._marks or self._marks[-1][0] < len(changes)):
            self._marks.append((len(changes), now))

    def take(
        self,
        changes: Sequence[Message],
        last: Message | None,
        now: float,
        *,
        changes_bytes: int = 0,
        is_flat: bool = False,
        is_end: bool = False,
        most_bytes: int,
    ) -> None:
        """Take messages over. Beyond `most_bytes`, the oldest ones are dropped undecoded."""
        marks = self._marks if changes is self._marks_of else []
        self._marks_of, self._marks = None, []
        size_bytes = changes_bytes + _MESSAGE_BYTES * (len(changes) + 1)
        if last is not None:
            size_bytes += len(last.payload)
        self._segments.append(_Segment(changes, marks, now, last, is_flat, is_end, size_bytes))
        self.raw_bytes += size_bytes
        self._urgent = self._urgent or last is not None or is_end
        while self.raw_bytes > most_bytes and len(self._segments) > 1:
            self.raw_bytes -= self._segments.pop(0).size_bytes

    def take_flat(self, message: Message, now: float, *, most_bytes: int) -> None:
        """Take over a flat state, if it is another one than the last time."""
        if message is not self._taken_flat:
            self._taken_flat = message
            self.take((), message, now, is_flat=True, most_bytes=most_bytes)

    # Compaction

    def is_due(self, now: float) -> bool:
        """Whether messages have to be decoded, or a run has to be ended."""
        if self._ended_at is not None and now >= self._ended_at + TAIL_S:
            return True
        if not self._segments:
            return False
        is_large = self.raw_bytes >= _COMPACT_BYTES
        return self._urgent or is_large or now - self._segments[0].at >= _COMPACT_AFTER_S

    def compact_some(self, now: float) -> tuple[int, Sequence[Run]] | None:
        """Decode the oldest messages that wait, about a millisecond's worth.

        Return their number and the runs in them; None once nothing waits.
        """
        if self._segments:
            segment = self._segments.pop(0)
            self.raw_bytes -= segment.size_bytes
            return len(segment.changes) + 1, self._compact(segment)
        self._urgent = False
        if self._ended_at is not None and now >= self._ended_at + TAIL_S:
            run = self._end_run(now, complete=True)
            return 1, [run] if run is not None else []
        return None

    def _compact(self, segment: _Segment) -> list[Run]:
        runs = []
        if segment.changes:
            for message, at in zip(segment.changes, _times(segment), strict=True):
                runs.append(self._add(message, at, is_whole=False, is_flat=False))
        if segment.last is not None:
            # A flat state may leave measurements out, like a change. Their values hold.
            is_flat = segment.is_flat
            runs.append(self._add(segment.last, segment.at, is_whole=not is_flat, is_flat=is_flat))
        if segment.is_end:
            runs.append(self._go_offline(segment.at))
        return [run for run in runs if run is not None]

    def _go_offline(self, at: float) -> Run | None:
        run = None
        if self._began_at is not None:
            run = self._end_run(at, complete=self._ended_at is not None)
        self._values[:], self._signs[:] = self._layout.nothing, self._layout.rest
        self._saw_rest = self._is_cut = False
        self._add_row(at, _GONE)
        return run

    def _add(self, message: Message, at: float, *, is_whole: bool, is_flat: bool) -> Run | None:
        """Add the measurements of a message. Values of a wrong type, and those too large, are unknown.

        Return a run that has ended.
        """
        layout = self._layout
        try:
            found = (layout.flat_reader if is_flat else layout.reader).read(message)
        except MALFORMED:
            return None
        values, signs = self._values, self._signs
        for number, step in enumerate(layout.steps):
            if (value := found[number]) is not None:
                values[number] = _steps(value, step)
            elif is_whole:
                values[number] = _UNKNOWN
        for number, wanted in enumerate(layout.sign_values):
            if (value := found[len(values) + number]) is not None:
                signs[number] = type(value) is type(wanted) and value == wanted
            elif is_whole:
                signs[number] = False
        at_work = True in signs
        run = self._follow(at, at_work=at_work)
        self._add_row(at, _AT_WORK if at_work else 0)
        return run

    def _follow(self, at: float, *, at_work: bool) -> Run | None:
        """Follow the start and the end of runs. Return one that has ended."""
        ended = None
        if self._began_at is not None and self._ended_at is None and at - self._began_at > _LONGEST_S:
            ended = self._end_run(self._began_at + _LONGEST_S, complete=False)
            self._is_cut = True
        if self._ended_at is not None and (at_work or at >= self._ended_at + TAIL_S):
            ended = self._end_run(at, complete=True)
        if not at_work:
            self._saw_rest, self._is_cut = True, False
            if self._began_at is not None and self._ended_at is None:
                self._ended_at = at
        elif self._began_at is None and not self._is_cut:
            self._began_at, self._saw_start = at, self._saw_rest
        return ended

    def _end_run(self, now: float, *, complete: bool) -> Run | None:
        """End the present run. Return None if it is too short, or there were too many of late."""
        began_at = self._began_at
        assert began_at is not None
        ended_at = self._ended_at if self._ended_at is not None else now
        complete = complete and self._saw_start
        self._began_at = self._ended_at = None
        if ended_at - began_at < _SHORTEST_S:
            return None
        if self._bucket is None:
            self._bucket = TokenBucket(rate_per_s=_RUNS_PER_S, burst=_RUNS_AT_ONCE, now=now)
        if not self._bucket.admit(max(now, ended_at)):
            return None
        first, end = self._number_of(began_at), self._number_of(min(now, ended_at + TAIL_S) + 0.001)
        size = self._layout.row_bytes
        samples = self._layout.samples(bytes(self._rows[first * size : end * size]), self._origin)
        return Run(began_at, ended_at, complete, samples)

    # Rows

    def _add_row(self, at: float, flags: int) -> None:
        rows, row_bytes = self._rows, self._layout.row_bytes
        at_ms = self._ms_of(at)
        if rows:
            # The clock is steady, but two sources of messages are not in order.
            at_ms = max(at_ms, self._last_ms)
            if flags == self._last_flags and len(rows) > row_bytes and at_ms - self._earlier_ms < _APART_MS:
                del rows[-row_bytes:]
            else:
                self._earlier_ms = self._last_ms
        self._last_ms, self._last_flags = at_ms, flags
        rows += self._layout.row.pack(at_ms, flags, *self._values)

    def _ms_of(self, at: float) -> int:
        """Return a time in ms as rows have it."""
        return math.floor((at - self._origin) * 1000 + 0.5)

    def _number_of(self, at: float) -> int:
        """Return the number of the first row at or after a time."""
        size, rows = self._layout.row_bytes, self._rows
        wanted_ms = self._ms_of(at)
        low, high = 0, len(rows) // size
        while low < high:
            middle = (low + high) // 2
            if _unpack_head(rows, middle * size)[0] < wanted_ms:
                low = middle + 1
            else:
                high = middle
        return low

    def trim(self, now: float, *, seconds: float, most_bytes: int) -> None:
        """Drop rows that are too old, but the last of them, whose values still hold.

        If the rest has too many bytes, every second row of the older half is dropped, and so on.
        """
        rows, size = self._rows, self._layout.row_bytes
        if (old := self._number_of(now - seconds)) > 1:
            del rows[: (old - 1) * size]
        while len(rows) > max(most_bytes, size):
            count = len(rows) // size
            if count <= 3:  # the last two rows stay, because `_add_row` knows their times
                del rows[:size]
                continue
            half = count // 2 + 1
            kept = b"".join(rows[at * size : (at + 1) * size] for at in range(0, half, 2))
            rows[: half * size] = kept

    def samples(self, now: float, *, seconds: float) -> Samples:
        """Return the measurements of the last seconds. The first may be older: its values held then."""
        first = max(0, self._number_of(now - seconds) - 1)
        return self._layout.samples(bytes(self._rows[first * self._layout.row_bytes :]), self._origin)

    def is_over(self, now: float, *, seconds: float) -> bool:
        """Whether the device has gone, and its measurements are too old."""
        if self._segments or self._marks:
            return False
        if not self._rows:
            return now - self._origin >= seconds
        is_gone = self._last_flags & _GONE != 0
        return is_gone and now - (self._origin + self._last_ms / 1000) >= seconds

    def count_pause(self, unseen_s: float) -> None:
        """Make all measurements older by a pause that is missing on Trio's clock."""
        self._origin -= unseen_s
        if self._began_at is not None:
            self._began_at -= unseen_s
        if self._ended_at is not None:
            self._ended_at -= unseen_s


def _times(segment: _Segment) -> Iterator[float]:
    """Return when each change came, spread evenly over the time between two marks."""
    number, before = 0, -math.inf
    for count, at in itertools.chain(segment.marks, [(len(segment.changes), segment.at)]):
        start = max(before, at - _MARKED_S)
        for each in range(1, count - number + 1):
            yield start + (at - start) * each / (count - number)
        number, before = max(number, count), at


def _steps(value: object, step: float) -> int:
    """Return a number in steps; `_UNKNOWN` for any other value, and one that is too large."""
    if type(value) is float:
        number = value
    elif type(value) is int and -_MOST_WHOLE <= value <= _MOST_WHOLE:
        number = float(value)
    else:
        return _UNKNOWN
    steps = number / step
    return math.floor(steps + 0.5) if -_MOST_STEPS <= steps <= _MOST_STEPS else _UNKNOWN  # or not a number


def _scaled(steps: int, step: float) -> float | None:
    return None if steps == _UNKNOWN else round(steps * step, 3)

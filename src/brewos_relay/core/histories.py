"""Histories: the histories of all devices of a relay, and the turns in which their messages are decoded."""

from collections import deque
from collections.abc import Callable, Mapping, Sequence
from typing import Final, NamedTuple

import trio

from brewos_relay.core.history import History, Layout, Run, Samples
from brewos_relay.core.limits import Limits
from brewos_relay.dialect import Dialect
from brewos_relay.messages import Message

_LEAST_BYTES: Final = 2 * 1024
"""The memory for the history of one device, if it has measurements at all."""
_WORK_PER_PASS: Final = 20
"""How many histories are checked, or messages decoded, before other tasks get their turn."""
_PASSES_PER_TRIM: Final = 20
"""How often old measurements are dropped. Too many are dropped as they come."""
_MOST_QUESTIONS: Final = 100
MOST_WAITING: Final = 1000
"""How many runs of all devices may wait until they are stored."""


class _Question(NamedTuple):
    device_id: str
    seconds: float
    answer: Callable[[Samples | None], None]


class Histories:
    """The histories of a relay's devices, by id. They outlast the connections, until they are too old."""

    def __init__(self, limits: Limits, dialect: Dialect) -> None:
        self._limits = limits
        self._layout = Layout(dialect)
        self._of: dict[str, History] = {}
        self._runs: deque[tuple[str, Run]] = deque()
        self._most_bytes = 0  # the memory for messages and for rows of each device
        self._passes = 0
        self._questions: deque[_Question] = deque()
        self._asked = trio.Event()
        self.runs_dropped = 0
        """Runs that were dropped because too many waited to be stored."""
        self.is_on = limits.history_s > 0 and bool(dialect.measures)
        """Whether histories are kept."""

    def __len__(self) -> int:
        return len(self._of)

    @property
    def size_bytes(self) -> int:
        """The memory of all histories."""
        return sum(history.size_bytes for history in self._of.values())

    def _share_memory(self) -> None:
        """Divide the memory among the devices. There is one more, or one less."""
        limits = self._limits
        each = limits.history_total_bytes // max(1, len(self._of))
        self._most_bytes = min(limits.history_bytes, each) // 2

    def _open(self, device_id: str, now: float) -> History | None:
        """Return the history of a device, which may be new. None if there is no room for another."""
        if (history := self._of.get(device_id)) is None:
            if (len(self._of) + 1) * _LEAST_BYTES > self._limits.history_total_bytes:
                return None
            history = self._of[device_id] = History(self._layout, now)
            self._share_memory()
        return history

    def mark(
        self, device_id: str, changes: Sequence[Message], others: Mapping[str, Message], now: float
    ) -> None:
        """Note what a device has sent by now: changes that are not handed over yet, and other messages."""
        flat = others.get(self._layout.flat_type) if others and self._layout.flat_type else None
        if (changes or flat is not None) and (history := self._open(device_id, now)) is not None:
            history.mark(changes, now)
            if flat is not None:
                history.take_flat(flat, now, most_bytes=self._most_bytes)

    def take(
        self,
        device_id: str,
        changes: Sequence[Message],
        whole: Message | None = None,
        *,
        changes_bytes: int,
        now: float | None = None,
    ) -> None:
        """Take over merged changes, and the whole state that came after them.

        `changes_bytes` is the size of the payloads of the changes. Without `now`, this reads the clock.
        """
        if now is None:
            now = trio.current_time()
        if (history := self._open(device_id, now)) is not None:
            history.take(changes, whole, now, changes_bytes=changes_bytes, most_bytes=self._most_bytes)

    def end(self, device_id: str, now: float) -> None:
        """Note that a device goes offline. Its messages were handed over before."""
        if (history := self._of.get(device_id)) is not None:
            history.take((), None, now, is_end=True, most_bytes=self._most_bytes)

    def forget(self, device_id: str) -> None:
        """Forget the history of a device."""
        if self._of.pop(device_id, None) is not None:
            self._share_memory()

    def count_pause(self, unseen_s: float) -> None:
        """Make all measurements older by a pause that is missing on Trio's clock."""
        for history in self._of.values():
            history.count_pause(unseen_s)

    async def compact_due(self) -> None:
        """Decode the messages that are due, and drop old measurements. Other tasks run in between."""
        self._passes += 1
        trims = self._passes % _PASSES_PER_TRIM == 0
        now, work = trio.current_time(), 0
        for device_id in list(self._of):
            work += 1
            if work >= _WORK_PER_PASS:
                await trio.lowlevel.checkpoint()
                now, work = trio.current_time(), 0
            if (history := self._of.get(device_id)) is None:
                continue
            if history.is_due(now):
                work = await self._compact(device_id, history, now, work)
            elif history.is_over(now, seconds=self._limits.history_s):
                self.forget(device_id)
                continue
            if trims:
                self._trim(history)
        await trio.lowlevel.checkpoint()

    async def read(self, device_id: str, *, seconds: float) -> Samples | None:
        """Return the measurements of a device's last seconds; None if there are none."""
        if (history := self._of.get(device_id)) is None:
            await trio.lowlevel.checkpoint()
            return None
        await self._compact(device_id, history, trio.current_time(), 0)
        await trio.lowlevel.checkpoint()
        return history.samples(trio.current_time(), seconds=min(seconds, self._limits.history_s))

    def ask(self, device_id: str, seconds: float, answer: Callable[[Samples | None], None]) -> None:
        """Have `answer` called with the measurements of a device; with None if there are too many questions.

        For callers that cannot wait.
        """
        if len(self._questions) >= _MOST_QUESTIONS:
            answer(None)
            return
        self._questions.append(_Question(device_id, seconds, answer))
        self._asked.set()

    async def answer(self, *, within_s: float) -> None:
        """Answer questions that come within this time."""
        with trio.move_on_after(within_s):
            while True:
                await self._asked.wait()
                self._asked = trio.Event()
                while self._questions:
                    device_id, seconds, answer = self._questions.popleft()
                    answer(await self.read(device_id, seconds=seconds))

    async def _compact(self, device_id: str, history: History, now: float, work: int) -> int:
        """Decode all messages that wait. Other tasks run after as much work as fits into a pass.

        Takes and returns the work that was done since they ran.
        """
        while (compacted := history.compact_some(now)) is not None:
            decoded, runs = compacted
            for run in runs:
                self._add_run(device_id, run)
            work += decoded
            if work >= _WORK_PER_PASS:
                self._trim(history)
                await trio.lowlevel.checkpoint()
                now, work = trio.current_time(), 0
        if history.rows_bytes > self._most_bytes:
            self._trim(history)
        return work

    def _add_run(self, device_id: str, run: Run) -> None:
        self._runs.append((device_id, run))
        if len(self._runs) > MOST_WAITING:
            self._runs.popleft()
            self.runs_dropped += 1

    def _trim(self, history: History) -> None:
        seconds = self._limits.history_s
        history.trim(trio.current_time(), seconds=seconds, most_bytes=self._most_bytes)

    def take_runs(self, most: int) -> list[tuple[str, Run]]:
        """Return runs that have ended, with their devices, the oldest first. They are not returned again."""
        return [self._runs.popleft() for _ in range(min(most, len(self._runs)))]

    def put_back(self, runs: Sequence[tuple[str, Run]]) -> None:
        """Put back runs that could not be stored."""
        self._runs.extendleft(reversed(runs))

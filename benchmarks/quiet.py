"""Notice when other programs use the machine during a measurement, and measure again."""

import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from processes import cpu_s_of_others
from progress import say

DISTURBED_PCT = 10.0
"""Others disturb a measurement if they use more than this share of one processor."""
REPEATS = 2
WAIT_S, LOOK_S = 30.0, 0.5
TICKS_PER_S = os.sysconf("SC_CLK_TCK")

Report = dict[str, Any]


def stolen_s(stat: str) -> float:
    """Return the time that the host gave to other virtual machines, from the text of /proc/stat."""
    fields = next(line.split() for line in stat.splitlines() if line.startswith("cpu "))
    return int(fields[8]) / TICKS_PER_S if len(fields) > 8 else 0.0


class Meter:
    """Measures the CPU time that other programs use from now on."""

    def __init__(
        self, *, clock: Callable[[], float] = time.monotonic, used_s: Callable[[], float] | None = None
    ) -> None:
        self._clock = clock
        self._used_s = used_s or _used_by_others_s
        self._began_s, self._before_s = clock(), self._used_s()

    def others_pct(self) -> float:
        """Return the time that others have used since the start, in percent of one processor."""
        used_s, elapsed_s = self._used_s() - self._before_s, self._clock() - self._began_s
        return max(0.0, used_s / elapsed_s * 100) if elapsed_s > 0 else 0.0


def _used_by_others_s() -> float:
    return cpu_s_of_others() + stolen_s(Path("/proc/stat").read_text())


def look_pct() -> float:
    """Measure for a moment how much other programs use."""
    meter = Meter()
    time.sleep(LOOK_S)
    return meter.others_pct()


@dataclass(frozen=True, slots=True, kw_only=True)
class Quiet:
    """When to measure again, and how often."""

    limit_pct: float = DISTURBED_PCT
    repeats: int = REPEATS
    look: Callable[[], float] = look_pct
    meter: Callable[[], Meter] = Meter

    def measure(self, measure: Callable[[], Report], *, label: str) -> Report:
        """Return the first report that others did not disturb, else the least disturbed one.

        `others_pct` says how much others used meanwhile, and `disturbed` that it was too much.
        """
        least: Report | None = None
        for attempt in range(1 + self.repeats):
            if attempt:
                self.wait()
            meter = self.meter()
            report = measure()
            others_pct = meter.others_pct()
            report |= {"others_pct": round(others_pct, 1), "attempts": attempt + 1}
            if others_pct <= self.limit_pct:
                return report
            again = "; once more" if attempt < self.repeats else ""
            say(f"{label} DISTURBED: others used {others_pct:.0f} % of a processor{again}")
            if least is None or others_pct < least["others_pct"]:
                least = report
        assert least is not None
        return least | {"attempts": 1 + self.repeats, "disturbed": True}

    def wait(self) -> None:
        """Wait until other programs use little, but not for long."""
        for _ in range(round(WAIT_S / LOOK_S)):
            if self.look() <= self.limit_pct:
                return

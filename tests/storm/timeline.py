"""Statistics of reconnect times."""

from collections.abc import Sequence
from typing import Final

BAR_WIDTH: Final = 40


def share_back_after(times_s: Sequence[float], share: float) -> float:
    """Return after how many seconds this share of the peers was back, given the time of each."""
    ordered = sorted(times_s)
    return ordered[max(0, min(len(ordered), round(share * len(ordered))) - 1)]


def most_in_a_second(times_s: Sequence[float]) -> int:
    """Count the times in the fullest second, which may begin at any time."""
    ordered = sorted(times_s)
    most = first = 0
    for last, at in enumerate(ordered):
        while ordered[first] <= at - 1:
            first += 1
        most = max(most, last - first + 1)
    return most


def histogram(times_s: Sequence[float], *, step_s: float) -> list[str]:
    """Draw how many came back in each step, from the first step with any."""
    counts: dict[int, int] = {}
    for at in times_s:
        counts[int(at // step_s)] = counts.get(int(at // step_s), 0) + 1
    if not counts:
        return []
    most = max(counts.values())
    lines = []
    for step in range(min(counts), max(counts) + 1):
        count = counts.get(step, 0)
        bar = "#" * round(count / most * BAR_WIDTH)
        lines.append(f"{step * step_s:5.0f} to {(step + 1) * step_s:3.0f} s  {count:6d} {bar}".rstrip())
    return lines

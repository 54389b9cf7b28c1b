"""Figures of the relay alone: each part of them is measured together, once in a round."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from statistics import median

from progress import say, warn
from quiet import Quiet, Report
from servers import BenchError
from table import markdown

UNTIMED = frozenset({"history"})
"""Parts that measure memory only."""
VERDICTS = {None: "", True: "ok", False: "**MISSED**"}
DURATIONS = {
    "crossing": (20.0, 3.0),
    "local": (10.0, 24.0),
    "reclaim": (25.0, 0.0),
    "workers": (30.0, 6.0),
    "tls": (6.0, 14.0),
    "history": (14.0, 22.0),
}
"""About how long each part takes in s: at least, and in addition for each second of `--secs`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PartFigure:
    """One figure: its part, its key, a label, the unit, and a limit.

    `is_least` says that the limit is the least value instead of the greatest one.
    """

    part: str
    key: str
    title: str
    unit: str
    limit: float | None = None
    is_least: bool = False

    def judge(self, value: float) -> bool | None:
        """Whether the limit was kept; None if there is none."""
        if self.limit is None:
            return None
        return value >= self.limit if self.is_least else value <= self.limit


def part_duration_s(name: str, secs: float) -> float:
    """Return about how long a part takes."""
    least, times = DURATIONS[name]
    return least + times * secs


def measure_part(name: str, measure: Callable[[], Report], *, quiet: Quiet, label: str) -> Report | None:
    """Measure a part; return its figures, or None if that failed. Other programs do not change memory."""
    try:
        found = measure() if name in UNTIMED else quiet.measure(measure, label=label)
    except (BenchError, OSError) as error:
        warn(f"{label}: {error}")
        return None
    say(f"{label}: {', '.join(f'{key} {value:.4g}' for key, value in found.items() if key != 'build')}")
    return {"part": name, **found}


def values_of(reports: Sequence[Mapping[str, object]], figure: PartFigure) -> list[float]:
    """Return a figure by round: of the undisturbed ones, if there are any. Rounds without it are left out."""
    there = [report for report in reports if figure.key in report and report["part"] == figure.part]
    valid = [report for report in there if not report.get("disturbed")] or there
    return [float(str(report[figure.key])) for report in valid]


def parts_table(figures: Sequence[PartFigure], reports: Sequence[Mapping[str, object]]) -> str:
    """Return the table, in Markdown: medians, their range, and verdicts; empty if there is no figure."""
    header = ("Part", "Figure", "Limit", "Median", "Range", "Verdict")
    rows = []
    for figure in figures:
        values = values_of(reports, figure)
        if not values:
            continue
        kept = figure.judge(median(values))
        limit = (
            "-"
            if figure.limit is None
            else f"{'≥' if figure.is_least else '≤'} {figure.limit:,g} {figure.unit}".rstrip()
        )
        there = [report for report in reports if report["part"] == figure.part]
        disturbed = all(report.get("disturbed") for report in there)
        compiled = any(report.get("build") == "compiled" for report in there)
        rows.append(
            (
                figure.part + (" (compiled)" if compiled else ""),
                figure.title,
                limit,
                f"{_number(median(values))} {figure.unit}".rstrip(),
                f"{_number(min(values))} to {_number(max(values))}",
                ", ".join(filter(None, [VERDICTS[kept], "disturbed" if disturbed else ""])) or "-",
            )
        )
    return markdown(header, rows)


def count_missed_parts(figures: Sequence[PartFigure], reports: Sequence[Mapping[str, object]]) -> int:
    """Count the limits that were missed."""
    return sum(
        figure.judge(median(values)) is False for figure in figures if (values := values_of(reports, figure))
    )


def _number(value: float) -> str:
    size = abs(value)
    return f"{value:,.{0 if size >= 100 else 1 if size >= 10 else 2}f}"

"""Rounds of measurements."""

import os
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from measuring import duration_s, measure_quietly
from parts import measure_part, part_duration_s
from pinning import Pins, describe
from processes import adopt_orphans
from progress import describe_python, say, warn
from quiet import Quiet, Report
from saved import Saved
from servers import BenchError, Server
from workloads import Workload


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """The measurements of each round, and their conditions."""

    turns: Mapping[Workload, Sequence[Server]]
    """Workloads, and the servers that take turns in them."""
    parts: Mapping[str, Callable[[], Report]]
    runs: int
    secs: float
    pins: Pins
    quiet: Quiet
    json: Path | None = None

    @property
    def round_s(self) -> float:
        """About how long a round takes."""
        durations = [duration_s(workload, self.secs) * len(turns) for workload, turns in self.turns.items()]
        return sum(durations) + sum(part_duration_s(name, self.secs) for name in self.parts)

    def describe(self) -> str:
        """Say how long it takes, and where."""
        return (
            f"{self.runs} rounds of about {self.round_s / 60:.1f} min, "
            f"{self.runs * self.round_s / 60:.0f} min in all if other programs do not disturb; "
            f"{describe_python()}; {describe(self.pins)}"
        )


class Progress:
    """Numbers the measurements, and estimates the time that is left."""

    def __init__(self, plan: Plan, clock: Callable[[], float] = time.monotonic) -> None:
        self._total = plan.runs * (sum(map(len, plan.turns.values())) + len(plan.parts))
        self._planned_s = plan.runs * plan.round_s
        self._clock, self._began_s = clock, clock()
        self._done, self._done_s = 0, 0.0

    def begin(self, duration_s: float) -> str:
        """Return the label of the next measurement, which takes about this long."""
        slower = (self._clock() - self._began_s) / self._done_s if self._done_s else 1.0
        left_min = (self._planned_s - self._done_s) * slower / 60
        self._done += 1
        self._done_s += duration_s
        return f"[{self._done}/{self._total} {left_min:3.0f} min left]"


def measure_rounds(plan: Plan, saved: Saved) -> int:
    """Measure everything `runs` times, add it to `saved`, and return the number of failures.

    The servers take turns within a workload, so all of them are measured in the same minute, and another one
    begins in each round.
    """
    adopt_orphans()
    failures = 0
    progress = Progress(plan)
    for run in range(plan.runs):
        saved.rounds.append(_describe_round(run, plan.quiet))
        for workload, servers in plan.turns.items():
            for place in range(len(servers)):
                server = servers[(run + place) % len(servers)]
                label = (
                    f"{progress.begin(duration_s(workload, plan.secs))} {workload.name:<18} {server.name:<10}"
                )
                report = _measure(plan, workload, server, label)
                failures += report is None
                if report is not None:
                    where = {"run": run, "workload": workload.name, "server": server.name}
                    saved.reports.append(where | report)
                    _write(plan, saved)
        for name, measure in plan.parts.items():
            label = f"{progress.begin(part_duration_s(name, plan.secs))} {name}"
            report = measure_part(name, measure, quiet=plan.quiet, label=label)
            failures += report is None
            if report is not None:
                saved.parts.append({"run": run} | report)
                _write(plan, saved)
    return failures


def _measure(plan: Plan, workload: Workload, server: Server, label: str) -> Report | None:
    """Return the report of a measurement; None if it failed."""
    try:
        report = measure_quietly(
            server, workload, secs=plan.secs, pins=plan.pins, quiet=plan.quiet, label=label
        )
    except (BenchError, OSError) as error:
        warn(f"{label} {error}")
        return None
    figures = (f"{figure.title} {report[figure.key]:.2f} {figure.unit}" for figure in workload.figures)
    say(f"{label} {', '.join(figures)}")
    return report


def _describe_round(run: int, quiet: Quiet) -> Report:
    load_1min, _, _ = os.getloadavg()
    others_pct = quiet.look()
    say(f"Round {run + 1}: load {load_1min:.1f}, other programs use {others_pct:.0f} % of a processor")
    return {"run": run, "load": load_1min, "others_pct": others_pct}


def _write(plan: Plan, saved: Saved) -> None:
    if plan.json is not None:
        saved.write(plan.json)

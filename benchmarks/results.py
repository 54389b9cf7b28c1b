"""What the measurements say: medians, ratios within a round, and how a cost grows with the work."""

import math
from collections.abc import Iterable, Mapping, Sequence
from statistics import median

from workloads import GROWTHS, WORKLOADS, Growth, Workload

NOISE = 1.5
"""From how many times the least ratio on the greatest one shows that others use the machine."""

Rounds = Mapping[int, float]
"""One figure of one server, by round."""


class Results:
    """All measurements: `reports` are what `load` reported, each with its `run`, `workload` and `server`.

    A disturbed measurement counts only if its server has no undisturbed one of the workload.
    """

    def __init__(self, reports: Sequence[Mapping[str, object]]) -> None:
        self._values: dict[tuple[str, str, str], dict[int, float]] = {}
        valid = {(row["workload"], row["server"]) for row in reports if not row.get("disturbed")}
        self._disturbed: set[tuple[str, str]] = set()
        for report in reports:
            workload, server, run = str(report["workload"]), str(report["server"]), report["run"]
            assert isinstance(run, int)
            if report.get("disturbed"):
                if (workload, server) in valid:
                    continue
                self._disturbed.add((workload, server))
            for key, value in report.items():
                if isinstance(value, int | float) and key not in {"run", "disturbed"}:
                    self._values.setdefault((workload, key, server), {})[run] = float(value)

    def rounds(self, workload: str, key: str, server: str) -> Rounds:
        return self._values.get((workload, key, server), {})

    def figure(self, workload: str, key: str, server: str) -> float | None:
        """Return the median of the rounds; None if it was not measured."""
        values = self.rounds(workload, key, server).values()
        return median(values) if values else None

    def ratios(self, workload: str, key: str, server: str, other: str) -> list[float]:
        """Divide a server's figure by another's, round by round: the two were measured in the same minute."""
        others = self.rounds(workload, key, other)
        return [
            value / others[run]
            for run, value in self.rounds(workload, key, server).items()
            if others.get(run, 0) > 0
        ]

    def ratio(self, workload: str, key: str, server: str, other: str) -> float | None:
        """Return the median of the ratios; None if there is none."""
        ratios = self.ratios(workload, key, server, other)
        return median(ratios) if ratios else None

    def was_measured(self, workload: Workload) -> bool:
        return any(name == workload.name for name, _, _ in self._values)

    def is_disturbed(self, workload: str, servers: Iterable[str]) -> bool:
        """Whether the figures of one of these servers are from disturbed measurements only."""
        return any((workload, server) in self._disturbed for server in servers)

    def costs(self, growth: Growth, server: str, run: int | None = None) -> dict[int, float]:
        """Return the cost of all the work by its size: of one round, or the medians."""
        found = {}
        for workload in WORKLOADS:
            if workload.name not in growth.sizes:
                continue
            key = workload.figures[0].key
            cost = (
                self.figure(workload.name, key, server)
                if run is None
                else self.rounds(workload.name, key, server).get(run)
            )
            if cost is not None and cost > 0:
                # What a delivery costs is paid for each app; what a second costs is that of all devices.
                shares = workload.apps if workload.group == "apps" else 1
                found[growth.sizes[workload.name]] = cost * shares
        return found

    def exponents(self, growth: Growth, server: str) -> list[float]:
        """Return the exponent of the growth of the cost, for each round with at least three sizes."""
        runs = sorted(
            {run for (_, _, name), values in self._values.items() if name == server for run in values}
        )
        curves = [self.costs(growth, server, run) for run in runs]
        return [fit_exponent(curve) for curve in curves if len(curve) >= 3]

    def per_doubling(self, growth: Growth, server: str) -> float | None:
        """Return by how much the cost grows when the size doubles; None if that was not measured."""
        exponents = self.exponents(growth, server)
        return 2.0 ** median(exponents) if exponents else None


def fit_exponent(curve: Mapping[float, float] | Mapping[int, float]) -> float:
    """Return the exponent p of the curve a·size^p that fits best, by least squares of the logarithms."""
    points = [(math.log(size), math.log(cost)) for size, cost in curve.items()]
    middle_x = sum(x for x, _ in points) / len(points)
    middle_y = sum(y for _, y in points) / len(points)
    spread = sum((x - middle_x) ** 2 for x, _ in points)
    return sum((x - middle_x) * (y - middle_y) for x, y in points) / spread


def is_noisy(ratios: Sequence[float]) -> bool:
    """Whether the ratios of the rounds differ too much for a reliable verdict."""
    return bool(ratios) and max(ratios) > NOISE * min(ratios)


def judge(results: Results, workload: Workload) -> bool | None:
    """Whether the relay kept the limit; None if there is no limit, or its measurements are missing."""
    key = workload.figures[0].key
    value = (
        results.ratio(workload.name, key, "relay", "floor")
        if workload.limits_ratio
        else results.figure(workload.name, key, "relay")
    )
    return None if value is None or workload.limit is None else value <= workload.limit


def judge_target(results: Results, workload: Workload, other: str) -> bool | None:
    """Whether the compiled relay kept one of its targets; None if a measurement is missing."""
    value = target_value(results, workload, other)
    return None if value is None else value <= workload.targets[other]


def target_value(results: Results, workload: Workload, other: str) -> float | None:
    """Return the compiled relay's figure divided by that of `other`; by its own name, the figure itself."""
    key = workload.target_figure.key
    if other == "compiled":
        return results.figure(workload.name, key, other)
    return results.ratio(workload.name, key, "compiled", other)


def judge_growth(results: Results, growth: Growth) -> bool | None:
    """Say whether the relay's cost grows no faster than it may; None when that was not measured."""
    value = results.per_doubling(growth, "relay")
    return None if value is None else value <= growth.limit


def count_missed_targets(results: Results) -> int:
    """Count the targets of the compiled relay that were missed."""
    verdicts = [
        judge_target(results, workload, other) for workload in WORKLOADS for other in workload.targets
    ]
    return verdicts.count(False)


def count_missed(results: Results) -> int:
    """Count the limits of the interpreted relay that were missed."""
    verdicts = [judge(results, workload) for workload in WORKLOADS]
    verdicts += [judge_growth(results, growth) for growth in GROWTHS]
    return verdicts.count(False)

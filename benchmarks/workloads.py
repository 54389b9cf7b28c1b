"""What is measured, against which limit, and the table that says how it came out."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import median

FIRST_DEVICE = 0x100

Samples = Mapping[str, Mapping[str, Sequence[float]]]
"""Workload name → server name → one figure for each round."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Workload:
    """One row of the table: what `load` is told, which of its figures counts, and how high that may be.

    `limit` is a multiple of the floor's figure where `is_ratio` is true, and the figure itself elsewhere.
    """

    name: str
    mode: str
    devices: int
    apps: int
    limit: float
    arguments: tuple[str, ...] = ()
    figure: str = "cpu_us_per_delivery"
    unit: str = "µs"
    is_ratio: bool = True

    @property
    def connections(self) -> int:
        return self.devices * (self.apps + 1)

    @property
    def command(self) -> list[str]:
        """The arguments of `load` that make this workload."""
        sizes = ["--devices", str(self.devices), "--apps", str(self.apps), "--base", hex(FIRST_DEVICE)]
        return [self.mode, *sizes, *self.arguments]


def _fanout(devices: int, apps: int, window: int, limit: float) -> Workload:
    return Workload(
        name=f"fanout-{devices}x{apps}-w{window}",
        mode="fanout",
        devices=devices,
        apps=apps,
        arguments=("--window", str(window)),
        limit=limit,
    )


WORKLOADS = (
    _fanout(50, 1, 1, 2.0),
    _fanout(50, 1, 4, 1.6),
    _fanout(1, 100, 1, 1.4),
    _fanout(20, 10, 4, 1.6),
    Workload(
        name="command-50x1-w1", mode="command", devices=50, apps=1, arguments=("--window", "1"), limit=2.4
    ),
    Workload(
        name="rate-2000x1",
        mode="rate",
        devices=2000,
        apps=1,
        arguments=("--rate", "1", "--size", "130"),
        limit=3.8,
    ),
    Workload(
        name="idle-4000x1",
        mode="idle",
        devices=4000,
        apps=1,
        limit=7.0,
        figure="kib_per_conn",
        unit="KiB",
        is_ratio=False,
    ),
    Workload(
        name="storm-4000x1",
        mode="storm",
        devices=4000,
        apps=1,
        limit=350.0,
        figure="cpu_us_per_conn",
        unit="µs",
        is_ratio=False,
    ),
)

NOISE = 1.5
"""From how many times the least figure on the greatest one shows that others use the machine."""

NOT_MEASURED = "-"
HEADER = ("Workload", "Limit", "Floor", "Relay", "Relay ÷ floor", "Verdict", "Node", "Relay ÷ Node")


def _number(value: float | None, unit: str = "") -> str:
    if value is None:
        return NOT_MEASURED
    digits = 0 if value >= 100 else 1 if value >= 10 else 2
    return f"{value:.{digits}f} {unit}".rstrip()


def _quotient(dividend: float | None, divisor: float | None) -> float | None:
    return dividend / divisor if dividend is not None and divisor else None


def judge(workload: Workload, figures: Mapping[str, float]) -> bool | None:
    """Say whether the relay kept the limit; None when what it takes to say so was not measured."""
    relay = figures.get("relay")
    value = _quotient(relay, figures.get("floor")) if workload.is_ratio else relay
    return None if value is None else value <= workload.limit


def is_noisy(samples: Mapping[str, Sequence[float]]) -> bool:
    """Say whether the floor or the relay differs so much between rounds that a verdict means little."""
    return any(
        max(values) > NOISE * min(values)
        for server, values in samples.items()
        if server in {"floor", "relay"} and min(values) > 0
    )


def medians(samples: Mapping[str, Sequence[float]]) -> dict[str, float]:
    return {server: median(values) for server, values in samples.items() if values}


def table(samples: Samples) -> tuple[str, int]:
    """Return the Markdown table of medians, and how many limits were missed."""
    rows: list[tuple[str, ...]] = [HEADER, ("---",) * len(HEADER)]
    missed = 0
    for workload in WORKLOADS:
        if workload.name not in samples:
            continue
        figures = medians(samples[workload.name])
        kept = judge(workload, figures)
        missed += kept is False
        floor, relay, node = (figures.get(server) for server in ("floor", "relay", "node"))
        verdict = NOT_MEASURED if kept is None else "ok" if kept else "**MISSED**"
        if kept is not None and workload.is_ratio and is_noisy(samples[workload.name]):
            verdict += ", noisy"
        limit = (
            f"{workload.limit:.1f} x floor" if workload.is_ratio else _number(workload.limit, workload.unit)
        )
        rows.append(
            (
                f"`{workload.name}`",
                limit,
                _number(floor, workload.unit),
                _number(relay, workload.unit),
                _number(_quotient(relay, floor)) if workload.is_ratio else NOT_MEASURED,
                verdict,
                _number(node, workload.unit),
                _number(_quotient(relay, node)),
            )
        )
    return "\n".join("| " + " | ".join(row) + " |" for row in rows), missed

"""The table of metrics, made from the collector behind /metrics."""

from collections.abc import Iterator

import trio
from prometheus_client import Metric

from brewos_relay import open_relay
from brewos_relay.telemetry.merged_metrics import worker_metrics
from brewos_relay.telemetry.metrics import BusFigures, MetricSources, RelayCollector

BUS = BusFigures(connected=True, reconnects=0, unreadable=0, alone=0, problems={})
"""Figures of a bus: only an instance with a bus has the metrics about it."""


def metrics() -> list[Metric]:
    """List the metrics of a new relay."""
    found: list[Metric] = []

    async def collect() -> None:
        async with open_relay() as relay:
            sources = MetricSources(version="", bus=lambda: BUS)
            found.extend(RelayCollector(relay, sources).collect())

    trio.run(collect)
    return [*found, *worker_metrics({}, {})]


def table() -> str:
    """Make the table of all metrics."""
    return "\n".join(["| Metric | Kind | Labels | Meaning |", "|---|---|---|---|", *_rows()])


def _rows() -> Iterator[str]:
    for metric in metrics():
        name = f"{metric.name}_total" if metric.type == "counter" else metric.name
        labels = ", ".join(f"`{label}`" for label in getattr(metric, "_labelnames", ()))
        yield f"| `{name}` | {metric.type} | {labels} | {metric.documentation} |"

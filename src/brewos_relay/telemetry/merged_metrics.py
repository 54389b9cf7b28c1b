"""MergedMetrics: the metrics of several workers as those of one relay."""

from collections import Counter
from collections.abc import Iterator, Mapping
from typing import Final

from prometheus_client import CollectorRegistry, ProcessCollector, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.parser import text_string_to_metric_families
from prometheus_client.registry import Collector
from prometheus_client.samples import Sample

from brewos_relay.telemetry.metrics import PREFIX

WORKER: Final = "worker"
_INSTANCE: Final = "instance"
PARENT: Final = "parent"
"""The worker label of the parent process."""
_OF_EACH: Final = ("process_", "python_")
"""Beginnings of the names of metrics that describe a process. They get the label `worker`."""
_GREATEST: Final = frozenset(
    {
        f"{PREFIX}{name}"
        for name in ("outbox_most_bytes", "degraded", "draining", "build_info", "cluster_problem")
    }
)
_LEAST: Final = frozenset(
    f"{PREFIX}{name}"
    for name in ("disk_free_bytes", "certificate_expires_timestamp_seconds", "bus_connected")
)
"""Gauges that are not added up: the greatest or least value of all workers counts."""
_GROWING: Final = frozenset({"counter", "histogram"})

_Labels = tuple[tuple[str, str], ...]


class _Family:
    """One metric, with its values by sample name and labels."""

    def __init__(self, metric: Metric) -> None:
        self.name = metric.name
        self.text = metric.documentation
        self.type = metric.type
        self.values: dict[tuple[str, _Labels], float] = {}

    def add(self, name: str, labels: _Labels, value: float) -> None:
        """Add the value of one worker to that of the others."""
        key = name, labels
        if key not in self.values:
            self.values[key] = value
        elif self.name in _GREATEST:
            self.values[key] = max(self.values[key], value)
        elif self.name in _LEAST:
            self.values[key] = min(self.values[key], value)
        else:
            self.values[key] += value

    def metric(self, instance: str | None = None) -> Metric:
        """Return the metric in the form that can be rendered, with `instance` as a label if there is one."""
        common = {} if instance is None else {_INSTANCE: instance}
        made = Metric(self.name, self.text, self.type)
        made.samples = [
            Sample(name, {**dict(labels), **common}, value) for (name, labels), value in self.values.items()
        ]
        return made


class MergedMetrics:
    """Adds up the metrics of all workers. Counters never fall: they include workers that have ended."""

    def __init__(self, workers: int, *, instance: str | None = None) -> None:
        """Merge the metrics of this many workers. `instance` replaces their labels of that name."""
        self._workers = workers
        self._instance = instance
        self._starts: Counter[int] = Counter()
        self._ended: dict[str, _Family] = {}

    def count_start(self, number: int) -> None:
        """Count that a worker became ready."""
        self._starts[number] += 1

    def keep_counters(self, text: bytes) -> None:
        """Keep the counters of a worker that has ended, from the last metrics that it reported."""
        for metric in text_string_to_metric_families(text.decode()):
            if metric.type in _GROWING and not metric.name.startswith(_OF_EACH):
                _merge(self._ended, metric)

    def render(self, texts: Mapping[int, bytes]) -> bytes:
        """Merge the metrics of the running workers, by their numbers, and render them as Prometheus text."""
        families: dict[str, _Family] = {}
        for family in self._ended.values():
            _merge(families, family.metric())
        for number, text in texts.items():
            for metric in text_string_to_metric_families(text.decode()):
                _merge(families, metric, str(number))
        for metric in _of_this_process():
            _merge(families, metric, PARENT)
        registry = CollectorRegistry(auto_describe=False)
        for metric in self._own(len(texts)):
            _merge(families, metric)
        registry.register(_Made([family.metric(self._instance) for family in families.values()]))
        return generate_latest(registry)

    def _own(self, running: int) -> Iterator[Metric]:
        yield from worker_metrics(
            {"running": running, "missing": self._workers - running},
            {str(number): count for number, count in sorted(self._starts.items())},
        )


def worker_metrics(counts: Mapping[str, int], starts: Mapping[str, int]) -> Iterator[Metric]:
    """Make the metrics about the workers themselves: how many there are, and how often each was started."""
    workers = GaugeMetricFamily(
        f"{PREFIX}workers", "Workers of `serve --workers`, by state.", labels=("state",)
    )
    for state, number in counts.items():
        workers.add_metric((state,), number)
    yield workers
    started = CounterMetricFamily(
        f"{PREFIX}worker_starts", "How often a worker became ready.", labels=(WORKER,)
    )
    for worker, number in starts.items():
        started.add_metric((worker,), number)
    yield started


def _merge(families: dict[str, _Family], metric: Metric, worker: str | None = None) -> None:
    family = families.get(metric.name)
    if family is None:
        family = families[metric.name] = _Family(metric)
    of_each = worker is not None and metric.name.startswith(_OF_EACH)
    for sample in metric.samples:
        labels = {name: text for name, text in sample.labels.items() if name != _INSTANCE}
        if of_each:
            labels[WORKER] = str(worker)
        family.add(sample.name, tuple(labels.items()), sample.value)


def _of_this_process() -> Iterator[Metric]:
    registry = CollectorRegistry(auto_describe=False)
    ProcessCollector(registry=registry)
    # Parsed from text, like the metrics of the workers, so that the names of counters match.
    yield from text_string_to_metric_families(generate_latest(registry).decode())


class _Made(Collector):
    """Metrics that were made in advance."""

    def __init__(self, metrics: list[Metric]) -> None:
        self._metrics = metrics

    def collect(self) -> Iterator[Metric]:
        """Yield them."""
        return iter(self._metrics)

    def describe(self) -> Iterator[Metric]:
        """Yield nothing, so that registering reads nothing."""
        return iter(())

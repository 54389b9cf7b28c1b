"""Metrics in the Prometheus text format, read from the relay's counters at each scrape.

The data path only increments plain numbers. Gauges are computed from live objects at each scrape.
"""

import platform
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Final

import trio
from prometheus_client import CollectorRegistry, ProcessCollector, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.registry import Collector

from brewos_relay.core.attachment import DeviceAttachment
from brewos_relay.core.counters import Histogram
from brewos_relay.core.relay import Relay
from brewos_relay.telemetry.measurements import RequestCounters
from brewos_relay.version import BUILD

PREFIX: Final = "brewos_relay_"
CONTENT_TYPE: Final = "text/plain; version=0.0.4; charset=utf-8"

_Labelled = Mapping[Any, float]
"""Values by label values, each a tuple of strings."""


@dataclass(frozen=True, slots=True, kw_only=True)
class BusFigures:
    """The state of the bus between instances."""

    connected: bool
    reconnects: int
    """How often the connection was lost."""
    unreadable: int
    """Messages of other instances that could not be read."""
    alone: int
    """Attempts that this instance counted alone, because the bus did not answer in time."""
    problems: Mapping[str, bool]
    """Whether the instances have a problem together, by kind."""


@dataclass(frozen=True, slots=True, kw_only=True)
class MetricSources:
    """The sources of metrics besides the relay.

    `handshakes` counts WebSocket requests by (`device`, `client` or `other`; status). `registry` has the
    durations of registry operations in s, `registry_failures` their failures, `registry_busy` its connections
    in use, and `registry_waiting` the operations that wait for one, all by operation. `late` is how late the
    event loop ran, in s. `requests` counts HTTP requests. `log_lines_dropped` returns how many log lines were
    not written. `certificate_expires_at_s` returns seconds since the epoch, or None without a certificate.
    `handovers` counts WebSocket requests for devices of other workers, by outcome. `notifications` counts
    notifications to browsers, by outcome.
    `bus` returns None without a bus. `instance` is the label of all metrics of one instance of many.
    """

    version: str
    handshakes: Mapping[tuple[str, str], int] = field(default_factory=dict)
    registry: Mapping[str, Histogram] = field(default_factory=dict)
    registry_failures: Mapping[str, int] = field(default_factory=dict)
    registry_busy: Callable[[], Mapping[str, int]] = dict
    registry_waiting: Callable[[], Mapping[str, int]] = dict
    requests: RequestCounters = field(default_factory=RequestCounters)
    late: Histogram = field(default_factory=lambda: Histogram(()))
    degraded: Callable[[], Mapping[str, bool]] = dict
    disk_free_bytes: Callable[[], int | None] = lambda: None
    log_lines_dropped: Callable[[], int] = lambda: 0
    certificate_expires_at_s: Callable[[], float | None] = lambda: None
    handovers: Callable[[], Mapping[str, int]] = dict
    notifications: Callable[[], Mapping[str, int]] = dict
    bus: Callable[[], BusFigures | None] = lambda: None
    instance: str | None = None


class Metrics:
    """The metrics of one relay, in a Prometheus registry of its own: relays in one process share nothing."""

    def __init__(self, relay: Relay, sources: MetricSources) -> None:
        self.collector = RelayCollector(relay, sources)
        self._registry = CollectorRegistry(auto_describe=False)
        process = ProcessCollector(registry=None)
        for collector in (self.collector, process):
            labelled = _OfInstance(collector, sources.instance) if sources.instance else collector
            self._registry.register(labelled)

    def render(self) -> bytes:
        """Render all metrics in the Prometheus text format. Call it from a task in the relay's thread."""
        return generate_latest(self._registry)


class _OfInstance(Collector):
    """Adds the label `instance` to the metrics of a collector."""

    def __init__(self, collector: Collector, instance: str) -> None:
        self._collector = collector
        self._instance = instance

    def collect(self) -> Iterator[Metric]:
        for metric in self._collector.collect():
            metric.samples = [
                sample._replace(labels={**sample.labels, "instance": self._instance})
                for sample in metric.samples
            ]
            yield metric

    def describe(self) -> Iterator[Metric]:
        return iter(())


class RelayCollector(Collector):
    """Reads all counters and gauges of a relay at each scrape."""

    def __init__(self, relay: Relay, sources: MetricSources) -> None:
        self._relay = relay
        self._sources = sources

    def collect(self) -> Iterator[Metric]:
        """Yield every metric of the relay."""
        yield from self._peers()
        yield from self._messages()
        yield from self._outboxes()
        yield from self._requests()
        yield from self._work()
        if (bus := self._sources.bus()) is not None:
            yield _gauge("bus_connected", "1 while the bus between instances can be reached.", bus.connected)
            yield _counters("bus_reconnects", "Lost connections to the bus.", (), {(): bus.reconnects})
            yield _counters(
                "bus_unreadable",
                "Messages of other instances that could not be read.",
                (),
                {(): bus.unreadable},
            )
            yield _counters(
                "bus_unshared_attempts",
                "Attempts, as to sign in, that this instance counted alone because the bus did not answer.",
                (),
                {(): bus.alone},
            )
            yield _gauges(
                "cluster_problem",
                "1 while the instances differ in this: versions, keys, registries, or hosts with SQLite.",
                ("problem",),
                {(kind,): is_there for kind, is_there in bus.problems.items()},
            )

    def describe(self) -> Iterator[Metric]:
        """Yield nothing, so that registering does not read any metric."""
        return iter(())

    def _peers(self) -> Iterator[Metric]:
        relay, counters = self._relay, self._relay.counters
        yield _gauge("devices", "Devices that are online.", relay.device_count)
        yield _gauge("clients", "Clients that are attached.", relay.client_count)
        yield _gauge("sessions", "Devices that are online or have clients.", relay.session_count)
        yield _counters(
            "attached",
            "WebSockets that were attached to the relay.",
            ("peer",),
            {("device",): counters.devices_attached, ("client",): counters.clients_attached},
        )
        yield _counters(
            "detached",
            "WebSockets that ended, by the side that ended them and the close code (none: no close frame).",
            ("peer", "by", "code"),
            counters.ended,
        )
        yield _counters(
            "handshakes",
            "WebSocket requests, by the HTTP status of the response (4002: upgraded, then closed because the"
            " token was rejected or has no access).",
            ("peer", "status"),
            self._sources.handshakes,
        )
        yield _counters(
            "handovers",
            "WebSocket requests for a device of another worker of this machine: passed to it, or kept because"
            " it did not take them in time.",
            ("outcome",),
            {(outcome,): count for outcome, count in self._sources.handovers().items()},
        )
        yield _counters(
            "device_conflicts", "Devices refused because another one with the same id was connected.", (),
            {(): counters.conflicts},
        )  # fmt: skip
        yield _counters(
            "device_zombies", "Connections of devices that never sent a frame.", (), {(): counters.zombies}
        )

    def _messages(self) -> Iterator[Metric]:
        counters = self._relay.counters
        yield _counters(
            "messages",
            "Messages received from peers (in) and sent to them (out: once for each client).",
            ("peer", "direction"),
            {
                ("device", "in"): counters.received_from_devices,
                ("device", "out"): counters.sent_to_devices,
                ("client", "in"): counters.received_from_clients,
                ("client", "out"): counters.sent_to_clients,
            },
        )
        yield _counters(
            "message_bytes",
            "Payload bytes of these messages.",
            ("peer", "direction"),
            {
                ("device", "in"): counters.bytes_from_devices,
                ("device", "out"): counters.bytes_to_devices,
                ("client", "in"): counters.bytes_from_clients,
                ("client", "out"): counters.bytes_to_clients,
            },
        )
        yield _counters(
            "dropped_messages",
            "Messages that were not delivered to a peer.",
            ("reason",),
            {
                ("invalid",): counters.invalid,
                ("oversized",): counters.oversized,
                ("too_big",): counters.too_big,
                ("left_out",): counters.left_out,
                ("over_rate",): counters.over_rate,
                ("undeliverable",): counters.undeliverable,
            },
        )
        yield _counters(
            "device_throttled", "How often a device began to exceed its rate.", (), {(): counters.throttled}
        )
        yield _counters(
            "merged_messages",
            "Messages of throttled devices that were merged into a later message.",
            (),
            {(): counters.merged},
        )
        yield _counters(
            "commands",
            "Commands by outcome.",
            ("outcome",),
            {(outcome,): count for outcome, count in list(counters.commands.items())},
        )
        yield _gauge("pending_commands", "Commands waiting for their device.", self._relay.pending_count)
        yield _histogram(
            "delivery_seconds",
            "Time from the wake-up for a received message until it was sent on (samples).",
            (),
            {(): counters.latency},
        )

        yield _counters(
            "shots_dropped",
            "Shots that are lost because too many were waiting until the registry could store them.",
            (),
            {(): self._relay.histories.runs_dropped},
        )

    def _outboxes(self) -> Iterator[Metric]:
        waiting = {("device",): 0, ("client",): 0}
        blocked, most = dict(waiting), dict(waiting)
        for attachment in self._relay.attached:
            kind = ("device",) if isinstance(attachment, DeviceAttachment) else ("client",)
            if size := attachment.peer.backlog_bytes:
                waiting[kind] += size
                blocked[kind] += 1
                most[kind] = max(most[kind], size)
        yield _gauges("outbox_bytes", "Bytes waiting in outboxes.", ("peer",), waiting)
        yield _gauges("outbox_most_bytes", "Bytes in the fullest outbox.", ("peer",), most)
        yield _gauges("blocked_peers", "Peers with a nonempty outbox.", ("peer",), blocked)
        yield _gauge("lagging_clients", "Clients that are lagging now.", self._relay.lagging_count)
        yield _counters("lagged", "How often a client began to lag.", (), {(): self._relay.counters.lagged})

    def _requests(self) -> Iterator[Metric]:
        requests = self._sources.requests
        yield _counters(
            "http_requests",
            "HTTP requests by route and response status (none: the client left, or the request timed out).",
            ("method", "route", "status"),
            requests.answered,
        )
        yield _histogram(
            "http_request_seconds",
            "Time from the head of an HTTP request to the end of its response.",
            ("route",),
            {(route,): took for route, took in requests.took.items()},
        )
        yield _gauge("http_requests_in_flight", "HTTP requests in progress.", requests.in_flight)
        yield _counters(
            "refused",
            "Requests refused before they were handled, including WebSocket requests, by reason.",
            ("reason",),
            {(reason,): count for reason, count in requests.refused.items()},
        )

    def _work(self) -> Iterator[Metric]:
        sources = self._sources
        yield _histogram(
            "registry_seconds",
            "Duration of registry operations, including the wait for a thread.",
            ("operation",),
            {(name,): timing for name, timing in sources.registry.items()},
        )
        yield _counters(
            "registry_failures",
            "Registry operations that failed.",
            ("operation",),
            {(name,): count for name, count in list(sources.registry_failures.items())},
        )
        yield _gauges(
            "registry_connections_busy",
            "Connections to the registry's database in use.",
            ("operation",),
            {(name,): count for name, count in sources.registry_busy().items()},
        )
        yield _gauges(
            "registry_connections_waiting",
            "Registry operations that wait for a connection.",
            ("operation",),
            {(name,): count for name, count in sources.registry_waiting().items()},
        )
        yield _gauges(
            "degraded",
            "1 while the registry's storage has this problem; the relay continues to serve.",
            ("problem",),
            {(problem,): is_so for problem, is_so in sources.degraded().items()},
        )
        free_bytes = sources.disk_free_bytes()
        yield _gauges(
            "disk_free_bytes",
            "Free space on the disk of the registry's file.",
            (),
            {} if free_bytes is None else {(): free_bytes},
        )
        yield _counters(
            "notifications",
            "Notifications by outcome: sent, failed or removed (the push service no longer knows the"
            " subscription), for each request to a push service; and suppressed, as they are repeats or"
            " too many.",
            ("outcome",),
            {(outcome,): count for outcome, count in sources.notifications().items()},
        )
        yield _counters(
            "log_lines_dropped",
            "Log lines that were dropped because stderr was not read or not writable.",
            (),
            {(): sources.log_lines_dropped()},
        )
        yield _histogram(
            "loop_late_seconds", "How late the event loop ran a task that was due.", (), {(): sources.late}
        )
        tasks = trio.lowlevel.current_statistics()
        yield _gauge("tasks", "Live Trio tasks.", tasks.tasks_living)
        yield _gauge("tasks_runnable", "Runnable Trio tasks.", tasks.tasks_runnable)
        yield _gauge("draining", "1 while the relay drains.", self._relay.closing)
        expires_at_s = sources.certificate_expires_at_s()
        expiry = {} if expires_at_s is None else {(): expires_at_s}
        yield _gauges("certificate_expires_timestamp_seconds", "Expiry of the certificate.", (), expiry)
        yield _gauges(
            "build_info",
            "Always 1, with the versions as labels, and the build: `compiled` or `interpreted`.",
            ("version", "python", "build"),
            {(sources.version, platform.python_version(), BUILD): 1},
        )


def _gauge(name: str, text: str, value: float) -> Metric:
    return _gauges(name, text, (), {(): value})


def _gauges(name: str, text: str, labels: tuple[str, ...], values: _Labelled) -> Metric:
    family = GaugeMetricFamily(PREFIX + name, text, labels=labels)
    for key, value in values.items():
        family.add_metric(key, value)
    return family


def _counters(name: str, text: str, labels: tuple[str, ...], values: _Labelled) -> Metric:
    family = CounterMetricFamily(PREFIX + name, text, labels=labels)
    for key, value in dict(values).items():
        family.add_metric(key, value)
    return family


def _histogram(
    name: str, text: str, labels: tuple[str, ...], values: Mapping[tuple[str, ...], Histogram]
) -> Metric:
    family = HistogramMetricFamily(PREFIX + name, text, labels=labels)
    for key, histogram in values.items():
        below, buckets = 0, []
        for bound, count in zip((*map(str, histogram.bounds), "+Inf"), histogram.counts, strict=True):
            below += count
            buckets.append((bound, below))
        family.add_metric(key, buckets, histogram.total)
    return family

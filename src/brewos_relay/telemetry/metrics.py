"""Metrics in the text format of Prometheus, read from the relay's counters when somebody asks.

Nothing here is touched by messages on their way: they are counted as plain numbers, and what is live is
looked at when it is asked for.
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

PREFIX: Final = "brewos_relay_"

_Labelled = Mapping[Any, float]
"""Values by the values of their labels, each a tuple of texts."""


@dataclass(frozen=True, slots=True, kw_only=True)
class MetricSources:
    """What metrics are read from besides the relay; all of it goes on counting meanwhile.

    `handshakes` counts requests for a WebSocket by (`device`, `client` or `other`; status), `registry`
    how long the registry took, in s, and `registry_failures` how often it failed, both by what was done;
    `late` is how late the event loop was, in s, and `requests` is what was asked for over HTTP.
    `log_lines_dropped` counts lines of the log that were not written. `certificate_expires_at_s` is in s
    since the epoch, None without a certificate.
    """

    version: str
    handshakes: Mapping[tuple[str, str], int] = field(default_factory=dict)
    registry: Mapping[str, Histogram] = field(default_factory=dict)
    registry_failures: Mapping[str, int] = field(default_factory=dict)
    requests: RequestCounters = field(default_factory=RequestCounters)
    late: Histogram = field(default_factory=lambda: Histogram(()))
    degraded: Callable[[], Mapping[str, bool]] = dict
    disk_free_bytes: Callable[[], int | None] = lambda: None
    log_lines_dropped: Callable[[], int] = lambda: 0
    certificate_expires_at_s: Callable[[], float | None] = lambda: None


class Metrics:
    """Gives the metrics of one relay. It has a registry of its own: nothing in the process is shared."""

    def __init__(self, relay: Relay, sources: MetricSources) -> None:
        self.collector = RelayCollector(relay, sources)
        self._registry = CollectorRegistry(auto_describe=False)
        self._registry.register(self.collector)
        ProcessCollector(registry=self._registry)

    def render(self) -> bytes:
        """Write all metrics as Prometheus reads them; to be called by a task, in the relay's own thread."""
        return generate_latest(self._registry)


class RelayCollector(Collector):
    """Reads everything that is counted, at the time when it is asked for."""

    def __init__(self, relay: Relay, sources: MetricSources) -> None:
        self._relay = relay
        self._sources = sources

    def collect(self) -> Iterator[Metric]:
        """Give every metric of the relay."""
        yield from self._people()
        yield from self._messages()
        yield from self._outboxes()
        yield from self._requests()
        yield from self._work()

    def describe(self) -> Iterator[Metric]:
        """Give none: nothing is asked for before it is wanted."""
        return iter(())

    def _people(self) -> Iterator[Metric]:
        relay, counters = self._relay, self._relay.counters
        yield _gauge("devices", "Devices that are online.", relay.device_count)
        yield _gauge("clients", "Clients that are attached.", relay.client_count)
        yield _gauge("sessions", "Devices that are online or have clients.", relay.session_count)
        yield _counters(
            "attached",
            "WebSockets that were let in.",
            ("peer",),
            {("device",): counters.devices_attached, ("client",): counters.clients_attached},
        )
        yield _counters(
            "detached",
            "WebSockets that ended, by who ended them and the close code (none: without a close frame).",
            ("peer", "by", "code"),
            counters.ended,
        )
        yield _counters(
            "handshakes",
            "Requests for a WebSocket by the HTTP status of the answer (4002: let in to be told that the"
            " token is rejected, or has no access).",
            ("peer", "status"),
            self._sources.handshakes,
        )
        yield _counters(
            "device_conflicts", "Devices refused since another one with the same id was there.", (),
            {(): counters.conflicts},
        )  # fmt: skip
        yield _counters(
            "device_zombies", "Connections of devices that never said anything.", (), {(): counters.zombies}
        )

    def _messages(self) -> Iterator[Metric]:
        counters = self._relay.counters
        yield _counters(
            "messages",
            "Messages that came in from peers, and those passed on (out: once for each client).",
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
            "Payloads of these messages.",
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
            "Messages that did not reach somebody.",
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
            "device_throttled", "How often devices began to exceed their rate.", (), {(): counters.throttled}
        )
        yield _counters(
            "merged_messages",
            "Messages of such devices that were passed on as a part of a later one.",
            (),
            {(): counters.merged},
        )
        yield _counters(
            "commands",
            "Commands by what became of them.",
            ("outcome",),
            {(outcome,): count for outcome, count in list(counters.commands.items())},
        )
        yield _gauge("pending_commands", "Commands that wait for their device.", self._relay.pending_count)
        yield _histogram(
            "delivery_seconds",
            "From waking up for what a peer sent to having passed it on (samples).",
            (),
            {(): counters.latency},
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
        yield _gauges("outbox_bytes", "What waits to be taken by peers.", ("peer",), waiting)
        yield _gauges("outbox_most_bytes", "The fullest outbox.", ("peer",), most)
        yield _gauges("blocked_peers", "Peers with something in their outbox.", ("peer",), blocked)
        yield _gauge("lagging_clients", "Clients that are too far behind now.", self._relay.lagging_count)
        yield _counters("lagged", "How often clients fell behind.", (), {(): self._relay.counters.lagged})

    def _requests(self) -> Iterator[Metric]:
        requests = self._sources.requests
        yield _counters(
            "http_requests",
            "HTTP requests by route and the status of the answer (none: whoever asked had gone, or it took"
            " too long).",
            ("method", "route", "status"),
            requests.answered,
        )
        yield _histogram(
            "http_request_seconds",
            "From the head of an HTTP request to the end of its answer.",
            ("route",),
            {(route,): took for route, took in requests.took.items()},
        )
        yield _gauge("http_requests_in_flight", "HTTP requests that are being answered.", requests.in_flight)
        yield _counters(
            "refused",
            "Requests that were refused before anything was done for them, by reason; also those for a"
            " WebSocket.",
            ("reason",),
            {(reason,): count for reason, count in requests.refused.items()},
        )

    def _work(self) -> Iterator[Metric]:
        sources = self._sources
        yield _histogram(
            "registry_seconds",
            "What the registry took, with the wait for a thread.",
            ("operation",),
            {(name,): timing for name, timing in sources.registry.items()},
        )
        yield _counters(
            "registry_failures",
            "How often the registry could not be used.",
            ("operation",),
            {(name,): count for name, count in list(sources.registry_failures.items())},
        )
        yield _gauges(
            "degraded",
            "1 while the storage of the registry has this problem; machines and apps are still served.",
            ("problem",),
            {(problem,): is_so for problem, is_so in sources.degraded().items()},
        )
        free_bytes = sources.disk_free_bytes()
        yield _gauges(
            "disk_free_bytes",
            "Free space of the disk that the registry's file is on.",
            (),
            {} if free_bytes is None else {(): free_bytes},
        )
        yield _counters(
            "log_lines_dropped",
            "Lines of the log that were dropped since stderr was not read, or could not be written.",
            (),
            {(): sources.log_lines_dropped()},
        )
        yield _histogram(
            "loop_late_seconds", "How late the event loop got to what was due.", (), {(): sources.late}
        )
        tasks = trio.lowlevel.current_statistics()
        yield _gauge("tasks", "Trio tasks that are alive.", tasks.tasks_living)
        yield _gauge("tasks_runnable", "Trio tasks that wait for their turn.", tasks.tasks_runnable)
        yield _gauge("draining", "1 while the relay is leaving.", self._relay.closing)
        expires_at_s = sources.certificate_expires_at_s()
        expiry = {} if expires_at_s is None else {(): expires_at_s}
        yield _gauges("certificate_expires_timestamp_seconds", "When the certificate ends.", (), expiry)
        yield _gauges(
            "build_info",
            "Always 1: what runs here.",
            ("version", "python"),
            {(sources.version, platform.python_version()): 1},
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

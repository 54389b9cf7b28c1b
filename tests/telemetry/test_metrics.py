import trio.testing
from prometheus_client.parser import text_string_to_metric_families

from brewos_relay.core.counters import Histogram
from brewos_relay.core.relay import open_relay
from brewos_relay.messages import encode
from brewos_relay.telemetry.measurements import RequestCounters
from brewos_relay.telemetry.metrics import PREFIX, Metrics, MetricSources
from brewos_relay.version import BUILD
from support.peers import ScriptedPeer

DEVICE = "BRW-12AB34CD"


def read(text: bytes) -> dict[tuple[str, ...], float]:
    """Give the samples by name and values of labels, sorted by their names."""
    return {
        (
            sample.name.removeprefix(PREFIX),
            *(value for _, value in sorted(sample.labels.items())),
        ): sample.value
        for family in text_string_to_metric_families(text.decode())
        for sample in family.samples
    }


async def test_metrics_are_read_at_each_scrape() -> None:
    timing = Histogram((0.1, 1.0))
    timing.observe(0.05)
    timing.observe(0.5)
    timing.observe(7)
    requests = RequestCounters()
    requests.count_answer("GET", "/api/devices", "200", 0.3)
    requests.in_flight = 3
    requests.refused["wrong_key"] = 4
    sources = MetricSources(
        version="1.2.3",
        requests=requests,
        handshakes={("device", "101"): 2},
        registry={"read": timing},
        registry_failures={"read": 1},
        registry_busy=lambda: {"read": 4, "write": 1},
        registry_waiting=lambda: {"read": 9, "write": 0},
        degraded=lambda: {"disk_full": True, "read_only": False},
        disk_free_bytes=lambda: 4096,
        log_lines_dropped=lambda: 5,
        notifications=lambda: {"sent": 6, "failed": 1},
        certificate_expires_at_s=lambda: 1e9,
    )
    async with open_relay() as relay:
        metrics = Metrics(relay, sources)
        before = read(metrics.render())
        assert before["devices",] == 0
        device, client = ScriptedPeer(), ScriptedPeer()
        relay.attach_device(DEVICE, device)
        relay.attach_client(DEVICE, client)
        await trio.testing.wait_all_tasks_blocked()
        device.say(encode({"type": "status"}))
        client.backlog_bytes = 123
        relay.histories.runs_dropped = 8
        client.leave()
        await trio.testing.wait_all_tasks_blocked()
        device.backlog_bytes = 45
        found = read(metrics.render())
    assert (found["devices",], found["clients",], found["sessions",]) == (1, 0, 1)
    assert found["messages_total", "in", "device"] == 1
    assert found["messages_total", "out", "client"] == 1
    assert found["attached_total", "client"] == 1
    assert found["detached_total", "peer", "none", "client"] == 1
    assert found["outbox_bytes", "device"] == found["outbox_most_bytes", "device"] == 45
    assert found["blocked_peers", "device"] == 1
    assert found["blocked_peers", "client"] == 0
    assert found["handshakes_total", "device", "101"] == 2
    assert found["http_requests_total", "GET", "/api/devices", "200"] == 1
    assert found["http_request_seconds_bucket", "0.25", "/api/devices"] == 0
    assert found["http_request_seconds_bucket", "0.5", "/api/devices"] == 1
    assert found["http_request_seconds_sum", "/api/devices"] == 0.3
    assert found["http_requests_in_flight",] == 3
    assert found["refused_total", "wrong_key"] == 4
    assert found["registry_failures_total", "read"] == 1
    assert (found["registry_connections_busy", "read"], found["registry_connections_busy", "write"]) == (4, 1)
    assert found["registry_connections_waiting", "read"] == 9
    assert found["registry_seconds_bucket", "0.1", "read"] == 1
    assert found["registry_seconds_bucket", "1.0", "read"] == 2
    assert found["registry_seconds_bucket", "+Inf", "read"] == found["registry_seconds_count", "read"] == 3
    assert found["registry_seconds_sum", "read"] == 7.55
    assert (found["degraded", "disk_full"], found["degraded", "read_only"]) == (1, 0)
    assert found["disk_free_bytes",] == 4096
    assert found["log_lines_dropped_total",] == 5
    assert (found["notifications_total", "sent"], found["notifications_total", "failed"]) == (6, 1)
    assert found["shots_dropped_total",] == 8
    assert found["certificate_expires_timestamp_seconds",] == 1e9
    assert found["tasks",] > 2
    assert any({"build_info", "1.2.3", BUILD} <= set(name) for name in found)
    assert found["process_open_fds",] > 2


async def test_metrics_of_two_relays_are_separate() -> None:
    async with open_relay() as one, open_relay() as other:
        first, second = (Metrics(relay, MetricSources(version="")) for relay in (one, other))
        one.attach_device(DEVICE, ScriptedPeer())
        await trio.testing.wait_all_tasks_blocked()
        assert (read(first.render())["devices",], read(second.render())["devices",]) == (1, 0)

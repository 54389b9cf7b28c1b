"""Merging the metrics of several workers."""

from collections.abc import Mapping

from prometheus_client.parser import text_string_to_metric_families

from brewos_relay.telemetry.merged_metrics import MergedMetrics


def values(text: bytes) -> dict[str, float]:
    """Return the values by name and labels, except those about this process."""
    return {
        sample.name + str(dict(sorted(sample.labels.items())) or ""): sample.value
        for metric in text_string_to_metric_families(text.decode())
        for sample in metric.samples
        if sample.labels.get("worker") != "parent"
    }


def merged(texts: Mapping[int, str], *, of: MergedMetrics | None = None) -> dict[str, float]:
    return values((of or MergedMetrics(2)).render({n: text.encode() for n, text in texts.items()}))


def counter(name: str, value: float, labels: str = "") -> str:
    return f"# HELP {name} h\n# TYPE {name} counter\n{name}{labels} {value}\n"


def gauge(name: str, value: float, labels: str = "") -> str:
    return f"# HELP {name} h\n# TYPE {name} gauge\n{name}{labels} {value}\n"


HISTOGRAM = """# HELP brewos_relay_took_seconds h
# TYPE brewos_relay_took_seconds histogram
brewos_relay_took_seconds_bucket{le="0.1"} 1
brewos_relay_took_seconds_bucket{le="+Inf"} 2
brewos_relay_took_seconds_count 2
brewos_relay_took_seconds_sum 0.5
"""


def test_counters_and_histograms_of_all_workers_are_added_up() -> None:
    found = merged(
        {
            1: counter("brewos_relay_a_total", 3, '{peer="device"}') + HISTOGRAM,
            2: counter("brewos_relay_a_total", 4, '{peer="device"}')
            + counter("brewos_relay_a_total", 5, '{peer="client"}').partition("counter\n")[2]
            + HISTOGRAM,
        }
    )
    assert found["brewos_relay_a_total{'peer': 'device'}"] == 7
    assert found["brewos_relay_a_total{'peer': 'client'}"] == 5
    assert found["brewos_relay_took_seconds_bucket{'le': '+Inf'}"] == 4
    assert found["brewos_relay_took_seconds_sum"] == 1.0


def test_gauges_are_added_up_or_the_greatest_or_least_counts() -> None:
    def of(value: float) -> str:
        names = ("devices", "outbox_most_bytes", "draining", "disk_free_bytes", "bus_connected", "build_info")
        return "".join(gauge(f"brewos_relay_{name}", value) for name in names)

    found = merged({1: of(5), 2: of(7)})
    assert found["brewos_relay_devices"] == 12
    assert found["brewos_relay_outbox_most_bytes"] == 7
    assert found["brewos_relay_draining"] == 7
    assert found["brewos_relay_build_info"] == 7
    assert found["brewos_relay_disk_free_bytes"] == 5
    assert found["brewos_relay_bus_connected"] == 5


def test_metrics_of_a_process_are_not_added_up() -> None:
    found = merged({1: gauge("process_open_fds", 10), 2: gauge("process_open_fds", 20)})
    assert found["process_open_fds{'worker': '1'}"] == 10
    assert found["process_open_fds{'worker': '2'}"] == 20


def test_counters_of_workers_that_have_ended_stay() -> None:
    metrics = MergedMetrics(2)
    last = counter("brewos_relay_a_total", 3) + gauge("brewos_relay_devices", 9) + HISTOGRAM
    last += counter("process_cpu_seconds_total", 1.0)
    metrics.keep_counters(last.encode())
    metrics.keep_counters(b"")
    found = merged({2: counter("brewos_relay_a_total", 1)}, of=metrics)
    assert found["brewos_relay_a_total"] == 4
    assert found["brewos_relay_took_seconds_count"] == 2
    assert not [name for name in found if "devices" in name or "process" in name]
    assert merged({}, of=metrics)["brewos_relay_a_total"] == 3


def test_workers_are_counted() -> None:
    metrics = MergedMetrics(3)
    for number in (1, 2, 1):
        metrics.count_start(number)
    found = merged({1: ""}, of=metrics)
    assert found["brewos_relay_workers{'state': 'running'}"] == 1
    assert found["brewos_relay_workers{'state': 'missing'}"] == 2
    assert found["brewos_relay_worker_starts_total{'worker': '1'}"] == 2
    assert found["brewos_relay_worker_starts_total{'worker': '2'}"] == 1


def test_parent_is_a_process_of_its_own() -> None:
    text = MergedMetrics(2).render({})
    assert b'process_cpu_seconds_total{worker="parent"}' in text


def test_machine_is_one_instance() -> None:
    metrics = MergedMetrics(2, instance="oven")
    texts = {n: counter("brewos_relay_a_total", n, f'{{instance="oven-{n}"}}') for n in (1, 2)}
    metrics.keep_counters(counter("brewos_relay_a_total", 4, '{instance="oven-3"}').encode())
    assert merged(texts, of=metrics)["brewos_relay_a_total{'instance': 'oven'}"] == 7
    assert merged(texts)["brewos_relay_a_total"] == 3

from relay_parts import tls_key
from results import Results, count_missed, count_missed_targets
from targets import peers_table, targets_table
from workloads import TARGETS, TLS_WORKLOADS, WORKLOADS


def report(workload: str, server: str, run: int = 0, **figures: object) -> dict[str, object]:
    return {"workload": workload, "server": server, "run": run, **figures}


def cells(text: str) -> list[list[str]]:
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in text.splitlines()[2:]]


def targets(*reports: dict[str, object]) -> list[list[str]]:
    return cells(targets_table(Results(reports), []))


def test_targets_are_of_workloads_and_measured_servers() -> None:
    workloads = {workload.name: workload for workload in WORKLOADS}
    for name, others in TARGETS.items():
        assert set(others) <= set(workloads[name].servers)
    assert workloads["latency-200x1-1k"].target_figure.key == "p99_us"


def test_targets_have_the_reached_ratios_and_a_verdict() -> None:
    reports = [
        report("fanout-50x1-w1", "floor", cpu_us_per_delivery=10.0),
        report("fanout-50x1-w1", "relay", cpu_us_per_delivery=15.0),
        report("fanout-50x1-w1", "compiled", cpu_us_per_delivery=12.0),
        report("fanout-50x1-w1", "picows", cpu_us_per_delivery=12.0),
        report("fanout-50x1-w1", "node", cpu_us_per_delivery=12.0),
        report("idle-4000x1", "relay", kib_per_conn=6.0),
        report("idle-4000x1", "compiled", kib_per_conn=4.0),
        report("fanout-50x1-w4", "relay", cpu_us_per_delivery=6.0),
    ]
    assert targets(*reports) == [
        [
            *("`fanout-50x1-w1`", "CPU per delivery", "1", "15.0 µs", "12.0 µs"),
            *("1.20 (≤ 1.30)", "1.00 (≤ 1.15)", "**1.00** (≤ 0.65)", "-", "**MISSED**"),
        ],
        [
            *("`idle-4000x1`", "memory per connection", "1", "6.00 KiB", "4.00 KiB"),
            *("-", "-", "-", "4.00 KiB (≤ 5.00 KiB)", "ok"),
        ],
    ]
    assert count_missed_targets(Results(reports)) == 1
    assert count_missed(Results(reports)) == 0


def test_target_without_its_other_server_has_no_verdict() -> None:
    ((*_, floor, picows, node, own, verdict),) = targets(
        report("latency-200x1-1k", "floor", p50_us=50, p99_us=100),
        report("latency-200x1-1k", "compiled", p50_us=60, p99_us=150),
    )
    assert (floor, picows, node) == ("1.50 (≤ 2.00)", "- (≤ 1.50)", "-")
    assert (own, verdict) == ("-", "-")
    assert targets(report("fanout-50x1-w4", "relay", cpu_us_per_delivery=6.0)) == []


def test_ratios_that_differ_between_rounds_have_their_range() -> None:
    rounds = [
        report("latency-200x1-1k", server, run, p99_us=value)
        for run, figures in enumerate([(100, 150, 100), (100, 180, 120), (100, 210, 500)])
        for server, value in zip(("floor", "compiled", "picows"), figures, strict=True)
    ]
    ((*_, floor, picows, _, _, verdict),) = targets(*rounds)
    assert floor == "1.80, 1.50 to 2.10 (≤ 2.00)"
    assert picows == "1.50, 0.42 to 1.50 (≤ 1.50)"
    assert verdict == "ok, noisy, on the edge"


def test_disturbed_measurements_count_only_if_there_are_no_others() -> None:
    def rounds(*disturbed: bool) -> list[dict[str, object]]:
        return [
            report("fanout-50x1-w4", server, run, cpu_us_per_delivery=value, disturbed=is_disturbed)
            for run, is_disturbed in enumerate(disturbed)
            for server, value in (("floor", 1.0), ("compiled", 1 + run), ("picows", 9.0), ("node", 9.0))
        ]

    ((*_, rounds_counted, _, compiled, _, _, _, _, verdict),) = targets(*rounds(False, True, True))
    assert (rounds_counted, compiled, verdict) == ("1", "1.00 µs", "ok")
    ((*_, verdict),) = targets(*rounds(True))
    assert verdict == "ok, disturbed"


def test_deliveries_over_tls_have_rows() -> None:
    name = next(iter(TLS_WORKLOADS))
    parts = [
        {"run": run, "part": "tls", tls_key(name, "relay"): 1.5, tls_key(name, "compiled"): value}
        for run, value in enumerate((1.3, 1.42, 1.5))
    ]
    assert cells(targets_table(Results([]), parts)) == [
        [
            *(f"TLS ÷ plain, {name}", "CPU per delivery", "3", "1.50", "1.42", "-", "-", "-"),
            *("**1.42**, 1.30 to 1.50 (≤ 1.40)", "**MISSED**, on the edge"),
        ]
    ]


def test_further_peers_are_beside_the_compiled_relay() -> None:
    reports = [
        report("fanout-50x1-w1", "compiled", cpu_us_per_delivery=10.0),
        report("fanout-50x1-w1", "go", cpu_us_per_delivery=20.0),
        report("fanout-50x1-w1", "websockets-trio", cpu_us_per_delivery=40.0),
    ]
    assert cells(peers_table(Results(reports))) == [
        [
            *("`fanout-50x1-w1`", "CPU per delivery", "10.0 µs", "20.0 µs", "40.0 µs", "-"),
            *("0.50", "0.25", "-"),
        ]
    ]
    assert peers_table(Results(reports[:1])) == ""

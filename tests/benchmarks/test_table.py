import pytest
from results import Results
from table import HEADER, growth_sentences, number, table, targets_table
from workloads import GROWTHS, WORKLOADS


def report(workload: str, server: str, run: int = 0, **figures: float) -> dict[str, object]:
    return {"workload": workload, "server": server, "run": run, **figures}


@pytest.mark.parametrize(
    ("value", "unit", "text"),
    [
        (None, "µs", "-"),
        (1.234, "µs", "1.23 µs"),
        (12.34, "", "12.3"),
        (123.4, "KiB", "123 KiB"),
        (12345.6, "µs", "12,346 µs"),
    ],
)
def test_numbers_have_the_digits_that_mean_something(value: float | None, unit: str, text: str) -> None:
    assert number(value, unit) == text


def cells(results: Results) -> list[list[str]]:
    lines = table(results).splitlines()
    assert all(line.count("|") == len(HEADER) + 1 for line in lines)
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines[2:]]


def test_a_row_has_figures_ratios_and_a_verdict() -> None:
    rows = cells(
        Results(
            [
                report("fanout-50x1-w1", "floor", cpu_us_per_delivery=4.0),
                report("fanout-50x1-w1", "relay", cpu_us_per_delivery=10.0),
                report("fanout-50x1-w1", "node", cpu_us_per_delivery=20.0),
            ]
        )
    )
    assert rows == [
        [
            *("`fanout-50x1-w1`", "CPU per delivery", "2.0 x floor"),
            *("4.00 µs", "10.0 µs", "-", "20.0 µs", "-", "-", "-", "-"),
            *("2.50", "0.50", "-"),
            "**MISSED**",
        ]
    ]


def test_a_verdict_says_when_the_ratios_were_noisy() -> None:
    rounds = [(4.0, 4.0), (4.0, 7.0), (4.0, 4.0)]
    reports = [
        report("fanout-50x1-w1", server, run, cpu_us_per_delivery=value)
        for run, pair in enumerate(rounds)
        for server, value in zip(("floor", "relay"), pair, strict=True)
    ]
    assert cells(Results(reports))[0][-1] == "ok, noisy"


def test_latencies_have_a_row_each_and_connections_are_not_compared_with_the_floor() -> None:
    rows = cells(
        Results(
            [
                report("latency-200x1-1k", "relay", p50_us=50, p99_us=900, p999_us=2000),
                report("idle-4000x1", "floor", kib_per_conn=0.2),
                report("idle-4000x1", "relay", kib_per_conn=6.0),
                report("idle-4000x1", "node", kib_per_conn=12.0),
            ]
        )
    )
    assert [row[1] for row in rows] == ["p50", "p99", "p99.9", "memory per connection"]
    assert [row[4] for row in rows] == ["50.0 µs", "900 µs", "2,000 µs", "6.00 KiB"]
    assert rows[3][11:] == ["-", "0.50", "-", "ok"]
    assert rows[3][2] == "7.00 KiB"


def targets(*reports: dict[str, object]) -> list[list[str]]:
    lines = targets_table(Results(list(reports))).splitlines()
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines[2:]]


def test_targets_of_the_compiled_relay_have_what_was_reached_and_a_verdict() -> None:
    assert targets(
        report("fanout-50x1-w1", "floor", cpu_us_per_delivery=10.0),
        report("fanout-50x1-w1", "relay", cpu_us_per_delivery=15.0),
        report("fanout-50x1-w1", "compiled", cpu_us_per_delivery=12.0),
        report("fanout-50x1-w1", "picows", cpu_us_per_delivery=12.0),
        report("fanout-50x1-w1", "node", cpu_us_per_delivery=12.0),
        report("idle-4000x1", "relay", kib_per_conn=6.0),
        report("idle-4000x1", "compiled", kib_per_conn=4.0),
        report("fanout-50x1-w4", "relay", cpu_us_per_delivery=6.0),
    ) == [
        [
            *("`fanout-50x1-w1`", "CPU per delivery", "15.0 µs", "12.0 µs"),
            *("1.20 (≤ 1.30)", "**1.00** (≤ 0.65)", "1.00 (≤ 1.15)", "-", "**MISSED**"),
        ],
        [
            *("`idle-4000x1`", "memory per connection", "6.00 KiB", "4.00 KiB"),
            *("-", "-", "-", "4.00 KiB (≤ 5.00 KiB)", "ok"),
        ],
    ]


def test_a_target_without_its_other_server_has_no_verdict() -> None:
    ((*_, floor, node, picows, own, verdict),) = targets(
        report("latency-200x1-1k", "floor", p50_us=50, p99_us=100),
        report("latency-200x1-1k", "compiled", p50_us=60, p99_us=150),
    )
    assert (floor, node, picows) == ("1.50 (≤ 2.00)", "-", "- (≤ 1.50)")
    assert (own, verdict) == ("-", "-")
    assert targets_table(Results([report("fanout-50x1-w4", "relay", cpu_us_per_delivery=6.0)])) == ""


def test_growth_has_a_row_behind_its_sizes_and_a_sentence() -> None:
    apps = GROWTHS[0]
    reports = [
        report(workload.name, "relay", run, cpu_us_per_delivery=3.0)
        for workload in WORKLOADS
        if workload.name in apps.sizes
        for run in (0, 1)
    ]
    rows = cells(Results(reports))
    assert rows[-1][:5] == [apps.title, "per doubling", "2.1 x", "-", "2.00 x"]
    assert rows[-1][-1] == "ok"
    (sentence,) = growth_sentences(Results(reports))
    assert "grows by 2.00 for each doubling (exponent 1.00 to 1.00 over 2 rounds" in sentence
    assert growth_sentences(Results(reports[:2])) == []
    assert len(cells(Results(reports[:2]))) == 1

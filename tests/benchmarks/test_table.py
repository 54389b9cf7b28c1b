import pytest
from results import Results
from table import HEADER, growth_sentences, markdown, number, table
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


def test_a_table_without_rows_is_left_out() -> None:
    assert markdown(("A", "B"), []) == ""
    assert markdown(("A", "B"), [("1", "2")]) == "| A | B |\n| --- | --- |\n| 1 | 2 |"


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

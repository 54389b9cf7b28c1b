import pytest
from workloads import GROUPS, WORKLOADS

import cluster
from cluster import FIGURES, MEASURE, PARTS, ClusterFigure, cluster_table, count_missed_cluster

LATENCY = next(figure for figure in FIGURES if figure.key == "crossing_p50_us")
CAPACITY = next(figure for figure in FIGURES if figure.key == "fanout-50x1-w4_times")


def test_each_part_has_figures_under_unique_names() -> None:
    assert set(PARTS) == MEASURE.keys()
    assert len({figure.key for figure in FIGURES}) == len(FIGURES)
    assert not {cluster.GROUP, *PARTS} & {*GROUPS, *(workload.name for workload in WORKLOADS)}


def test_compared_workloads_are_those_of_the_other_tables() -> None:
    compared = {*cluster.LOCAL_WORKLOADS, *cluster.WORKER_WORKLOADS}
    assert compared <= {workload.name for workload in WORKLOADS}


@pytest.mark.parametrize(
    ("figure", "value", "kept"),
    [
        (LATENCY, 1_500, True),
        (LATENCY, 1_501, False),
        (CAPACITY, 1.7, True),
        (CAPACITY, 1.69, False),
        (ClusterFigure(part="local", key="x", title="x", unit="µs"), 5, None),
    ],
)
def test_figure_is_compared_with_its_limit(figure: ClusterFigure, value: float, kept: bool | None) -> None:
    assert figure.judge(value) is kept


def test_table_has_the_median_and_the_range_of_the_rounds() -> None:
    reports = [
        {"run": n, "part": "crossing", "crossing_p50_us": value} for n, value in enumerate((900, 1800, 1600))
    ]
    rows = cluster_table(reports).splitlines()
    assert rows[2:] == [
        "| crossing | crossing-400x1-2k, p50 | ≤ 1,500 µs | 1,600 µs | 900 to 1,800 | **MISSED** |"
    ]
    assert count_missed_cluster(reports) == 1
    assert count_missed_cluster(reports[:1]) == 0


def _report(deliveries: int, cpu_s: list[float], generator_cpu_s: float) -> cluster.Report:
    return {"deliveries": deliveries, "elapsed_s": 1.0, "cpu_s": cpu_s, "generator_cpu_s": generator_cpu_s}


def test_capacity_of_equally_busy_workers_is_limited_by_the_cores() -> None:
    one = _report(1000, [1.0], 0.5)
    found = cluster.compare_workers(one, _report(1400, [0.7, 0.7, 0.05, 0.05], 0.5))
    assert found["times"] == pytest.approx(1400 / 0.75 / 1000)
    assert found["rate_times"] == pytest.approx(1400 / 1.5 * 2 / 1000)
    assert (found["one_us"], found["busier_pct"]) == (1000.0, 50.0)


def test_capacity_of_unequal_workers_is_limited_by_the_busier_one() -> None:
    found = cluster.compare_workers(_report(1000, [1.0], 0.5), _report(1200, [0.9, 0.3, 0.0], 0.5))
    assert found["times"] == pytest.approx(1200 / 0.9 / 1000)
    assert found["busier_pct"] == pytest.approx(75)


def test_lateness_is_the_least_bound_that_all_new_wake_ups_kept() -> None:
    before = {0.001: 5.0, 0.01: 6.0, 0.1: 7.0, float("inf"): 7.0}
    after = {0.001: 15.0, 0.01: 18.0, 0.1: 19.0, float("inf"): 19.0}
    assert cluster.latest_ms(before, after) == 10.0

import pytest
from quiet import Report
from workloads import GROUPS, WORKLOADS

import cluster
from cluster import FIGURES, MEASURE, PARTS


def test_each_part_has_figures_under_unique_names() -> None:
    assert set(PARTS) == MEASURE.keys()
    assert len({figure.key for figure in FIGURES}) == len(FIGURES)
    assert not {cluster.GROUP, *PARTS} & {*GROUPS, *(workload.name for workload in WORKLOADS)}


def test_compared_workloads_are_those_of_the_other_tables() -> None:
    compared = {*cluster.LOCAL_WORKLOADS, *cluster.WORKER_WORKLOADS, cluster.WORKER_LATENCY}
    assert compared <= {workload.name for workload in WORKLOADS}


def _report(deliveries: int, cpu_s: list[float], generator_cpu_s: float) -> Report:
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

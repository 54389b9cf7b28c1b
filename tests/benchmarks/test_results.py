import math

import pytest
from results import (
    Results,
    count_missed,
    count_missed_targets,
    fit_exponent,
    is_noisy,
    judge,
    judge_growth,
    judge_target,
)
from workloads import GROWTHS, WORKLOADS, Growth, Workload

RATIO = next(w for w in WORKLOADS if w.name == "fanout-50x1-w1")
ABSOLUTE = next(w for w in WORKLOADS if w.name == "idle-4000x1")
APPS, DEVICES = GROWTHS


def results(*rows: tuple[str, str, str, list[float]]) -> Results:
    """Build results from workloads, keys, servers and the figures of the rounds."""
    return Results(
        [
            {"workload": workload, "server": server, "run": run, key: value, "mode": "fanout"}
            for workload, key, server, values in rows
            for run, value in enumerate(values)
        ]
    )


def of(workload: Workload, **figures: list[float]) -> Results:
    key = workload.figures[0].key
    return results(*[(workload.name, key, server, values) for server, values in figures.items()])


def growing(growth: Growth, cost: float, exponent: float) -> Results:
    """Make results of a relay whose cost of all the work is cost·size^exponent."""
    rows = []
    for workload in WORKLOADS:
        if workload.name in growth.sizes:
            size = growth.sizes[workload.name]
            shares = workload.apps if growth is APPS else 1
            value = cost * size**exponent / shares
            rows.append((workload.name, workload.figures[0].key, "relay", [value, value]))
    return results(*rows)


def test_a_figure_is_the_median_of_the_rounds() -> None:
    found = of(RATIO, relay=[9.0, 2.0, 3.0])
    assert found.figure(RATIO.name, "cpu_us_per_delivery", "relay") == 3.0
    assert found.figure(RATIO.name, "cpu_us_per_delivery", "floor") is None
    assert found.was_measured(RATIO)
    assert not found.was_measured(ABSOLUTE)


def test_ratios_are_taken_within_a_round_and_not_between_medians() -> None:
    # Everything takes three times as long in the last two rounds; the relay always takes twice the floor.
    found = of(RATIO, floor=[1.0, 3.0, 3.0], relay=[2.0, 6.0, 6.0])
    assert found.ratio(RATIO.name, "cpu_us_per_delivery", "relay", "floor") == 2.0
    uneven = of(RATIO, floor=[1.0, 3.0, 2.0], relay=[4.0, 3.0, 4.0])
    assert uneven.ratios(RATIO.name, "cpu_us_per_delivery", "relay", "floor") == [4.0, 1.0, 2.0]
    assert uneven.ratio(RATIO.name, "cpu_us_per_delivery", "relay", "floor") == 2.0


def test_a_round_that_one_of_them_missed_makes_no_ratio() -> None:
    found = of(RATIO, floor=[1.0, 0.0], relay=[2.0, 2.0, 7.0])
    assert found.ratios(RATIO.name, "cpu_us_per_delivery", "relay", "floor") == [2.0]
    assert found.ratio(RATIO.name, "cpu_us_per_delivery", "relay", "node") is None


@pytest.mark.parametrize("exponent", [0.0, 0.5, 1.0, 2.0])
def test_the_exponent_of_a_power_is_found(exponent: float) -> None:
    assert fit_exponent({size: 7 * size**exponent for size in (1, 3, 10, 1000)}) == pytest.approx(exponent)


def test_a_fit_lies_between_the_points() -> None:
    assert fit_exponent({1: 1.0, 10: 30.0, 100: 100.0}) == pytest.approx(1.0)
    assert 0.5 < fit_exponent({1: 1.0, 2: 1.0, 4: 4.0}) < 1.5


@pytest.mark.parametrize("growth", GROWTHS, ids=lambda growth: growth.group)
def test_growth_is_that_of_all_the_work(growth: Growth) -> None:
    found = growing(growth, 5.0, 0.9)
    largest = max(growth.sizes.values())
    assert found.costs(growth, "relay")[largest] == pytest.approx(5 * largest**0.9)
    assert found.costs(growth, "relay", run=1) == pytest.approx(found.costs(growth, "relay"))
    assert found.per_doubling(growth, "relay") == pytest.approx(2**0.9)
    assert len(found.exponents(growth, "relay")) == 2
    assert found.per_doubling(growth, "floor") is None


def test_two_sizes_make_no_curve() -> None:
    names = list(APPS.sizes)[:2]
    found = results(*[(name, "cpu_us_per_delivery", "relay", [1.0]) for name in names])
    assert found.exponents(APPS, "relay") == []


@pytest.mark.parametrize(
    ("workload", "figures", "kept"),
    [
        (RATIO, {"floor": [1.0], "relay": [1.9]}, True),
        (RATIO, {"floor": [1.0], "relay": [2.1]}, False),
        (RATIO, {"relay": [2.1]}, None),
        (ABSOLUTE, {"relay": [6.9]}, True),
        (ABSOLUTE, {"floor": [0.1], "relay": [7.1]}, False),
        (ABSOLUTE, {"floor": [0.1]}, None),
        (WORKLOADS[-1], {"floor": [1.0], "relay": [100.0]}, None),
    ],
)
def test_limits_are_of_a_ratio_or_of_the_figure(
    workload: Workload, figures: dict[str, list[float]], kept: bool | None
) -> None:
    assert judge(of(workload, **figures), workload) is kept


@pytest.mark.parametrize(
    ("workload", "figures", "other", "kept"),
    [
        (RATIO, {"floor": [1.0], "compiled": [1.3]}, "floor", True),
        (RATIO, {"floor": [1.0], "compiled": [1.31], "relay": [1.0]}, "floor", False),
        (RATIO, {"compiled": [1.3]}, "floor", None),
        (ABSOLUTE, {"compiled": [5.0]}, "compiled", True),
        (ABSOLUTE, {"compiled": [5.1], "floor": [4.0]}, "compiled", False),
    ],
)
def test_targets_are_of_the_compiled_relay(
    workload: Workload, figures: dict[str, list[float]], other: str, kept: bool | None
) -> None:
    found = of(workload, **figures)
    assert judge_target(found, workload, other) is kept
    assert count_missed_targets(found) == (kept is False)


def test_a_cost_may_grow_in_proportion_but_not_faster() -> None:
    assert judge_growth(growing(DEVICES, 1.0, 1.0), DEVICES) is True
    assert judge_growth(growing(DEVICES, 1.0, 1.2), DEVICES) is False
    assert judge_growth(growing(DEVICES, 1.0, 1.0), APPS) is None
    assert count_missed(growing(DEVICES, 1.0, 1.2)) == 1
    assert count_missed(of(RATIO, floor=[1.0], relay=[9.0])) == 1


def test_ratios_that_lie_apart_are_noisy() -> None:
    assert is_noisy([1.0, 1.6])
    assert not is_noisy([1.0, 1.4])
    assert not is_noisy([])
    assert not is_noisy([math.pi])

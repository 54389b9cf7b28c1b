import pytest
from compare import DEFAULT, comparison_table, parse_arguments
from results import Results
from workloads import WORKLOADS, choose

PYTHONS = ["python3.11", "python3.12"]


def results(*pairs: tuple[float, float], disturbed: bool = False) -> Results:
    return Results(
        [
            {"run": run, "workload": DEFAULT[0], "server": side, "cpu_us_per_delivery": figure}
            | {"disturbed": disturbed}
            for run, pair in enumerate(pairs)
            for side, figure in zip(("base", "new"), pair, strict=True)
        ]
    )


def row(found: Results, limit: float = 1.03) -> tuple[list[str], int]:
    table, missed = comparison_table(found, WORKLOADS, limit)
    return [cell.strip() for cell in table.splitlines()[2].strip("|").split("|")], missed


def test_ratio_is_the_median_of_those_of_the_pairs() -> None:
    cells, missed = row(results((10, 10.2), (20, 19), (30, 33)))
    assert cells == [
        *(f"`{DEFAULT[0]}`", "CPU per delivery", "20.0 µs", "19.0 µs"),
        *("1.020", "0.95 to 1.10", "3", "ok"),
    ]
    assert missed == 0


def test_ratio_above_the_limit_is_missed() -> None:
    cells, missed = row(results((10, 10.4), (10, 20), disturbed=True))
    assert (cells[-1], missed) == ("**MISSED**, noisy, disturbed", 1)
    assert row(results((10, 10.4)), limit=1.05)[1] == 0
    assert comparison_table(Results([]), WORKLOADS, 1.03) == ("", 0)


def test_options_choose_workloads_and_settings() -> None:
    chosen = parse_arguments([*PYTHONS, "--new-setting", "BREWOS_RELAY_HISTORY_S=0", "--repeats", "1"])
    assert (chosen.base, chosen.new, chosen.pairs) == (*PYTHONS, 10)
    assert chosen.new_setting == [("BREWOS_RELAY_HISTORY_S", "0")]
    assert (chosen.quiet.repeats, chosen.base_setting) == (1, [])
    assert [w.name for w in choose(frozenset(chosen.only), quick=False)] == list(DEFAULT)


@pytest.mark.parametrize(
    "wrong", [["--new-setting", "X"], ["--pairs", "0"], ["--repeats", "-1"], ["--only", "none"]]
)
def test_wrong_option_is_refused(wrong: list[str]) -> None:
    with pytest.raises(SystemExit):
        parse_arguments([*PYTHONS, *wrong])

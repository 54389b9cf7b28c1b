import pytest
import relay_parts
from parts import PartFigure, count_missed_parts, measure_part, part_duration_s, parts_table
from quiet import Quiet
from servers import BenchError

import cluster

LATENCY = next(figure for figure in cluster.FIGURES if figure.key == "crossing_p50_us")
CAPACITY = next(figure for figure in cluster.FIGURES if figure.key == "fanout-50x1-w4_times")
NO_LIMIT = PartFigure(part="crossing", key="busy_per_s", title="a second", unit="")
REPORTS: list[dict[str, object]] = [
    {"run": n, "part": "crossing", "crossing_p50_us": value} for n, value in enumerate((900, 1800, 1600))
]


@pytest.mark.parametrize(
    ("figure", "value", "kept"),
    [
        (LATENCY, 1_500, True),
        (LATENCY, 1_501, False),
        (CAPACITY, 1.7, True),
        (CAPACITY, 1.69, False),
        (NO_LIMIT, 5, None),
    ],
)
def test_figure_is_compared_with_its_limit(figure: PartFigure, value: float, kept: bool | None) -> None:
    assert figure.judge(value) is kept


def test_table_has_the_median_and_the_range_of_the_rounds() -> None:
    assert parts_table([LATENCY, NO_LIMIT], REPORTS).splitlines()[2:] == [
        "| crossing | crossing-400x1-2k, p50 | ≤ 1,500 µs | 1,600 µs | 900 to 1,800 | **MISSED** |"
    ]
    assert count_missed_parts([LATENCY], REPORTS) == 1
    assert count_missed_parts([LATENCY], REPORTS[:1]) == 0
    assert parts_table([NO_LIMIT], REPORTS) == ""


def test_disturbed_rounds_of_a_part_count_only_if_there_are_no_others() -> None:
    disturbed = [REPORTS[0], REPORTS[1] | {"disturbed": True}]
    assert parts_table([LATENCY], disturbed).endswith("| 900 µs | 900 to 900 | ok |")
    assert parts_table([LATENCY], disturbed[1:]).endswith("| 1,800 to 1,800 | **MISSED**, disturbed |")
    assert "| crossing (compiled) |" in parts_table([LATENCY], [REPORTS[0] | {"build": "compiled"}])
    plain = [{"run": 0, "part": "crossing", "busy_per_s": 7.0, "disturbed": True}]
    assert parts_table([NO_LIMIT], plain).endswith("| 7.00 | 7.00 to 7.00 | disturbed |")


def test_failed_part_has_no_report() -> None:
    def fail() -> dict[str, object]:
        raise BenchError("no server")

    assert measure_part("crossing", fail, quiet=Quiet(repeats=0, look=float), label="") is None


def test_each_part_of_one_relay_has_figures_under_unique_names() -> None:
    keys = [figure.key for figure in (*cluster.FIGURES, *relay_parts.FIGURES)]
    assert len(set(keys)) == len(keys)
    assert set(relay_parts.PARTS) == relay_parts.MEASURE.keys()
    assert all(part_duration_s(name, 2.0) > 0 for name in (*cluster.PARTS, *relay_parts.PARTS))

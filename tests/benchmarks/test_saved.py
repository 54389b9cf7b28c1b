from pathlib import Path

import pytest
from results import Results
from saved import Saved, describe_medians, describe_rounds, read_saved

ROW = {"workload": "fanout-50x1-w1", "server": "floor"}


def saved(caption: str, *figures: float) -> Saved:
    return Saved(
        caption=caption,
        reports=[ROW | {"run": run, "cpu_us_per_delivery": figure} for run, figure in enumerate(figures)],
        parts=[{"run": 0, "part": "tls", "µ": 1.0}],
        rounds=[{"run": run, "load": 0.5, "others_pct": 1.0} for run in range(len(figures))],
    )


def test_written_measurements_are_read_again(tmp_path: Path) -> None:
    file = tmp_path / "all.json"
    saved("Medians of 2.", 1.0, 2.0).write(file)
    assert read_saved([file]) == saved("Medians of 2.", 1.0, 2.0)
    assert [path.name for path in tmp_path.iterdir()] == ["all.json"]


def test_files_are_joined_without_mixing_their_rounds(tmp_path: Path) -> None:
    first, second = tmp_path / "first.json", tmp_path / "second.json"
    saved("In the morning.", 1.0, 9.0).write(first)
    saved("In the evening.", 5.0).write(second)
    joined = read_saved([first, second])
    assert [row["run"] for row in joined.reports] == [0, 1, 2]
    assert [row["run"] for row in joined.parts] == [0, 2]
    assert joined.caption == "In the morning. In the evening."
    assert Results(joined.reports).figure("fanout-50x1-w1", "cpu_us_per_delivery", "floor") == 5.0


@pytest.mark.parametrize("content", ['{"caption": "x"}', "no JSON", "[]"])
def test_file_of_another_kind_is_refused(content: str, tmp_path: Path) -> None:
    file = tmp_path / "other.json"
    file.write_text(content)
    with pytest.raises(ValueError, match=r"other\.json was not written by --json"):
        read_saved([file])


def test_number_of_rounds_is_described() -> None:
    assert describe_medians(saved("", 1.0)) == "One round."
    assert describe_medians(saved("", 1.0, 2.0, 3.0)) == "Medians of 1 to 3 rounds."
    assert describe_medians(Saved()) == "Medians of 0 rounds."


def test_load_and_disturbed_measurements_are_described() -> None:
    found = saved("", 1.0)
    assert describe_rounds(found).endswith("other programs): 0.5 (1 %).")
    found.reports[0] |= {"others_pct": 4.0, "attempts": 2}
    found.parts[0] |= {"others_pct": 90.0, "attempts": 3, "disturbed": True}
    text = describe_rounds(found)
    assert "others used up to 4 % of a processor" in text
    assert "2 of 2 measurements were repeated because others used more. 1 of 2 measurements were" in text
    assert describe_rounds(Saved()) == ""

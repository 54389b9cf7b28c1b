from pathlib import Path

import pytest
import run
from run import PARTS, choose_parts, parse_arguments, show
from saved import Saved

import cluster


def test_parts_are_chosen_by_name_by_group_or_because_of_targets() -> None:
    assert choose_parts(None) == list(PARTS)
    assert choose_parts([cluster.GROUP]) == list(cluster.PARTS)
    assert choose_parts(["tls", "delivery"]) == ["tls"]
    assert choose_parts(["delivery"]) == []
    assert set(choose_parts(None, only_targets=True)) == {"tls", "history", "workers"}
    assert choose_parts([cluster.GROUP], only_targets=True) == ["workers"]


def test_files_can_be_named_together_or_one_by_one() -> None:
    together = parse_arguments(["--targets", "--from", "a.json", "b.json"])
    apart = parse_arguments(["--from", "a.json", "--from", "b.json"])
    assert together.from_files == apart.from_files == [Path("a.json"), Path("b.json")]
    assert together.targets


def test_disturbed_measurements_are_repeated_except_in_a_quick_look() -> None:
    assert parse_arguments([]).quiet.repeats == 2
    assert parse_arguments(["--quick"]).quiet.repeats == 0
    assert parse_arguments(["--quick", "--repeats", "1"]).quiet.repeats == 1


def test_tables_of_targets_leave_out_the_limits_of_the_interpreted_relay(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    figures = {"floor": 1.0, "relay": 9.0, "compiled": 1.0, "go": 2.0, "picows": 2.0, "node": 2.0}
    reports = [
        {"run": 0, "workload": "fanout-50x1-w1", "server": server, "cpu_us_per_delivery": value}
        for server, value in figures.items()
    ]
    saved = Saved(caption="Each for 2 s.", reports=reports)
    chart = tmp_path / "bench.svg"
    assert show(saved, chart, only_targets=True) == 0
    shown = capsys.readouterr().out
    assert shown == chart.with_suffix(".md").read_text(encoding="utf-8")
    assert "Compiled ÷ Go" in shown
    assert "x floor" not in shown
    assert shown.endswith("One round. Each for 2 s.\n")
    assert chart.exists()
    assert show(saved, chart, only_targets=False) == 1
    assert "2.0 x floor" in capsys.readouterr().out


def test_unreadable_file_is_reported(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.argv", ["run.py", "--from", __file__])
    assert run.main() == 3
    assert __file__ in capsys.readouterr().err

import sys
from pathlib import Path

import pytest
import trio

from fuzz import floods
from fuzz.floods import Seen, flood_server, percentile


async def test_a_bystander_signs_in_and_connects_during_floods(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """How long that takes is judged where nothing else runs: by `nox -s fuzz`."""
    monkeypatch.setattr(floods, "WINDOWS", 1)
    monkeypatch.setattr(floods, "MOST_RATIO", 100.0)
    with trio.fail_after(90):
        seen = await flood_server(tmp_path, secs=8, seed=5, with_street=False)
    assert seen.problems == []
    assert all(len(times) >= 2 for times in (*seen.quiet.values(), *seen.flooded.values()))


def test_a_delayed_bystander_is_reported() -> None:
    seen = Seen()
    for times in (*seen.quiet.values(), seen.flooded["sign-in"]):
        times.extend([0.010] * 100)
    seen.flooded["connect"].extend([0.010] * 98 + [0.021] * 2)
    floods._judge(seen)
    assert seen.problems[0] == "a connect of the bystander takes 2.10 times as long in a flood"
    assert len([line for line in seen.lines() if "2.10 times" in line]) == 1


async def test_the_flooding_process_leaves_the_processors_to_others() -> None:
    code = "import os; from fuzz.floods import step_back; step_back()"
    code += "; print(os.sched_getscheduler(0) == os.SCHED_IDLE, len(os.sched_getaffinity(0)))"
    with trio.fail_after(20):
        done = await trio.run_process(
            [sys.executable, "-c", code], cwd=Path(__file__).parents[1], capture_stdout=True
        )
    assert done.stdout.split() == [b"True", b"1"]


def test_percentiles() -> None:
    times = [number / 1000 for number in range(1, 201)]
    assert percentile(times, 50) == pytest.approx(0.101)
    assert percentile(times) == pytest.approx(0.199)
    assert percentile([0.5]) == 0.5

from pathlib import Path

import pytest
import trio

from fuzz import patience
from fuzz.live import fuzz_server


async def test_a_server_survives_fuzzing_while_other_peers_communicate(tmp_path: Path) -> None:
    with trio.fail_after(90):
        seen = await fuzz_server(tmp_path, secs=2, seed=5)
    assert seen.problems == []
    assert seen.echoes >= 2
    assert seen.upgraded >= 5
    assert seen.statuses.keys() - {101}


async def test_machines_that_send_nonsense_are_held_over_tls(tmp_path: Path) -> None:
    with trio.fail_after(90):
        seen = await fuzz_server(tmp_path, secs=10, seed=5, tls=True)
    assert seen.problems == []
    assert seen.outlasted >= 5


async def test_a_machine_that_is_not_held_is_found(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("fuzz.patience.SETTINGS", {**patience.SETTINGS, "BREWOS_RELAY_DEVICE_MIN_AGE_S": 0.1})
    with trio.fail_after(90):
        seen = await fuzz_server(tmp_path, secs=6, seed=5, tls=True)
    assert any("connection ended at the age of" in problem for problem in seen.problems)

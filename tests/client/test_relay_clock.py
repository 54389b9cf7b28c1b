"""Tests of client.relay_clock."""

import time
from typing import Any

import pytest

from brewos_relay.client.relay_clock import RelayClock


def test_goes_by_our_clock_until_the_relay_has_greeted() -> None:
    clock = RelayClock()
    assert abs(clock.now_ms() - time.time() * 1000) < 1000
    clock.set("noon")
    assert abs(clock.now_ms() - time.time() * 1000) < 1000


def test_goes_by_the_relay_s_clock_then(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = RelayClock()
    monkeypatch.setattr(time, "monotonic", lambda: 100.0)
    clock.set(1_700_000_000_000)
    monkeypatch.setattr(time, "monotonic", lambda: 102.5)
    assert clock.now_ms() == 1_700_000_002_500
    monkeypatch.setattr(time, "time_ns", lambda: 0)  # our own was set
    assert clock.now_ms() == 1_700_000_002_500


@pytest.mark.parametrize(
    ("not_after", "passed"),
    [
        (999_999, True),
        (1_000_000, False),
        (1e300, False),
        (None, False),
        ("0", False),
        (True, False),
        (0, True),
    ],
)
def test_knows_what_has_lost_its_meaning(
    monkeypatch: pytest.MonkeyPatch, not_after: Any, passed: bool
) -> None:
    clock = RelayClock()
    monkeypatch.setattr(time, "monotonic", lambda: 100.0)
    clock.set(1_000_000)
    assert clock.has_passed(not_after) is passed

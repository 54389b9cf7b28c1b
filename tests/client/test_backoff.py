"""Tests of client.backoff: pauses, hints, and the header that gives one."""

import time
from datetime import UTC, datetime
from email.utils import format_datetime

import pytest

from brewos_relay.client.backoff import LONGEST_HINT_S, SHORTEST_HINT_S, Backoff, parse_retry_after


def pauses(backoff: Backoff, count: int) -> list[float]:
    return [backoff.next_s() for _ in range(count)]


def test_doubles_from_5_s_to_60_s() -> None:
    assert pauses(Backoff(chance=lambda: 0.0), 6) == [5, 10, 20, 40, 60, 60]


def test_jitter_shortens_by_up_to_40_percent() -> None:
    assert pauses(Backoff(chance=lambda: 1.0), 5) == pytest.approx([3, 6, 12, 24, 36])
    several = {Backoff().next_s() for _ in range(20)}
    assert len(several) > 1
    assert all(3 <= pause_s <= 5 for pause_s in several)


def test_reset_starts_with_the_shortest_pause() -> None:
    backoff = Backoff(chance=lambda: 0.0)
    pauses(backoff, 3)
    backoff.hint(33)
    backoff.reset()
    assert pauses(backoff, 2) == [5, 10]


def test_hint_is_only_the_next_pause() -> None:
    backoff = Backoff(chance=lambda: 0.5)
    backoff.hint(31)
    assert pauses(backoff, 2) == pytest.approx([31, 8])
    backoff.hint(10, same_for_all=True)
    assert backoff.next_s() == pytest.approx(12)


@pytest.mark.parametrize(
    ("asked_s", "pause_s"),
    [
        (0, SHORTEST_HINT_S),
        (-5, SHORTEST_HINT_S),
        (1e9, LONGEST_HINT_S),
        (float("nan"), 5),
        (float("inf"), 5),
    ],
)
def test_hint_is_limited(asked_s: float, pause_s: float) -> None:
    backoff = Backoff(chance=lambda: 0.0)
    backoff.hint(asked_s)
    assert backoff.next_s() == pause_s


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("5", 5),
        (" 120\r", 120),
        ("0", 0),
        ("99999999999999", 999_999_999),
        ("soon", None),
        ("-1", None),
        ("²", None),
    ],
)
def test_retry_after_in_seconds(text: str, seconds: float | None) -> None:
    assert parse_retry_after(text) == seconds


def test_retry_after_as_a_date() -> None:
    at = datetime.fromtimestamp(int(time.time()) + 90, UTC)
    seconds = parse_retry_after(format_datetime(at, usegmt=True))
    assert seconds is not None
    assert 85 < seconds <= 90
    assert parse_retry_after("Wed, 21 Oct 2015 07:28:00 GMT") == 0

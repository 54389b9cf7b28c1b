import time
from datetime import datetime

import pytest

from brewos_relay.core.clock import iso_time, now_ms


def test_now_is_the_wall_clock_in_ms() -> None:
    before = time.time()
    now = now_ms()
    assert isinstance(now, int)
    assert before - 0.001 <= now / 1000 <= time.time() + 0.001


@pytest.mark.parametrize(
    ("at_ms", "written"),
    [
        (None, None),
        (0, "1970-01-01T00:00:00.000Z"),
        (7, "1970-01-01T00:00:00.007Z"),
        (1_700_000_000_999, "2023-11-14T22:13:20.999Z"),
        (1_704_067_199_999, "2023-12-31T23:59:59.999Z"),
        (4_102_444_800_000, "2100-01-01T00:00:00.000Z"),
    ],
)
def test_times_are_written_in_utc_to_the_millisecond(at_ms: int | None, written: str | None) -> None:
    assert iso_time(at_ms) == written


def test_what_is_written_is_read_back() -> None:
    now = now_ms()
    written = iso_time(now)
    assert written is not None
    assert round(datetime.fromisoformat(written).timestamp() * 1000) == now


def test_a_time_that_cannot_be_written_is_the_last_that_can() -> None:
    assert iso_time(10**18) == "9999-12-31T23:59:59.000Z"

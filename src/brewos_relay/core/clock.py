"""Wall-clock times as messages carry them."""

import time
from datetime import UTC, datetime
from typing import Final

_LAST_MS: Final = 253_402_300_799_000
"""The end of the year 9999, the last that can be written."""


def now_ms() -> int:
    """Read the wall clock, in ms since the epoch."""
    return time.time_ns() // 1_000_000


def iso_time(at_ms: int | None) -> str | None:
    """Write a time in ms since the epoch as ISO 8601 in UTC."""
    if at_ms is None:
        return None
    at = datetime.fromtimestamp(min(at_ms, _LAST_MS) / 1000, UTC)
    return at.isoformat(timespec="milliseconds").replace("+00:00", "Z")

"""The clock of a relay, as far as it is known here: commands lose their meaning by it, not by ours."""

import time
from typing import Any

from brewos_relay.client.codec import is_number
from brewos_relay.vocabulary import now_ms


class RelayClock:
    """What time it is at the relay: by its greeting, and by our own clock as long as there was none."""

    def __init__(self) -> None:
        self._ahead_ms: float | None = None

    def set(self, timestamp_ms: Any) -> None:
        """Take the `timestamp` of a greeting. It was on its way for a moment, so we are late, never early."""
        if is_number(timestamp_ms):
            self._ahead_ms = timestamp_ms - time.monotonic() * 1000

    def now_ms(self) -> int:
        """Give the time at the relay in ms since 1970."""
        if self._ahead_ms is None:
            return now_ms()
        return int(time.monotonic() * 1000 + self._ahead_ms)

    def has_passed(self, not_after: Any) -> bool:
        """Say whether the time until which a command has a meaning is over."""
        return is_number(not_after) and self.now_ms() > not_after

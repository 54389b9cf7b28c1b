"""Token buckets: how fast a peer may speak before the relay stops listening for a moment."""

from typing import Final

import trio

_MOST_PAUSE_S: Final = 5.0


class TokenBucket:
    """Lets `rate_per_s` messages through on average, and `burst` at once after a quiet time."""

    __slots__ = ("_at", "_burst", "_rate_per_s", "_tokens")

    def __init__(self, *, rate_per_s: float, burst: float, now: float) -> None:
        self._rate_per_s = rate_per_s
        self._burst = burst
        self._tokens = burst
        self._at = now

    def take(self, count: int, now: float) -> float:
        """Count messages that have come; return for how many seconds to take no more (0.0: go on).

        At most 5 s at a time, so that a peer's pings are answered before it gives up; what is left then is
        remembered.
        """
        self._tokens = min(self._burst, self._tokens + (now - self._at) * self._rate_per_s) - count
        self._at = now
        return min(-self._tokens / self._rate_per_s, _MOST_PAUSE_S) if self._tokens < 0 else 0.0

    def admit(self, now: float) -> bool:
        """Take one token if there is one."""
        self._tokens = min(self._burst, self._tokens + (now - self._at) * self._rate_per_s)
        self._at = now
        if self._tokens < 1:
            return False
        self._tokens -= 1
        return True


def open_bucket(rate_per_s: float, *, burst: float) -> TokenBucket | None:
    """Make a bucket that is full now; None, which lets everything through, for a rate of 0."""
    if rate_per_s <= 0:
        return None
    return TokenBucket(rate_per_s=rate_per_s, burst=burst, now=trio.current_time())

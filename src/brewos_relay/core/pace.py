"""Token buckets: how long to pause reading from a peer that exceeds its rate, and whom to refuse."""

import math
from collections import OrderedDict
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

    def take(self, count: float, now: float) -> float:
        """Count messages that have come; return for how many seconds to take no more (0.0: go on).

        At most 5 s at a time, so that a peer's pings are answered before it gives up; what is left then is
        remembered.
        """
        tokens = self._tokens + (now - self._at) * self._rate_per_s
        if tokens > self._burst:  # faster than `min`, for every message
            tokens = self._burst
        self._tokens = tokens = tokens - count
        self._at = now
        return 0.0 if tokens >= 0 else min(-tokens / self._rate_per_s, _MOST_PAUSE_S)

    def owe(self, count: float, now: float) -> None:
        """Count messages that are taken whatever their number; the debt is at most `burst`."""
        self._tokens = max(-self._burst, self.level(now) - count)

    def is_full(self, now: float) -> bool:
        """Tell whether the peer has been slow enough for long enough to be let through at once again."""
        return self.level(now) >= self._burst

    def level(self, now: float) -> float:
        """Tell how many tokens there are."""
        self._tokens = min(self._burst, self._tokens + (now - self._at) * self._rate_per_s)
        self._at = now
        return self._tokens

    def admit(self, now: float, *, reserve: float = 0.0) -> bool:
        """Take one token if there is one, and `reserve` more are left after it."""
        if self.level(now) < 1 + reserve:
            return False
        self._tokens -= 1
        return True

    def give_back(self) -> None:
        """Put a token back that was taken for nothing."""
        self._tokens = min(self._burst, self._tokens + 1)

    @property
    def empty_s(self) -> float:
        """For how many seconds from the last look at it there is no token to take."""
        return max(0.0, (1 - self._tokens) / self._rate_per_s)


class TokenBuckets:
    """A bucket for each key; beyond `kept`, that which was used least recently is forgotten, and so full."""

    def __init__(self, *, rate_per_s: float, burst: float, kept: int) -> None:
        self._rate_per_s = rate_per_s
        self._burst = burst
        self._kept = kept
        self._buckets: OrderedDict[str, TokenBucket] = OrderedDict()

    def __len__(self) -> int:
        return len(self._buckets)

    def find(self, key: str) -> TokenBucket | None:
        """Look for a bucket that was used before."""
        return self._buckets.get(key)

    def use(self, key: str, now: float) -> TokenBucket:
        """Give the bucket of a key; one that was not used before is full."""
        bucket = self._buckets.pop(key, None) or TokenBucket(
            rate_per_s=self._rate_per_s, burst=self._burst, now=now
        )
        self._buckets[key] = bucket
        if len(self._buckets) > self._kept:
            self._buckets.popitem(last=False)
        return bucket


class RecentRates:
    """How often each key was used lately, a second: an average in which older uses count less.

    Beyond `kept` keys, that which was used least recently is forgotten.
    """

    def __init__(self, *, over_s: float, kept: int) -> None:
        self._over_s = over_s
        self._kept = kept
        self._rates: OrderedDict[str, tuple[float, float]] = OrderedDict()

    def __len__(self) -> int:
        return len(self._rates)

    def of(self, key: str, now: float) -> float:
        """Give the rate of a key, a second."""
        rate, at = self._rates.get(key, (0.0, now))
        return rate * math.exp((at - now) / self._over_s)

    def note(self, key: str, now: float) -> None:
        """Count a use."""
        self._rates[key] = self.of(key, now) + 1 / self._over_s, now
        self._rates.move_to_end(key)
        if len(self._rates) > self._kept:
            self._rates.popitem(last=False)


def open_bucket(rate_per_s: float, *, burst: float) -> TokenBucket | None:
    """Make a bucket that is full now; None, which lets everything through, for a rate of 0."""
    if rate_per_s <= 0:
        return None
    return TokenBucket(rate_per_s=rate_per_s, burst=burst, now=trio.current_time())

"""Rate limits: token buckets for messages and requests, and limits for log lines by cause and network."""

import logging
import math
from collections import OrderedDict
from typing import Final

import trio

log = logging.getLogger(__name__)

_MOST_PAUSE_S: Final = 5.0


class TokenBucket:
    """Lets `rate_per_s` messages through on average, and `burst` at once after a pause."""

    __slots__ = ("_at", "_burst", "_rate_per_s", "_tokens")

    def __init__(self, *, rate_per_s: float, burst: float, now: float) -> None:
        self._rate_per_s = rate_per_s
        self._burst = burst
        self._tokens = burst
        self._at = now

    def take(self, count: float, now: float) -> float:
        """Take tokens for `count` messages; return for how many seconds to pause (0.0: go on).

        A pause takes 5 s at most, so that pings of the peer are answered before it gives up. The rest of the
        debt stays.
        """
        tokens = self._tokens + (now - self._at) * self._rate_per_s
        if tokens > self._burst:  # faster than `min`, on the path of every message
            tokens = self._burst
        self._tokens = tokens = tokens - count
        self._at = now
        return 0.0 if tokens >= 0 else min(-tokens / self._rate_per_s, _MOST_PAUSE_S)

    def owe(self, count: float, now: float) -> None:
        """Take tokens for messages that cannot be paused; the debt is at most `burst`."""
        self._tokens = max(-self._burst, self.level(now) - count)

    def is_full(self, now: float) -> bool:
        """Whether no token is missing, since the peer has kept its rate for some time."""
        return self.level(now) >= self._burst

    def level(self, now: float) -> float:
        """Return how many tokens there are."""
        self._tokens = min(self._burst, self._tokens + (now - self._at) * self._rate_per_s)
        self._at = now
        return self._tokens

    def admit(self, now: float, *, reserve: float = 0.0) -> bool:
        """Take one token, if `reserve` more are left after that."""
        if self.level(now) < 1 + reserve:
            return False
        self._tokens -= 1
        return True

    def give_back(self) -> None:
        """Return a token that was taken and not used."""
        self._tokens = min(self._burst, self._tokens + 1)

    @property
    def empty_s(self) -> float:
        """For how many seconds after the last use there is no token."""
        return max(0.0, (1 - self._tokens) / self._rate_per_s)


class TokenBuckets:
    """A bucket for each key. With more than `kept` keys, the one used least recently is forgotten."""

    def __init__(self, *, rate_per_s: float, burst: float, kept: int) -> None:
        self._rate_per_s = rate_per_s
        self._burst = burst
        self._kept = kept
        self._buckets: OrderedDict[str, TokenBucket] = OrderedDict()

    def __len__(self) -> int:
        return len(self._buckets)

    def find(self, key: str) -> TokenBucket | None:
        """Return the bucket of a key that was used before."""
        return self._buckets.get(key)

    def use(self, key: str, now: float) -> TokenBucket:
        """Return the bucket of a key; a new one is full."""
        bucket = self._buckets.pop(key, None) or TokenBucket(
            rate_per_s=self._rate_per_s, burst=self._burst, now=now
        )
        self._buckets[key] = bucket
        if len(self._buckets) > self._kept:
            self._buckets.popitem(last=False)
        return bucket


class RecentRates:
    """The recent uses per second of each key; older uses weigh less.

    With more than `kept` keys, the one used least recently is forgotten.
    """

    def __init__(self, *, over_s: float, kept: int) -> None:
        self._over_s = over_s
        self._kept = kept
        self._rates: OrderedDict[str, tuple[float, float]] = OrderedDict()

    def __len__(self) -> int:
        return len(self._rates)

    def of(self, key: str, now: float) -> float:
        """Return the recent uses per second of a key."""
        rate, at = self._rates.get(key, (0.0, now))
        return rate * math.exp((at - now) / self._over_s)

    def count(self, key: str, now: float) -> None:
        """Count a use of a key."""
        self._rates[key] = self.of(key, now) + 1 / self._over_s, now
        self._rates.move_to_end(key)
        if len(self._rates) > self._kept:
            self._rates.popitem(last=False)


def open_bucket(rate_per_s: float, *, burst: float) -> TokenBucket | None:
    """Make a full bucket; None, for no limit, if the rate is 0."""
    if rate_per_s <= 0:
        return None
    return TokenBucket(rate_per_s=rate_per_s, burst=burst, now=trio.current_time())


REPORT_EVERY_S: Final = 60.0
_EACH_PER_S: Final = 0.2
_KEPT: Final = 1024
"""Pairs of cause and network that have a bucket of their own."""
_REPORTED: Final = 20
"""Lines of one report. One more line sums up the rest."""


class _Cause:
    """The lines of one cause from one network: its bucket, and how many lines were suppressed."""

    __slots__ = ("bucket", "suppressed")

    def __init__(self, at_once: float, now: float) -> None:
        self.bucket = TokenBucket(rate_per_s=_EACH_PER_S, burst=at_once, now=now)
        self.suppressed = 0


class LogLineLimits:
    """Decides which lines are logged, and reports how many were suppressed.

    Each cause from each network may have `each_at_once` lines at once and 12 a minute, and all together
    `burst` at once and `rate_per_s`. Suppressed lines are counted, and reported once a minute by cause and
    network.
    """

    def __init__(self, what: str, *, rate_per_s: float, burst: float, each_at_once: float) -> None:
        """`what` names the subject of the lines in the reports, for example "connections"."""
        self._what = what
        self._each_at_once = each_at_once
        now = trio.current_time()
        self._together = TokenBucket(rate_per_s=rate_per_s, burst=burst, now=now)
        self._causes: dict[tuple[str, str], _Cause] = {}
        self._others = 0  # suppressed lines of causes without a bucket of their own
        self._report_at = now + REPORT_EVERY_S

    def admit(self, cause: str, network: str) -> bool:
        """Whether a line may be logged; if not, it is counted."""
        now = trio.current_time()
        one = self._causes.get((cause, network))
        if one is None:
            if len(self._causes) >= _KEPT:
                self._forget_quiet(now)
            if len(self._causes) >= _KEPT:
                if self._together.admit(now):
                    return True
                self._others += 1
                return False
            one = self._causes[cause, network] = _Cause(self._each_at_once, now)
        if one.bucket.level(now) >= 1 and self._together.admit(now):
            one.bucket.admit(now)
            return True
        one.suppressed += 1
        return False

    def report_if_due(self, now: float) -> None:
        """Report once a minute; called about once a second."""
        if now >= self._report_at:
            self._report_at = now + REPORT_EVERY_S
            self.report()
            self._forget_quiet(now)

    def report(self) -> None:
        """Log how many lines were suppressed since the last report, the largest numbers first."""
        suppressed = [(one.suppressed, *key) for key, one in self._causes.items() if one.suppressed]
        suppressed.sort(reverse=True)
        for count, cause, network in suppressed[:_REPORTED]:
            fields = {"suppressed": count, "reason": cause, "network": network}
            text = "%d more log lines about %s from %s were suppressed: %s"
            log.info(text, count, self._what, network or "this process", cause, extra=fields)
        rest = self._others + sum(count for count, *_ in suppressed[_REPORTED:])
        if rest:
            text = "%d more log lines about %s from other networks were suppressed"
            log.info(text, rest, self._what, extra={"suppressed": rest})
        self._others = 0
        for one in self._causes.values():
            one.suppressed = 0

    def _forget_quiet(self, now: float) -> None:
        """Forget causes whose bucket is full."""
        self._causes = {
            key: one
            for key, one in self._causes.items()
            if one.suppressed or one.bucket.level(now) < self._each_at_once
        }

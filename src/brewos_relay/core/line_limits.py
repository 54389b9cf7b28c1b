"""Rate limits of log lines, by cause and network: anyone can cause as many of them as they like."""

import logging
from typing import Final

import trio

from brewos_relay.core.pace import TokenBucket

log = logging.getLogger(__name__)

REPORT_EVERY_S: Final = 60.0
_EACH_PER_S: Final = 0.2
_KEPT: Final = 1024
"""Pairs of a cause and a network that have a bucket of their own."""
_REPORTED: Final = 20
"""Lines of one report; the rest of what was suppressed becomes one more line."""


class _Cause:
    """The lines of one cause from one network: how many more may be logged, and how many were not."""

    __slots__ = ("bucket", "suppressed")

    def __init__(self, at_once: float, now: float) -> None:
        self.bucket = TokenBucket(rate_per_s=_EACH_PER_S, burst=at_once, now=now)
        self.suppressed = 0


class LineLimits:
    """Decides which lines are logged, and reports how many were not.

    One cause from one network may have `each_at_once` lines at once and 12 a minute; all together have
    `burst` at once and `rate_per_s`. What is suppressed is counted, and reported once a minute by cause and
    network, also if no more lines come.
    """

    def __init__(self, what: str, *, rate_per_s: float, burst: float, each_at_once: float) -> None:
        """Take what the lines are about ("connections"), for the reports."""
        self._what = what
        self._each_at_once = each_at_once
        now = trio.current_time()
        self._together = TokenBucket(rate_per_s=rate_per_s, burst=burst, now=now)
        self._causes: dict[tuple[str, str], _Cause] = {}
        self._others = 0  # suppressed lines of causes that have no place of their own
        self._report_at = now + REPORT_EVERY_S

    def admit(self, cause: str, network: str) -> bool:
        """Tell whether a line may be logged; otherwise count it."""
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
        """Log how many lines were suppressed since the last report, those with most of them first."""
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
        """Forget the causes that may log as many lines as a new one."""
        self._causes = {
            key: one
            for key, one in self._causes.items()
            if one.suppressed or one.bucket.level(now) < self._each_at_once
        }

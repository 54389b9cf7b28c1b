"""Counters of HTTP requests, and how late the event loop runs."""

from collections import Counter
from typing import Final

import trio

from brewos_relay.core.counters import Histogram
from brewos_relay.core.pauses import left_out_s

_REQUEST_BOUNDS_S: Final = (
    0.001,
    0.0025,
    0.005,
    0.01,
    0.025,
    0.05,
    0.1,
    0.25,
    0.5,
    1.0,
    2.5,
    5.0,
    10.0,
    30.0,
)
LOOK_EVERY_S: Final = 0.25
_LATE_BOUNDS_S: Final = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5)
_METHODS: Final = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})


def method_label(method: str) -> str:
    """Return a standard HTTP method unchanged, and `other` for all others."""
    return method if method in _METHODS else "other"


class RequestCounters:
    """Running totals of HTTP requests, by route pattern: unlike paths, patterns are few."""

    __slots__ = ("answered", "in_flight", "refused", "took")

    def __init__(self) -> None:
        self.answered: Counter[tuple[str, str, str]] = Counter()
        """By (method, route, status). The status is `none` if the client left or the request timed out."""
        self.took: dict[str, Histogram] = {}
        """Seconds from the request head to the end of the response, by route."""
        self.in_flight = 0
        self.refused: Counter[str] = Counter()
        """Requests refused before they were handled, including WebSocket requests, by reason."""

    def count_answer(self, method: str, route: str, status: str, took_s: float) -> None:
        """Count a finished request; `method` is its `method_label`."""
        self.answered[method, route, status] += 1
        if route not in self.took:
            self.took[route] = Histogram(_REQUEST_BOUNDS_S)
        self.took[route].observe(took_s)


class LoopLag:
    """Measures how late the event loop runs: sleeps repeatedly and records how late it woke.

    This costs four wake-ups a second. A Trio instrument would be called for every task that runs.
    """

    def __init__(self) -> None:
        self.late = Histogram(_LATE_BOUNDS_S)
        """How late each wake-up was, in s."""

    async def run(self) -> None:
        """Measure until cancelled."""
        while True:
            due_at, left_out_before_s = trio.current_time() + LOOK_EVERY_S, left_out_s()
            await trio.sleep_until(due_at)
            self.late.observe(max(0.0, trio.current_time() - due_at) + left_out_s() - left_out_before_s)

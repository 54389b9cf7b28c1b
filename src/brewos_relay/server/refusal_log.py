"""The log of whoever is turned away, of which anybody can make as much as they like."""

import logging
from collections.abc import Mapping
from typing import Final

import trio

from brewos_relay.core.pace import TokenBucket

log = logging.getLogger(__name__)

LINES_PER_S: Final = 5.0
LINES_AT_ONCE: Final = 100.0


class RefusalLog:
    """Logs that somebody was turned away, 100 lines at once and 5 a second.

    A line takes longer than what it tells of, and would fill the disk of whoever is attacked. How many were
    left out stands in the next line, and the metrics count them all.
    """

    def __init__(self) -> None:
        self._lines = TokenBucket(rate_per_s=LINES_PER_S, burst=LINES_AT_ONCE, now=trio.current_time())
        self._left_out = 0

    def tell(self, text: str, *args: object, extra: Mapping[str, object]) -> None:
        """Log this at level info, unless there is too much of it."""
        if not self._lines.admit(trio.current_time()):
            self._left_out += 1
            return
        if self._left_out:
            text = f"{text} (before that, %d more were turned away)"
            args, self._left_out = (*args, self._left_out), 0
        log.info(text, *args, extra=extra)

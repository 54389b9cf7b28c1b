"""The log of refused connections, which anyone can make as many of as they like."""

import logging
from collections.abc import Mapping
from typing import Final

from brewos_relay.core.rate_limits import LineLimits

log = logging.getLogger(__name__)

LINES_PER_S: Final = 5.0
LINES_AT_ONCE: Final = 100.0
LINES_AT_ONCE_OF_EACH: Final = 50.0


class RefusalLog:
    """Logs refused connections: 100 lines at once and 5 a second; 50 and 12 a minute for a cause and network.

    A line takes longer to write than a refusal, and would fill the disk of a server under attack. `lines`
    reports what was suppressed; the metrics count all of it.
    """

    def __init__(self) -> None:
        self.lines = LineLimits(
            "refused connections",
            rate_per_s=LINES_PER_S,
            burst=LINES_AT_ONCE,
            each_at_once=LINES_AT_ONCE_OF_EACH,
        )

    def log(self, text: str, *args: object, cause: str, network: str, extra: Mapping[str, object]) -> None:
        """Log a refusal at level info, unless there are too many of them."""
        if self.lines.admit(cause, network):
            log.info(text, *args, extra=extra)

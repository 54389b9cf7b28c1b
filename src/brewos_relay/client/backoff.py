"""The pauses between attempts. No I/O."""

import math
import random
import time
from collections.abc import Callable
from email.utils import parsedate_to_datetime
from typing import Final

FIRST_S: Final = 5.0
LONGEST_S: Final = 60.0
JITTER: Final = 0.4
#: The limits of a pause that the relay asks for.
LONGEST_HINT_S: Final = 600.0
SHORTEST_HINT_S: Final = 0.1


class Backoff:
    """Pauses between attempts: 5 s, doubling to 60 s, each shortened at random by up to `jitter` of it.

    The random part spreads the attempts of clients that lost their connections at the same time. `chance`
    returns a number from 0 to 1.
    """

    def __init__(
        self,
        *,
        first_s: float = FIRST_S,
        longest_s: float = LONGEST_S,
        jitter: float = JITTER,
        chance: Callable[[], float] = random.random,
    ) -> None:
        self._first_s = first_s
        self._longest_s = longest_s
        self._jitter = jitter
        self._chance = chance
        self._base_s = first_s
        self._hint_s: float | None = None

    def next_s(self) -> float:
        """Return the next pause; each call makes the following pause longer."""
        base_s, self._base_s = self._base_s, min(self._base_s * 2, self._longest_s)
        hint_s, self._hint_s = self._hint_s, None
        if hint_s is not None:
            return hint_s
        return base_s * (1 - self._jitter * self._chance())

    def hint(self, pause_s: float, *, same_for_all: bool = False) -> None:
        """Use the pause that the relay asks for as the next one, within limits.

        If the relay asks all clients for the same pause (`same_for_all`), it is lengthened at random by up to
        `jitter`.
        """
        if math.isfinite(pause_s):
            if same_for_all:
                pause_s *= 1 + self._jitter * self._chance()
            self._hint_s = min(max(pause_s, SHORTEST_HINT_S), LONGEST_HINT_S)

    def reset(self) -> None:
        """Start again with the shortest pause, after a success."""
        self._base_s = self._first_s
        self._hint_s = None


def parse_retry_after(text: str) -> float | None:
    """Parse a `Retry-After` header, seconds or a date, as s from now; None if it is neither."""
    text = text.strip()
    if text.isascii() and text.isdigit():
        return float(text[:9])
    try:
        at = parsedate_to_datetime(text)
    except ValueError:
        return None
    return max(at.timestamp() - time.time(), 0.0)

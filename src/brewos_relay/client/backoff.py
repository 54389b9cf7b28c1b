"""How long to wait before the next attempt. No I/O."""

import math
import random
import time
from collections.abc import Callable
from email.utils import parsedate_to_datetime
from typing import Final

FIRST_S: Final = 5.0
LONGEST_S: Final = 60.0
JITTER: Final = 0.4
#: The longest pause that somebody else may ask for, and the shortest.
LONGEST_HINT_S: Final = 600.0
SHORTEST_HINT_S: Final = 0.1


class Backoff:
    """Pauses between attempts: 5 s, doubling to 60 s, each shortened at random by up to `jitter` of it.

    They are spread so that those who lost their connections in one moment do not come back in one.
    `chance` gives a number from 0 to 1.
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
        """Give the next pause; every one makes the one after it longer."""
        base_s, self._base_s = self._base_s, min(self._base_s * 2, self._longest_s)
        hint_s, self._hint_s = self._hint_s, None
        if hint_s is not None:
            return hint_s
        return base_s * (1 - self._jitter * self._chance())

    def hint(self, pause_s: float, *, same_for_all: bool = False) -> None:
        """Let the next pause be what somebody else asks for, within reason.

        If it asks everybody for the same (`same_for_all`), it is lengthened at random, by up to `jitter`.
        """
        if math.isfinite(pause_s):
            if same_for_all:
                pause_s *= 1 + self._jitter * self._chance()
            self._hint_s = min(max(pause_s, SHORTEST_HINT_S), LONGEST_HINT_S)

    def reset(self) -> None:
        """Begin anew with the shortest pause, since all was well."""
        self._base_s = self._first_s
        self._hint_s = None


def parse_retry_after(text: str) -> float | None:
    """Read a `Retry-After` header, seconds or a date, as s from now; None if it is neither."""
    text = text.strip()
    if text.isascii() and text.isdigit():
        return float(text[:9])
    try:
        at = parsedate_to_datetime(text)
    except ValueError:
        return None
    return max(at.timestamp() - time.time(), 0.0)

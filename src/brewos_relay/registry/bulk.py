"""Bulk work in small transactions: removing a large account, importing machines, housekeeping.

A writer waits for the transaction before it. So work on many rows is cut into steps, each a transaction of
its own that ends after `STEP_S`, and pauses in between. What is done stays done: interrupted work goes on
where it ended.
"""

from collections.abc import Callable
from time import monotonic, sleep
from typing import Final

from sqlalchemy import Connection

from brewos_relay.registry.database import Database

STEP_S: Final = 0.1
"""When a step stops taking up further rows."""

PAUSE_S: Final = 0.12
"""Time for other writers between two steps. One in another process looks at a locked SQLite file every 0.1
s."""

Step = Callable[[Connection], bool]
"""Does a part of the work in a transaction; True while there is more."""


class Stopwatch:
    """Tells a step when to stop."""

    def __init__(self) -> None:
        self._until_s = monotonic() + STEP_S

    @property
    def is_over(self) -> bool:
        """Whether the time of the step is over."""
        return monotonic() >= self._until_s


def run_steps(database: Database, step: Step) -> None:
    """Run all steps, for a command; a server does so by `Store.run_steps`."""
    while True:
        with database.writing() as db:
            more = step(db)
        if not more:
            return
        sleep(PAUSE_S)

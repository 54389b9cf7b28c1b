"""Bulk work in small transactions: removing a large account, importing devices, housekeeping.

Writers wait for the transaction before theirs. So work on many rows runs in steps. Each step is a transaction
that ends after about `STEP_S`, with a pause before the next. Completed steps stay completed: interrupted work
continues where it stopped.
"""

from collections.abc import Callable
from time import monotonic, sleep
from typing import Final

from sqlalchemy import Connection

from brewos_relay.registry.database import Database

STEP_S: Final = 0.1
"""When a step stops taking more rows."""

PAUSE_S: Final = 0.12
"""Time for other writers between two steps. Another process looks at a locked SQLite file every 0.1 s."""

Step = Callable[[Connection], bool]
"""Does a part of the work in a transaction. Returns True while there is more."""


class Stopwatch:
    """Tells a step when to stop."""

    def __init__(self) -> None:
        self._until_s = monotonic() + STEP_S

    @property
    def is_over(self) -> bool:
        """Whether the time of the step is over."""
        return monotonic() >= self._until_s


def run_steps(database: Database, step: Step) -> None:
    """Run all steps, for a command. A server runs them in `Housekeeper`."""
    while True:
        with database.writing() as db:
            more = step(db)
        if not more:
            return
        sleep(PAUSE_S)

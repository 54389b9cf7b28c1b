"""How late the process gets to what is due: the lag of its event loop."""

from typing import Final

import trio

from brewos_relay.core.counters import Histogram
from brewos_relay.core.pauses import left_out_s

LOOK_EVERY_S: Final = 0.25
_BOUNDS_S: Final = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5)


class LoopLag:
    """Sleeps for a while, again and again, and notes how late it woke.

    An instrument of Trio's would be called for every task that runs; this costs four wakes a second.
    """

    def __init__(self) -> None:
        self.late = Histogram(_BOUNDS_S)
        """In s."""

    async def run(self) -> None:
        """Look for ever."""
        while True:
            due_at, left_out_before_s = trio.current_time() + LOOK_EVERY_S, left_out_s()
            await trio.sleep_until(due_at)
            self.late.observe(max(0.0, trio.current_time() - due_at) + left_out_s() - left_out_before_s)

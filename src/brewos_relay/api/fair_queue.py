"""FairQueue: turns at a scarce resource, shared fairly between networks."""

from collections import Counter, OrderedDict
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Final

import trio

from brewos_relay.api.payloads import Refused
from brewos_relay.errors import RegistryBusy

_REMEMBERED: Final = 4096
"""How many networks' last turns are remembered."""
_BUSY_S: Final = 0.5
"""How long a turn has waited for a registry that is really busy. In a crowd, some have less time left."""
_FIRST_IN_A_ROW: Final = 3
"""After this many prioritized turns, one other request gets a turn."""


class _Waiting:
    """A waiting request. `settled` is set when it gets its turn or loses its place."""

    __slots__ = ("called", "first", "networks", "number", "settled")

    def __init__(self, networks: Sequence[str], *, first: bool, number: int) -> None:
        self.networks = networks
        self.first = first
        self.number = number
        self.called = False
        self.settled = trio.Event()


class FairQueue:
    """Gives `at_once` turns at a time. `places` more requests wait, each at most `wait_s`.

    The next turn goes to the network whose last turn is longest ago; wider networks are compared first. If
    all places are taken, the network with the most waiting requests loses its newest one.

    If a long turn ends with RegistryBusy, all waiting requests are refused: their turns would fail the same
    way, one after the other.
    """

    def __init__(
        self, what: str, *, at_once: int, places: int, wait_s: float, others_at_once: int | None = None
    ) -> None:
        """Create a queue. `what` names the requests in the reason of refusals, like "passwords".

        Requests without priority get at most `others_at_once` of the turns; None for no such limit.
        """
        self._what = what
        self._free = at_once
        self._free_for_others = at_once if others_at_once is None else others_at_once
        self._places = places
        self._wait_s = wait_s
        self._waiting: list[_Waiting] = []
        self._count = 0
        self._turns: OrderedDict[str, int] = OrderedDict()  # the number of the last turn of each network
        self._turn = self._first_in_a_row = 0

    def __len__(self) -> int:
        return len(self._waiting)

    @asynccontextmanager
    async def turn(self, networks: Sequence[str], *, first: bool = False) -> AsyncIterator[None]:
        """Wait for a turn, which lasts until the block ends. Raises Refused (503).

        `networks` are the networks of the caller, widest first. With `first`, the request has priority,
        except for every fourth turn.
        """
        self._count += 1
        one = _Waiting(networks, first=first, number=self._count)
        if self._may_begin(one):
            self._begin(one)
        else:
            await self._wait(one)
        began_at = trio.current_time()
        try:
            yield
        except RegistryBusy:
            if trio.current_time() - began_at >= _BUSY_S:
                self._refuse_all()
            raise
        finally:
            self._free += 1
            self._free_for_others += not first
            self._call()

    def _refuse_all(self) -> None:
        for one in self._waiting:
            one.settled.set()
        self._waiting.clear()

    async def _wait(self, one: _Waiting) -> None:
        self._waiting.append(one)
        if len(self._waiting) > self._places:
            self._drop_one()
        try:
            with trio.move_on_after(self._wait_s):
                await one.settled.wait()
        finally:
            if one in self._waiting:
                self._waiting.remove(one)
        if not one.called:
            raise Refused(
                "The server is busy with other requests of this kind. Try again soon.",
                status=503,
                headers={"Retry-After": "2"},
                reason=f"too_many_{self._what}",
            )

    def _drop_one(self) -> None:
        """Refuse the newest request of the network with the most waiting requests."""
        taken = Counter(one.networks[0] for one in self._waiting)
        dropped = max(self._waiting, key=lambda one: (not one.first, taken[one.networks[0]], one.number))
        self._waiting.remove(dropped)
        dropped.settled.set()

    def _may_begin(self, one: _Waiting) -> bool:
        return self._free > 0 and (one.first or self._free_for_others > 0)

    def _begin(self, one: _Waiting) -> None:
        self._free -= 1
        self._free_for_others -= not one.first
        self._count_turn(one)

    def _call(self) -> None:
        """Give a free turn to the next waiting request, if there is one."""
        able = [one for one in self._waiting if self._may_begin(one)]
        if able:
            one = min(able, key=self._rank)
            self._waiting.remove(one)
            self._begin(one)
            one.called = True
            one.settled.set()

    def _rank(self, one: _Waiting) -> tuple[bool, list[int], int]:
        behind = one.first == (self._first_in_a_row >= _FIRST_IN_A_ROW)
        return behind, [self._turns.get(network, 0) for network in one.networks], one.number

    def _count_turn(self, one: _Waiting) -> None:
        self._turn += 1
        self._first_in_a_row = self._first_in_a_row + 1 if one.first else 0
        for network in one.networks:
            self._turns[network] = self._turn
            self._turns.move_to_end(network)
        while len(self._turns) > _REMEMBERED:
            self._turns.popitem(last=False)

import math
from collections.abc import Awaitable, Callable
from functools import partial
from typing import Any

import trio

from brewos_relay.errors import RegistryError


class LateAnswer:
    """An answer to a lookup that asks only when it is waited for."""

    is_there = False

    def __init__(self, ask: Callable[..., Awaitable[Any]], *about: str) -> None:
        self._ask = ask
        self._about = about

    async def wait(self, *, until: float = math.inf) -> Any:
        with trio.move_on_at(until):
            return await self._ask(*self._about)
        raise RegistryError("no answer in time")


def late(find: Callable[..., Awaitable[Any]]) -> Callable[..., LateAnswer]:
    """Make a method of a store that asks, from one that finds."""

    def ask(store: object, *about: str) -> LateAnswer:
        return LateAnswer(partial(find, store), *about)

    return ask

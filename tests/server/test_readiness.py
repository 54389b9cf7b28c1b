from types import SimpleNamespace
from typing import Any, cast

import trio
from trio.testing import MockClock

from brewos_relay.errors import RegistryError
from brewos_relay.server.readiness import ReadinessCheck


class PlainStore:
    def __init__(self) -> None:
        self.asked = 0
        self.problem: Exception | None = None
        self.takes_s = 0.0

    async def check(self) -> None:
        self.asked += 1
        await trio.sleep(self.takes_s)
        if self.problem is not None:
            raise self.problem


def readiness(
    store: PlainStore, *, closing: bool = False, expires_at_s: float | None = None
) -> ReadinessCheck:
    tls = None
    if expires_at_s is not None:
        tls = SimpleNamespace(certificate=SimpleNamespace(expires_at_s=expires_at_s))
    relay = SimpleNamespace(closing=closing)
    return ReadinessCheck(relay=cast(Any, relay), store=cast(Any, store), tls=cast(Any, tls))


async def test_all_is_well() -> None:
    assert await readiness(PlainStore(), expires_at_s=4e9).problems() == []


async def test_every_reason_is_given(autojump_clock: MockClock) -> None:
    store = PlainStore()
    store.problem = RegistryError("gone")
    assert await readiness(store, closing=True, expires_at_s=1.0).problems() == [
        "the relay is leaving",
        "the registry does not answer",
        "the certificate has expired",
    ]


async def test_a_registry_that_hangs_does_not_answer(autojump_clock: MockClock) -> None:
    store = PlainStore()
    store.takes_s = 60
    began_at = trio.current_time()
    assert await readiness(store).problems() == ["the registry does not answer"]
    assert trio.current_time() - began_at < 3


async def test_the_registry_is_not_asked_more_than_once_a_second(autojump_clock: MockClock) -> None:
    store = PlainStore()
    ready = readiness(store)
    async with trio.open_nursery() as nursery:
        for _ in range(10):
            nursery.start_soon(ready.problems)
    assert store.asked == 1
    await trio.sleep(1)
    await ready.problems()
    assert store.asked == 2

from collections.abc import Sequence

import pytest
import trio
import trio.testing

from brewos_relay.api.fair_queue import FairQueue
from brewos_relay.api.payloads import Refused
from brewos_relay.errors import RegistryBusy


class Scene:
    """A queue with one turn at a time, which the test holds and releases."""

    def __init__(self, nursery: trio.Nursery, *, places: int = 32, wait_s: float = 10.0) -> None:
        self.queue = FairQueue("requests", at_once=1, places=places, wait_s=wait_s)
        self.nursery = nursery
        self.ended: list[str] = []
        self.refused: list[str] = []
        self.statuses: set[tuple[int, str]] = set()
        self._let_go = trio.Event()

    async def begin(self) -> None:
        self.nursery.start_soon(self._hold)
        await trio.testing.wait_all_tasks_blocked()

    async def _hold(self) -> None:
        async with self.queue.turn(("holder",)):
            await self._let_go.wait()

    async def ask(self, name: str, networks: Sequence[str], *, first: bool = False) -> None:
        async def one() -> None:
            try:
                async with self.queue.turn(networks, first=first):
                    self.ended.append(name)
                    await trio.lowlevel.checkpoint()
            except Refused as refusal:
                self.refused.append(name)
                self.statuses.add((refusal.status, refusal.headers["Retry-After"]))

        self.nursery.start_soon(one)
        await trio.testing.wait_all_tasks_blocked()

    async def finish(self) -> None:
        self._let_go.set()
        await trio.testing.wait_all_tasks_blocked()
        assert len(self.queue) == 0


async def test_networks_take_turns(autojump_clock: trio.testing.MockClock) -> None:
    async with trio.open_nursery() as nursery:
        scene = Scene(nursery)
        await scene.begin()
        for number in range(4):
            await scene.ask(f"a{number}", ("a",))
        await scene.ask("b0", ("b",))
        await scene.ask("c0", ("c",))
        await scene.finish()
        assert scene.ended == ["a0", "b0", "c0", "a1", "a2", "a3"]


async def test_wide_network_has_one_turn_regardless_of_its_size(
    autojump_clock: trio.testing.MockClock,
) -> None:
    async with trio.open_nursery() as nursery:
        scene = Scene(nursery)
        await scene.begin()
        for name, networks in (
            ("a1", ("a", "a1")),
            ("a2", ("a", "a2")),
            ("a1", ("a", "a1")),
            ("b", ("b", "b1")),
        ):
            await scene.ask(name, networks)
        await scene.finish()
        assert scene.ended == ["a1", "b", "a2", "a1"]


async def test_prioritized_requests_leave_every_fourth_turn(
    autojump_clock: trio.testing.MockClock,
) -> None:
    async with trio.open_nursery() as nursery:
        scene = Scene(nursery)
        await scene.begin()
        for number in range(2):
            await scene.ask(f"new {number}", (f"n{number}",))
        for number in range(5):
            await scene.ask(f"known {number}", (f"k{number}",), first=True)
        await scene.finish()
        assert scene.ended == ["known 0", "known 1", "known 2", "new 0", "known 3", "known 4", "new 1"]


async def test_requests_without_priority_leave_a_turn_free(
    autojump_clock: trio.testing.MockClock,
) -> None:
    queue = FairQueue("requests", at_once=2, places=8, wait_s=10.0, others_at_once=1)
    began: list[str] = []

    async def one(name: str, first: bool) -> None:
        async with queue.turn((name,), first=first):
            began.append(name)
            await trio.sleep(1)

    async with trio.open_nursery() as nursery:
        for name, first in (("new 1", False), ("new 2", False), ("known 1", True), ("known 2", True)):
            nursery.start_soon(one, name, first)
            await trio.testing.wait_all_tasks_blocked()
        assert began == ["new 1", "known 1"]
    assert sorted(began[2:]) == ["known 2", "new 2"]


async def test_network_with_most_places_loses_its_newest_request(
    autojump_clock: trio.testing.MockClock,
) -> None:
    async with trio.open_nursery() as nursery:
        scene = Scene(nursery, places=3)
        await scene.begin()
        for number in range(3):
            await scene.ask(f"a{number}", ("a",))
        await scene.ask("b0", ("b",))
        assert scene.refused == ["a2"]
        await scene.ask("a3", ("a",))
        assert scene.refused == ["a2", "a3"]
        await scene.ask("known", ("a",), first=True)
        assert scene.refused == ["a2", "a3", "a1"]
        await scene.finish()
        assert scene.ended == ["known", "b0", "a0"]


async def test_no_request_waits_longer_than_the_deadline(autojump_clock: trio.testing.MockClock) -> None:
    async with trio.open_nursery() as nursery:
        scene = Scene(nursery, wait_s=2.0)
        await scene.begin()
        await scene.ask("late", ("a",))
        await trio.sleep(1.9)
        assert scene.refused == []
        await trio.sleep(0.2)
        assert (scene.refused, scene.statuses) == (["late"], {(503, "2")})
        await scene.finish()


@pytest.mark.parametrize(("turn_s", "took_s"), [(4.0, 4.0), (0.1, 0.5)])
async def test_busy_registry_refuses_all_waiting_requests(
    autojump_clock: trio.testing.MockClock, turn_s: float, took_s: float
) -> None:
    """Their turns would fail too. A turn that failed early, for lack of its own time, refuses none."""
    queue = FairQueue("requests", at_once=1, places=32, wait_s=10.0)
    statuses: list[int] = []

    async def write(number: int) -> None:
        try:
            async with queue.turn((f"{number}",)):
                await trio.sleep(turn_s)
                raise RegistryBusy("locked")
        except (RegistryBusy, Refused):
            statuses.append(503)

    began_at = trio.current_time()
    async with trio.open_nursery() as nursery:
        for number in range(5):
            nursery.start_soon(write, number)
    assert statuses == [503] * 5
    assert trio.current_time() - began_at == pytest.approx(took_s)
    async with queue.turn(("another",)):
        assert len(queue) == 0


async def test_a_caller_that_leaves_keeps_no_turn(autojump_clock: trio.testing.MockClock) -> None:
    queue = FairQueue("requests", at_once=1, places=4, wait_s=10.0)

    async def one(scope: trio.CancelScope) -> None:
        with scope:
            async with queue.turn(("a",)):
                await trio.sleep_forever()

    async with trio.open_nursery() as nursery:
        waiting, called = trio.CancelScope(), trio.CancelScope()
        async with queue.turn(("b",)):
            nursery.start_soon(one, waiting)
            await trio.testing.wait_all_tasks_blocked()
            waiting.cancel()
            await trio.testing.wait_all_tasks_blocked()
            assert len(queue) == 0
            nursery.start_soon(one, called)
            await trio.testing.wait_all_tasks_blocked()
        called.cancel()  # at the moment it gets its turn
        await trio.testing.wait_all_tasks_blocked()
        with trio.fail_after(1):
            async with queue.turn(("c",)):
                pass


async def test_number_of_remembered_networks_is_bounded(
    autojump_clock: trio.testing.MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("brewos_relay.api.fair_queue._REMEMBERED", 3)
    queue = FairQueue("requests", at_once=1, places=4, wait_s=10.0)
    for number in range(10):
        async with queue.turn((f"network {number}",)):
            pass
    assert list(queue._turns) == ["network 7", "network 8", "network 9"]

import threading

import pytest
import trio
import trio.testing

from brewos_relay.errors import RegistryError
from brewos_relay.registry.batched_lookup import Answer, BatchedLookup

DEADLINE_S = 10.0


class Table:
    """Answers queries in a worker thread: one for each `release`, or all once it is `open`."""

    def __init__(self) -> None:
        self.queries: list[set[str]] = []
        self.asked = threading.Semaphore(0)
        self.gate = threading.Semaphore(0)
        self.failure: Exception | None = None

    def query(self, keys: list[str]) -> dict[str, str]:
        self.queries.append(set(keys))
        self.asked.release()
        assert self.gate.acquire(timeout=DEADLINE_S)
        if self.failure is not None:
            raise self.failure
        return {key: key.upper() for key in keys if key != "missing"}

    def release(self, times: int = 1) -> None:
        self.gate.release(times)

    async def wait_asked(self) -> None:
        assert await trio.to_thread.run_sync(lambda: self.asked.acquire(timeout=DEADLINE_S))


class Lookups:
    """Runs lookups in tasks and stores their results."""

    def __init__(self, batcher: BatchedLookup[str, str], nursery: trio.Nursery) -> None:
        self._batcher = batcher
        self._nursery = nursery
        self.results: dict[str, str | RegistryError | None] = {}
        self.scopes: dict[str, trio.CancelScope] = {}

    def start(self, *keys: str) -> None:
        answers = {key: self._batcher.ask(key) for key in keys}
        for key, answer in answers.items():
            self._nursery.start_soon(self._wait, key, answer)

    async def _wait(self, key: str, answer: Answer[str, str]) -> None:
        with trio.CancelScope() as self.scopes[key]:
            try:
                self.results[key] = await answer.wait()
            except RegistryError as failure:
                self.results[key] = failure

    async def wait_for(self, *keys: str) -> None:
        with trio.fail_after(DEADLINE_S):
            while not self.results.keys() >= set(keys):  # noqa: ASYNC110  results come from other tasks
                await trio.sleep(0.001)


def make_batcher(table: Table) -> BatchedLookup[str, str]:
    return BatchedLookup(table.query, limiter=trio.CapacityLimiter(4))


async def test_lookups_that_arrive_together_share_one_query() -> None:
    table = Table()
    table.release(5)
    async with trio.open_nursery() as nursery:
        batcher = make_batcher(table)
        nursery.start_soon(batcher.run)
        lookups = Lookups(batcher, nursery)
        keys = [f"key{number}" for number in range(100)]
        lookups.start(*keys, "missing")
        await lookups.wait_for(*keys, "missing")
        nursery.cancel_scope.cancel()
    assert table.queries == [{*keys, "missing"}]
    assert lookups.results == {key: key.upper() for key in keys} | {"missing": None}


async def test_lookup_during_a_query_joins_the_next_one() -> None:
    table = Table()
    async with trio.open_nursery() as nursery:
        batcher = make_batcher(table)
        nursery.start_soon(batcher.run)
        lookups = Lookups(batcher, nursery)
        lookups.start("a")
        await table.wait_asked()
        for key in "bcd":
            lookups.start(key)
            await trio.testing.wait_all_tasks_blocked()
        assert lookups.results == {}
        table.release()
        await lookups.wait_for("a")
        await table.wait_asked()
        assert lookups.results == {"a": "A"}
        table.release()
        await lookups.wait_for(*"bcd")
        nursery.cancel_scope.cancel()
    assert table.queries == [{"a"}, {"b", "c", "d"}]


async def test_several_may_look_up_the_same_key() -> None:
    table = Table()
    table.release()
    found = []

    async def wait(answer: Answer[str, str]) -> None:
        found.append(await answer.wait())
        if len(found) == 3:
            nursery.cancel_scope.cancel()

    with trio.fail_after(DEADLINE_S):
        async with trio.open_nursery() as nursery:
            batcher = make_batcher(table)
            # All are asked before one waits: the thread that the first one starts may take the keys at once.
            for answer in [batcher.ask("a") for _ in range(3)]:
                nursery.start_soon(wait, answer)
            await trio.testing.wait_all_tasks_blocked()
            nursery.start_soon(batcher.run)
    assert found == ["A", "A", "A"]
    assert table.queries == [{"a"}]


async def test_cancelling_one_lookup_does_not_disturb_the_others() -> None:
    table = Table()
    async with trio.open_nursery() as nursery:
        batcher = make_batcher(table)
        nursery.start_soon(batcher.run)
        lookups = Lookups(batcher, nursery)
        lookups.start("first")  # alone in its query
        await table.wait_asked()
        lookups.start("a", "b")
        await trio.testing.wait_all_tasks_blocked()
        lookups.scopes["first"].cancel()
        lookups.scopes["b"].cancel()
        await trio.testing.wait_all_tasks_blocked()
        table.release(2)
        await lookups.wait_for("a")
        nursery.cancel_scope.cancel()
    assert lookups.results == {"a": "A"}
    assert lookups.scopes["first"].cancelled_caught
    assert lookups.scopes["b"].cancelled_caught


@pytest.mark.parametrize("failure", [RegistryError("disk on fire"), ValueError("disk on fire")])
async def test_failing_query_fails_only_its_lookups(failure: Exception) -> None:
    table = Table()
    table.failure = failure
    async with trio.open_nursery() as nursery:
        batcher = make_batcher(table)
        nursery.start_soon(batcher.run)
        lookups = Lookups(batcher, nursery)
        lookups.start("a", "b")
        await table.wait_asked()
        lookups.start("c")
        await trio.testing.wait_all_tasks_blocked()
        table.release()
        await lookups.wait_for("a", "b")
        await table.wait_asked()
        table.failure = None
        table.release()
        await lookups.wait_for("c")
        nursery.cancel_scope.cancel()
    assert lookups.results["c"] == "C"
    for key in ("a", "b"):
        result = lookups.results[key]
        assert isinstance(result, RegistryError)
        assert str(result) == "disk on fire"
        assert result.__cause__ is failure
    assert lookups.results["a"] is not lookups.results["b"]


async def test_lookups_do_not_outlive_the_batcher() -> None:
    table = Table()
    batcher = make_batcher(table)
    async with trio.open_nursery() as nursery:
        lookups = Lookups(batcher, nursery)
        async with trio.open_nursery() as running:
            running.start_soon(batcher.run)
            lookups.start("running")
            await table.wait_asked()
            lookups.start("waiting")
            await trio.testing.wait_all_tasks_blocked()
            running.cancel_scope.cancel()
            with trio.move_on_after(DEADLINE_S, shield=True):
                await trio.testing.wait_all_tasks_blocked()
            table.release()
        await lookups.wait_for("running", "waiting")
    waiting = lookups.results["waiting"]
    assert isinstance(waiting, RegistryError)
    assert str(waiting) == "the registry is closed"
    # The query had started and was awaited.
    assert table.queries == [{"running"}]
    with pytest.raises(RegistryError, match="the registry is closed"):
        await batcher.find("late")


async def test_lookups_that_are_asked_for_together_cost_one_wait() -> None:
    table = Table()
    table.release()
    waited: list[tuple[bool, bool]] = []
    batcher = BatchedLookup(
        table.query,
        limiter=trio.CapacityLimiter(1),
        on_answer=lambda waited_s, failed: waited.append((waited_s > 0, failed)),
    )
    async with trio.open_nursery() as nursery:
        nursery.start_soon(batcher.run)
        first, second, third = batcher.ask("a"), batcher.ask("missing"), batcher.ask("c")
        assert not first.is_there
        with trio.fail_after(DEADLINE_S):
            assert await first.wait() == "A"
        assert (second.is_there, third.is_there) == (True, True)
        assert (await second.wait(), await third.wait()) == (None, "C")
        nursery.cancel_scope.cancel()
    assert table.queries == [{"a", "missing", "c"}]
    assert waited == [(True, False)] * 3


async def test_failures_are_reported_for_the_metrics() -> None:
    table = Table()
    table.failure = RegistryError("disk on fire")
    table.release()
    failures: list[bool] = []
    batcher = BatchedLookup(
        table.query, limiter=trio.CapacityLimiter(1), on_answer=lambda _, failed: failures.append(failed)
    )
    async with trio.open_nursery() as nursery:
        nursery.start_soon(batcher.run)
        with trio.fail_after(DEADLINE_S), pytest.raises(RegistryError, match="disk on fire"):
            await batcher.find("a")
        nursery.cancel_scope.cancel()
    assert failures == [True]


async def test_keys_of_the_same_turn_share_the_query_that_the_first_one_starts() -> None:
    table = Table()
    table.release()
    batcher = make_batcher(table)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(batcher.run)
        await trio.testing.wait_all_tasks_blocked()
        with batcher._lock:  # the thread waits to take the keys
            batcher._gathering.keys.add("a")
            batcher.begin()
            batcher._gathering.keys.add("b")
        with trio.fail_after(DEADLINE_S):
            await table.wait_asked()
        nursery.cancel_scope.cancel()
    assert table.queries == [{"a", "b"}]


async def test_lookups_wait_for_their_limiter() -> None:
    table = Table()
    table.release()
    limiter = trio.CapacityLimiter(1)
    batcher = BatchedLookup(table.query, limiter=limiter)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(batcher.run)
        lookups = Lookups(batcher, nursery)
        async with limiter:
            lookups.start("a")
            await trio.testing.wait_all_tasks_blocked()
            assert table.queries == []
        await lookups.wait_for("a")
        nursery.cancel_scope.cancel()
    assert (lookups.results, limiter.borrowed_tokens) == ({"a": "A"}, 0)


async def test_without_a_thread_lookups_fail_and_later_ones_succeed(monkeypatch: pytest.MonkeyPatch) -> None:
    def no_thread(*_given: object) -> None:
        raise RuntimeError("can't start new thread")

    table = Table()
    table.release()
    async with trio.open_nursery() as nursery:
        batcher = make_batcher(table)
        nursery.start_soon(batcher.run)
        with monkeypatch.context() as patch:
            patch.setattr(trio.lowlevel, "start_thread_soon", no_thread)
            with pytest.raises(RegistryError, match="can't start new thread"):
                await batcher.find("a")
        with trio.fail_after(DEADLINE_S):
            assert await batcher.find("a") == "A"
        nursery.cancel_scope.cancel()


async def test_each_wait_ends_at_its_own_time_and_the_query_goes_on(
    autojump_clock: trio.testing.MockClock,
) -> None:
    table = Table()
    ended: dict[str, float] = {}
    failures: list[bool] = []
    batcher = BatchedLookup(
        table.query, limiter=trio.CapacityLimiter(1), on_answer=lambda _, failed: failures.append(failed)
    )

    async def wait(answer: Answer[str, str], name: str, until: float) -> None:
        with pytest.raises(RegistryError, match="did not answer in time"):
            await answer.wait(until=until)
        ended[name] = trio.current_time()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(batcher.run)
        started = trio.current_time()
        async with trio.open_nursery() as waiting:
            for name, after_s in {"c": 3, "a": 1, "b": 2, "late": -1}.items():
                waiting.start_soon(wait, batcher.ask("one"), name, started + after_s)
        ends_after_s = {"a": 1.0, "b": 2.0, "c": 3.0, "late": 0.0}
        assert ended == pytest.approx({name: started + s for name, s in ends_after_s.items()})
        joined = batcher.ask("two")
        assert not joined.is_there
        table.release(2)
        assert await joined.wait() == "TWO"
        nursery.cancel_scope.cancel()
    assert set().union(*table.queries) == {"one", "two"}
    assert failures == [True] * 4 + [False]


async def test_a_query_that_waits_for_its_limiter_is_started_after_a_wait_has_ended(
    autojump_clock: trio.testing.MockClock,
) -> None:
    table = Table()
    table.release()
    limiter = trio.CapacityLimiter(1)
    batcher = BatchedLookup(table.query, limiter=limiter)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(batcher.run)
        async with limiter:
            asked, also_asked = batcher.ask("a"), batcher.ask("b")
            with pytest.raises(RegistryError, match="did not answer in time"):
                await asked.wait(until=trio.current_time() + 1)
        assert await also_asked.wait() == "B"
        nursery.cancel_scope.cancel()
    assert (table.queries, limiter.borrowed_tokens) == ([{"a", "b"}], 0)

"""Storing the states of machines, and finding them again."""

import logging
from collections.abc import Sequence

import pytest
import trio
from trio.testing import MockClock, wait_all_tasks_blocked

from brewos_relay.core.limits import Limits
from brewos_relay.core.relay import Relay, open_relay
from brewos_relay.core.snapshot import KnownState
from brewos_relay.errors import RegistryError
from brewos_relay.messages import Message
from brewos_relay.registry.records import StoredState
from brewos_relay.registry.states import STATES_AT_ONCE
from brewos_relay.registry.store import Store
from brewos_relay.server.states import FIND_S, LAST_SAVE_S, SAVE_EVERY_S, StateKeeper, find_state
from support.peers import ScriptedPeer

ONE = "BRW-00000001"
STATUS = {"type": "status", "seq": 1}


class SlowStore(Store):
    """Keeps states; `answer_s` is how long it takes, `failure` what it raises."""

    def __init__(self) -> None:
        self.batches: list[list[StoredState]] = []
        self.answer_s = 0.0
        self.failure: Exception | None = None

    async def save_states(self, states: Sequence[StoredState]) -> None:
        await self._answer()
        self.batches.append(list(states))

    async def find_state(self, device_id: str) -> StoredState | None:
        await self._answer()
        saved = [state for batch in self.batches for state in batch if state.device_id == device_id]
        return saved[-1] if saved else None

    async def _answer(self) -> None:
        await trio.sleep(self.answer_s)
        if self.failure is not None:
            raise self.failure


async def device_that_says(relay: Relay, *said: dict[str, object], device_id: str = ONE) -> ScriptedPeer:
    peer = ScriptedPeer()
    relay.attach_device(device_id, peer)
    await wait_all_tasks_blocked()
    peer.say(*said)
    return peer


async def test_states_are_stored_in_batches_and_found_again(autojump_clock: MockClock) -> None:
    store = SlowStore()
    async with open_relay() as relay, trio.open_nursery() as nursery:
        nursery.start_soon(StateKeeper(relay, store).run)
        for number in range(STATES_AT_ONCE + 1):
            await device_that_says(relay, STATUS, device_id=f"BRW-{number:08X}")
        await trio.sleep(SAVE_EVERY_S + 1)
        assert [len(batch) for batch in store.batches] == [STATES_AT_ONCE, 1]
        await trio.sleep(4 * SAVE_EVERY_S)
        assert len(store.batches) == 2
        found = await find_state(store, ONE)
        assert found is not None
        assert found.message == Message(b'{"type":"status","seq":1}')
        nursery.cancel_scope.cancel()


async def test_what_cannot_be_stored_is_stored_later(
    autojump_clock: MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    store = SlowStore()
    async with open_relay() as relay:
        keeper = StateKeeper(relay, store)
        for number in range(STATES_AT_ONCE + 1):
            await device_that_says(relay, STATUS, device_id=f"BRW-{number:08X}")
        store.failure = RegistryError("no room")
        await trio.sleep(20)
        with caplog.at_level(logging.WARNING):
            await keeper.save()
        assert "no room" in caplog.text
        assert len(caplog.records) == 1, "it does not try the rest at once"
        store.failure = None
        await trio.sleep(20)
        await keeper.save()
        assert sum(map(len, store.batches)) == STATES_AT_ONCE + 1


async def test_a_server_that_leaves_waits_a_limited_time(autojump_clock: MockClock) -> None:
    store = SlowStore()
    async with open_relay() as relay:
        device = await device_that_says(relay, STATUS)
        store.answer_s = 1000
        device.leave()
        await wait_all_tasks_blocked()
        began_at = trio.current_time()
        await StateKeeper(relay, store).save_all()
        assert trio.current_time() - began_at == LAST_SAVE_S
        store.answer_s = 0
        await StateKeeper(relay, store).save_all()
        assert len(store.batches) == 1, "what was not stored is still to be stored"
        await StateKeeper(relay, store).save_all()
        assert len(store.batches) == 1


async def test_a_state_that_was_forgotten_meanwhile_is_not_stored(
    autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = SlowStore()
    async with open_relay() as relay:
        monkeypatch.setattr(relay, "unsaved_states", lambda: [ONE])
        await StateKeeper(relay, store).save()
        assert store.batches == []


async def test_nothing_is_stored_without_a_retention(autojump_clock: MockClock) -> None:
    store = SlowStore()
    async with open_relay(limits=Limits(state_retention_s=0)) as relay:
        await device_that_says(relay, STATUS)
        await StateKeeper(relay, store).save()
        assert store.batches == []


async def test_a_machine_does_not_wait_long_for_its_state(
    autojump_clock: MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    store = SlowStore()
    store.batches = [[StoredState(device_id=ONE, payload=b"{}", is_text=True, at_ms=5)]]
    assert await find_state(store, ONE) == KnownState(Message(b"{}"), 5)
    assert await find_state(store, "BRW-00000002") is None
    store.answer_s = 1000
    began_at = trio.current_time()
    assert await find_state(store, ONE) is None
    assert trio.current_time() - began_at == FIND_S
    store.answer_s, store.failure = 0, RegistryError("it is away")
    with caplog.at_level(logging.WARNING):
        assert await find_state(store, ONE) is None
    assert "it is away" in caplog.text

"""Recording activity, and storing and restoring the states of machines."""

import logging
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import trio
import trio.testing
from trio.testing import MockClock, wait_all_tasks_blocked

from brewos_relay.core.recording import ActivityEvent
from brewos_relay.core.relay import Relay, open_relay
from brewos_relay.core.snapshot import KnownState
from brewos_relay.dialect import BREWOS
from brewos_relay.errors import RegistryError
from brewos_relay.messages import DeviceInfo, Message, encode
from brewos_relay.registry.database import Database
from brewos_relay.registry.device_states import STATES_AT_ONCE
from brewos_relay.registry.records import Activity, StoredState
from brewos_relay.registry.store import Store, open_store
from brewos_relay.registry.write_behind import WriteBehind
from brewos_relay.server.persistence import (
    FIND_S,
    LAST_SAVE_S,
    SAVE_EVERY_S,
    SEEN_EVERY_S,
    ActivityRecorder,
    StateKeeper,
    known_state,
)
from brewos_relay.settings.server_limits import ServerLimits
from brewos_relay.vocabulary import now_ms
from support.late_answers import LateAnswer
from support.peers import ScriptedPeer
from support.registry import new_device, register
from support.waiting import count_turns

ONE, TWO = "BRW-00000001", "BRW-00000002"
STATUS = {"type": "status", "seq": 1}


class RecordedNotes(WriteBehind):
    """Collects the recorded notes."""

    def __init__(self) -> None:
        self.seen: list[tuple[str, int]] = []
        self.entries: list[Activity] = []
        self.infos: list[tuple[str, str | None, str | None]] = []

    def record_seen(self, device_id: str, at_ms: int) -> None:
        self.seen.append((device_id, at_ms))

    def record_activity(self, entry: Activity) -> None:
        self.entries.append(entry)

    def record_info(self, device_id: str, *, firmware_version: str | None, machine_type: str | None) -> None:
        self.infos.append((device_id, firmware_version, machine_type))


async def test_activity_is_recorded_with_user_and_time() -> None:
    notes = RecordedNotes()
    recorder = ActivityRecorder(notes)
    before = now_ms()
    recorder.record_seen(ONE, 17)
    recorder.record_activity(ActivityEvent(ONE, "command", "ada", {"name": "tare", "outcome": "delivered"}))
    recorder.record_activity(ActivityEvent(ONE, "online", None, {}))
    assert notes.seen == [(ONE, 17)]
    command, online = notes.entries
    assert (command.device_id, command.kind, command.user_id) == (ONE, "command", "ada")
    assert command.detail == {"name": "tare", "outcome": "delivered"}
    assert before <= command.at_ms <= now_ms()
    assert (online.kind, online.user_id, online.detail) == ("online", None, {})
    assert notes.infos == []


@pytest.mark.parametrize(
    ("info", "noted"),
    [
        (DeviceInfo("0.8.62", "dual_boiler"), ("0.8.62", "dual_boiler")),
        (DeviceInfo("0.8.62"), ("0.8.62", None)),
        (DeviceInfo(8, "dual_boiler"), (None, "dual_boiler")),
        (DeviceInfo("0.8\0", "dual_boiler"), (None, "dual_boiler")),
    ],
)
async def test_device_info_is_recorded_when_a_machine_goes_offline(
    info: DeviceInfo, noted: tuple[str | None, str | None]
) -> None:
    notes = RecordedNotes()
    recorder = ActivityRecorder(notes)
    recorder.record_activity(ActivityEvent(ONE, "online", None, {}))
    assert notes.infos == []
    recorder.record_activity(ActivityEvent(ONE, "offline", None, {}, info=info))
    assert notes.infos == [(ONE, *noted)]


@pytest.mark.parametrize("info", [DeviceInfo(), DeviceInfo(8, "\ud800")])
async def test_a_machine_without_device_info_does_not_change_the_stored_one(info: DeviceInfo) -> None:
    notes = RecordedNotes()
    recorder = ActivityRecorder(notes)
    recorder.record_activity(ActivityEvent(ONE, "offline", None, {}, info=info))
    assert notes.infos == []
    assert [entry.kind for entry in notes.entries] == ["offline"]


async def test_no_user_displaces_the_activity_of_others(autojump_clock: trio.testing.MockClock) -> None:
    notes = RecordedNotes()
    recorder = ActivityRecorder(notes)

    def noted_of(user_id: str | None, device_id: str = ONE) -> int:
        return sum((entry.user_id, entry.device_id) == (user_id, device_id) for entry in notes.entries)

    async with open_relay(dialect=BREWOS) as relay, trio.open_nursery() as nursery:
        nursery.start_soon(recorder.run, relay)
        for _ in range(1000):
            assert recorder.wants_commands(ONE, "eve") == (noted_of("eve") < 120)
            recorder.record_activity(ActivityEvent(ONE, "command", "eve", {}))
        assert noted_of("eve") == 120
        assert not recorder.wants_commands(ONE, "eve")
        assert recorder.wants_commands(ONE, "ada")
        assert recorder.wants_commands(TWO, "eve")
        recorder.record_activity(ActivityEvent(ONE, "command", "ada", {}))
        recorder.record_activity(ActivityEvent(ONE, "online", None, {}))
        recorder.record_activity(ActivityEvent(TWO, "command", "eve", {}))
        assert (noted_of("ada"), noted_of(None), noted_of("eve", TWO)) == (1, 1, 1)
        await trio.sleep(239)
        recorder.record_activity(ActivityEvent(ONE, "command", "eve", {}))
        assert noted_of("eve") == 120
        await trio.sleep(2)
        for _ in range(1000):
            recorder.record_activity(ActivityEvent(ONE, "command", "eve", {}))
        assert noted_of("eve") == 240
        assert len(recorder._counts) == 1
        nursery.cancel_scope.cancel()


async def test_device_info_is_recorded_without_a_limit() -> None:
    notes = RecordedNotes()
    recorder = ActivityRecorder(notes)
    for _ in range(200):
        recorder.record_activity(ActivityEvent(ONE, "offline", None, {}, info=DeviceInfo("0.8.62")))
    assert len(notes.infos) == 200
    assert len(notes.entries) == 120


async def test_activity_of_a_live_relay_is_recorded() -> None:
    notes = RecordedNotes()
    recorder = ActivityRecorder(notes)
    with trio.fail_after(5):
        async with open_relay(
            dialect=BREWOS, on_seen=recorder.record_seen, on_activity=recorder.record_activity
        ) as relay:
            device, client = ScriptedPeer(), ScriptedPeer()
            relay.attach_device(ONE, device)
            relay.attach_client(ONE, client)
            await trio.testing.wait_all_tasks_blocked()
            device.say(
                encode({"type": "device_info", "firmwareVersion": "0.8.62", "machineType": "dual_boiler"})
            )
            client.say({"type": "command", "cmd": "tare"})
            device.leave()
            await trio.testing.wait_all_tasks_blocked()
            assert notes.infos == [(ONE, "0.8.62", "dual_boiler")]
    kinds = [entry.kind for entry in notes.entries]
    assert kinds == ["client_came", "online", "command", "offline", "client_went"]
    assert [device_id for device_id, _ in notes.seen] == [ONE, ONE]


async def test_devices_without_users_do_not_displace_others() -> None:
    """Entries that wait are bounded, and anyone can make as many devices as they like come and go."""
    notes = RecordedNotes()
    recorder = ActivityRecorder(notes)
    with trio.fail_after(5):
        async with open_relay(dialect=BREWOS, on_activity=recorder.record_activity) as relay:
            for _ in range(3):
                device = ScriptedPeer()
                attachment = relay.attach_device(TWO, device, anonymous=True)
                await trio.testing.wait_all_tasks_blocked()
                device.say(encode({"type": "device_info", "firmwareVersion": "0.8.62"}))
                device.leave()
                await attachment.wait_closed()
            assert notes.entries == []
            assert notes.infos == [(TWO, "0.8.62", None)] * 3
            device = ScriptedPeer()
            relay.attach_device(TWO, device, anonymous=True)
            await trio.testing.wait_all_tasks_blocked()
            relay.mark_owned(TWO)
            device.leave()
            await trio.testing.wait_all_tasks_blocked()
    assert [entry.kind for entry in notes.entries] == ["offline"]


async def test_online_devices_are_recorded_as_seen_regularly(autojump_clock: trio.testing.MockClock) -> None:
    store = RecordedNotes()
    recorder = ActivityRecorder(store)
    patient = ServerLimits(device_silence_s=2 * SEEN_EVERY_S, device_first_frame_s=2 * SEEN_EVERY_S)
    async with open_relay(dialect=BREWOS, limits=patient) as relay, trio.open_nursery() as nursery:
        relay.attach_device(ONE, ScriptedPeer())
        relay.attach_device(TWO, ScriptedPeer(silent=True))
        relay.attach_client(TWO, ScriptedPeer())
        nursery.start_soon(recorder.run, relay)
        await trio.sleep(SEEN_EVERY_S - 1)
        assert store.seen == []
        before = now_ms()
        await trio.sleep(2)
        assert [device_id for device_id, _ in store.seen] == [ONE]
        assert before <= store.seen[0][1] <= now_ms()
        nursery.cancel_scope.cancel()


class SlowStore(Store):
    """Stores states in memory; `answer_s` delays it, and it raises `failure`."""

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

    def ask_state(self, device_id: str) -> Any:
        return LateAnswer(self.find_state, device_id)

    async def _answer(self) -> None:
        await trio.sleep(self.answer_s)
        if self.failure is not None:
            raise self.failure


async def find_state(store: Store, device_id: str) -> KnownState | None:
    return await known_state(store.ask_state(device_id), device_id, within_s=1000)


async def device_that_says(relay: Relay, *said: dict[str, object], device_id: str = ONE) -> ScriptedPeer:
    peer = ScriptedPeer()
    relay.attach_device(device_id, peer)
    await wait_all_tasks_blocked()
    peer.say(*said)
    return peer


async def test_states_are_stored_in_batches_and_restored(autojump_clock: MockClock) -> None:
    store = SlowStore()
    async with open_relay(dialect=BREWOS) as relay, trio.open_nursery() as nursery:
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


async def test_states_that_cannot_be_stored_are_stored_later(
    autojump_clock: MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    store = SlowStore()
    async with open_relay(dialect=BREWOS) as relay:
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


async def test_other_tasks_run_while_many_states_are_collected(autojump_clock: MockClock) -> None:
    store = SlowStore()
    async with open_relay(dialect=BREWOS) as relay:
        for number in range(STATES_AT_ONCE):
            await device_that_says(relay, STATUS, device_id=f"BRW-{number:08X}")
        turns = await count_turns(StateKeeper(relay, store).save)
    assert turns >= STATES_AT_ONCE / 10 - 2


async def test_states_of_a_cancelled_batch_are_stored_later(autojump_clock: MockClock) -> None:
    store = SlowStore()
    async with open_relay(dialect=BREWOS) as relay:
        for number in range(STATES_AT_ONCE):
            await device_that_says(relay, STATUS, device_id=f"BRW-{number:08X}")
        with trio.CancelScope() as scope:
            scope.cancel()  # before the first turn of others, when some states are collected
            await StateKeeper(relay, store).save()
        assert not store.batches
        await trio.sleep(20)
        await StateKeeper(relay, store).save()
        assert sum(map(len, store.batches)) == STATES_AT_ONCE


async def test_a_server_that_leaves_waits_a_limited_time(autojump_clock: MockClock) -> None:
    store = SlowStore()
    async with open_relay(dialect=BREWOS) as relay:
        device = await device_that_says(relay, STATUS)
        store.answer_s = 1000
        device.leave()
        await wait_all_tasks_blocked()
        began_at = trio.current_time()
        await StateKeeper(relay, store).save_all()
        assert trio.current_time() - began_at == LAST_SAVE_S
        store.answer_s = 0
        await StateKeeper(relay, store).save_all()
        assert len(store.batches) == 1, "the rest is still to be stored"
        await StateKeeper(relay, store).save_all()
        assert len(store.batches) == 1


async def test_a_state_that_was_forgotten_meanwhile_is_not_stored(
    autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = SlowStore()
    async with open_relay(dialect=BREWOS) as relay:
        monkeypatch.setattr(relay, "unsaved_states", lambda: [ONE])
        await StateKeeper(relay, store).save()
        assert store.batches == []


async def test_nothing_is_stored_without_a_retention(autojump_clock: MockClock) -> None:
    store = SlowStore()
    async with open_relay(dialect=BREWOS, limits=ServerLimits(state_retention_s=0)) as relay:
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


async def test_late_save_of_another_server_does_not_replace_a_later_state(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path}/registry.db"
    with Database.open(url) as database:
        register(database, [new_device(1, "ada")], now_ms=1)
    async with (
        open_store(url) as store,
        open_relay(dialect=BREWOS) as before,
        open_relay(dialect=BREWOS) as after,
    ):
        await device_that_says(before, {"type": "status", "from": "before"})
        newer = ScriptedPeer()
        after.attach_device(ONE, newer)
        await wait_all_tasks_blocked()
        newer.say({"type": "status", "from": "after"})
        await StateKeeper(after, store).save()
        await StateKeeper(before, store).save()
        found = await find_state(store, ONE)
        assert found is not None
        assert b"after" in found.message.payload


async def test_clock_that_was_set_back_does_not_stop_saving(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    url = f"sqlite:///{tmp_path}/registry.db"
    with Database.open(url) as database:
        register(database, [new_device(1, "ada")], now_ms=1)
    async with open_store(url) as store:
        async with open_relay(dialect=BREWOS) as relay:
            await device_that_says(relay, {"type": "status", "run": 1})
            await StateKeeper(relay, store).save()
        right_ns = time.time_ns
        monkeypatch.setattr(time, "time_ns", lambda: right_ns() - 600 * 10**9)
        async with open_relay(dialect=BREWOS) as relay:
            peer = ScriptedPeer()
            relay.attach_device(ONE, peer, known_state=await find_state(store, ONE))
            await wait_all_tasks_blocked()
            peer.say({"type": "status", "run": 2})
            await StateKeeper(relay, store).save()
        found = await find_state(store, ONE)
        assert found is not None
        assert b'"run":2' in found.message.payload

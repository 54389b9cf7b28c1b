"""Shots of simulated machines, from their messages to stored profiles."""

import random
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Any, cast

import msgspec
import pytest
import trio
from trio.testing import MockClock

from brewos_relay.core import histories
from brewos_relay.core.attachment import DeviceAttachment
from brewos_relay.core.history import Samples
from brewos_relay.core.limits import Limits
from brewos_relay.core.relay import Relay, open_relay
from brewos_relay.dialect import BREWOS
from brewos_relay.errors import RegistryError
from brewos_relay.messages import Message
from brewos_relay.registry.records import Shot
from brewos_relay.registry.store import Store
from brewos_relay.server.history_keeper import HistoryKeeper
from brewos_relay.shot_files import profile_of
from brewos_relay.simulator.model import status as status_of
from brewos_relay.simulator.model.machine import Machine
from brewos_relay.simulator.status_reports import StatusReports
from brewos_relay.vocabulary import now_ms
from support.peers import ScriptedPeer

ONE = "BRW-00000001"


class RecordedShots:
    """A store of shots that can fail."""

    def __init__(self) -> None:
        self.shots: list[Shot] = []
        self.fails = False

    async def add_shots(self, shots: Sequence[Shot], *, kept: int) -> None:
        await trio.lowlevel.checkpoint()
        if self.fails:
            raise RegistryError("the disk is full")
        self.shots += shots


class Kitchen:
    """A simulated machine that is connected to a relay, in virtual time."""

    def __init__(self, relay: Relay, store: RecordedShots, machine: Machine, *, kept: int = 100) -> None:
        self.relay = relay
        self.machine = machine
        self.keeper = HistoryKeeper(relay, cast(Store, store), shots_per_device=kept)
        self.device: DeviceAttachment = relay.attach_device(ONE, ScriptedPeer())
        self.reports = StatusReports()

    async def live(self, seconds: float) -> None:
        """Let the machine report twice a second, as firmware does."""
        for _ in range(round(seconds * 2)):
            await trio.sleep(0.5)
            self.machine.step(0.5)
            now_s = trio.current_time()
            report = self.reports.next(
                status_of.status(self.machine), status_of.stats(self.machine), now_s=now_s, uptime_s=now_s
            )
            if report is not None:
                self.device.receive([Message(msgspec.msgpack.encode(report), is_text=False)])

    async def heat_up(self) -> None:
        self.machine.switch_on()
        while self.machine.state != "ready":
            await self.live(10)

    async def brew(self, *, rest: float = 12.0) -> None:
        assert self.machine.pull_shot()
        while self.machine.state == "brewing":
            await self.live(0.5)
        await self.live(rest)


def new_machine() -> Machine:
    return Machine(device_id=ONE, now_ms=now_ms, rng=random.Random(3), rich=False)


@asynccontextmanager
async def open_kitchen(
    store: RecordedShots, machine: Machine | None = None, *, kept: int = 100, **limits: Any
) -> AsyncIterator[Kitchen]:
    async with open_relay(limits=Limits(**limits), dialect=BREWOS) as relay:
        kitchen = Kitchen(relay, store, machine or new_machine(), kept=kept)
        yield kitchen


async def test_a_shot_of_the_simulator_is_stored_with_a_plausible_profile(autojump_clock: MockClock) -> None:
    store = RecordedShots()
    async with open_kitchen(store) as kitchen:
        await kitchen.heat_up()
        before_ms = now_ms()
        await kitchen.brew()
        await kitchen.keeper.keep()
        history = await kitchen.relay.history_of(ONE, seconds=600.0)
    (shot,) = store.shots
    assert shot.is_complete
    assert 20_000 < shot.duration_ms < 45_000
    assert abs(shot.began_at_ms - before_ms) < 60_000
    assert 30 < shot.summary["weight"] < 40
    assert 8 < shot.summary["peakPressure"] < 10.5
    assert 80 < shot.summary["averageTemp"] < 97
    assert 1 < shot.summary["averageFlow"] < 3
    assert shot.summary["dose"] == 18.0
    profile = profile_of(shot)
    assert 40 < len(profile.times_ms) < 120
    assert profile.times_ms[0] == 0
    assert profile.times_ms[-1] <= shot.duration_ms + 5_100
    weights = [weight for weight in profile.values["weight"] if weight is not None]
    assert weights == sorted(weights)
    early = [bar for at, bar in zip(profile.times_ms, profile.values["pressure"], strict=True) if at < 3000]
    assert max(bar for bar in early if bar is not None) < 6, "preinfusion"
    assert history is not None
    temps = [each for each in history.values["brewTemp"] if each is not None]
    assert temps[0] < temps[-1], "the chart shows how it heated up"


async def test_a_restart_in_the_middle_of_a_shot_keeps_both_parts_apart(autojump_clock: MockClock) -> None:
    store = RecordedShots()
    async with open_kitchen(store) as kitchen:
        await kitchen.heat_up()
        assert kitchen.machine.pull_shot()
        await kitchen.live(12)
        await kitchen.relay.drain(window_s=0.1)
        await kitchen.keeper.keep_all()
        machine = kitchen.machine
    (first,) = store.shots
    assert not first.is_complete
    assert 10_000 < first.duration_ms < 15_000
    async with open_kitchen(store, machine) as kitchen:
        while machine.state == "brewing":
            await kitchen.live(1)
        await kitchen.live(20)
        await kitchen.keeper.keep()
        second = store.shots[-1]
        assert second is not first
        assert not second.is_complete
        await kitchen.brew()
        await kitchen.keeper.keep()
    assert [shot.is_complete for shot in store.shots] == [False, False, True]


async def test_shots_wait_while_the_registry_fails(autojump_clock: MockClock) -> None:
    store = RecordedShots()
    async with open_kitchen(store) as kitchen, trio.open_nursery() as nursery:
        await kitchen.heat_up()
        nursery.start_soon(kitchen.keeper.run)
        store.fails = True
        await kitchen.brew(rest=30.0)
        assert store.shots == []
        store.fails = False
        await kitchen.live(10)
        assert len(store.shots) == 1
        nursery.cancel_scope.cancel()


async def test_shots_that_are_lost_are_logged_once(
    autojump_clock: MockClock, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(histories, "MOST_WAITING", 1)
    store = RecordedShots()
    async with open_kitchen(store) as kitchen:
        store.fails = True
        await kitchen.heat_up()
        for _ in range(3):
            await kitchen.brew(rest=30.0)
            await kitchen.keeper.keep()
        await kitchen.keeper.keep()
        assert kitchen.relay.histories.runs_dropped == 2
        lost = [record.getMessage() for record in caplog.records if "lost" in record.getMessage()]
        assert [text.split(";")[0] for text in lost] == ["shots lost: 1", "shots lost: 1"]


@pytest.mark.parametrize(("kept", "history_s"), [(0, 600.0), (10, 0.0)])
async def test_nothing_is_stored_if_switched_off(
    autojump_clock: MockClock, kept: int, history_s: float
) -> None:
    store = RecordedShots()
    async with open_kitchen(store, kept=kept, history_s=history_s) as kitchen:
        await kitchen.heat_up()
        await kitchen.brew()
        await kitchen.keeper.keep()
        assert store.shots == []
        assert (await kitchen.relay.history_of(ONE, seconds=60.0) is None) == (history_s == 0.0)


async def test_other_instances_are_answered_soon(autojump_clock: MockClock) -> None:
    store = RecordedShots()
    answers: list[Samples | None] = []
    async with open_kitchen(store) as kitchen, trio.open_nursery() as nursery:
        nursery.start_soon(kitchen.keeper.run)
        await kitchen.live(2)
        for _ in range(101):
            kitchen.relay.ask_history(ONE, 60.0, answers.append)
        assert answers == [None], "too many at once"
        await trio.sleep(0.01)
        assert len(answers) == 101
        assert answers[1] is not None
        nursery.cancel_scope.cancel()


async def test_a_hostile_machine_costs_few_shots(autojump_clock: MockClock) -> None:
    store = RecordedShots()
    async with open_kitchen(store) as kitchen:
        for number in range(2 * 3600):
            await trio.sleep(0.5)
            at_work = {"state": "brewing", "isBrewing": number % 3 != 0}
            group = {"machine": at_work, "pressure": 1e300, "seq": "x", "temps": [], "scale": {"weight": {}}}
            kitchen.device.receive([Message(msgspec.json.encode({"type": "status", **group}))])
            if number % 6 == 0:
                await kitchen.keeper.keep()
        assert kitchen.relay.histories.size_bytes <= 64 * 1024
    assert len(store.shots) <= 160

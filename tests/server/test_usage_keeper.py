"""The usage of connected devices by days, from their messages to the registry."""

import re
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from typing import Any, cast

import msgspec
import pytest
import trio
from trio.testing import MockClock

from brewos_relay.core.attachment import DeviceAttachment
from brewos_relay.core.relay import Relay, open_relay
from brewos_relay.dialect import BREWOS
from brewos_relay.errors import RegistryError
from brewos_relay.messages import Message
from brewos_relay.registry.records import Usage
from brewos_relay.registry.store import Store
from brewos_relay.server import usage_keeper as module
from brewos_relay.server.usage_keeper import UsageKeeper
from support.peers import ScriptedPeer
from support.waiting import count_turns

ONE, TWO = "BRW-00000001", "BRW-00000002"
NOON_MS = round(datetime(2026, 1, 5, 12, tzinfo=UTC).timestamp() * 1000)
DAY_MS = 86_400_000


class RecordedUsage:
    """A store of usage that can fail."""

    def __init__(self) -> None:
        self.usage: list[Usage] = []
        self.fails = False

    async def add_usage(self, added: Sequence[Usage]) -> None:
        await trio.lowlevel.checkpoint()
        if self.fails:
            raise RegistryError("the disk is full")
        self.usage += added

    def of(self, device_id: str) -> list[tuple[int, int]]:
        return [(one.day - NOON_MS // DAY_MS, one.on_s) for one in self.usage if one.device_id == device_id]


class Household:
    """A relay with devices, and a wall clock that follows the virtual one."""

    def __init__(self, relay: Relay, store: RecordedUsage) -> None:
        self.relay = relay
        self.keeper = UsageKeeper(relay, cast(Store, store))
        self.peers: dict[str, ScriptedPeer] = {}
        self.devices: dict[str, DeviceAttachment] = {}

    def say(self, device_id: str, **message: Any) -> None:
        if device_id not in self.devices:
            self.peers[device_id] = ScriptedPeer()
            self.devices[device_id] = self.relay.attach_device(device_id, self.peers[device_id])
        self.devices[device_id].receive([Message(msgspec.msgpack.encode(message), is_text=False)])


@pytest.fixture
def store() -> RecordedUsage:
    return RecordedUsage()


@asynccontextmanager
async def open_home(store: RecordedUsage, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Household]:
    began = trio.current_time()
    monkeypatch.setattr(module, "now_ms", lambda: NOON_MS + round((trio.current_time() - began) * 1000))
    async with open_relay(dialect=BREWOS) as relay, trio.open_nursery() as nursery:
        home = Household(relay, store)
        nursery.start_soon(home.keeper.run)
        yield home
        nursery.cancel_scope.cancel()


async def test_other_tasks_run_while_many_devices_are_looked_at(
    store: RecordedUsage, monkeypatch: pytest.MonkeyPatch, autojump_clock: MockClock
) -> None:
    async with open_home(store, monkeypatch) as home:
        for number in range(100):
            home.say(f"BRW-{number:08X}", type="status", machine={"mode": "on"})
        assert await count_turns(home.keeper.look) >= 8


async def test_usage_is_stored_by_days_of_the_machine(
    autojump_clock: MockClock, store: RecordedUsage, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with open_home(store, monkeypatch) as home:
        home.say(ONE, type="device_info", time={"utcOffsetMinutes": 11 * 60, "dstEnabled": False})
        home.say(ONE, type="status", machine={"mode": "on"}, power={"todayKwh": 1.0})
        home.say(TWO, type="status", machine={"mode": "standby"}, power={"todayKwh": 0.5})
        for turn in range(720):
            await trio.sleep(10)
            home.say(ONE, type="status_delta", power={"todayKwh": round(1.0 + turn / 1000, 2)})
            home.say(TWO, type="keepalive")
        await home.keeper.keep_all()
    days = {day: sum(on_s for each, on_s in store.of(ONE) if each == day) for day in (0, 1)}
    assert sum(days.values()) == pytest.approx(7200, abs=30)
    assert days[0] == pytest.approx(3600, abs=30), "midnight of the machine is an hour away"
    assert store.usage[-1].counter_mwh is not None
    assert [one.on_s for one in store.usage if one.device_id == TWO] == [0], "its counter stood still"
    assert len(store.usage) < 40, "a row is written every five minutes"


async def test_usage_of_a_device_that_went_is_stored_and_a_failing_registry_is_asked_again(
    autojump_clock: MockClock, store: RecordedUsage, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with open_home(store, monkeypatch) as home:
        store.fails = True
        home.say(ONE, type="pico_status", state="ready", mode="on", power=1000)
        for _ in range(10):
            await trio.sleep(10)
            home.say(ONE, type="keepalive")
        home.peers[ONE].leave()
        await trio.sleep(200)
        assert store.usage == []
        store.fails = False
        await trio.sleep(20)
        [found] = store.usage
        assert 70 <= found.on_s <= 105, "it is looked at every 15 s"
        await home.keeper.keep_all()
        assert len(store.usage) == 1


async def test_waiting_usage_is_bounded_and_its_loss_is_logged(
    autojump_clock: MockClock,
    store: RecordedUsage,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setattr(module, "_MOST_WAITING", 2)
    async with open_home(store, monkeypatch) as home:
        store.fails = True
        for _ in range(5):
            for number in range(5):
                home.say(f"BRW-0000000{number}", type="status", machine={"mode": "on"})
            await trio.sleep(10)
        for peer in home.peers.values():
            peer.leave()
        await trio.sleep(100)
        store.fails = False
        await trio.sleep(20)
        assert len(store.usage) == 2
        assert sum(map(int, re.findall(r"usage of (\d+) devices lost", caplog.text))) == 3

"""Watching machines: which changes become notifications, on a virtual clock."""

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import pytest
import trio
from trio.testing import MockClock

from brewos_relay.core.relay import Relay, open_relay
from brewos_relay.dialect import BREWOS
from brewos_relay.errors import RegistryError
from brewos_relay.live_devices import LocalView
from brewos_relay.messages import encode
from brewos_relay.registry import push
from brewos_relay.server import push_watcher
from brewos_relay.server.push_watcher import PushWatcher
from brewos_relay.vocabulary import now_ms
from support.peers import ScriptedPeer
from support.waiting import count_turns

DEVICE, OTHER = "BRW-0000001A", "BRW-0000002B"


class Registry:
    """The answers of the registry."""

    def __init__(self) -> None:
        self.devices = {DEVICE}
        self.offline: list[tuple[str, int]] = []
        self.fails = False
        self.between: list[tuple[int, int]] = []

    async def read(self, function: Callable[..., Any], *_args: Any, **more: Any) -> Any:
        await trio.lowlevel.checkpoint()
        if self.fails:
            raise RegistryError("it is away")
        if function is push.watched_devices:
            return set(self.devices)
        self.between.append((more["seen_after_ms"], more["seen_before_ms"]))
        return self.offline


class Sender:
    """Takes what the watcher notifies."""

    def __init__(self) -> None:
        self.on_watch: Any = None
        self.notified: list[tuple[str, str]] = []
        self.unless: list[int] = []

    def notify(self, device_id: str, kind: str, *, unless_since_ms: int | None = None) -> None:
        self.notified.append((device_id, kind))
        if unless_since_ms is not None:
            self.unless.append(unless_since_ms)

    def kinds(self) -> list[str]:
        """Return what was notified of DEVICE since the last call."""
        kinds, self.notified = [kind for device_id, kind in self.notified if device_id == DEVICE], []
        return kinds


class Machine:
    """A machine at the relay."""

    def __init__(self, relay: Relay, device_id: str = DEVICE) -> None:
        self.peer = ScriptedPeer()
        self.relay, self.device_id = relay, device_id
        self.seq = 0

    async def connect(self) -> "Machine":
        self.relay.attach_device(self.device_id, self.peer)
        await trio.testing.wait_all_tasks_blocked()
        return self

    async def say(self, message_type: str = "status_delta", **groups: Any) -> None:
        """Send a message, and wait until the watcher has looked."""
        self.seq += 1
        self.peer.say(encode({"type": message_type, "seq": self.seq, **groups}))
        await trio.sleep(push_watcher.LOOK_EVERY_S + 0.1)


@asynccontextmanager
async def watching(
    registry: Registry, sender: Sender, *, offline_s: float = 0.0
) -> AsyncIterator[tuple[Relay, PushWatcher]]:
    async with open_relay(dialect=BREWOS) as relay, trio.open_nursery() as nursery:
        watcher = PushWatcher(
            relay,
            LocalView(relay),
            registry,  # type: ignore[arg-type]
            sender,  # type: ignore[arg-type]
            offline_s=offline_s,
        )
        nursery.start_soon(watcher.run)
        await trio.sleep(0.1)
        yield relay, watcher
        nursery.cancel_scope.cancel()


@pytest.fixture
def registry() -> Registry:
    return Registry()


@pytest.fixture
def sender() -> Sender:
    return Sender()


async def test_morning_of_a_machine(registry: Registry, sender: Sender, autojump_clock: MockClock) -> None:
    async with watching(registry, sender) as (relay, _):
        machine = await Machine(relay).connect()
        await machine.say("status", machine={"state": "idle", "isBrewing": False}, water={"tankLevel": "ok"})
        assert sender.kinds() == []
        await machine.say(machine={"state": "heating"})
        await machine.say(temps={"group": 80.5})
        assert sender.kinds() == []
        await machine.say(machine={"state": "ready"})
        assert sender.kinds() == ["machineReady"]
        await machine.say(machine={"state": "brewing", "isBrewing": True})
        for second in range(10):
            await machine.say(scale={"weight": second})
        await machine.say(machine={"state": "ready", "isBrewing": False})
        assert sender.kinds() == ["brewComplete"]
        await machine.say(machine={"isBrewing": True})
        await machine.say(machine={"isBrewing": False})  # a flush
        assert sender.kinds() == []
        await machine.say(water={"tankLevel": "low"})
        await machine.say(machine={"state": "fault"})
        assert sender.kinds() == ["waterEmpty", "machineError"]


async def test_first_state_of_a_machine_is_no_news(
    registry: Registry, sender: Sender, autojump_clock: MockClock
) -> None:
    async with watching(registry, sender) as (relay, _):
        machine = await Machine(relay).connect()
        await machine.say("status", machine={"state": "ready"}, water={"tankLevel": "low"})
        assert sender.kinds() == []


async def test_state_is_compared_over_a_short_absence_only(
    registry: Registry, sender: Sender, autojump_clock: MockClock
) -> None:
    async with watching(registry, sender) as (relay, _):
        for away_s, kinds in ((30.0, ["machineReady"]), (push_watcher.FORGET_S + 10, [])):
            machine = await Machine(relay).connect()
            await machine.say("status", machine={"state": "heating"})
            machine.peer.leave()
            await trio.sleep(away_s)
            machine = await Machine(relay).connect()
            await machine.say("status", machine={"state": "ready"})
            assert sender.kinds() == kinds
            machine.peer.leave()
            await trio.sleep(push_watcher.FORGET_S + 10)


async def test_machine_without_a_subscription_is_not_watched(
    registry: Registry, sender: Sender, autojump_clock: MockClock
) -> None:
    async with watching(registry, sender) as (relay, watcher):
        machine = await Machine(relay, OTHER).connect()
        await machine.say("status", machine={"state": "heating"})
        await machine.say(machine={"state": "ready"})
        assert sender.notified == []
        watcher.watch([OTHER])
        registry.devices.add(OTHER)
        await machine.say(machine={"state": "heating"})
        await machine.say(machine={"state": "ready"})
        assert sender.notified == [(OTHER, "machineReady")]


async def test_other_tasks_run_while_many_machines_are_compared(
    registry: Registry, sender: Sender, autojump_clock: MockClock
) -> None:
    registry.devices = {f"BRW-{number:08X}" for number in range(100)}
    async with watching(registry, sender) as (relay, watcher):
        for device_id in registry.devices:
            await Machine(relay, device_id).connect()
        assert await count_turns(watcher._look) >= 3


async def test_registry_that_fails_ends_no_watch(
    registry: Registry, sender: Sender, autojump_clock: MockClock
) -> None:
    async with watching(registry, sender) as (relay, _):
        registry.fails = True
        machine = await Machine(relay).connect()
        await machine.say("status", machine={"state": "heating"})
        await trio.sleep(push_watcher.DEVICES_EVERY_S)
        await machine.say(machine={"state": "ready"})
        assert sender.kinds() == ["machineReady"]


async def test_long_absence_is_notified_once_devices_had_time_to_come_back(
    registry: Registry, sender: Sender, autojump_clock: MockClock
) -> None:
    async with watching(registry, sender, offline_s=7200.0) as (relay, _):
        registry.devices = set()
        registry.offline = [(DEVICE, 5), (OTHER, 6)]
        await trio.sleep(push_watcher.SETTLE_S - 5)
        assert sender.notified == []
        await Machine(relay, OTHER).connect()
        await trio.sleep(10)
        assert (sender.notified, sender.unless) == ([(DEVICE, "machineOffline")], [5])
        (after_ms, before_ms), *_ = registry.between
        assert before_ms == pytest.approx(now_ms() - 7_200_000, abs=60_000)
        assert before_ms - after_ms == push_watcher.LATE_MS
        registry.offline = []
        await trio.sleep(push_watcher.ABSENT_EVERY_S + 5)
        assert len(sender.notified) == 1


async def test_absences_can_be_ignored(registry: Registry, sender: Sender, autojump_clock: MockClock) -> None:
    async with watching(registry, sender, offline_s=0.0):
        registry.offline = [(DEVICE, 5)]
        await trio.sleep(3 * push_watcher.SETTLE_S)
        assert (sender.notified, registry.between) == ([], [])

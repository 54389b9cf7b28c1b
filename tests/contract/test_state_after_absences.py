"""The state that apps get when a machine returns: it sends a full status only after 5 min (§2.6.1)."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
import trio
from trio.testing import MockClock

from brewos_relay.core import relay, session
from support.faithful_app import FaithfulApp
from support.faithful_device import FaithfulDevice
from support.process import KEY, machine_id
from support.relay_here import MemoryStore, RelayHere, open_relay_here, token

HOT: dict[str, Any] = {
    "machine": {"state": "ready", "mode": "on", "isHeating": False, "isBrewing": False},
    "temps": {
        "brew": {"current": 93.1, "setpoint": 93.0},
        "steam": {"current": 139.6, "setpoint": 140.0},
        "group": 88.0,
    },
}
BREWING = {**HOT, "machine": {"state": "brewing", "mode": "on", "isHeating": True, "isBrewing": True}}
COLD = {
    "machine": {"state": "idle", "mode": "standby", "isHeating": False, "isBrewing": False},
    "temps": {**HOT["temps"], "brew": {"current": 91.0, "setpoint": 93.0}},
}


class House:
    """A machine, its app, and the relays that run one after the other."""

    def __init__(self, store: MemoryStore, power: trio.Nursery) -> None:
        self.store = store
        self.power = power
        self.port = 0
        self.here: RelayHere

    @asynccontextmanager
    async def relay(self, **limits: Any) -> AsyncIterator[RelayHere]:
        """Run a relay on the port of the previous one."""
        limits = {"drain_s": 0, "state_save_s": 180.0, **limits}
        async with open_relay_here(self.store, port=self.port, **limits) as here:
            self.here, self.port = here, here.address[1]
            yield here

    def device(self) -> FaithfulDevice:
        device = FaithfulDevice(self.here.address, machine_id(1), KEY, grace_s=0.0)
        self.power.start_soon(device.run)
        return device

    def app(self) -> FaithfulApp:
        app = FaithfulApp(self.here.address, machine_id(1), token)
        self.power.start_soon(app.run)
        return app


@pytest.fixture(autouse=True)
def one_clock(monkeypatch: pytest.MonkeyPatch) -> None:
    """Advance the wall clock with the virtual one."""
    began_ms = 1_800_000_000_000
    for module in (relay, session):
        monkeypatch.setattr(module, "now_ms", lambda: began_ms + round(trio.current_time() * 1000))


@asynccontextmanager
async def open_house() -> AsyncIterator[House]:
    async with trio.open_nursery() as power:
        yield House(MemoryStore({machine_id(1): KEY}), power)
        power.cancel_scope.cancel()


def delay_s(app: FaithfulApp, device: FaithfulDevice) -> float:
    """Return how long after the machine's return its app knew the state, in s."""
    assert app.state_known_at is not None, "the app shows no state"
    return app.state_known_at - device.opened_at[-1]


async def until_back(device: FaithfulDevice, *, connections: int = 2) -> None:
    with trio.fail_after(40):
        while len(device.opened_at) < connections:  # noqa: ASYNC110 - the device has no events
            await trio.sleep(0.05)


@pytest.mark.parametrize("crashes", [False, True])
async def test_2_6_1_app_shows_a_returned_machine_within_2_s(
    autojump_clock: MockClock, crashes: bool
) -> None:
    async with open_house() as house:
        async with house.relay():
            device, app = house.device(), house.app()
            await trio.sleep(30)
            device.change(**HOT)
            await trio.sleep(20)
            if crashes:
                house.here.crash()
        async with house.relay():
            await until_back(device)
            await trio.sleep(2)
            assert delay_s(app, device) <= 2
            assert app.state["machine"]["state"] == "ready"
            assert [message["seq"] for message in app.of_type("status") if "seq" in message] == [1, 2]
            # The machine's presence, the age of its state, and the state.
            sequence = [message["type"] for message in app.received]
            told = sequence[len(sequence) - sequence[::-1].index("connected") - 1 :]
            assert [kind for kind in told if kind not in {"keepalive", "device_info"}] == [
                "connected",
                "device_status",  # the answer to its request for the state of an absent machine
                "device_online",
                "device_status",
                "status",
            ]
            status = app.of_type("device_status")[-1]
            assert status["online"] is True
            assert 20_000 <= status["snapshotAgeMs"] <= 120_000
            assert {"machine", "temps"} <= set(status["staleGroups"])


async def test_app_that_attaches_after_the_machine_gets_the_state_at_once(
    autojump_clock: MockClock,
) -> None:
    async with open_house() as house:
        async with house.relay():
            device = house.device()
            await trio.sleep(30)
            device.change(**HOT)
            await trio.sleep(20)
        async with house.relay():
            await until_back(device)
            await trio.sleep(5)
            app = house.app()
            await trio.sleep(0.05)
            assert app.state["machine"]["state"] == "ready"


async def test_deltas_after_a_restart_are_merged_and_requested_once(
    autojump_clock: MockClock,
) -> None:
    async with open_house() as house:
        async with house.relay():
            device, app = house.device(), house.app()
            await trio.sleep(30)
            device.change(**HOT)
            await trio.sleep(20)
        asked_before = app.full_status_requests
        async with house.relay():
            device.change(temps={**HOT["temps"], "brew": {"current": 90.0, "setpoint": 93.0}})
            await until_back(device)
            for number in range(20):
                await trio.sleep(1)
                device.change(power={"current": 100 + number, "voltage": 230})
            await trio.sleep(1)
            assert delay_s(app, device) <= 2
            assert app.state["temps"]["brew"]["current"] == 90.0
            assert app.state["temps"]["group"] == pytest.approx(88.0)
            assert app.full_status_requests - asked_before <= 1
            late = house.app()
            await trio.sleep(2)
            assert late.state["machine"]["state"] == "ready"
            assert late.state["power"]["current"] == 119
            assert late.full_status_requests == 0


async def test_old_state_of_a_machine_that_changed_is_not_sent(
    autojump_clock: MockClock,
) -> None:
    async with open_house() as house:
        async with house.relay():
            device, app = house.device(), house.app()
            await trio.sleep(30)
            device.change(**HOT)
            await trio.sleep(20)
        shown_before = len(app.received)
        async with house.relay():
            device.change(**COLD)
            await until_back(device)
            await trio.sleep(10)
            told = [m["machine"]["state"] for m in app.received[shown_before:] if "machine" in m]
            assert told == ["idle"]
            assert delay_s(app, device) <= 2


async def test_change_right_before_a_crash_is_kept(autojump_clock: MockClock) -> None:
    async with open_house() as house:
        async with house.relay():
            device, app = house.device(), house.app()
            await trio.sleep(100)
            device.change(**HOT)
            await trio.sleep(6)
            house.here.crash()
        async with house.relay():
            await until_back(device)
            await trio.sleep(2)
            assert app.state_known_at is not None
            assert app.state["machine"]["state"] == "ready"


async def test_volatile_parts_are_not_restored(autojump_clock: MockClock) -> None:
    async with open_house() as house:
        async with house.relay():
            device = house.device()
            await trio.sleep(30)
            device.change(**BREWING, pressure=9.0, power={"current": 1500, "voltage": 230})
            await trio.sleep(6)
            house.here.crash()
        async with house.relay():
            app = house.app()
            await until_back(device)
            await trio.sleep(2)
            assert app.state["machine"] == {"mode": "on", "isHeating": True}
            assert app.state["temps"]["brew"]["setpoint"] == 93.0
            assert {"pressure", "power"}.isdisjoint(app.state)


@pytest.mark.parametrize(("absent_s", "shown"), [(70.0, True), (840.0, True), (960.0, False)])
async def test_state_after_a_long_absence(autojump_clock: MockClock, absent_s: float, shown: bool) -> None:
    async with open_house() as house, house.relay():
        device, app = house.device(), house.app()
        await trio.sleep(30)
        device.change(**HOT)
        await trio.sleep(20)
        device._full_at = trio.current_time() + absent_s  # delays the next full status
        house.store.keys[machine_id(1)] = "x" * 43  # makes the relay refuse it
        device.lose_connection()
        await trio.sleep(absent_s)
        house.store.keys[machine_id(1)] = KEY
        await until_back(device)
        await trio.sleep(5)
        assert app.shows_online()
        if shown:
            assert delay_s(app, device) <= 2
            assert app.state["machine"]["state"] == "ready"
        else:
            assert app.state_known_at is None
        device.change(**COLD)
        await trio.sleep(2)
        assert app.state_known_at is not None
        assert app.state["machine"]["state"] == "idle"


async def test_state_with_a_future_time_is_not_restored(autojump_clock: MockClock) -> None:
    async with open_house() as house:
        async with house.relay():
            device, app = house.device(), house.app()
            await trio.sleep(30)
            device.change(**HOT)
            await trio.sleep(20)
        for device_id, state in house.store.states.items():
            ahead = type(state)(
                device_id=device_id, payload=state.payload, is_text=False, at_ms=state.at_ms + 3_600_000
            )
            house.store.states[device_id] = ahead
        async with house.relay():
            await until_back(device)
            await trio.sleep(5)
            assert app.shows_online()
            assert app.state_known_at is None

"""A fleet of faithful machines during a restart, a crash, and with half-open connections.

The clock is virtual. `BREWOS_TEST_MACHINES` sets the size of the fleet.
"""

import os
import random
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

import pytest
import trio
import trio.testing

from support.faithful_app import FaithfulApp
from support.faithful_device import FaithfulDevice
from support.process import KEY, machine_id
from support.relay_here import MemoryStore, RelayHere, open_relay_here, token

MACHINES = int(os.environ.get("BREWOS_TEST_MACHINES", "200"))
APPS = MACHINES // 4
DRAIN_S = 20.0
BACK_WITHIN_S = 35.0
MOST_IN_A_SECOND = 0.1


@asynccontextmanager
async def power() -> AsyncIterator[trio.Nursery]:
    """Open a nursery for machines and apps, which run until the end of the block."""
    async with trio.open_nursery() as nursery:
        yield nursery
        nursery.cancel_scope.cancel()


async def start_fleet(here: RelayHere, power: trio.Nursery) -> tuple[list[FaithfulDevice], list[FaithfulApp]]:
    """Switch the machines on and open some apps. Wait until all have been attached for a while."""
    chance = random.Random(2)
    devices = [
        FaithfulDevice(here.address, machine_id(n), KEY, grace_s=chance.uniform(0, 20))
        for n in range(MACHINES)
    ]
    apps = [FaithfulApp(here.address, machine_id(n), token) for n in range(APPS)]
    for live in (*(device.run for device in devices), *(app.run for app in apps)):
        power.start_soon(live)
    await trio.sleep(30)
    assert here.relay.device_count == MACHINES
    assert here.relay.client_count == APPS
    return devices, apps


def fleet_store() -> MemoryStore:
    return MemoryStore({machine_id(n): KEY for n in range(MACHINES)})


def most_in_a_second(times: list[float]) -> int:
    """Count the times in the fullest second, which may begin at any time."""
    times = sorted(times)
    most = first = 0
    for last, at in enumerate(times):
        while times[first] <= at - 1:
            first += 1
        most = max(most, last - first + 1)
    return most


async def test_a_restart_destroys_no_key_and_spreads_reconnects(
    autojump_clock: trio.testing.MockClock,
) -> None:
    real_s = time.perf_counter()
    store = fleet_store()
    async with power() as on:
        async with open_relay_here(store, drain_s=DRAIN_S) as before:
            devices, apps = await start_fleet(before, on)
            left_at = trio.current_time()
        took_s = trio.current_time() - left_at
        async with open_relay_here(store, port=before.address[1], drain_s=0) as after:
            await trio.sleep(BACK_WITHIN_S)
            back = [device.opened_at[1] for device in devices]
            away_s = [device.opened_at[1] - device.ended_at[0] for device in devices]
            print(
                f"{MACHINES} machines: the relay left in {took_s:.1f} s, "
                f"each was back after {min(away_s):.2f} to {max(away_s):.2f} s, "
                f"at most {most_in_a_second(back)} in a second, {after.relay.counters.zombies} zombies, "
                f"{sum(device.keys_destroyed for device in devices)} keys destroyed; "
                f"{time.perf_counter() - real_s:.1f} s of real time"
            )
            assert sum(device.keys_destroyed for device in devices) == 0
            assert Counter(device.ends[0] for device in devices) == {"closed": MACHINES}
            assert max(away_s) <= BACK_WITHIN_S
            assert most_in_a_second(back) <= MACHINES * MOST_IN_A_SECOND
            assert took_s <= DRAIN_S + 3
            assert after.relay.device_count == MACHINES
            assert after.relay.client_count == APPS
            see_apps_well(apps, devices)


def see_apps_well(apps: list[FaithfulApp], devices: list[FaithfulDevice]) -> None:
    """Check that the apps reconnected as told and soon show the state of their machines."""
    for app, device in zip(apps, devices, strict=False):
        assert app.device_id == device.device_id
        assert app.state_known_at is not None
        assert app.state_known_at - max(device.opened_at[1], app.opened_at[1]) <= 2
        assert [code for _, code in app.ends] == [1012]
        assert app.of_type("restarting")
        assert app.state["temps"]["brew"]["setpoint"] == pytest.approx(93.0)
        assert not app.toasts


async def test_a_restart_waits_for_young_machines(autojump_clock: trio.testing.MockClock) -> None:
    store = fleet_store()
    async with power() as on:
        async with open_relay_here(store, drain_s=0.0) as before:
            device = FaithfulDevice(before.address, machine_id(1), KEY, grace_s=0.0)
            on.start_soon(device.run)
            await trio.sleep(1)
            left_at = trio.current_time()
        assert device.ended_at[0] - device.opened_at[0] >= 7.9  # its clock starts a few turns later
        assert trio.current_time() - left_at <= 10
        async with open_relay_here(store, port=before.address[1], drain_s=0) as after:
            await trio.sleep(BACK_WITHIN_S)
            assert after.relay.is_online(machine_id(1))
    assert device.keys_destroyed == 0


async def test_after_a_crash_leftovers_are_dropped_and_peers_are_admitted_at_a_rate(
    autojump_clock: trio.testing.MockClock,
) -> None:
    store = fleet_store()
    rate = MACHINES / 5
    async with power() as on:
        async with open_relay_here(store) as before:
            devices, _apps = await start_fleet(before, on)
            before.crash()
        async with open_relay_here(store, port=before.address[1], admit_rate=rate, drain_s=0) as after:
            await trio.sleep(15)
            assert after.relay.device_count == 0  # leftovers from the crash do not count
            assert after.relay.counters.zombies == sum(device.zombies for device in devices)
            await trio.sleep(25)
            assert 0 < after.relay.device_count < MACHINES
            await trio.sleep(240)
            assert after.relay.device_count == MACHINES
            back = [device.opened_at[1] for device in devices]
            # A full bucket, and the tokens that it regains within the second.
            assert most_in_a_second(back) <= 2 * rate + 1
    assert sum(device.keys_destroyed for device in devices) == 0


# Half-open connections


@asynccontextmanager
async def pair() -> AsyncIterator[tuple[RelayHere, FaithfulDevice, FaithfulApp]]:
    """Open a relay with one machine and one app, both attached for a minute."""
    async with open_relay_here(fleet_store()) as here:
        device = FaithfulDevice(here.address, machine_id(1), KEY, grace_s=0.0)
        app = FaithfulApp(here.address, machine_id(1), token)
        async with power() as on:
            on.start_soon(device.run)
            on.start_soon(app.run)
            await trio.sleep(60)
            yield here, device, app


async def seconds_until(condition: Callable[[], bool], *, at_most_s: float) -> float:
    """Wait until `condition()` is true. Return the seconds waited."""
    began_at = trio.current_time()
    with trio.fail_after(at_most_s):
        while not condition():  # noqa: ASYNC110 - there is no event to wait for
            await trio.sleep(0.25)
    return trio.current_time() - began_at


async def test_a_half_open_machine_is_detected_within_50_s(autojump_clock: trio.testing.MockClock) -> None:
    async with pair() as (here, device, app):
        device.stall(1000)  # like a pulled cable
        took_s = await seconds_until(lambda: not here.relay.is_online(device.device_id), at_most_s=50)
        assert took_s > 30
        await seconds_until(lambda: app.shows_online() is False, at_most_s=1)
        assert len(app.opened_at) == 1  # it stays connected


async def test_a_half_open_app_is_detected_within_40_s(autojump_clock: trio.testing.MockClock) -> None:
    async with pair() as (here, device, _app):
        silent = FaithfulApp(here.address, machine_id(1), token)
        async with power() as on:
            on.start_soon(silent.run)
            await trio.sleep(20)
            silent.vanish()
            assert here.relay.client_count == 2
            took_s = await seconds_until(lambda: here.relay.client_count == 1, at_most_s=40)
            assert took_s > 20
        assert len(device.opened_at) == 1

"""Tests of simulator.fleet and simulator.usage_patterns."""

import itertools
import math
import random

import pytest
import trio

from brewos_relay.simulator.connection_policy import FAITHFUL, RICH
from brewos_relay.simulator.fleet import DeviceIdentity, Fleet
from brewos_relay.simulator.model.machine import Machine
from brewos_relay.simulator.usage_patterns import Barista, Household
from support.waiting import until
from support.websocket_server import answering, open_server, open_websocket_server

DEADLINE_S = 20.0


def make_machine(seed: int = 1) -> Machine:
    return Machine(device_id="BRW-00000001", now_ms=lambda: 1_700_000_000_000, rng=random.Random(seed))


def make_fleet(url: str, said: list[str], count: int, **parameters: object) -> Fleet:
    identities = [DeviceIdentity(device_id=f"BRW-{number:08X}", key="k" * 43) for number in range(count)]
    return Fleet(identities, url=url, policy=RICH, say=said.append, **parameters)  # type: ignore[arg-type]


async def test_all_machines_connect() -> None:
    said: list[str] = []
    with trio.fail_after(DEADLINE_S):
        async with open_websocket_server() as (url, accepted), trio.open_nursery() as nursery:
            fleet = make_fleet(url, said, 30)
            nursery.start_soon(fleet.run)
            paths = {(await accepted.receive()).path for _ in range(30)}
            assert len(paths) == 30
            await until(lambda: "30 of 30 connected" in fleet.summary())
            fleet.power_cycle()
            again = {(await accepted.receive()).path for _ in range(30)}
            assert again == paths
            nursery.cancel_scope.cancel()
    assert said == []  # too many to be reported individually


async def test_small_fleet_reports_each_machine() -> None:
    said: list[str] = []
    with trio.fail_after(DEADLINE_S):
        async with open_websocket_server() as (url, accepted), trio.open_nursery() as nursery:
            nursery.start_soon(make_fleet(url, said, 2).run)
            await accepted.receive()
            await accepted.receive()
            await until(lambda: len(said) >= 2)
            nursery.cancel_scope.cancel()
    assert sorted(said) == ["BRW-00000000  connected", "BRW-00000001  connected"]


async def test_link_is_shown_after_each_registration_and_begins_with_the_public_url() -> None:
    links: list[str] = []
    ok = b'HTTP/1.1 200 OK\r\nContent-Length: 16\r\n\r\n{"success":true}'
    with trio.fail_after(DEADLINE_S):
        async with open_server(answering(ok)) as url, trio.open_nursery() as nursery:
            fleet = Fleet(
                [DeviceIdentity(device_id="BRW-00000001")],
                url=url,
                policy=RICH,
                say=lambda _: None,
                link_url="https://coffee.local/",
                show_link=links.append,
            )
            nursery.start_soon(fleet.run)
            await until(lambda: len(links) == 1)
            fleet.power_cycle()
            await until(lambda: len(links) == 2)
            nursery.cancel_scope.cancel()
    assert links[0] != links[1], "a restarted machine has another token"
    assert all(link.startswith("https://coffee.local/pair?id=BRW-00000001&token=") for link in links)


def test_shots_of_fast_machines_take_as_long_as_real_ones() -> None:
    [simulator] = make_fleet("http://127.0.0.1:1", [], 1, speed=60.0).simulators
    machine, now_s = simulator.machine, itertools.count(0.0, 0.1)
    while machine.state != "ready":
        simulator.tick(next(now_s))
    assert machine.pull_shot()
    began_s = next(now_s)
    while machine.shot is not None:
        simulator.tick(ended_s := next(now_s))
    assert 20 < ended_s - began_s < 45


async def test_summary_counts_errors() -> None:
    answer = b'HTTP/1.1 401 No\r\nContent-Length: 17\r\n\r\n{"error":"Never"}'
    with trio.fail_after(DEADLINE_S):
        async with open_server(answering(answer)) as url, trio.open_nursery() as nursery:
            fleet = make_fleet(url, [], 12)
            nursery.start_soon(fleet.run)
            await until(lambda: sum(fleet._refused.values()) >= 12)
            summary = fleet.summary()
            assert summary.startswith("0 of 12 connected (")
            assert "12 x the relay refused the connection: HTTP 401" in summary
            assert "401" not in fleet.summary()
            nursery.cancel_scope.cancel()


def test_machines_without_a_key_and_faithful_ones_register() -> None:
    url = "http://127.0.0.1:1"
    given, new = (
        DeviceIdentity(device_id="BRW-00000001", key="k" * 43),
        DeviceIdentity(device_id="BRW-00000002"),
    )
    rich = Fleet([given, new], url=url, policy=RICH, say=lambda _: None)
    faithful = Fleet([given, new], url=url, policy=FAITHFUL, say=lambda _: None)
    assert [simulator._registers for simulator in rich.simulators] == [False, True]
    assert [simulator._registers for simulator in faithful.simulators] == [True, True]
    assert rich.simulators[0].key == "k" * 43
    assert "k" * 43 not in repr(given)


def test_barista_uses_the_machine() -> None:
    machine, barista = make_machine(), Barista(60.0)
    barista.begin(machine)
    machine.switch_on()
    coldest_c = math.inf
    for _ in range(1600):
        machine.step(0.5)
        barista.act(machine)
        if machine.brew_count == 2:
            coldest_c = min(coldest_c, machine.steam.temp_c)
    assert machine.brew_count >= 3
    assert coldest_c < 139
    machine.water.tank_ml = 100.0
    machine.step(120)
    barista.act(machine)
    assert machine.water.tank_ml == 2000


def test_barista_without_an_interval_does_nothing() -> None:
    machine, barista = make_machine(), Barista()
    machine.switch_on()
    for _ in range(600):
        machine.step(1)
        barista.act(machine)
    assert machine.brew_count == 0


def test_most_households_are_off() -> None:
    rng = random.Random(5)
    machines = [make_machine() for _ in range(300)]
    for machine in machines:
        Household(rng).begin(machine)
    on = sum(machine.state != "idle" for machine in machines)
    assert 15 <= on <= 50


def test_household_switches_on_brews_and_switches_off() -> None:
    machine, household = make_machine(), Household(random.Random(2))
    household.begin(machine)
    states = set()
    for _ in range(9000):
        again_s = household.act(machine)
        assert again_s >= 0.5
        machine.step(20)
        states.add(machine.state)
    assert {"idle", "ready"} <= states
    assert machine.brew_count > 1


@pytest.mark.parametrize("count", [1, 2000])
def test_first_machine_is_in_use(count: int) -> None:
    fleet = make_fleet("http://127.0.0.1:1", [], count)
    assert fleet.simulators[0].machine.mode == "on"

"""Tests of client.machine: physics within bounds, and obedience."""

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from brewos_relay.client.machine import AMBIENT_C, Machine

commands = st.one_of(
    st.fixed_dictionaries(
        {
            "cmd": st.just("set_mode"),
            "mode": st.sampled_from(
                ["on", "ready", "brew", "steam", "off", "standby", "idle", "eco", "x", None]
            ),
        },
        optional={"strategy": st.one_of(st.integers(-1, 4), st.booleans(), st.text(max_size=2))},
    ),
    st.fixed_dictionaries(
        {"cmd": st.just("set_temp")},
        optional={
            "boiler": st.sampled_from(["brew", "steam", "tea", ["brew"], None]),
            "temp": st.one_of(
                st.floats(40, 160), st.floats(), st.integers(), st.booleans(), st.text(max_size=3), st.none()
            ),
        },
    ),
    st.dictionaries(st.sampled_from(["cmd", "mode"]), st.one_of(st.text(), st.integers(), st.none())),
)


def make_machine() -> Machine:
    return Machine(device_id="BRW-00000001", now_ms=lambda: 1_700_000_000_000)


def make_ready() -> Machine:
    machine = make_machine()
    machine.obey({"cmd": "set_mode", "mode": "on"})
    machine.step(1200)
    assert machine.state == "ready"
    return machine


@settings(max_examples=50, deadline=None)
@given(st.lists(st.tuples(commands, st.floats(0, 300), st.booleans()), max_size=8))
def test_stays_within_bounds_whatever_it_is_told(story: list[tuple[dict[str, Any], float, bool]]) -> None:
    machine = make_machine()
    for command, dt_s, shot in story:
        outcome = machine.obey(command)
        assert 0 < len(outcome.text) <= 255
        if shot:
            machine.pull_shot()
        machine.step(dt_s)
        assert AMBIENT_C - 1 <= machine.brew.temp_c <= 105.5
        assert AMBIENT_C - 1 <= machine.steam.temp_c <= 160.5
        status = machine.status()
        assert AMBIENT_C - 1 <= status["temps"]["group"] <= machine.brew.limit_c
        assert 0 <= status["pressure"] <= 16
        assert 0 <= status["power"]["current"] <= 2600
        assert 220 <= status["power"]["voltage"] <= 240
        assert 50 <= status["temps"]["brew"]["setpoint"] <= 150
        assert status["machine"]["mode"] in ("on", "eco", "standby")


@settings(max_examples=25, deadline=None)
@given(temp_c=st.floats(60, 104), strategy=st.integers(0, 3))
def test_reaches_its_setpoint_and_holds_it(temp_c: float, strategy: int) -> None:
    machine = make_machine()
    machine.obey({"cmd": "set_temp", "temp": temp_c})
    machine.obey({"cmd": "set_mode", "mode": "on", "strategy": strategy})
    assert machine.status()["machine"]["state"] == "heating"
    machine.step(900)
    for _ in range(10):
        machine.step(10)
        assert machine.state == "ready"
        assert machine.brew.temp_c == pytest.approx(temp_c, abs=0.4)


def test_heats_and_cools_at_the_pace_of_a_real_one() -> None:
    machine = make_machine()
    machine.obey({"cmd": "set_mode", "mode": "on"})
    machine.step(60)
    assert 0.25 <= (machine.brew.temp_c - AMBIENT_C) / 60 <= 0.4
    assert 0.25 <= (machine.steam.temp_c - AMBIENT_C) / 60 <= 0.4
    assert machine.status()["power"]["current"] > 2400
    assert machine.status()["machine"]["isHeating"] is True
    machine.step(1140)
    assert machine.steam.temp_c == pytest.approx(140, abs=0.5)
    assert 50 <= machine.status()["power"]["current"] <= 400
    machine.obey({"cmd": "set_mode", "mode": "off"})
    machine.step(60)
    assert 0.5 <= 93 - machine.brew.temp_c <= 1.6
    assert machine.status()["power"]["current"] < 50


def test_the_length_of_the_steps_hardly_matters() -> None:
    coarse, fine = make_machine(), make_machine()
    for machine in (coarse, fine):
        machine.obey({"cmd": "set_mode", "mode": "on"})
    coarse.step(100)
    for _ in range(1000):
        fine.step(0.1)
    assert coarse.brew.temp_c == pytest.approx(fine.brew.temp_c, abs=0.5)


def test_is_the_same_again_with_the_same_seed() -> None:
    assert make_ready().status() == make_ready().status()


@pytest.mark.parametrize("mode", ["on", "ready", "brew", "steam"])
@pytest.mark.parametrize("off", ["off", "standby", "idle"])
def test_is_switched_on_and_off(mode: str, off: str) -> None:
    machine = make_machine()
    assert machine.mode == "standby"
    assert "machineOnTimestamp" not in machine.status()["machine"]
    assert machine.obey({"cmd": "set_mode", "mode": mode}).level == "info"
    assert machine.mode == "on"
    assert machine.status()["machine"]["machineOnTimestamp"] == 1_700_000_000_000
    assert machine.obey({"cmd": "set_mode", "mode": off}).level == "info"
    assert (machine.mode, machine.state) == ("standby", "idle")


def test_eco_holds_less_and_leaves_steam_cold() -> None:
    machine = make_ready()
    machine.obey({"cmd": "set_mode", "mode": "eco"})
    machine.step(3600)
    assert machine.mode == "eco"
    assert machine.brew.temp_c == pytest.approx(80, abs=0.5)
    assert machine.steam.temp_c < 100
    assert machine.obey({"cmd": "set_mode", "mode": "on"}).level == "info"
    assert machine.state == "heating"


def test_refuses_a_mode_while_it_heats() -> None:
    machine = make_machine()
    machine.obey({"cmd": "set_mode", "mode": "on"})
    outcome = machine.obey({"cmd": "set_mode", "mode": "eco"})
    assert (outcome.level, machine.state) == ("warn", "heating")


def test_a_warm_machine_is_ready_at_once() -> None:
    machine = make_ready()
    machine.obey({"cmd": "set_mode", "mode": "off"})
    machine.obey({"cmd": "set_mode", "mode": "on"})
    assert machine.state == "ready"


@pytest.mark.parametrize(
    "fields",
    [{"temp": 49.9}, {"temp": 151}, {"temp": True}, {"temp": "93"}, {}, {"boiler": "tea", "temp": 93}],
)
def test_refuses_temperatures_that_it_does_not_take(fields: dict[str, Any]) -> None:
    machine = make_machine()
    before = machine.device_info()
    outcome = machine.obey({"cmd": "set_temp", **fields})
    assert (outcome.level, outcome.settings_changed) == ("warn", False)
    assert machine.device_info() == before


def test_a_new_setpoint_shows_everywhere_and_is_gone_for() -> None:
    machine = make_ready()
    outcome = machine.obey({"cmd": "set_temp", "boiler": "brew", "temp": 99})
    assert (outcome.level, outcome.settings_changed) == ("info", True)
    machine.obey({"cmd": "set_temp", "boiler": "steam", "temp": 125})
    assert machine.device_info()["brewSetpoint"] == 99
    assert machine.device_info()["steamSetpoint"] == 125
    machine.step(1)
    assert machine.status()["machine"]["state"] == "heating"
    machine.step(300)
    assert machine.state == "ready"
    assert machine.brew.temp_c == pytest.approx(99, abs=0.4)


def test_steam_waits_for_its_turn() -> None:
    temps = {}
    for strategy in range(4):
        machine = make_machine()
        machine.obey({"cmd": "set_mode", "mode": "on", "strategy": strategy})
        machine.step(150)
        temps[strategy] = machine.steam.temp_c
    assert temps[0] == temps[1] == AMBIENT_C
    assert AMBIENT_C < temps[3] < temps[2]


def test_a_shot() -> None:
    machine = make_ready()
    before_c = machine.brew.temp_c
    assert machine.pull_shot()
    assert not machine.pull_shot()
    machine.step(2)
    assert 2 <= machine.status()["pressure"] <= 4
    machine.step(20)
    status = machine.status()
    assert (machine.state, status["machine"]["isBrewing"], machine.mode) == ("brewing", True, "on")
    assert 8.5 <= status["pressure"] <= 9.5
    assert 15 < status["scale"]["weight"] < 36
    machine.step(5.75)
    assert 0.5 <= before_c - machine.brew.temp_c <= 2
    machine.step(1)
    status = machine.status()
    assert (machine.state, status["cleaning"]["brewCount"]) == ("ready", 1)
    assert status["machine"]["lastShotTimestamp"] == 1_700_000_000_000
    assert machine.stats()["sessionShots"] == 1
    machine.step(1)
    assert machine.status()["pressure"] == 0


def test_switching_off_ends_a_shot() -> None:
    machine = make_ready()
    machine.pull_shot()
    machine.step(10)
    machine.obey({"cmd": "set_mode", "mode": "off"})
    machine.step(30)
    assert (machine.state, machine.brew_count, machine.status()["pressure"]) == ("idle", 0, 0)
    assert not machine.pull_shot()

"""Tests of simulator.model.machine: physics within bounds, and the machine's states."""

import random
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from brewos_relay.simulator.model.command_table import KNOWN, RICH
from brewos_relay.simulator.model.machine import AMBIENT_C, Machine

NOW_MS = 1_700_000_000_000

anything = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.floats(),
    st.text(max_size=5),
    st.lists(st.integers(), max_size=2),
)
field_names = st.sampled_from(
    [
        *(
            "mode",
            "strategy",
            "boiler",
            "temp",
            "enabled",
            "brewTemp",
            "timeout",
            "targetWeight",
            "dose_weight",
        ),
        *("stopOffset", "onTimeMs", "pauseTimeMs", "voltage", "maxCurrent", "id", "days", "hour", "minute"),
        *("action", "name", "minutes", "broker", "port", "topic", "source", "testId", "version", "serverUrl"),
        *(
            "ip",
            "gateway",
            "subnet",
            "staticIp",
            "firstDayOfWeek",
            "utcOffsetMinutes",
            "machineType",
            "connected",
        ),
    ]
)
likely = st.sampled_from(
    ["on", "off", "eco", "steam", "brew", 0, 1, 2, 3, 50.0, 93.5, 120, 150, 230, True, False, "mqtt"]
)
commands = st.one_of(
    st.fixed_dictionaries(
        {"cmd": st.just("set_mode"), "mode": st.sampled_from(["on", "off", "eco"])},
        optional={"strategy": st.integers(-1, 4)},
    ),
    st.builds(
        lambda cmd, fields: {**fields, "cmd": cmd},
        st.sampled_from([*KNOWN, *RICH]),
        st.dictionaries(field_names, likely | anything, max_size=4),
    ),
    st.dictionaries(st.sampled_from(["cmd", "mode"]), anything),
)


def make_machine(*, rich: bool = False, seed: int = 1) -> Machine:
    return Machine(device_id="BRW-00000001", now_ms=lambda: NOW_MS, rng=random.Random(seed), rich=rich)


def make_ready(*, rich: bool = False) -> Machine:
    machine = make_machine(rich=rich)
    machine.execute({"cmd": "set_mode", "mode": "on"})
    machine.step(1200)
    assert machine.state == "ready"
    machine.outgoing.clear()
    return machine


def assert_physical(machine: Machine) -> None:
    assert AMBIENT_C - 1 <= machine.brew.temp_c <= 105.5
    assert AMBIENT_C - 1 <= machine.steam.temp_c <= 162
    for boiler in (machine.brew, machine.steam):
        assert 0 <= boiler.duty <= 1
    status = machine.status()
    assert AMBIENT_C - 1 <= status["temps"]["group"] <= machine.brew.limit_c
    assert 0 <= status["pressure"] <= 16
    assert 0 <= status["power"]["current"] <= 2600
    assert 90 <= status["power"]["voltage"] <= 245
    assert 50 <= status["temps"]["brew"]["setpoint"] <= 150
    assert status["machine"]["mode"] in ("on", "eco", "standby")
    assert 0 <= status["scale"]["weight"] <= 110


@settings(max_examples=60)
@given(st.lists(st.tuples(commands, st.floats(0, 300), st.booleans()), max_size=8), st.booleans())
def test_any_commands_keep_values_within_bounds(
    story: list[tuple[dict[str, Any], float, bool]], rich: bool
) -> None:
    machine = make_machine(rich=rich)
    for command, dt_s, shot in story:
        outcome = machine.execute(command)
        assert 0 < len(outcome.text) <= 255
        if shot:
            machine.pull_shot()
            machine.steam_milk(20)
        machine.step(dt_s)
        assert_physical(machine)
        machine.device_info()
        machine.stats()


@settings(max_examples=25)
@given(
    st.lists(st.sampled_from(["on", "off", "eco", "shot", "steam", "wait"]), max_size=8), st.integers(0, 3)
)
def test_energy_is_conserved(story: list[str], strategy: int) -> None:
    machine = make_machine()
    drawn_j = 0.0
    for event in story:
        if event == "shot":
            machine.pull_shot()
        elif event == "steam":
            machine.steam_milk(20)
        else:
            machine.execute({"cmd": "set_mode", "mode": event, "strategy": strategy})
        for _ in range(800):
            machine.step(0.25)
            drawn_j += machine.power_w * 0.25
    assert machine.energy_kwh * 3.6e6 == pytest.approx(drawn_j, abs=40 * max(1, len(story)))
    for boiler in (machine.brew, machine.steam):
        kept_j = boiler.capacity_j_per_k * (boiler.temp_c - AMBIENT_C) + boiler.element_j
        assert boiler.given_j == pytest.approx(kept_j + boiler.lost_j, abs=0.1)


@settings(max_examples=25)
@given(temp_c=st.floats(60, 101), strategy=st.integers(0, 3))
def test_reaches_its_setpoint_and_holds_it(temp_c: float, strategy: int) -> None:
    machine = make_machine()
    machine.execute({"cmd": "set_temp", "temp": temp_c})
    machine.execute({"cmd": "set_mode", "mode": "on", "strategy": strategy})
    assert machine.status()["machine"]["state"] == "heating"
    machine.step(1200)
    for _ in range(10):
        machine.step(10)
        assert machine.state == "ready"
        assert machine.brew.temp_c == pytest.approx(temp_c, abs=0.7)


def test_heating_and_cooling_rates_are_realistic() -> None:
    machine = make_machine()
    machine.execute({"cmd": "set_mode", "mode": "on"})
    machine.step(90)
    before_c, before_steam_c = machine.brew.temp_c, machine.steam.temp_c
    machine.step(60)
    assert 0.25 <= (machine.brew.temp_c - before_c) / 60 <= 0.4
    assert 0.25 <= (machine.steam.temp_c - before_steam_c) / 60 <= 0.4
    assert machine.status()["power"]["current"] > 2400
    assert machine.status()["machine"]["isHeating"] is True
    machine.step(1140)
    assert machine.steam.temp_c == pytest.approx(140, abs=1.0)
    machine.execute({"cmd": "set_mode", "mode": "off"})
    before_c = machine.brew.temp_c
    machine.step(60)
    assert 0.5 <= before_c - machine.brew.temp_c <= 1.6
    assert machine.status()["power"]["current"] < 50


def test_temperature_overshoots_and_oscillates_slightly() -> None:
    machine = make_machine()
    machine.switch_on()
    highest_c, held, powers = 0.0, [], set()
    for tick in range(2400):
        machine.step(0.5)
        highest_c = max(highest_c, machine.brew.sensor_c)
        if tick > 1400:
            held.append(machine.brew.sensor_c)
            powers.add(machine.status()["power"]["current"])
    assert 93.3 < highest_c < 95.5
    assert 92 < min(held) < max(held) < 93.8
    assert max(held) - min(held) > 0.1
    assert min(powers) >= 5
    assert max(powers) < 700
    assert len(powers) > 30


def test_step_length_has_little_influence() -> None:
    coarse, fine = make_machine(), make_machine()
    for machine in (coarse, fine):
        machine.execute({"cmd": "set_mode", "mode": "on"})
    coarse.step(100)
    for _ in range(1000):
        fine.step(0.1)
    assert coarse.brew.temp_c == pytest.approx(fine.brew.temp_c, abs=0.5)


def test_same_seed_gives_the_same_run() -> None:
    assert make_ready().status() == make_ready().status()


def test_machine_cools_down_when_off() -> None:
    machine = make_ready()
    assert (machine.off, machine.cold) == (False, False)
    machine.switch_off()
    assert (machine.off, machine.cold) == (True, False)
    machine.step(12 * 3600)
    assert machine.cold
    assert machine.brew.temp_c == pytest.approx(AMBIENT_C, abs=0.5)


def test_boilers_stay_within_the_power_limit() -> None:
    for strategy in range(4):
        machine = make_machine()
        machine.execute({"cmd": "set_power", "voltage": 230, "maxCurrent": 7})
        machine.execute({"cmd": "set_mode", "mode": "on", "strategy": strategy})
        for _ in range(1200):
            machine.step(0.5)
            assert machine.power_w <= 7 * 230 + 1e-6
    assert machine.state == "ready"


def test_eco_holds_less_and_leaves_steam_cold() -> None:
    machine = make_ready()
    machine.execute({"cmd": "set_mode", "mode": "eco"})
    machine.step(3600)
    assert machine.mode == "eco"
    assert machine.brew.temp_c == pytest.approx(80, abs=0.7)
    assert machine.steam.temp_c < 105
    assert machine.execute({"cmd": "exit_eco"}).level == "info"
    assert machine.state == "heating"


def test_warm_machine_is_ready_at_once() -> None:
    machine = make_ready()
    machine.execute({"cmd": "set_mode", "mode": "off"})
    machine.execute({"cmd": "set_mode", "mode": "on"})
    assert machine.state == "ready"


def test_new_setpoint_is_reported_and_reached() -> None:
    machine = make_ready()
    machine.execute({"cmd": "set_temp", "boiler": "brew", "temp": 99})
    machine.execute({"cmd": "set_temp", "boiler": "steam", "temp": 125})
    assert machine.device_info()["brewSetpoint"] == 99
    assert machine.device_info()["steamSetpoint"] == 125
    machine.step(1)
    assert machine.status()["machine"]["state"] == "heating"
    machine.step(500)
    assert machine.state == "ready"
    assert machine.brew.temp_c == pytest.approx(99, abs=0.7)


def test_steam_waits_for_its_turn() -> None:
    temps = {}
    for strategy in range(4):
        machine = make_machine()
        machine.execute({"cmd": "set_mode", "mode": "on", "strategy": strategy})
        machine.step(150)
        temps[strategy] = machine.steam.temp_c
    assert temps[0] == temps[1] == pytest.approx(AMBIENT_C)
    assert AMBIENT_C < temps[3] < temps[2]


def test_a_shot() -> None:
    machine = make_ready()
    before_c = machine.brew.sensor_c
    assert machine.pull_shot()
    assert not machine.pull_shot()
    machine.step(2)
    assert 2 <= machine.status()["pressure"] <= 4
    lowest_c, highest_bar, seconds = before_c, 0.0, 2.0
    while machine.shot is not None:
        assert (machine.state, machine.mode) == ("brewing", "on")
        machine.step(0.5)
        seconds += 0.5
        highest_bar = max(highest_bar, machine.status()["pressure"])
    assert 20 <= seconds <= 45
    assert 8.5 <= highest_bar <= 9.6
    for _ in range(80):
        machine.step(0.5)
        lowest_c = min(lowest_c, machine.brew.sensor_c)
    assert 1 <= before_c - lowest_c <= 3
    status = machine.status()
    assert (machine.state, status["cleaning"]["brewCount"]) == ("ready", 1)
    assert status["machine"]["lastShotTimestamp"] == NOW_MS
    assert machine.stats()["sessionShots"] == 1
    assert (status["pressure"], status["scale"]["weight"]) == (0, 0)
    assert [line["message"][:13] for line in machine.outgoing] == ["Brewing start", "Brewing ended"]


def test_shot_stops_at_its_weight() -> None:
    machine = make_ready()
    machine.execute({"cmd": "set_bbw", "targetWeight": 30, "stopOffset": 1})
    machine.pull_shot()
    heaviest_g = 0.0
    for _ in range(120):
        machine.step(0.5)
        heaviest_g = max(heaviest_g, machine.water.weight_g)
    assert 29 <= heaviest_g <= 32


def test_switching_off_ends_a_shot() -> None:
    machine = make_ready()
    machine.pull_shot()
    machine.step(10)
    machine.execute({"cmd": "set_mode", "mode": "off"})
    machine.step(30)
    assert (machine.state, machine.status()["pressure"]) == ("idle", 0)
    assert not machine.pull_shot()


def test_steaming_takes_heat_out_of_the_steam_boiler() -> None:
    machine = make_ready()
    before_c = machine.steam.temp_c
    machine.steam_milk(20)
    machine.step(20)
    assert 1 < before_c - machine.steam.temp_c < 10


def test_shots_empty_the_tank() -> None:
    machine = make_ready()
    machine.water.tank_ml = 100
    machine.pull_shot()
    machine.step(60)
    assert machine.status()["water"]["tankLevel"] == "empty"
    assert not machine.pull_shot()
    machine.water.tank_ml = 2000
    assert machine.status()["water"]["tankLevel"] == "ok"


def test_only_a_rich_machine_sends_shot_events() -> None:
    plain, rich = make_ready(), make_ready(rich=True)
    for machine in (plain, rich):
        machine.pull_shot()
        machine.step(10)
    assert "shot" not in plain.status()
    assert {outgoing["type"] for outgoing in plain.outgoing} == {"log"}
    assert rich.status()["shot"]["active"] is True
    assert [outgoing["event"] for outgoing in rich.outgoing if outgoing["type"] == "event"] == ["shot_start"]


def test_schedules_switch_the_machine() -> None:
    machine = make_machine()
    machine.execute(
        {"cmd": "add_schedule", "hour": 22, "minute": 14, "action": "on", "strategy": 1}
    )  # it is 22:13:20
    machine.execute({"cmd": "add_schedule", "hour": 22, "minute": 16, "action": "off"})
    machine.step(30)
    assert machine.state == "idle"
    machine.step(30)
    assert (machine.state, machine.strategy) == ("heating", 1)
    machine.step(120)
    assert machine.state == "idle"


def test_long_step_while_off_misses_no_schedule() -> None:
    machine = make_machine()
    machine.execute({"cmd": "add_schedule", "hour": 3, "minute": 0})
    machine.step(5 * 3600)
    assert machine.mode == "on"


def test_eco_and_auto_off_start_automatically() -> None:
    machine = make_ready()
    machine.execute({"cmd": "set_eco", "timeout": 1})
    machine.step(120)
    assert machine.mode == "eco"
    machine.execute({"cmd": "set_auto_off", "minutes": 30})
    machine.step(1800)
    assert machine.mode == "standby"
    assert "Switched off" in machine.outgoing[-1]["message"]


def test_pending_messages_are_bounded() -> None:
    machine = make_machine(rich=True)
    for number in range(500):
        machine.say("info", str(number))
        machine.tell({"type": "event"})
    assert len(machine.outgoing) <= 40

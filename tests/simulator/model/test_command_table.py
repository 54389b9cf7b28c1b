"""Tests of the commands in simulator.model: each command, its ranges and its answers."""

import random
from typing import Any

import pytest

from brewos_relay.simulator.model.command_table import KNOWN
from brewos_relay.simulator.model.machine import Machine

NOW_MS = 1_700_000_000_000


def make_machine(*, rich: bool = False) -> Machine:
    return Machine(device_id="BRW-00000001", now_ms=lambda: NOW_MS, rng=random.Random(1), rich=rich)


def execute(machine: Machine, cmd: str, **fields: Any) -> Any:
    return machine.execute({"cmd": cmd, **fields})


@pytest.mark.parametrize("mode", ["on", "ready", "brew", "steam"])
@pytest.mark.parametrize("off", ["off", "standby", "idle"])
def test_set_mode_switches_on_and_off(mode: str, off: str) -> None:
    machine = make_machine()
    assert machine.mode == "standby"
    assert "machineOnTimestamp" not in machine.status()["machine"]
    assert execute(machine, "set_mode", mode=mode).level == "info"
    assert machine.mode == "on"
    assert machine.status()["machine"]["machineOnTimestamp"] == NOW_MS
    assert execute(machine, "set_mode", mode=off).level == "info"
    assert (machine.mode, machine.state) == ("standby", "idle")


def test_strategy_applies_only_to_on() -> None:
    machine = make_machine()
    assert execute(machine, "set_mode", mode="on", strategy=3).settings_changed
    assert machine.strategy == 3
    assert machine.device_info()["preferences"]["lastHeatingStrategy"] == 3
    machine.switch_off()
    execute(machine, "set_mode", mode="brew", strategy=1)
    machine.switch_off()
    execute(machine, "set_mode", mode="on", strategy=True)
    assert machine.strategy == 3


def test_mode_is_refused_while_heating() -> None:
    machine = make_machine()
    execute(machine, "set_mode", mode="on")
    for cmd, fields in (("set_mode", {"mode": "eco"}), ("set_mode", {"mode": "on"}), ("enter_eco", {})):
        outcome = execute(machine, cmd, **fields)
        assert (outcome.level, machine.state) == ("warn", "heating")


REFUSED: list[tuple[str, dict[str, Any]]] = [
    ("set_mode", {"mode": "x"}),
    ("set_mode", {}),
    ("set_temp", {"temp": 49.9}),
    ("set_temp", {"temp": 151}),
    ("set_temp", {"temp": True}),
    ("set_temp", {"temp": "93"}),
    ("set_temp", {"temp": float("nan")}),
    ("set_temp", {"temp": 10**400}),
    ("set_temp", {}),
    ("set_temp", {"boiler": "tea", "temp": 93}),
    ("set_eco", {"brewTemp": 121}),
    ("set_eco", {"timeout": 0}),
    ("set_eco", {"timeout": 1441}),
    ("set_eco", {"timeout": 1.5}),
    ("exit_eco", {}),
    ("set_bbw", {"targetWeight": 9}),
    ("set_bbw", {"dose_weight": 31}),
    ("set_bbw", {"stopOffset": 11}),
    ("set_bbw", {"autoTare": 1}),
    ("set_preinfusion", {"onTimeMs": 10_001}),
    ("set_preinfusion", {"pauseTimeMs": 30_001}),
    ("set_power", {"voltage": 99}),
    ("set_power_config", {"maxCurrent": 31}),
    ("update_schedule", {"id": 9}),
    ("delete_schedule", {}),
    ("add_schedule", {"hour": 24}),
    ("add_schedule", {"days": 128}),
    ("add_schedule", {"action": "brew"}),
    ("set_auto_off", {"minutes": 0}),
    ("mqtt_config", {"port": 0}),
    ("configure_power_meter", {"source": "usb"}),
    ("set_machine_info", {"machineType": "kettle"}),
    ("set_preferences", {"firstDayOfWeek": "doomsday"}),
    ("set_time_config", {"utcOffsetMinutes": 900}),
    ("run_diagnostic_test", {"testId": 7}),
    ("ota_start", {"version": ""}),
    ("wifi_config", {"staticIp": True, "ip": "here"}),
    ("scale_connect", {}),
]


@pytest.mark.parametrize(("cmd", "fields"), REFUSED)
def test_invalid_fields_are_refused(cmd: str, fields: dict[str, Any]) -> None:
    machine = make_machine()
    before = machine.device_info()
    outcome = execute(machine, cmd, **fields)
    assert (outcome.level, outcome.settings_changed, outcome.answers) == ("warn", False, ())
    assert 0 < len(outcome.text) <= 255
    assert machine.device_info() == before


SETTINGS: list[tuple[str, dict[str, Any], dict[str, Any]]] = [
    ("set_temp", {"temp": 95.5}, {"brewSetpoint": 95.5}),
    ("set_temp", {"boiler": "steam", "temp": 130}, {"steamSetpoint": 130.0}),
    ("set_eco", {"brewTemp": 70, "timeout": 45}, {"ecoBrewTemp": 70.0, "ecoTimeoutMinutes": 45}),
    ("set_eco", {}, {"ecoBrewTemp": 80.0, "ecoTimeoutMinutes": 30}),
    (
        "set_preinfusion",
        {},
        {"preinfusionEnabled": False, "preinfusionOnMs": 3000, "preinfusionPauseMs": 5000},
    ),
    ("set_preinfusion", {"enabled": True, "onTimeMs": 0}, {"preinfusionEnabled": True, "preinfusionOnMs": 0}),
    ("set_power", {"voltage": 110, "maxCurrent": 20}, {"mainsVoltage": 110, "maxCurrent": 20.0}),
    ("set_device_info", {"name": "Mine", "machineBrand": "B"}, {"deviceName": "Mine", "machineBrand": "B"}),
    ("set_machine_info", {"model": "M", "machineType": "heat_exchanger"}, {"machineModel": "M"}),
]


@pytest.mark.parametrize(("cmd", "fields", "expected"), SETTINGS)
def test_settings_show_in_device_info(cmd: str, fields: dict[str, Any], expected: dict[str, Any]) -> None:
    machine = make_machine()
    outcome = execute(machine, cmd, **fields)
    assert (outcome.level, outcome.settings_changed) == ("info", True)
    info = machine.device_info()
    assert {key: info[key] for key in expected} == expected


def test_omitted_preferences_and_time_settings_keep_their_values() -> None:
    machine = make_machine()
    assert execute(machine, "set_preferences", currency="USD", use24HourTime=False).settings_changed
    execute(machine, "set_preferences", firstDayOfWeek=0)
    preferences = machine.device_info()["preferences"]
    assert (preferences["currency"], preferences["use24HourTime"]) == ("USD", False)
    assert (preferences["firstDayOfWeek"], preferences["temperatureUnit"]) == (0, "celsius")
    execute(machine, "set_time_config", utcOffsetMinutes=-300, dstEnabled=True, dstOffsetMinutes=60)
    assert machine.configuration.utc_offset_s == -4 * 3600
    (answer,) = execute(machine, "get_time_status").answers
    assert (answer["type"], answer["timezone"], answer["utcOffset"]) == ("time_status", "UTC-04:00", -14_400)
    assert answer["currentTime"] == "2023-11-14 18:13:20"
    assert execute(machine, "sync_time").answers[0]["type"] == "time_status"


def test_schedules() -> None:
    machine = make_machine()
    for hour in range(10):
        assert execute(machine, "add_schedule", hour=hour, name="x" * 30).level == "info"
    assert execute(machine, "add_schedule", hour=3).level == "warn"
    schedules = machine.device_info()["schedule"]["schedules"]
    assert [schedule["id"] for schedule in schedules] == list(range(1, 11))
    assert len(schedules[0]["name"]) == 23
    assert execute(machine, "update_schedule", id=2, minute=30, action="off").settings_changed
    assert execute(machine, "toggle_schedule", id=3, enabled=False).settings_changed
    assert execute(machine, "delete_schedule", id=1).settings_changed
    assert execute(machine, "get_schedules").settings_changed
    changed, toggled = machine.configuration.schedules[:2]
    assert (changed.hour, changed.minute, changed.action, toggled.enabled) == (1, 30, "off", False)
    execute(machine, "add_schedule")
    assert machine.configuration.schedules[-1].id == 1
    before = machine.configuration.schedules[0].as_dict()
    assert execute(machine, "update_schedule", id=2, hour=5, minute=99).level == "warn"
    assert machine.configuration.schedules[0].as_dict() == before


def answered(machine: Machine, cmd: str, **fields: Any) -> list[str]:
    outcome = execute(machine, cmd, **fields)
    assert outcome.level == "info", outcome.text
    return [answer["type"] for answer in outcome.answers]


def test_each_command_has_its_answers() -> None:
    machine = make_machine()
    assert answered(machine, "set_bbw", target_weight=40, auto_stop=False) == ["bbw_settings"]
    assert machine.configuration.bbw_settings()["targetWeight"] == 40
    assert machine.configuration.bbw_enabled is False
    assert answered(machine, "mqtt_test", broker="home") == ["mqtt_test_result"]
    assert answered(machine, "mqtt_config", enabled=True, broker="home", topic="t") == ["mqtt_status"]
    assert machine.status()["mqtt"] == {"enabled": True, "connected": True, "broker": "home", "topic": "t"}
    assert answered(machine, "test_power_meter") == ["power_meter_test_result"]
    assert answered(machine, "set_log_config", debugEnabled=True) == ["log_config"]
    assert execute(machine, "get_log_config").answers[0]["debugEnabled"] is True
    assert answered(machine, "clear_logs") == ["log_config"]
    assert answered(machine, "run_diagnostic_test", testId=1) == ["diagnostics_result"]
    kinds = answered(machine, "run_diagnostics")
    assert (kinds[-1], set(kinds[:-1])) == ("diagnostics_header", {"diagnostics_result"})
    assert execute(machine, "run_diagnostics").busy_s > 2
    for cmd in (
        "tare",
        "scale_tare",
        "scale_reset",
        "scale_scan",
        "scale_scan_stop",
        "check_version_mismatch",
    ):
        assert answered(machine, cmd) == []
    assert execute(machine, "check_update").busy_s > 0
    assert answered(machine, "start_power_meter_discovery") == []


def test_a_power_meter_shows_in_the_status() -> None:
    machine = make_machine()
    assert "meter" not in machine.status()["power"]
    execute(machine, "configure_power_meter", source="mqtt", topic="home/meter")
    assert machine.status()["power"]["meter"]["reading"]["power"] == pytest.approx(machine.power_w, abs=0.1)
    execute(machine, "configure_power_meter", source="none")
    assert "meter" not in machine.status()["power"]


def test_scale_connects_and_disconnects() -> None:
    machine = make_machine()
    execute(machine, "scale_disconnect")
    assert machine.status()["scale"]["connected"] is False
    assert execute(machine, "tare").level == "warn"
    execute(machine, "scale_connect", address="AA:BB:CC:00:11:22")
    assert machine.status()["scale"]["connected"] is True


@pytest.mark.parametrize(
    ("cmd", "fields", "effect"),
    [
        ("restart", {}, "restart"),
        ("factory_reset", {}, "leave"),
        ("wifi_forget", {}, "leave"),
        ("wifi_config", {}, "reconnect"),
        ("set_cloud_config", {"enabled": False}, "leave"),
        ("set_cloud_config", {"serverUrl": "https://elsewhere.example"}, "reconnect"),
        ("ota_start", {"version": "1.0.0"}, "leave"),
    ],
)
def test_commands_that_end_the_connection(cmd: str, fields: dict[str, Any], effect: str) -> None:
    assert execute(make_machine(), cmd, **fields).effect == effect


def test_update_of_a_rich_machine_succeeds() -> None:
    machine = make_machine(rich=True)
    outcome = execute(machine, "esp32_ota_start", version="9.9.9")
    assert outcome.effect == "restart"
    assert outcome.rich_answers[-1]["stage"] == "complete"
    assert machine.device_info()["firmwareVersion"] == "9.9.9"


def test_static_address_is_reported() -> None:
    machine = make_machine()
    execute(machine, "wifi_config", staticIp=True, ip="10.0.0.9", gateway="10.0.0.1", subnet="255.0.0.0")
    assert machine.status()["wifi"]["ip"] == "10.0.0.9"


def test_factory_reset_restores_the_defaults() -> None:
    machine = make_machine()
    execute(machine, "set_machine_info", name="Mine")
    execute(machine, "set_temp", temp=99)
    execute(machine, "factory_reset")
    assert machine.device_info() == make_machine().device_info()


def test_only_a_rich_machine_obeys_brew_start() -> None:
    assert execute(make_machine(), "brew_start").text.startswith("Unknown command")
    machine = make_machine(rich=True)
    assert execute(machine, "brew_start").level == "warn"
    assert execute(machine, "brew_stop").level == "warn"
    machine.switch_on()
    machine.step(600)
    assert execute(machine, "brew_start").level == "info"
    assert machine.state == "brewing"
    assert execute(machine, "brew_stop").level == "info"
    assert machine.mode == "on"
    assert machine.shot is None
    execute(machine, "set_scale_connected", connected=False)
    assert machine.water.scale_connected is False


@pytest.mark.parametrize("cmd", [None, 7, ["set_mode"], {}, "", "make_tea", "x" * 500, 10**400])
def test_unknown_command_is_refused(cmd: Any) -> None:
    outcome = make_machine().execute({"cmd": cmd})
    assert outcome.level == "warn"
    assert outcome.text.startswith("Unknown command")
    assert len(outcome.text) <= 100


def test_every_command_logs_a_line() -> None:
    for cmd in KNOWN:
        assert execute(make_machine(), cmd).text

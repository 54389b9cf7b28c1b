"""The usage of a machine, summed up from its states."""

import json
from dataclasses import replace
from typing import Any

import msgspec
import pytest

from brewos_relay.registry.records import Usage
from brewos_relay.server.usage_meter import RENEWED_S, Reading, UsageMeter, read_usage

DEVICE = "BRW-0000001A"
ON = Reading(is_on=True)
HOT = Reading(is_on=True, steam_c=140.0, steam_target_c=140.0)


def meter() -> UsageMeter:
    return UsageMeter(0.0, now_ms=1000, day=7, offset_s=0)


def usage(of: UsageMeter, **options: Any) -> Usage:
    found = of.take(DEVICE, now_ms=2000, **options)
    assert found is not None
    return found


@pytest.mark.parametrize("encode", [json.dumps, msgspec.msgpack.encode])
def test_groups_are_read_in_both_encodings(encode: Any) -> None:
    groups = {
        "machine": {"mode": "on", "state": "brewing"},
        "power": {"current": 1200, "todayKwh": 0.25},
        "temps": {"steam": {"current": 139.5, "setpoint": 140}},
    }
    raw = {name: encode(group) for name, group in groups.items()}
    fields = {name: value.encode() if isinstance(value, str) else value for name, value in raw.items()}
    assert read_usage(fields) == Reading(
        is_on=True, is_brewing=True, watts=1200.0, today_kwh=0.25, steam_c=139.5, steam_target_c=140.0
    )


def test_flat_state_of_old_firmware_is_read() -> None:
    assert read_usage({"mode": b'"eco"', "power": b"900"}) == Reading(is_on=True, watts=900.0)


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"machine": b'{"mode":7,"state":[]}', "power": b'{"current":-1,"todayKwh":1e308}', "temps": b"[1]"},
        {"machine": b"{", "power": b'{"current":true,"todayKwh":"2"}', "temps": b'{"steam":{"current":1e9}}'},
        {"machine": b"\xc1", "power": b"[" * 100_000, "mode": b'"standby"', "state": b"\xd9"},
    ],
)
def test_odd_values_are_unknown(fields: dict[str, bytes]) -> None:
    assert read_usage(fields) == Reading()


def test_time_counts_while_the_machine_is_on() -> None:
    one = meter()
    one.add(ON, 0.0)
    one.add(ON, 15.0)
    one.add(Reading(), 30.0)
    one.add(ON, 300.0)
    one.add(ON, 5000.0)  # the states between were missed: no more than 45 s count
    found = usage(one)
    assert (found.on_s, found.day, found.began_at_ms, found.at_ms) == (75, 7, 1000, 2000)
    assert one.take(DEVICE, now_ms=3000, is_last=True) is None


def test_energy_is_by_the_counter_of_the_machine_once_it_is_certain() -> None:
    one = meter()
    stale = Reading(today_kwh=2.0, watts=1000.0)  # from before an absence
    one.add(stale, 0.0)
    one.add(stale, RENEWED_S - 1)
    assert one.take(DEVICE, now_ms=2000, is_last=True) is None
    one.add(replace(stale, today_kwh=0.1), RENEWED_S - 1)
    assert usage(one).counter_mwh == 100_000
    one.add(replace(stale, today_kwh=0.105), RENEWED_S + 10)
    assert one.take(DEVICE, now_ms=2000) is None, "too little for a row"
    assert usage(one, is_last=True).counter_mwh == 105_000
    still = meter()
    still.add(stale, 0.0)
    still.add(stale, RENEWED_S)
    assert (usage(still).counter_mwh, usage(meter_with_watts()).counter_mwh) == (2_000_000, None)


def meter_with_watts() -> UsageMeter:
    one = meter()
    for second in range(0, 60, 15):
        one.add(Reading(watts=1200.0), second)
    return one


def test_energy_without_a_counter_is_by_the_power() -> None:
    assert usage(meter_with_watts()).energy_mwh == 15_000  # 1200 W for 45 s
    little = meter()
    little.add(Reading(watts=60.0), 0.0)
    little.add(Reading(watts=60.0), 15.0)
    assert little.take(DEVICE, now_ms=2000) is None
    assert usage(little, is_last=True).energy_mwh == 250


def test_steam_counts_once_until_the_boiler_is_hot_again() -> None:
    one = meter()
    temperatures = [20, 100, 134, 139, 140, 136, 134, 128, 131, 137, 139, 140, 133, 140, 138, 136, 139]
    for number, steam_c in enumerate(temperatures):
        one.add(replace(HOT, steam_c=float(steam_c)), number * 15.0)
    assert usage(one).steam_cycles == 2


@pytest.mark.parametrize(
    "later",
    [
        [replace(HOT, steam_c=130.0, steam_target_c=150.0)],  # another target
        [replace(HOT, steam_c=130.0, is_on=False)],  # switched off: it cools down
        [replace(HOT, steam_c=138.0, is_brewing=True), replace(HOT, steam_c=130.0)],
        [replace(HOT, steam_c=None), replace(HOT, steam_c=130.0)],
    ],
)
def test_other_falls_of_the_temperature_are_no_steam(later: list[Reading]) -> None:
    one = meter()
    for number, reading in enumerate([HOT, HOT, *later]):
        one.add(reading, number * 15.0)
    assert usage(one).steam_cycles == 0

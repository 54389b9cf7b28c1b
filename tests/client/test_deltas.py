"""Tests of client.deltas: which message is sent for a state, and the size that it saves."""

import math
from typing import Any

import msgspec
import pytest

from brewos_relay.client.deltas import FULL_ONLY, THRESHOLDS, Deltas


def make_state(**groups: Any) -> dict[str, Any]:
    return {
        "machine": {"state": "ready", "mode": "on", "isHeating": False},
        "temps": {
            "brew": {"current": 93.0, "setpoint": 93.0},
            "steam": {"current": 140.0, "setpoint": 140.0},
            "group": 88.0,
        },
        "pressure": 0.0,
        "power": {"current": 100.0, "voltage": 230.0, "todayKwh": 1.0, "totalKwh": 9.0, "maxCurrent": 15.0},
        "cleaning": {"brewCount": 3, "reminderDue": False},
        "scale": {"connected": True, "weight": 0.0, "flowRate": 0.0, "bbw": {"targetWeight": 36.0}},
        "wifi": {"connected": True, "rssi": -58},
        "esp32": {"freeHeap": 90_000, "uptime": 1},
        **groups,
    }


def begun(**options: Any) -> Deltas:
    deltas = Deltas(**options)
    assert deltas.next(make_state(), now_s=0) == {"type": "status", "seq": 1, **make_state()}
    return deltas


@pytest.mark.parametrize(
    ("path", "least"),
    [
        ("temps.brew.current", 0.5),
        ("temps.steam.current", 0.5),
        ("temps.group", 0.5),
        ("pressure", 0.1),
        ("power.current", 10.0),
        ("scale.weight", 0.5),
        ("scale.flowRate", 0.1),
        ("wifi.rssi", 10.0),
    ],
)
@pytest.mark.parametrize("sign", [1, -1])
def test_numbers_are_sent_above_their_threshold(path: str, least: float, sign: int) -> None:
    def changed_by(change: float) -> dict[str, Any]:
        state = make_state()
        group: Any = state
        *groups, last = path.split(".")
        for key in groups:
            group = group[key]
        group[last] += sign * change
        return state

    deltas = begun()
    assert deltas.next(changed_by(least * 0.99), now_s=1) is None
    report = deltas.next(changed_by(least), now_s=2)
    assert report is not None
    assert (report["type"], report["seq"], set(report)) == (
        "status_delta",
        2,
        {"type", "seq", path.split(".")[0]},
    )
    assert deltas.next(changed_by(least), now_s=3) is None


def test_rounding_errors_do_not_lower_a_change() -> None:
    deltas = Deltas()
    deltas.next(make_state(pressure=9.0), now_s=0)
    assert 9.1 - 9.0 < 0.1
    assert deltas.next(make_state(pressure=9.1), now_s=1) == {
        "type": "status_delta",
        "seq": 2,
        "pressure": 9.1,
    }


def test_small_changes_accumulate() -> None:
    deltas = begun()
    assert deltas.next(make_state(pressure=0.06), now_s=1) is None
    assert deltas.next(make_state(pressure=0.12), now_s=2) is not None
    assert deltas.next(make_state(pressure=0.06), now_s=3) is None


def test_other_values_are_sent_at_any_change_with_their_group() -> None:
    deltas = begun()
    cleaning = {"brewCount": 4, "reminderDue": False}
    assert deltas.next(make_state(cleaning=cleaning), now_s=1) == {
        "type": "status_delta",
        "seq": 2,
        "cleaning": cleaning,
    }
    machine = {"state": "ready", "mode": "on", "isHeating": True}
    report = deltas.next(make_state(cleaning=cleaning, machine=machine, tank=["low"]), now_s=2)
    assert report == {"type": "status_delta", "seq": 3, "machine": machine, "tank": ["low"]}


def test_delta_omits_fields_of_full_statuses() -> None:
    deltas = begun()
    power = {"current": 1400.0, "voltage": 228.0, "todayKwh": 1.1, "totalKwh": 9.1, "maxCurrent": 15.0}
    scale = {"connected": True, "weight": 20.0, "flowRate": 2.0, "bbw": {"targetWeight": 40.0}}
    report = deltas.next(make_state(power=power, scale=scale, esp32={"freeHeap": 1}), now_s=1)
    assert report == {
        "type": "status_delta",
        "seq": 2,
        "power": {"current": 1400.0, "voltage": 228.0},
        "scale": {"connected": True, "weight": 20.0, "flowRate": 2.0},
    }
    quiet = begun()
    assert quiet.next(make_state(scale=make_state()["scale"] | {"bbw": {}}), now_s=1) is None
    assert quiet.next(make_state(power=make_state()["power"] | {"voltage": 100.0}), now_s=1) is None


def test_change_of_machine_state_sends_a_full_status() -> None:
    deltas = begun()
    state = make_state(machine={"state": "brewing", "mode": "on", "isHeating": False})
    assert deltas.next(state, now_s=1) == {"type": "status", "seq": 2, **state}


@pytest.mark.parametrize(
    "state",
    [
        {key: value for key, value in make_state().items() if key != "pressure"},
        make_state(temps={"brew": {"current": 93.0}, "steam": {"current": 140.0}, "group": 88.0}),
    ],
)
def test_removed_field_sends_a_full_status(state: dict[str, Any]) -> None:
    report = begun().next(state, now_s=1)
    assert report == {"type": "status", "seq": 2, **state}


def test_field_of_full_statuses_may_appear_and_disappear() -> None:
    state = make_state()
    del state["esp32"], state["scale"]["bbw"]
    assert begun().next(state, now_s=1) is None


def test_full_status_every_5_min_contains_occasional_groups() -> None:
    deltas = begun()
    stats = {"stats": {"sessionShots": 3}}
    assert deltas.next(make_state(pressure=5.0), now_s=299, occasional=stats) == {
        "type": "status_delta",
        "seq": 2,
        "pressure": 5.0,
    }
    assert deltas.next(make_state(pressure=5.0), now_s=300, occasional=stats) == {
        "type": "status",
        "seq": 3,
        **make_state(pressure=5.0),
        **stats,
    }
    assert deltas.next(make_state(pressure=5.0), now_s=301, occasional=stats) is None
    report = deltas.next(make_state(pressure=5.0), now_s=600)
    assert report is not None
    assert (report["type"], "stats" in report) == ("status", False)


def test_unchanged_state_sends_keepalives() -> None:
    deltas = begun()
    assert deltas.next(make_state(), now_s=29.9) is None
    assert deltas.next(make_state(), now_s=30) == {"type": "keepalive", "seq": 2}
    assert deltas.next(make_state(), now_s=59.9) is None
    assert deltas.next(make_state(), now_s=60) == {"type": "keepalive", "seq": 3}


def test_begin_makes_the_next_message_full_and_continues_seq() -> None:
    deltas = begun()
    deltas.begin()
    assert deltas.next(make_state(), now_s=1) == {"type": "status", "seq": 2, **make_state()}


def test_thresholds_and_times_are_configurable() -> None:
    deltas = begun(
        thresholds={**THRESHOLDS, "pressure": 2.0, "cleaning.brewCount": math.inf},
        full_only={*FULL_ONLY, "wifi"},
        full_when_changed=(),
        full_every_s=60,
        keepalive_s=5,
    )
    changed = make_state(pressure=1.9, cleaning={"brewCount": 9, "reminderDue": False}, wifi={"rssi": -99})
    assert deltas.next(changed, now_s=1) is None
    machine = {"state": "idle", "mode": "on", "isHeating": False}
    report = deltas.next(make_state(machine=machine), now_s=2)
    assert report == {"type": "status_delta", "seq": 2, "machine": machine}
    assert deltas.next(make_state(machine=machine), now_s=7) == {"type": "keepalive", "seq": 3}
    report = deltas.next(make_state(machine=machine), now_s=60)
    assert report is not None
    assert report["type"] == "status"


def test_saved_bytes_are_counted() -> None:
    deltas = begun()
    full_bytes = deltas.bytes_sent
    assert full_bytes == len(msgspec.msgpack.encode({"type": "status", "seq": 1, **make_state()}))
    assert deltas.bytes_saved == 0
    deltas.next(make_state(), now_s=1)
    assert deltas.bytes_saved == full_bytes
    delta = deltas.next(make_state(pressure=5.0), now_s=2)
    delta_bytes = len(msgspec.msgpack.encode(delta))
    assert deltas.bytes_sent == full_bytes + delta_bytes
    assert deltas.bytes_saved == 2 * full_bytes - delta_bytes


def test_state_without_the_usual_groups_is_accepted() -> None:
    deltas = Deltas()
    assert deltas.next({"level": 3}, now_s=0) == {"type": "status", "seq": 1, "level": 3}
    assert deltas.next({"level": 3, "on": True}, now_s=1) == {"type": "status_delta", "seq": 2, "on": True}
    assert deltas.next({"level": 3, "on": 1}, now_s=2) is None
    assert deltas.next({"level": {"left": 1}, "on": 1}, now_s=3) == {
        "type": "status_delta",
        "seq": 3,
        "level": {"left": 1},
    }


def test_state_may_be_mutated_by_the_caller() -> None:
    deltas = Deltas()
    state = {"temps": {"brew": {"current": 20.0}}, "alarms": [1]}
    deltas.next(state, now_s=0)
    state["temps"]["brew"]["current"] = 30.0  # type: ignore[index]
    state["alarms"].append(2)  # type: ignore[attr-defined]
    assert deltas.next(state, now_s=1) == {"type": "status_delta", "seq": 2, **state}
    assert deltas.next(state, now_s=2) is None

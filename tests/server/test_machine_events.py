from dataclasses import replace
from typing import Any

import msgspec
import pytest

from brewos_relay.server.machine_events import MachineState, find_events, read_state

HEATING = MachineState(state="heating", brewing=False, water="ok", board=True, cleaning_due=False)


@pytest.mark.parametrize("encode", [msgspec.json.encode, msgspec.msgpack.encode])
def test_state_of_todays_firmware_is_read(encode: Any) -> None:
    fields = {
        "machine": encode({"state": "ready", "mode": "on", "isBrewing": False}),
        "water": encode({"tankLevel": "low"}),
        "pico": encode({"connected": True}),
        "cleaning": encode({"brewCount": 100, "reminderDue": True}),
    }
    assert read_state(fields) == MachineState("ready", False, "low", True, True)


@pytest.mark.parametrize("encode", [msgspec.json.encode, msgspec.msgpack.encode])
def test_state_of_old_firmware_is_read(encode: Any) -> None:
    fields = {"state": encode("heating"), "isBrewing": encode(True), "waterLevel": encode("empty")}
    assert read_state(fields) == MachineState("heating", True, "empty")


@pytest.mark.parametrize(
    "value", [b"", b"{", b"[1]", b"null", b"\xc1", b"\xff", b"7", b'"\xff"', b"[" * 9999]
)
def test_other_content_is_unknown(value: bytes) -> None:
    names = ("machine", "water", "pico", "cleaning", "state", "isBrewing", "waterLevel")
    assert read_state(dict.fromkeys(names, value)) == MachineState()
    inner = msgspec.json.encode({"state": 5, "isBrewing": "yes", "tankLevel": [], "connected": 1})
    assert read_state({"machine": inner, "water": inner, "pico": inner}) == MachineState()


@pytest.mark.parametrize(
    ("changed", "events"),
    [
        ({"state": "ready"}, ["machineReady"]),
        ({"state": "brewing"}, []),
        ({"state": "fault"}, ["machineError"]),
        ({"state": "safe", "board": False}, ["machineError", "picoOffline"]),
        ({"water": "low"}, ["waterEmpty"]),
        ({"water": "empty"}, ["waterEmpty"]),
        ({"board": False}, ["picoOffline"]),
        ({"cleaning_due": True}, ["backflushDue"]),
        ({"state": None, "water": None, "board": None, "cleaning_due": None}, []),
        ({}, []),
    ],
)
def test_changes_and_their_events(changed: dict[str, Any], events: list[str]) -> None:
    after = replace(HEATING, **changed)
    assert find_events(HEATING, after, brewed_s=0) == events
    assert find_events(after, after, brewed_s=0) == []
    # Nothing is known of the time before the first state.
    assert find_events(MachineState(), after, brewed_s=0) == []


@pytest.mark.parametrize(
    ("before", "after"), [("brewing", "ready"), ("fault", "safe"), ("ready", "brewing"), ("ready", "heating")]
)
def test_changes_that_are_no_news(before: str, after: str) -> None:
    assert find_events(MachineState(state=before), MachineState(state=after), brewed_s=0) == []


def test_a_low_tank_that_gets_empty_is_no_second_event() -> None:
    assert find_events(MachineState(water="low"), MachineState(water="empty"), brewed_s=0) == []


@pytest.mark.parametrize(("brewed_s", "events"), [(7.9, []), (8.0, ["brewComplete"])])
def test_shot_is_finished_after_it_flowed_for_a_while(brewed_s: float, events: list[str]) -> None:
    brewing, over = MachineState(state="brewing", brewing=True), MachineState(state="ready", brewing=False)
    assert find_events(brewing, over, brewed_s=brewed_s) == events

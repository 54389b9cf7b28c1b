"""Tests of client.device_state."""

from typing import Any

import pytest

from brewos_relay.client.device_state import STATE_KINDS, DeviceState
from brewos_relay.dialect import BREWOS

STATUS = {"type": "status", "seq": 1, "temps": {"brew": 93.0, "group": 88.0}, "pressure": 9.0}


def after(*messages: dict[str, Any]) -> DeviceState:
    state = DeviceState()
    for message in messages:
        state = state.after(message)
    return state


def test_initial_state_is_empty() -> None:
    state = DeviceState()
    assert (state.online, dict(state.messages), dict(state.status), dict(state.info)) == (False, {}, {}, {})


@pytest.mark.parametrize(
    ("message", "online"),
    [
        ({"type": "connected", "deviceOnline": True}, True),
        ({"type": "connected", "deviceOnline": False}, False),
        ({"type": "connected"}, False),
        ({"type": "device_status", "online": True}, True),
        ({"type": "device_status", "online": False}, False),
        ({"type": "device_online"}, True),
        ({"type": "device_offline"}, False),
    ],
)
def test_online_follows_the_relays_messages(message: dict[str, Any], online: bool) -> None:
    for before in (DeviceState(online=True), DeviceState(online=False)):
        assert before.after(message).online is online


def test_greeting_clears_the_state_and_presence_keeps_it() -> None:
    assert after(STATUS, {"type": "device_offline"}).status == STATUS
    assert after(STATUS, {"type": "device_status", "online": True}).status == STATUS
    assert dict(after(STATUS, {"type": "connected"}).messages) == {}


def test_deltas_are_merged_within_groups() -> None:
    delta = {"type": "status_delta", "seq": 2, "temps": {"group": 89.0}, "pressure": {"now": 8.0}, "new": 1}
    state = after(STATUS, delta)
    assert state.status == {
        "type": "status",
        "seq": 2,
        "temps": {"brew": 93.0, "group": 89.0},
        "pressure": {"now": 8.0},
        "new": 1,
    }
    assert STATUS["temps"] == {"brew": 93.0, "group": 88.0}  # an earlier state does not change


def test_delta_without_a_status_is_ignored() -> None:
    assert dict(after({"type": "status_delta", "pressure": 1.0}).messages) == {}


def test_last_message_of_each_kind_counts() -> None:
    info = {"type": "device_info", "deviceName": "Kitchen"}
    state = after({"type": "device_info"}, info, {"type": "log"}, STATUS)
    assert dict(state.messages) == {"device_info": info, "status": STATUS}
    assert state.info == info


def test_status_of_old_firmware() -> None:
    old = {"type": "pico_status", "brewTemp": 93.0}
    assert after({"type": "esp_status"}, old).status == old


def test_kinds_are_those_of_the_relays_snapshot() -> None:
    assert {"status", *BREWOS.kept} == STATE_KINDS

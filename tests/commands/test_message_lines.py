"""Tests of commands.message_lines."""

from datetime import UTC, datetime
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from brewos_relay.commands.message_lines import describe, format_json, format_line
from brewos_relay.messages import Message
from brewos_relay.simulator.model.machine import Machine
from brewos_relay.texts import is_showable

AT = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)


@pytest.mark.parametrize(
    ("content", "line"),
    [
        (
            {"type": "connected", "deviceId": "BRW-1", "deviceOnline": True},
            "connected     attached to BRW-1; the device is online",
        ),
        (
            {"type": "connected", "deviceId": "BRW-1"},
            "connected     attached to BRW-1; the device is offline",
        ),
        ({"type": "device_online"}, "device_online the device has connected"),
        ({"type": "device_offline"}, "device_offline the device has disconnected"),
        (
            {"type": "device_status", "online": False, "lastSeen": None},
            "device_status the device is offline, last seen never",
        ),
        (
            {"type": "status_delta", "seq": 2, "temps": {"brew": {"current": 92.94, "setpoint": 93.0}}},
            "status_delta  brew 92.9/93.0 °C",
        ),
        (
            {"type": "status_delta", "pressure": 9.04, "scale": {"weight": 20.0}},
            "status_delta  9.0 bar  20.0 g",
        ),
        (
            {"type": "status_delta", "seq": 3, "wifi": {"rssi": -60}},
            'status_delta  {"seq":3,"wifi":{"rssi":-60}}',
        ),
        ({"type": "keepalive", "uptime": 61_000}, "keepalive     up 61 s"),
        ({"type": "keepalive"}, "keepalive"),
        # Integers that no float can represent
        ({"type": "keepalive", "uptime": 10**400}, "keepalive"),
        ({"type": "status", "pressure": 10**400, "scale": {"weight": 20.0}}, "status        20.0 g"),
        ({"type": "log", "level": "info", "message": "Mode\x1b[0m set"}, "log           info: Mode [0m set"),
        (
            {"type": "error", "error": "device_offline", "message": "Gone."},
            "error         device_offline: Gone.",
        ),
        (
            {"type": "device_info", "deviceName": "Mine", "brewSetpoint": 93},
            "device_info   name Mine  brew 93",
        ),
        ({"type": "scan_complete", "n": 1}, 'scan_complete {"n":1}'),
        ({"type": "status", "temps": 7, "power": None, "pressure": True}, None),
        ({}, "None          {}"),
    ],
)
def test_message_is_described_in_one_line(content: dict[str, Any], line: str | None) -> None:
    if line is None:
        assert describe(content).startswith("status")
    else:
        assert describe(content) == line


def test_full_status_shows_its_main_values() -> None:
    machine = Machine(device_id="BRW-00000001", now_ms=lambda: 0)
    line = describe({"type": "status", "seq": 1, **machine.status()})
    assert (
        line
        == "status        idle     brew 22.0/93.0 °C  steam 22.0/140.0 °C  group 22.0 °C  0.0 bar  5 W  0.0 g"
    )


anything = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.binary(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)
kinds = st.sampled_from(
    [
        "connected",
        "device_status",
        "status",
        "status_delta",
        "keepalive",
        "log",
        "error",
        "device_info",
        "other",
    ]
)
keys = st.sampled_from(
    [
        "machine",
        "temps",
        "pressure",
        "power",
        "scale",
        "uptime",
        "level",
        "message",
        "error",
        "deviceId",
        "lastSeen",
        "brewSetpoint",
    ]
)


@given(
    kinds, st.dictionaries(keys, anything | st.fixed_dictionaries({"brew": anything, "current": anything}))
)
def test_any_message_is_one_printable_line(kind: str, content: dict[str, Any]) -> None:
    line = describe({"type": kind, **content})
    assert is_showable(line)
    assert len(line) <= 300


def test_long_messages_are_cut() -> None:
    assert len(describe({"type": "other", "x": "y" * 1000})) < 150


def test_line_begins_with_the_time() -> None:
    assert (
        format_line(Message(b'{"type":"device_online"}'), AT)
        == "03:04:05  device_online the device has connected"
    )
    assert format_line(Message(b"\xc1", is_text=False), AT) == "03:04:05  <Message binary, 1 bytes>"


def test_messagepack_without_json_form_is_one_line() -> None:
    payload = b"\x82\xa4type\xa1x\xa1m\x81\xc4\x01a\x01"  # {"type": "x", "m": {b"a": 1}}
    assert "\n" not in format_json(Message(payload, is_text=False))

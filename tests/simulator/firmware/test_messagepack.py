"""Tests of simulator.firmware.messagepack."""

import struct
from typing import Any

import msgspec
from hypothesis import given
from hypothesis import strategies as st

from brewos_relay.simulator.firmware.messagepack import pack
from support import firmware_wire

values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**31) + 1, 2**31 - 1)
    | st.floats(width=32, allow_nan=False)
    | st.text(),
    lambda inner: st.lists(inner, max_size=20) | st.dictionaries(st.text(max_size=40), inner, max_size=20),
    max_leaves=20,
)


@given(st.dictionaries(st.text(max_size=40), values, max_size=20))
def test_encoding_equals_that_of_the_reference_machine(content: dict[str, Any]) -> None:
    assert pack(content) == firmware_wire.pack(content)


def test_measurements_are_float32_and_times_float64() -> None:
    payload = pack(
        {"type": "status", "t": 93.2, "at": 1_700_000_000_000, "up": 200, "ok": True, "gone": None}
    )
    assert b"\xa1t\xca" + struct.pack(">f", 93.2) in payload
    assert b"\xa2at\xcb" + struct.pack(">d", 1_700_000_000_000) in payload
    assert b"\xa2up\xd1\x00\xc8" in payload  # signed; other encoders use the unsigned \xcc
    assert "gone" not in msgspec.msgpack.decode(payload)
    assert list(msgspec.msgpack.decode(payload)) == ["type", "t", "at", "up", "ok"]

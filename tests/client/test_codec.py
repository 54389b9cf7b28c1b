"""Tests of client.codec."""

from typing import Any

import msgspec
import pytest

from brewos_relay.client.codec import decode, encode_binary
from brewos_relay.messages import Message


def test_single_precision_is_rounded_to_its_digits() -> None:
    content: dict[str, Any] = {
        "type": "status",
        "temps": {"brew": 93.2, "list": [0.1]},
        "at": 1_700_000_000_001,
        "count": 3,
        "ok": True,
    }
    assert decode(encode_binary(content)) == content


def test_double_precision_is_unchanged() -> None:
    assert decode(Message(b'{"type":"x","a":0.30000000000000004,"b":1e300}')) == {
        "type": "x",
        "a": 0.30000000000000004,
        "b": 1e300,
    }


@pytest.mark.parametrize(
    "message",
    [
        Message(b"[]"),
        Message(b"nonsense"),
        Message(b"[" * 100_000),
        Message(b"", is_text=False),
        Message(b"\xc1", is_text=False),
        Message(msgspec.msgpack.encode([1]), is_text=False),
        Message(msgspec.msgpack.encode({1: 2}), is_text=False),
        Message(b"\x91" * 100_000, is_text=False),
    ],
)
def test_message_that_is_not_an_object_is_none(message: Message) -> None:
    assert decode(message) is None


@pytest.mark.parametrize(
    "message",
    [
        Message(rb'{"type":"status","pressure":9.0,"ssid":"\ud800"}'),
        Message(rb'{"type":"status","pressure":9.0,"\udfff":1}'),
        Message(b'{"type":"status","pressure":9.0,"seq":1e999}'),
        *(
            Message(b"\x83\xa4type\xa6status\xa8pressure\xca\x41\x10\x00\x00" + more, is_text=False)
            for more in (
                b"\x01\x02",
                b"\xc4\x01a\x02",
                b"\xc0\x02",
                b"\xa1\xff\x02",
                b"\xa1n\xa1\xff",
                b"\xa1n\x81\x80\x01",
            )
        ),
    ],
)
def test_invalid_field_is_left_out(message: Message) -> None:
    assert decode(message) == {"type": "status", "pressure": 9.0}


@pytest.mark.parametrize("value", [float("inf"), float("-inf")])
def test_infinity_is_decoded(value: float) -> None:
    assert decode(Message(msgspec.msgpack.encode({"a": value}), is_text=False)) == {"a": value}

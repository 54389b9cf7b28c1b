"""Tests of client.app: what is decoded, and how the upgrade is asked for."""

from typing import Any

import msgspec
import pytest
import trio

from brewos_relay.client.app import decode, open_app
from brewos_relay.client.reports import encode_binary
from brewos_relay.messages import Message
from support.websocket_server import open_websocket_server


async def test_asks_for_its_device_with_its_token() -> None:
    with trio.fail_after(10):
        async with open_websocket_server() as (url, accepted):
            async with open_app(url, token="a b&c", device_id="BRW-0000ABCD"):
                server = await accepted.receive()
            assert server.path == "/ws/client?token=a+b%26c&device=BRW-0000ABCD"


def test_numbers_come_back_as_they_were_meant() -> None:
    content: dict[str, Any] = {
        "type": "status",
        "temps": {"brew": 93.2, "list": [0.1]},
        "at": 1_700_000_000_001,
        "count": 3,
        "ok": True,
    }
    assert decode(encode_binary(content)) == content


def test_double_precision_stays() -> None:
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
def test_what_is_no_object_is_nothing(message: Message) -> None:
    assert decode(message) is None


@pytest.mark.parametrize("value", [float("inf"), float("-inf")])
def test_infinity_does_no_harm(value: float) -> None:
    assert decode(Message(msgspec.msgpack.encode({"a": value}), is_text=False)) == {"a": value}

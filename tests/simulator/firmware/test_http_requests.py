"""Tests of simulator.firmware.http_requests."""

import pytest

from brewos_relay.simulator.firmware.http_requests import (
    accepted,
    parse_head,
    register_request,
    upgrade_request,
    websocket_key,
)
from support import firmware_wire
from support.wire_client import accept_value

KEY = "dGhlIHNhbXBsZSBub25jZQ=="


def test_upgrade_request_equals_that_of_the_reference_machine() -> None:
    assert upgrade_request(
        device_id="BRW-1", key="k", host="cloud.example:443", websocket_key=KEY
    ) == firmware_wire.upgrade_request("BRW-1", "k", port=443, websocket_key=KEY)
    assert len(websocket_key(bytes(16))) == 24


def test_registration_has_six_writes() -> None:
    writes = register_request(device_id="BRW-1", key="k" * 43, token="t" * 32, host="cloud.example")
    assert len(writes) == 6
    head, _, body = b"".join(writes).partition(b"\r\n\r\n")
    assert head.split(b"\r\n") == [
        b"POST /api/devices/register-claim HTTP/1.1",
        b"Host: cloud.example",
        b"Content-Type: application/json",
        b"Content-Length: %d" % len(body),
        b"Connection: close",
    ]
    assert body.startswith(b'{"deviceId":"BRW-1","token":"ttt')


@pytest.mark.parametrize(
    ("changed", "taken"),
    [
        ({}, True),
        ({"Connection": " upgrade"}, True),
        ({"Connection": "Upgrade"}, True),
        ({"Connection": " keep-alive, Upgrade"}, False),
        ({"Connection": "  Upgrade"}, False),
        ({"Sec-WebSocket-Accept": " x"}, False),
        ({"status": "200 OK"}, False),
    ],
)
def test_accepted_answers_are_those_of_firmware(changed: dict[str, str], taken: bool) -> None:
    headers = {
        "Connection": " Upgrade",
        "Sec-WebSocket-Accept": f" {accept_value(KEY)}",
        "status": "101",
        **changed,
    }
    status = headers.pop("status")
    head = f"HTTP/1.1 {status}\r\n" + "\r\n".join(f"{name}:{value}" for name, value in headers.items())
    answer = parse_head(head.encode())
    assert answer is not None
    assert accepted(answer, KEY) is taken
    assert answer.lines == 3


@pytest.mark.parametrize("head", [b"", b"SSH-2.0", b"HTTP/1.1 x", b"\xff\xfe"])
def test_invalid_head_is_none(head: bytes) -> None:
    assert parse_head(head) is None

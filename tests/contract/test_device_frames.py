"""The frames that the firmware sends and reads; tests are named for the rules of the device contract."""

from collections.abc import Awaitable, Callable
from pathlib import Path

import msgspec
import pytest
import trio
import trio.lowlevel

from support.process import machine_id, serve_here
from support.wire_client import (
    CONTINUATION,
    NO_MASK,
    PING,
    PONG,
    TEXT,
    WireClient,
    frame,
    packed,
    put_mask,
    text,
)

MIN_AGE_S = 0.3


# §1.3: frames of the machine


async def test_1_3_zero_masks_are_accepted(tmp_path: Path) -> None:
    async with serve_here(tmp_path) as server:
        client, device = await server.client(machine_id(1)), await server.device(machine_id(1))
        payload = b'{"type":"device_info","pad":"%s"}' % (b"x" * 1500)
        await device.send(bytes.fromhex("8980 00000000"), frame(TEXT, payload, mask=NO_MASK))
        # A request comes because a client is attached, before the answer to the ping or after it.
        request, pong = sorted([await device.read_frame(), await device.read_frame()])
        assert b'"type":"request_state"' in request.payload
        assert pong == (0x80 | PONG, 0, b"")
        assert await client.read_json() == {"type": "device_online"}
        assert (await client.read_message()).payload == payload


@pytest.mark.parametrize("size", [1400, 2047])
async def test_1_3_a_large_text_comes_in_two_segments(tmp_path: Path, size: int) -> None:
    async with serve_here(tmp_path) as server:
        client, device = await server.client(machine_id(1)), await server.device(machine_id(1))
        payload = b'{"type":"log","pad":"%s"}' % (b"x" * (size - 23))
        assert len(payload) == size
        await device.send(b"\x81\xfe" + size.to_bytes(2, "big") + NO_MASK)
        await trio.sleep(0.02)
        await device.send(payload)
        assert await client.read_json() == {"type": "device_online"}
        assert await client.read_message() == (0x81, 126, payload)


async def test_rule_10_status_messages_are_relayed_unchanged(tmp_path: Path) -> None:
    async with serve_here(tmp_path) as server:
        client, device = await server.client(machine_id(1)), await server.device(machine_id(1))
        status = b"\x83\xa4type\xa6status\xa3seq\xd2\x00\x00\x00\x01\xa8pressure\xca\x41\x17\x33\x33"
        log = b'{ "type":"log" , "message": "\\u00e9" }'
        await device.send(packed(status), text(log))
        assert await client.read_json() == {"type": "device_online"}
        assert await client.read_message() == (0x82, len(status), status)
        assert await client.read_message() == (0x81, len(log), log)


@pytest.mark.parametrize("payload", [b"", b"x", b"x" * 125])
async def test_rule_7_pongs_have_the_payload_of_the_ping(tmp_path: Path, payload: bytes) -> None:
    async with serve_here(tmp_path) as server:
        device = await server.device(machine_id(1))
        with trio.fail_after(1):
            await device.send(b"\x89" + bytes([0x80 | len(payload)]) + put_mask(payload, NO_MASK))
            assert await device.read_frame() == (0x80 | PONG, len(payload), payload)


async def test_rule_7_pings_are_answered_while_reading_is_paused(tmp_path: Path) -> None:
    async with serve_here(tmp_path, device_min_age_s=MIN_AGE_S) as server:
        old = await server.device(machine_id(1))
        await server.device(machine_id(1))
        await old.send(frame(PING, b"alive", mask=NO_MASK))
        assert await old.read_frame() == (0x80 | PONG, 5, b"alive")


# §0 rule 6: messages for the machine


async def in_fragments(client: WireClient, payload: bytes) -> None:
    await client.send(frame(TEXT, payload[:9], fin=False))
    await client.send(frame(CONTINUATION, payload[9:], fin=False), frame(CONTINUATION))


async def as_messagepack(client: WireClient, payload: bytes) -> None:
    await client.send(packed(msgspec.json.decode(payload, type=dict)))


async def in_one(client: WireClient, payload: bytes) -> None:
    await client.send(text(payload))


@pytest.mark.parametrize("send", [in_one, in_fragments, as_messagepack])
@pytest.mark.parametrize("size", [40, 126, 4000, 4096])
async def test_rule_6_messages_of_apps_reach_the_machine_as_one_text_frame(
    tmp_path: Path, send: Callable[[WireClient, bytes], Awaitable[None]], size: int
) -> None:
    async with serve_here(tmp_path) as server:
        device, client = await server.device(machine_id(1)), await server.client(machine_id(1))
        payload = b'{"type":"command","cmd":"%s"}' % (b"x" * (size - 27))
        assert len(payload) == size
        await send(client, payload)
        found = await device.read_frame()
        assert (found.first, found.second & 0x80) == (0x80 | TEXT, 0)
        assert found.payload == payload


async def test_rule_6_message_that_is_too_large_as_text_does_not_reach_the_machine(tmp_path: Path) -> None:
    async with serve_here(tmp_path) as server:
        device, client = await server.device(machine_id(1)), await server.client(machine_id(1))
        growing = packed({"type": "command", "a": [1.2345678901234567e-300] * 400})
        assert len(growing) < 4096
        await client.send(growing, text({"type": "after"}))
        assert (await client.read_json())["type"] == "error"
        assert await device.read_json() == {"type": "after"}


async def test_rule_6_nothing_else_reaches_the_machine(tmp_path: Path) -> None:
    async with serve_here(tmp_path) as server:
        device = await server.device(machine_id(1))
        for _ in range(5):
            client = await server.client(machine_id(1))
            await client.send(text({"type": "request_state"}), text("no message"), frame(PING, b"mine"))
            await client.read_until("error")
            client.abort()
        assert await device.read_frame() == (0x81, 24, b'{"type":"request_state"}')  # one for all clients
        await device.send(frame(PING, b"last"))
        assert await device.read_frame() == (0x80 | PONG, 4, b"last")

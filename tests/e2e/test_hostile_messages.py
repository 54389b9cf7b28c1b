"""Invalid messages and message floods: dropped, counted, and without effect on other peers."""

from typing import Any

import msgspec
import pytest
import trio

from support.process import HereServer, Unharmed, machine_id, one_instance
from support.steady_clock import SteadyClock
from support.wire_client import TEXT, Ended, WireClient, packed, text

VICTIM = machine_id(1)
BYSTANDER = machine_id(4)

NO_MESSAGES = {
    "empty text": text(""),
    "space": text("   "),
    "word": text("hello"),
    "null": text("null"),
    "number": text("1"),
    "string": text('"type"'),
    "array": text('["type"]'),
    "array of objects": text('[{"type":"x"}]'),
    "no type": text("{}"),
    "another key": text('{"kind":"x"}'),
    "type in a child": text('{"a":{"type":"x"}}'),
    "type is a number": text('{"type":1}'),
    "type is null": text('{"type":null}'),
    "type is an object": text('{"type":{}}'),
    "not closed": text('{"type":"x"'),
    "single quotes": text("{'type':'x'}"),
    "two objects": text('{"type":"x"}{"type":"y"}'),
    "byte order mark": text(b'\xef\xbb\xbf{"type":"x"}'),
    "NUL": text("\0"),
    "not closed, deep": text("[" * 4000),
    "empty binary": packed(b""),
    "packed: nil": packed(b"\xc0"),
    "packed: int": packed(b"\x01"),
    "packed: array": packed(b"\x91\xa4type"),
    "packed: empty map": packed(b"\x80"),
    "packed: type is an int": packed(b"\x81\xa4type\x01"),
    "packed: key is an int": packed(b"\x81\x01\xa1x"),
    "packed: cut off": packed(b"\x82\xa4type\xa1x"),
    "packed: endless array": packed(b"\xdd\xff\xff\xff\xff"),
    "packed: endless map": packed(b"\xdf\xff\xff\xff\xff"),
    "packed: endless string": packed(b"\x81\xa4type\xdb\xff\xff\xff\xff"),
    "packed: reserved byte": packed(b"\xc1"),
    "packed: two maps": packed(b"\x81\xa4type\xa1x\x81\xa4type\xa1x"),
    "packed: deep": packed(b"\x91" * 4000),
    "packed: json": packed(b'{"type":"x"}'),
    "packed: type is not UTF-8": packed(b"\x81\xa4type\xa1\xff"),
    "packed: key is not UTF-8": packed(b"\x81\xa4typ\xff\xa1x"),
}
AMBIGUOUS = {
    "escaped NUL": text(rb'{"type":"key_rotate","x":"\u0000","key":"k"}'),
    "escaped NUL in a key": text(rb'{"type":"command","cmd":"tare","cmd\u0000":"restart"}'),
    "NUL": text(b'{"type":"command","cmd":"tare\x00"}'),
    "key twice": text('{"type":"command","cmd":"restart","cmd":"tare"}'),
    "key twice, once escaped": text(rb'{"type":"key_rotate","\u0074ype":"command"}'),
    "key twice, deep": text('{"type":"command","a":{"b":1,"b":2}}'),
    "half a surrogate pair": text(rb'{"type":"command","cmd":"\ud800"}'),
    "a number without a value": text('{"type":"command","temp":1e999}'),
    "eleven levels": text('{"type":"x","a":' + "[" * 10 + "]" * 10 + "}"),
    "packed: NUL": packed(b"\x81\xa4type\xa2x\x00"),
    "packed: key twice": packed(b"\x82\xa4type\xa1x\xa4type\xa1y"),
    "packed: key twice, once as a number": packed(b"\x83\xa4type\xa1x\x01\xa1x\xa11\xa1y"),
}
"""What two parsers could read differently."""
no_messages = pytest.mark.parametrize("data", NO_MESSAGES.values(), ids=NO_MESSAGES)


async def invalid(server: HereServer, count: int) -> None:
    """Wait until this many invalid messages have been counted."""
    with trio.fail_after(1):
        while server.invalid_messages < count:  # noqa: ASYNC110 - counting is another's task
            await trio.sleep(0.001)
    assert server.invalid_messages == count


@pytest.mark.parametrize("data", (NO_MESSAGES | AMBIGUOUS).values(), ids=NO_MESSAGES | AMBIGUOUS)
async def test_a_dropped_message_of_a_client_is_reported(unharmed: Unharmed, data: bytes) -> None:
    async with unharmed() as server:
        device, client = await server.device(VICTIM), await server.client(VICTIM)
        await client.send(data, text({"type": "command", "cmd": "tare"}))
        told = await client.read_json()
        assert (told["type"], told["error"]) == ("error", "invalid_message")
        assert isinstance(told["message"], str)
        assert (await device.read_json())["cmd"] == "tare"
        await invalid(server, 1)


@no_messages
async def test_no_message_of_a_device_is_dropped(unharmed: Unharmed, data: bytes) -> None:
    async with unharmed() as server:
        device, client = await server.device(VICTIM), await server.client(VICTIM)
        await device.send(text({"type": "before"}), data, text({"type": "after"}))
        assert await client.read_json() == {"type": "before"}
        assert await client.read_json() == {"type": "after"}
        await invalid(server, 1)


@pytest.mark.parametrize("depth", [100, 10_000])
@pytest.mark.parametrize("packing", [False, True])
async def test_a_deeply_nested_message_does_no_harm(unharmed: Unharmed, depth: int, packing: bool) -> None:
    if packing:
        data = packed(b"\x82\xa4type\xa1x\xa1a" + b"\x91" * depth + b"\xc0")
    else:
        data = text('{"type":"x","a":' + "[" * depth + "]" * depth + "}")
    async with unharmed(device_message_bytes=64 * 1024, client_message_bytes=64 * 1024) as server:
        device, client = await server.device(VICTIM), await server.client(VICTIM)
        await device.send(data, text({"type": "after"}))
        while (await client.read_message()).payload != b'{"type":"after"}':
            pass
        await client.send(data, text({"type": "after"}))
        while (await device.read_message()).payload != b'{"type":"after"}':
            pass


ODD_PACKED: dict[str, dict[Any, Any] | bytes] = {
    "bytes": {"type": "x", "a": b"\xff\x00"},
    "not a number": {"type": "x", "a": float("nan")},
    "infinite": {"type": "x", "a": float("inf")},
    "large": {"type": "x", "a": 2**64 - 1, "b": -(2**63)},
    "timestamp": b"\x82\xa4type\xa1x\xa1a\xd6\xff\x00\x00\x00\x00",
    "timestamp of no time": b"\x82\xa4type\xa1x\xa1a\xd7\xff" + b"\xff" * 8,
    "extension": b"\x82\xa4type\xa1x\xa1a\xd4\x05\x00",
    "text not UTF-8": b"\x82\xa4type\xa1x\xa1a\xa2\xc3\x28",
    "key is a map": b"\x82\xa4type\xa1x\x80\x01",
    "key is nil": b"\x82\xa4type\xa1x\xc0\x01",
    "key is an array": b"\x82\xa4type\xa1x\x91\x01\x01",
    "key is a float": b"\x82\xa4type\xa1x\xca\x00\x00\x00\x00\x01",
    "key twice": b"\x82\xa4type\xa1x\xa4type\xa1y",
}


@pytest.mark.parametrize("content", ODD_PACKED.values(), ids=ODD_PACKED)
async def test_odd_packed_messages_reach_a_device_as_json_or_not_at_all(
    unharmed: Unharmed, content: dict[Any, Any] | bytes
) -> None:
    async with unharmed() as server:
        device, client = await server.device(VICTIM), await server.client(VICTIM)
        await client.send(packed(content), text({"type": "after"}))
        found = await device.read_json()
        if found != {"type": "after"}:
            assert found["type"] in {"x", "y"}
            assert await device.read_json() == {"type": "after"}


async def test_only_the_sender_is_told_that_a_device_is_absent(unharmed: Unharmed) -> None:
    async with unharmed() as server:
        client = await server.client(VICTIM)
        await client.send(*[text({"type": "command", "cmd": "restart"})] * 100)
        for _ in range(100):
            assert (await client.read_json())["error"] == "device_offline"


async def test_commands_that_wait_are_bounded(unharmed: Unharmed) -> None:
    async with unharmed(client_rate=0, pending_commands=50) as server:
        client = await server.client(VICTIM)
        await client.send(*[text({"type": "command", "cmd": "tare"})] * 60)
        for waiting in range(1, 51):
            assert (await client.read_json())["queuedMessages"] == waiting
        for _ in range(10):
            assert (await client.read_json())["error"] == "device_offline"


@one_instance("two instances in one process double the cost of a flood")
@pytest.mark.parametrize("device_rate", [0, 50])
async def test_a_flood_from_a_device_does_not_delay_others(
    unharmed: Unharmed, device_rate: float, steady_clock: SteadyClock
) -> None:
    async with unharmed(device_rate=device_rate) as server:
        loud, device = await server.device(VICTIM), await server.device(BYSTANDER)
        await server.client(VICTIM)  # which reads nothing of it
        client = await server.client(BYSTANDER)
        await slowest_exchange_during_flood(loud, device, client)


@one_instance("two instances in one process double the cost of a flood")
@pytest.mark.parametrize("client_rate", [0, 20])
async def test_a_flood_from_a_client_does_not_delay_others(
    unharmed: Unharmed, client_rate: float, steady_clock: SteadyClock
) -> None:
    async with unharmed(client_rate=client_rate) as server:
        await server.device(VICTIM)  # which reads nothing of it
        loud = await server.client(VICTIM)
        device, client = await server.device(BYSTANDER), await server.client(BYSTANDER)
        await slowest_exchange_during_flood(loud, device, client)


async def slowest_exchange_during_flood(loud: WireClient, device: WireClient, client: WireClient) -> None:
    """Check that the messages of one pair arrive soon while another peer floods the server."""
    burst = text({"type": "command", "cmd": "tare", "pad": "x" * 200}) * 200

    async def flood() -> None:
        try:
            while True:
                await loud.send(burst)
        except trio.BrokenResourceError:
            pass  # told to go, which is fine

    async with trio.open_nursery() as nursery:
        nursery.start_soon(flood)
        for seq in range(20):
            with trio.fail_after(0.5):
                await device.send(text({"type": "status", "seq": seq}))
                assert await client.read_json() == {"type": "status", "seq": seq}
            await trio.sleep(0.02)
        nursery.cancel_scope.cancel()


async def test_a_device_that_reads_nothing_is_closed_and_its_client_is_notified(
    unharmed: Unharmed, steady_clock: SteadyClock
) -> None:
    async with unharmed(stall_s=0.3, outbox_bytes=16 * 1024, client_rate=0) as server:
        await server.device(VICTIM)
        client = await server.client(VICTIM)
        command = text({"type": "command", "cmd": "tare", "pad": "x" * 3900})
        busy = False

        async def send() -> None:
            while True:
                await client.send(command * 8)
                await trio.sleep(0.001)

        with trio.fail_after(5):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(send)
                while (found := await client.read_json())["type"] != "device_offline":
                    assert found["type"] == "error"
                    busy |= found["error"] == "device_busy"
                nursery.cancel_scope.cancel()
        assert busy


async def test_a_client_that_reads_nothing_is_left_out_and_closed(
    unharmed: Unharmed, steady_clock: SteadyClock
) -> None:
    async with unharmed(stall_s=0.5, outbox_bytes=64 * 1024, device_rate=0) as server:
        device = await server.device(VICTIM)
        frozen = await server.client(VICTIM, receive_buffer_bytes=2048)
        reader = await server.client(VICTIM)
        seq = 0
        relay = server.server.relay
        while relay.client_count == 3:  # with the bystander's
            seq += 1
            await device.send(text({"type": "status", "seq": seq, "pad": "x" * 12_000}))
            with trio.fail_after(0.3):
                assert (await reader.read_json())["seq"] == seq
        assert relay.counters.left_out > 0
        seen: list[int] = []
        try:
            while (found := await frozen.read_message()).opcode == TEXT:
                seen.append(msgspec.json.decode(found.payload)["seq"])
            assert found.payload[:2] == (1013).to_bytes(2, "big")
        except Ended:
            pass  # it was closed before it began to read
        assert seen == sorted(set(seen))
        assert 0 < len(seen) < seq


async def test_a_client_that_reads_again_in_time_stays_and_is_brought_up_to_date(unharmed: Unharmed) -> None:
    async with unharmed(outbox_bytes=64 * 1024, device_rate=0) as server:
        device = await server.device(VICTIM)
        slow = await server.client(VICTIM, receive_buffer_bytes=2048)
        reader = await server.client(VICTIM)
        seq = 0
        while server.server.relay.counters.left_out < 20:
            seq += 1
            await device.send(text({"type": "status", "seq": seq, "pad": "x" * 12_000}))
            assert (await reader.read_json())["seq"] == seq
        got = 0
        while (found := await slow.read_json())["type"] == "status":
            got += 1
            assert found["seq"] == got  # whole messages, and none left out before the gap
        assert got < seq
        assert (found["type"], found["online"]) == ("device_status", True)
        assert (await slow.read_json())["seq"] == seq  # the last one, all the same
        await device.send(text({"type": "status", "seq": seq + 1}))
        assert await slow.read_json() == {"type": "status", "seq": seq + 1}

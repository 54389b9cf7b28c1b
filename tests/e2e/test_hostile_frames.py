"""Frames that break the rules end their own connection with the close code of RFC 6455, and nothing else."""

from collections.abc import Callable

import pytest
import trio

from support.process import Unharmed, machine_id
from support.steady_clock import SteadyClock
from support.wire_client import (
    BINARY,
    CLOSE,
    CONTINUATION,
    PING,
    PONG,
    TEXT,
    WireClient,
    close,
    frame,
    put_mask,
    text,
)

VICTIM = machine_id(1)
MIN_AGE_S = 0.15


def header(first: int, *size: int) -> bytes:
    return bytes((first, *size)) + put_mask(b"", bytes(4))


PROTOCOL_ERRORS = {
    "not masked": frame(TEXT, b'{"type":"x"}', mask=None),
    "not masked, empty": frame(PING, mask=None),
    "reserved bit 1": frame(TEXT, b'{"type":"x"}', rsv=4),
    "reserved bit 2": frame(TEXT, b'{"type":"x"}', rsv=2),
    "reserved bit 3": frame(BINARY, b"\x80", rsv=1),
    "reserved bit of a ping": frame(PING, rsv=4),
    "opcode 3": frame(0x3, b"x"),
    "opcode 7": frame(0x7),
    "opcode 11": frame(0xB),
    "opcode 15": frame(0xF, b"x" * 50),
    "ping in fragments": frame(PING, b"x", fin=False),
    "close in fragments": frame(CLOSE, fin=False),
    "ping of 126 bytes": frame(PING, b"x" * 126),
    "close of 126 bytes": frame(CLOSE, b"\x03\xe8" + b"x" * 124),
    "continuation of nothing": frame(CONTINUATION, b"x"),
    "message in a message": frame(TEXT, b"{", fin=False) + text("{}"),
    "length too wide, 16 bits": header(0x81, 0xFE, 0, 5) + b"12345",
    "length too wide, 64 bits": header(0x81, 0xFF, *bytes(7), 5) + b"12345",
    "length negative": header(0x82, 0xFF, 0x80, *bytes(7)),
    "close of one byte": frame(CLOSE, b"\x03"),
    "close with no code": close(0),
    "close with 999": close(999),
    "close with 1004": close(1004),
    "close with 1005": close(1005),
    "close with 1006": close(1006),
    "close with 1015": close(1015),
    "close with 2999": close(2999),
    "close with 5000": close(5000),
}
NOT_UTF8 = {
    "wrong byte": text(b'{"type":"\xff"}'),
    "half a character": text(b"\xe2\x82"),
    "surrogate": text(b'"\xed\xa0\x80"'),
    "overlong": text(b"\xc0\xaf"),
    "first fragment": frame(TEXT, b"\xff", fin=False),
    "last fragment": frame(TEXT, b"\xe2", fin=False) + frame(CONTINUATION, b"x"),
    "close reason": close(1000, b"\xff"),
}
BROKEN = {
    **{f"1002, {name}": (1002, data) for name, data in PROTOCOL_ERRORS.items()},
    **{f"1007, {name}": (1007, data) for name, data in NOT_UTF8.items()},
}
broken = pytest.mark.parametrize(("code", "data"), BROKEN.values(), ids=BROKEN)


@broken
async def test_a_client_that_breaks_the_rules_is_closed(unharmed: Unharmed, code: int, data: bytes) -> None:
    async with unharmed() as server:
        device, client = await server.device(VICTIM), await server.client(VICTIM)
        await client.send(data, text({"type": "never"}))
        assert (await client.read_close())[0] == code
        await client.send(close(code))
        await client.send_eof()
        assert await client.read_to_end() == b""
        await device.send(frame(PING, b"still"))
        assert await device.read_frame() == (0x80 | PONG, 5, b"still")


@broken
async def test_a_device_that_breaks_the_rules_is_held_until_it_is_old_enough(
    unharmed: Unharmed, code: int, data: bytes
) -> None:
    async with unharmed(device_min_age_s=MIN_AGE_S) as server:
        began = trio.current_time()
        device = await server.device(VICTIM)
        await device.send(data, text({"type": "never"}))
        assert (await device.read_close())[0] == code
        assert trio.current_time() - began >= MIN_AGE_S
        await device.send(close(code))
        await device.send_eof()
        assert await device.read_to_end() == b""


async def test_the_rest_of_a_message_before_a_broken_frame_counts(unharmed: Unharmed) -> None:
    async with unharmed() as server:
        device, client = await server.device(VICTIM), await server.client(VICTIM)
        await device.send(text({"type": "last"}), frame(0x3))
        assert await client.read_json() == {"type": "last"}
        assert await client.read_json() == {"type": "device_offline"}


TOO_BIG: dict[str, Callable[[int], bytes]] = {
    "one frame": lambda limit: text("x" * (limit + 1)),
    "binary": lambda limit: frame(BINARY, bytes(limit + 1)),
    "fragments": lambda limit: (
        frame(TEXT, b"x" * limit, fin=False) + frame(PING, b"p") + frame(CONTINUATION, b"y")
    ),
    "many fragments": lambda limit: (
        frame(TEXT, fin=False)
        + frame(CONTINUATION, b"x" * 100, fin=False) * (limit // 50)
        + frame(CONTINUATION)
    ),
    "hundred times": lambda limit: frame(BINARY, bytes(limit * 100)),
}
too_big = pytest.mark.parametrize("make", TOO_BIG.values(), ids=TOO_BIG)


@too_big
async def test_a_client_that_sends_too_much_is_closed(
    unharmed: Unharmed, make: Callable[[int], bytes]
) -> None:
    async with unharmed() as server:
        client = await server.client(VICTIM)
        await client.send(make(4096))
        assert (await client.read_close())[0] == 1009


async def test_a_client_that_promises_too_much_is_closed_at_once(unharmed: Unharmed) -> None:
    async with unharmed() as server:
        client = await server.client(VICTIM)
        await client.send(header(0x81, 0xFF, 0, 0, 1, 0, 0, 0, 0, 0))
        assert (await client.read_close())[0] == 1009


@too_big
async def test_too_large_a_message_of_a_device_is_read_past(
    unharmed: Unharmed, make: Callable[[int], bytes]
) -> None:
    async with unharmed() as server:
        device, client = await server.device(VICTIM), await server.client(VICTIM)
        await device.send(text({"type": "before"}), make(16 * 1024), text({"type": "after"}))
        assert await client.read_json() == {"type": "before"}
        assert await client.read_json() == {"type": "after"}
        await device.send(text({"type": "status"}))
        assert await client.read_json() == {"type": "status"}


@pytest.mark.parametrize("limit", [0, 1])
async def test_the_largest_messages_pass(unharmed: Unharmed, limit: int) -> None:
    async with unharmed() as server:
        device, client = await server.device(VICTIM), await server.client(VICTIM)
        smallest = len(b'{"type":"x","a":""}')
        from_device = b'{"type":"x","a":"%s"}' % (b"a" * (16 * 1024 - smallest))
        await device.send(text(from_device))
        assert (await client.read_message()).payload == from_device
        from_client = b'{"type":"x","a":"%s"}' % (b"a" * (4096 - smallest))
        await client.send(text(from_client))
        assert (await device.read_message()).payload == from_client


async def test_control_frames_between_fragments_are_fine(unharmed: Unharmed) -> None:
    async with unharmed() as server:
        device, client = await server.device(VICTIM), await server.client(VICTIM)
        parts = [b'{"type":', '"€'.encode()[:2], '"€'.encode()[2:], b'"}']
        for sender, reader in ((client, device), (device, client)):
            await sender.send(
                frame(TEXT, parts[0], fin=False),
                frame(PING, b"one"),
                frame(CONTINUATION, parts[1], fin=False),
                frame(PONG, b"nobody asked"),
                frame(CONTINUATION, fin=False),
                frame(PING),
                frame(CONTINUATION, parts[2], fin=False),
                frame(CONTINUATION, parts[3]),
            )
            assert await sender.read_frame() == (0x80 | PONG, 3, b"one")
            assert await sender.read_frame() == (0x80 | PONG, 0, b"")
            assert await reader.read_json() == {"type": "€"}


@pytest.mark.parametrize("connect", ["device", "client"])
async def test_a_trickle_in_a_frame_does_not_last(
    unharmed: Unharmed, connect: str, steady_clock: SteadyClock
) -> None:
    async with unharmed(message_s=0.3) as server:
        peer: WireClient = await getattr(server, connect)(VICTIM)
        await peer.send(header(0x81, 0xFE, 0x0F, 0xFF))
        began = trio.current_time()

        async def trickle() -> None:
            while True:
                await peer.send(b"x")
                await trio.sleep(0.02)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(trickle)
            assert (await peer.read_close())[0] in {1002, 1008}
            nursery.cancel_scope.cancel()
        assert 0.25 < trio.current_time() - began < 1


async def test_endless_empty_fragments_do_not_last(unharmed: Unharmed, steady_clock: SteadyClock) -> None:
    async with unharmed(message_s=0.3) as server:
        client = await server.client(VICTIM)
        await client.send(frame(TEXT, fin=False))

        async def trickle() -> None:
            while True:
                await client.send(frame(CONTINUATION, fin=False) * 10)
                await trio.sleep(0.01)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(trickle)
            assert (await client.read_close())[0] in {1002, 1008}
            nursery.cancel_scope.cancel()


async def test_a_busy_device_is_not_a_trickle(unharmed: Unharmed, steady_clock: SteadyClock) -> None:
    """Each message is complete at once, but every read ends inside the next one."""
    async with unharmed(message_s=0.3) as server:
        device, client = await server.device(VICTIM), await server.client(VICTIM)
        whole = text({"type": "status", "seq": 1})
        await device.send(whole[:5])
        for _ in range(40):
            await device.send(whole[5:], whole[:5])
            assert await client.read_json() == {"type": "status", "seq": 1}
            await trio.sleep(0.02)


@pytest.mark.parametrize("connect", ["device", "client"])
async def test_a_ping_flood_does_no_harm(unharmed: Unharmed, connect: str, steady_clock: SteadyClock) -> None:
    async with unharmed(stall_s=0.3) as server:
        peer: WireClient = await getattr(server, connect)(VICTIM)
        with trio.move_on_after(0.7):
            try:
                while True:
                    await peer.send(frame(PING, b"x" * 100) * 500)  # and no pong is read
            except trio.BrokenResourceError:
                pass


async def test_a_ping_flood_is_answered_while_it_is_read(unharmed: Unharmed) -> None:
    async with unharmed() as server:
        device = await server.device(VICTIM)
        for count in (200, 10, 10):  # those beyond 200 are read at 50 a second
            await device.send(*[frame(PING, b"%d" % n) for n in range(count)])
            for n in range(count):
                assert (await device.read_frame()).payload == b"%d" % n


@pytest.mark.parametrize("connect", ["device", "client"])
async def test_a_connection_dropped_within_a_frame_ends_without_an_error(
    unharmed: Unharmed, connect: str
) -> None:
    async with unharmed() as server:
        for cut in (1, 2, 5, 9):
            peer: WireClient = await getattr(server, connect)(VICTIM)
            await peer.send(text({"type": "status"})[:cut])
            peer.abort()
            peer = await getattr(server, connect)(VICTIM)
            await peer.send(text({"type": "status"})[:cut])
            await peer.send_eof()
            with trio.fail_after(2):
                await peer.read_to_end()


async def test_data_after_a_close_frame_is_ignored(unharmed: Unharmed) -> None:
    async with unharmed() as server:
        device, client = await server.device(VICTIM), await server.client(VICTIM)
        await client.send(close(1001), text({"type": "never"}), close(1002), b"\xff" * 100)
        assert (await client.read_close())[0] == 1001
        assert await client.read_to_end() == b""
        await device.send(frame(PING))
        assert (await device.read_frame()).opcode == PONG

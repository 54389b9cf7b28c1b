"""Random bytes on many connections: they end only their own connection."""

import random
from collections.abc import Awaitable, Callable

import pytest
import trio

from support.process import KEY, HereServer, Unharmed, machine_id
from support.wire_client import (
    BINARY,
    CONTINUATION,
    PING,
    TEXT,
    WireClient,
    close,
    frame,
    packed,
    text,
    upgrade_head,
)

VICTIM = machine_id(1)
ROUNDS = 150
AT_ONCE = 10

Make = Callable[[random.Random], bytes]

# fmt: off
WORDS = [
    b"GET ", b"POST ", b"/ws/device", b"/ws/client", b"/ws", b"/api/health", b"/", b"?id=", VICTIM.encode(),
    b"&key=", KEY.encode(), b"&token=", b"&device=", b" HTTP/1.1\r\n", b" HTTP/1.0\r\n", b"\r\n", b"\n",
    b"\0", b"%", b"%zz", b": ", b"Host: a\r\n", b"Connection: Upgrade\r\n", b"Connection: close\r\n",
    b"Upgrade: websocket\r\n", b"Sec-WebSocket-Version: 13\r\n",
    b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n", b"\r\n\r\n", b"Transfer-Encoding: chunked\r\n",
    b"Content-Length: 5\r\n", b"Expect: 100-continue\r\n", b"\xff",
]
# fmt: on


def noise(chance: random.Random) -> bytes:
    return chance.randbytes(chance.randrange(1, 300))


def words(chance: random.Random) -> bytes:
    return b"".join(chance.choices(WORDS, k=chance.randrange(1, 25)))


def damaged_upgrade(chance: random.Random) -> bytes:
    return damage(upgrade_head(f"/ws/device?id={VICTIM}&key={KEY}"), chance) + damage(frames(chance), chance)


def frames(chance: random.Random) -> bytes:
    """Make some frames, most of them valid."""
    makers: list[Callable[[], bytes]] = [
        lambda: text({"type": "status", "seq": chance.randrange(100)}),
        lambda: packed({"type": "status", "seq": chance.randrange(100)}),
        lambda: text(chance.randbytes(10)),
        lambda: packed(chance.randbytes(10)),
        lambda: packed(b"\x82\xa4type\xa1x" + chance.randbytes(5)),
        lambda: frame(
            chance.randrange(16), chance.randbytes(chance.randrange(200)), fin=chance.random() < 0.7
        ),
        lambda: frame(TEXT, b"{", fin=False) + frame(PING) + frame(CONTINUATION, b"}"),
        lambda: frame(BINARY, bytes(chance.randrange(20_000))),
        lambda: close(chance.randrange(5001), chance.randbytes(3)),
        lambda: chance.randbytes(5),
    ]
    return b"".join(chance.choice(makers)() for _ in range(chance.randrange(1, 8)))


def damage(data: bytes, chance: random.Random) -> bytes:
    """Change, drop or double some of the bytes, at times none."""
    damaged = bytearray(data)
    for _ in range(chance.choice([0, 1, 1, 2, 5])):
        at = chance.randrange(len(damaged))
        match chance.randrange(4):
            case 0:
                damaged[at] = chance.randrange(256)
            case 1:
                damaged[at] ^= 1 << chance.randrange(8)
            case 2:
                del damaged[at : at + chance.randrange(1, 20)]
            case _:
                damaged[at:at] = damaged[at : at + chance.randrange(1, 20)]
        if not damaged:
            break
    return bytes(damaged)


async def leave(connection: WireClient, chance: random.Random) -> None:
    """End the connection in one of the usual ways, sometimes after reading for a moment."""
    if chance.random() < 0.5:
        with trio.move_on_after(0.02):
            await connection.read_to_end()
    if chance.random() < 0.5:
        connection.abort()
    else:
        await connection.stream.aclose()


@pytest.mark.parametrize("seed", range(2))
@pytest.mark.parametrize("make", [noise, words, damaged_upgrade])
async def test_random_requests(unharmed: Unharmed, make: Make, seed: int) -> None:
    async def one(server: HereServer, number: int) -> None:
        chance = random.Random(f"{seed} {number}")
        connection = await server.connect()
        await connection.send(make(chance))
        await leave(connection, chance)

    async with unharmed(request_head_s=0.5, close_s=0.1) as server:
        await in_turns(server, one)


@pytest.mark.parametrize("seed", range(2))
@pytest.mark.parametrize("connect", ["device", "client"])
async def test_random_frames(unharmed: Unharmed, connect: str, seed: int) -> None:
    async def one(server: HereServer, number: int) -> None:
        chance = random.Random(f"{seed} {number}")
        if connect == "device":
            machine = machine_id(10 + number)  # many with one id would be refused
            await server.client(machine)
            connection: WireClient = await server.device(machine)
        else:
            connection = await server.client(VICTIM)
        data = damage(frames(chance), chance)
        cut = chance.randrange(len(data) + 1)
        try:
            for part in filter(None, (data[:cut], data[cut:])):
                await connection.send(part)
        except trio.BrokenResourceError:
            pass  # closed after the first part
        await leave(connection, chance)

    machines = range(1, 10 + ROUNDS)
    async with unharmed(close_s=0.1, message_s=0.3, admit_rate=0, machines=machines) as server:
        await server.client(VICTIM)
        if connect == "client":
            await server.device(VICTIM)
        await in_turns(server, one)


async def in_turns(server: HereServer, one: Callable[[HereServer, int], Awaitable[None]]) -> None:
    """Run all the rounds, some at a time."""
    limit = trio.CapacityLimiter(AT_ONCE)

    async def limited(number: int) -> None:
        async with limit:
            await one(server, number)

    async with trio.open_nursery() as nursery:
        for number in range(ROUNDS):
            nursery.start_soon(limited, number)

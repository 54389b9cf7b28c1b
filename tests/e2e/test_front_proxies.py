"""The relay behind nginx, HAProxy and Caddy, set up as in `deploy/`: a machine and an app through each."""

import re
import signal
import sys
from collections import Counter
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import replace
from ipaddress import ip_network
from pathlib import Path
from typing import Any

import msgspec
import pytest
import trio

from support.certificates import write_certificate
from support.firmware_wire import upgrade_request
from support.fronts import (
    HOST,
    Place,
    ReverseProxy,
    Start,
    TlsWireClient,
    caddy,
    caddy_is_gentle,
    haproxy,
    haproxy_cluster,
    haproxy_passthrough,
    need_program,
    nginx,
    nginx_passthrough,
    open_front,
)
from support.ports import free_port
from support.process import KEY, ProcessServer, machine_id, serve_here, serve_process
from support.wire_client import (
    BINARY,
    NO_MASK,
    PING,
    TEXT,
    WEBSOCKET_KEY,
    Ended,
    Response,
    accept_value,
    close,
    frame,
    packed,
    text,
    upgrade_head,
)

MACHINE = machine_id(1)
TOKEN_OF_CLAIM = "c" * 32
IDLE_S = 4
"""Replaces the configurations' 120 s; machines ping every 0.5 s instead of every 15 s."""
PINGS = 12
HTTP_IDLE_S = 1
"""The idle timeout of the relay in the tests of idle connections."""
POSTING, POSTS, SPREAD_S = 40, 4, 0.02
"""How many connections post at the idle limit, how often each, and how far around the limit."""


def haproxy_of_many(place: Place) -> Start:
    """HAProxy as before several instances, all of which are one here."""
    return haproxy_cluster(place, [place.relay_port] * 3)


FRONTS = [nginx, nginx_passthrough, haproxy, haproxy_of_many, haproxy_passthrough, caddy]
pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="elsewhere, this computer has no 127.0.0.2")
every_front = pytest.mark.parametrize("fit", FRONTS, ids=lambda fit: fit.__name__)

Fit = Callable[[Place], Start]


@asynccontextmanager
async def behind(fit: Fit, folder: Path) -> AsyncIterator[tuple[ReverseProxy, ProcessServer]]:
    """Start a relay and a reverse proxy before it."""
    files = write_certificate(folder, names=[HOST])
    settings: dict[str, object] = {
        "BREWOS_RELAY_TRUSTED_PROXIES": "127.0.0.1",
        "PUBLIC_URL": f"https://{HOST}",
        "BREWOS_RELAY_DEVICE_MIN_AGE_S": 0.5,
        "BREWOS_RELAY_DRAIN_S": 1,
        "BREWOS_RELAY_KEEPALIVE_S": 3,
    }
    if "passthrough" in fit.__name__:
        settings["BREWOS_RELAY_PROXY_PROTOCOL"] = "true"
        settings["BREWOS_RELAY_TLS_CERT"], settings["BREWOS_RELAY_TLS_KEY"] = files
    front_folder = folder / "front"
    front_folder.mkdir()
    place = Place(front_folder, port=free_port(), relay_port=0, files=files, seconds=IDLE_S)
    fit(place)  # skips the test if something is missing
    with trio.fail_after(60):
        async with serve_process(folder, **settings) as server:
            place = Place(front_folder, place.port, server.address[1], files, IDLE_S)
            async with open_front(fit(place), place) as front:
                yield front, server


@asynccontextmanager
async def idling_behind(fit: Fit, folder: Path) -> AsyncIterator[ReverseProxy]:
    """Start a relay with a short idle timeout, and a reverse proxy before it."""
    files = write_certificate(folder, names=[HOST])
    settings: dict[str, object] = {"trusted_proxies": (ip_network("127.0.0.1"),)}
    if "passthrough" in fit.__name__:
        settings |= {"proxy_protocol": True, "tls_cert": files.cert, "tls_key": files.key}
    front_folder = folder / "front"
    front_folder.mkdir()
    place = Place(front_folder, free_port(), 0, files, seconds=IDLE_S, checks_often=False)
    fit(place)  # skips the test if something is missing
    async with serve_here(folder, settings=settings, within_s=60, http_idle_s=HTTP_IDLE_S) as server:
        place = replace(place, relay_port=server.address[1])
        async with open_front(fit(place), place) as front:
            yield front


async def register(front: ReverseProxy) -> None:
    """Register as a machine does: it sends in pieces and takes the first segment for the whole response."""
    body = msgspec.json.encode({"deviceId": MACHINE, "token": TOKEN_OF_CLAIM, "deviceKey": KEY})
    lines = [
        "POST /api/devices/register-claim HTTP/1.1",
        f"Host: {HOST}",
        "Content-Type: application/json",
        f"Content-Length: {len(body)}",
        "Connection: close",
        "",
    ]
    connection = await front.connect()
    for line in lines:
        await connection.send(f"{line}\r\n".encode())
        await trio.sleep(0.005)
    await connection.send(body)
    first = bytes(await connection.stream.receive_some(65536))
    assert first.startswith(b"HTTP/1.1 200 "), first
    head, _, content = first.partition(b"\r\n\r\n")
    assert msgspec.json.decode(content)["success"] is True, first
    lengths = Response(200, head, b"").header("content-length")
    assert lengths == [str(len(content))]
    connection.abort()


async def connect_machine(front: ReverseProxy, *, source: str = "127.0.0.2") -> TlsWireClient:
    """Connect as a machine does, byte for byte, and check the headers that it requires in the response."""
    request = upgrade_request(MACHINE, KEY, port=443, websocket_key=WEBSOCKET_KEY)
    connection = await front.connect(source)
    with trio.fail_after(5):
        answer = await connection.ask(request.replace(b"cloud.example", HOST.encode()))
        assert answer.status == 101, answer
        assert re.findall(rb"(?im)^connection: ?upgrade\r?$", answer.head + b"\r\n") != [], answer
        assert len(answer.header("connection")) == 1
        assert answer.header("sec-websocket-accept") == [accept_value()]
        assert answer.header("sec-websocket-extensions") == []
        connection.connected = await connection.read_json()
        await connection.show_life()
    return connection


async def connect_app(front: ReverseProxy, token: str, *, fetched_before: bool = False) -> TlsWireClient:
    connection = await front.connect("127.0.0.3")
    if fetched_before:
        fetch = f"GET /api/health HTTP/1.1\r\nHost: {HOST}\r\n\r\n".encode()
        assert (await connection.ask(fetch)).status == 200
    # As a page of the relay itself does.
    head = upgrade_head(
        f"/ws/client?token={token}&device={MACHINE}",
        Host=HOST,
        Origin=f"https://{HOST}",
        Connection="keep-alive, Upgrade",
    )
    answer = await connection.ask(head)
    assert answer.status == 101, answer
    connection.connected = await connection.read_json()
    assert connection.connected["deviceOnline"] is True
    return connection


async def exchange(machine: TlsWireClient, app: TlsWireClient, seq: int) -> None:
    """Send a message in each direction, as text and as MessagePack."""
    with trio.fail_after(5):
        log = {"type": "log", "seq": seq}
        await machine.send(text(log))
        assert await hear(app, log) == TEXT
        status = {"type": "status_delta", "seq": seq, "pressure": 9.0}
        await machine.send(packed(status))
        assert await hear(app, status) == BINARY
        command = {"type": "command", "cmd": "tare", "seq": seq}
        await app.send(text(command))
        assert await hear(machine, command) == TEXT


async def hear(peer: TlsWireClient, content: dict[str, Any]) -> int:
    """Wait for a message. Tell whether it was text or MessagePack."""
    while True:
        found = await peer.read_message()
        decode = msgspec.json.decode if found.opcode == TEXT else msgspec.msgpack.decode
        if decode(found.payload) == content:
            return found.opcode


async def stay_idle(machine: TlsWireClient) -> None:
    """Behave as a sleeping machine, for longer than any proxy's timeout."""
    began_at = trio.current_time()
    for _ in range(PINGS):
        await machine.send(frame(PING, mask=NO_MASK))
        await trio.sleep(0.5)
    assert trio.current_time() - began_at > IDLE_S


async def ask_until_refused(front: ReverseProxy) -> None:
    """Use up the request limit of one address. Others are unaffected, and no client can forge its address."""
    body = msgspec.json.encode({"refreshToken": "n" * 43})

    async def ask(connection: TlsWireClient, more: str = "") -> int:
        head = f"POST /api/auth/refresh HTTP/1.1\r\nHost: {HOST}\r\nContent-Type: application/json\r\n{more}"
        answer = await connection.ask(f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body)
        return answer.status

    connection = await front.connect("127.0.0.4")
    asked = 1
    while (status := await ask(connection)) != 429:
        assert status == 401
        assert asked < 160, "a limit for each address does not hold"
        asked += 1
    assert asked > 120
    assert await ask(await front.connect("127.0.0.5")) == 401
    liar = await front.connect("127.0.0.4")
    # The budget regains two requests a second: a few succeed, but fewer than for another address.
    for _ in range(60):
        if await ask(liar, "X-Forwarded-For: 127.0.0.6\r\n") == 429:  # the response may end the connection
            return
    raise AssertionError("a forged address has its own request limit")


@every_front
async def test_a_machine_and_an_app(fit: Fit, tmp_path: Path) -> None:
    async with behind(fit, tmp_path) as (front, server):
        await register(front)
        machine = await connect_machine(front)
        app = await connect_app(front, server.token())
        await exchange(machine, app, 1)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(stay_idle, machine)
            nursery.start_soon(ask_until_refused, front)
        await exchange(machine, app, 2)
        await come_and_go(front, server.token())

        server.send_signal(signal.SIGTERM)
        for peer in (app, machine):
            assert (await peer.read_close())[0] == 1012
            await peer.send(close(1000))
            with trio.fail_after(5):
                assert await read_to_end(peer) == b""
        assert await server.wait(within_s=15) == 0

        # The relay has ended: requests are refused, and no secret of theirs is logged.
        for asked in (
            upgrade_head(f"/ws/device?id={MACHINE}&key={KEY}", Host=HOST),
            upgrade_head(f"/ws/client?token={server.token()}&device={MACHINE}", Host=HOST),
            notification(),
            f"GET /pair?id={MACHINE}&token={TOKEN_OF_CLAIM} HTTP/1.1\r\nHost: {HOST}\r\n\r\n".encode(),
        ):
            assert await is_refused(front, asked)
        logged = front.logged()
        for secret in (KEY, TOKEN_OF_CLAIM, server.token()[:30]):
            assert secret not in logged


async def come_and_go(front: ReverseProxy, token: str) -> None:
    """Connect an app, which requires that the proxy considers the relay healthy, and close it."""
    app = await connect_app(front, token, fetched_before=True)
    with trio.fail_after(5):
        await app.send(close(1000))
        assert (await app.read_close())[0] == 1000
        assert await read_to_end(app) == b""


async def read_to_end(connection: TlsWireClient) -> bytes:
    try:
        return await connection.read_to_end()
    except trio.BrokenResourceError:
        return b""


@every_front
async def test_posts_at_the_idle_limit_succeed(fit: Fit, tmp_path: Path) -> None:
    """No proxy sends a second request over a connection to the relay.

    The relay could close it while that request is on its way, and no proxy may send a POST twice. Proxies
    that forward bytes have no such connections: they close the client's connection along with the relay's.
    """
    outcomes: Counter[str] = Counter()
    async with idling_behind(fit, tmp_path) as front:
        async with trio.open_nursery() as nursery:
            for number in range(POSTING):
                spread_s = (number / POSTING - 0.5) * SPREAD_S
                nursery.start_soon(post_at_the_idle_limit, front, spread_s, outcomes)
        logged = front.logged()
    passes_bytes = fit in {nginx_passthrough, haproxy_passthrough}
    ended = outcomes.pop("ended") if passes_bytes else 0
    assert outcomes == {"405": POSTING * POSTS - ended}, logged


async def post_at_the_idle_limit(front: ReverseProxy, spread_s: float, outcomes: Counter[str]) -> None:
    """Send POST requests over one connection, each at the idle timeout of the relay."""
    post = f"POST /api/health HTTP/1.1\r\nHost: {HOST}\r\nContent-Length: 4\r\n\r\npost".encode()
    connection = await front.connect()
    for _ in range(POSTS):
        try:
            outcomes[str((await connection.ask(post)).status)] += 1
        except (Ended, trio.BrokenResourceError):
            outcomes["ended"] += 1
            connection = await front.connect()
        await trio.sleep(HTTP_IDLE_S + spread_s)


def notification() -> bytes:
    """Build the request with which a machine notifies its owners, with its key in a header."""
    body = msgspec.json.encode({"deviceId": MACHINE, "notification": {"type": "WATER_EMPTY"}})
    head = (
        f"POST /api/push/notify HTTP/1.1\r\nHost: {HOST}\r\nX-Device-Key: {KEY}\r\n"
        f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
    )
    return head.encode() + body


async def is_refused(front: ReverseProxy, asked: bytes) -> bool:
    try:
        connection = await front.connect()
        return (await connection.ask(asked)).status in {502, 503}
    except (Ended, OSError, trio.BrokenResourceError):
        return True


@every_front
async def test_a_reload_keeps_a_young_machine_connected(fit: Fit, tmp_path: Path) -> None:
    if fit is caddy and not caddy_is_gentle(need_program("caddy")):
        pytest.skip("Caddy before 2.7 closes WebSockets when it is reloaded (documented)")
    async with behind(fit, tmp_path) as (front, server):
        await register(front)
        machine = await connect_machine(front)
        app = await connect_app(front, server.token())
        await front.reload()
        await trio.sleep(1.5)
        await exchange(machine, app, 1)
        newcomer = await connect_app(front, server.token())
        await exchange(machine, newcomer, 2)
        await machine.send(frame(PING, mask=NO_MASK))
        await exchange(machine, app, 3)

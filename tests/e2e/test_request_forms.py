"""Requests in every form that HTTP/1.1 allows, over sockets: as other software sends them."""

import json
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import trio

from support.certificates import client_context, write_certificate
from support.process import KEY, WRONG_KEY, HereServer, machine_id, serve_here
from support.wire_client import PING, PONG, Response, WireClient, frame, upgrade_head

MACHINE = machine_id(1)
DEVICE = f"/ws/device?id={MACHINE}&key={KEY}"
HEAD_S = 0.3


def request(line: str, *headers: str, host: str = "relay.example") -> bytes:
    return "\r\n".join([f"{line} HTTP/1.1", f"Host: {host}", *headers, "", ""]).encode()


@pytest.fixture
async def server(tmp_path: Path) -> AsyncIterator[HereServer]:
    async with serve_here(tmp_path, within_s=20) as server:
        yield server


async def test_a_websocket_may_say_that_it_has_no_body(server: HereServer) -> None:
    connection = await server.connect()
    assert (await connection.ask(upgrade_head(DEVICE, Content_Length="0"))).status == 101
    assert (await connection.read_json())["type"] == "connected"


@pytest.mark.parametrize("scheme", ["http", "https", "ws", "wss"])
async def test_a_websocket_request_may_have_an_absolute_target(server: HereServer, scheme: str) -> None:
    target = f"{scheme}://relay.example{DEVICE}"
    assert (await (await server.connect()).ask(upgrade_head(target, Host="proxy.example"))).status == 101


async def test_the_host_of_a_whole_address_is_the_one_of_the_page(server: HereServer) -> None:
    """The authority of the target replaces the Host header, for a page's WebSocket and for its requests."""
    whole = f"http://relay.example/ws/client?token={server.token()}&device={MACHINE}"
    for origin, host, status in (
        ("http://relay.example", "proxy.example", 101),
        ("http://proxy.example", "proxy.example", 403),
    ):
        head = upgrade_head(whole, Host=host, Origin=origin)
        assert (await (await server.connect()).ask(head)).status == status
    for origin, status in (("http://relay.example", 401), ("http://proxy.example", 403)):
        line = "POST http://relay.example/api/auth/refresh"
        more = (f"Origin: {origin}", "Content-Type: application/json", "Content-Length: 20")
        asked = request(line, *more, host="proxy.example") + b'{"refreshToken":"x"}'
        assert (await (await server.connect()).ask(asked)).status == status


async def test_a_page_of_a_host_with_the_dot_of_the_root_is_our_own(server: HereServer) -> None:
    target = f"/ws/client?token={server.token()}&device={MACHINE}"
    for host, origin in (("relay.example.", "relay.example."), ("relay.example", "relay.example.")):
        head = upgrade_head(target, Host=host, Origin=f"http://{origin}")
        assert (await (await server.connect()).ask(head)).status == 101


@pytest.mark.parametrize("before", [b"", request("GET /api/health")])
@pytest.mark.parametrize("target", ["*", "http://relay.example"])
async def test_options_of_the_server(server: HereServer, before: bytes, target: str) -> None:
    connection = await server.connect()
    if before:
        assert (await connection.ask(before)).status == 200
    response = await connection.ask(request(f"OPTIONS {target}"))
    assert response.status == 200
    assert "GET" in response.header("allow")[0]
    assert response.header("content-length") == ["0"]
    assert (await connection.ask(request("GET /api/health"))).status == 200


@pytest.mark.parametrize("line", [b"\r\n", b"\n"])
async def test_an_empty_line_before_each_request(server: HereServer, line: bytes) -> None:
    connection = await server.connect()
    for _ in range(3):
        assert (await connection.ask(line + request("GET /api/health"))).status == 200
    response = await (await server.connect()).ask(line + upgrade_head(DEVICE))
    assert response.status == 101


async def test_an_upgrade_to_http_2_is_answered_in_http_1(server: HereServer) -> None:
    """As curl --http2 and java.net.http ask, the latter for requests with a body too."""
    more = ("Connection: Upgrade, HTTP2-Settings", "Upgrade: h2c", "HTTP2-Settings: AAMAAABkAAQCAAAAAAIAAAAA")
    response = await (await server.connect()).ask(request("GET /api/health", *more))
    assert (response.status, response.header("connection")) == (200, ["close"])
    assert response.header("upgrade") == []
    body = b'{"refreshToken":"x"}'
    sent = request("POST /api/auth/refresh", *more, "Content-Type: application/json", "Content-Length: 20")
    response = await (await server.connect()).ask(sent + body)
    assert response.status == 401


@pytest.mark.parametrize("tls", [False, True], ids=["plain", "tls"])
@pytest.mark.parametrize("together", [False, True])
async def test_a_websocket_on_a_connection_that_was_fetched_through(
    tmp_path: Path, tls: bool, together: bool
) -> None:
    """As java.net.http, OkHttp and aiohttp do, which keep connections in a pool."""
    async with open_ports(tmp_path, tls=tls) as (server, context):
        for target in (DEVICE, f"/ws/client?token={server.token()}&device={MACHINE}"):
            connection = await server.connect(tls_context=context, as_device=target == DEVICE)
            asked = [request("GET /api/health"), upgrade_head(target) + frame(PING, b"now")]
            if together:
                await connection.send(*asked)
            for number, status in enumerate((200, 101)):
                if not together:
                    await connection.send(asked[number])
                assert (await connection.read_response()).status == status
            assert (await connection.read_json())["type"] == "connected"
            while (found := await connection.read_frame()).opcode != PONG:
                pass  # the relay may ping or speak first
            assert found.payload == b"now"
        assert server.device_server.relay.is_online(MACHINE)
        assert server.device_server.relay.device_count == 1


async def test_a_later_upgrade_that_is_refused_ends_the_connection(server: HereServer) -> None:
    for sent, status in (
        (upgrade_head(f"/ws/device?id={MACHINE}&key={WRONG_KEY}"), 401),
        (upgrade_head(DEVICE, Sec_WebSocket_Version="8"), 426),
        (upgrade_head(DEVICE, Content_Length="5") + b"abcde", 400),
        (upgrade_head(DEVICE, Sec_WebSocket_Key="short"), 400),
        (upgrade_head("/api/health"), 400),
        (upgrade_head("/ws/client?token=x"), 400),
    ):
        connection = await server.connect()
        assert (await connection.ask(request("GET /api/health"))).status == 200
        response = await connection.ask(sent + request("GET /api/info"))
        assert response.status == status
        assert json.loads(response.body)["error"]
        assert await connection.read_to_end() == b""
    assert not server.device_server.relay.is_online(MACHINE)


# -- HEAD -------------------------------------------------------------------------------------------------


async def head_of(connection: WireClient, sent: bytes) -> Response:
    """Send a request for a head, and see that nothing comes behind the answer until the connection ends."""
    await connection.send(sent)
    with trio.fail_after(5):
        head, end, body = (await connection.read_to_end()).partition(b"\r\n\r\n")
    assert end
    assert body == b"", head
    return Response(int(head.split(b" ")[1]), head, b"")


def for_head(sent: bytes) -> bytes:
    return sent.replace(b"GET ", b"HEAD ", 1)


HEADS = {
    "200": (request("HEAD /api/health", "Connection: close"), 200),
    "page": (request("HEAD /", "Connection: close"), 200),
    "404": (request("HEAD /api/nowhere", "Connection: close"), 404),
    "404 page": (request("HEAD /nowhere", "Connection: close"), 404),
    "405": (request("HEAD /api/auth/refresh", "Connection: close"), 405),
    "401": (request("HEAD /api/devices", "Connection: close"), 401),
    "h2c": (request("HEAD /api/health", "Connection: Upgrade", "Upgrade: h2c"), 200),
    "device": (for_head(upgrade_head(DEVICE)), 400),
    "no upgrade": (request("HEAD /ws/client", "Connection: close"), 400),
    "upgrade elsewhere": (for_head(upgrade_head("/api/health")), 400),
    "bad target": (b"HEAD relay HTTP/1.1\r\nHost: a\r\n\r\n", 400),
    "bad header": (b"HEAD / HTTP/1.1\r\nHost: a\r\nbroken\r\n\r\n", 400),
    "no host": (b"HEAD / HTTP/1.1\r\n\r\n", 400),
    "empty line": (b"\r\nHEAD / HTTP/1.1\r\n\r\n", 400),
    "old": (b"HEAD / HTTP/0.9\r\n\r\n", 400),
    "late": (b"HEAD / HTTP/1.1\r\n", 408),
    "large body": (request("HEAD /api/health", "Content-Length: 999999999"), 413),
    "large head": (request("HEAD /", "X: " + "x" * 9000), 431),
    "endless head": (b"HEAD /" + b"x" * 20_000, 431),
}


@asynccontextmanager
async def open_ports(tmp_path: Path, *, tls: bool) -> AsyncIterator[tuple[HereServer, ssl.SSLContext | None]]:
    files = write_certificate(tmp_path, names=["relay.example"])
    settings = {"tls_cert": files.cert, "tls_key": files.key} if tls else {}
    async with serve_here(tmp_path, settings=settings, within_s=20, request_head_s=HEAD_S) as server:
        yield server, client_context() if tls else None


@pytest.mark.parametrize("tls", [False, True], ids=["plain", "tls"])
async def test_no_answer_to_head_has_a_body(tmp_path: Path, tls: bool) -> None:
    async with open_ports(tmp_path, tls=tls) as (server, context):
        for name, (sent, status) in HEADS.items():
            response = await head_of(await server.connect(tls_context=context), sent)
            assert response.status == status, name


async def test_no_later_answer_to_head_has_a_body(tmp_path: Path) -> None:
    """After the first request of a connection, the HTTP side itself refuses malformed requests."""
    async with open_ports(tmp_path, tls=False) as (server, _):
        for name, (sent, _status) in HEADS.items():
            connection = await server.connect()
            assert (await connection.ask(request("GET /api/health"))).status == 200
            response = await head_of(connection, sent)
            assert response.status >= 200, name


async def test_heads_share_a_connection(server: HereServer) -> None:
    connection = await server.connect()
    for path in ("/api/info", "/api/nowhere", "/nowhere", "/"):
        got = await connection.ask(request(f"GET {path}"))
        await connection.send(request(f"HEAD {path}") + request("GET /api/info"))
        head = b""
        while not head.endswith(b"\r\n\r\n"):
            head += await connection._take(1)
        assert Response(0, head, b"").header("content-length") == got.header("content-length")
        assert json.loads((await connection.read_response()).body)


async def test_no_refusal_of_a_head_by_a_server_that_leaves_has_a_body(tmp_path: Path) -> None:
    async with serve_here(tmp_path, device_min_age_s=0.5) as server:
        await server.device(MACHINE)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(server.server.relay.drain)
            await trio.testing.wait_all_tasks_blocked()
            await head_of(await server.connect(), for_head(upgrade_head(DEVICE)))
            health = request("HEAD /readyz", "Connection: close")
            assert (await head_of(await server.connect(), health)).status == 503

"""A malformed request gets a clear refusal, and ends only its own connection."""

import json
import ssl

import pytest
import trio

from support.process import KEY, Unharmed, machine_id
from support.steady_clock import SteadyClock
from support.wire_client import text, upgrade_head

VICTIM = machine_id(1)
DEVICE = f"/ws/device?id={VICTIM}&key={KEY}"
HEAD_S = 0.3


def tls_hello() -> bytes:
    outgoing = ssl.MemoryBIO()
    context = ssl.create_default_context()
    with pytest.raises(ssl.SSLWantReadError):
        context.wrap_bio(ssl.MemoryBIO(), outgoing, server_hostname="relay.example").do_handshake()
    return outgoing.read()


def plain(target: str = "/api/health", *, host: str = "Host: relay.example", more: str = "") -> bytes:
    return f"GET {target} HTTP/1.1\r\n{host}\r\n{more}\r\n".encode("latin-1")


NOT_HTTP = {
    "zero bytes": bytes(200),
    "high bytes": b"\xff\xfe\xfd" * 50,
    "text": b"hello, is anybody there?\r\n\r\n",
    "tls hello": tls_hello(),
    "old tls hello": b"\x16\x03\x01\x00\x05hello",
    "http/2 preface": b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    "line ends only": b"\r\n\r\n\r\n\r\n",
    "websocket frame": text({"type": "command"}),
    "http/0.9": b"GET /\r\n\r\n",
    "http/3": b"GET / HTTP/3.0\r\n\r\n",
    "small letters": b"get / http/1.1\r\nHost: a\r\n\r\n",
    "line end in target": b"GET /api/\rhealth HTTP/1.1\r\nHost: a\r\n\r\n",
    "nul in target": b"GET /api/\0 HTTP/1.1\r\nHost: a\r\n\r\n",
    "nul in header": b"GET / HTTP/1.1\r\nHost: a\r\nX: \0\r\n\r\n",
    "folded header": b"GET / HTTP/1.1\r\nHost: a\r\nX: b\r\n c\r\n\r\n",
    "space before colon": b"GET / HTTP/1.1\r\nHost : a\r\n\r\n",
    "header without colon": b"GET / HTTP/1.1\r\nHost: a\r\nbroken\r\n\r\n",
}


@pytest.mark.parametrize("data", NOT_HTTP.values(), ids=NOT_HTTP)
async def test_data_other_than_http_is_refused(unharmed: Unharmed, data: bytes) -> None:
    async with unharmed() as server:
        connection = await server.connect()
        response = await connection.ask(data)
        assert response.status == 400
        assert response.header("connection") == ["close"]
        await connection.read_to_end()


BAD_HOSTS = {
    "missing": "Accept: */*",
    "with a space": "Host: relay example",
    "with a path": "Host: relay.example/ws",
    "with a user": "Host: ada@relay.example",
    "with a bad port": "Host: relay.example:http",
    "twice": "Host: one.example\r\nHost: two.example",
    "half an address": "Host: [::1",
    "high bytes": "Host: relay.\xff\xfe",
}


@pytest.mark.parametrize("path", ["/api/health", DEVICE], ids=["api", "device"])
@pytest.mark.parametrize("host", BAD_HOSTS.values(), ids=BAD_HOSTS)
async def test_a_bad_host_is_refused(unharmed: Unharmed, path: str, host: str) -> None:
    async with unharmed() as server:
        head = upgrade_head(path) if path == DEVICE else plain(path)
        request = head.replace(b"Host: relay.example:3001", host.encode("latin-1"))
        request = request.replace(b"Host: relay.example", host.encode("latin-1"))
        assert (await (await server.connect()).ask(request)).status == 400


@pytest.mark.parametrize("sent", [b"GET /ws/device?id=BRW-", plain()[:-2]])
async def test_half_a_request_and_silence_is_told_so(
    unharmed: Unharmed, sent: bytes, steady_clock: SteadyClock
) -> None:
    async with unharmed(request_head_s=HEAD_S) as server:
        connection = await server.connect()
        response = await connection.ask(sent)
        assert response.status == 408
        assert response.header("connection") == ["close"]


@pytest.mark.parametrize("sent", [b"", b"G", b"GET /ws/device?id=BRW-", plain()[:-2]])
async def test_half_a_request_and_an_end_is_the_end(unharmed: Unharmed, sent: bytes) -> None:
    async with unharmed() as server:
        connection = await server.connect()
        if sent:
            await connection.send(sent)
        await connection.send_eof()
        with trio.fail_after(2):
            await connection.read_to_end()


async def test_silence_is_the_end(unharmed: Unharmed, steady_clock: SteadyClock) -> None:
    async with unharmed(request_head_s=HEAD_S) as server:
        connection = await server.connect()
        with trio.fail_after(2):
            await connection.read_to_end()


async def test_a_trickle_does_not_buy_time(unharmed: Unharmed, steady_clock: SteadyClock) -> None:
    async with unharmed(request_head_s=HEAD_S) as server:
        connection = await server.connect()
        began = trio.current_time()

        async def trickle() -> None:
            await connection.send(b"GET /api/health HTTP/1.1\r\nHost: a\r\nX: ")
            while True:
                await connection.send(b"x")
                await trio.sleep(0.02)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(trickle)
            assert (await connection.read_response()).status == 408
            nursery.cancel_scope.cancel()
        assert HEAD_S * 0.9 <= trio.current_time() - began < HEAD_S + 1


HUGE = {
    "one header": plain(more="X: " + "x" * 9000 + "\r\n"),
    "many headers": plain(more="X: y\r\n" * 2000),
    "query": plain("/api/health?" + "q" * 9000),
    "endless line": b"GET /" + b"x" * 20_000,
    "device": upgrade_head(DEVICE, X="x" * 9000),
}


@pytest.mark.parametrize("request_head", HUGE.values(), ids=HUGE)
async def test_a_huge_head_is_refused(unharmed: Unharmed, request_head: bytes) -> None:
    async with unharmed() as server:
        connection = await server.connect()
        assert (await connection.ask(request_head)).status == 431
        await connection.read_to_end()


async def test_a_head_of_8_kib_is_not_huge(unharmed: Unharmed) -> None:
    async with unharmed() as server:
        padding = 8 * 1024 - len(plain(more="X: \r\n"))
        assert (await (await server.connect()).ask(plain(more=f"X: {'x' * padding}\r\n"))).status == 200


@pytest.mark.parametrize("path", ["/ws/other", "/ws/device/more", "/ws/client/"])
async def test_a_bad_websocket_path_is_not_found(unharmed: Unharmed, path: str) -> None:
    async with unharmed() as server:
        assert (await (await server.connect()).ask(plain(path))).status == 404
        assert (await (await server.connect()).ask(upgrade_head(path))).status in {400, 404}


async def test_an_unknown_api_path_is_not_found_in_json(unharmed: Unharmed) -> None:
    async with unharmed() as server:
        response = await (await server.connect()).ask(plain("/api/x"))
        assert response.status == 404
        assert response.header("content-type")[0].startswith("application/json")
        assert json.loads(response.body)["error"]


@pytest.mark.parametrize("version", [None, "8", "12", "14", "13, 8", "x"])
async def test_another_websocket_version_is_refused_with_the_supported_one(
    unharmed: Unharmed, version: str | None
) -> None:
    async with unharmed() as server:
        response = await (await server.connect()).ask(upgrade_head(DEVICE, Sec_WebSocket_Version=version))
        assert response.status == 426
        assert response.header("sec-websocket-version") == ["13"]


BAD_UPGRADES = {
    "no key": upgrade_head(DEVICE, Sec_WebSocket_Key=None),
    "short key": upgrade_head(DEVICE, Sec_WebSocket_Key="c2hvcnQ="),
    "key not base64": upgrade_head(DEVICE, Sec_WebSocket_Key="!" * 24),
    "two keys": upgrade_head(DEVICE, X="y\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ=="),
    "no connection": upgrade_head(DEVICE, Connection=None),
    "connection close": upgrade_head(DEVICE, Connection="close"),
    "post": upgrade_head(DEVICE, method="POST"),
    "http/1.0": upgrade_head(DEVICE, version="1.0"),
    "with a body": upgrade_head(DEVICE, Content_Length="3") + b"abc",
    "with a chunked body": upgrade_head(DEVICE, Transfer_Encoding="chunked") + b"0\r\n\r\n",
    "h2c": upgrade_head(
        DEVICE, Connection="Upgrade, HTTP2-Settings", Upgrade="h2c", HTTP2_Settings="AAMAAABk"
    ),
    "plain": plain(DEVICE),
    "query not UTF-8": upgrade_head("/ws/device?id=%ff%fe&key=%00"),
    "too many parameters": upgrade_head(DEVICE + "&a=b" * 500),
}


@pytest.mark.parametrize("request_head", BAD_UPGRADES.values(), ids=BAD_UPGRADES)
async def test_a_bad_handshake_is_refused(unharmed: Unharmed, request_head: bytes) -> None:
    async with unharmed() as server:
        connection = await server.connect()
        response = await connection.ask(request_head)
        assert response.status in {400, 405, 426}
        assert response.header("connection") == ["Upgrade, close" if response.status == 426 else "close"]
        await connection.read_to_end()


@pytest.mark.parametrize("path", ["/", "/api/health", "/api/devices", "/assets/x.js", "/nowhere"])
@pytest.mark.parametrize("behind", [b"", b"\n", text({"type": "x"})], ids=["", "byte", "frame"])
async def test_an_upgrade_elsewhere_is_refused(unharmed: Unharmed, path: str, behind: bytes) -> None:
    async with unharmed() as server:
        connection = await server.connect()
        assert (await connection.ask(upgrade_head(path) + behind)).status == 400
        await connection.read_to_end()


@pytest.mark.parametrize("protocol", ["h2c", "TLS/1.3", "", "\xff"])
async def test_another_protocol_is_ignored_and_its_request_is_the_last(
    unharmed: Unharmed, protocol: str
) -> None:
    async with unharmed() as server:
        head = plain(
            more=f"Connection: Upgrade, HTTP2-Settings\r\nUpgrade: {protocol}\r\nHTTP2-Settings: A\r\n"
        )
        for before in (b"", plain()):
            connection = await server.connect()
            await connection.send(before + head + plain())
            for _ in range(1 if before == b"" else 2):
                response = await connection.read_response()
                assert response.status == 200
            assert response.header("connection") == ["close"]
            assert await connection.read_to_end() == b""


@pytest.mark.parametrize("path", ["/api/health", f"{DEVICE}x", "/ws/client?token=x"])
async def test_a_bad_upgrade_as_a_second_request_is_refused(unharmed: Unharmed, path: str) -> None:
    async with unharmed() as server:
        connection = await server.connect()
        assert (await connection.ask(plain())).status == 200
        assert 400 <= (await connection.ask(upgrade_head(path) + b"\n")).status < 500
        await connection.read_to_end()
        assert not server.device_server.relay.is_online(VICTIM)


@pytest.mark.parametrize(
    "request_head",
    [
        b"POST /api/health HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
        b"POST /api/health HTTP/1.1\r\nHost: a\r\nContent-Length: -1\r\n\r\n",
        b"POST /api/health HTTP/1.1\r\nHost: a\r\nContent-Length: 999999999999\r\n\r\n" + bytes(100_000),
        b"POST /api/health HTTP/1.1\r\nHost: a\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\nab",
        b"DELETE /api/devices HTTP/1.1\r\nHost: a\r\n\r\n",
        b"GET * HTTP/1.1\r\nHost: a\r\n\r\n",
        b"OPTIONS *x HTTP/1.1\r\nHost: a\r\n\r\n",
        b"GET http://ada@a/api/health HTTP/1.1\r\nHost: a\r\n\r\n",
        b"GET ftp://a/api/health HTTP/1.1\r\nHost: a\r\n\r\n",
        b"GET http://a/api/health HTTP/1.1\r\n\r\n",
        b"CONNECT a:443 HTTP/1.1\r\nHost: a\r\n\r\n",
    ],
)
async def test_bad_http_is_refused(unharmed: Unharmed, request_head: bytes) -> None:
    async with unharmed(stall_s=0.5) as server:
        connection = await server.connect()
        assert 400 <= (await connection.ask(request_head)).status < 500


async def test_a_reset_at_any_moment_is_not_logged(unharmed: Unharmed) -> None:
    async with unharmed() as server:
        whole = upgrade_head(DEVICE) + text({"type": "status"})
        for length in range(0, len(whole), 7):
            connection = await server.connect()
            await connection.send(whole[:length])
            connection.abort()
        with trio.fail_after(2):
            while server.device_server.relay.is_online(VICTIM):  # noqa: ASYNC110 - another's end
                await trio.sleep(0.01)


async def test_many_silent_connections_delay_no_other(unharmed: Unharmed) -> None:
    async with unharmed() as server:
        silent = [await server.connect() for _ in range(200)]
        for connection in silent[::2]:
            await connection.send(b"GET /ws/")
        device = await server.device(VICTIM)
        await device.send(text({"type": "status"}))
        assert (await (await server.connect()).ask(plain())).status == 200


async def test_an_unread_response_delays_no_other_connection(
    unharmed: Unharmed, steady_clock: SteadyClock
) -> None:
    async with unharmed(stall_s=0.3) as server:
        connection = await server.connect(receive_buffer_bytes=2048)
        with trio.move_on_after(1):
            try:
                while True:
                    await connection.send(plain() * 100)
            except trio.BrokenResourceError:
                pass
        assert await connection.read_to_end()

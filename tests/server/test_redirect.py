"""The redirect port."""

import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
import trio
import trio.testing

from brewos_relay.server.incoming import PortPolicy
from brewos_relay.server.redirect import Redirect
from brewos_relay.settings.server_limits import ServerLimits
from support.wire_client import Response, WireClient

OWN_HOSTS = {"relay.example", "192.0.2.7", "[2001:db8::7]"}


@asynccontextmanager
async def redirecting(
    *, https_port: int = 443, port_policy: PortPolicy | None = None, limits: ServerLimits | None = None
) -> AsyncIterator[tuple[str, int]]:
    """Serve redirects on a port of this machine."""
    with trio.fail_after(100), socket.create_server(("127.0.0.1", 0)) as listening:
        listening.setblocking(False)
        async with trio.open_nursery() as nursery:
            redirect = Redirect(
                [listening],
                https_port=https_port,
                is_own_host=OWN_HOSTS.__contains__,
                limits=limits or ServerLimits(close_s=0.5),
                port_policy=port_policy or PortPolicy(),
            )
            nursery.start_soon(redirect.run)
            yield listening.getsockname()
            nursery.cancel_scope.cancel()


async def ask(address: tuple[str, int], request: bytes) -> Response:
    """Send a request, read the response, and check that the connection ends."""
    client = await WireClient.connect(address)
    try:
        response = await client.ask(request)
        assert await client.read_to_end() == b""
    finally:
        await client.stream.aclose()
    return response


def request(target: str = "/", host: str | None = "relay.example", *, method: str = "GET") -> bytes:
    lines = [f"{method} {target} HTTP/1.1", *([] if host is None else [f"Host: {host}"]), "", ""]
    return "\r\n".join(lines).encode()


async def test_redirected_device_closes_first() -> None:
    async with redirecting() as address:
        client = await WireClient.connect(address)
        assert (await client.ask(request("/ws/device?id=BRW-12345678&key=k"))).status == 308
        with trio.move_on_after(0.3) as no_end:
            await client.read_to_end()
        assert no_end.cancelled_caught
        await client.send_eof()
        assert await client.read_to_end() == b""
        await client.stream.aclose()


@pytest.mark.parametrize("method", ["GET", "HEAD", "POST"])
@pytest.mark.parametrize("target", ["/", "/pair?id=BRW-1&token=a%20b", "//other.example/", "/a?b?c"])
async def test_a_request_is_sent_to_the_same_path_over_tls(method: str, target: str) -> None:
    async with redirecting() as address:
        client = await WireClient.connect(address)
        await client.send(request(target, method=method))
        head, _, body = (await client.read_to_end()).partition(b"\r\n\r\n")
        await client.stream.aclose()
    assert head.startswith(b"HTTP/1.1 308 Permanent Redirect\r\n")
    assert f"\r\nLocation: https://relay.example{target}\r\n".encode() in head
    assert b"\r\nCache-Control: no-store" in head
    assert b"200 " not in head
    assert (body == b"") == (method == "HEAD")


@pytest.mark.parametrize(
    ("sent", "status"),
    [
        (b"HEAD / HTTP/1.1\r\nHost: other.example\r\n\r\n", b"421"),
        (b"\r\nHEAD / HTTP/1.1\r\n\r\n", b"400"),
        (b"HEAD /" + b"a" * 9000, b"431"),
        (b"HEAD / HTTP/1.1\r\n", b"408"),
    ],
)
async def test_no_refusal_of_a_head_has_a_body(sent: bytes, status: bytes) -> None:
    async with redirecting(limits=ServerLimits(close_s=0.5, request_head_s=0.2)) as address:
        client = await WireClient.connect(address)
        await client.send(sent)
        head, end, body = (await client.read_to_end()).partition(b"\r\n\r\n")
        await client.stream.aclose()
    assert (head.split(b" ")[1], end, body) == (status, b"\r\n\r\n", b"")


@pytest.mark.parametrize(
    ("host", "where"),
    [
        ("relay.example", "relay.example:8443"),
        ("relay.example:80", "relay.example:8443"),
        ("relay.example:", "relay.example:8443"),
        ("192.0.2.7:8080", "192.0.2.7:8443"),
        ("[2001:db8::7]", "[2001:db8::7]:8443"),
        ("[2001:db8::7]:80", "[2001:db8::7]:8443"),
    ],
)
async def test_the_port_is_that_of_tls(host: str, where: str) -> None:
    async with redirecting(https_port=8443) as address:
        response = await ask(address, request("/a", host))
    assert response.header("location") == [f"https://{where}/a"]


@pytest.mark.parametrize(
    ("target", "host", "where"),
    [
        ("/a", "relay.example.", "https://relay.example/a"),
        ("/a", "relay.example.:80", "https://relay.example/a"),
        ("http://relay.example/a?b", "other.example", "https://relay.example/a?b"),
        ("http://relay.example.:80/a", "other.example", "https://relay.example/a"),
    ],
)
async def test_every_form_of_an_address_is_sent_to_the_same_one(target: str, host: str, where: str) -> None:
    async with redirecting() as address:
        response = await ask(address, request(target, host))
    assert response.header("location") == [where]


async def test_options_of_the_server_have_no_path() -> None:
    async with redirecting() as address:
        response = await ask(address, request("*", method="OPTIONS"))
    assert (response.status, response.header("location")) == (308, ["https://relay.example"])


@pytest.mark.parametrize("host", ["other.example", "relay.example.other.example", "192.0.2.8", "[::1]"])
async def test_requests_are_not_redirected_to_a_foreign_host(host: str) -> None:
    async with redirecting() as address:
        response = await ask(address, request("/", host))
    assert response.status == 421
    assert response.header("location") == []


@pytest.mark.parametrize(
    ("sent", "status"),
    [
        (request("/", None), 400),
        (b"GET / HTTP/1.0\r\n\r\n", 421),
        (request("http://other.example/"), 421),
        (request("/", "a@relay.example"), 400),
        (b"\x16\x03\x01", 400),
        (b"GET /" + b"a" * 9000, 431),
    ],
)
async def test_requests_that_cannot_be_redirected_are_refused(sent: bytes, status: int) -> None:
    async with redirecting() as address:
        assert (await ask(address, sent)).status == status


async def test_slow_clients_are_answered_or_dropped_in_time(autojump_clock: trio.testing.MockClock) -> None:
    async with redirecting(limits=ServerLimits(request_head_s=5, close_s=1)) as address:
        silent, slow = await WireClient.connect(address), await WireClient.connect(address)
        await slow.send(b"GET /")
        began = trio.current_time()
        assert await silent.read_to_end() == b""
        assert (await slow.read_response()).status == 408
        await slow.read_to_end()
        assert trio.current_time() - began <= 6.1
        silent.abort()
        slow.abort()


async def test_the_address_from_a_proxy_header_is_used(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO")
    async with redirecting(port_policy=PortPolicy(is_proxy=lambda _: True)) as address:
        response = await ask(address, b"PROXY TCP4 192.0.2.9 192.0.2.7 1 80\r\n" + request())
        assert response.status == 308
        assert (await ask(address, request())).status == 400
        line = b"PROXY TCP4 192.0.2.9 192.0.2.7 1 80\r\n"
        assert (await ask(address, line + request("/", "other.example"))).status == 421
    assert "192.0.2.9" in caplog.text


async def test_a_defect_ends_one_connection_only(caplog: pytest.LogCaptureFixture) -> None:
    with trio.fail_after(10), socket.create_server(("127.0.0.1", 0)) as listening:
        listening.setblocking(False)

        def fail(_host: str) -> bool:
            raise ZeroDivisionError

        async with trio.open_nursery() as nursery:
            redirect = Redirect([listening], https_port=443, is_own_host=fail, limits=ServerLimits())
            nursery.start_soon(redirect.run)
            for _ in "12":
                client = await WireClient.connect(listening.getsockname())
                await client.send(request())
                assert await client.read_to_end() == b""
                await client.stream.aclose()
            nursery.cancel_scope.cancel()
    assert caplog.text.count("a connection failed during its redirect") == 2

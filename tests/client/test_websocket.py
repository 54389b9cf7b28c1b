"""Tests of client.connection: opening, refusals, ends, and that nothing stays open."""

import errno
import socket
import ssl

import pytest
import trio
import trio.testing

from brewos_relay.client.endpoint import RelayUnreachable
from brewos_relay.client.websocket import (
    CLOSE_S,
    ConnectionEnded,
    RelayRefused,
    dial_app,
    dial_device,
    open_websocket,
)
from brewos_relay.errors import RelayError
from brewos_relay.messages import Message
from support.resources import own_open_files
from support.steady_clock import SteadyClock
from support.websocket_server import answering, open_server, open_websocket_server

SECRET = "/ws/client?token=s3cr3t"
DEADLINE_S = 10.0


async def test_exchanges_text_and_binary() -> None:
    with trio.fail_after(DEADLINE_S):
        async with open_websocket_server() as (url, accepted):
            async with open_websocket(url, SECRET) as websocket:
                server = await accepted.receive()
                assert server.path == SECRET
                await websocket.send(Message("grüße".encode()))
                await websocket.send(Message(b"\x81\x00", is_text=False))
                assert await server.connection.get_message() == "grüße"
                assert await server.connection.get_message() == b"\x81\x00"
                await server.connection.send_message("text")
                await server.connection.send_message(b"binary")
                assert await websocket.receive() == Message(b"text")
                assert await websocket.receive() == Message(b"binary", is_text=False)
                await websocket.ping(timeout_s=5)
            with pytest.raises(Exception, match="1000"):
                await server.connection.get_message()


async def test_close_has_code_and_reason() -> None:
    with trio.fail_after(DEADLINE_S):
        async with open_websocket_server() as (url, accepted), open_websocket(url, SECRET) as websocket:
            server = await accepted.receive()
            await server.connection.send_message("last words")
            await server.connection.aclose(4002, "token\x1b[31m expired")
            assert await websocket.receive() == Message(b"last words")
            with pytest.raises(ConnectionEnded) as caught:
                await websocket.receive()
            assert caught.value.close_code == 4002
            assert caught.value.reason == "token [31m expired"
            with pytest.raises(ConnectionEnded):
                await websocket.send(Message(b"too late"))
            with pytest.raises(ConnectionEnded):
                await websocket.ping(timeout_s=5)


async def test_loss_has_no_close_code() -> None:
    with trio.fail_after(DEADLINE_S):
        async with open_websocket_server() as (url, accepted), open_websocket(url, SECRET) as websocket:
            server = await accepted.receive()
            await trio.aclose_forcefully(server.connection._stream)
            with pytest.raises(ConnectionEnded, match="was lost") as caught:
                await websocket.receive()
            assert caught.value.close_code is None


async def test_ping_without_a_pong_ends_the_connection() -> None:
    handshake = trio.Event()

    async def silent(stream: trio.SocketStream) -> None:
        from wsproto import ConnectionType, WSConnection
        from wsproto.events import AcceptConnection, Request

        protocol = WSConnection(ConnectionType.SERVER)
        async with stream:
            protocol.receive_data(await stream.receive_some())
            assert isinstance(next(iter(protocol.events())), Request)
            await stream.send_all(protocol.send(AcceptConnection()))
            handshake.set()
            await trio.sleep_forever()

    with trio.fail_after(DEADLINE_S):
        async with open_server(silent) as url, open_websocket(url, SECRET) as websocket:
            await handshake.wait()
            with pytest.raises(ConnectionEnded, match="no pong"):
                await websocket.ping(timeout_s=0.05)


@pytest.mark.parametrize(
    ("answer", "status", "detail"),
    [
        (b"HTTP/1.1 401 Unauthorized\r\nContent-Length: 0\r\n\r\n", 401, ""),
        (b"HTTP/1.1 503 Service Unavailable\r\nContent-Length: 8\r\n\r\ndraining", 503, "draining"),
        # The body ends with the connection, or is cut short.
        (b"HTTP/1.1 403 Forbidden\r\nConnection: close\r\n\r\nnot yours", 403, "not yours"),
        (b"HTTP/1.1 403 Forbidden\r\nContent-Length: 99\r\n\r\nnot yours", 403, "not yours"),
        (
            b'HTTP/1.1 400 Bad Request\r\nContent-Length: 38\r\n\r\n{"error":"bad_id","message":"Bad id."} ',
            400,
            "Bad id.",
        ),
        (b'HTTP/1.1 400 Bad Request\r\nContent-Length: 18\r\n\r\n{"error":"bad_id"}', 400, "bad_id"),
        (b"HTTP/1.1 404 Not Found\r\nContent-Length: 4\r\n\r\n[42]", 404, ""),
        (b"HTTP/1.1 502 Bad Gateway\r\nContent-Length: 13\r\n\r\n<html></html>", 502, ""),
        (b"HTTP/1.1 301 Moved\r\nLocation: https://elsewhere/\r\nContent-Length: 0\r\n\r\n", 301, ""),
    ],
)
async def test_refusal_has_a_status_and_leaves_no_open_socket(
    answer: bytes, status: int, detail: str
) -> None:
    with trio.fail_after(DEADLINE_S):
        async with open_server(answering(answer)) as url:
            before = own_open_files()
            with pytest.raises(RelayRefused) as caught:
                async with open_websocket(url, SECRET):
                    pass  # pragma: no cover
            assert (caught.value.status, caught.value.detail) == (status, detail)
            assert "s3cr3t" not in str(caught.value)
            await trio.testing.wait_all_tasks_blocked()
            assert own_open_files() <= before


@pytest.mark.parametrize(
    ("headers", "retry_after_s"),
    [
        (b"", None),
        (b"Retry-After: 5\r\n", 5),
        (b"Server: x\r\nretry-after:120\r\nServer: y\r\n", 120),
        (b"X-Retry-After: 5\r\n", None),
        (b"Retry-After: soon\r\n", None),
    ],
)
async def test_refusal_may_have_retry_after(headers: bytes, retry_after_s: float | None) -> None:
    answer = b"HTTP/1.1 503 Unavailable\r\n" + headers + b"Content-Length: 16\r\n\r\nRetry-After: 99\n"
    with trio.fail_after(DEADLINE_S):
        async with open_server(answering(answer)) as url:
            with pytest.raises(RelayRefused) as caught:
                async with open_websocket(url, SECRET):
                    pass  # pragma: no cover
            assert (caught.value.status, caught.value.retry_after_s) == (503, retry_after_s)


async def test_truncated_refusal_is_a_refusal() -> None:
    with trio.fail_after(DEADLINE_S):
        async with open_server(answering(b"HTTP/1.1 503 Unavailable\r\nRetry-Af")) as url:
            with pytest.raises(RelayRefused, match=r"HTTP 503$") as caught:
                async with open_websocket(url, SECRET):
                    pass  # pragma: no cover
            assert caught.value.retry_after_s is None


async def test_close_does_not_wait_for_a_silent_server(steady_clock: SteadyClock) -> None:
    async with open_websocket_server() as (url, accepted):
        with trio.fail_after(DEADLINE_S):
            async with open_websocket(url, SECRET):
                server = await accepted.receive()
                await server.connection._stream_lock.acquire()
                began_s = trio.current_time()
            assert CLOSE_S <= trio.current_time() - began_s < CLOSE_S + 1


async def test_cancellation_sends_a_close_frame_with_messages_unread() -> None:
    with trio.fail_after(DEADLINE_S):
        async with open_websocket_server() as (url, accepted):
            with trio.CancelScope() as scope:
                async with open_websocket(url, SECRET):
                    server = await accepted.receive()
                    for _ in range(5):
                        await server.connection.send_message("x" * 10_000)
                    scope.cancel()
                    await trio.sleep_forever()
            with pytest.raises(Exception, match="1000"):
                await server.connection.get_message()


@pytest.mark.parametrize(
    ("answer", "text"),
    [
        (b"", "without an answer"),
        (b"SSH-2.0-OpenSSH_9.6\r\n", "not a WebSocket server"),
        (b"HTTP/1.1 101 Switching Protocols\r\n\r\n", "not a WebSocket server"),
    ],
)
async def test_other_answers_are_unreachable_and_leave_no_open_socket(answer: bytes, text: str) -> None:
    with trio.fail_after(DEADLINE_S):
        async with open_server(answering(answer)) as url:
            before = own_open_files()
            with pytest.raises(RelayUnreachable, match=text):
                async with open_websocket(url, SECRET):
                    pass  # pragma: no cover
            await trio.testing.wait_all_tasks_blocked()
            assert own_open_files() <= before


async def test_handshake_timeout_raises() -> None:
    async def silent(stream: trio.SocketStream) -> None:
        async with stream:
            await trio.sleep_forever()

    with trio.fail_after(DEADLINE_S):
        async with open_server(silent) as url:
            with pytest.raises(RelayUnreachable, match="did not answer the upgrade"):
                async with open_websocket(url, SECRET, timeout_s=0.05):
                    pass  # pragma: no cover
            with pytest.raises(RelayUnreachable, match="no connection after"):
                async with open_websocket(
                    url.replace("http", "https"),
                    SECRET,
                    timeout_s=0.05,
                    ssl_context=ssl.create_default_context(),
                ):
                    pass  # pragma: no cover


async def test_refused_tcp_connection_raises() -> None:
    (listener,) = await trio.open_tcp_listeners(0, host="127.0.0.1")
    port = listener.socket.getsockname()[1]
    await listener.aclose()
    with trio.fail_after(DEADLINE_S), pytest.raises(RelayUnreachable) as caught:
        async with open_websocket(f" ws://127.0.0.1:{port}/", SECRET):
            pass  # pragma: no cover
    assert str(caught.value) == f"cannot connect to ws://127.0.0.1:{port}/ (Connection refused)"


async def test_each_address_may_fail_for_its_own_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    refused = OSError(errno.ECONNREFUSED, "Error connecting to ('::1', 1)")
    unreachable = OSError(errno.ENETUNREACH, "Error connecting to ('192.0.2.1', 1)")

    async def fail(*_: object) -> None:
        raise OSError("all attempts failed") from ExceptionGroup("", [refused, unreachable, refused])

    monkeypatch.setattr(trio, "open_tcp_stream", fail)
    with pytest.raises(
        RelayUnreachable, match=r"relay\.example \(Connection refused, Network is unreachable\)$"
    ):
        async with open_websocket("http://relay.example", SECRET):
            pass  # pragma: no cover


async def test_unknown_host_raises(monkeypatch: pytest.MonkeyPatch) -> None:
    async def fail(*_: object) -> None:
        raise socket.gaierror(8, "Name not known")

    monkeypatch.setattr(trio, "open_tcp_stream", fail)
    with pytest.raises(RelayUnreachable, match=r"http://relay\.example \(Name not known\)$"):
        async with open_websocket("http://relay.example", SECRET):
            pass  # pragma: no cover


async def test_missing_tls_raises() -> None:
    async def plain(stream: trio.SocketStream) -> None:
        async with stream:
            await stream.receive_some()
            await stream.send_all(b"HTTP/1.1 400 Bad Request\r\n\r\n")

    with trio.fail_after(DEADLINE_S):
        async with open_server(plain) as url:
            before = own_open_files()
            with pytest.raises(RelayUnreachable, match="no TLS"):
                async with open_websocket(url.replace("http", "https"), SECRET):
                    pass  # pragma: no cover
            await trio.testing.wait_all_tasks_blocked()
            assert own_open_files() <= before


async def test_exception_of_the_block_is_unwrapped() -> None:
    class OwnError(RelayError):
        pass

    with trio.fail_after(DEADLINE_S):
        async with open_websocket_server() as (url, accepted):
            with pytest.raises(OwnError):
                async with open_websocket(url, SECRET):
                    raise OwnError
            server = await accepted.receive()
            with pytest.raises(Exception, match="1000"):
                await server.connection.get_message()


async def test_cancellation_sends_a_close_frame(steady_clock: SteadyClock) -> None:
    with trio.fail_after(DEADLINE_S):
        async with open_websocket_server() as (url, accepted):
            before = own_open_files()
            with trio.CancelScope() as scope:
                async with open_websocket(url, SECRET) as websocket:
                    server = await accepted.receive()
                    cancelled_at_s = trio.current_time()
                    scope.cancel()
                    await websocket.receive()
            assert scope.cancelled_caught
            assert trio.current_time() - cancelled_at_s < CLOSE_S  # the answer was read
            with pytest.raises(Exception, match="1000"):
                await server.connection.get_message()
            await trio.testing.wait_all_tasks_blocked()
            assert own_open_files() <= before


# Requests of devices and apps


async def test_app_request_has_device_and_token() -> None:
    with trio.fail_after(10):
        async with open_websocket_server() as (url, accepted):
            async with dial_app(url, token="a b&c", device_id="BRW-0000ABCD"):
                server = await accepted.receive()
            assert server.path == "/ws/client?token=a+b%26c&device=BRW-0000ABCD"


async def test_device_request_has_the_headers_of_firmware() -> None:
    with trio.fail_after(10):
        async with open_websocket_server() as (url, accepted):
            async with dial_device(url, device_id="BRW-0000ABCD", key="k" * 43):
                server = await accepted.receive()
            assert server.path == f"/ws/device?id=BRW-0000ABCD&key={'k' * 43}"
            assert server.subprotocols == ("arduino",)
            assert server.headers["origin"] == "file://"

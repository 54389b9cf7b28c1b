"""The HTTP side over real loopback sockets, and over memory streams where time has to pass."""

import os
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import trio
import trio.testing

from brewos_relay.api.app_index import with_entry_script
from brewos_relay.errors import RelayError
from brewos_relay.server.http import HttpSide, open_http_side
from brewos_relay.server.request_gate import WebSocketWanted
from brewos_relay.server.supervision import contained
from brewos_relay.settings.server_limits import ServerLimits
from support.household import open_household
from support.steady_clock import SteadyClock

GET = b"GET /hello HTTP/1.1\r\nHost: relay\r\n\r\n"
BIG_GET = GET.replace(b"/hello", b"/big")
HANGING_GET = GET.replace(b"/hello", b"/hang")
UPGRADE = (
    b"GET /ws/device?id=x HTTP/1.1\r\nHost: relay\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n"
    b"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
)
H2C = (
    b"GET /hello HTTP/1.1\r\nHost: relay\r\nConnection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\n"
    b"HTTP2-Settings: AAMAAABkAAQAoAAAAAIAAAAA\r\n\r\n"
)
TWO_LENGTHS = (
    b"POST /echo HTTP/1.1\r\nHost: relay\r\nContent-Length: 3\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n"
)
PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
FROM: dict[str, Any] = {"client": ("192.0.2.7", 5), "secure": True}
BIG = 8 * 1024 * 1024


async def demo_app(scope: Any, receive: Any, send: Any) -> None:
    """A minimal ASGI app whose response depends on the path."""
    if scope["type"] == "lifespan":
        while True:
            step = (await receive())["type"]
            await send({"type": f"{step}.complete"})
            if step == "lifespan.shutdown":
                return
    assert scope["type"] == "http"
    path = scope["path"]
    if path == "/fail":
        raise ValueError("token=secret")
    if path == "/fail-in-a-group":
        async with trio.open_nursery() as nursery:
            nursery.start_soon(trio.sleep_forever)
            raise ValueError("token=secret")
    if path == "/hang":
        await trio.sleep_forever()
    body = b"hello"
    if path == "/echo":
        body = b""
        while True:
            part = await receive()
            body += part["body"]
            if not part["more_body"]:
                break
    if path == "/big":
        body = b"x" * BIG
    await send(
        {
            "type": "http.response.start",
            "status": 200,
            "headers": [(b"content-length", b"%d" % len(body))],
        }
    )
    if path == "/fail-late":
        raise ValueError("token=secret")
    await send({"type": "http.response.body", "body": body, "more_body": False})


class Browser:
    """A client: writes raw bytes and reads responses one by one."""

    def __init__(self, stream: trio.abc.Stream) -> None:
        self.stream = stream
        self._buffer = bytearray()

    async def send(self, data: bytes) -> None:
        await self.stream.send_all(data)

    async def _more(self) -> None:
        data = await self.stream.receive_some()
        if not data:
            raise EOFError(f"the server closed; left over: {bytes(self._buffer)!r}")
        self._buffer += data

    async def answer(self, *, to_head: bool = False) -> tuple[int, bytes]:
        while b"\r\n\r\n" not in self._buffer:
            await self._more()
        status, *lines = self._take(self._buffer.index(b"\r\n\r\n") + 4).rstrip().split(b"\r\n")
        headers = dict(line.lower().split(b": ", 1) for line in lines)
        assert b"server" not in headers
        length_bytes = 0 if to_head else int(headers[b"content-length"])
        while len(self._buffer) < length_bytes:
            await self._more()
        return int(status.split()[1]), self._take(length_bytes)

    def _take(self, length_bytes: int) -> bytes:
        taken = bytes(self._buffer[:length_bytes])
        del self._buffer[:length_bytes]
        return taken

    async def ask(self, request: bytes = GET) -> tuple[int, bytes]:
        await self.send(request)
        return await self.answer()

    async def expect_end(self) -> None:
        """Read the end, with nothing before it; a reset counts, for a server that gave up."""
        try:
            rest = self._buffer + await self.stream.receive_some()
        except trio.BrokenResourceError:
            rest = self._buffer
        assert rest == b""


class Loopback:
    """An HTTP side behind a listening socket."""

    def __init__(self, side: HttpSide, address: tuple[str, int], nursery: trio.Nursery) -> None:
        self.side = side
        self.address = address
        self.nursery = nursery

    @asynccontextmanager
    async def browser(self) -> AsyncIterator[Browser]:
        async with await trio.open_tcp_stream(*self.address) as stream:
            yield Browser(stream)

    async def expect_alive(self) -> None:
        async with self.browser() as browser:
            assert await browser.ask() == (200, b"hello")

    async def expect_connections(self, count: int) -> None:
        while self.side.connection_count != count:  # noqa: ASYNC110 - nothing to wait for but the count
            await trio.sleep(0.001)


@asynccontextmanager
async def loopback(
    app: Any = demo_app, *, send_buffer_bytes: int = 0, **settings: Any
) -> AsyncIterator[Loopback]:
    with trio.fail_after(10):
        async with open_http_side(app, **settings) as side, trio.open_nursery() as nursery:
            (listener,) = await trio.open_tcp_listeners(0, host="127.0.0.1")
            if send_buffer_bytes:
                listener.socket.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, send_buffer_bytes)

            async def serve(stream: trio.SocketStream) -> None:
                await side.serve(stream, initial=b"")

            nursery.start_soon(trio.serve_listeners, serve, [listener])
            yield Loopback(side, listener.socket.getsockname(), nursery)
            nursery.cancel_scope.cancel()


class TestKeepAlive:
    async def test_two_requests_share_a_connection(self) -> None:
        async with loopback() as there, there.browser() as browser:
            assert await browser.ask() == (200, b"hello")
            assert await browser.ask() == (200, b"hello")
            assert there.side.connection_count == 1

    async def test_requests_may_be_sent_ahead(self) -> None:
        post = b"POST /echo HTTP/1.1\r\nHost: relay\r\nContent-Length: 3\r\n\r\nabc"
        async with loopback() as there, there.browser() as browser:
            await browser.send(GET + post + GET)
            assert [await browser.answer() for _ in "123"] == [
                (200, b"hello"),
                (200, b"abc"),
                (200, b"hello"),
            ]

    async def test_bytes_that_were_read_already_come_first(self) -> None:
        with trio.fail_after(5):
            async with open_http_side(demo_app) as side:
                ours, theirs = trio.testing.memory_stream_pair()
                side.take(theirs, GET + GET[:7])
                browser = Browser(ours)
                assert await browser.answer() == (200, b"hello")
                assert await browser.ask(GET[7:]) == (200, b"hello")

    async def test_a_client_that_says_close_gets_its_answer_and_the_end(self) -> None:
        async with loopback() as there, there.browser() as browser:
            last = GET.replace(b"\r\n\r\n", b"\r\nConnection: close\r\n\r\n")
            assert await browser.ask(last + GET) == (200, b"hello")
            await browser.expect_end()
            await browser.stream.aclose()
            await there.expect_connections(0)

    async def test_a_client_that_has_finished_speaking_still_gets_its_answer(self) -> None:
        async with loopback() as there, there.browser() as browser:
            assert isinstance(browser.stream, trio.SocketStream)
            await browser.send(GET)
            await browser.stream.send_eof()
            assert await browser.answer() == (200, b"hello")
            await browser.expect_end()

    async def test_http_1_0_is_answered_and_closed(self) -> None:
        async with loopback() as there, there.browser() as browser:
            assert await browser.ask(b"GET /hello HTTP/1.0\r\n\r\n") == (200, b"hello")
            await browser.expect_end()

    async def test_head_has_no_body(self) -> None:
        async with loopback() as there, there.browser() as browser:
            await browser.send(GET.replace(b"GET", b"HEAD"))
            assert await browser.answer(to_head=True) == (200, b"")
            assert await browser.ask() == (200, b"hello")


class TestBodies:
    async def test_chunks_are_put_together(self) -> None:
        request = (
            b"POST /echo HTTP/1.1\r\nHost: relay\r\nTransfer-Encoding: chunked\r\n\r\n"
            b"3\r\nabc\r\n4;x=y\r\ndefg\r\n0\r\n\r\n"
        )
        async with loopback() as there, there.browser() as browser:
            assert await browser.ask(request) == (200, b"abcdefg")
            assert await browser.ask() == (200, b"hello")

    async def test_a_client_that_expects_100_continue_gets_it(self) -> None:
        async with loopback() as there, there.browser() as browser:
            await browser.send(
                b"POST /echo HTTP/1.1\r\nHost: relay\r\nExpect: 100-continue\r\nContent-Length: 2\r\n\r\n"
            )
            assert (await browser.stream.receive_some()).startswith(b"HTTP/1.1 100 ")
            assert await browser.ask(b"ok") == (200, b"ok")

    async def test_a_body_with_a_too_large_content_length_is_refused_unread(self) -> None:
        async with loopback(limits=ServerLimits(http_body_bytes=10)) as there, there.browser() as browser:
            request = b"POST /echo HTTP/1.1\r\nHost: relay\r\nContent-Length: 11\r\n\r\n"
            assert await browser.ask(request) == (413, b"")
            await browser.expect_end()

    @pytest.mark.parametrize("path", [b"/echo", b"/hang"])
    async def test_a_body_that_turns_out_too_large_is_refused(self, path: bytes) -> None:
        async with loopback(limits=ServerLimits(http_body_bytes=10)) as there, there.browser() as browser:
            head = b"POST %s HTTP/1.1\r\nHost: relay\r\nTransfer-Encoding: chunked\r\n\r\n" % path
            assert await browser.ask(head + b"6\r\nabcdef\r\n5\r\nghijk\r\n" + b"f\r\n" * 1000) == (413, b"")
            await browser.expect_end()
            await there.expect_alive()

    async def test_an_answer_arrives_although_the_body_was_not_read(self) -> None:
        async with loopback() as there, there.browser() as browser:
            post = b"POST /hello HTTP/1.1\r\nHost: relay\r\nContent-Length: 60000\r\n\r\n"
            assert await browser.ask(post) == (200, b"hello")
            await browser.expect_end()

    async def test_half_a_body_is_a_bad_request(self) -> None:
        async with loopback() as there, there.browser() as browser:
            assert isinstance(browser.stream, trio.SocketStream)
            await browser.send(b"POST /echo HTTP/1.1\r\nHost: relay\r\nContent-Length: 9\r\n\r\nabc")
            await browser.stream.send_eof()
            assert (await browser.answer())[0] == 400
            await browser.expect_end()


class TestPieces:
    """A machine takes the first piece for the whole response."""

    async def pieces(
        self, *bodies: bytes | float, headers: tuple[tuple[bytes, bytes], ...] = ()
    ) -> list[bytes]:
        """Respond with these bodies and pauses (s). Return the data of each write."""

        async def app(scope: Any, receive: Any, send: Any) -> None:
            if scope["type"] == "lifespan":
                await demo_app(scope, receive, send)
                return
            await send({"type": "http.response.start", "status": 200, "headers": list(headers)})
            for body in bodies:
                if isinstance(body, bytes):
                    await send({"type": "http.response.body", "body": body, "more_body": True})
                else:
                    await trio.sleep(body)
            await send({"type": "http.response.body", "body": b"", "more_body": False})

        written: list[bytes] = []
        with trio.fail_after(100):
            async with open_http_side(app) as side, trio.open_nursery() as nursery:
                ours, theirs = trio.testing.memory_stream_pair()
                send_all = theirs.send_all

                async def note(data: bytes | bytearray | memoryview) -> None:
                    written.append(bytes(data))
                    await send_all(data)

                theirs.send_all = note  # type: ignore[method-assign]

                async def read() -> None:
                    while await ours.receive_some():
                        pass

                nursery.start_soon(read)
                await side.serve(theirs, initial=GET.replace(b"\r\n\r\n", b"\r\nConnection: close\r\n\r\n"))
                nursery.cancel_scope.cancel()
        return written

    @pytest.mark.parametrize("headers", [((b"content-length", b"6"),), ()], ids=["length", "chunked"])
    async def test_a_small_answer_leaves_in_one_piece(
        self, headers: tuple[tuple[bytes, bytes], ...], autojump_clock: trio.testing.MockClock
    ) -> None:
        (whole,) = await self.pieces(b"abc", b"def", headers=headers)
        assert whole.startswith(b"HTTP/1.1 200 ")
        assert whole.endswith(b"abcdef" if headers else b"3\r\nabc\r\n3\r\ndef\r\n0\r\n\r\n")

    async def test_a_slow_response_is_sent_in_parts(self, autojump_clock: trio.testing.MockClock) -> None:
        written = await self.pieces(1.0, b"abc", b"def", 1.0, b"ghi", 1.0)
        assert written[0].endswith(b"\r\n\r\n")
        assert written[1:] == [b"3\r\nabc\r\n3\r\ndef\r\n", b"3\r\nghi\r\n", b"0\r\n\r\n"]

    async def test_data_soon_after_a_write_is_held_for_its_own_time(
        self, autojump_clock: trio.testing.MockClock
    ) -> None:
        big = bytes(16 * 1024)
        written = await self.pieces(big, 0.2, b"abc", 0.2, b"def")
        assert written[-1].endswith(b"3\r\nabc\r\n3\r\ndef\r\n0\r\n\r\n")

    async def test_a_large_answer_leaves_in_pieces_that_a_peer_can_take(
        self, autojump_clock: trio.testing.MockClock
    ) -> None:
        written = await self.pieces(*[bytes(5000)] * 20, headers=((b"content-length", b"100000"),))
        assert max(map(len, written)) <= 16 * 1024
        assert len(written) < 14
        assert b"".join(written).endswith(b"\r\n\r\n" + bytes(100_000))


class TestScope:
    @pytest.mark.parametrize(
        ("given", "client", "scheme"),
        [
            ({}, None, "http"),
            ({"client": ("192.0.2.7", 5), "secure": False}, ("192.0.2.7", 5), "http"),
            ({"client": ("2001:db8::7", 5), "secure": True}, ("2001:db8::7", 5), "https"),
        ],
    )
    async def test_an_app_gets_the_address_and_scheme_of_the_client(
        self, given: dict[str, Any], client: tuple[str, int] | None, scheme: str
    ) -> None:
        scopes: list[dict[str, Any]] = []

        async def app(scope: Any, receive: Any, send: Any) -> None:
            scopes.append(scope)
            await demo_app(scope, receive, send)

        with trio.fail_after(5):
            async with open_http_side(app) as side:
                ours, theirs = trio.testing.memory_stream_pair()
                side.take(theirs, GET, **given)
                assert await Browser(ours).answer() == (200, b"hello")
        assert scopes[-1]["client"] == client
        assert scopes[-1]["scheme"] == scheme


class TestWebSockets:
    """A client asks for an upgrade on a connection that it has used for requests."""

    @pytest.mark.parametrize("goes_on", [True, False])
    @pytest.mark.parametrize("together", [True, False])
    async def test_a_later_upgrade_request_leaves_the_http_side(self, goes_on: bool, together: bool) -> None:
        taken: list[tuple[bytes, bytes, tuple[str, int], bool]] = []

        async def take(
            stream: trio.abc.Stream, wanted: WebSocketWanted, *, client: tuple[str, int], secure: bool
        ) -> bool:
            taken.append((wanted.head, wanted.rest, client, secure))
            await stream.send_all(b"taken")
            return goes_on

        with trio.fail_after(5):
            async with open_http_side(demo_app) as side:
                ours, theirs = trio.testing.memory_stream_pair()
                sent = GET + GET if not together else GET + GET + UPGRADE + b"frame"
                side.take(theirs, sent, take_websocket=take, **FROM)
                browser = Browser(ours)
                for _ in "12":
                    assert await browser.answer() == (200, b"hello")
                if not together:
                    await browser.send(UPGRADE + b"frame")
                assert bytes(await ours.receive_some()) == b"taken"
                await trio.testing.wait_all_tasks_blocked()
                assert taken == [(UPGRADE.removesuffix(b"\r\n\r\n"), b"frame", FROM["client"], True)]
                assert side.connection_count == 0
                if not goes_on:
                    await browser.expect_end()
                    return
                await theirs.send_all(b"still open")
                assert bytes(await ours.receive_some()) == b"still open"

    async def test_a_failure_ends_the_connection(self, caplog: pytest.LogCaptureFixture) -> None:
        async def fail(
            stream: trio.abc.Stream, wanted: WebSocketWanted, *, client: tuple[str, int], secure: bool
        ) -> bool:
            raise ValueError("token=secret")

        with trio.fail_after(5):
            async with open_http_side(demo_app) as side:
                ours, theirs = trio.testing.memory_stream_pair()
                side.take(theirs, GET + UPGRADE, take_websocket=fail, **FROM)
                browser = Browser(ours)
                assert await browser.answer() == (200, b"hello")
                await browser.expect_end()
        assert "ValueError" in caplog.text
        assert "secret" not in caplog.text


class TestRefusals:
    @pytest.mark.parametrize("before", [b"", GET, GET + GET])
    @pytest.mark.parametrize(
        ("request_", "status"),
        [
            (UPGRADE, 400),
            (UPGRADE + b"x", 400),
            (UPGRADE + b"\x81\x00" * 2000, 400),
            (PREFACE, 505),
            (PREFACE + b"\0\0\0\4\0\0\0\0\0", 505),
            (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(500), 400),
            (b"\r\n\r\n", 400),
            (b"GET\r\n\r\n", 400),
            (b"GET /hello HTTP/1.1\r\n\r\n", 400),
            (b"GET /hello HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n", 400),
            (b"GET /hello HTTP/3.0\r\nHost: relay\r\n\r\n", 505),
            (b"CONNECT relay:80 HTTP/1.1\r\nHost: relay\r\n\r\n", 501),
            (b"GET ?x HTTP/1.1\r\nHost: relay\r\n\r\n", 400),
            (b"GET /" + b"x" * 9000 + b" HTTP/1.1\r\nHost: relay\r\n\r\n", 431),
            (b"GET / HTTP/1.1\r\nHost: relay\r\n" + b"A: bcdef\r\n" * 1000 + b"\r\n", 431),
            (b"GET / HTTP/1.1\r\nX: " + b"x" * 20_000, 431),
            (b"POST /echo HTTP/1.1\r\nHost: relay\r\nTransfer-Encoding: gzip\r\n\r\n", 501),
            (TWO_LENGTHS, 400),
        ],
    )
    async def test_invalid_requests_end_only_their_connection(
        self, before: bytes, request_: bytes, status: int
    ) -> None:
        async with loopback() as there:
            async with there.browser() as browser:
                await browser.send(before + request_)
                for _ in range(before.count(GET)):
                    assert await browser.answer() == (200, b"hello")
                assert (await browser.answer())[0] == status
                await browser.expect_end()
            await there.expect_connections(0)
            await there.expect_alive()

    @pytest.mark.parametrize("before", [b"", GET])
    @pytest.mark.parametrize("behind", [b"", PREFACE, GET, UPGRADE])
    async def test_an_ignored_upgrade_is_the_last_request(self, before: bytes, behind: bytes) -> None:
        """A proxy may take the connection for a tunnel, which must then carry no further data."""
        async with loopback() as there, there.browser() as browser:
            await browser.send(before + H2C + behind)
            for _ in range(before.count(GET) + 1):
                assert await browser.answer() == (200, b"hello")
            await browser.expect_end()

    async def test_an_empty_line_behind_a_body_begins_no_request(
        self, autojump_clock: trio.testing.MockClock
    ) -> None:
        post = b"POST /echo HTTP/1.1\r\nHost: relay\r\nContent-Length: 3\r\n\r\nabc"
        limits = ServerLimits(request_head_s=2, http_idle_s=20)
        with trio.fail_after(100):
            async with open_http_side(demo_app, limits=limits) as side:
                ours, theirs = trio.testing.memory_stream_pair()
                side.take(theirs, post)
                browser = Browser(ours)
                assert await browser.answer() == (200, b"abc")
                await browser.send(b"\r\n")
                await trio.sleep(10)
                assert await browser.ask(post) == (200, b"abc")
                await browser.send(b"\r\n" + GET)
                assert await browser.answer() == (200, b"hello")

    async def test_an_upgrade_while_an_answer_is_under_way_is_refused(self) -> None:
        async with loopback(send_buffer_bytes=4096) as there, there.browser() as browser:
            await browser.send(BIG_GET)
            await trio.testing.wait_all_tasks_blocked()
            await browser.send(UPGRADE + b"trailing")
            status, body = await browser.answer()
            assert (status, len(body)) == (200, BIG)
            assert (await browser.answer())[0] == 400
            await browser.expect_end()

    async def test_a_reset_is_handled_like_any_end(self, caplog: pytest.LogCaptureFixture) -> None:
        async with loopback() as there:
            for request in (
                b"",
                GET[:9],
                GET,
                BIG_GET,
                HANGING_GET,
            ):
                async with there.browser() as browser:
                    assert isinstance(browser.stream, trio.SocketStream)
                    await browser.send(request)
                    await trio.testing.wait_all_tasks_blocked()
                    browser.stream.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
            await there.expect_connections(0)
            await there.expect_alive()
        assert caplog.records == []


class TestFailures:
    @pytest.mark.parametrize("path", [b"/fail", b"/fail-in-a-group"])
    async def test_an_app_that_fails_is_a_500(self, path: bytes, caplog: pytest.LogCaptureFixture) -> None:
        async with loopback() as there:
            async with there.browser() as browser:
                assert (await browser.ask(GET.replace(b"/hello", path + b"?token=secret")))[0] == 500
                await browser.expect_end()
            await there.expect_connections(0)
            await there.expect_alive()
        assert "ValueError" in caplog.text
        assert "secret" not in caplog.text

    async def test_an_app_that_fails_in_the_middle_of_its_answer_ends_the_connection(
        self, caplog: pytest.LogCaptureFixture
    ) -> None:
        async with loopback() as there:
            async with there.browser() as browser:
                with pytest.raises((EOFError, trio.BrokenResourceError)):
                    await browser.ask(GET.replace(b"/hello", b"/fail-late"))
            await there.expect_connections(0)
            await there.expect_alive()
        assert "secret" not in caplog.text

    async def test_an_interrupt_is_not_swallowed(self) -> None:
        async def interrupted(scope: Any, receive: Any, send: Any) -> None:
            if scope["type"] == "http":
                raise KeyboardInterrupt
            await demo_app(scope, receive, send)

        async def serve() -> None:
            async with open_http_side(interrupted) as side:
                ours, theirs = trio.testing.memory_stream_pair()
                side.take(theirs, GET)
                with pytest.raises(EOFError):
                    await Browser(ours).answer()
                await trio.sleep_forever()

        with trio.fail_after(5), pytest.raises(BaseExceptionGroup) as raised:
            await serve()
        assert raised.group_contains(KeyboardInterrupt)

    def test_only_the_failures_of_a_mixed_group_are_contained(self, caplog: pytest.LogCaptureFixture) -> None:
        mixed = BaseExceptionGroup("", [ValueError("token=secret"), SystemExit(3)])
        with pytest.raises(BaseExceptionGroup) as raised, contained("something"):
            raise mixed
        assert [type(error) for error in raised.value.exceptions] == [SystemExit]
        assert "something failed: ValueError" in caplog.text
        assert "secret" not in caplog.text

    async def test_an_app_that_cannot_start_is_an_error(self) -> None:
        async def unable(scope: Any, receive: Any, send: Any) -> None:
            await receive()
            await send({"type": "lifespan.startup.failed", "message": "no beans"})

        with pytest.raises(ExceptionGroup) as raised:
            async with open_http_side(unable):
                pytest.fail("it started")
        assert raised.group_contains(RelayError, match="no beans")


class TestTime:
    """Timeouts, on a virtual clock over memory streams."""

    @asynccontextmanager
    async def connected(self, initial: bytes = b"", **settings: Any) -> AsyncIterator[Browser]:
        async with open_http_side(demo_app, **settings) as side:
            ours, theirs = trio.testing.lockstep_stream_pair()
            side.take(theirs, initial)
            yield Browser(ours)
            await ours.aclose()

    async def trickle(self, browser: Browser, data: bytes) -> None:
        """Send a byte each second, as long as the server takes them."""
        for byte in data:
            await trio.sleep(1)
            try:
                await browser.send(bytes([byte]))
            except trio.BrokenResourceError:
                return

    @pytest.mark.parametrize("initial", [GET, b""])
    async def test_a_head_that_trickles_in_is_too_late(
        self, autojump_clock: trio.testing.MockClock, initial: bytes
    ) -> None:
        async with self.connected(initial) as browser, trio.open_nursery() as nursery:
            if initial:
                await browser.answer()
            started = trio.current_time()
            nursery.start_soon(self.trickle, browser, GET)
            assert await browser.answer() == (408, b"")
            assert trio.current_time() - started == pytest.approx(10, abs=1.1)
            await browser.expect_end()

    async def test_a_body_that_trickles_in_is_too_late(self, autojump_clock: trio.testing.MockClock) -> None:
        head = b"POST /echo HTTP/1.1\r\nHost: relay\r\nContent-Length: 1000\r\n\r\n"
        async with self.connected(head) as browser, trio.open_nursery() as nursery:
            nursery.start_soon(self.trickle, browser, bytes(1000))
            assert await browser.answer() == (408, b"")
            assert trio.current_time() == pytest.approx(60, abs=1)
            await browser.expect_end()

    async def test_an_app_that_does_not_answer_is_unavailable(
        self, autojump_clock: trio.testing.MockClock
    ) -> None:
        async with self.connected(HANGING_GET) as browser:
            assert await browser.answer() == (503, b"")
            await browser.expect_end()

    async def test_an_idle_connection_is_closed_without_a_response(
        self, autojump_clock: trio.testing.MockClock
    ) -> None:
        async with self.connected(GET) as browser:
            await browser.answer()
            await browser.expect_end()
            assert trio.current_time() == pytest.approx(30, abs=1)

    async def test_the_idle_limit_holds_if_part_of_the_next_request_came_early(
        self, autojump_clock: trio.testing.MockClock
    ) -> None:
        async with self.connected(GET + GET[:9]) as browser:
            assert await browser.answer() == (200, b"hello")
            await browser.expect_end()
            assert trio.current_time() == pytest.approx(30, abs=1)

    async def test_a_request_that_comes_before_the_idle_limit_is_answered_by_a_busy_server(
        self, mock_clock: trio.testing.MockClock
    ) -> None:
        limits = ServerLimits(http_idle_s=0.3, request_head_s=1)
        async with loopback(limits=limits) as there, there.browser() as browser:
            assert isinstance(browser.stream, trio.SocketStream)
            descriptor = browser.stream.socket.fileno()
            assert await browser.ask() == (200, b"hello")
            await trio.testing.wait_all_tasks_blocked()
            os.write(descriptor, GET)
            mock_clock.jump(0.4)  # the server does nothing meanwhile
            assert await browser.answer() == (200, b"hello")
            await trio.testing.wait_all_tasks_blocked()
            os.write(descriptor, GET[:9])
            mock_clock.jump(0.4)
            await trio.testing.wait_all_tasks_blocked()
            mock_clock.jump(0.5)  # of the second for a head
            await browser.send(GET[9:])
            assert await browser.answer() == (200, b"hello")
            await trio.testing.wait_all_tasks_blocked()
            mock_clock.jump(0.4)
            await browser.expect_end()

    async def test_a_connection_that_is_used_now_and_then_stays(
        self, autojump_clock: trio.testing.MockClock
    ) -> None:
        async with self.connected(GET) as browser:
            await browser.answer()
            for _ in range(10):
                await trio.sleep(25)
                assert await browser.ask() == (200, b"hello")

    async def test_a_peer_that_reads_nothing_is_closed(self, autojump_clock: trio.testing.MockClock) -> None:
        async with open_http_side(demo_app) as side:
            ours, theirs = trio.testing.lockstep_stream_pair()
            await side.serve(theirs, initial=BIG_GET)
            assert trio.current_time() == pytest.approx(10, abs=0.1)
            await ours.aclose()

    async def test_a_peer_that_reads_slowly_gets_everything(
        self, autojump_clock: trio.testing.MockClock
    ) -> None:
        async with self.connected(BIG_GET, limits=ServerLimits(http_idle_s=1000)) as browser:
            received_bytes = 0
            while received_bytes < BIG:
                await trio.sleep(9)
                received_bytes += len(await browser.stream.receive_some(16 * 1024))
            assert trio.current_time() > 60


class TestSlowReaders:
    async def test_a_real_socket_that_is_not_read_is_given_up(self) -> None:
        async with loopback(send_buffer_bytes=4096, limits=ServerLimits(stall_s=0.1)) as there:
            async with there.browser() as browser:
                await browser.send(BIG_GET)
                await there.expect_connections(1)
                await there.expect_connections(0)
            await there.expect_alive()

    async def test_other_clients_are_served_meanwhile(self) -> None:
        async with loopback(send_buffer_bytes=4096) as there, there.browser() as browser:
            await browser.send(BIG_GET)
            await trio.testing.wait_all_tasks_blocked()
            await there.expect_alive()


class TestLeaving:
    @pytest.mark.parametrize("path", [b"/big", b"/hang", b"/hello"])
    async def test_cancellation_is_prompt_even_if_the_peer_does_not_read(
        self, path: bytes, steady_clock: SteadyClock
    ) -> None:
        async with loopback(send_buffer_bytes=4096) as there, there.browser() as browser:
            await browser.send(GET.replace(b"/hello", path))
            await trio.testing.wait_all_tasks_blocked()
            started = trio.current_time()
            there.nursery.cancel_scope.cancel()
            with trio.CancelScope(deadline=started + 5, shield=True):
                await there.expect_connections(0)
            assert trio.current_time() - started < 0.5

    async def test_idle_connections_end_at_once(self, steady_clock: SteadyClock) -> None:
        with trio.fail_after(5):
            async with open_http_side(demo_app) as side:
                ours, theirs = trio.testing.memory_stream_pair()
                side.take(theirs, GET)
                await Browser(ours).answer()
                await trio.testing.wait_all_tasks_blocked()
                started = trio.current_time()
                await ours.send_eof()
            assert trio.current_time() - started < 0.3

    @pytest.mark.parametrize("request_", [GET[:5], HANGING_GET])
    async def test_requests_beyond_the_farewell_time_are_cancelled(
        self, autojump_clock: trio.testing.MockClock, request_: bytes
    ) -> None:
        async with open_http_side(demo_app) as side:
            ours, theirs = trio.testing.memory_stream_pair()
            side.take(theirs, request_)
            await trio.testing.wait_all_tasks_blocked()
        assert trio.current_time() < 1
        assert side.connection_count == 0
        await ours.aclose()

    async def test_a_request_in_progress_may_finish(self) -> None:
        release = trio.Event()

        async def waiting(scope: Any, receive: Any, send: Any) -> None:
            if scope["type"] == "http":
                await release.wait()
            await demo_app(scope, receive, send)

        with trio.fail_after(5):
            ours, theirs = trio.testing.memory_stream_pair()
            async with open_http_side(waiting) as side:
                side.take(theirs, GET)
                await trio.testing.wait_all_tasks_blocked()
                await side.close_idle()
                assert side.connection_count == 1
                release.set()
            browser = Browser(ours)
            assert await browser.answer() == (200, b"hello")
            await browser.expect_end()


class TestWithTheApi:
    @pytest.fixture
    def dist(self, tmp_path: Path) -> Path:
        (tmp_path / "assets").mkdir()
        (tmp_path / "index.html").write_bytes(b"index")
        (tmp_path / "assets" / "a.js").write_bytes(b"y" * 300_000)
        return tmp_path

    @pytest.fixture
    async def app(self, dist: Path, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Any]:
        async with open_household(tmp_path_factory.mktemp("registry"), web_dist_path=dist) as house:
            yield house.app

    async def test_pages_and_answers_share_a_connection(self, app: Any) -> None:
        async with loopback(app) as there, there.browser() as browser:
            assert (await browser.ask(GET.replace(b"/hello", b"/api/health")))[0] == 200
            assert (await browser.ask(GET.replace(b"/hello", b"/api/devices")))[0] == 401
            assert await browser.ask(GET.replace(b"/hello", b"/machines")) == (
                200,
                with_entry_script(b"index"),
            )
            assert await browser.ask(GET.replace(b"/hello", b"/assets/a.js")) == (200, b"y" * 300_000)
            assert (await browser.ask(GET.replace(b"/hello", b"/assets/b.js")))[0] == 404

    @pytest.mark.parametrize(
        "path",
        [
            b"/assets/..%2f..%2fetc/passwd",
            b"/..%2f..%2fetc/passwd",
            b"/%2e%2e/etc/passwd",
            b"/a%00b",
            b"/../x",
        ],
    )
    async def test_tricks_in_paths_are_refused_as_they_came(self, app: Any, path: bytes) -> None:
        async with loopback(app) as there, there.browser() as browser:
            assert (await browser.ask(GET.replace(b"/hello", path)))[0] == 404

    @pytest.mark.parametrize(
        "host",
        [b"a b", b"\xff", b"x" * 64, b"[::1", b"a@b", b"a:9999999", b"a..b", b".", b"a/b", b"x.\xc3\xa9"],
    )
    async def test_a_strange_host_is_a_bad_request(
        self, app: Any, host: bytes, caplog: pytest.LogCaptureFixture
    ) -> None:
        async with loopback(app) as there, there.browser() as browser:
            assert (await browser.ask(b"GET /api/health HTTP/1.1\r\nHost: " + host + b"\r\n\r\n"))[0] == 400
        assert [record for record in caplog.records if record.levelname == "ERROR"] == []

    @pytest.mark.parametrize(
        "host",
        [b"", b"relay", b"relay.example.org:443", b"a_b.example.", b"10.0.0.1:30", b"[::1]:80", b"x" * 63],
    )
    async def test_an_ordinary_host_is_fine(self, app: Any, host: bytes) -> None:
        async with loopback(app) as there, there.browser() as browser:
            assert (await browser.ask(b"GET /api/health HTTP/1.1\r\nHost: " + host + b"\r\n\r\n"))[0] == 200

    async def test_an_endless_body_is_not_kept(self, app: Any) -> None:
        async with loopback(app) as there, there.browser() as browser:
            await browser.send(
                b"POST /api/health HTTP/1.1\r\nHost: relay\r\nTransfer-Encoding: chunked\r\n\r\n"
                + (b"2000\r\n" + bytes(0x2000) + b"\r\n") * 20
            )
            assert (await browser.answer())[0] in {405, 413}
            await browser.expect_end()

"""One WebSocket to a relay, as a device or as an app; the stream below it is opened and closed here.

RelayError
├── RelayUnreachable      no HTTP answer from that address, or not in time
├── RelayRefused          the relay answered the upgrade with an HTTP status other than 101
└── PeerGone
    └── ConnectionEnded   the WebSocket was open, and has ended
"""

import re
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from contextlib import AbstractAsyncContextManager, asynccontextmanager, suppress
from typing import Final, cast
from urllib.parse import urlencode

import msgspec
import trio
import trio_websocket

from brewos_relay.client.backoff import parse_retry_after
from brewos_relay.client.endpoint import RelayUnreachable, open_stream, parse_url
from brewos_relay.errors import PeerGone, RelayError
from brewos_relay.messages import Message
from brewos_relay.texts import one_line

CLOSE_S: Final = 0.5  # timeout for the answer to our close frame
_ANSWER_BYTES: Final = 4096  # the recorded part of a refusal
_ANSWER: Final = re.compile(rb"HTTP/1\.[01] (\d{3})[^\n]*(\n(?:.*?\n)??)\r?\n(.*)", re.DOTALL)
_CUT_ANSWER: Final = re.compile(rb"HTTP/1\.[01] (\d{3})[^\n]*\n")
_RETRY_AFTER: Final = re.compile(rb"\nRetry-After:([^\n]*)\n", re.IGNORECASE)
#: The largest message that firmware reads; it closes the connection at a larger one (1009).
DEVICE_MESSAGE_BYTES: Final = 15 * 1024


class RelayRefused(RelayError):
    """The relay refused the upgrade; `status` is the HTTP status, `detail` the text of its answer.

    `retry_after_s` is how long the relay asks to wait before the next attempt, or None.
    """

    code = "relay_refused"

    def __init__(self, status: int, detail: str = "", *, retry_after_s: float | None = None) -> None:
        self.status = status
        self.detail = detail
        self.retry_after_s = retry_after_s
        super().__init__(f"the relay refused the connection: HTTP {status}{detail and ': ' + detail}")


class ConnectionEnded(PeerGone):
    """The connection has ended; `close_code` is None without a close frame."""

    code = "connection_ended"

    def __init__(self, close_code: int | None, reason: str = "") -> None:
        self.close_code = close_code
        self.reason = reason
        how = "was lost" if close_code is None else f"was closed with code {close_code}"
        super().__init__(f"the connection {how}{reason and ': ' + reason}")


class WebSocket:
    """An open WebSocket that sends and receives messages. Made by `open_websocket`, which also closes it."""

    def __init__(self, connection: trio_websocket.WebSocketConnection) -> None:
        self._connection = connection

    async def send(self, message: Message) -> None:
        """Send one message. Raises ConnectionEnded."""
        payload = message.payload.decode() if message.is_text else message.payload
        try:
            await self._connection.send_message(payload)
        except trio_websocket.ConnectionClosed:
            raise self._ended() from None

    async def receive(self) -> Message:
        """Wait for the next message. Raises ConnectionEnded."""
        try:
            payload = await self._connection.get_message()
        except trio_websocket.ConnectionClosed:
            raise self._ended() from None
        if isinstance(payload, str):
            return Message(payload.encode())
        return Message(payload, is_text=False)

    async def ping(self, *, timeout_s: float) -> None:
        """Send an empty ping and wait for its pong. Raises ConnectionEnded, also after the timeout."""
        try:
            with trio.fail_after(timeout_s):
                await self._connection.ping(b"")
        except trio_websocket.ConnectionClosed:
            raise self._ended() from None
        except trio.TooSlowError:
            raise ConnectionEnded(None, f"no pong within {timeout_s:g} s") from None

    async def close(self, reader: "_Reader", stream: trio.abc.Stream) -> None:
        """Send a close frame, and read for a moment until the stream ends.

        If a socket is closed while data is unread, the kernel resets the connection, and the close frame may
        be lost. `reader` may already be cancelled, so the reading continues here.

        **Owns:** the task that sends the close frame, beside the reading.
        """
        with trio.move_on_after(CLOSE_S, shield=True):
            reader.life.cancel()
            await reader.ended.wait()
            if self._connection.closed is not None:
                return
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._connection.aclose)  # ends when the nursery is cancelled
                with suppress(trio.BrokenResourceError, trio.ClosedResourceError):
                    while await stream.receive_some():
                        pass
                nursery.cancel_scope.cancel()

    def _ended(self) -> ConnectionEnded:
        closed = self._connection.closed
        if closed is None or closed.code == 1006:
            return ConnectionEnded(None)
        return ConnectionEnded(closed.code, one_line(closed.reason or ""))


@asynccontextmanager
async def open_websocket(
    url: str,
    target: str,
    *,
    # Request
    subprotocols: Iterable[str] = (),
    headers: Iterable[tuple[bytes, bytes]] = (),
    ssl_context: ssl.SSLContext | None = None,
    # Limits
    timeout_s: float = 10.0,
    max_message_bytes: int = 1024 * 1024,
) -> AsyncIterator[WebSocket]:
    """Open a WebSocket to the relay at `url`; `target` is path and query, and may contain secrets.

    Raises SettingsError, RelayUnreachable (its text has the URL) or RelayRefused; none repeats `target`.

    **Owns:** the stream, and the task that reads it.
    **Ends when:** the block is left, with a close frame; the stream is closed in any case.
    """
    endpoint = parse_url(url)
    shown = url.strip()  # contains no secrets
    deadline = trio.current_time() + timeout_s
    with trio.move_on_at(deadline) as attempt:
        stream = await open_stream(endpoint, shown, ssl_context)
    if attempt.cancelled_caught:
        raise RelayUnreachable(f"{shown} does not answer: no connection after {timeout_s:g} s")
    tap = _Tap(stream)
    raised: BaseException | None = None
    try:
        async with trio.open_nursery() as nursery:
            websocket: WebSocket | None = None
            reader = _Reader(nursery)
            try:
                with trio.move_on_at(deadline) as reader.attempt:
                    connection = await trio_websocket.wrap_client_stream(
                        cast("trio.Nursery", reader),
                        cast("trio.SocketStream", tap),
                        endpoint.host_header,
                        target,
                        subprotocols=list(subprotocols),
                        extra_headers=list(headers),
                        max_message_size=max_message_bytes,
                    )
                    websocket = WebSocket(connection)
                tap.keep = False
                if websocket is None:
                    raise _refusal(bytes(tap.answer), shown, timeout_s=timeout_s, ended=reader.ended.is_set())
                yield websocket
            finally:
                if websocket is not None:
                    await websocket.close(reader, stream)
                reader.life.cancel()
    except BaseExceptionGroup as group:
        # The reader raises nothing: this exception is the block's, wrapped by our nursery.
        if len(group.exceptions) > 1:
            raise
        raised = group.exceptions[0]
    finally:
        await trio.aclose_forcefully(stream)
    if raised is not None:
        raise raised


def dial_device(
    url: str,
    *,
    device_id: str,
    key: str,
    ssl_context: ssl.SSLContext | None = None,
    timeout_s: float = 20.0,
) -> AbstractAsyncContextManager[WebSocket]:
    """Connect to a relay as the device `device_id`, with the request headers of firmware.

    Raises the exceptions of `open_websocket`; a relay refuses a device with 400, 401, 409 or 503.
    """
    return open_websocket(
        url,
        "/ws/device?" + urlencode({"id": device_id, "key": key}),
        subprotocols=("arduino",),
        headers=((b"Origin", b"file://"), (b"User-Agent", b"arduino-WebSocket-Client")),
        ssl_context=ssl_context,
        timeout_s=timeout_s,
        max_message_bytes=DEVICE_MESSAGE_BYTES,
    )


def dial_app(
    url: str,
    *,
    token: str,
    device_id: str,
    ssl_context: ssl.SSLContext | None = None,
    timeout_s: float = 10.0,
) -> AbstractAsyncContextManager[WebSocket]:
    """Attach an app to the device `device_id`.

    Raises the exceptions of `open_websocket`. A relay rejects an invalid token after the upgrade, by a close
    with 4002.
    """
    return open_websocket(
        url,
        "/ws/client?" + urlencode({"token": token, "device": device_id}),
        ssl_context=ssl_context,
        timeout_s=timeout_s,
    )


def _refusal(answer: bytes, shown: str, *, timeout_s: float, ended: bool) -> RelayError:
    """Return the reason why the handshake failed, from the answer of the other side."""
    if (match := _ANSWER.match(answer)) is not None and match[1] != b"101":
        asked = _RETRY_AFTER.search(match[2])
        retry_after_s = parse_retry_after(asked[1].decode("latin-1")) if asked is not None else None
        return RelayRefused(int(match[1]), _detail(match[3]), retry_after_s=retry_after_s)
    if (match := _CUT_ANSWER.match(answer)) is not None and match[1] != b"101":
        return RelayRefused(int(match[1]))
    if not ended:
        return RelayUnreachable(f"{shown} did not answer the upgrade in {timeout_s:g} s")
    if not answer:
        return RelayUnreachable(f"{shown} closed the connection without an answer")
    return RelayUnreachable(f"the server at {shown} is not a WebSocket server")


def _detail(body: bytes) -> str:
    """Return the readable part of a refusal's body: the text of a JSON error, or a line of plain text."""
    try:
        content = msgspec.json.decode(body)
    except (msgspec.MsgspecError, RecursionError):
        text = body.decode(errors="replace")
        return "" if "<" in text else one_line(text)
    if isinstance(content, dict):
        for key in ("message", "error"):
            if isinstance(value := content.get(key), str):
                return one_line(value)
    return ""


class _Reader:
    """Replaces the nursery of trio-websocket, so that exceptions of its reading task stay inside.

    Otherwise a refused or invalid handshake would reach the caller as a group, and a connection that closes
    before the answer would be waited for without end: here `attempt` is cancelled. `life` ends the task, and
    `ended` is set once it has ended.
    """

    def __init__(self, nursery: trio.Nursery) -> None:
        self._nursery = nursery
        self.attempt: trio.CancelScope | None = None
        self.life = trio.CancelScope()
        self.ended = trio.Event()

    def start_soon(self, read: Callable[[], Awaitable[None]]) -> None:
        self._nursery.start_soon(self._run, read)

    async def _run(self, read: Callable[[], Awaitable[None]]) -> None:
        try:
            with self.life:
                await read()
        except Exception:  # noqa: S110 - any exception ends the connection, which `ended` reports
            pass
        finally:
            self.ended.set()
            if self.attempt is not None:
                self.attempt.cancel()


class _Tap(trio.abc.Stream):
    """Passes a stream on, and records the beginning of the received data while `keep` is true.

    trio-websocket reports a refusal only after its whole body, and never if the body ends with the
    connection. `keep` is false once the WebSocket is open.
    """

    def __init__(self, stream: trio.abc.Stream) -> None:
        self._stream = stream
        self.answer = bytearray()
        self.keep = True

    async def receive_some(self, max_bytes: int | None = None) -> bytes | bytearray:
        data = await self._stream.receive_some(max_bytes)
        if self.keep and len(self.answer) < _ANSWER_BYTES:
            self.answer += data
        return data

    async def send_all(self, data: bytes | bytearray | memoryview) -> None:
        await self._stream.send_all(data)

    async def wait_send_all_might_not_block(self) -> None:
        await self._stream.wait_send_all_might_not_block()

    async def aclose(self) -> None:
        await self._stream.aclose()

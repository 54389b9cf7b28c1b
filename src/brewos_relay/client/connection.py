"""One WebSocket to a relay, on a stream that is opened and closed here.

RelayError
├── RelayUnreachable      nobody answers at that address, or not in time, or not in HTTP
├── RelayRefused          the relay answered the upgrade with an HTTP status other than 101
└── PeerGone
    └── ConnectionEnded   the WebSocket was open and is not any more
"""

import math
import os
import re
import socket
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Final, cast
from urllib.parse import urlsplit

import msgspec
import trio
import trio_websocket

from brewos_relay.errors import PeerGone, RelayError, SettingsError
from brewos_relay.messages import Message

URL_FORMS: Final = "http://HOST[:PORT], https://HOST[:PORT], ws://HOST[:PORT] or wss://HOST[:PORT]"
CLOSE_S: Final = 0.5  # what the relay is given to answer our close frame
_ANSWER_BYTES: Final = 4096  # how much of a refusal is kept to be shown
_SCHEMES: Final = {"http": False, "ws": False, "https": True, "wss": True}
_ANSWER: Final = re.compile(rb"HTTP/1\.[01] (\d{3})[^\n]*\n(?:.*?\r?\n\r?\n(.*))?", re.DOTALL)


class RelayUnreachable(RelayError):
    """No WebSocket could be had, and not because the relay said no."""

    code = "relay_unreachable"
    retry = True


class RelayRefused(RelayError):
    """The relay refused the upgrade; `status` is the HTTP status, `detail` what its answer says."""

    code = "relay_refused"

    def __init__(self, status: int, detail: str = "") -> None:
        self.status = status
        self.detail = detail
        super().__init__(f"the relay refused the connection: HTTP {status}{detail and ': ' + detail}")


class ConnectionEnded(PeerGone):
    """The connection has ended; `close_code` is None if that happened without a close frame."""

    code = "connection_ended"

    def __init__(self, close_code: int | None, reason: str = "") -> None:
        self.close_code = close_code
        self.reason = reason
        how = "was lost" if close_code is None else f"was closed with code {close_code}"
        super().__init__(f"the connection {how}{reason and ': ' + reason}")


@dataclass(frozen=True, slots=True)
class Endpoint:
    """Where a relay listens."""

    host: str
    port: int
    tls: bool

    @property
    def host_header(self) -> str:
        """The `Host:` header: always with the port, as machines send it."""
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


def parse_url(url: str) -> Endpoint:
    """Read a relay's URL: scheme, host and perhaps a port.

    Raises SettingsError, without repeating what may hold a secret.
    """
    try:
        parts = urlsplit(url.strip())
        host, port = parts.hostname, parts.port
    except ValueError as error:
        raise SettingsError(f"the URL of the relay cannot be read ({error}); give {URL_FORMS}") from None
    if parts.scheme not in _SCHEMES or not host:
        raise SettingsError(
            f"the URL of the relay has scheme {parts.scheme!r} and host {host or ''!r}; give {URL_FORMS}"
        )
    if parts.path not in ("", "/") or parts.query or parts.fragment or "@" in parts.netloc:
        raise SettingsError(f"the URL of the relay is more than an address; give just {URL_FORMS}")
    tls = _SCHEMES[parts.scheme]
    return Endpoint(host, port or (443 if tls else 80), tls)


class WebSocket:
    """An open WebSocket, in terms of messages. Made by `open_websocket`, which also ends it."""

    def __init__(self, connection: trio_websocket.WebSocketConnection) -> None:
        self._connection = connection

    async def send(self, message: Message) -> None:
        """Send one message; raises ConnectionEnded."""
        payload = message.payload.decode() if message.is_text else message.payload
        try:
            await self._connection.send_message(payload)
        except trio_websocket.ConnectionClosed:
            raise self._ended() from None

    async def receive(self) -> Message:
        """Wait for the next message; raises ConnectionEnded."""
        try:
            payload = await self._connection.get_message()
        except trio_websocket.ConnectionClosed:
            raise self._ended() from None
        if isinstance(payload, str):
            return Message(payload.encode())
        return Message(payload, is_text=False)

    async def ping(self, *, timeout_s: float) -> None:
        """Send an empty ping and wait for its pong; raises ConnectionEnded, also when none comes in time."""
        try:
            with trio.fail_after(timeout_s):
                await self._connection.ping(b"")
        except trio_websocket.ConnectionClosed:
            raise self._ended() from None
        except trio.TooSlowError:
            raise ConnectionEnded(None, f"no pong within {timeout_s:g} s") from None

    async def close(self) -> None:
        """Say goodbye with a close frame, and wait a moment for the answer."""
        with trio.move_on_after(CLOSE_S, shield=True):
            await self._connection.aclose()

    def _ended(self) -> ConnectionEnded:
        closed = self._connection.closed
        if closed is None or closed.code == 1006:
            return ConnectionEnded(None)
        return ConnectionEnded(closed.code, printable(closed.reason or ""))


@asynccontextmanager
async def open_websocket(
    url: str,
    target: str,
    *,
    # What is asked for
    subprotocols: Iterable[str] = (),
    headers: Iterable[tuple[bytes, bytes]] = (),
    ssl_context: ssl.SSLContext | None = None,
    # Limits
    timeout_s: float = 10.0,
    max_message_bytes: int = 1024 * 1024,
) -> AsyncIterator[WebSocket]:
    """Open a WebSocket to the relay at `url`; `target` is path and query, and may hold secrets.

    Raises SettingsError, RelayUnreachable (whose text has the URL) or RelayRefused; none repeats `target`.

    **Owns:** the stream, and the task that reads it.
    **Ends when:** the block is left, with a close frame; whatever happens, the stream is closed then.
    """
    endpoint = parse_url(url)
    shown = url.strip()  # just an address, so no secrets
    deadline = trio.current_time() + timeout_s
    with trio.move_on_at(deadline) as attempt:
        stream = await _open_stream(endpoint, shown, ssl_context)
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
                    raise _refusal(bytes(tap.answer), shown, timeout_s=timeout_s, ended=reader.ended)
                yield websocket
            finally:
                reader.life.deadline = trio.current_time() + CLOSE_S
                if websocket is not None:
                    await websocket.close()
                reader.life.cancel()
    except BaseExceptionGroup as group:
        # The reader raises nothing, so this is what the block raised, wrapped by our nursery.
        if len(group.exceptions) > 1:
            raise
        raised = group.exceptions[0]
    finally:
        await trio.aclose_forcefully(stream)
    if raised is not None:
        raise raised


def printable(text: str, *, at_most: int = 300) -> str:
    """Make foreign text fit for a terminal: one line, no control characters, not endless."""
    return "".join(c if c.isprintable() else " " for c in text[:at_most]).strip()


async def _open_stream(endpoint: Endpoint, shown: str, ssl_context: ssl.SSLContext | None) -> trio.abc.Stream:
    """Connect, with TLS where the URL asks for it; raises RelayUnreachable."""
    try:
        tcp = await trio.open_tcp_stream(endpoint.host, endpoint.port)
    except OSError as error:
        raise RelayUnreachable(f"cannot connect to {shown} ({_reasons(error)})") from None
    if not endpoint.tls:
        return tcp
    context = ssl_context or ssl.create_default_context()
    tls = trio.SSLStream(tcp, context, server_hostname=endpoint.host, https_compatible=True)
    try:
        await tls.do_handshake()
    except BaseException as error:
        await trio.aclose_forcefully(tls)
        if isinstance(error, trio.BrokenResourceError):
            why = error.__cause__ or "the connection was lost"
            raise RelayUnreachable(f"no TLS with {shown}: {why}") from None
        raise
    return tls


def _reasons(error: OSError) -> str:
    """Say why there is no connection, once for all addresses that were tried, and without them."""
    tried = error.__cause__.exceptions if isinstance(error.__cause__, ExceptionGroup) else (error,)
    reasons = {
        os.strerror(each.errno)
        if isinstance(each, OSError) and each.errno and not isinstance(each, socket.gaierror)
        else getattr(each, "strerror", None) or str(each): None
        for each in tried
    }
    return ", ".join(reasons)


def _refusal(answer: bytes, shown: str, *, timeout_s: float, ended: bool) -> RelayError:
    """Say why there is no WebSocket, from what the other side answered."""
    match = _ANSWER.match(answer)
    if match is not None and match[1] != b"101":
        return RelayRefused(int(match[1]), _detail(match[2] or b""))
    if not ended:
        return RelayUnreachable(f"{shown} did not answer the upgrade in {timeout_s:g} s")
    if not answer:
        return RelayUnreachable(f"{shown} closed the connection without an answer")
    return RelayUnreachable(f"what answers at {shown} is no WebSocket server")


def _detail(body: bytes) -> str:
    """Pick the readable part of a refusal's body: the text of a JSON error, or a line of plain text."""
    try:
        content = msgspec.json.decode(body)
    except (msgspec.MsgspecError, RecursionError):
        text = body.decode(errors="replace")
        return "" if "<" in text else printable(text)
    if isinstance(content, dict):
        for key in ("message", "error"):
            if isinstance(said := content.get(key), str):
                return printable(said)
    return ""


class _Reader:
    """Stands where trio-websocket wants a nursery, so that what its reading task raises stays in here.

    A refused or garbled handshake would otherwise reach the caller as a group, and a connection that is
    closed before it was answered would be waited for without end: `attempt` is cancelled instead.

    `life` keeps the task reading when all around it is cancelled, so that the goodbye can be answered; its
    deadline is set as soon as the block is left.
    """

    def __init__(self, nursery: trio.Nursery) -> None:
        self._nursery = nursery
        self.attempt: trio.CancelScope | None = None
        self.life = trio.CancelScope(shield=True, deadline=math.inf)
        self.ended = False

    def start_soon(self, read: Callable[[], Awaitable[None]]) -> None:
        self._nursery.start_soon(self._run, read)

    async def _run(self, read: Callable[[], Awaitable[None]]) -> None:
        try:
            with self.life:
                await read()
        except Exception:  # noqa: S110 - whatever it is, the connection has ended, and that is what is told
            pass
        finally:
            self.ended = True
            if self.attempt is not None:
                self.attempt.cancel()


class _Tap(trio.abc.Stream):
    """Passes a stream on, and keeps the beginning of what arrives as long as `keep` is true.

    trio-websocket tells a refusal only after the whole of its body, and never where the body ends with the
    connection. Once there is a WebSocket, `keep` is false.
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

"""A machine's connection, from the first SYN to the last frame. It is light: thousands fit into a process.

A task sends data only if the operating system did not accept it at once.
"""

import random
import socket
import ssl
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from typing import Any, Final

import msgspec
import trio

from brewos_relay.client.backoff import parse_retry_after
from brewos_relay.client.endpoint import Endpoint, RelayUnreachable, reasons_of
from brewos_relay.client.websocket import RelayRefused
from brewos_relay.simulator.firmware.firmware_frames import CLOSE, Frame, FrameReader, build, close_payload
from brewos_relay.simulator.firmware.http_requests import (
    FAREWELL,
    HEAD_BYTES,
    Answer,
    accepted,
    parse_head,
    register_request,
    upgrade_request,
    websocket_key,
)
from brewos_relay.texts import one_line

ATTEMPT_S: Final = 20.0
ANSWER_S: Final = 5.0  # timeout for the head of the answer to the upgrade
REGISTER_S: Final = 10.0
TURN_S: Final = 0.01  # the length of a turn of the firmware's loop
GOODBYE_S: Final = 0.5
MOST_WAITING: Final = 20
_AGAIN_S: Final = 0.011
_READ_BYTES: Final = 4096


class HostNotFound(RelayUnreachable):
    """The host name has no address."""

    code = "relay_name_unknown"


class ConnectTimedOut(RelayUnreachable):
    """No connection was made in 20 s."""

    code = "relay_no_connection"


class FirmwareConnection:
    """An open WebSocket of a machine. Made by `open_firmware_connection`, which also closes it.

    `send` never waits. At most 20 messages wait for the operating system; further ones are dropped, as
    firmware does.
    """

    __slots__ = (
        "_always_masked",
        "_flushing",
        "_frames",
        "_raw",
        "_rest",
        "_rng",
        "_spawn",
        "_stream",
        "_waiting",
        "dropped",
    )

    def __init__(
        self,
        stream: trio.abc.Stream,
        raw: socket.socket | None,
        *,
        spawn: Callable[[Callable[[], Awaitable[None]]], Any],
        rng: random.Random,
        always_masked: bool,
        rest: bytes,
    ) -> None:
        self._rest = rest  # bytes that arrived with the answer
        self._stream = stream
        self._raw = raw
        self._spawn = spawn
        self._rng = rng
        self._always_masked = always_masked
        self._frames = FrameReader()
        self._waiting: deque[bytes] = deque()
        self._flushing = False
        self.dropped = 0

    @property
    def stalled(self) -> bool:
        """Whether an incomplete frame has arrived."""
        return self._frames.waiting

    def send(self, opcode: int, payload: bytes) -> None:
        """Send a frame as soon as possible; no effect once the connection has ended."""
        if len(self._waiting) >= MOST_WAITING and opcode != CLOSE:
            self.dropped += 1
            return
        writes = build(opcode, payload, rng=self._rng, always_masked=self._always_masked)
        while writes and (left := self._write(writes[0])) != writes[0]:
            writes = [left, *writes[1:]] if left else writes[1:]
        if writes:
            self._waiting.append(b"".join(writes))
            if not self._flushing:
                self._flushing = True
                self._spawn(self._flush)

    async def receive(self, take: Callable[[Frame], None]) -> bool:
        """Wait for bytes, and pass on the complete frames; return False once the connection has ended.

        Raises UnreadableFrame for a frame that firmware cannot read.
        """
        data: bytes | bytearray = self._rest
        self._rest = b""
        try:
            if not data:
                data = await self._stream.receive_some(_READ_BYTES)
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            return False
        if not data:
            return False
        self._frames.feed(data, take)
        return True

    async def say_goodbye(self, code: int = 1000) -> None:
        """Send a close frame, and give the other side a moment to answer it."""
        with trio.move_on_after(GOODBYE_S, shield=True):
            # Not with `send`: it may need a task, and the nursery may already be cancelled.
            closing = build(CLOSE, close_payload(code), rng=self._rng, always_masked=self._always_masked)
            with suppress(trio.BrokenResourceError, trio.ClosedResourceError, trio.BusyResourceError):
                await self._stream.send_all(b"".join((*self._waiting, *closing)))
                while await self._stream.receive_some(_READ_BYTES):
                    pass

    def _write(self, data: bytes) -> bytes:
        """Write what the operating system accepts at once; return the rest."""
        if self._raw is None or self._waiting or self._flushing:
            return data
        try:
            return data[self._raw.send(data) :]
        except BlockingIOError:
            return data
        except OSError:
            return b""  # the reader notices the end

    async def _flush(self) -> None:
        """Send the waiting messages. **Ends when:** none are left, or the connection has ended."""
        try:
            while self._waiting:
                await self._stream.send_all(self._waiting[0])
                self._waiting.popleft()
        except (trio.BrokenResourceError, trio.ClosedResourceError, trio.BusyResourceError):
            self._waiting.clear()
        finally:
            self._flushing = False


@asynccontextmanager
async def open_firmware_connection(
    endpoint: Endpoint,
    *,
    device_id: str,
    key: str,
    spawn: Callable[[Callable[[], Awaitable[None]]], Any],
    rng: random.Random,
    ssl_context: ssl.SSLContext | None,
    faithful: bool,
) -> AsyncIterator[FirmwareConnection]:
    """Connect as a machine while the block runs. Raises RelayUnreachable or RelayRefused.

    `faithful` connects as firmware does: it tries a failed connection once more, reads one line of the answer
    in each turn of its loop, and gives large frames no random mask. Otherwise there is one attempt, the
    answer is read at once, and large frames are masked, too.

    `spawn` starts a task in a nursery that outlives the connection. Leaving the block drops waiting messages,
    and sends no close frame.
    """
    handshake_key = websocket_key(rng.randbytes(16))
    request = upgrade_request(
        device_id=device_id, key=key, host=endpoint.host_header, websocket_key=handshake_key
    )
    stream, raw = await _connect(endpoint, ssl_context, twice=faithful)
    try:
        answer, rest = await _ask(stream, request, endpoint)
        if faithful:
            await trio.sleep(TURN_S * answer.lines)
            if not accepted(answer, handshake_key) and ssl_context is None and await _ends_now(stream):
                # Firmware takes that for a lost connection, and tries once more in the same call.
                await trio.aclose_forcefully(stream)
                stream, raw = await _connect(endpoint, ssl_context, twice=True)
                answer, rest = await _ask(stream, request, endpoint)
                await trio.sleep(TURN_S * answer.lines)
        if not accepted(answer, handshake_key):
            if "upgrade" not in answer.headers.get("connection", "").lower():
                with suppress(trio.BrokenResourceError):
                    await stream.send_all(FAREWELL)
            if answer.status == 101:
                raise RelayUnreachable(
                    "the relay's answer to the upgrade is one that firmware does not accept"
                )
            raise RelayRefused(answer.status, _detail(rest), retry_after_s=_retry_after_s(answer))
        connection = FirmwareConnection(
            stream, raw, spawn=spawn, rng=rng, always_masked=not faithful, rest=rest
        )
        yield connection
    finally:
        await trio.aclose_forcefully(stream)


async def register(
    endpoint: Endpoint, *, device_id: str, key: str, token: str, ssl_context: ssl.SSLContext | None
) -> None:
    """Register a machine's key, and the token that its screen shows.

    Raises RelayUnreachable, or RelayRefused unless the first part of the answer contains `200 `.
    """
    stream, _ = await _connect(endpoint, ssl_context, twice=False)
    try:
        host = f"[{endpoint.host}]" if ":" in endpoint.host else endpoint.host
        with trio.move_on_after(REGISTER_S) as asking:
            for data in register_request(device_id=device_id, key=key, token=token, host=host):
                await stream.send_all(data)
            answer = bytes(await stream.receive_some(_READ_BYTES))
            if b"200 " in answer:
                return
            head, _, body = answer.partition(b"\r\n\r\n")
            parsed = parse_head(head)
            if parsed is None:
                raise RelayUnreachable("the server is not a relay")
            raise RelayRefused(parsed.status, _detail(body), retry_after_s=_retry_after_s(parsed))
        if asking.cancelled_caught:
            raise RelayUnreachable(f"the registration was not answered in {REGISTER_S:g} s")
    except trio.BrokenResourceError:
        raise RelayUnreachable("the connection was lost while registering") from None
    finally:
        await trio.aclose_forcefully(stream)


async def _connect(
    endpoint: Endpoint, ssl_context: ssl.SSLContext | None, *, twice: bool
) -> tuple[trio.abc.Stream, socket.socket | None]:
    """Connect, with TLS if the endpoint has it; return the socket too if it can be written to directly."""
    with trio.move_on_after(ATTEMPT_S):
        try:
            found = await trio.socket.getaddrinfo(endpoint.host, endpoint.port, type=socket.SOCK_STREAM)
        except OSError as error:
            raise HostNotFound(f"{endpoint.host} cannot be found ({error.strerror})") from None
        try:
            stream, raw = await _connect_to_any(found)
        except OSError as error:
            if not twice:
                raise _no_connection(endpoint, error) from None
            await trio.sleep(_AGAIN_S)
            try:
                stream, raw = await _connect_to_any(found)
            except OSError as again:
                raise _no_connection(endpoint, again) from None
        if ssl_context is None:
            return stream, raw
        tls = trio.SSLStream(stream, ssl_context, server_hostname=endpoint.host, https_compatible=True)
        try:
            await tls.do_handshake()
        except BaseException as error:
            await trio.aclose_forcefully(tls)
            if isinstance(error, trio.BrokenResourceError):
                raise RelayUnreachable(f"no TLS with {endpoint.host}: {error.__cause__}") from None
            raise
        return tls, None
    raise ConnectTimedOut(f"{endpoint.host} does not answer: no connection after {ATTEMPT_S:g} s")


async def _connect_to_any(found: list[Any]) -> tuple[trio.SocketStream, socket.socket]:
    """Connect to the first address that accepts. Raises the OSError of the last one."""
    problem: OSError = OSError("no address")
    for family, kind, protocol, _, address in found:
        raw = socket.socket(family, kind, protocol)
        try:
            wrapped = trio.socket.from_stdlib_socket(raw)
            await wrapped.connect(address)
            return trio.SocketStream(wrapped), raw
        except OSError as error:
            raw.close()
            problem = error
        except BaseException:
            raw.close()
            raise
    raise problem


async def _ask(stream: trio.abc.Stream, request: bytes, endpoint: Endpoint) -> tuple[Answer, bytes]:
    """Send the upgrade and read the head of its answer; return the bytes after it too."""
    received = b""
    try:
        with trio.move_on_after(ANSWER_S):
            await stream.send_all(request)
            while b"\r\n\r\n" not in received and len(received) < HEAD_BYTES:
                data = await stream.receive_some(_READ_BYTES)
                if not data:
                    raise RelayUnreachable(f"{endpoint.host} closed the connection without an answer")
                received += data
            head, _, rest = received.partition(b"\r\n\r\n")
            answer = parse_head(head)
            if answer is None:
                raise RelayUnreachable(f"the server at {endpoint.host} is not a relay")
            return answer, rest
    except trio.BrokenResourceError:
        raise RelayUnreachable(f"{endpoint.host} reset the connection without an answer") from None
    raise RelayUnreachable(f"{endpoint.host} did not answer the upgrade in {ANSWER_S:g} s")


async def _ends_now(stream: trio.abc.Stream) -> bool:
    """Tell whether a refused connection ends within a turn of the firmware's loop. Discards received data."""
    with trio.move_on_after(TURN_S), suppress(trio.BrokenResourceError):
        while await stream.receive_some(_READ_BYTES):
            pass
        return True
    return False


def _no_connection(endpoint: Endpoint, error: OSError) -> RelayUnreachable:
    return RelayUnreachable(f"cannot connect to {endpoint.host} port {endpoint.port} ({reasons_of(error)})")


def _retry_after_s(answer: Answer) -> float | None:
    text = answer.headers.get("retry-after")
    return parse_retry_after(text) if text else None


def _detail(body: bytes) -> str:
    """Return the error text of a refusal, if it has arrived completely."""
    try:
        content = msgspec.json.decode(body, type=dict[str, Any])
    except (msgspec.MsgspecError, RecursionError):
        return ""
    error = content.get("error")
    return one_line(error) if isinstance(error, str) else ""

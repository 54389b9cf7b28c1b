"""A machine's connection: from the first SYN to the last frame. It is light: thousands fit into a process.

Nothing is sent by a task of its own as long as the operating system takes what is written.
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
ANSWER_S: Final = 5.0  # from the upgrade to the end of its answer's head
REGISTER_S: Final = 10.0
TURN_S: Final = 0.01  # a machine does one thing in each turn of its loop
GOODBYE_S: Final = 0.5
MOST_WAITING: Final = 20
_AGAIN_S: Final = 0.011
_READ_BYTES: Final = 4096


class HostNotFound(RelayUnreachable):
    """The host's name leads to no address."""

    code = "relay_name_unknown"


class ConnectTimedOut(RelayUnreachable):
    """No connection came about in 20 s."""

    code = "relay_no_connection"


class FirmwareConnection:
    """An open WebSocket of a machine. Made by `open_firmware_connection`, which also ends it.

    `send` never waits. What the operating system does not take at once waits here, 20 messages at most; the
    newest is dropped then, as machines do it.
    """

    __slots__ = (
        "_always_masked",
        "_chance",
        "_flushing",
        "_frames",
        "_raw",
        "_rest",
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
        chance: random.Random,
        always_masked: bool,
        rest: bytes,
    ) -> None:
        self._rest = rest  # what came in one piece with the answer
        self._stream = stream
        self._raw = raw
        self._spawn = spawn
        self._chance = chance
        self._always_masked = always_masked
        self._frames = FrameReader()
        self._waiting: deque[bytes] = deque()
        self._flushing = False
        self.dropped = 0

    @property
    def stalled(self) -> bool:
        """Whether a frame has begun to arrive and is not complete."""
        return self._frames.waiting

    def send(self, opcode: int, payload: bytes) -> None:
        """Send a frame, now or as soon as it can leave; without an effect on a connection that has ended."""
        if len(self._waiting) >= MOST_WAITING and opcode != CLOSE:
            self.dropped += 1
            return
        writes = build(opcode, payload, chance=self._chance, always_masked=self._always_masked)
        while writes and (left := self._write(writes[0])) != writes[0]:
            writes = [left, *writes[1:]] if left else writes[1:]
        if writes:
            self._waiting.append(b"".join(writes))
            if not self._flushing:
                self._flushing = True
                self._spawn(self._flush)

    async def receive(self, take: Callable[[Frame], None]) -> bool:
        """Wait for bytes and hand on the frames that are complete with them; False once it has ended.

        Raises Unreadable for what a machine does not take.
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

    async def drop(self) -> None:
        """End the connection without a word."""
        await trio.aclose_forcefully(self._stream)

    async def say_goodbye(self, code: int = 1000) -> None:
        """Close with a close frame, and give the other side a moment to answer it."""
        with trio.move_on_after(GOODBYE_S, shield=True):
            # Not by `send`: where it would need a task, that may have been cancelled by now.
            closing = build(
                CLOSE, close_payload(code), chance=self._chance, always_masked=self._always_masked
            )
            with suppress(trio.BrokenResourceError, trio.ClosedResourceError, trio.BusyResourceError):
                await self._stream.send_all(b"".join((*self._waiting, *closing)))
                while await self._stream.receive_some(_READ_BYTES):
                    pass

    def _write(self, data: bytes) -> bytes:
        """Write what the operating system takes at once; gives what it does not."""
        if self._raw is None or self._waiting or self._flushing:
            return data
        try:
            return data[self._raw.send(data) :]
        except BlockingIOError:
            return data
        except OSError:
            return b""  # whoever reads sees that it has ended

    async def _flush(self) -> None:
        """Send what waits. **Ends when:** nothing does any more, or the connection has ended."""
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
    chance: random.Random,
    ssl_context: ssl.SSLContext | None,
    faithful: bool,
) -> AsyncIterator[FirmwareConnection]:
    """Connect as a machine; raises RelayUnreachable or RelayRefused.

    `spawn` starts a task in a nursery that lives longer than the link. Leaving the block drops what is left.
    """
    handshake_key = websocket_key(chance.randbytes(16))
    request = upgrade_request(
        device_id=device_id, key=key, host=endpoint.host_header, websocket_key=handshake_key
    )
    stream, raw = await _connect(endpoint, ssl_context, twice=faithful)
    try:
        answer, rest = await _ask(stream, request, endpoint)
        if faithful:
            await trio.sleep(TURN_S * answer.lines)
            if not accepted(answer, handshake_key) and ssl_context is None and await _ends_now(stream):
                # A machine takes that for a lost connection, and tries once more in the same call.
                await trio.aclose_forcefully(stream)
                stream, raw = await _connect(endpoint, ssl_context, twice=True)
                answer, rest = await _ask(stream, request, endpoint)
                await trio.sleep(TURN_S * answer.lines)
        if not accepted(answer, handshake_key):
            if "upgrade" not in answer.headers.get("connection", "").lower():
                with suppress(trio.BrokenResourceError):
                    await stream.send_all(FAREWELL)
            if answer.status == 101:
                raise RelayUnreachable("the upgrade was answered in a way that machines do not take")
            raise RelayRefused(answer.status, _detail(rest), retry_after_s=_retry_after_s(answer))
        connection = FirmwareConnection(
            stream, raw, spawn=spawn, chance=chance, always_masked=not faithful, rest=rest
        )
        yield connection
    finally:
        await trio.aclose_forcefully(stream)


async def register(
    endpoint: Endpoint, *, device_id: str, key: str, token: str, ssl_context: ssl.SSLContext | None
) -> None:
    """Register a machine's key, and the token that its screen shows.

    Raises RelayUnreachable, or RelayRefused unless `200 ` is in what is answered first.
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
                raise RelayUnreachable("what answers is no relay")
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
    """Connect, with TLS where the endpoint has it; gives the socket too if it can be written to."""
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
    """Connect to the first address that takes us; raises the last one's OSError."""
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
    """Send the upgrade and read the head of its answer; gives what came after it too."""
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
                raise RelayUnreachable(f"what answers at {endpoint.host} is no relay")
            return answer, rest
    except trio.BrokenResourceError:
        raise RelayUnreachable(f"{endpoint.host} reset the connection without an answer") from None
    raise RelayUnreachable(f"{endpoint.host} did not answer the upgrade in {ANSWER_S:g} s")


async def _ends_now(stream: trio.abc.Stream) -> bool:
    """Tell whether a refused connection ends within a turn of a machine's loop; what comes is discarded."""
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
    """Pick what a refusal says, as far as it has come."""
    try:
        content = msgspec.json.decode(body, type=dict[str, Any])
    except (msgspec.MsgspecError, RecursionError):
        return ""
    said = content.get("error")
    return one_line(said) if isinstance(said, str) else ""

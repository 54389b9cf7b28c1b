"""HttpConnection: one connection of the HTTP side, with its deadlines and Hypercorn's HTTP/1.1 protocol."""

import logging
import math
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import Final, NoReturn, cast

import h11
import trio
from hypercorn.config import Config
from hypercorn.events import Closed, Event, RawData, Updated
from hypercorn.protocol.h11 import H11Protocol
from hypercorn.trio.worker_context import WorkerContext
from hypercorn.typing import (
    AppWrapper,
    ASGIReceiveEvent,
    ASGISendEvent,
    ConnectionState,
    Scope,
    TaskGroup,
)

from brewos_relay.server.request_gate import RequestGate, WebSocketWanted
from brewos_relay.server.supervision import contained
from brewos_relay.settings.server_limits import ServerLimits
from brewos_relay.telemetry.measurements import RequestCounters

log = logging.getLogger(__name__)

_READ_BYTES: Final = 64 * 1024
_WRITE_BYTES: Final = 16 * 1024
"""The size of a write, which a peer must accept within `stall_s`. Smaller responses are written at once."""
_HOLD_S: Final = 0.25
"""How long the beginning of a response may wait for the rest."""


@dataclass(frozen=True, slots=True, kw_only=True)
class HttpServing:
    """What all HTTP connections share: the app, Hypercorn's configuration, and the limits."""

    app: AppWrapper
    config: Config
    context: WorkerContext
    limits: ServerLimits
    counters: RequestCounters


class HttpConnection:
    """One HTTP connection: a reader, a task for the request in progress, and one deadline for both.

    The beginning of a response is held until the response is complete, fills a write, or has waited briefly:
    a machine takes the content of the first segment for the whole response.

    **Owns:** a nursery with the reader and the request task, and a third task while data is held.
    **Ends when:** either end closes, a deadline passes, or a request is refused.
    """

    def __init__(
        self,
        stream: trio.abc.Stream,
        *,
        serving: HttpServing,
        client: tuple[str, int] | None,
        secure: bool,
        gives_back: bool,
    ) -> None:
        self._serving = serving
        self._client = client
        self._secure = secure
        self._limits = limits = serving.limits
        self._stream = stream
        self._writing = trio.Lock()
        self._held = bytearray()
        self._held_until = -math.inf
        self._holding = False
        self._scope = trio.CancelScope(deadline=trio.current_time() + limits.request_head_s)
        self._idle = trio.CancelScope()
        self._h11 = RequestGate(
            head_bytes=limits.request_head_bytes,
            body_bytes=limits.http_body_bytes,
            refused=serving.counters.refused,
            gives_back=gives_back,
        )
        self._reading_head = True
        self._answering = False
        self._broken = False
        self._wanted: WebSocketWanted | None = None

    def close_if_idle(self) -> None:
        """End the connection unless a request is arriving or being answered."""
        if not self._answering and not self._reading_head:
            self._scope.cancel()

    async def run(self, initial: bytes) -> WebSocketWanted | None:
        """Serve requests until the connection ends or requests a WebSocket. The stream is left open."""
        with self._scope:
            async with trio.open_nursery() as self._nursery:
                await self._read(self._nursery, initial)
                self._nursery.cancel_scope.cancel()
        if self._wanted is not None:
            return self._wanted
        if not self._broken and (self._reading_head or self._answering):
            with trio.move_on_after(self._limits.close_s), suppress(trio.BrokenResourceError):
                await self._finish()
        return None

    async def _read(self, nursery: trio.Nursery, initial: bytes) -> None:
        protocol = H11Protocol(
            self._serving.app,
            self._serving.config,
            self._serving.context,
            cast("TaskGroup", _Requests(nursery)),
            ConnectionState({}),
            self._secure,
            self._client,
            None,
            self._on_event,
        )
        protocol.connection = self._h11
        data = initial or await self._receive()
        while data:
            if not self._answering and not self._reading_head and data.strip(b"\r\n"):
                self._reading_head = True
                self._idle.deadline = math.inf
                self._scope.deadline = trio.current_time() + self._limits.request_head_s
            try:
                await protocol.handle(RawData(data))
            except WebSocketWanted as wanted:
                self._wanted = wanted
                return
            data = await self._receive()
        await protocol.handle(RawData(b""))
        if self._answering:
            # The peer has finished sending, but may still read the response.
            await trio.sleep_forever()

    async def _receive(self) -> bytes:
        """Wait for data or the end of the stream. At the idle limit, end the connection.

        A request that arrived in time is served even if the server was busy past the limit: Trio reads before
        it checks deadlines, and the deadline cancels only the wait.
        """
        data = b""
        with trio.CancelScope(deadline=self._idle.deadline) as self._idle:
            try:
                data = bytes(await self._stream.receive_some(_READ_BYTES))
            except trio.BrokenResourceError:
                await self._give_up()
        if self._idle.cancelled_caught:
            self._scope.cancel()
        return data

    async def _on_event(self, event: Event) -> None:
        """Handle an event of Hypercorn's protocol."""
        if isinstance(event, RawData):
            if not self._held:
                self._held_until = trio.current_time() + _HOLD_S
            self._held += event.data
            if self._h11.our_state is not h11.SEND_BODY or len(self._held) >= _WRITE_BYTES:
                await self._write_held()
            elif not self._holding:
                self._holding = True
                self._nursery.start_soon(self._write_later)
        elif isinstance(event, Updated):
            self._reading_head = False
            self._answering = not event.idle
            now_s = trio.current_time()
            self._idle.deadline = now_s + self._limits.http_idle_s if event.idle else math.inf
            self._scope.deadline = math.inf if event.idle else now_s + self._limits.http_request_s
        else:
            assert isinstance(event, Closed)
            try:
                await self._write_held()
            finally:
                # Even if the request task is cancelled here: the app was told that the connection ends.
                self._scope.cancel()

    async def _write_later(self) -> None:
        """Write the held data once it has waited long enough."""
        while self._held:
            await trio.sleep_until(self._held_until)
            if trio.current_time() >= self._held_until:
                await self._write_held()
        self._holding = False

    async def _write_held(self) -> None:
        async with self._writing:
            data = bytes(self._held)
            self._held.clear()
            for start in range(0, len(data), _WRITE_BYTES):
                try:
                    with trio.fail_after(self._limits.stall_s):
                        await self._stream.send_all(memoryview(data)[start : start + _WRITE_BYTES])
                except (trio.BrokenResourceError, trio.TooSlowError):
                    await self._give_up()
                if self._answering:
                    self._scope.deadline = trio.current_time() + self._limits.http_request_s

    async def _give_up(self) -> NoReturn:
        self._broken = True
        self._scope.cancel()
        await trio.sleep_forever()

    async def _finish(self) -> None:
        """Send a last response if one is due, and wait until the peer closes, so that it can read it."""
        timed_out = trio.current_time() >= self._scope.deadline
        if timed_out and self._h11.our_state in {h11.IDLE, h11.SEND_RESPONSE}:
            late = self._h11.their_state in {h11.IDLE, h11.SEND_BODY}
            self._serving.counters.refused["too_slow" if late else "no_answer_in_time"] += 1
            await self._stream.send_all(_REQUEST_TIMEOUT if late else _SERVICE_UNAVAILABLE)
        if isinstance(self._stream, trio.abc.HalfCloseableStream):
            await self._stream.send_eof()
        while await self._stream.receive_some(_READ_BYTES):
            pass


_REQUEST_TIMEOUT: Final = b"HTTP/1.1 408 Request Timeout\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"
_SERVICE_UNAVAILABLE: Final = (
    b"HTTP/1.1 503 Service Unavailable\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"
)


class _Requests:
    """Runs the app for each request, in the connection's nursery. Replaces Hypercorn's TaskGroup."""

    def __init__(self, nursery: trio.Nursery) -> None:
        self._nursery = nursery

    async def spawn_app(
        self,
        app: AppWrapper,
        config: Config,
        scope: Scope,
        send: Callable[[ASGISendEvent | None], Awaitable[None]],
    ) -> Callable[[ASGIReceiveEvent], Awaitable[None]]:
        """Start the request task. Return the function that passes received events to the app."""
        put, take = trio.open_memory_channel[ASGIReceiveEvent](config.max_app_queue_size)

        async def answer() -> None:
            with contained("answering an HTTP request"):
                await app(scope, take.receive, send, trio.to_thread.run_sync, trio.from_thread.run)
            with contained("ending an HTTP request"):
                await send(None)

        self._nursery.start_soon(answer, name="http request")
        return put.send

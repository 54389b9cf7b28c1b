"""The HTTP side: serves HTTP connections with an ASGI app and Hypercorn's HTTP/1.1 protocol.

Of Hypercorn, only the protocol is used. Reading, writing and timeouts are implemented here, so that no
connection outlives its deadlines, switches to another protocol, or ends anything but itself.
"""

import logging
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any, Final, Protocol

import trio
from hypercorn.app_wrappers import ASGIWrapper
from hypercorn.config import Config
from hypercorn.trio.worker_context import WorkerContext
from hypercorn.typing import AppWrapper, ASGIFramework

from brewos_relay.errors import RelayError
from brewos_relay.server.http_connection import HttpConnection, HttpServing
from brewos_relay.server.request_gate import WebSocketWanted
from brewos_relay.server.supervision import contained
from brewos_relay.settings.server_limits import ServerLimits
from brewos_relay.telemetry.measurements import RequestCounters

log = logging.getLogger(__name__)

_FAREWELL_S: Final = 0.5
"""How long requests in progress may take when the HTTP side closes."""
_STOP_S: Final = 5.0
"""How long the app may take to stop."""

App = Callable[..., Awaitable[None]]


class TakeWebSocket(Protocol):
    """Answers a WebSocket request on a connection of the HTTP side. Returns whether it took the connection.

    If so, it owns the stream, and the HTTP side does not close it.
    """

    async def __call__(
        self, stream: trio.abc.Stream, wanted: WebSocketWanted, *, client: tuple[str, int], secure: bool
    ) -> bool: ...


class HttpSide:
    """Serves HTTP connections whose first request head was already read.

    HTTP clients reuse pooled connections, also for a WebSocket request. Such a connection is passed to its
    `take_websocket`; without that, the request is refused.

    **Owns:** (through `open_http_side`) the nursery with a task for each connection given to `take`.
    **Ends when:** the block of `open_http_side` is left.
    """

    def __init__(
        self,
        app: AppWrapper,
        *,
        nursery: trio.Nursery,
        config: Config,
        limits: ServerLimits,
        counters: RequestCounters,
    ) -> None:
        self._serving = HttpServing(
            app=app, config=config, context=WorkerContext(None), limits=limits, counters=counters
        )
        self._nursery = nursery
        self._connections: set[HttpConnection] = set()

    @property
    def connection_count(self) -> int:
        """How many connections are being served."""
        return len(self._connections)

    def take(
        self,
        stream: trio.abc.Stream,
        initial: bytes,
        *,
        client: tuple[str, int] | None = None,
        secure: bool = False,
        take_websocket: TakeWebSocket | None = None,
    ) -> None:
        """Serve a connection in a task of the HTTP side, which owns the stream from here on.

        `client` is the peer's address and port; `secure` says whether TLS protects the connection;
        `take_websocket` answers a later request for a WebSocket.
        """

        async def serve() -> None:
            await self.serve(
                stream, initial=initial, client=client, secure=secure, take_websocket=take_websocket
            )

        self._nursery.start_soon(serve, name="http connection")

    async def serve(
        self,
        stream: trio.abc.Stream,
        *,
        initial: bytes,
        client: tuple[str, int] | None = None,
        secure: bool = False,
        take_websocket: TakeWebSocket | None = None,
    ) -> None:
        """Serve a connection until it ends, and close its stream.

        `initial` is the data that was already read. Raises nothing but trio.Cancelled: a failure ends this
        connection only.
        """
        connection = HttpConnection(
            stream,
            serving=self._serving,
            client=client,
            secure=secure,
            gives_back=take_websocket is not None,
        )
        self._connections.add(connection)
        goes_on = False
        try:
            with contained("an HTTP connection"):
                wanted = await connection.run(initial)
                if wanted is not None and take_websocket is not None and client is not None:
                    goes_on = await take_websocket(stream, wanted, client=client, secure=secure)
        finally:
            self._connections.discard(connection)
            if not goes_on:
                await self._close(stream)

    async def _close(self, stream: trio.abc.Stream) -> None:
        # Shielded, so that a cancellation does not replace an exception that is being raised.
        with contained("closing"), trio.move_on_after(self._serving.limits.close_s, shield=True):
            await trio.aclose_forcefully(stream)

    async def close_idle(self) -> None:
        """Close every connection that waits for its next request. The others close after their response."""
        await self._serving.context.terminated.set()
        for connection in self._connections:
            connection.close_if_idle()


@asynccontextmanager
async def open_http_side(
    app: ASGIFramework,
    *,
    limits: ServerLimits | None = None,
    counters: RequestCounters | None = None,
) -> AsyncIterator[HttpSide]:
    """Start an ASGI app and serve connections with it. Leaving the block closes them and stops the app.

    `limits` bound heads, bodies, the time of a response and the time of an idle connection. `counters`
    counts requests that are refused before the app sees them.

    **Owns:** a nursery with a task for each connection, within the nursery of `open_lifespan`.
    """
    limits, counters = limits or ServerLimits(), counters or RequestCounters()
    config = Config()
    config.accesslog = None  # the query string in a request line may contain a token
    config.errorlog = log
    config.include_server_header = False
    async with open_lifespan(app), trio.open_nursery() as nursery:
        side = HttpSide(ASGIWrapper(app), nursery=nursery, config=config, limits=limits, counters=counters)
        yield side
        await side.close_idle()
        nursery.cancel_scope.deadline = trio.current_time() + _FAREWELL_S


@asynccontextmanager
async def open_lifespan(app: App) -> AsyncIterator[None]:
    """Start an ASGI app; leaving the block stops it. Raises RelayError if the app cannot start or stop.

    **Owns:** a nursery with one task, which runs the app's lifespan.
    """
    async with trio.open_nursery() as nursery:
        leaving = trio.Event()
        await nursery.start(_run_lifespan, app, leaving)
        yield
        leaving.set()
        nursery.cancel_scope.deadline = trio.current_time() + _STOP_S


async def _run_lifespan(app: App, leaving: trio.Event, *, task_status: trio.TaskStatus[None]) -> None:
    steps = iter(("lifespan.startup", "lifespan.shutdown"))

    async def receive() -> dict[str, str]:
        step = next(steps)
        if step == "lifespan.shutdown":
            await leaving.wait()
        return {"type": step}

    async def send(event: dict[str, Any]) -> None:
        if event["type"] == "lifespan.startup.complete":
            task_status.started()
        elif event["type"] in {"lifespan.startup.failed", "lifespan.shutdown.failed"}:
            raise RelayError(f"the web application could not start or stop: {event.get('message', '')}")

    await app(
        {"type": "lifespan", "asgi": {"version": "3.0", "spec_version": "2.0"}, "state": {}}, receive, send
    )

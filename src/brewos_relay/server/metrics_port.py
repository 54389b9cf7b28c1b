"""MetricsPort: a port of its own for the metrics, without TLS."""

import socket
from collections.abc import Awaitable, Callable, Iterable
from typing import Final

import trio

from brewos_relay.auth.secrets import bearer_matches
from brewos_relay.server.incoming import IncomingConnection, PortPolicy, accept_connections
from brewos_relay.settings.server_limits import ServerLimits
from brewos_relay.telemetry.metrics import CONTENT_TYPE
from brewos_relay.wire.handshake import Refusal, Request, encode_response, parse_head

_PLAIN: Final = PortPolicy()
_ALLOW: Final = {"Allow": "GET, HEAD"}


class MetricsPort:
    """Serves GET and HEAD of /metrics without TLS, one request per connection.

    **Owns:** a task for each listening socket, and one for each connection until it is answered.
    **Ends when:** cancelled.
    """

    def __init__(
        self,
        sockets: Iterable[socket.socket],
        *,
        render: Callable[[], Awaitable[bytes]],
        token: str,
        limits: ServerLimits,
    ) -> None:
        """Serve these listening sockets. Requests need the bearer token `token`, unless it is empty."""
        self._sockets = list(sockets)
        self._render = render
        self._token = token
        self._limits = limits

    async def run(self) -> None:
        """Accept connections until cancelled."""
        await accept_connections(
            self._sockets,
            self._handle,
            limits=self._limits,
            failure="a connection to the metrics port failed",
        )

    async def _handle(self, incoming: IncomingConnection) -> None:
        try:
            head, _ = await incoming.receive_head(port_policy=_PLAIN, limits=self._limits)
            answer = await self._answer(parse_head(head))
        except Refusal as refusal:
            answer = refusal.encode(head_only=incoming.head_only)
        await self._send(incoming, answer)

    async def _answer(self, request: Request) -> bytes:
        """Build the response. Raises Refusal."""
        if request.path == "*":
            return encode_response(200, _ALLOW, head_only=False)
        if request.path != "/metrics":
            raise Refusal(404, "this port serves only /metrics")
        if request.method not in ("GET", "HEAD"):
            raise Refusal(405, "use GET or HEAD for /metrics", headers=_ALLOW)
        if self._token and not bearer_matches(request.headers.get("authorization"), self._token):
            raise Refusal(
                401,
                "/metrics requires the metrics token as a bearer token",
                headers={"WWW-Authenticate": "Bearer"},
            )
        text = await self._render()
        return encode_response(200, {"Content-Type": CONTENT_TYPE}, text, head_only=request.method == "HEAD")

    async def _send(self, incoming: IncomingConnection, answer: bytes) -> None:
        """Send a response, and wait until the peer closes, so that it can read all of it."""
        transport = incoming.transport
        sending = transport.write(answer)
        assert sending, "the outbox of a new connection is empty"
        if not await transport.flush(stall_s=self._limits.stall_s):
            return
        transport.finish_writing()
        with trio.move_on_after(self._limits.close_s):
            while transport.read() != b"":
                await transport.wait_readable()

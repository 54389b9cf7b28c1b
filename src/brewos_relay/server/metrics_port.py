"""A port of its own for metrics: GET and HEAD of /metrics, and nothing more."""

import socket
from collections.abc import Callable, Iterable
from typing import Final

import trio

from brewos_relay.api.metrics import CONTENT_TYPE, bearer_matches
from brewos_relay.core.limits import Limits
from brewos_relay.server.accepting import accept_connections
from brewos_relay.server.arrival import IncomingConnection, PortPolicy
from brewos_relay.wire.handshake import Refusal, Request, encode_response, parse_head

_PLAIN: Final = PortPolicy()
_ALLOW: Final = {"Allow": "GET, HEAD"}


class MetricsPort:
    """Answers one request for each connection, without TLS.

    **Owns:** an accepting task for each listening socket, and one for each connection until it is answered.
    **Ends when:** cancelled.
    """

    def __init__(
        self, sockets: Iterable[socket.socket], *, render: Callable[[], bytes], token: str, limits: Limits
    ) -> None:
        """Take listening sockets; `token` is what everybody has to know, empty for nothing."""
        self._sockets = list(sockets)
        self._render = render
        self._token = token
        self._limits = limits

    async def run(self) -> None:
        """Accept connections until cancelled."""
        await accept_connections(
            self._sockets, self._welcome, limits=self._limits, failure="metrics could not be given"
        )

    async def _welcome(self, incoming: IncomingConnection) -> None:
        try:
            head, _ = await incoming.receive_head(port_policy=_PLAIN, limits=self._limits)
            answer = self._answer(parse_head(head))
        except Refusal as refusal:
            answer = refusal.encode(head_only=incoming.head_only)
        await self._send(incoming, answer)

    def _answer(self, request: Request) -> bytes:
        """Build the response. Raises Refusal."""
        if request.path == "*":
            return encode_response(200, _ALLOW, head_only=False)
        if request.path != "/metrics":
            raise Refusal(404, "there is nothing but /metrics here")
        if request.method not in ("GET", "HEAD"):
            raise Refusal(405, "metrics can only be read", headers=_ALLOW)
        if self._token and not bearer_matches(request.headers.get("authorization"), self._token):
            raise Refusal(
                401, "the metrics need their token as a bearer", headers={"WWW-Authenticate": "Bearer"}
            )
        return encode_response(
            200, {"Content-Type": CONTENT_TYPE}, self._render(), head_only=request.method == "HEAD"
        )

    async def _send(self, incoming: IncomingConnection, answer: bytes) -> None:
        """Send an answer, and give the peer a moment to read it."""
        transport = incoming.transport
        sending = transport.write(answer)
        assert sending, "the outbox of a new connection is empty"
        if not await transport.flush(stall_s=self._limits.stall_s):
            return
        transport.finish_writing()
        with trio.move_on_after(self._limits.close_s):
            while transport.read() != b"":
                await transport.wait_readable()

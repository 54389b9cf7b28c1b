"""Redirect: an additional port without TLS that redirects plain HTTP to HTTPS."""

import socket
from collections.abc import Callable, Iterable
from typing import Final

from brewos_relay.api.console_pages import CA_PATH, CA_TYPE, FindCa, no_ca
from brewos_relay.networks import network_of
from brewos_relay.server.admission import DEVICE_PATH
from brewos_relay.server.incoming import (
    IncomingConnection,
    LingerSlots,
    PortPolicy,
    RefusalLog,
    accept_connections,
)
from brewos_relay.settings.server_limits import ServerLimits
from brewos_relay.wire.handshake import Refusal, encode_response, parse_head

_HTTPS_PORT: Final = 443
_PLAIN: Final = PortPolicy()


class _CaCertificate(Refusal):
    """The answer to /ca.crt."""

    def __init__(self, pem: bytes) -> None:
        super().__init__(200, "the certificate of the local CA")
        self._pem = pem

    def encode(self, *, head_only: bool = False) -> bytes:
        headers = {"Content-Type": CA_TYPE, "X-Content-Type-Options": "nosniff"}
        return encode_response(self.status, headers, self._pem, head_only=head_only)


class Redirect:
    """Redirects every request to the same path over HTTPS, for the server's own host names only.

    It answers /ca.crt itself: a phone that does not trust the local CA yet can get it here without a warning.
    Its user compares the fingerprint.

    **Owns:** a task for each listening socket, and one for each connection until it is answered.
    **Ends when:** cancelled.
    """

    def __init__(
        self,
        sockets: Iterable[socket.socket],
        *,
        https_port: int,
        is_own_host: Callable[[str], bool],
        local_ca: FindCa = no_ca,
        limits: ServerLimits,
        port_policy: PortPolicy = _PLAIN,
        refusals: RefusalLog | None = None,
    ) -> None:
        """Serve these listening sockets.

        `is_own_host` takes a name or an address without a port. `port_policy` may require PROXY headers, but
        no TLS. `refusals` logs refused requests.
        """
        self._sockets = list(sockets)
        self._https_port = https_port
        self._is_own_host = is_own_host
        self._local_ca = local_ca
        self._limits = limits
        self._port_policy = port_policy
        self._lingering = LingerSlots()
        self._refusals = refusals or RefusalLog()

    async def run(self) -> None:
        """Accept connections until cancelled."""
        await accept_connections(
            self._sockets,
            self._handle,
            limits=self._limits,
            failure="a connection failed during its redirect",
        )

    async def _handle(self, incoming: IncomingConnection) -> None:
        try:
            head, _ = await incoming.receive_head(port_policy=self._port_policy, limits=self._limits)
            answer = self._answer(incoming, head)
        except Refusal as refusal:
            fields = {"address": incoming.address, "status": refusal.status}
            self._refusals.log(
                "refused %s: %s",
                incoming.address,
                refusal,
                cause=f"plain HTTP, {refusal.status}",
                network=network_of(incoming.address),
                extra=fields,
            )
            answer = refusal
        lingering = self._lingering if incoming.path == DEVICE_PATH else None
        await incoming.refuse(answer, within_s=self._limits.close_s, lingering=lingering)

    def _answer(self, incoming: IncomingConnection, head: bytes) -> Refusal:
        """Build the redirect. Raises Refusal if the request names no host, or not one of this server."""
        request = parse_head(head)
        incoming.path = request.path
        host, _, port = request.headers.get("host", "").rpartition(":")
        if not host or not port.isdecimal():
            host = request.headers.get("host", "").removesuffix(":")
        host = host.removesuffix(".")
        if not host or not self._is_own_host(host):
            raise Refusal(421, "this server does not have that host name; use https and its own name")
        if request.path == CA_PATH and (ca := self._local_ca()) is not None:
            return _CaCertificate(ca.pem)
        where = host if self._https_port == _HTTPS_PORT else f"{host}:{self._https_port}"
        path = request.path if request.path != "*" else ""
        target = f"{path}?{request.query}" if request.query else path
        return Refusal(308, "this server speaks HTTPS", headers={"Location": f"https://{where}{target}"})

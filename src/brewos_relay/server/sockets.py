"""The listening sockets of a server: bound once, and closed in the end.

Several workers share them. With a socket for each worker (SO_REUSEPORT), connections were spread within 2 %,
but waited twice as long: for 12 ms (p99) instead of 6, at 400 a second on two cores. Those in the queue of a
worker that died would wait for its replacement or be lost, and a second relay on the port would not be
noticed. With shared sockets, one of two workers got 61 % and a fifth of the wake-ups found nothing to accept,
which took 5 % more CPU time. Peers are spread evenly all the same: see `server.handover`.
"""

import errno
import socket
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Final

import trio

from brewos_relay.settings import Settings

_BACKLOG: Final = 4096
_HTTP_PORT: Final = 80
_FIRST_OPEN_PORT: Final = 1024
"""Lower ports usually require a privilege."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ListeningSockets:
    """The listening sockets of each port."""

    main: list[socket.socket] = field(default_factory=list)
    redirect: list[socket.socket] = field(default_factory=list)
    metrics: list[socket.socket] = field(default_factory=list)

    def close(self) -> None:
        """Close all of them."""
        self.close_serving()
        for listening in self.metrics:
            listening.close()

    def close_serving(self) -> None:
        """Close those for machines and apps."""
        for listening in (*self.main, *self.redirect):
            listening.close()


def describe_addresses(addresses: Iterable[tuple[str, int]]) -> str:
    """Return addresses as a text, separated by commas."""
    return ", ".join(f"[{host}]:{port}" if ":" in host else f"{host}:{port}" for host, port in addresses)


@asynccontextmanager
async def open_sockets(settings: Settings) -> AsyncIterator[ListeningSockets]:
    """Bind every port that the settings name; leaving the block closes the listening sockets.

    Raises OSError if an address cannot be bound.
    """
    sockets = ListeningSockets()
    try:
        sockets.main.extend(await _bind(settings.host, settings.port))
        if settings.redirect_port is not None:
            sockets.redirect.extend(await _bind(settings.host, settings.redirect_port))
        if settings.metrics_port is not None:
            sockets.metrics.extend(await _bind(settings.metrics_host, settings.metrics_port))
        yield sockets
    finally:
        sockets.close()


LOW_PORTS_ADVICE: Final = (
    "echo net.ipv4.ip_unprivileged_port_start={port} | sudo tee /etc/sysctl.d/50-brewos-relay.conf\n"
    "sudo sysctl --system"
)
"""Commands with which Linux lets every user listen on ports from `port` on."""


def find_port_problem(host: str, port: int) -> int | None:
    """Return the error number if this process cannot listen on a port of a host, else None.

    An empty host means all interfaces.
    """
    try:
        for family, kind, _, _, address in socket.getaddrinfo(
            host or None, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        ):
            with socket.socket(family, kind) as probe:
                # As the server does; otherwise the port of a server that has just ended would not be free.
                probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                if family == socket.AF_INET6:
                    probe.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
                probe.bind(address)
    except OSError as problem:
        # An interface without IPv6, or a name that cannot be resolved, is no problem of the port.
        return problem.errno if problem.errno in (errno.EADDRINUSE, errno.EACCES) else None
    return None


async def _bind(host: str, port: int) -> list[socket.socket]:
    try:
        listeners = await trio.open_tcp_listeners(port, host=host or None, backlog=_BACKLOG)
    except OSError as problem:
        where = f"port {port} on {host or 'all interfaces'}"
        text = f"{where} cannot be used: {problem.strerror or problem}"
        if problem.errno == errno.EACCES and port < _FIRST_OPEN_PORT:
            advice = " && ".join(LOW_PORTS_ADVICE.format(port=min(port, _HTTP_PORT)).splitlines())
            text += (
                f"; allow all users to listen on it with `{advice}`, or run the relay as a systemd service"
            )
        elif problem.errno == errno.EADDRINUSE:
            text += " by another program, which `ss -ltnp` shows"
        raise OSError(problem.errno, text) from problem
    sockets = [socket.socket(fileno=listener.socket.detach()) for listener in listeners]
    for listening in sockets:
        listening.setblocking(False)
    return sockets

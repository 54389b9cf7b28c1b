"""One relay process: registry, relay, HTTP side and listener, in the order in which they come and go."""

import gc
import logging
import resource
import signal
import socket
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Final

import trio

from brewos_relay.api.app import create_app
from brewos_relay.auth.tokens import TokenSigner
from brewos_relay.core.relay import Relay, open_relay
from brewos_relay.registry.store import Store, open_store
from brewos_relay.server.admission import Admission
from brewos_relay.server.http import open_http_side
from brewos_relay.server.listener import Listener
from brewos_relay.settings import Settings
from brewos_relay.wire.poller import open_poller

log = logging.getLogger(__name__)

_BACKLOG: Final = 4096


@dataclass(frozen=True, slots=True)
class Server:
    """A running server: where it listens, and its parts."""

    addresses: list[tuple[str, int]]
    relay: Relay
    store: Store

    @property
    def url(self) -> str:
        """The base of the server's URLs, as seen from this machine."""
        host, port = self.addresses[0]
        host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)  # noqa: S104 - where to reach "any"
        return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


@asynccontextmanager
async def open_server(settings: Settings) -> AsyncIterator[Server]:
    """Open the whole server. Leaving the block drains it: new peers are refused, those there are closed well.

    Raises OSError if an address cannot be bound, SettingsError or RegistryError if a setting is no good.

    **Owns:** the nurseries of the HTTP side and of the listener, and the relay's.
    """
    tokens = TokenSigner(settings.require_jwt_secret())
    sockets = await _bind(settings.host, settings.port)
    try:
        async with (
            open_store(settings.resolved_database_url()) as store,
            open_poller() as poller,
            open_relay(limits=settings.limits, on_seen=store.note_seen) as relay,
        ):
            app = create_app(
                relay=relay,
                store=store,
                tokens=tokens,
                web_dist_path=settings.web_dist_path,
                body_bytes=settings.limits.http_body_bytes,
            )
            async with open_http_side(app, limits=settings.limits) as http, trio.open_nursery() as listening:
                listener = Listener(
                    sockets,
                    relay=relay,
                    poller=poller,
                    admission=Admission(relay=relay, store=store, tokens=tokens),
                    take_http=http.take,
                )
                listening.start_soon(listener.run)
                yield Server([s.getsockname()[:2] for s in sockets], relay, store)
                await relay.drain()
                listening.cancel_scope.cancel()
    finally:
        for listening_socket in sockets:
            listening_socket.close()


async def _bind(host: str, port: int) -> list[socket.socket]:
    try:
        listeners = await trio.open_tcp_listeners(port, host=host or None, backlog=_BACKLOG)
    except OSError as problem:
        where = f"port {port} on {host or 'all interfaces'}"
        raise OSError(problem.errno, f"{where} cannot be used: {problem.strerror or problem}") from problem
    sockets = [socket.socket(fileno=listener.socket.detach()) for listener in listeners]
    for listening_socket in sockets:
        listening_socket.setblocking(False)
    return sockets


def run_server(settings: Settings, *, announce: Callable[[str], None] | None = None) -> None:
    """Run a server until SIGTERM or SIGINT, then leave cleanly; a second signal ends the process at once.

    Raises what `open_server` raises if the server could not start.
    """
    logging.basicConfig(
        level=settings.log_level.upper(), format="%(asctime)s %(levelname)s %(name)s: %(message)s"
    )
    _prepare_process()
    trio.run(_serve, settings, announce or _print_line)


def _print_line(line: str) -> None:
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


def _prepare_process() -> None:
    """Allow as many connections as the system lets us, and look for garbage less often.

    A relay's objects live as long as its connections: looking through tens of thousands of them every few
    hundred allocations finds nothing.
    """
    _soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    gc.collect()
    gc.freeze()
    gc.set_threshold(50_000, 20, 100)


async def _serve(settings: Settings, announce: Callable[[str], None]) -> None:
    async with open_server(settings) as server:
        with trio.open_signal_receiver(signal.SIGTERM, signal.SIGINT) as signals:
            bound = ", ".join(
                f"[{host}]:{port}" if ":" in host else f"{host}:{port}" for host, port in server.addresses
            )
            announce(f"brewos-relay is ready on {bound} ({server.url})")
            number = await anext(signals)
        # From here on either signal ends the process at once.
        for ending in (signal.SIGTERM, signal.SIGINT):
            signal.signal(ending, signal.SIG_DFL)
        log.info("leaving after %s", signal.Signals(number).name)

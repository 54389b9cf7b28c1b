"""One relay process: registry, relay, HTTP side and listener, in the order in which they come and go."""

import logging
import socket
import sys
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import ExitStack, asynccontextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Final, cast

import trio

from brewos_relay.api.app import create_app
from brewos_relay.api.metrics import MetricsPage, RequestMetrics
from brewos_relay.api.request_limits import RequestLimits
from brewos_relay.auth.proxy_trust import ProxyTrust
from brewos_relay.core.counters import Counters
from brewos_relay.core.pauses import RunningClock
from brewos_relay.core.rate_limits import LineLimits
from brewos_relay.core.relay import Relay, open_relay
from brewos_relay.dialect import BREWOS
from brewos_relay.registry.engine import database_file
from brewos_relay.registry.store import Store, open_store
from brewos_relay.server.admission import Admission
from brewos_relay.server.certificates import CertificateFiles
from brewos_relay.server.change_applier import ChangeApplier
from brewos_relay.server.failures import keep_running
from brewos_relay.server.from_settings import (
    account_rules,
    https_port,
    is_own_host,
    missing_administrator,
    read_certificate,
    warn_of_command_lists,
)
from brewos_relay.server.health_checks import PROBLEMS, ReadinessCheck, StorageWatch
from brewos_relay.server.http import open_http_side
from brewos_relay.server.incoming import (
    LINES_AT_ONCE,
    LINES_AT_ONCE_OF_EACH,
    LINES_PER_S,
    PortPolicy,
    RefusalLog,
)
from brewos_relay.server.key_ring import read_key_ring
from brewos_relay.server.listener import Listener
from brewos_relay.server.persistence import ActivityRecorder, StateKeeper
from brewos_relay.server.plain_ports import MetricsPort, Redirect
from brewos_relay.server.process import give_memory_back, open_notifier, prepare_process
from brewos_relay.server.signals import ServerSignals
from brewos_relay.settings import Settings
from brewos_relay.telemetry.line_writer import LineWriter
from brewos_relay.telemetry.logs import LogFormat, configure_logging, dropped_lines, flush_logs, log_uncaught
from brewos_relay.telemetry.measurements import LoopLag, RequestCounters
from brewos_relay.telemetry.metrics import Metrics, MetricSources
from brewos_relay.version import installed_version
from brewos_relay.wire.poller import open_poller

log = logging.getLogger(__name__)

_BACKLOG: Final = 4096


@dataclass(frozen=True, slots=True)
class Server:
    """A running server: where it listens, and its parts."""

    addresses: list[tuple[str, int]]
    relay: Relay
    store: Store
    tls: CertificateFiles | None = None
    metrics_addresses: list[tuple[str, int]] = field(default_factory=list)

    @property
    def url(self) -> str:
        """The base of the server's URLs, as seen from this machine."""
        host, port = self.addresses[0]
        host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)  # noqa: S104 - where to reach "any"
        scheme = "http" if self.tls is None else "https"
        return f"{scheme}://[{host}]:{port}" if ":" in host else f"{scheme}://{host}:{port}"


@asynccontextmanager
async def open_server(
    settings: Settings, *, hurry: trio.Event | None = None, demo: bool = False
) -> AsyncIterator[Server]:
    """Open the whole server. Leaving the block drains it: new peers are refused, those there are closed well.

    Setting `hurry` shortens the drain, see `Relay.drain`. `demo` tells pages that this is a demo.

    Raises OSError if an address cannot be bound, SettingsError or RegistryError if a setting is no good.

    **Owns:** the nurseries of the HTTP side and of the listeners, and the relay's.
    """
    warn_of_command_lists(settings)
    keys = read_key_ring(settings)
    accounts = account_rules(settings)
    proxy_trust = ProxyTrust(settings.trusted_proxies, settings.public_url)
    tls = read_certificate(settings)
    is_proxy = proxy_trust.trusts if settings.proxy_protocol else None
    sockets = await _bind(settings.host, settings.port)
    redirecting: list[socket.socket] = []
    measured: list[socket.socket] = []
    counters, late, handshakes = Counters(), LoopLag(), Counter[tuple[str, str]]()
    requests = RequestCounters()
    try:
        if settings.redirect_port is not None:
            redirecting = await _bind(settings.host, settings.redirect_port)
        if settings.metrics_port is not None:
            measured = await _bind(settings.metrics_host, settings.metrics_port)
        async with (
            open_store(
                settings.resolved_database_url(),
                write_s=settings.limits.admission_s,
                states_kept_s=settings.limits.state_retention_s,
            ) as store,
            open_poller(counters) as poller,
        ):
            storage = StorageWatch(store, database_file(settings.resolved_database_url()))
            recorder = ActivityRecorder(store.notes)
            async with open_relay(
                limits=settings.limits,
                dialect=BREWOS,
                on_seen=recorder.note_seen,
                on_activity=recorder.note_activity,
                counters=counters,
            ) as relay:
                states = StateKeeper(relay, store)
                changes = ChangeApplier(relay=relay, store=store)
                store.watch_changes(changes.apply)
                metrics = Metrics(
                    relay,
                    MetricSources(
                        version=installed_version(),
                        handshakes=handshakes,
                        requests=requests,
                        registry=store.timings,
                        registry_failures=store.failures,
                        late=late.late,
                        degraded=lambda: {each: each in storage.problems for each in PROBLEMS},
                        disk_free_bytes=lambda: storage.free_bytes,
                        log_lines_dropped=dropped_lines,
                        certificate_expires_at_s=lambda: tls.certificate.expires_at_s if tls else None,
                    ),
                )
                request_limits = RequestLimits()
                lines = LineLimits(
                    "failed requests",
                    rate_per_s=LINES_PER_S,
                    burst=LINES_AT_ONCE,
                    each_at_once=LINES_AT_ONCE_OF_EACH,
                )
                relay.line_limits.append(lines)
                app = create_app(
                    relay=relay,
                    store=store,
                    keys=keys,
                    proxy_trust=proxy_trust,
                    accounts=accounts,
                    web_dist_path=settings.web_dist_path,
                    allowed_origins=settings.allowed_origins,
                    body_bytes=settings.limits.http_body_bytes,
                    hsts=not settings.tls_self_signed,
                    demo=demo,
                    problems=ReadinessCheck(relay=relay, store=store, tls=tls).problems,
                    degraded=lambda: list(storage.problems.values()),
                    metrics=MetricsPage(metrics.render, settings.metrics_token)
                    if settings.metrics_token
                    else None,
                    counters=requests,
                    request_limits=request_limits,
                    lines=lines,
                )
                async with (
                    open_http_side(
                        RequestMetrics(app, requests), limits=settings.limits, counters=requests
                    ) as http,
                    trio.open_nursery() as listening,
                ):
                    admission = Admission(
                        relay=relay,
                        store=store,
                        keys=keys,
                        proxy_trust=proxy_trust,
                        allowed_origins=settings.allowed_origins,
                        revision=lambda: changes.revision,
                    )
                    refusals = RefusalLog()
                    listener = Listener(
                        sockets,
                        relay=relay,
                        poller=poller,
                        admission=admission,
                        take_http=http.take,
                        port_policy=PortPolicy(tls_context=tls.current if tls else None, is_proxy=is_proxy),
                        handshakes=handshakes,
                        refused=requests.refused,
                        refusals=refusals,
                        request_limits=request_limits,
                    )
                    listening.start_soon(listener.run)
                    listening.start_soon(keep_running, "measuring the event loop", late.run)
                    listening.start_soon(keep_running, "noting who is online", partial(recorder.run, relay))
                    listening.start_soon(keep_running, "storing states", states.run)
                    listening.start_soon(keep_running, "giving memory back", give_memory_back)
                    listening.start_soon(keep_running, "watching the storage", storage.run)
                    if measured:
                        port = MetricsPort(
                            measured,
                            render=metrics.render,
                            token=settings.metrics_token,
                            limits=settings.limits,
                        )
                        listening.start_soon(port.run)
                    addresses = [s.getsockname()[:2] for s in sockets]
                    if tls is not None:
                        listening.start_soon(keep_running, "watching the certificate", tls.watch)
                        redirect = Redirect(
                            redirecting,
                            https_port=https_port(settings.public_url, addresses[0][1]),
                            is_own_host=partial(is_own_host, tls, settings.public_url),
                            limits=settings.limits,
                            port_policy=PortPolicy(is_proxy=is_proxy),
                            refusals=refusals,
                        )
                        listening.start_soon(redirect.run)
                    yield Server(addresses, relay, store, tls, [s.getsockname()[:2] for s in measured])
                    await relay.drain(hurry=hurry)
                    await states.save_all()
                    listening.cancel_scope.cancel()
    finally:
        for listening_socket in (*sockets, *redirecting, *measured):
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


def run_server(
    settings: Settings,
    *,
    announce: Callable[[str], None] | None = None,
    signals: ServerSignals | None = None,
    warnings: Iterable[str] = (),
) -> None:
    """Run a server until SIGTERM or SIGINT, then drain it; see `server.signals`.

    `warnings` are logged first: what is wrong with the settings, and stops nothing.
    `signals` are those of a caller that has caught them before. Raises what `open_server` raises if the
    server could not start.
    """
    configure_logging(
        level=settings.log_level,
        log_format=cast("LogFormat", settings.log_format),
        secrets=settings.secrets(),
    )
    log_uncaught()
    for warning in warnings:
        log.warning("%s", warning)
    prepare_process()
    output = LineWriter(sys.stdout)
    with ExitStack() as stack:
        stack.callback(flush_logs)
        stack.callback(output.flush)
        caught = signals or stack.enter_context(ServerSignals().caught())
        trio.run(_serve, settings, announce or output.put, caught, clock=RunningClock())


async def _serve(settings: Settings, announce: Callable[[str], None], signals: ServerSignals) -> None:
    signals.listen()
    with signals.start_scope():
        async with (
            open_notifier() as notifier,
            open_server(settings, hurry=signals.hurry) as server,
        ):
            signals.note_started()
            bound = ", ".join(
                f"[{host}]:{port}" if ":" in host else f"{host}:{port}" for host, port in server.addresses
            )
            announce(f"brewos-relay is ready on {bound} ({server.url})")
            notifier.ready(f"ready on {bound}")
            if server.tls is not None and settings.tls_self_signed:
                announce(f"certificate's SHA-256 fingerprint: {server.tls.certificate.fingerprint}")
            if (missing := await server.store.read(missing_administrator, settings)) is not None:
                announce(f"brewos-relay: {missing.text}; {missing.advice}")
            while await signals.wait_for_reload():
                notifier.reloading()
                if server.tls is not None:
                    server.tls.reload()
                notifier.ready(f"ready on {bound}")
            notifier.stopping("closing every peer", within_s=settings.limits.longest_drain_s)
            log.info("leaving after %s", signals.first.name)
            return
    log.info("leaving during start-up, after %s", signals.first.name)

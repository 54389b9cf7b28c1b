"""Assemble a server from its settings: registry, relay, HTTP side and listeners."""

from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Final

import trio
from quart_trio import QuartTrio

from brewos_relay.api.account_rules import AccountRules
from brewos_relay.api.app import create_app
from brewos_relay.api.metrics import MetricsPage, RequestMetrics
from brewos_relay.api.request_limits import RequestLimits
from brewos_relay.auth.proxy_trust import ProxyTrust
from brewos_relay.auth.tokens import KeyRing
from brewos_relay.core.counters import Counters
from brewos_relay.core.relay import Relay, open_relay
from brewos_relay.dialect import BREWOS
from brewos_relay.outbound import Outbound
from brewos_relay.registry.engine import database_file
from brewos_relay.registry.identity import fingerprint_of
from brewos_relay.registry.store import Store, open_store
from brewos_relay.server.admission import Admission, OtherInstances
from brewos_relay.server.certificates import CertificateFiles
from brewos_relay.server.change_applier import ChangeApplier
from brewos_relay.server.cluster import Bus, Joined
from brewos_relay.server.firmware_releases import FirmwareReleases
from brewos_relay.server.from_settings import (
    account_rules,
    https_port,
    is_own_host,
    published_ca,
    push_contact,
    read_certificate,
    warn_of_command_lists,
)
from brewos_relay.server.health_checks import PROBLEMS, ReadinessCheck, StorageWatch
from brewos_relay.server.history_keeper import HistoryKeeper
from brewos_relay.server.http import HttpSide, open_http_side
from brewos_relay.server.incoming import PortPolicy, RefusalLog, refusal_line_limits
from brewos_relay.server.key_ring import read_key_ring
from brewos_relay.server.listener import Listener
from brewos_relay.server.metrics_port import MetricsPort
from brewos_relay.server.persistence import ActivityRecorder, StateKeeper
from brewos_relay.server.process import give_memory_back
from brewos_relay.server.push_sender import PushSender
from brewos_relay.server.push_watcher import PushWatcher
from brewos_relay.server.redirect import Redirect
from brewos_relay.server.sockets import ListeningSockets, open_sockets
from brewos_relay.server.supervision import keep_running
from brewos_relay.server.usage_keeper import UsageKeeper
from brewos_relay.settings import Settings
from brewos_relay.telemetry.logs import dropped_lines
from brewos_relay.telemetry.measurements import LoopLag, RequestCounters
from brewos_relay.telemetry.metrics import Metrics, MetricSources
from brewos_relay.version import installed_version
from brewos_relay.wire.poller import Poller
from brewos_relay.wire.polling import open_poller

if TYPE_CHECKING:
    from brewos_relay.server.handover import Handover
    from brewos_relay.server.worker import Worker


_GATHER_S: Final = 0.006
"""How long connections gather that come closely, if several workers share a port. Each worker has only a part
of them at a time, and a few that are served together cost less. For a single process, it changes nothing."""


@dataclass(frozen=True, slots=True)
class Server:
    """A running server: its addresses and its parts."""

    addresses: list[tuple[str, int]]
    relay: Relay
    store: Store
    tls: CertificateFiles | None = None
    metrics_addresses: list[tuple[str, int]] = field(default_factory=list)
    stop_accepting: Callable[[], None] = lambda: None
    """Leaves new connections to the other processes that share the sockets."""

    @property
    def url(self) -> str:
        """The base URL of the server, for clients on this machine."""
        host, port = self.addresses[0]
        host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)  # noqa: S104 - replaces the "any" address
        scheme = "http" if self.tls is None else "https"
        return f"{scheme}://[{host}]:{port}" if ":" in host else f"{scheme}://{host}:{port}"


@dataclass(frozen=True, slots=True, kw_only=True)
class _Parts:
    """The parts of a server that its ports need."""

    settings: Settings
    demo: bool
    sockets: ListeningSockets
    keys: KeyRing
    accounts: AccountRules
    proxy_trust: ProxyTrust
    tls: CertificateFiles | None
    store: Store
    storage: StorageWatch
    poller: Poller
    relay: Relay
    changes: ChangeApplier
    worker: "Worker | None"
    instance: str
    joined: Joined
    firmware: FirmwareReleases
    push: PushSender | None
    late: LoopLag = field(default_factory=LoopLag)
    requests: RequestCounters = field(default_factory=RequestCounters)
    handshakes: Counter[tuple[str, str]] = field(default_factory=Counter)
    request_limits: RequestLimits
    refusals: RefusalLog = field(default_factory=RefusalLog)

    @property
    def handover(self) -> "Handover | None":
        """Passes connections to other workers of this machine."""
        return self.worker.handover if self.worker is not None else None

    @property
    def is_proxy(self) -> Callable[[str], bool] | None:
        """Decides from an address whether connections begin with a PROXY header."""
        return self.proxy_trust.trusts if self.settings.proxy_protocol else None


@asynccontextmanager
async def open_server(
    settings: Settings,
    *,
    hurry: trio.Event | None = None,
    demo: bool = False,
    worker: "Worker | None" = None,
) -> AsyncIterator[Server]:
    """Open a server. Leaving the block drains it: new peers are refused, and the attached ones are closed.

    Setting `hurry` shortens the drain, see `Relay.drain`. `demo` tells the pages that this is a demo.
    `worker` has the sockets, if this process is one of several that serve them.

    Raises OSError if an address cannot be bound, SettingsError or RegistryError if a setting is invalid.

    **Owns:** the nurseries of the HTTP side and of the listeners, and the relay's.
    """
    warn_of_command_lists(settings)
    keys = read_key_ring(settings)
    accounts = account_rules(settings)
    tls = read_certificate(settings)
    counters, database_url = Counters(), settings.resolved_database_url()
    bus = Bus(settings, parent_pid=worker.parent_pid if worker is not None else None)
    async with (
        open_sockets(settings) if worker is None else worker.open_sockets() as sockets,
        open_store(
            database_url,
            connections=settings.database_pool,
            write_s=settings.limits.admission_s,
            states_kept_s=settings.limits.state_retention_s,
        ) as store,
        open_poller(counters) as poller,
    ):
        registry = await store.read(fingerprint_of)
        recorder = ActivityRecorder(store.write_behind)
        async with (
            open_relay(
                limits=settings.limits,
                dialect=BREWOS,
                remote=bus.remote if worker is None else worker.beside(bus.remote),
                on_seen=recorder.record_seen,
                on_activity=recorder.record_activity,
                wants_commands=recorder.wants_commands,
                counters=counters,
            ) as relay,
            bus.join(relay, registry, store.read_changes) as joined,
        ):
            states = StateKeeper(relay, store)
            history = HistoryKeeper(relay, store, shots_per_device=settings.limits.shots_per_device)
            usage = UsageKeeper(relay, store)
            changes = ChangeApplier(relay=relay, store=store)
            store.watch_changes(changes.apply, announce=joined.announce_changes)
            outbound = Outbound()
            parts = _Parts(
                settings=settings,
                demo=demo,
                sockets=sockets,
                keys=keys,
                accounts=accounts,
                proxy_trust=ProxyTrust(settings.trusted_proxies, settings.public_url),
                tls=tls,
                store=store,
                storage=StorageWatch(store, database_file(database_url)),
                poller=poller,
                relay=relay,
                changes=changes,
                worker=worker,
                instance=bus.instance,
                joined=joined,
                request_limits=RequestLimits(joined.budgets),
                firmware=FirmwareReleases(settings.firmware_releases, outbound),
                push=PushSender(store, outbound, contact=push_contact(settings)) if settings.push else None,
            )
            async with _open_ports(parts) as (listening, listener):
                listening.start_soon(
                    keep_running, "recording which devices are online", partial(recorder.run, relay)
                )
                listening.start_soon(keep_running, "storing states", states.run)
                listening.start_soon(keep_running, "storing shots", history.run)
                listening.start_soon(keep_running, "storing usage", usage.run)
                yield Server(
                    [s.getsockname()[:2] for s in sockets.main],
                    relay,
                    store,
                    tls,
                    [s.getsockname()[:2] for s in sockets.metrics],
                    listener.stop_accepting,
                )
                window_s = worker.drain_window_s if worker is not None else None
                await usage.look()
                await relay.drain(hurry=hurry, window_s=window_s)
                await states.save_all()
                await history.keep_all()
                await usage.keep_all()
                listening.cancel_scope.cancel()


@asynccontextmanager
async def _open_ports(parts: _Parts) -> AsyncIterator[tuple[trio.Nursery, Listener]]:
    """Open the HTTP side and the listeners, and give the listening nursery and the listener of the main port.

    **Owns:** that nursery, and those of the HTTP side.
    """
    settings, sockets, tls = parts.settings, parts.sockets, parts.tls
    metrics = _metrics_of(parts)
    render = _renderer_of(metrics, parts.worker)
    app = RequestMetrics(_app_of(parts, render), parts.requests)
    async with (
        open_http_side(app, limits=settings.limits, counters=parts.requests) as http,
        trio.open_nursery() as listening,
    ):
        listener = _listener_of(parts, http)
        listening.start_soon(listener.run)
        listening.start_soon(keep_running, "measuring the event loop", parts.late.run)
        listening.start_soon(keep_running, "returning memory to the system", give_memory_back)
        listening.start_soon(keep_running, "watching the storage", parts.storage.run)
        listening.start_soon(keep_running, "reading the firmware releases", parts.firmware.run)
        if parts.push is not None:
            watcher = PushWatcher(
                parts.relay,
                parts.joined.view,
                parts.store,
                parts.push,
                offline_s=settings.push_offline_s,
            )
            listening.start_soon(keep_running, "sending notifications", parts.push.run)
            listening.start_soon(keep_running, "watching machines for notifications", watcher.run)
        if parts.handover is not None:
            handover = parts.handover
            listening.start_soon(handover.run, listener.take_passed)
        if sockets.metrics:
            token = settings.metrics_token
            metrics_port = MetricsPort(sockets.metrics, render=render, token=token, limits=settings.limits)
            listening.start_soon(metrics_port.run)
        if tls is not None:
            listening.start_soon(keep_running, "watching the certificate", tls.watch)
            redirect = Redirect(
                sockets.redirect,
                https_port=https_port(settings.public_url, sockets.main[0].getsockname()[1]),
                is_own_host=partial(is_own_host, tls, settings.public_url),
                local_ca=partial(published_ca, settings),
                limits=settings.limits,
                port_policy=PortPolicy(is_proxy=parts.is_proxy),
                refusals=parts.refusals,
            )
            listening.start_soon(redirect.run)
        yield listening, listener


def _metrics_of(parts: _Parts) -> Metrics:
    store, storage, tls = parts.store, parts.storage, parts.tls
    sources = MetricSources(
        version=installed_version(),
        handshakes=parts.handshakes,
        requests=parts.requests,
        registry=store.timings,
        registry_failures=store.failures,
        registry_busy=store.connections_busy,
        registry_waiting=store.waiting_for_connection,
        late=parts.late.late,
        degraded=lambda: {each: each in storage.problems for each in PROBLEMS},
        disk_free_bytes=lambda: storage.free_bytes,
        log_lines_dropped=dropped_lines,
        handovers=parts.handover.outcomes if parts.handover is not None else dict,
        notifications=lambda: parts.push.outcomes if parts.push is not None else {},
        bus=parts.joined.bus_figures,
        instance=parts.instance if parts.joined.member is not None else None,
        certificate_expires_at_s=lambda: tls.certificate.expires_at_s if tls else None,
    )
    return Metrics(parts.relay, sources)


def _renderer_of(metrics: Metrics, worker: "Worker | None") -> Callable[[], Awaitable[bytes]]:
    """Return what renders the metrics of the whole machine."""

    async def render() -> bytes:
        return metrics.render()

    if worker is None:
        return render
    worker.share_metrics(metrics.render)
    return worker.metrics_of_all


def _app_of(parts: _Parts, render: Callable[[], Awaitable[bytes]]) -> QuartTrio:
    settings, relay, store, storage = parts.settings, parts.relay, parts.store, parts.storage
    token = settings.metrics_token
    lines = refusal_line_limits("failed requests")
    relay.line_limits.append(lines)
    return create_app(
        relay=parts.joined.view,
        store=store,
        keys=parts.keys,
        proxy_trust=parts.proxy_trust,
        accounts=parts.accounts,
        web_dist_path=settings.web_dist_path,
        allowed_origins=settings.allowed_origins,
        body_bytes=settings.limits.http_body_bytes,
        hsts=not settings.tls_self_signed,
        demo=parts.demo,
        problems=ReadinessCheck(relay=relay, store=store, tls=parts.tls).problems,
        survey=parts.joined.survey,
        find_releases=parts.firmware.releases,
        notifier=parts.push,
        degraded=lambda: [*storage.problems.values(), *parts.joined.problems()],
        metrics=MetricsPage(render, token) if token else None,
        local_ca=partial(published_ca, settings),
        counters=parts.requests,
        request_limits=parts.request_limits,
        lines=lines,
    )


def _others_of(parts: _Parts) -> OtherInstances | None:
    """Return the other instances, as admission needs them."""
    cluster, worker = parts.joined.cluster, parts.worker
    if cluster is None or worker is None or worker.handover is None or not worker.has_private_bus:
        return cluster
    from brewos_relay.server.handover import OtherWorkers

    return OtherWorkers(cluster, worker.handover)


def _listener_of(parts: _Parts, http: HttpSide) -> Listener:
    tls, changes = parts.tls, parts.changes
    admission = Admission(
        relay=parts.relay,
        store=parts.store,
        keys=parts.keys,
        proxy_trust=parts.proxy_trust,
        allowed_origins=parts.settings.allowed_origins,
        revision=lambda: changes.revision,
        others=_others_of(parts),
    )
    return Listener(
        parts.sockets.main,
        relay=parts.relay,
        poller=parts.poller,
        admission=admission,
        limits=parts.settings.limits,
        take_http=http.take,
        port_policy=PortPolicy(tls_context=tls.current if tls else None, is_proxy=parts.is_proxy),
        handshakes=parts.handshakes,
        refused=parts.requests.refused,
        refusals=parts.refusals,
        request_limits=parts.request_limits,
        pass_on=parts.handover.pass_on if parts.handover is not None else None,
        on_attached=parts.store.write_behind.record_attached,
        gather_s=_GATHER_S if parts.worker is not None else 0.0,
    )

"""Run one server process, from the log's configuration to the drain."""

import logging
import sys
from collections.abc import Callable, Iterable
from contextlib import ExitStack
from typing import TYPE_CHECKING

import structlog

from brewos_relay.server.assembly import open_server
from brewos_relay.server.from_settings import missing_administrator, plain_http_warning, published_ca
from brewos_relay.server.process import SystemdNotifier, logging_of, open_notifier, prepare_process
from brewos_relay.server.signals import ServerSignals
from brewos_relay.server.sockets import describe_addresses
from brewos_relay.settings import Settings
from brewos_relay.telemetry.line_writer import LineWriter
from brewos_relay.wire.hosting import run_hosted

if TYPE_CHECKING:
    from brewos_relay.server.worker import Worker

log = logging.getLogger(__name__)


def run_server(
    settings: Settings,
    *,
    announce: Callable[[str], None] | None = None,
    signals: ServerSignals | None = None,
    warnings: Iterable[str] = (),
    worker: "Worker | None" = None,
) -> None:
    """Run a server until SIGTERM or SIGINT, then drain it; see `server.signals`.

    `warnings` about the settings are logged first. `signals` is given by a caller that already catches
    signals. `worker` makes this process one of several. Raises the exceptions of `open_server` if the server
    could not start.
    """
    with ExitStack() as stack:
        if worker is not None:
            stack.enter_context(structlog.contextvars.bound_contextvars(worker=worker.number))
        stack.enter_context(logging_of(settings))
        for warning in warnings:
            log.warning("%s", warning)
        prepare_process()
        output = LineWriter(sys.stdout)
        stack.callback(output.flush)
        caught = signals or stack.enter_context(ServerSignals().caught())
        run_hosted(_run, settings, announce or output.put, caught, worker)


async def _run(
    settings: Settings, announce: Callable[[str], None], signals: ServerSignals, worker: "Worker | None"
) -> None:
    signals.listen()
    if worker is None:
        await _serve(settings, announce, signals, None)
        return
    async with worker.connected(signals):
        await _serve(settings, announce, signals, worker)


async def _serve(
    settings: Settings, announce: Callable[[str], None], signals: ServerSignals, worker: "Worker | None"
) -> None:
    lines: list[str] = []
    tell = announce if worker is None else lines.append
    # The parent of the workers notifies systemd.
    quiet = SystemdNotifier() if worker is not None else None
    with signals.start_scope():
        async with (
            open_notifier(quiet) as notifier,
            open_server(settings, hurry=signals.hurry, worker=worker) as server,
        ):
            signals.mark_started()
            is_first = worker is None or worker.number == 1
            if is_first and (warning := plain_http_warning(settings)) is not None:
                log.warning("%s", warning)
            bound = describe_addresses(server.addresses)
            tell(f"brewos-relay is ready on {bound} ({server.url})")
            notifier.ready(f"ready on {bound}")
            if server.tls is not None and settings.tls_self_signed:
                tell(f"certificate's SHA-256 fingerprint: {server.tls.certificate.fingerprint}")
                if (ca := published_ca(settings)) is not None:
                    where = settings.public_url or server.url
                    tell(f"local CA's SHA-256 fingerprint: {ca.fingerprint}; install it from {where}/ca")
            if (missing := await server.store.read(missing_administrator, settings)) is not None:
                tell(f"brewos-relay: {missing.text}; {missing.advice}")
            if worker is not None:
                worker.report_ready(server.relay, lines)
            while await signals.wait_for_reload():
                notifier.reloading()
                if server.tls is not None:
                    server.tls.reload()
                notifier.ready(f"ready on {bound}")
            notifier.stopping("closing every peer", within_s=settings.limits.longest_drain_s)
            if worker is not None:
                worker.refuse_passed()
                if worker.leaves_alone:
                    server.stop_accepting()
            log.info("shutting down after %s", signals.first.name)
            return
    log.info("shutting down during start-up, after %s", signals.first.name)

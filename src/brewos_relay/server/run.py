"""Run one server process, from the log's configuration to the drain."""

import logging
import sys
from collections.abc import Callable, Iterable
from contextlib import ExitStack
from typing import cast

import trio

from brewos_relay.core.pauses import RunningClock
from brewos_relay.server.assembly import open_server
from brewos_relay.server.from_settings import missing_administrator
from brewos_relay.server.process import open_notifier, prepare_process
from brewos_relay.server.signals import ServerSignals
from brewos_relay.settings import Settings
from brewos_relay.telemetry.line_writer import LineWriter
from brewos_relay.telemetry.logs import LogFormat, configure_logging, flush_logs, log_uncaught

log = logging.getLogger(__name__)


def run_server(
    settings: Settings,
    *,
    announce: Callable[[str], None] | None = None,
    signals: ServerSignals | None = None,
    warnings: Iterable[str] = (),
) -> None:
    """Run a server until SIGTERM or SIGINT, then drain it; see `server.signals`.

    `warnings` about the settings are logged first. `signals` is given by a caller that already catches
    signals. Raises the exceptions of `open_server` if the server could not start.
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
            signals.mark_started()
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
            log.info("shutting down after %s", signals.first.name)
            return
    log.info("shutting down during start-up, after %s", signals.first.name)

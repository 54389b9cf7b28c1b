"""The parent of several workers: it binds the ports, starts, watches and replaces the workers, and ends them.

All workers accept from the same listening sockets, which the parent binds.
"""

import logging
import os
import socket
import sys
from collections.abc import AsyncIterator, Callable, Iterable, Mapping
from contextlib import ExitStack, asynccontextmanager
from typing import Final

import trio

from brewos_relay.core.pauses import RunningClock
from brewos_relay.errors import RelayError
from brewos_relay.server.metrics_port import MetricsPort
from brewos_relay.server.private_redis import open_private_redis
from brewos_relay.server.process import SystemdNotifier, logging_of, open_notifier
from brewos_relay.server.signals import ServerSignals
from brewos_relay.server.sockets import ListeningSockets, describe_addresses, open_sockets
from brewos_relay.server.supervision import contained
from brewos_relay.server.worker_messages import AllMetrics, Drain, Hurry, Leave, Reload, Sibling
from brewos_relay.server.worker_process import WorkerProcess
from brewos_relay.server.worker_template import WorkerTemplate
from brewos_relay.settings import Settings, variable_names
from brewos_relay.telemetry.line_writer import LineWriter
from brewos_relay.telemetry.merged_metrics import MergedMetrics

log = logging.getLogger(__name__)

_FIRST_PAUSE_S: Final = 1.0
_LONGEST_PAUSE_S: Final = 30.0
_SOUND_S: Final = 60.0
"""A worker that ran for this long is replaced without a longer pause."""
_COUNT_S: Final = 1.0
"""How long the workers may take to refuse new peers and count theirs."""
_METRICS_S: Final = 1.0
"""How long a worker may take to report its metrics."""
_KILL_AFTER_S: Final = 5.0
"""How much longer than a drain may take a worker gets, before it is killed."""
_NAME_CHARS: Final = 40
_OF_PARENT: Final = frozenset({"NOTIFY_SOCKET", "WATCHDOG_USEC", "WATCHDOG_PID"})


def run_workers(
    settings: Settings,
    *,
    signals: ServerSignals,
    options: Mapping[str, str] | None = None,
    warnings: Iterable[str] = (),
) -> str | None:
    """Run `settings.workers` workers until SIGTERM or SIGINT, then drain one after another.

    `options` are variables for the workers, from the options of the command line. `warnings` about the
    settings are logged first. Return None, or why all workers have ended. Raises OSError or RelayError if
    they could not start.
    """
    with ExitStack() as stack:
        stack.enter_context(logging_of(settings))
        for warning in warnings:
            log.warning("%s", warning)
        output = LineWriter(sys.stdout)
        stack.callback(output.flush)
        environ = {name: text for name, text in os.environ.items() if name not in _OF_PARENT}
        return trio.run(
            _run, settings, signals, {**environ, **(options or {})}, output.put, clock=RunningClock()
        )


async def _run(
    settings: Settings, signals: ServerSignals, environ: dict[str, str], announce: Callable[[str], None]
) -> str | None:
    signals.listen()
    async with open_notifier() as notifier, open_sockets(settings) as sockets, _open_bus(settings) as bus:
        environ[variable_names("bus")[0]] = bus
        workers = Workers(settings, sockets, environ, signals=signals, notifier=notifier, announce=announce)
        signals.before_end = workers.kill
        try:
            await workers.run()
        finally:
            await workers.close()
    if workers.failure is not None and not workers.has_started:
        raise RelayError(workers.failure)
    return workers.failure


@asynccontextmanager
async def _open_bus(settings: Settings) -> AsyncIterator[str]:
    """Give the URL of the bus: that of the settings, or of a private Redis."""
    if settings.bus:
        yield settings.bus
        return
    async with open_private_redis() as url:
        yield url


class Workers:
    """The workers of one machine, by number.

    **Owns:** the processes and their template; a task for each worker that keeps it running, and those of
    the metrics.
    **Ends when:** all workers have drained, or none can be started.
    """

    def __init__(
        self,
        settings: Settings,
        sockets: ListeningSockets,
        environ: Mapping[str, str],
        *,
        signals: ServerSignals,
        notifier: SystemdNotifier,
        announce: Callable[[str], None],
    ) -> None:
        self.failure: str | None = None
        """Why no worker runs."""
        self.has_started = False
        self._settings = settings
        self._sockets = sockets
        self._template = WorkerTemplate(environ)
        self._signals = signals
        self._notifier = notifier
        self._announce = announce
        self._running: dict[int, WorkerProcess] = {}
        self._tried: dict[int, trio.Event] = {n: trio.Event() for n in range(1, settings.workers + 1)}
        self._name = settings.instance or socket.gethostname()
        self._metrics = MergedMetrics(settings.workers, instance=self._name if settings.bus else None)
        self._leaving = False

    async def run(self) -> None:
        """Keep all workers running until a signal, and then drain them.

        **Owns:** the nursery of all tasks.
        """
        signals, settings, sockets = self._signals, self._settings, self._sockets
        addresses = describe_addresses([each.getsockname()[:2] for each in sockets.main])
        async with trio.open_nursery() as self._nursery:
            with signals.start_scope() as starting:
                await self._start_all()
                signals.mark_started()
            if starting.cancelled_caught:
                log.info("shutting down during start-up, after %s", signals.first.name)
                self._leaving = True
                self._nursery.cancel_scope.cancel()
                return
            self.has_started = True
            if sockets.metrics:
                metrics_port = MetricsPort(
                    sockets.metrics,
                    render=self.metrics_of_all,
                    token=settings.metrics_token,
                    limits=settings.limits,
                )
                self._nursery.start_soon(metrics_port.run)
            status = f"{settings.workers} workers are ready on {addresses}"
            self._notifier.ready(status)
            while await signals.wait_for_reload():
                self._notifier.reloading()
                self._tell_all(Reload())
                self._notifier.ready(status)
            await self._drain()
            self._nursery.cancel_scope.cancel()

    def kill(self) -> None:
        """End all workers at once. Callable from a signal handler."""
        for worker in list(self._running.values()):
            worker.kill()

    async def close(self) -> None:
        """End the template of the workers."""
        await self._template.close()

    # Starting and replacing

    async def _start_all(self) -> None:
        """Start the workers: the first one alone, since it may migrate the registry, and then the others."""
        for number, tried in self._tried.items():
            self._nursery.start_soon(self._keep, number)
            if number == 1:
                await tried.wait()
        for tried in self._tried.values():
            await tried.wait()
        first = min(self._ready(), key=lambda worker: worker.number, default=None)
        for line in first.lines if first is not None else ():
            self._announce(line)

    async def _keep(self, number: int) -> None:
        """Keep a worker running: start it, and start it again whenever it ends."""
        pause_s = _FIRST_PAUSE_S
        while True:
            began_at = trio.current_time()
            cause, was_ready = await self._run_once(number)
            if self._leaving:
                return
            if not was_ready and not self._ready():
                self.failure = f"worker {number} {cause} before it was ready, and no other worker runs"
                self._nursery.cancel_scope.cancel()
                return
            self._tried[number].set()
            if trio.current_time() - began_at >= _SOUND_S:
                pause_s = _FIRST_PAUSE_S
            log.error("worker %d %s; starting it again in %g s", number, cause, pause_s)
            await trio.sleep(pause_s)
            pause_s = min(2 * pause_s, _LONGEST_PAUSE_S)

    async def _run_once(self, number: int) -> tuple[str, bool]:
        """Run a worker until it ends. Return how it ended, and whether it was ready before.

        **Owns:** a nursery with a task that waits until the worker is ready.
        """
        try:
            worker = await WorkerProcess.spawn(
                number,
                len(self._tried),
                self._sockets,
                self._template,
                {variable_names("instance")[0]: f"{self._name[:_NAME_CHARS]}-{number}"},
                private_bus=not self._settings.bus,
            )
        except OSError as error:
            return f"could not be started ({error.strerror or error})", False
        self._running[number] = worker
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._note_ready, worker)
                await worker.run(self._answer_metrics)
                nursery.cancel_scope.cancel()
        finally:
            del self._running[number]
            self._metrics.keep_counters(worker.metrics)
        return worker.cause, worker.ready.is_set()

    async def _note_ready(self, worker: WorkerProcess) -> None:
        await worker.ready.wait()
        if self.has_started:
            log.info("worker %d is ready", worker.number)
        self._metrics.count_start(worker.number)
        if not self._settings.speaks_tls:
            self._link(worker)
        self._tried[worker.number].set()

    def _link(self, worker: WorkerProcess) -> None:
        """Connect a worker with every other one, so that they can pass connections to each other."""
        for other in self._ready():
            if other is not worker:
                one, two = socket.socketpair()
                worker.channel.send(Sibling(other.number), [one])
                other.channel.send(Sibling(worker.number), [two])

    def _ready(self) -> list[WorkerProcess]:
        return [worker for worker in self._running.values() if worker.ready.is_set()]

    def _tell_all(self, message: Reload | Leave | Hurry) -> None:
        for worker in self._ready():
            worker.channel.send(message)

    # Draining

    async def _drain(self) -> None:
        """Let all workers refuse new peers, and drain them one after another.

        Each gets the part of the drain that its share of the peers takes, so that all peers are closed
        evenly. A worker that was drained waits for its last devices while the next one closes its peers. So
        the whole takes no longer than the drain of a single process.

        **Owns:** a nursery with a task that waits for a second signal.
        """
        limits = self._settings.limits
        longest_s = limits.longest_drain_s + _COUNT_S + _KILL_AFTER_S
        self._notifier.stopping("closing every peer", within_s=longest_s)
        log.info("shutting down after %s", self._signals.first.name)
        self._leaving = True
        self._sockets.close_serving()
        with trio.move_on_after(longest_s):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._hurry_when_asked)
                for worker in set(self._running.values()).difference(self._ready()):
                    worker.terminate()
                await self._drain_each()
                for worker in list(self._running.values()):
                    await worker.ended.wait()
                nursery.cancel_scope.cancel()
        for worker in list(self._running.values()):
            log.error("killing worker %d: it had not ended after %g s", worker.number, longest_s)
            worker.kill()
            await worker.ended.wait()

    async def _drain_each(self) -> None:
        self._tell_all(Leave())
        workers = sorted(self._ready(), key=lambda worker: worker.number)
        with trio.move_on_after(_COUNT_S):
            for worker in workers:
                await _first_of(worker.is_leaving, worker.ended)
        peers = sum(worker.peers for worker in workers)
        for worker in workers:
            window_s = self._settings.limits.drain_s * worker.peers / peers if peers else 0.0
            worker.channel.send(Drain(window_s))
            with trio.move_on_after(window_s):
                await _first_of(self._signals.hurry, worker.ended)

    async def _hurry_when_asked(self) -> None:
        await self._signals.hurry.wait()
        self._tell_all(Hurry())

    # Metrics

    def _answer_metrics(self, worker: WorkerProcess, request: int) -> None:
        """Answer a worker that was asked for the metrics."""

        async def answer() -> None:
            with contained("collecting the metrics of all workers"):
                worker.channel.send(AllMetrics(request, await self.metrics_of_all()))

        self._nursery.start_soon(answer)

    async def metrics_of_all(self) -> bytes:
        """Collect the metrics of all workers. Of one that does not answer in time, the last ones count.

        **Owns:** a nursery with a task for each worker.
        """
        ready = self._ready()
        with trio.move_on_after(_METRICS_S):
            async with trio.open_nursery() as nursery:
                for worker in ready:
                    nursery.start_soon(worker.report_metrics)
        return self._metrics.render({worker.number: worker.metrics for worker in ready})


async def _first_of(*events: trio.Event) -> None:
    """Wait for one of several events. **Owns:** a nursery with a task for each."""
    async with trio.open_nursery() as nursery:
        for event in events:
            nursery.start_soon(_end_with, event, nursery.cancel_scope)


async def _end_with(event: trio.Event, scope: trio.CancelScope) -> None:
    await event.wait()
    scope.cancel()

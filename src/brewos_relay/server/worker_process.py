"""WorkerProcess: one worker of `serve --workers`, as its parent sees it."""

import logging
import os
import signal
import socket
from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import Final

import trio

from brewos_relay.server.fd_channel import FdChannel
from brewos_relay.server.sockets import ListeningSockets
from brewos_relay.server.worker_messages import (
    Alive,
    FromWorker,
    Leaving,
    Metrics,
    Ready,
    ReportMetrics,
    Start,
    WantMetrics,
)
from brewos_relay.server.worker_template import ForkedProcess, WorkerTemplate

log = logging.getLogger(__name__)

_START_S: Final = 60.0
"""How long a worker may take until it sends something. A migration of the registry may take longer."""
_SILENCE_S: Final = 30.0
"""A worker that sends nothing for this long hangs. It sends something every 5 s."""
_END_S: Final = 60.0
"""How long a worker may take to end after its last message, or when its parent ends without a drain."""
_LAST_MESSAGES_S: Final = 1.0
"""How long the last messages of a worker are read after its end."""


class WorkerProcess:
    """A worker: starting, ready, and gone.

    **Owns:** the process, and the parent's end of the channel to it.
    **Ends when:** the process ends. A process that hangs is killed.
    """

    def __init__(
        self, number: int, process: trio.Process | ForkedProcess, channel: FdChannel[FromWorker]
    ) -> None:
        self.number = number
        self.process = process
        self.channel = channel
        self.ready = trio.Event()
        self.ended = trio.Event()
        self.is_leaving = trio.Event()
        """Set once it refuses new peers."""
        self.lines: list[str] = []
        """Its lines for stdout."""
        self.peers = 0
        """How many peers it had when it began to leave."""
        self.metrics = b""
        """Its latest metrics."""
        self._reported = trio.Event()
        self._heard_all = trio.Event()

    @classmethod
    async def spawn(
        cls,
        number: int,
        count: int,
        sockets: ListeningSockets,
        template: WorkerTemplate,
        variables: Mapping[str, str],
        *,
        private_bus: bool = False,
    ) -> "WorkerProcess":
        """Start a worker and give it its number and the listening sockets. Raises OSError."""
        ours, theirs = socket.socketpair()
        try:
            process = await template.start_worker(variables, theirs)
        except BaseException:
            ours.close()
            raise
        channel = FdChannel[FromWorker](ours, FromWorker)
        first = Start(number, count, len(sockets.main), len(sockets.redirect), os.getpid(), private_bus)
        channel.send(first, [each.dup() for each in (*sockets.main, *sockets.redirect)])
        return cls(number, process, channel)

    async def run(self, answer_metrics: Callable[["WorkerProcess", int], None]) -> None:
        """Read its messages until the process has ended. `answer_metrics` takes its requests for metrics.

        **Owns:** a nursery with the tasks that read from the channel and write to it.
        """
        channel = self.channel
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(channel.run)
                nursery.start_soon(self._watch, answer_metrics)
                await self.process.wait()
                with trio.move_on_after(_LAST_MESSAGES_S):
                    await self._heard_all.wait()
                nursery.cancel_scope.cancel()
        finally:
            await self._stop()

    async def _watch(self, answer_metrics: Callable[["WorkerProcess", int], None]) -> None:
        """Read what the worker sends. Kill it if that stops, or if it does not end after its last message."""
        silent_s = _START_S
        with trio.CancelScope(deadline=trio.current_time() + _START_S) as silence:
            with suppress(trio.EndOfChannel):
                while True:
                    message, _ = await self.channel.receive()
                    self._take(message, answer_metrics)
                    silent_s = _SILENCE_S
                    silence.deadline = trio.current_time() + _SILENCE_S
            self._heard_all.set()
            silence.deadline = trio.current_time() + _END_S
            await trio.sleep_forever()
        if self._heard_all.is_set():
            log.error("killing worker %d: it had not ended after %g s", self.number, _END_S)
        else:
            log.error("killing worker %d: it was silent for %g s", self.number, silent_s)
        self.kill()

    def _take(self, message: FromWorker, answer_metrics: Callable[["WorkerProcess", int], None]) -> None:
        match message:
            case Ready():
                self.lines = message.lines
                self.ready.set()
            case Leaving():
                self.peers = message.peers
                self.is_leaving.set()
            case Metrics():
                self.metrics = message.text
                self._reported.set()
                self._reported = trio.Event()
            case WantMetrics():
                answer_metrics(self, message.request)
            case Alive():
                pass

    async def report_metrics(self) -> None:
        """Ask the worker for its metrics, and wait until they are there."""
        self.channel.send(ReportMetrics())
        await self._reported.wait()

    @property
    def cause(self) -> str:
        """How the process ended, as the end of a sentence about it."""
        code = self.process.returncode
        if code is None:
            return "is running"
        if code < 0:
            with suppress(ValueError):
                return f"was ended by {signal.Signals(-code).name}"
        return f"ended with exit code {code}"

    def terminate(self) -> None:
        """End a process that is not ready yet, once it has finished its current work on the registry."""
        self._signal(signal.SIGTERM)

    def kill(self) -> None:
        """End the process at once."""
        self._signal(signal.SIGKILL)

    def _signal(self, number: signal.Signals) -> None:
        if self.process.returncode is None:
            self.process.send_signal(number)

    async def _stop(self) -> None:
        """End the process, if it runs, and close the channel."""
        self.terminate()
        with trio.move_on_after(_END_S, shield=True):
            await self.process.wait()
        self.kill()
        with trio.move_on_after(_END_S, shield=True):
            await self.process.wait()
        self.channel.close()
        self.ended.set()

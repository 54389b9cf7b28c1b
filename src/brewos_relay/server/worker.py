"""Worker: this process as one of several that serve the same ports, started by `server.workers`."""

import logging
import os
import socket
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from itertools import count
from typing import Final

import trio

from brewos_relay.core.relay import Relay
from brewos_relay.core.remote import RemotePresence
from brewos_relay.errors import RelayError
from brewos_relay.server.fd_channel import FdChannel
from brewos_relay.server.handover import BothPresences, Handover
from brewos_relay.server.signals import ServerSignals
from brewos_relay.server.sockets import ListeningSockets
from brewos_relay.server.worker_messages import (
    Alive,
    AllMetrics,
    Drain,
    FromParent,
    Hurry,
    Leave,
    Leaving,
    Metrics,
    Ready,
    Reload,
    ReportMetrics,
    Sibling,
    Start,
    WantMetrics,
)
from brewos_relay.settings import Settings

log = logging.getLogger(__name__)

ALIVE_EVERY_S: Final = 5.0
"""How often a worker tells its parent that its event loop runs."""
_METRICS_S: Final = 2.0
"""How long the parent may take to collect the metrics of all workers."""


class Worker:
    """The worker's side of its parent: it obeys the parent, and drains if the parent has gone.

    **Owns:** its end of the channel to the parent, and its copies of the listening sockets.
    """

    def __init__(
        self, channel: FdChannel[FromParent], start: Start, files: list[int], *, settings: Settings
    ) -> None:
        sockets = [socket.socket(fileno=number) for number in files]
        for each in sockets:
            each.setblocking(False)
        self.number = start.number
        self.count = start.workers
        self.parent_pid = start.parent
        self.has_private_bus = start.private_bus
        """Whether the workers of this machine are the only instances."""
        self.drain_window_s: float | None = None
        """In how much of `drain_s` this worker closes its peers; None for all of it."""
        self.handover: Handover | None = None
        """Passes connections to other workers. The state of a TLS connection cannot be passed."""
        self._settings = settings
        self._channel = channel
        self._sockets = ListeningSockets(main=sockets[: start.main], redirect=sockets[start.main :])
        self._own_metrics: Callable[[], bytes] = bytes
        self._relay: Relay | None = None
        self._requests = count()
        self._pages: dict[int, tuple[trio.Event, list[bytes]]] = {}
        self._is_obeying = False

    @classmethod
    def from_descriptor(cls, descriptor: int, settings: Settings) -> "Worker":
        """Take the parent's first message from an inherited socket. Raises RelayError."""
        problem = "--worker is for the processes that `serve --workers` starts itself"
        try:
            channel = FdChannel[FromParent](socket.socket(fileno=descriptor), FromParent)
            message, files = channel.receive_now()
        except (OSError, ValueError, trio.EndOfChannel) as error:
            raise RelayError(problem) from error
        if not isinstance(message, Start) or len(files) != message.main + message.redirect:
            raise RelayError(problem)
        os.set_inheritable(descriptor, False)
        return cls(channel, message, files, settings=settings)

    @asynccontextmanager
    async def open_sockets(self) -> AsyncIterator[ListeningSockets]:
        """Use the listening sockets of the parent; leaving the block closes this process' copies."""
        try:
            yield self._sockets
        finally:
            self._sockets.close()

    @asynccontextmanager
    async def connected(self, signals: ServerSignals) -> AsyncIterator[None]:
        """Obey the parent while the block runs.

        **Owns:** a nursery with the tasks that read, write, and tell the parent that this process lives.
        """
        channel = self._channel
        if not self._settings.speaks_tls:
            self.handover = Handover(self.number, self.count, per_s=self._settings.limits.admit_rate)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(channel.run)
            nursery.start_soon(self._obey, signals)
            nursery.start_soon(self._report_alive)
            try:
                yield
            finally:
                channel.send(Metrics(self._own_metrics()))
                nursery.cancel_scope.cancel()

    def beside(self, remote: RemotePresence) -> RemotePresence:
        """Return the remote presence of the relay: `remote`, and the places that other workers know."""
        return remote if self.handover is None else BothPresences(remote, self.handover)

    def share_metrics(self, render: Callable[[], bytes]) -> None:
        """Use `render` for the metrics of this worker alone."""
        self._own_metrics = render

    def report_ready(self, relay: Relay, lines: list[str]) -> None:
        """Tell the parent that this worker accepts connections. The parent prints the lines of one worker."""
        self._relay = relay
        self._channel.send(Ready(lines))

    async def metrics_of_all(self) -> bytes:
        """Ask the parent for the metrics of all workers; without an answer, those of this one."""
        number, answered, pages = next(self._requests), trio.Event(), list[bytes]()
        self._pages[number] = answered, pages
        try:
            if self._channel.send(WantMetrics(number)):
                with trio.move_on_after(_METRICS_S):
                    await answered.wait()
        finally:
            del self._pages[number]
        return pages[0] if pages else self._own_metrics()

    @property
    def leaves_alone(self) -> bool:
        """Whether a signal to this process ends it, while the other workers go on."""
        return not (self._is_obeying or self._channel.broken)

    async def _report_alive(self) -> None:
        while True:
            self._channel.send(Alive())
            await trio.sleep(ALIVE_EVERY_S)

    async def _obey(self, signals: ServerSignals) -> None:
        try:
            while True:
                message, files = await self._channel.receive()
                self._take(message, files, signals)
        except trio.EndOfChannel:
            if signals.hurry.is_set():
                os._exit(1)  # the parent has ended by a third signal, and all its workers with it
            log.error("the parent process has ended; this worker closes its peers and ends")
            signals.begin_leave()

    def refuse_passed(self) -> None:
        """Take no connections from other workers any more."""
        if self.handover is not None:
            self.handover.is_leaving = True

    def _take(self, message: FromParent, files: list[int], signals: ServerSignals) -> None:
        match message:
            case Sibling() if len(files) == 1:
                sibling = socket.socket(fileno=files[0])
                if self.handover is None:
                    sibling.close()
                else:
                    self.handover.add_sibling(message.number, sibling)
            case Reload():
                signals.reload()
            case ReportMetrics():
                self._channel.send(Metrics(self._own_metrics()))
            case AllMetrics():
                if (asked := self._pages.get(message.request)) is not None:
                    asked[1].append(message.text)
                    asked[0].set()
            case Leave():
                self._is_obeying = True
                self.refuse_passed()
                peers = 0
                if self._relay is not None:
                    self._relay.closing = True
                    peers = len(self._relay.attached)
                self._channel.send(Leaving(peers))
            case Drain():
                self._is_obeying = True
                self.drain_window_s = message.window_s
                signals.begin_leave()
            case Hurry():
                self._is_obeying = True
                signals.begin_hurry()
            case _:
                log.warning("an unexpected message of the parent: %s", type(message).__name__)

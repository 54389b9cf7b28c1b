"""WorkerTemplate: a process that has imported the server, and whose forks become the workers.

A worker that imports everything itself has 60 MiB of modules of its own. Forks share them. The template runs
neither Trio nor threads, so it can be forked. It answers one request of the parent after the other.
"""

import gc
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Mapping
from contextlib import suppress
from importlib import import_module
from typing import Final

import trio

from brewos_relay.errors import RelayError
from brewos_relay.server.fd_channel import FdChannel
from brewos_relay.server.worker_messages import (
    Become,
    Ended,
    Fork,
    Forked,
    FromTemplate,
    NotForked,
    ToTemplate,
    Wait,
)

_ANSWER_S: Final = 60.0
"""How long the template may take for an answer. It imports the server before its first one."""
_END_S: Final = 5.0
_MODULES: Final = (
    "brewos_relay.server.run",
    "brewos_relay.server.worker",
    "brewos_relay.cluster.member",
    "brewos_relay.cluster.redis_broker",
    "brewos_relay.cluster.shared_budgets",
    "brewos_relay.cluster.view",
)
"""The modules of a worker, with all that they import."""
_SIGNALS: Final = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)


def can_fork() -> bool:
    """Whether this system has what a template needs: Linux 5.3 or newer."""
    try:
        os.close(os.pidfd_open(os.getpid()))
    except (AttributeError, OSError):
        return False
    return True


class ForkedProcess:
    """A worker that was forked from the template.

    **Owns:** a file that names the process: its number may belong to another one later.
    """

    def __init__(self, template: "WorkerTemplate", parent_pid: int, pid: int, file: int) -> None:
        self.pid = pid
        self.returncode: int | None = None
        """The exit code, negative for a signal, once it is known that the process has ended."""
        self._template = template
        self._parent_pid = parent_pid
        self._file = file

    async def wait(self) -> int:
        """Wait until the process has ended, and return its exit code."""
        while self.returncode is None:
            await trio.lowlevel.wait_readable(self._file)
            code = await self._template.take_code(self.pid, self._parent_pid)
            if self.returncode is None:
                self.returncode = code
                trio.lowlevel.notify_closing(self._file)
                os.close(self._file)
        return self.returncode

    def poll(self) -> int | None:
        """Return the exit code, if it is known."""
        return self.returncode

    def send_signal(self, number: signal.Signals) -> None:
        """Send a signal, unless the process has ended."""
        if self.returncode is None:
            with suppress(ProcessLookupError):
                signal.pidfd_send_signal(self._file, number)


class WorkerTemplate:
    """The template, as the parent of the workers sees it.

    **Owns:** the process, started when it is needed and not running, until `close`.
    """

    def __init__(self, environ: Mapping[str, str]) -> None:
        self._environ = environ
        self._process: trio.Process | None = None
        self._channel: FdChannel[FromTemplate] | None = None
        self._lock = trio.Lock()

    async def start_worker(
        self, variables: Mapping[str, str], channel: socket.socket
    ) -> ForkedProcess | trio.Process:
        """Start a worker with more variables and its end of a channel, which is closed here. Raises OSError.

        Where a process cannot be forked safely, the worker imports everything itself.
        """
        with channel:
            if not can_fork():
                process, theirs = await self._open_process()
                theirs.send(Become(dict(variables)), [channel])
                theirs.close()
                return process
            async with self._lock:
                if self._channel is None or self._channel.broken:
                    await self.close()
                    self._process, self._channel = await self._open_process()
                assert self._process is not None
                parent_pid = self._process.pid
                answer, files = await self._ask(Fork(dict(variables)), [channel.dup()])
        if isinstance(answer, Forked) and len(files) == 1:
            return ForkedProcess(self, parent_pid, answer.pid, files[0])
        if isinstance(answer, NotForked):
            raise OSError(answer.errno, os.strerror(answer.errno))
        raise OSError("the template of the workers has ended")

    async def take_code(self, pid: int, parent_pid: int) -> int:
        """Return the exit code of a worker that has ended; 0 if its template has ended, too."""
        async with self._lock:
            is_there = self._process is not None and self._process.pid == parent_pid
            if self._channel is not None and is_there and not self._channel.broken:
                answer, _ = await self._ask(Wait(pid), [])
                if isinstance(answer, Ended):
                    return answer.code
        return 0

    async def _open_process(self) -> tuple[trio.Process, FdChannel[FromTemplate]]:
        ours, theirs = socket.socketpair()
        with theirs:
            try:
                process = await trio.lowlevel.open_process(
                    [*_interpreter(), "-m", "brewos_relay", "serve", "--worker", str(theirs.fileno())],
                    env=self._environ,
                    pass_fds=(theirs.fileno(),),
                    stdin=subprocess.DEVNULL,
                    process_group=0,  # Ctrl-C in a terminal is for the parent alone
                )
            except BaseException:
                ours.close()
                raise
        return process, FdChannel[FromTemplate](ours, FromTemplate)

    async def _ask(
        self, request: Fork | Wait, files: list[socket.socket]
    ) -> tuple[FromTemplate | None, list[int]]:
        """Send a request and return the answer; None if the template ends or hangs."""
        assert self._channel is not None
        is_answered = False
        try:
            self._channel.send(request, files)
            with suppress(trio.EndOfChannel), trio.move_on_after(_ANSWER_S):
                answer = await self._channel.receive()
                is_answered = True
                return answer
        finally:
            if not is_answered:  # a late answer would be taken for that of the next request
                await self.close()
        return None, []

    async def close(self) -> None:
        """End the template. Its forks go on."""
        process, channel = self._process, self._channel
        self._process = self._channel = None
        if channel is not None:
            channel.close()
        if process is not None:
            process.kill()
            with trio.move_on_after(_END_S, shield=True):
                await process.wait()


# In the template


def become_worker(descriptor: int) -> int | None:
    """Fork workers for the parent at the other end of an inherited socket, until that has gone.

    Return None then. Return the descriptor of its channel to the parent in each worker. Raises RelayError
    if the other end is no parent.
    """
    problem = "--worker is for the processes that `serve --workers` starts itself"
    try:
        sock = socket.socket(fileno=descriptor)
        os.set_inheritable(descriptor, False)
        channel = FdChannel[ToTemplate](sock, ToTemplate)
    except OSError as error:
        raise RelayError(problem) from error
    # The parent alone ends the template. A worker gets its signals from its first instruction on.
    signal.pthread_sigmask(signal.SIG_BLOCK, _SIGNALS)
    try:
        while True:
            message, files = channel.receive_now()
            if isinstance(message, Wait):
                channel.send(Ended(os.waitstatus_to_exitcode(os.waitpid(message.pid, 0)[1])))
                continue
            if isinstance(message, Become) or _fork(channel):
                sock.close()
                os.environ.update(message.variables)
                return files[0]
            os.close(files[0])
    except trio.EndOfChannel:
        return None
    except (OSError, ValueError) as error:
        raise RelayError(problem) from error
    finally:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, _SIGNALS)


def _fork(channel: FdChannel[ToTemplate]) -> bool:
    """Fork this process. Return whether it is the new one; tell the parent of that otherwise."""
    _import_server()
    try:
        pid = os.fork()
    except OSError as error:
        channel.send(NotForked(error.errno or 0))
        return False
    if pid == 0:
        return True
    file = os.pidfd_open(pid)
    channel.try_send(Forked(pid), [file])
    os.close(file)
    return False


def _import_server() -> None:
    """Import what every worker uses. The garbage collector leaves that alone, so that it stays shared."""
    for name in _MODULES:
        import_module(name)
    gc.collect()
    gc.freeze()


def _interpreter() -> list[str]:
    """Return the command of this Python. With -P, it does not look for modules in the current folder."""
    return [sys.executable] if os.getcwd() in sys.path or "" in sys.path else [sys.executable, "-P"]  # noqa: PTH109

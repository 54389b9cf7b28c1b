"""One worker as its parent sees it: here a process that says what a test wants it to say."""

import os
import signal
import socket
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
import trio
import trio.testing

from brewos_relay.server.fd_channel import FdChannel
from brewos_relay.server.worker_messages import (
    Alive,
    FromParent,
    FromWorker,
    Leaving,
    Metrics,
    Ready,
    ReportMetrics,
    WantMetrics,
)
from brewos_relay.server.worker_process import WorkerProcess


@asynccontextmanager
async def worker() -> AsyncIterator[tuple[WorkerProcess, FdChannel[FromParent], list[int]]]:
    """Run a worker; give what its parent has, the worker's end of the channel, and its metrics requests."""
    ours, theirs = socket.socketpair()
    process = await trio.lowlevel.open_process([sys.executable, "-c", "import time; time.sleep(600)"])
    made = WorkerProcess(1, process, FdChannel[FromWorker](ours, FromWorker))
    channel = FdChannel[FromParent](theirs, FromParent)
    wanted: list[int] = []
    try:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(made.run, lambda _, request: wanted.append(request))
            await trio.testing.wait_all_tasks_blocked()
            yield made, channel, wanted
            made.kill()
            await made.ended.wait()
    finally:
        channel.close()


async def test_worker_that_never_sends_anything_is_killed(
    autojump_clock: trio.testing.MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    async with worker() as (made, _, _):
        await trio.sleep(59)
        assert made.process.poll() is None
        await made.ended.wait()
        assert made.cause == "was ended by SIGKILL"
    assert "killing worker 1: it was silent for 60 s" in caplog.text


async def test_worker_that_migrates_the_registry_may_take_its_time(
    autojump_clock: trio.testing.MockClock,
) -> None:
    async with worker() as (made, channel, _):
        for _second in range(60):
            channel.send(Alive())
            await trio.sleep(5)
        assert made.process.poll() is None
        assert not made.ready.is_set()


async def test_worker_that_does_not_end_after_its_last_message_is_killed(
    autojump_clock: trio.testing.MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    async with worker() as (made, channel, _):
        channel.send(Ready([]))
        channel.close()
        await trio.sleep(59)
        assert made.process.poll() is None
        await made.ended.wait()
    assert "killing worker 1: it had not ended after 60 s" in caplog.text


async def test_worker_that_hangs_is_killed(
    autojump_clock: trio.testing.MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    async with worker() as (made, channel, _):
        channel.send(Ready(["line"]))
        for _second in range(20):
            await trio.sleep(5)
            channel.send(Alive())
        assert made.process.poll() is None
        await made.ended.wait()
        assert made.lines == ["line"]
    assert "killing worker 1: it was silent for 30 s" in caplog.text


async def test_messages_of_a_worker() -> None:
    with trio.fail_after(10):
        async with worker() as (made, channel, wanted):
            channel.send(Leaving(7))
            await made.is_leaving.wait()
            assert made.peers == 7
            channel.send(WantMetrics(3))
            async with trio.open_nursery() as nursery:
                nursery.start_soon(made.report_metrics)
                assert await channel.receive() == (ReportMetrics(), [])
                channel.send(Metrics(b"up 1\n"))
            assert made.metrics == b"up 1\n"
            assert wanted == [3]


async def test_last_messages_of_a_worker_count() -> None:
    with trio.fail_after(10):
        async with worker() as (made, channel, _):
            channel.send(Metrics(b"up 2\n"))
            os.kill(made.process.pid, signal.SIGKILL)
            channel.close()
            await made.ended.wait()
            assert made.metrics == b"up 2\n"


@pytest.mark.parametrize(
    ("code", "cause"),
    [(0, "ended with exit code 0"), (3, "ended with exit code 3"), (None, "is running")],
)
async def test_cause_names_the_exit_code(code: int | None, cause: str) -> None:
    program = "import sys, time; time.sleep(600)" if code is None else f"import sys; sys.exit({code})"
    ours, theirs = socket.socketpair()
    with trio.fail_after(10), theirs:
        process = await trio.lowlevel.open_process([sys.executable, "-c", program], stderr=subprocess.DEVNULL)
        made = WorkerProcess(1, process, FdChannel[FromWorker](ours, FromWorker))
        if code is not None:
            await process.wait()
        assert made.cause == cause
        made.kill()
        await process.wait()
        made.channel.close()

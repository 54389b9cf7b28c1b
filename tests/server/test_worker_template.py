"""The template of workers: real processes, forked and ended."""

import os
import signal
import socket
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Final

import pytest
import trio

from brewos_relay.errors import RelayError
from brewos_relay.server import worker_template
from brewos_relay.server.fd_channel import FdChannel
from brewos_relay.server.worker_messages import Hurry, NotForked, ToTemplate
from brewos_relay.server.worker_template import ForkedProcess, WorkerTemplate, become_worker, can_fork
from support.process import environment
from support.waiting import until
from support.workers import children, is_running

needs_fork = pytest.mark.skipif(not can_fork(), reason="needs Linux 5.3 or newer")
NOT_STARTED: Final = 3


@pytest.fixture
async def template(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[WorkerTemplate]:
    monkeypatch.chdir(tmp_path)
    made = WorkerTemplate(environment())
    yield made
    await made.close()


async def start(template: WorkerTemplate) -> tuple[ForkedProcess | trio.Process, FdChannel[ToTemplate]]:
    """Start a worker that waits for the first message of its parent."""
    ours, theirs = socket.socketpair()
    try:
        process = await template.start_worker({"BREWOS_RELAY_INSTANCE": "one"}, theirs)
    except OSError:
        ours.close()
        raise
    return process, FdChannel[ToTemplate](ours, ToTemplate)


def private_kib(pid: int) -> int:
    """Return how much memory a process shares with no other one."""
    lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("Private_Dirty:"))


def pid_of(template: WorkerTemplate) -> int:
    assert template._process is not None
    return template._process.pid


@needs_fork
async def test_workers_are_forks_that_share_memory_and_report_how_they_ended(
    template: WorkerTemplate,
) -> None:
    with trio.fail_after(60):
        (one, to_one), (two, to_two) = await start(template), await start(template)
        assert sorted([one.pid, two.pid]) == children(pid_of(template))
        assert len(os.listdir(f"/proc/{pid_of(template)}/task")) == 1, "a fork has no other thread"  # noqa: PTH208
        assert private_kib(one.pid) < 20_000, "a process that imports everything has 60,000"
        to_one.send(Hurry())  # which is not what a worker expects first
        assert await one.wait() == NOT_STARTED
        assert one.poll() == NOT_STARTED
        one.send_signal(signal.SIGKILL)  # it has ended: nothing happens
        assert two.poll() is None
        two.send_signal(signal.SIGKILL)
        assert await two.wait() == -signal.SIGKILL
        assert children(pid_of(template)) == []
        process, to_template = template._process, template._channel
        assert process is not None
        assert to_template is not None
        to_template.close()
        assert await process.wait() == 0, "it ends with its parent"
        to_one.close()
        to_two.close()


@needs_fork
async def test_worker_outlives_its_template_and_the_next_one_gets_another(template: WorkerTemplate) -> None:
    with trio.fail_after(60):
        first, to_first = await start(template)
        earlier = pid_of(template)
        os.kill(earlier, signal.SIGTERM)  # a service manager may signal all processes of a service
        second, to_second = await start(template)
        assert pid_of(template) == earlier
        os.kill(earlier, signal.SIGKILL)
        await until(lambda: not is_running(earlier))
        with pytest.raises(OSError, match="the template of the workers has ended"):
            await start(template)
        third, to_third = await start(template)
        assert is_running(first.pid)
        assert children(pid_of(template)) == [third.pid]
        for process in (first, second, third):
            process.send_signal(signal.SIGKILL)
        # The exit codes of the first two are lost with their template.
        assert [await process.wait() for process in (first, second, third)] == [0, 0, -signal.SIGKILL]
        for channel in (to_first, to_second, to_third):
            channel.close()


async def test_worker_imports_everything_itself_where_it_cannot_be_forked(
    template: WorkerTemplate, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(worker_template, "can_fork", lambda: False)
    with trio.fail_after(60):
        worker, channel = await start(template)
        assert template._process is None
        channel.send(Hurry())
        assert await worker.wait() == NOT_STARTED
        channel.close()


async def test_template_that_cannot_start_is_reported(tmp_path: Path) -> None:
    template = WorkerTemplate(environment(JWT_SECRET=""))
    ours, theirs = socket.socketpair()
    with trio.fail_after(60), ours, pytest.raises(OSError, match="the template of the workers has ended"):
        await template.start_worker({}, theirs)


def test_failure_to_fork_is_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail() -> int:
        raise BlockingIOError(11, "no processes")

    monkeypatch.setattr(os, "fork", fail)
    monkeypatch.setattr(worker_template, "_import_server", lambda: None)
    ours, theirs = socket.socketpair()
    channel = FdChannel[ToTemplate](theirs, ToTemplate)
    assert not worker_template._fork(channel)
    answers = FdChannel[NotForked](ours, NotForked)
    assert answers.receive_now() == (NotForked(11), [])
    for sock in (ours, theirs):
        sock.close()


def test_descriptor_of_something_else_is_refused(tmp_path: Path) -> None:
    with (tmp_path / "file").open("wb") as file, pytest.raises(RelayError, match="--worker is for"):
        become_worker(os.dup(file.fileno()))

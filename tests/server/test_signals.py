"""Signals: every pair of SIGTERM, SIGINT and SIGHUP, in real processes, in every phase, also as process 1."""

import os
import signal
import sqlite3
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager, closing, contextmanager, suppress
from itertools import product
from pathlib import Path
from signal import SIGHUP, SIGINT, SIGTERM, Signals
from typing import Final

import pytest
import trio

from brewos_relay.server.signals import ServerSignals
from support.cluster import register_machines
from support.process import (
    SERVE,
    ProcessServer,
    environment,
    machine_id,
    only_child,
    serve_process_through,
)
from support.waiting import until
from support.wire_client import Ended, WireClient
from support.workers import children

HOLD_S: Final = 1.0
"""How old a device has to be here before it is closed."""
HEALTH: Final = b"GET /api/health HTTP/1.1\r\nHost: a\r\n\r\n"
ENDING: Final = (SIGTERM, SIGINT)
PAIRS: Final = list(product((SIGTERM, SIGINT, SIGHUP), repeat=2))


def name(numbers: Sequence[Signals]) -> str:
    return "-".join(number.name for number in numbers)


def as_process_one() -> tuple[str, ...]:
    """Give the command that runs another one as process 1 of a namespace of its own."""
    for command in (("unshare", "--pid", "--fork"), ("unshare", "-r", "--pid", "--fork")):
        with suppress(OSError):
            if subprocess.run([*command, "true"], capture_output=True, check=False).returncode == 0:
                return command
    return ()


PROCESS_ONE: Final = as_process_one()
needs_namespaces = pytest.mark.skipif(not PROCESS_ONE, reason="no namespace for process ids may be made here")


class Home:
    """A server process with two machines. A drain closes the first soon, and the second after 15 s."""

    def __init__(
        self, server: ProcessServer, first: WireClient, second: WireClient, *, opened_at: float
    ) -> None:
        self.server = server
        self.first = first
        self.second = second
        self.opened_at = opened_at
        """When the first began to connect; neither is closed earlier than `HOLD_S` after that."""

    async def send(self, *numbers: Signals) -> None:
        """Send signals, each after the effect of the one before."""
        for number in numbers:
            self.server.send_signal(number)
            await self.look_for_effects()

    async def look_for_effects(self) -> None:
        with suppress(OSError, Ended):
            await (await self.server.connect()).ask(HEALTH)

    async def assert_serving(self) -> None:
        assert (await (await self.server.connect()).ask(HEALTH)).status == 200
        with trio.move_on_after(0.2) as open_:
            await self.second.read_close()
        assert open_.cancelled_caught

    async def assert_draining(self) -> None:
        """The first device is closed once it is old enough. The second stays connected."""
        while (await (await self.server.connect()).ask(HEALTH)).status != 503:
            pass
        assert (await self.first.read_close())[0] == 1012
        assert trio.current_time() - self.opened_at >= HOLD_S - 0.05
        with trio.move_on_after(0.3) as open_:
            await self.second.read_close()
        assert open_.cancelled_caught
        assert self.server.process.poll() is None

    async def assert_hurried(self) -> None:
        """Both are closed, as soon as they are old enough, and the process ends."""
        for device in (self.first, self.second):
            assert (await device.read_close())[0] == 1012
            assert trio.current_time() - self.opened_at >= HOLD_S - 0.05
        assert await self.server.wait(within_s=5) == 0


@asynccontextmanager
async def at_home(
    folder: Path, *, through: Sequence[str] = (), hold_s: float = HOLD_S
) -> AsyncIterator[Home]:
    ids = [machine_id(1), machine_id(2)]
    register_machines(folder / "data", (1, 2))
    limits = {"DRAIN_S": 30, "CLOSE_S": 0.2, "DEVICE_MIN_AGE_S": hold_s}
    bounds = {f"BREWOS_RELAY_{limit}": value for limit, value in limits.items()}
    with trio.fail_after(30):
        async with serve_process_through(through, folder, **bounds) as server:
            opened_at = trio.current_time()
            devices = [await server.device(device_id) for device_id in ids]
            yield Home(server, *devices, opened_at=opened_at)


@pytest.mark.parametrize("pair", PAIRS, ids=name)
async def test_a_pair_of_signals(tmp_path: Path, pair: tuple[Signals, Signals]) -> None:
    async with at_home(tmp_path) as home:
        await home.send(*pair)
        match sum(number in ENDING for number in pair):
            case 0:
                await home.assert_serving()
            case 1:
                await home.assert_draining()
            case _:
                await home.assert_hurried()


@needs_namespaces
@pytest.mark.parametrize("pair", [(SIGHUP, SIGHUP), (SIGTERM, SIGHUP), (SIGTERM, SIGTERM)], ids=name)
async def test_a_pair_of_signals_to_process_1(tmp_path: Path, pair: tuple[Signals, Signals]) -> None:
    async with at_home(tmp_path, through=PROCESS_ONE) as home:
        await home.send(*pair)
        match sum(number in ENDING for number in pair):
            case 0:
                await home.assert_serving()
            case 1:
                await home.assert_draining()
            case _:
                await home.assert_hurried()
    with pytest.raises(ProcessLookupError):  # the server has ended, not only the command that started it
        home.server.send_signal(SIGTERM)


@pytest.mark.parametrize("third", ENDING, ids=str)
async def test_the_third_signal_ends_the_process_at_once(tmp_path: Path, third: Signals) -> None:
    async with at_home(tmp_path, hold_s=20) as home:
        await home.send(SIGTERM, SIGINT)
        home.server.send_signal(third)
        assert await home.server.wait(within_s=2) == -third
        assert trio.current_time() - home.opened_at < 20, "it waited for nothing"


@needs_namespaces
async def test_the_third_signal_ends_process_1_at_once(tmp_path: Path) -> None:
    async with at_home(tmp_path, through=PROCESS_ONE, hold_s=20) as home:
        await home.send(SIGTERM, SIGINT)
        home.server.send_signal(SIGTERM)
        assert await home.server.wait(within_s=2) == 128 + SIGTERM


# Start-up


@contextmanager
def locked_registry(folder: Path) -> Iterator[None]:
    """Keep a server from getting past its start: the registry cannot be written to."""
    (folder / "data").mkdir()
    with closing(sqlite3.connect(folder / "data/brewos-relay.db", isolation_level=None)) as database:
        database.execute("BEGIN EXCLUSIVE")
        yield
        database.execute("ROLLBACK")


async def wait_for_child(pid: int) -> int:
    """Wait until a process has started its one child; return that."""
    await until(lambda: children(pid) != [])
    return only_child(pid)


def catches(pid: int, number: Signals) -> bool:
    """Whether a process has a handler of its own for a signal."""
    status = Path(f"/proc/{pid}/status").read_text()
    [caught] = [line.split()[1] for line in status.splitlines() if line.startswith("SigCgt")]
    return bool(int(caught, 16) >> (number - 1) & 1)


@pytest.mark.parametrize(
    "through", [(), pytest.param(PROCESS_ONE, marks=needs_namespaces)], ids=["plain", "process 1"]
)
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="needs /proc")
async def test_a_signal_during_start_up_ends_it_and_hangups_do_not(
    tmp_path: Path, through: Sequence[str]
) -> None:
    with trio.fail_after(20):
        with locked_registry(tmp_path):
            process = await trio.lowlevel.open_process(
                [*through, *SERVE],
                cwd=tmp_path,
                env=environment(DATA_DIR=tmp_path / "data"),
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
            )
            pid = await wait_for_child(process.pid) if through else process.pid
            await until(lambda: catches(pid, SIGHUP))
            for number in (SIGHUP, SIGTERM, SIGHUP):
                os.kill(pid, number)
                await trio.sleep(0.1)
            assert process.poll() is None, "the write to the registry is finished first"
        assert await process.wait() == 0
        assert process.stdout is not None
        assert process.stderr is not None
        assert await process.stdout.receive_some() == b"", "it has not become ready"
        assert b"during start-up" in await process.stderr.receive_some()
        await process.stdout.aclose()
        await process.stderr.aclose()


_SERVE_WITH_SLOW_IMPORTS: Final = """
import sys
from brewos_relay.cli import main

class Slow:
    def find_spec(self, name, path=None, target=None):
        if name == "trio":
            sys.meta_path.remove(self)
            print("importing", flush=True)
            sys.stdin.read(1)

sys.meta_path.insert(0, Slow())
main(["serve", "--host", "127.0.0.1", "--port", "0"])
"""


async def test_a_hangup_while_modules_are_imported_does_not_end_the_start(tmp_path: Path) -> None:
    with trio.fail_after(30):
        process = await trio.lowlevel.open_process(
            [sys.executable, "-c", _SERVE_WITH_SLOW_IMPORTS],
            cwd=tmp_path,
            env=environment(),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )
        assert process.stdin is not None
        assert process.stdout is not None
        assert await process.stdout.receive_some() == b"importing\n"
        process.send_signal(SIGHUP)
        await process.stdin.send_all(b"x")
        assert b"is ready" in await process.stdout.receive_some()
        process.send_signal(SIGTERM)
        assert await process.wait() == 0
        await process.stdin.aclose()
        await process.stdout.aclose()


async def test_signals_before_trio_runs_count() -> None:
    signals = ServerSignals()
    with signals.caught():
        os.kill(os.getpid(), SIGHUP)
        os.kill(os.getpid(), SIGTERM)
        signals.listen()
        assert signals.leave.is_set()
        assert not signals.hurry.is_set()
        with trio.fail_after(1), signals.start_scope():
            await trio.sleep_forever()
        assert not await signals.wait_for_reload(), "a process that leaves reloads nothing"
        os.kill(os.getpid(), SIGINT)
        with trio.fail_after(1):
            await signals.hurry.wait()
    assert signals.first == SIGTERM
    assert signal.getsignal(SIGHUP) == signal.SIG_IGN
    signal.signal(SIGHUP, signal.SIG_DFL)


async def test_signals_elsewhere_than_in_the_main_thread_are_left_alone() -> None:
    def look() -> bool:
        with ServerSignals().caught():
            return signal.getsignal(SIGTERM) == earlier

    earlier = signal.getsignal(SIGTERM)
    assert await trio.to_thread.run_sync(look)


# Commands


@needs_namespaces
async def test_other_commands_end_at_sigterm_as_process_1(tmp_path: Path) -> None:
    command = [*PROCESS_ONE, sys.executable, "-m", "brewos_relay", "tail", machine_id(1)]
    nowhere = environment(BREWOS_RELAY_URL="http://127.0.0.1:9", BREWOS_RELAY_TOKEN="x.y.z")
    with trio.fail_after(20):
        process = await trio.lowlevel.open_process(
            command, cwd=tmp_path, env=nowhere, stdout=subprocess.PIPE, stderr=subprocess.PIPE
        )
        pid = await wait_for_child(process.pid)
        await until(lambda: catches(pid, SIGTERM))
        os.kill(pid, SIGTERM)
        assert await process.wait() == 128 + SIGTERM
        for pipe in (process.stdout, process.stderr):
            assert pipe is not None
            await pipe.aclose()

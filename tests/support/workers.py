"""Servers of several workers, seen from outside: their processes, and which of them has a connection."""

import os
import re
import tempfile
import time
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any, Final, cast

import pytest
import trio

from brewos_relay.auth.secrets import hash_secret
from brewos_relay.errors import RelayError
from brewos_relay.registry.database import Database
from brewos_relay.registry.devices import add_devices
from brewos_relay.registry.records import NewDevice
from brewos_relay.server.private_redis import find_program
from brewos_relay.vocabulary import now_ms
from support.process import KEY, ProcessServer, machine_id, serve_process
from support.redis_server import REQUIRED
from support.waiting import until
from support.wire_client import WireClient

METRICS_TOKEN: Final = "metrics-" + "m" * 20

needs_proc = pytest.mark.skipif(not Path("/proc/self/net/tcp").exists(), reason="needs /proc")


def children(pid: int) -> list[int]:
    """List the processes that a process has started, from any of its threads."""
    found: set[int] = set()
    for listed in Path(f"/proc/{pid}/task").glob("*/children"):
        with suppress(OSError):  # it has ended
            found.update(map(int, listed.read_text().split()))
    return sorted(found)


def descendants(pid: int) -> set[int]:
    """List the processes that a process has started, and those that these have started, and so on."""
    found = set(children(pid))
    return found.union(*map(descendants, found))


def workers_of(pid: int) -> list[int]:
    """List the workers of a parent: the forks of their template."""
    return [worker for template in templates_of(pid) for worker in children(template)]


def templates_of(pid: int) -> list[int]:
    """List the templates of workers among the processes that a process has started."""
    return [child for child in children(pid) if b"--worker\0" in command_of(child)]


def state_of(pid: int) -> str:
    """Return the state of a process: R if it runs, S if it sleeps, T if it is stopped, Z if it has ended."""
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]


def wait_until_asleep(pid: int) -> None:
    """Wait until a process has slept for a while: it waits for an event, and does not only begin to."""
    before: tuple[str, list[str]] = ("", [])
    for _ in range(200):
        status = Path(f"/proc/{pid}/status").read_text()
        now = state_of(pid), [line for line in status.splitlines() if "ctxt_switches" in line]
        if now == before and now[0] == "S":
            return
        before = now
        time.sleep(0.1)
    raise AssertionError(f"the process {pid} does not sleep: {before}")


def is_running(pid: int) -> bool:
    try:
        return state_of(pid) != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


class Machine(ProcessServer):
    """A server of several workers."""

    def workers(self) -> list[int]:
        """List the process ids of the workers."""
        return workers_of(self.pid)

    def worker_of(self, connection: WireClient) -> int:
        """Find the worker that has the other end of a connection; 0 if none has it."""
        sock = cast(Any, connection.stream).socket
        inode = _inode(own=sock.getpeername()[1], other=sock.getsockname()[1])
        return next((pid for pid in self.workers() if f"socket:[{inode}]" in _files(pid)), 0)

    async def metrics(self) -> dict[str, float]:
        """Read the metrics through the main port."""
        connection = await self.connect()
        head = f"GET /metrics HTTP/1.1\r\nHost: a\r\nAuthorization: Bearer {METRICS_TOKEN}\r\n\r\n"
        answer = await connection.ask(head.encode())
        connection.abort()
        assert answer.status == 200, answer
        lines = [line for line in answer.body.decode().splitlines() if not line.startswith("#")]
        return {name: float(value) for name, _, value in (line.rpartition(" ") for line in lines)}


def command_of(pid: int) -> bytes:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes()
    except FileNotFoundError:
        return b""


def _inode(*, own: int, other: int) -> str:
    for line in Path("/proc/self/net/tcp").read_text().splitlines()[1:]:
        fields = line.split()
        ports = [int(address.rpartition(":")[2], 16) for address in fields[1:3]]
        if ports == [own, other]:
            return fields[9]
    return ""


def _files(pid: int) -> set[str]:
    found = set()
    for file in Path(f"/proc/{pid}/fd").glob("*"):
        try:
            found.add(str(file.readlink()))
        except FileNotFoundError:
            continue
    return found


@asynccontextmanager
async def serve_workers(
    folder: Path, *, workers: int = 2, machines: Iterable[int] = (), **settings: object
) -> AsyncIterator[Machine]:
    """Start a server of several workers with machines of these numbers. In the end, none of it runs."""
    if "BREWOS_RELAY_BUS" not in settings:
        require_redis()
    database = str(settings.get("BREWOS_RELAY_DATABASE_URL", f"sqlite:///{folder}/data/brewos-relay.db"))
    (folder / "data").mkdir(exist_ok=True)
    devices = [NewDevice(id=machine_id(n), key_hash=hash_secret(KEY)) for n in machines]
    with Database.open(database) as opened, opened.writing() as db:
        add_devices(db, devices, now_ms=now_ms())
    started: set[int] = set()
    with tempfile.TemporaryDirectory(prefix="workers-") as runtime:  # its path is short
        given = {
            "BREWOS_RELAY_METRICS_TOKEN": METRICS_TOKEN,
            "BREWOS_RELAY_WORKERS": workers,
            "XDG_RUNTIME_DIR": runtime,
            **settings,
        }
        try:
            async with serve_process(folder, **given) as server:
                server.__class__ = Machine
                machine = cast(Machine, server)
                assert len(machine.workers()) == workers
                started |= descendants(machine.pid)
                yield machine
        finally:
            with trio.move_on_after(20, shield=True):
                await until(lambda: not any(map(is_running, started)) and not os.listdir(runtime))  # noqa: PTH208
            left = [(pid, command_of(pid)) for pid in started if is_running(pid)]
            assert not left, (left, (folder / "server.log").read_text())
            assert os.listdir(runtime) == []  # noqa: PTH208


def require_redis() -> None:
    """Skip the test if there is no Redis for the workers, or let it fail where one is required."""
    try:
        find_program()
    except RelayError as problem:
        if REQUIRED:
            pytest.fail(str(problem))
        pytest.skip(str(problem))


def log_of(folder: Path, pattern: str) -> list[str]:
    """Return the lines of a server's log that match."""
    return [line for line in (folder / "server.log").read_text().splitlines() if re.search(pattern, line)]

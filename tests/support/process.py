"""Servers to test against: a process of its own, or one inside the test, and how to reach either."""

import atexit
import os
import re
import secrets
import signal
import ssl
import subprocess
import sys
from collections.abc import AsyncIterator, Callable, Collection, Iterable, Mapping, Sequence
from contextlib import (
    AbstractAsyncContextManager,
    AsyncExitStack,
    ExitStack,
    asynccontextmanager,
    suppress,
)
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any, Final, TypeAlias

import pytest
import trio

from brewos_relay.auth.secrets import hash_secret
from brewos_relay.auth.tokens import KeyRing
from brewos_relay.cluster.devices import DeviceTable
from brewos_relay.registry.database import Database
from brewos_relay.registry.devices import add_devices
from brewos_relay.registry.records import NewDevice
from brewos_relay.server.assembly import Server, open_server
from brewos_relay.settings import Settings
from brewos_relay.settings.server_limits import ServerLimits
from brewos_relay.vocabulary import now_ms
from support.redis_server import RedisServer, open_redis
from support.wire_client import WireClient, upgrade_head

SECRET: Final = "tests-only-" + "s" * 32
KEY: Final = "k3y_Of-the_Machine" + "0" * 25
WRONG_KEY: Final = "An0ther-key_" + "1" * 31
SOURCES: Final = Path(__file__).parents[2] / "src"
_KEPT: Final = ("PATH", "HOME", "LANG", "TMPDIR", "PYTHONPATH")

SERVE: Final = (sys.executable, "-m", "brewos_relay", "serve", "--host", "127.0.0.1", "--port", "0")

ACROSS: Final = os.environ.get("BREWOS_RELAY_TESTS_ACROSS") == "1"
"""Whether `serve_here` opens two instances on a bus: machines connect to one, all others to the other."""


def one_instance(reason: str) -> pytest.MarkDecorator:
    """Skip a test that holds for one instance only when there are two."""
    return pytest.mark.skipif(ACROSS, reason=reason)


_READY = re.compile(r"https?://127\.0\.0\.1:(\d+)")


def machine_id(number: int) -> str:
    """Name a machine of the tests."""
    return f"BRW-{number:08X}"


class Reach:
    """A way to a server: makes connections to it, and drops all of them in the end."""

    def __init__(self, address: tuple[str, int], *, device_address: tuple[str, int] | None = None) -> None:
        self.address = address
        self.device_address = device_address or address
        self.signer = KeyRing([SECRET])
        self._connections: list[WireClient] = []

    def token(self, devices: Collection[str] | str = "*", *, user_id: str = "ada") -> str:
        """Make a token; `devices` is "*" or a list of ids."""
        if isinstance(devices, str):
            assert devices == "*"
            return self.signer.issue(user_id=user_id, email="ada@example.org", devices="*")
        return self.signer.issue(user_id=user_id, email="ada@example.org", devices=list(devices))

    async def connect(
        self,
        *,
        receive_buffer_bytes: int | None = None,
        tls_context: ssl.SSLContext | None = None,
        as_device: bool = False,
    ) -> WireClient:
        """Open a TCP connection, with TLS if there is a context for it."""
        connection = await WireClient.connect(
            self.device_address if as_device else self.address,
            receive_buffer_bytes=receive_buffer_bytes,
            tls_context=tls_context,
        )
        self._connections.append(connection)
        return connection

    async def upgrade(self, target: str, *, receive_buffer_bytes: int | None = None) -> WireClient:
        """Open a WebSocket. The first message of the server is left unread."""
        is_device = target.startswith("/ws/device")
        connection = await self.connect(receive_buffer_bytes=receive_buffer_bytes, as_device=is_device)
        response = await connection.ask(upgrade_head(target))
        assert response.status == 101, response
        return connection

    async def device(self, device_id: str, *, key: str = KEY, silent: bool = False) -> WireClient:
        """Connect a machine. Unless it is silent, it is present when this returns.

        It pings first, as machines do. If apps are attached, it can read `request_state` next.
        """
        connection = await self.upgrade(f"/ws/device?id={device_id}&key={key}")
        connection.connected = await connection.read_json()
        if not silent:
            await connection.show_life()
            await self.wait_until_claimed(device_id)
        return connection

    async def wait_until_claimed(self, device_id: str) -> None:
        """Wait until all instances know that a device is present; at once with a single instance."""

    async def client(
        self, device_id: str, *, token: str | None = None, receive_buffer_bytes: int | None = None
    ) -> WireClient:
        """Connect an app. The greeting has arrived when this returns."""
        target = f"/ws/client?token={token or self.token()}&device={device_id}"
        connection = await self.upgrade(target, receive_buffer_bytes=receive_buffer_bytes)
        connection.connected = await connection.read_json()
        return connection

    def abort(self) -> None:
        """Drop all connections."""
        for connection in self._connections:
            connection.abort()


class HereServer(Reach):
    """A server inside the test."""

    def __init__(self, server: Server, device_server: Server | None = None, *, settings: Settings) -> None:
        devices = device_server or server
        super().__init__(server.addresses[0], device_address=devices.addresses[0])
        self.server = server
        self.settings = settings
        self.device_server = devices
        """The instance that machines connect to: the same one, unless `ACROSS` says otherwise."""

    @property
    def invalid_messages(self) -> int:
        """How many messages of peers were invalid."""
        relays = {self.server.relay, self.device_server.relay}
        return sum(relay.counters.invalid for relay in relays)

    async def wait_until_claimed(self, device_id: str) -> None:
        table = self.device_server.relay.remote
        if isinstance(table, DeviceTable):
            record = table.records.get(device_id.upper())
            while record is not None and record.claimed is None:  # noqa: ASYNC110 - another task claims
                await trio.sleep(0.001)


Unharmed: TypeAlias = Callable[..., AbstractAsyncContextManager[HereServer]]
"""Like `serve_here`, but checks that the block harms no other peer; a fixture of the end-to-end tests."""


@asynccontextmanager
async def serve_here(
    folder: Path,
    *,
    machines: Iterable[int] = (1, 2, 3, 4),
    within_s: float = 5.0,
    settings: dict[str, Any] | None = None,
    **limits: float,
) -> AsyncIterator[HereServer]:
    """Open a server on a free port, with machines of these numbers registered with `KEY`.

    The block has to end within `within_s`. Machines may be closed at any age, unless `device_min_age_s` is
    among the `limits`, and all peers at once, unless `drain_s` is.
    """
    bounds: dict[str, Any] = {"device_min_age_s": 0.001, "close_s": 0.5, "drain_s": 0.0, **limits}
    given: dict[str, Any] = {"host": "127.0.0.1", "port": 0, "jwt_secret": SECRET, "data_dir": folder}
    chosen = Settings(**{**given, "limits": ServerLimits(**bounds), **(settings or {})})
    devices = [NewDevice(id=machine_id(n), key_hash=hash_secret(KEY)) for n in machines]
    with Database.open(chosen.resolved_database_url()) as database, database.writing() as db:
        add_devices(db, devices, now_ms=now_ms())
    failure: Exception | None = None
    with trio.fail_after(within_s + 5):
        async with _open_servers(chosen) as here:
            try:
                with trio.fail_after(within_s):
                    yield here
            except Exception as error:
                failure = error  # raised here, it would come out wrapped by every nursery of the server
            finally:
                here.abort()
    if failure is not None:
        raise failure


@asynccontextmanager
async def serve_instances(
    folder: Path,
    bus: str,
    *others: Mapping[str, Any],
    machines: Iterable[int] = (1, 2, 3, 4),
    within_s: float = 10.0,
    settings: Mapping[str, Any] | None = None,
    **limits: float,
) -> AsyncIterator[list[HereServer]]:
    """Open two instances on the bus at this URL, which share one registry; otherwise like `serve_here`.

    `others` are changes to the settings of the instances after the first one, one for each. The names are
    `one`, `two` and so on.
    """
    own = {"bus": bus, "instance": "one", **(settings or {})}
    failure: Exception | None = None
    async with AsyncExitStack() as stack:
        stack.enter_context(trio.fail_after(within_s + 5))
        first = await stack.enter_async_context(
            serve_here(folder, machines=machines, within_s=within_s, settings=own, **limits)
        )
        here = [first]
        for name, changes in zip(("two", "three", "four"), others or ({},), strict=False):
            chosen = replace(first.settings, **{"instance": name, "port": 0, **changes})
            here.append(HereServer(await stack.enter_async_context(open_server(chosen)), settings=chosen))
        try:
            with trio.fail_after(within_s):
                yield here
        except Exception as error:
            failure = error
        finally:
            for each in here:
                each.abort()
    if failure is not None:
        raise failure


@asynccontextmanager
async def _open_servers(chosen: Settings) -> AsyncIterator[HereServer]:
    """Open one server, or two instances with a bus between them if `ACROSS` says so."""
    if not ACROSS or chosen.bus:
        async with open_server(chosen) as server:
            yield HereServer(server, settings=chosen)
        return
    bus = f"{shared_redis().url}?prefix={secrets.token_hex(8)}:"
    async with (
        open_server(replace(chosen, bus=bus)) as device_server,
        open_server(replace(chosen, bus=bus, port=0)) as server,
    ):
        yield HereServer(server, device_server, settings=chosen)


@cache
def shared_redis() -> RedisServer:
    """Start a Redis for all tests of this process."""
    stack = ExitStack()
    atexit.register(stack.close)
    return stack.enter_context(open_redis())


class ProcessServer(Reach):
    """A server in a process of its own."""

    def __init__(self, address: tuple[str, int], process: trio.Process, log_file: Path) -> None:
        super().__init__(address)
        self.process = process
        self.log_file = log_file
        self.pid = process.pid
        """Of the server itself, also where another command has started it."""

    async def read_line(self) -> str:
        """Read the next line of its output, after the one that says that it is ready."""
        return await _read_line(self.process)

    def send_signal(self, number: signal.Signals) -> None:
        os.kill(self.pid, number)

    async def wait(self, *, within_s: float) -> int:
        """Wait for its end; return the exit code, or minus the signal that ended it."""
        with trio.fail_after(within_s):
            return await self.process.wait()


def only_child(pid: int) -> int:
    """Find the one process that this process has started."""
    [child] = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    return int(child)


def environment(**settings: object) -> dict[str, str]:
    """Make the environment of a child, with only these settings of the relay.

    The child imports the relay that is installed, which may be compiled, and not its source here.
    """
    kept = {name: os.environ[name] for name in _KEPT if name in os.environ}
    given = {name: str(value) for name, value in settings.items()}
    return {**kept, "JWT_SECRET": SECRET, **given}


async def run_command(
    folder: Path, *arguments: str, **settings: object
) -> subprocess.CompletedProcess[bytes]:
    """Run a command of the relay in a folder until it ends, with any exit code, and return its output."""
    with trio.fail_after(20):
        return await trio.run_process(
            [sys.executable, "-m", "brewos_relay", *arguments],
            cwd=folder,
            env=environment(**settings),
            capture_stdout=True,
            capture_stderr=True,
            check=False,
        )


@asynccontextmanager
async def serve_process(folder: Path, **settings: object) -> AsyncIterator[ProcessServer]:
    """Start `brewos-relay serve` in a folder and wait until it is ready; kill it in the end."""
    async with serve_process_through((), folder, **settings) as server:
        yield server


@asynccontextmanager
async def serve_process_through(
    command: Sequence[str], folder: Path, **settings: object
) -> AsyncIterator[ProcessServer]:
    """Start a server as `serve_process` does, as the only child of a command that runs what follows it."""
    log_file = folder / "server.log"
    with log_file.open("ab") as log:
        process = await trio.lowlevel.open_process(
            [*command, *SERVE],
            cwd=folder,
            env=environment(**settings),
            stdout=subprocess.PIPE,
            stderr=log,
        )
    pid = process.pid
    try:
        with trio.fail_after(20):
            ready = await _read_line(process)
        match = _READY.search(ready)
        assert match, f"no ready line but {ready!r}: {log_file.read_text()}"
        server = ProcessServer(("127.0.0.1", int(match[1])), process, log_file)
        if command:
            pid = server.pid = only_child(process.pid)
        try:
            yield server
        finally:
            server.abort()
    finally:
        if process.returncode is None:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)  # the server: the command ends with it, but not the reverse
        with trio.CancelScope(shield=True, deadline=trio.current_time() + 5):
            await process.wait()
        assert process.stdout is not None
        await trio.aclose_forcefully(process.stdout)


async def _read_line(process: trio.Process) -> str:
    assert process.stdout is not None
    line = b""
    while not line.endswith(b"\n"):
        data = await process.stdout.receive_some(1)
        if not data:
            break
        line += data
    return line.decode()

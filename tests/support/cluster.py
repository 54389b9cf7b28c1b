"""Instances of one cluster, and traffic that shows what their failures interrupt."""

import re
from collections.abc import AsyncIterator, Iterable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from itertools import pairwise
from pathlib import Path
from tempfile import mkdtemp
from typing import Any, Final

import msgspec
import trio

from brewos_relay.auth.secrets import hash_secret
from brewos_relay.registry.database import Database
from brewos_relay.registry.devices import add_devices
from brewos_relay.registry.records import NewDevice
from brewos_relay.server.assembly import open_server
from brewos_relay.settings import DATABASE_FILE, Settings
from brewos_relay.settings.server_limits import ServerLimits
from brewos_relay.vocabulary import now_ms
from support.http_client import ask
from support.process import KEY, SECRET, ProcessServer, Reach, machine_id, serve_process
from support.wire_client import CLOSE, TEXT, Ended, WireClient, text

METRICS_TOKEN: Final = "metrics-of-the-tests"
MIN_AGE_S: Final = 0.2
"""Machines of these tests keep their key if their connection ends after this time."""

_EVERY_S: Final = 0.02


async def start_instances(
    stack: AsyncExitStack, folder: Path, buses: Sequence[str], *, database_url: str = "", **settings: object
) -> list[ProcessServer]:
    """Start an instance for each URL of the bus, all at once. They share a registry.

    It is an SQLite file, or `database_url`. **Owns:** a nursery with a task for each start.
    """
    servers: dict[int, ProcessServer] = {}

    async def start(number: int, bus: str) -> None:
        instance = serve_instance(folder, bus, database_url=database_url, **settings)
        servers[number] = await stack.enter_async_context(instance)

    async with trio.open_nursery() as nursery:
        for number, bus in enumerate(buses):
            nursery.start_soon(start, number, bus)
    return [servers[number] for number in range(len(buses))]


async def open_instances(
    stack: AsyncExitStack, folder: Path, buses: Sequence[str], **limits: float
) -> list[Reach]:
    """Open an instance in this process for each URL of the bus. They share a registry."""
    bounds: dict[str, Any] = {
        "client_rate": 0.0,
        "device_min_age_s": MIN_AGE_S,
        "device_rate": 0.0,
        "drain_s": 0.0,
        "close_s": 0.5,
    }
    servers: list[Reach] = []
    for bus in buses:
        settings = Settings(
            host="127.0.0.1",
            port=0,
            jwt_secret=SECRET,
            data_dir=folder,
            bus=bus,
            metrics_token=METRICS_TOKEN,
            limits=ServerLimits(**(bounds | limits)),
        )
        server = await stack.enter_async_context(open_server(settings))
        servers.append(Reach(server.addresses[0]))
        stack.callback(servers[-1].abort)
    return servers


@asynccontextmanager
async def serve_instance(
    folder: Path, bus: str, *, database_url: str = "", **settings: object
) -> AsyncIterator[ProcessServer]:
    """Start one instance in a subfolder of its own. Kill it in the end."""
    own = Path(mkdtemp(prefix="instance-", dir=folder))
    given = {
        "DATA_DIR": folder,
        "BREWOS_RELAY_BUS": bus,
        "BREWOS_RELAY_CLIENT_RATE": 0,
        "BREWOS_RELAY_DATABASE_URL": database_url,
        "BREWOS_RELAY_DEVICE_MIN_AGE_S": MIN_AGE_S,
        "BREWOS_RELAY_DEVICE_RATE": 0,
        "BREWOS_RELAY_DRAIN_S": 0.1,
        "BREWOS_RELAY_LOG_FORMAT": "json",
        "BREWOS_RELAY_METRICS_TOKEN": METRICS_TOKEN,
    }
    async with serve_process(own, **(given | settings)) as server:
        yield server


def register_machines(folder: Path, numbers: Iterable[int], *, database_url: str = "") -> None:
    """Add machines of these numbers to the registry in a folder or at a URL, with `KEY`."""
    folder.mkdir(exist_ok=True)
    rows = [NewDevice(id=machine_id(number), key_hash=hash_secret(KEY)) for number in numbers]
    with (
        Database.open(database_url or f"sqlite:///{folder / DATABASE_FILE}") as database,
        database.writing() as db,
    ):
        add_devices(db, rows, now_ms=now_ms())


# What an instance tells about itself


async def metric(server: Reach, name: str) -> float:
    """Read a metric without labels of its own from an instance."""
    told = (await ask(server, "GET", "/metrics", token=METRICS_TOKEN)).response.body.decode()
    found = re.search(rf"^brewos_relay_{name}\{{instance=\"[^\"]+\"\}} (\S+)$", told, re.M)
    assert found is not None, f"there is no {name}: {told}"
    return float(found[1])


async def bus_is_connected(server: Reach) -> bool:
    """Tell whether an instance reports that it can reach the bus."""
    return await metric(server, "bus_connected") == 1


async def wait_for_bus(servers: Sequence[Reach], connected: bool) -> float:
    """Wait until all instances report that they can reach the bus, or cannot. Return the seconds waited."""
    began_at = trio.current_time()
    for server in servers:
        while await bus_is_connected(server) is not connected:  # noqa: ASYNC110 - another process
            await trio.sleep(0.05)
    return trio.current_time() - began_at


async def readiness(server: Reach) -> tuple[int, list[str]]:
    """Ask an instance whether it is ready. Return the status, and the problems that it lists as degraded."""
    told = await ask(server, "GET", "/readyz")
    return told.status, told.content.get("degraded", [])


def log_events(server: ProcessServer, part: str) -> list[str]:
    """Return the events in the log of an instance that contain a text."""
    lines = [msgspec.json.decode(line) for line in server.log_file.read_text().splitlines()]
    return [str(line["event"]) for line in lines if part in str(line["event"])]


# Traffic


class Traffic:
    """Numbered messages between a device and its app, in both directions, at regular times.

    `run` lasts until it is cancelled, or until the device's connection ends, which it `may_end`.
    """

    def __init__(self, device: WireClient, app: WireClient, *, may_end: bool = False) -> None:
        self.device = device
        self.app = app
        self._may_end = may_end
        self.sent_at: list[float] = []
        """When the device sent each status (trio time), by number."""
        self.arrived_at: dict[int, float] = {}
        """When each status arrived at the app (trio time), by number."""
        self.order: list[int] = []
        """The numbers of the statuses, as they arrived."""
        self.commanded_at: list[float] = []
        self.executed_at: dict[int, float] = {}
        self.executed: list[int] = []
        """The numbers of the commands that the device got, in order."""
        self.told: list[tuple[float, dict[str, Any]]] = []
        """What else the app was told, and when (trio time)."""

    async def run(self) -> None:
        """Send and receive until cancelled."""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._read_app)
            nursery.start_soon(self._read_device)
            try:
                await self._send()
            except trio.BrokenResourceError:
                if not self._may_end:
                    raise

    async def _send(self) -> None:
        next_at = trio.current_time()
        while True:
            number = len(self.sent_at)
            self.sent_at.append(trio.current_time())
            self.commanded_at.append(trio.current_time())
            await self.device.send(text({"type": "status", "n": number}))
            await self.app.send(text({"type": "command", "cmd": "tare", "n": number}))
            next_at += _EVERY_S
            await trio.sleep_until(next_at)

    async def _read_app(self) -> None:
        while True:
            content = await self.app.read_json()
            if content["type"] == "status" and "n" in content:
                self.order.append(content["n"])
                self.arrived_at.setdefault(content["n"], trio.current_time())
            else:
                self.told.append((trio.current_time(), content))

    async def _read_device(self) -> None:
        try:
            while True:
                message = await self.device.read_message()
                if message.opcode == CLOSE and self._may_end:
                    return
                assert message.opcode == TEXT, message
                content = msgspec.json.decode(message.payload)
                if content["type"] == "command":
                    self.executed.append(content["n"])
                    self.executed_at.setdefault(content["n"], trio.current_time())
        except Ended:
            if not self._may_end:
                raise

    def events(self, since: float = 0.0) -> list[str]:
        """Return the types of what else the app was told since a time, other than errors."""
        return [str(each["type"]) for at, each in self.told if at >= since and each["type"] != "error"]

    def errors(self, since: float = 0.0) -> list[str]:
        """Return the errors that the app was told since a time."""
        return [str(each["error"]) for at, each in self.told if at >= since and each["type"] == "error"]

    async def until_delivered(self, since: float) -> float:
        """Wait until a status and a command that were sent after a time arrive. Return the seconds since it.

        This is the time from `since` to the arrival of the later one.
        """
        while True:
            status = [at for n, at in self.arrived_at.items() if self.sent_at[n] >= since]
            commands = [at for n, at in self.executed_at.items() if self.commanded_at[n] >= since]
            if status and commands:
                return max(min(status), min(commands)) - since
            await trio.sleep(_EVERY_S / 2)

    def slowest_s(self) -> float:
        """Return how long the slowest message took. One that is on its way counts until now."""
        now = trio.current_time()
        return max(
            *(self.arrived_at.get(n, now) - at for n, at in enumerate(self.sent_at)),
            *(self.executed_at.get(n, now) - at for n, at in enumerate(self.commanded_at)),
        )

    def see_order(self) -> None:
        """Check that every status arrived, and that no command did twice, all in order.

        The whole state may have come again, which repeats the last status.
        """
        assert [n for n, after in pairwise(self.order) if after != n] == list(range(max(self.order)))
        assert self.executed
        assert all(n < after for n, after in pairwise(self.executed))

    def see_complete(self) -> None:
        """Check that every message arrived in order, and that nothing else was told."""
        self.see_order()
        assert self.executed == list(range(len(self.executed)))
        assert not self.errors()
        assert set(self.events()) <= {"device_status"}

    def see_no_gap(self, *, within_s: float) -> None:
        """Check that every message arrived once, in order and in time, and that nothing else was told."""
        self.see_complete()
        assert self.order == list(range(len(self.order)))
        assert not self.told
        assert self.slowest_s() < within_s


@asynccontextmanager
async def traffic(device: WireClient, app: WireClient, *, may_end: bool = False) -> AsyncIterator[Traffic]:
    """Exchange messages between a device and its app while the block runs."""
    found = Traffic(device, app, may_end=may_end)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(found.run)
        while not (found.order and found.executed):  # noqa: ASYNC110 - another task receives
            await trio.sleep(_EVERY_S)
        yield found
        nursery.cancel_scope.cancel()


async def connect_device(server: Reach, device_id: str) -> WireClient:
    """Connect a machine that has just sent its first frame, without waiting for anything else."""
    device = await server.upgrade(f"/ws/device?id={device_id}&key={KEY}")
    device.connected = await device.read_json()
    await device.show_life()
    return device


async def online_app(server: Reach, device_id: str) -> WireClient:
    """Connect an app, and wait until it was told that its device is online."""
    app = await server.client(device_id)
    while not app.connected["deviceOnline"]:
        content = await app.read_json()
        if content["type"] == "device_online" or content.get("online") is True:
            break
    return app

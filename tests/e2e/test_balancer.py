"""Three instances behind HAProxy, set up as in `deploy/cluster/haproxy.cfg`."""

import signal
import sys
from collections import Counter
from collections.abc import AsyncIterator, Iterable
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path

import pytest
import trio

from brewos_relay.auth.secrets import hash_secret
from brewos_relay.registry.database import Database
from brewos_relay.registry.devices import add_devices
from brewos_relay.registry.records import NewDevice
from brewos_relay.vocabulary import now_ms
from support.certificates import write_certificate
from support.fronts import HOST, Place, ReverseProxy, TlsWireClient, haproxy_cluster, open_front
from support.ports import free_port
from support.process import KEY, ProcessServer, machine_id, serve_process
from support.redis_server import RedisServer
from support.wire_client import Response, text, upgrade_head

MACHINES = range(1, 61)
INSTANCES = ("relay1", "relay2", "relay3")

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="elsewhere, this computer has no 127.0.0.2")


class Cluster:
    """Three instances that share a registry and a Redis, and the balancer before them."""

    def __init__(self, front: ReverseProxy, servers: dict[str, ProcessServer]) -> None:
        self._front = front
        self.servers = servers
        self._token = servers["relay1"].token()

    async def machine(self, number: int, *, lower: bool = False) -> tuple[str, TlsWireClient]:
        """Connect a machine. Return the instance that it is connected to, too."""
        device_id = machine_id(number).lower() if lower else machine_id(number)
        instance, connection = await self._upgrade(f"/ws/device?id={device_id}&key={KEY}")
        await connection.show_life()
        return instance, connection

    async def app(
        self, number: int, *, path: str = "/ws/client", lower: bool = False
    ) -> tuple[str, TlsWireClient]:
        """Connect an app. Return the instance that it is connected to, too."""
        device_id = machine_id(number).lower() if lower else machine_id(number)
        return await self._upgrade(f"{path}?token={self._token}&device={device_id}")

    async def machines(self, numbers: Iterable[int]) -> dict[int, str]:
        """Connect machines and drop them again; return the instance of each."""
        places = {}
        for number in numbers:
            places[number], connection = await self.machine(number)
            connection.abort()
        return places

    async def fetch(self, path: str) -> Response:
        """Send a request that is for no machine."""
        connection = await self._front.connect()
        response = await connection.ask(f"GET {path} HTTP/1.1\r\nHost: {HOST}\r\n\r\n".encode())
        connection.abort()
        return response

    async def wait_for(self, *instances: str) -> None:
        """Wait until the balancer uses exactly these instances."""
        with trio.fail_after(10):
            while True:
                responses = [await self.fetch("/livez") for _ in range(2 * len(INSTANCES))]
                if {served_by(response) for response in responses} == set(instances):
                    return
                await trio.sleep(0.05)

    async def _upgrade(self, target: str) -> tuple[str, TlsWireClient]:
        connection = await self._front.connect()
        with trio.fail_after(5):
            response = await connection.ask(upgrade_head(target, Host=HOST))
            assert response.status == 101, response
            connection.connected = await connection.read_json()
        return served_by(response), connection


def served_by(response: Response) -> str:
    [instance] = response.header("x-served-by")
    return instance


@asynccontextmanager
async def open_cluster(folder: Path, redis: RedisServer, *, hashes: bool) -> AsyncIterator[Cluster]:
    """Start three instances and the balancer."""
    files = write_certificate(folder, names=[HOST])
    devices = [NewDevice(id=machine_id(n), key_hash=hash_secret(KEY)) for n in MACHINES]
    place = Place(folder, free_port(), 0, files, seconds=120)
    haproxy_cluster(place, [1, 2, 3], hashes=hashes)  # skips the test without HAProxy
    with Database.open(f"sqlite:///{folder}/brewos-relay.db") as database, database.writing() as db:
        add_devices(db, devices, now_ms=now_ms())
    async with AsyncExitStack() as stack:
        servers = {}
        for instance in INSTANCES:
            (folder / instance).mkdir()
            servers[instance] = await stack.enter_async_context(
                serve_process(
                    folder / instance,
                    DATA_DIR=folder,
                    PUBLIC_URL=f"https://{HOST}",
                    BREWOS_RELAY_BUS=redis.url,
                    BREWOS_RELAY_INSTANCE=instance,
                    BREWOS_RELAY_TRUSTED_PROXIES="127.0.0.1",
                    BREWOS_RELAY_DEVICE_MIN_AGE_S=0.1,
                    BREWOS_RELAY_DRAIN_S=1,
                )
            )
        ports = [servers[instance].address[1] for instance in INSTANCES]
        front = await stack.enter_async_context(
            open_front(haproxy_cluster(place, ports, hashes=hashes), place)
        )
        cluster = Cluster(front, servers)
        await cluster.wait_for(*INSTANCES)
        yield cluster


async def exchange(machine: TlsWireClient, app: TlsWireClient) -> None:
    """Send a message each way and see it arrive."""
    with trio.fail_after(5):
        await machine.send(text({"type": "status", "seq": 7}))
        assert (await app.read_until("status"))["seq"] == 7
        await app.send(text({"type": "command", "cmd": "tare"}))
        assert (await machine.read_until("command"))["cmd"] == "tare"


async def test_machine_and_its_apps_use_one_instance(tmp_path: Path, redis: RedisServer) -> None:
    with trio.fail_after(60):
        async with open_cluster(tmp_path, redis, hashes=True) as cluster:
            for number in MACHINES[:12]:
                instance, machine = await cluster.machine(number)
                apps = [
                    await cluster.app(number),
                    await cluster.app(number, path="/ws"),
                    await cluster.app(number, lower=True),
                ]
                assert {place for place, _ in apps} == {instance}
                await exchange(machine, apps[0][1])
            again, _ = await cluster.machine(1, lower=True)
            assert again == (await cluster.app(1))[0]
            # Requests that are for no machine are distributed among all instances.
            assert {served_by(await cluster.fetch("/api/health")) for _ in range(12)} == set(INSTANCES)


async def test_instance_that_leaves_moves_its_own_share_only(tmp_path: Path, redis: RedisServer) -> None:
    with trio.fail_after(90):
        async with open_cluster(tmp_path, redis, hashes=True) as cluster:
            before = await cluster.machines(MACHINES)
            shares = Counter(before.values())
            assert set(shares) == set(INSTANCES)
            assert min(shares.values()) >= len(MACHINES) / 6, shares  # of a third

            stayed = {place: await cluster.machine(number) for number, place in before.items()}
            cluster.servers["relay2"].send_signal(signal.SIGTERM)
            assert (await stayed["relay2"][1].read_close())[0] == 1012
            await cluster.wait_for("relay1", "relay3")
            after = await cluster.machines(MACHINES)
            for number, place in after.items():
                assert place == before[number] if before[number] != "relay2" else place != "relay2"
            moved = Counter(after[number] for number in MACHINES if before[number] == "relay2")
            assert set(moved) == {"relay1", "relay3"}

            killed = cluster.servers["relay1"]
            killed.send_signal(signal.SIGKILL)
            await killed.wait(within_s=5)
            # The balancer may not have noticed it yet, but tries another instance.
            number = next(number for number in MACHINES if after[number] == "relay1")
            place, machine = await cluster.machine(number)
            assert place == "relay3"
            place, app = await cluster.app(number)
            assert place == "relay3"
            await exchange(machine, app)


async def test_machine_and_app_on_different_instances_work(tmp_path: Path, redis: RedisServer) -> None:
    with trio.fail_after(60):
        async with open_cluster(tmp_path, redis, hashes=False) as cluster:
            crossed = 0
            for number in MACHINES[:6]:
                there, machine = await cluster.machine(number)
                here, app = await cluster.app(number)
                crossed += here != there
                await exchange(machine, app)
            assert crossed > 0

"""The real process, with a small fleet: machines, apps, one that is killed and one that freezes."""

import json
import math
import secrets
import signal
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

import msgspec
import trio

from support.load import measured_delay
from support.process import ProcessServer, machine_id, run_command, serve_process
from support.wire_client import BINARY, CLOSE, TEXT, Ended, WireClient, close, packed, text, upgrade_head

MESSAGES = 400
COMMANDS = 60
BATCH = 20
KILLED_AFTER = 150
STALL_S = 2.0
MIN_AGE_S = 1.0
DRAIN_S = 0.4
SLOWEST_S = 1.0

MACHINES = {machine_id(n): secrets.token_urlsafe(32) for n in range(1, 5)}
LOUD, SECOND, THIRD, LATE = MACHINES


async def import_machines(folder: Path) -> None:
    rows = [f"{id_},{key},Machine {n}" for n, (id_, key) in enumerate(MACHINES.items())]
    (folder / "machines.csv").write_text("\n".join(["id,key,name", *rows, ""]))
    done = await run_command(folder, "device", "import", "machines.csv")
    assert done.returncode == 0, done.stderr


@dataclass
class App:
    """An app of a machine, and the numbers of the messages that it got."""

    number: int
    connection: WireClient
    got: list[int] = field(default_factory=list)

    async def read(
        self, *, until: int = MESSAGES, batches: trio.MemorySendChannel[None] | None = None
    ) -> None:
        """Read that many messages, and say so after each batch."""
        while len(self.got) < until:
            self.got.append(number_in(await self.connection.read_message()))
            if batches is not None and len(self.got) % BATCH == 0:
                batches.send_nowait(None)

    async def command(self, count: int = COMMANDS) -> None:
        for n in range(count):
            await self.connection.send(text({"type": "command", "cmd": "x", "app": self.number, "n": n}))
            if n % 7 == 0:
                await trio.sleep(0.005)


def numbered(n: int, *, padding: int) -> bytes:
    content = {"type": "status", "n": n, "pad": "x" * padding}
    return packed(content) if n % 2 else text(content)


def number_in(found: tuple[int, int, bytes]) -> int:
    """Give the number of a message, once it has been looked at closely."""
    first, _, payload = found
    if first == 0x80 | BINARY:
        content = msgspec.msgpack.decode(payload)
    else:
        assert first == 0x80 | TEXT
        content = msgspec.json.decode(payload)
    number = content["n"]
    assert isinstance(number, int)
    assert first == 0x80 | (BINARY if number % 2 else TEXT)
    return number


class Machine:
    """A machine that reports numbered messages, and keeps the commands that it gets."""

    def __init__(self, device_id: str, connection: WireClient, readers: int, *, padding: int) -> None:
        self.device_id = device_id
        self.connection = connection
        self.commands: dict[int, list[int]] = {}
        self.slowest_s = 0.0
        self._padding = padding
        self._readers = readers
        self.on_batch, self._batches = trio.open_memory_channel[None](math.inf)

    async def report(self) -> None:
        """Send the messages in batches, each when all who read have had the one before."""
        for start in range(0, MESSAGES, BATCH):
            began = trio.current_time()
            for n in range(start, start + BATCH):
                await self.connection.send(numbered(n, padding=self._padding))
            for _ in range(self._readers):
                await self._batches.receive()
            self.slowest_s = max(self.slowest_s, trio.current_time() - began)

    async def listen(self) -> None:
        while True:
            command = await self.connection.read_json()
            assert command["type"] == "command"
            self.commands.setdefault(command["app"], []).append(command["n"])

    async def wait_for_commands(self, apps: Sequence[App]) -> None:
        while not all(len(self.commands.get(app.number, [])) == COMMANDS for app in apps):  # noqa: ASYNC110
            await trio.sleep(0.01)


async def test_every_message_arrives_once_and_in_order(tmp_path: Path) -> None:
    with trio.fail_after(40):
        await import_machines(tmp_path)
        settings = {
            "BREWOS_RELAY_CLIENT_RATE": 0,
            "BREWOS_RELAY_DEVICE_MIN_AGE_S": MIN_AGE_S,
            "BREWOS_RELAY_DEVICE_RATE": 0,
            "BREWOS_RELAY_DRAIN_S": DRAIN_S,
            "BREWOS_RELAY_STALL_S": STALL_S,
        }
        async with serve_process(tmp_path, **settings) as server:
            machines, apps, killed, frozen = await connect_fleet(server)
            await run_fleet(machines, apps, killed)
            await see_frozen_left_behind(frozen)
            await see_all_leave(server, machines, apps)
            log = server.log_file.read_text()
            assert "Traceback" not in log
            assert not any(secret in log for secret in (*MACHINES.values(), "key=", "token="))


async def connect_fleet(server: ProcessServer) -> tuple[list[Machine], dict[str, list[App]], App, App]:
    """Connect three machines and ten apps; the first machine has two more apps that will not behave."""
    numbers = iter(range(10))
    apps: dict[str, list[App]] = {}
    machines = []
    for device_id, readers, padding in ((LOUD, 2, 12_000), (SECOND, 3, 300), (THIRD, 3, 10)):
        connection = await server.device(device_id, key=MACHINES[device_id])
        machines.append(Machine(device_id, connection, readers, padding=padding))
        apps[device_id] = [App(next(numbers), await server.client(device_id)) for _ in range(readers)]
    killed = App(next(numbers), await server.client(LOUD))
    frozen = App(next(numbers), await server.client(LOUD, receive_buffer_bytes=2048))
    assert all(app.connection.connected["deviceOnline"] for app in (*apps[LOUD], killed, frozen))
    return machines, apps, killed, frozen


async def run_fleet(machines: list[Machine], apps: dict[str, list[App]], killed: App) -> None:
    async def read_a_while_and_die() -> None:
        await killed.read(until=KILLED_AFTER)
        killed.connection.abort()

    async with trio.open_nursery() as listening:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(read_a_while_and_die)
            nursery.start_soon(killed.command, 10)
            for machine in machines:
                listening.start_soon(machine.listen)
                nursery.start_soon(machine.report)
                for app in apps[machine.device_id]:
                    nursery.start_soon(app.command)

                    async def read(app: App = app, machine: Machine = machine) -> None:
                        await app.read(batches=machine.on_batch)

                    nursery.start_soon(read)
        for machine in machines:
            await machine.wait_for_commands(apps[machine.device_id])
        listening.cancel_scope.cancel()
    for machine in machines:
        assert all(app.got == list(range(MESSAGES)) for app in apps[machine.device_id])
        numbers = {app.number for app in apps[machine.device_id]} | (
            {killed.number} if machine.device_id == LOUD else set()
        )
        assert set(machine.commands) == numbers
        assert all(got == list(range(len(got))) for got in machine.commands.values())
        assert machine.slowest_s < SLOWEST_S
    assert killed.got == list(range(KILLED_AFTER))


async def see_frozen_left_behind(frozen: App) -> None:
    """Check that the frozen app got some messages, in order, and then its end or the latest message."""
    await trio.sleep(STALL_S)
    with trio.fail_after(5), suppress(Ended):
        while True:
            found = await frozen.connection.read_message()
            if found.opcode == CLOSE or b'"device_status"' in found.payload:
                break
            frozen.got.append(number_in(found))
    assert frozen.got == sorted(set(frozen.got))
    assert 0 < len(frozen.got) < MESSAGES


async def see_all_leave(server: ProcessServer, machines: list[Machine], apps: dict[str, list[App]]) -> None:
    """Drain the server, and check that every peer is told to reconnect, a young machine not too early."""
    young = await server.device(LATE, key=MACHINES[LATE])
    came_at = trio.current_time()
    server.send_signal(signal.SIGTERM)
    asked_at = trio.current_time()
    left_s: list[float] = []

    async def see_close(connection: WireClient) -> None:
        assert (await connection.read_close())[0] == 1012
        left_s.append(trio.current_time() - asked_at)
        await connection.send(close(1000))
        await connection.send_eof()
        assert await connection.read_to_end() == b""

    async def come_too_late() -> None:
        with trio.move_on_after(MIN_AGE_S / 2):
            while True:
                connection = await server.connect()
                target = f"/ws/device?id={LATE}&key={MACHINES[LATE]}"
                response = await connection.ask(upgrade_head(target))
                if response.status == 503:
                    assert response.header("retry-after")
                    return
        raise AssertionError("a server that leaves takes machines on")

    async with measured_delay() as delay, trio.open_nursery() as nursery:
        for machine in machines:
            nursery.start_soon(see_close, machine.connection)
            for app in apps[machine.device_id]:
                nursery.start_soon(see_close, app.connection)
        nursery.start_soon(come_too_late)
    assert max(left_s) < MIN_AGE_S * 0.8 + delay.since(asked_at)
    await see_close(young)
    assert trio.current_time() - came_at >= MIN_AGE_S * 0.98
    assert await server.wait(within_s=3) == 0


async def test_an_empty_server_leaves_at_once(tmp_path: Path) -> None:
    async with serve_process(tmp_path) as server:
        server.send_signal(signal.SIGINT)
        assert await server.wait(within_s=2) == 0
        assert "Traceback" not in server.log_file.read_text()


async def test_registrations_survive_a_kill(tmp_path: Path) -> None:
    with trio.fail_after(40):
        async with serve_process(tmp_path) as server:
            await import_machines(tmp_path)
            for device_id, key in MACHINES.items():
                await server.device(device_id, key=key)
            server.process.kill()
            await server.wait(within_s=2)
        listed = await run_command(tmp_path, "device", "list", "--json")
        assert [device["id"] for device in json.loads(listed.stdout)] == list(MACHINES)
        async with serve_process(tmp_path) as server:
            for device_id, key in MACHINES.items():
                await server.device(device_id, key=key)
            server.process.kill()
            await server.wait(within_s=2)

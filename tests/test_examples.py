import importlib.util
import json
import os
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any

import msgspec
import pytest
import trio
from trio.testing import MockClock
from trio_websocket import (
    ConnectionClosed,
    ConnectionRejected,
    WebSocketConnection,
    WebSocketServer,
    wrap_client_stream,
)

from brewos_relay import Limits
from brewos_relay.client import Command, KeyStore, open_app
from support.kitchen import open_kitchen
from support.ports import free_port
from support.process import machine_id, serve_here
from support.relay_here import token as kitchen_token
from support.waiting import until as _until

EXAMPLES = Path(__file__).parent.parent / "examples"
CHILD_S = 20
TEST_S = 10
MACHINE = machine_id(7)


def _example(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, EXAMPLES / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_every_example_is_tested_here() -> None:
    assert {path.stem for path in EXAMPLES.glob("*.py")} == {
        *("bot", "bridge", "import_devices"),
        *("core_in_memory", "embedded_in_trio_websocket", "other_device"),
    }


def test_core_in_memory() -> None:
    child = subprocess.run(
        [sys.executable, "-W", "error", EXAMPLES / "core_in_memory.py"],
        capture_output=True,
        encoding="utf-8",
        env=_environment(),
        timeout=CHILD_S,
        check=False,
    )
    assert child.stderr == ""
    assert child.stdout.splitlines() == [
        "app 0 sees 93.1 °C",
        "app 1 sees 93.1 °C",
        "the machine receives: set_mode on",
    ]
    assert child.returncode == 0


def test_other_device() -> None:
    child = subprocess.run(
        [sys.executable, "-W", "error", EXAMPLES / "other_device.py"],
        capture_output=True,
        encoding="utf-8",
        env=_environment(),
        timeout=CHILD_S,
        check=False,
    )
    assert (child.stderr, child.returncode) == ("", 0)
    said = dict(line.split(": ", 1) for line in child.stdout.splitlines())
    climate = json.loads(said["a new app receives"])
    assert climate == {"type": "climate", "seq": 2, "air": {"celsius": 22, "humidity": 60}}
    assert json.loads(said["the greenhouse receives"])["cmd"] == "water"
    assert json.loads(said["a member may not calibrate"])["error"] == "forbidden"
    assert json.loads(said["the greenhouse is offline"])["messageQueued"] is True
    assert json.loads(said["it comes back and receives"])["cmd"] == "set_window"


def _environment() -> dict[str, str]:
    return {**os.environ, "PYTHONIOENCODING": "utf-8"}


class Embedded:
    """The embedding server, and connections to it."""

    def __init__(self, port: int) -> None:
        self.port = port

    @asynccontextmanager
    async def connect(self, path: str) -> AsyncIterator[WebSocketConnection]:
        """Open a WebSocket to the server; leaving the block closes it."""
        stream = await trio.open_tcp_stream("127.0.0.1", self.port)
        async with stream, trio.open_nursery() as nursery:
            connection = await wrap_client_stream(nursery, stream, f"127.0.0.1:{self.port}", path)
            async with connection:
                yield connection


@asynccontextmanager
async def _open_embedded(**limits: Any) -> AsyncIterator[Embedded]:
    """Run the example's server on a free port until the block is left."""
    example = _example("embedded_in_trio_websocket")
    with trio.fail_after(TEST_S):
        async with trio.open_nursery() as nursery:
            server: WebSocketServer = await nursery.start(partial(example.serve, 0, limits=Limits(**limits)))
            yield Embedded(server.port)
            nursery.cancel_scope.cancel()


async def _receive(connection: WebSocketConnection) -> Any:
    message = await connection.get_message()
    return msgspec.json.decode(message) if isinstance(message, str) else msgspec.msgpack.decode(message)


async def _receive_types(connection: WebSocketConnection, count: int) -> list[str]:
    return [(await _receive(connection))["type"] for _ in range(count)]


async def test_embedded_device_and_apps_exchange_messages() -> None:
    async with (
        _open_embedded() as embedded,
        embedded.connect("/app/BRW-00000001") as first,
        embedded.connect("/app/BRW-00000001") as second,
        embedded.connect("/app/BRW-00000002") as elsewhere,
    ):
        for app in (first, second, elsewhere):
            greeting = await _receive(app)
            assert (greeting["type"], greeting["deviceOnline"]) == ("connected", False)
        async with embedded.connect("/device/BRW-00000001") as device:
            assert await _receive_types(device, 2) == ["connected", "request_state"]
            status = '{ "type": "status",  "temp": 93.10 }'
            delta = msgspec.msgpack.encode({"type": "status_delta"})
            await device.send_message(status)
            await device.send_message(delta)
            for app in (first, second):
                assert await _receive_types(app, 1) == ["device_online"]
                assert await app.get_message() == status
                assert await app.get_message() == delta
            command = '{"type":"command", "cmd":"set_mode"}'
            await first.send_message(command)
            assert await device.get_message() == command
            await second.send_message(msgspec.msgpack.encode({"type": "command", "cmd": "tare"}))
            assert await device.get_message() == '{"type":"command","cmd":"tare"}'
        for app in (first, second):
            assert await _receive_types(app, 1) == ["device_offline"]
        await elsewhere.send_message('{"type":"request_state"}')
        assert await _receive_types(elsewhere, 1) == ["device_status"]


async def test_embedded_device_is_replaced_by_a_newer_connection() -> None:
    async with (
        _open_embedded(device_min_age_s=0.01) as embedded,
        embedded.connect("/app/BRW-00000001") as app,
        embedded.connect("/device/BRW-00000001") as old,
    ):
        assert await _receive_types(app, 2) == ["connected", "device_online"]
        await trio.sleep(0.02)
        async with embedded.connect("/device/BRW-00000001") as new:
            assert await _receive_types(new, 2) == ["connected", "request_state"]
            assert await _receive_types(old, 2) == ["connected", "request_state"]
            with pytest.raises(ConnectionClosed) as closed:
                await old.get_message()
            assert closed.value.reason is not None
            assert closed.value.reason.code == 4002


async def test_embedded_server_survives_a_path_that_it_does_not_serve() -> None:
    async with _open_embedded() as embedded:
        for path in ("/", "/app/BRW-00000001/x"):
            with pytest.RaisesGroup(ConnectionRejected, allow_unwrapped=True, flatten_subgroups=True):
                async with embedded.connect(path) as lost:
                    await lost.get_message()
        async with embedded.connect("/app/BRW-00000001") as app:
            assert await _receive_types(app, 1) == ["connected"]


# A bridge


async def _datagrams() -> trio.socket.SocketType:
    socket = trio.socket.socket(type=trio.socket.SOCK_DGRAM)
    await socket.bind(("127.0.0.1", 0))
    return socket


async def test_bridge_reports_readings_and_forwards_commands(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bridge = _example("bridge")
    port = free_port()
    async with serve_here(tmp_path, within_s=TEST_S) as server:
        url = f"http://127.0.0.1:{server.address[1]}"
        with await _datagrams() as sensor:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(bridge.main, url, MACHINE, str(tmp_path / "key.json"), port)
                async with open_app(url, server.token(), MACHINE) as app:
                    await _until(lambda: server.server.relay.is_online(MACHINE))
                    await sensor.sendto(b"nonsense", ("127.0.0.1", port))
                    await sensor.sendto(b'{"brew":92.8,"on":true,"other":1}', ("127.0.0.1", port))
                    status = (await app.state()).status
                    assert status["temps"]["brew"] == {"current": 92.8, "setpoint": 93.0}
                    assert status["machine"]["mode"] == "on"
                    assert (await app.command("set_temp", boiler="brew", temp=94.5)).delivered
                    assert msgspec.json.decode(await sensor.recv(100)) == {"set": "brew", "to": 94.5}
                    assert (await app.command("set_mode", mode="standby")).delivered
                    assert msgspec.json.decode(await sensor.recv(100)) == {"set": "on", "to": False}
                    await app.command("set_temp")
                    await app.command("tare")
                    said: list[str] = []
                    while len(said) < 4:
                        message = await anext(app)
                        if message["type"] == "log":
                            said.append(message["message"])
                assert said == [
                    "set_temp: forwarded",
                    "set_mode: forwarded",
                    "set_temp: invalid fields",
                    "tare: not supported by this machine",
                ]
                nursery.cancel_scope.cancel()
    printed = capsys.readouterr().out
    assert f"{url}/pair?id={MACHINE}&token=" in printed
    assert "connected" in printed


async def test_bridge_reports_a_command_before_the_first_reading(tmp_path: Path) -> None:
    bridge = _example("bridge")
    with await _datagrams() as socket:
        machine = bridge.Machine(socket)
        told = Command("command", "set_mode", {"mode": "on"}, 0.0)
        assert "no reading received yet" in await machine.obey(told)


# A bot


async def test_bot_switches_off_a_machine_that_was_on_for_too_long(
    autojump_clock: MockClock, capsys: pytest.CaptureFixture[str]
) -> None:
    bot = _example("bot")
    on = {"state": "ready", "mode": "on"}
    off = {"state": "idle", "mode": "standby"}
    async with open_kitchen() as kitchen:
        device = kitchen.device()
        await trio.sleep(20)

        def told() -> list[str]:
            return [message["mode"] for message in device.received if message.get("cmd") == "set_mode"]

        url = f"http://127.0.0.1:{kitchen.here.address[1]}"
        async with open_app(url, kitchen_token(), device.device_id) as app, trio.open_nursery() as nursery:
            nursery.start_soon(partial(bot.watch, app, after_s=600))
            await trio.sleep(1000)
            device.change(machine=on)
            await trio.sleep(500)
            device.change(machine=off)
            await trio.sleep(500)
            assert told() == []
            device.change(machine=on)
            await trio.sleep(590)
            assert told() == []
            await trio.sleep(20)
            assert told() == ["standby"]
            await trio.sleep(61)
            assert told() == ["standby", "standby"]  # it is still on
            device.change(machine=off)
            await trio.sleep(1000)
            assert told() == ["standby", "standby"]
            nursery.cancel_scope.cancel()
    assert "switching it off: delivered" in capsys.readouterr().out


# A bulk importer


def _run(*arguments: str | Path, status: int = 0) -> str:
    child = subprocess.run(
        [sys.executable, "-W", "error", *arguments],
        capture_output=True,
        encoding="utf-8",
        env=_environment(),
        timeout=CHILD_S,
        check=False,
    )
    assert child.returncode == status, child.stderr
    return child.stdout + child.stderr


def test_import_devices_writes_a_file_that_the_relay_accepts(tmp_path: Path) -> None:
    inventory, out, data = tmp_path / "inventory.csv", tmp_path / "out", tmp_path / "data"
    inventory.write_text('name,user,id\nKitchen,ada,brw-0000000a\nOffice,"ada;grace",\n', "utf-8")
    for _ in range(2):
        said = _run(EXAMPLES / "import_devices.py", inventory, out)
        assert said == f"2 devices in {out / 'devices.csv'}\n"
        made = (out / "devices.csv").read_text()
    inventory.write_text(
        "name,user,id\nCellar,,\n" + inventory.read_text("utf-8").partition("\n")[2], "utf-8"
    )
    _run(EXAMPLES / "import_devices.py", inventory, out)
    rows = (out / "devices.csv").read_text().splitlines()
    assert set(made.splitlines()) < set(rows)
    assert (out / "devices.csv").stat().st_mode & 0o777 == 0o600
    for row in rows[1:]:
        device_id, key = row.split(",")[:2]
        assert KeyStore(out / f"{device_id}.json").load().key == key
    options = ("-m", "brewos_relay", "device")
    _run(*options, "import", out / "devices.csv", "--data-dir", data)
    listed = _run(*options, "list", "--data-dir", data)
    assert all(name in listed for name in ("BRW-0000000A", "Kitchen", "Office", "Cellar"))


@pytest.mark.parametrize("inventory", ["name,user\n,ada\n", "id,name\nkitchen,Kitchen\n"])
def test_import_devices_names_the_error(tmp_path: Path, inventory: str) -> None:
    (tmp_path / "inventory.csv").write_text(inventory)
    said = _run(EXAMPLES / "import_devices.py", tmp_path / "inventory.csv", tmp_path / "out", status=1)
    assert said.startswith("import_devices: ")
    assert len(said.splitlines()) == 1

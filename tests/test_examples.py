import importlib.util
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
from trio_websocket import (
    ConnectionClosed,
    ConnectionRejected,
    WebSocketConnection,
    WebSocketServer,
    wrap_client_stream,
)

from brewos_relay import Limits

EXAMPLES = Path(__file__).parent.parent / "examples"
CHILD_S = 20
TEST_S = 10


def _example(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, EXAMPLES / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_every_example_is_tested_here() -> None:
    assert {path.stem for path in EXAMPLES.glob("*.py")} == {"core_in_memory", "embedded_in_trio_websocket"}


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
        "the machine is told: set_mode on",
    ]
    assert child.returncode == 0


def _environment() -> dict[str, str]:
    return {**os.environ, "PYTHONIOENCODING": "utf-8"}


class Embedded:
    """The embedding server, and ways to talk to it."""

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

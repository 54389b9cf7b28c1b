import dataclasses
import gc
import os
import signal
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import trio

from brewos_relay.auth.keys import hash_key
from brewos_relay.core.limits import Limits
from brewos_relay.errors import RegistryError, SettingsError
from brewos_relay.registry.database import Database
from brewos_relay.registry.records import NewDevice
from brewos_relay.server.run import Server, open_server
from brewos_relay.settings import Settings
from support.process import (
    KEY,
    SECRET,
    Reach,
    machine_id,
    run_command,
    serve_here,
    serve_process,
)
from support.wire_client import WireClient, close, text

MACHINE = machine_id(1)


def settings(folder: Path, *, host: str = "127.0.0.1", port: int = 0, **more: str) -> Settings:
    return Settings(**{"host": host, "port": port, "jwt_secret": SECRET, "data_dir": folder, **more})  # type: ignore[arg-type]


async def test_a_port_of_its_own_choice(tmp_path: Path) -> None:
    with trio.fail_after(5):
        async with open_server(settings(tmp_path)) as server:
            [(host, port)] = server.addresses
            assert host == "127.0.0.1"
            assert port > 0
            assert server.url == f"http://127.0.0.1:{port}"


async def test_all_interfaces(tmp_path: Path) -> None:
    with trio.fail_after(5):
        async with open_server(settings(tmp_path, host="")) as server:
            connection = await WireClient.connect(("127.0.0.1", server.addresses[0][1]))
            assert (await connection.ask(b"GET /api/health HTTP/1.1\r\nHost: a\r\n\r\n")).status == 200
            connection.abort()


@pytest.mark.parametrize(
    ("address", "url"),
    [
        ("127.0.0.1", "http://127.0.0.1:80"),
        ("0.0.0.0", "http://127.0.0.1:80"),
        ("::", "http://[::1]:80"),
        ("fe80::1", "http://[fe80::1]:80"),
    ],
)
async def test_url(tmp_path: Path, address: str, url: str) -> None:
    async with serve_here(tmp_path) as here:
        assert Server([(address, 80)], here.server.relay, here.server.store).url == url


async def test_a_port_in_use(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        chosen = settings(tmp_path, port=taken.getsockname()[1])
        with pytest.raises(OSError, match="in use"):
            async with open_server(chosen):
                pass


@pytest.mark.parametrize("secret", ["", "short"])
async def test_no_secret(tmp_path: Path, secret: str) -> None:
    with pytest.raises(SettingsError, match="brewos-relay secret"):
        async with open_server(settings(tmp_path, jwt_secret=secret)):
            pass


async def test_no_registry(tmp_path: Path) -> None:
    with pytest.raises((RegistryError, ExceptionGroup)):
        async with open_server(settings(tmp_path, database_url="nonsense")):
            pass


async def test_what_the_block_raises_comes_out_and_the_port_is_free_again(tmp_path: Path) -> None:
    async def fail() -> None:
        async with open_server(settings(tmp_path)) as server:
            ports.append(server.addresses[0][1])
            raise ZeroDivisionError

    ports: list[int] = []
    with trio.fail_after(5):
        with pytest.raises(ExceptionGroup) as raised:
            await fail()
        assert raised.value.split(ZeroDivisionError)[1] is None
        async with open_server(settings(tmp_path, port=ports[0])):
            pass


@asynccontextmanager
async def leaving(folder: Path, **limits: float) -> AsyncIterator[tuple[Reach, trio.Event]]:
    """Open a server that leaves once the event is set."""
    with Database.open(settings(folder).resolved_database_url()) as database:
        database.add_devices([NewDevice(id=MACHINE, key_hash=hash_key(KEY))])
    chosen = dataclasses.replace(settings(folder), limits=Limits(**{"drain_s": 0.0, **limits}))  # type: ignore[arg-type]
    leave = trio.Event()

    async def serve(task_status: trio.TaskStatus[Server]) -> None:
        async with open_server(chosen) as server:
            task_status.started(server)
            await leave.wait()

    with trio.fail_after(8):
        async with trio.open_nursery() as nursery:
            reach = Reach((await nursery.start(serve)).addresses[0])
            yield reach, leave
        reach.abort()


async def test_leaving_says_goodbye_to_everybody(tmp_path: Path) -> None:
    async with leaving(tmp_path, device_min_age_s=0.1) as (reach, leave):
        peers = await reach.client(MACHINE), await reach.device(MACHINE)
        leave.set()
        for peer in peers:
            assert (await peer.read_close())[0] == 1012
            await peer.send(close(1000))
            await peer.send_eof()
            assert await peer.read_to_end() == b""


async def test_leaving_does_not_wait_for_answers_for_ever(tmp_path: Path) -> None:
    async with leaving(tmp_path, device_min_age_s=0.1, close_s=0.2) as (reach, leave):
        await reach.client(MACHINE)
        await reach.device(MACHINE)
        began = trio.current_time()
        leave.set()
    assert trio.current_time() - began < 2


async def test_leaving_does_not_wait_for_those_who_read_nothing(tmp_path: Path) -> None:
    async with leaving(tmp_path, device_min_age_s=0.1, close_s=0.2) as (reach, leave):
        device = await reach.device(MACHINE)
        await reach.client(MACHINE, receive_buffer_bytes=2048)
        for _ in range(500):
            await device.send(text({"type": "status", "pad": "x" * 12_000}))
        began = trio.current_time()
        leave.set()
    assert trio.current_time() - began < 2


async def test_a_young_machine_is_more_important_than_leaving_soon(tmp_path: Path) -> None:
    async with leaving(tmp_path, device_min_age_s=0.6, close_s=0.1, drain_s=0.1) as (reach, leave):
        began = trio.current_time()
        device = await reach.device(MACHINE)
        leave.set()
        assert (await device.read_close())[0] == 1012
        assert trio.current_time() - began >= 0.6


@pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="needs /proc")
async def test_no_file_is_left_open(tmp_path: Path) -> None:
    def open_files() -> int:
        gc.collect()
        return len(os.listdir("/proc/self/fd"))  # noqa: PTH208

    before = None
    for folder in ("one", "two"):  # the first one opens what stays
        (tmp_path / folder).mkdir()
        async with serve_here(tmp_path / folder, close_s=0.2, machines=range(1, 11)) as here:
            for number in range(1, 11):
                await here.device(machine_id(number))
                await here.client(MACHINE)
                await here.client(MACHINE, token=here.token([MACHINE]))
                await (await here.connect()).send(b"GET /api/health HTTP/1.1\r\nHost: a\r\n\r\n")
                await (await here.connect()).send(b"\xff")
                await (await here.connect()).send(b"GET")
        if before is None:
            before = open_files()
    assert open_files() == before


# The process


async def test_the_ready_line_and_the_exit(tmp_path: Path) -> None:
    with trio.fail_after(20):
        async with serve_process(tmp_path) as server:
            connection = await server.connect()
            assert (await connection.ask(b"GET /api/health HTTP/1.1\r\nHost: a\r\n\r\n")).status == 200
            server.send_signal(signal.SIGTERM)
            assert await server.wait(within_s=3) == 0


BAD_SETTINGS = {
    "no secret": ({"JWT_SECRET": ""}, "brewos-relay secret"),
    "short secret": ({"JWT_SECRET": "short"}, "brewos-relay secret"),
    "limit": ({"BREWOS_RELAY_STALL_S": "soon"}, "BREWOS_RELAY_STALL_S"),
    "port": ({"PORT": "http"}, "PORT"),
    "database": ({"BREWOS_RELAY_DATABASE_URL": "nonsense"}, "database"),
    "data folder": ({"DATA_DIR": "/dev/null/data"}, "/dev/null"),
    "web app": ({"WEB_DIST_PATH": "/nowhere/dist"}, "/nowhere/dist"),
    "host": ({"BREWOS_RELAY_HOST": "300.300.300.300"}, "--host"),
}


@pytest.mark.parametrize(("environ", "named"), BAD_SETTINGS.values(), ids=BAD_SETTINGS)
async def test_settings_that_make_no_sense_are_exit_code_3(
    tmp_path: Path, environ: dict[str, str], named: str
) -> None:
    done = await run_command(tmp_path, "serve", **{"PORT": "0", **environ})
    assert done.returncode == 3
    assert done.stdout == b""
    assert named in done.stderr.decode()
    assert len(done.stderr.splitlines()) == 1


async def test_a_port_in_use_is_exit_code_3(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        done = await run_command(tmp_path, "serve", "--host", "127.0.0.1", "--port", port)
    assert done.returncode == 3
    assert b"in use" in done.stderr
    assert len(done.stderr.splitlines()) == 1


async def test_no_secret_gets_into_the_log(tmp_path: Path) -> None:
    with trio.fail_after(20):
        added = await run_command(tmp_path, "device", "add", MACHINE, "--key", KEY)
        assert added.returncode == 0
        async with serve_process(
            tmp_path,
            BREWOS_RELAY_LOG_LEVEL="debug",
            BREWOS_RELAY_DEVICE_MIN_AGE_S=0.1,
            BREWOS_RELAY_DRAIN_S=0.1,
        ) as server:
            token = server.token()
            await server.client(MACHINE)
            await server.device(MACHINE)
            for path in (f"/?token={token}", f"/api/x?token={token}", f"/ws/other?token={token}&key={KEY}"):
                request = f"GET {path} HTTP/1.1\r\nHost: a\r\nAuthorization: Bearer {token}\r\n\r\n"
                await (await server.connect()).ask(request.encode())
            bad = f"GET /ws/device?id={MACHINE}&key={KEY}&token={token} HTTP/1.1\r\nHost: \0\r\n\r\n"
            assert (await (await server.connect()).ask(bad.encode())).status == 400
            server.send_signal(signal.SIGTERM)
            assert await server.wait(within_s=4) == 0
            log = server.log_file.read_text()
    assert log
    assert not [secret for secret in (KEY, token, SECRET, "key=", "token=") if secret in log]


def test_limits_have_defaults_that_a_machine_survives() -> None:
    assert Limits().device_min_age_s >= 8
    assert Limits().admission_s < 5
    assert Limits().client_message_bytes <= 4096

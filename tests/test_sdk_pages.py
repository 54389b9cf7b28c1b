"""The programs on the pages about `brewos_relay.client` print their documented output."""

import re
import subprocess
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Final

import msgspec
import pytest
import trio

from brewos_relay.auth.secrets import hash_secret
from brewos_relay.client.key_store import write_private
from brewos_relay.registry.access import give
from brewos_relay.registry.accounts import add_user
from brewos_relay.registry.database import Database
from brewos_relay.registry.invites import add_invite
from brewos_relay.settings import Settings
from brewos_relay.vocabulary import now_ms
from support.process import KEY, HereServer, environment, machine_id, serve_here
from support.waiting import until
from support.wire_client import Ended, WireClient, text

PAGES: Final = Path(__file__).parents[1] / "docs" / "how-to"
NUMBER: Final = 0x12AB34CD
DEVICE_ID: Final = machine_id(NUMBER)
URL: Final = "http://127.0.0.1:3001"
WITHIN_S: Final = 20.0
_PROGRAM: Final = re.compile(r"^```python\n(.*?)^```\n(?:\n```text\n(.*?)^```\n)?", re.M | re.S)

Beside = Callable[[HereServer], Awaitable[None]]


def programs(page: str) -> list[tuple[str, str | None]]:
    """Return the programs of a page, each with its documented output if there is one."""
    found = _PROGRAM.findall((PAGES / f"{page}.md").read_text("utf-8"))
    return [(code, printed or None) for code, printed in found]


@asynccontextmanager
async def kitchen(folder: Path) -> AsyncIterator[HereServer]:
    """Open a relay with the machine of the pages, whose key is in the folder."""
    write_private(folder / "key.json", msgspec.json.encode({"key": KEY}))
    async with serve_here(folder, machines=[NUMBER], within_s=WITHIN_S) as server:
        yield server


async def run(server: HereServer, folder: Path, code: str, *arguments: str) -> str:
    """Run a program with the address of this relay; return its output."""
    assert URL in code
    host, port = server.address
    ran = await trio.run_process(
        [sys.executable, "-W", "error", "-c", code.replace(URL, f"http://{host}:{port}"), *arguments],
        cwd=folder,
        env=environment(),
        capture_stdout=True,
        stderr=subprocess.STDOUT,
        check=False,
    )
    printed = ran.stdout.decode()
    assert ran.returncode == 0, printed
    return printed


async def command_it(server: HereServer) -> None:
    """Act as an app that sends the machine a temperature once it is online."""
    await until(lambda: server.server.relay.is_online(DEVICE_ID))
    app = await server.client(DEVICE_ID)
    await app.send(text({"type": "command", "cmd": "set_temp", "boiler": "brew", "temp": 93.5}))


async def be_the_machine(server: HereServer) -> None:
    """Act as the machine: send the temperature, and acknowledge a command."""
    machine: WireClient = await server.device(DEVICE_ID)
    await machine.send(
        text({"type": "status", "seq": 1, "temps": {"brew": {"current": 92.8, "setpoint": 93.0}}})
    )
    while True:
        try:
            told = await machine.read_json()
        except Ended:
            return
        if told.get("cmd") == "set_temp":
            await machine.send(text({"type": "log", "level": "info", "message": "heating"}))


async def nothing(_: HereServer) -> None:
    await trio.lowlevel.checkpoint()


@pytest.mark.parametrize(("number", "beside"), [(0, command_it), (1, nothing), (3, nothing)])
async def test_programs_of_devices(tmp_path: Path, number: int, beside: Beside) -> None:
    code, said = programs("write-a-device-in-python")[number]
    async with kitchen(tmp_path) as server, trio.open_nursery() as nursery:
        nursery.start_soon(beside, server)
        assert await run(server, tmp_path, code) == said
        nursery.cancel_scope.cancel()


async def test_program_that_shows_a_qr_code(tmp_path: Path) -> None:
    code, said = programs("write-a-device-in-python")[2]
    assert said is None
    (tmp_path / "its own").mkdir()
    async with kitchen(tmp_path) as server:
        printed = await run(server, tmp_path / "its own", code)
        assert printed.splitlines()[-1].startswith(
            f"http://127.0.0.1:{server.address[1]}/pair?id=BRW-12AB34CE&token="
        )
        assert "\u2580" in printed


async def test_program_of_an_app(tmp_path: Path) -> None:
    code, said = programs("write-an-app-in-python")[0]
    async with kitchen(tmp_path) as server, trio.open_nursery() as nursery:
        (tmp_path / "token.txt").write_text(server.token([DEVICE_ID]) + "\n")
        nursery.start_soon(be_the_machine, server)
        await until(lambda: server.server.relay.is_online(DEVICE_ID))
        assert await run(server, tmp_path, code) == said
        nursery.cancel_scope.cancel()


async def test_program_of_an_app_that_signs_in(tmp_path: Path) -> None:
    code, said = programs("write-an-app-in-python")[1]
    secret = "i" * 43
    async with kitchen(tmp_path) as server, trio.open_nursery() as nursery:
        url = Settings(data_dir=tmp_path, jwt_secret="").resolved_database_url()
        with Database.open(url) as database, database.writing() as db:
            user = add_user(db, email="bot@example.org", name="A bot", now_ms=now_ms())
            give(db, DEVICE_ID, user.id, role="owner", until_ms=None, now_ms=now_ms())
            add_invite(
                db,
                email="bot@example.org",
                token_hash=hash_secret(secret),
                is_admin=False,
                expires_at_ms=now_ms() + 60_000,
                now_ms=now_ms(),
            )
        nursery.start_soon(be_the_machine, server)
        await until(lambda: server.server.relay.is_online(DEVICE_ID))
        assert await run(server, tmp_path, code, secret) == said
        nursery.cancel_scope.cancel()


def test_every_program_is_run_here() -> None:
    assert len(programs("write-a-device-in-python")) == 4
    assert len(programs("write-an-app-in-python")) == 2

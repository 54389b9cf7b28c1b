"""A server whose stderr is not read, a pipe or a terminal: it serves, counts dropped lines, and ends."""

import json
import os
import pty
import signal
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

import pytest
import trio

from support.http_client import ask
from support.process import Reach, environment, machine_id, run_command
from support.wire_client import upgrade_head

CONNECTIONS = 300
METRICS_TOKEN = "m" * 32
_SERVE = """
from brewos_relay.telemetry import line_writer
line_writer.LINES_AT_MOST = 50
from brewos_relay.cli import main
main(["serve", "--host", "127.0.0.1", "--port", "0", "--log-format", "json", "--log-level", "debug"])
"""


async def count_dropped(server: Reach) -> int:
    told = await ask(server, "GET", "/metrics", token=METRICS_TOKEN)
    assert told.status == 200
    name = b"brewos_relay_log_lines_dropped_total "
    (line,) = [line for line in told.response.body.splitlines() if line.startswith(name)]
    return int(float(line.removeprefix(name)))


def fill(pipe: int) -> None:
    """Fill a pipe with lines of JSON, so that its capacity does not affect the number of dropped lines."""
    os.set_blocking(pipe, False)
    for lines in (b"{}\n" * 150, b"{}\n"):  # written whole or not at all
        with suppress(BlockingIOError):
            while True:
                os.write(pipe, lines)
    os.set_blocking(pipe, True)


@pytest.mark.parametrize("stream", ["pipe", "terminal"])
async def test_server_whose_log_is_not_read_serves_and_ends(tmp_path: Path, stream: str) -> None:
    reading, writing = os.pipe() if stream == "pipe" else pty.openpty()
    if stream == "pipe":
        fill(writing)  # a terminal buffers little
    settings = {"BREWOS_RELAY_METRICS_TOKEN": METRICS_TOKEN, "BREWOS_RELAY_DRAIN_S": "0.1"}
    with trio.fail_after(60), os.fdopen(reading, "rb") as log:
        process = await trio.lowlevel.open_process(
            [sys.executable, "-c", _SERVE],
            cwd=tmp_path,
            env=environment(**settings),
            stdout=subprocess.PIPE,
            stderr=writing,
        )
        os.close(writing)
        server: Reach | None = None
        try:
            assert process.stdout is not None
            ready = (await process.stdout.receive_some(1000)).decode()
            assert ready, log.read()
            server = Reach(("127.0.0.1", int(ready.partition("127.0.0.1:")[2].partition(" ")[0])))
            for number in range(CONNECTIONS):
                target = f"/ws/client?token={server.token()}&device={machine_id(number)}"
                connection = await server.connect()
                assert (await connection.ask(upgrade_head(target))).status == 101
            dropped = await count_dropped(server)
            assert dropped > CONNECTIONS / 3
            # Once read, the log reports each gap with the number of dropped lines.
            told = 0

            def read_until_told() -> None:
                nonlocal told
                while told < dropped:
                    entry = json.loads(log.readline())
                    if gap := entry.get("dropped", 0):
                        assert entry["event"] == f"{gap} log lines were dropped"
                        told += gap

            await trio.to_thread.run_sync(read_until_told, abandon_on_cancel=True)
            assert told >= dropped
            server.abort()
            # The server ends although the log is unread again.
            process.send_signal(signal.SIGTERM)
            with trio.fail_after(20):
                assert await process.wait() == 0
        finally:
            if server is not None:
                server.abort()
            if process.returncode is None:
                process.kill()
            with trio.CancelScope(shield=True, deadline=trio.current_time() + 5):
                await process.wait()
            assert process.stdout is not None
            await trio.aclose_forcefully(process.stdout)


async def test_server_that_cannot_start_ends_though_its_errors_are_not_read(tmp_path: Path) -> None:
    reading, writing = os.pipe()
    fill(writing)
    with trio.fail_after(20):
        ended = await trio.run_process(
            [sys.executable, "-m", "brewos_relay", "serve", "--port", "0"],
            cwd=tmp_path,
            env=environment(DATA_DIR="/dev/null/nowhere"),
            stderr=writing,
            check=False,
        )
    os.close(reading)
    os.close(writing)
    assert ended.returncode == 3


async def test_error_at_the_start_is_printed(tmp_path: Path) -> None:
    ended = await run_command(tmp_path, "serve", "--port", "0", DATA_DIR="/dev/null/nowhere")
    assert ended.returncode == 3
    assert ended.stderr.startswith(b"brewos-relay: ")

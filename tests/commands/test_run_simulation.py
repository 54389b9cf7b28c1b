"""Tests of client.simulate: the command in a process of its own."""

import io
import signal
import subprocess
import sys
from functools import partial

import pytest
import trio

from brewos_relay.commands.qr_code import qr_lines
from brewos_relay.commands.run_simulation import show_qr
from support.waiting import until
from support.websocket_server import open_websocket_server

DEADLINE_S = 30.0


async def test_interrupted_simulation_closes_its_connections() -> None:
    with trio.fail_after(DEADLINE_S):
        async with open_websocket_server() as (url, accepted), trio.open_nursery() as nursery:
            command = [sys.executable, "-m", "brewos_relay", "simulate", "--url", url, "--keys", "-"]
            start = partial(
                trio.run_process,
                command,
                stdin=b"BRW-0000ABCD," + b"k" * 43 + b"\n",
                capture_stdout=True,
                stderr=subprocess.STDOUT,
                check=False,
            )
            process = await nursery.start(start)
            first = await accepted.receive()
            await first.connection.get_message()
            process.send_signal(signal.SIGHUP)
            second = await accepted.receive()
            await second.connection.get_message()
            process.send_signal(signal.SIGINT)
            assert await process.wait() == 0
            closed = second.connection
            await until(lambda: closed.closed is not None)
            assert closed.closed is not None
            assert closed.closed.code == 1000
            nursery.cancel_scope.cancel()


@pytest.mark.parametrize(
    ("is_terminal", "encoding", "is_shown"),
    [(True, "utf-8", True), (True, "ascii", False), (False, "utf-8", False)],
)
def test_qr_code_of_a_link_is_shown_on_terminals_that_can(
    monkeypatch: pytest.MonkeyPatch, *, is_terminal: bool, encoding: str, is_shown: bool
) -> None:
    link = "https://coffee.local/pair?id=BRW-51000001&token=" + "t" * 32
    stdout = io.TextIOWrapper(io.BytesIO(), encoding=encoding)
    monkeypatch.setattr(stdout, "isatty", lambda: is_terminal, raising=False)
    monkeypatch.setattr(sys, "stdout", stdout)
    monkeypatch.setenv("NO_COLOR", "1")
    show_qr(link)
    stdout.seek(0)
    shown = stdout.read().splitlines()
    assert shown == (qr_lines(link, colors=False) if is_shown else [])
    assert len(shown) <= 22, "it fits on a terminal of 24 lines"

"""Tests of client.simulate: the command in a process of its own."""

import signal
import subprocess
import sys
from functools import partial

import trio

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

"""Machines whose 101 the network delays, in front of a server process that is asked to leave."""

import signal
from functools import partial
from pathlib import Path
from typing import Final

import pytest
import trio

from support.faithful_device import FaithfulDevice
from support.process import KEY, machine_id, run_command, serve_process
from support.waiting import until

DELAY_S: Final = 4.0


async def carry(source: trio.SocketStream, sink: trio.SocketStream, *, delay_s: float = 0.0) -> None:
    """Carry bytes one way, the first of them late, and then the end of the stream."""
    async for data in source:
        await trio.sleep(delay_s)
        delay_s = 0.0
        await sink.send_all(data)
    await sink.send_eof()


async def bad_network(
    address: tuple[str, int], delay_s: float, *, task_status: trio.TaskStatus[tuple[str, int]]
) -> None:
    """Listen, and carry each connection to a server, whose first answer is late."""

    async def serve(near: trio.SocketStream) -> None:
        try:
            async with await trio.open_tcp_stream(*address) as far, trio.open_nursery() as nursery:
                nursery.start_soon(carry, near, far)
                nursery.start_soon(partial(carry, far, near, delay_s=delay_s))
        except* (trio.BrokenResourceError, trio.ClosedResourceError, OSError):
            pass

    async with trio.open_nursery() as nursery:
        [listener] = await nursery.start(partial(trio.serve_tcp, serve, 0, host="127.0.0.1"))
        task_status.started(listener.socket.getsockname()[:2])


@pytest.mark.parametrize("signals", [1, 2])
async def test_a_drain_costs_no_machine_its_key_that_got_its_101_late(tmp_path: Path, signals: int) -> None:
    assert (await run_command(tmp_path, "device", "add", machine_id(1), "--key", KEY)).returncode == 0
    with trio.fail_after(40):
        async with (
            serve_process(tmp_path, BREWOS_RELAY_DRAIN_S=0.1 if signals == 1 else 30) as server,
            trio.open_nursery() as nursery,
        ):
            late = await nursery.start(bad_network, server.address, DELAY_S)
            device = FaithfulDevice(late, machine_id(1), KEY, grace_s=0.0)
            nursery.start_soon(device.run)
            await trio.sleep(DELAY_S / 2)
            for _ in range(signals):
                server.send_signal(signal.SIGTERM)
                await trio.sleep(0.2)
            assert not device.online, "the signals came before the 101"
            await until(lambda: len(device.ends) == 1)
            assert device.ended_at[0] - device.opened_at[0] >= 5.4
            assert (device.ends, device.keys_destroyed) == (["closed"], 0)
            assert await server.wait(within_s=5) == 0
            nursery.cancel_scope.cancel()

"""Machines whose 101 the network delays, in front of a server process that is asked to leave."""

import signal
from functools import partial
from pathlib import Path
from typing import Final

import pytest
import trio

from support.cluster import register_machines
from support.faithful_device import FaithfulDevice
from support.process import KEY, machine_id, serve_process
from support.waiting import until

DELAY_S: Final = 4.0


async def carry(
    source: trio.SocketStream, sink: trio.SocketStream, *, sent: trio.Event | None = None
) -> None:
    """Carry bytes one way, and then the end of the stream. The first arrive `DELAY_S` after `sent` is set."""
    async for data in source:
        if sent is not None and not sent.is_set():
            sent.set()
            await trio.sleep(DELAY_S)
        await sink.send_all(data)
    await sink.send_eof()


async def bad_network(
    address: tuple[str, int], sent: trio.Event, *, task_status: trio.TaskStatus[tuple[str, int]]
) -> None:
    """Listen, and carry each connection to a server. Its first answer is late, and sets `sent`."""

    async def serve(near: trio.SocketStream) -> None:
        try:
            async with await trio.open_tcp_stream(*address) as far, trio.open_nursery() as nursery:
                nursery.start_soon(carry, near, far)
                nursery.start_soon(partial(carry, far, near, sent=sent))
        except* (trio.BrokenResourceError, trio.ClosedResourceError, OSError):
            pass

    async with trio.open_nursery() as nursery:
        [listener] = await nursery.start(partial(trio.serve_tcp, serve, 0, host="127.0.0.1"))
        task_status.started(listener.socket.getsockname()[:2])


@pytest.mark.parametrize("signals", [1, 2])
async def test_a_drain_costs_no_machine_its_key_that_got_its_101_late(tmp_path: Path, signals: int) -> None:
    register_machines(tmp_path / "data", [1])
    with trio.fail_after(40):
        async with (
            serve_process(tmp_path, BREWOS_RELAY_DRAIN_S=0.1 if signals == 1 else 30) as server,
            trio.open_nursery() as nursery,
        ):
            late = await nursery.start(bad_network, server.address, sent := trio.Event())
            device = FaithfulDevice(late, machine_id(1), KEY, grace_s=0.0)
            nursery.start_soon(device.run)
            await sent.wait()
            for _ in range(signals):
                server.send_signal(signal.SIGTERM)
                await trio.sleep(0.2)
            assert not device.online, "the signals came before the 101"
            await until(lambda: len(device.ends) == 1)
            assert device.ended_at[0] - device.opened_at[0] >= 5.4
            assert (device.ends, device.keys_destroyed) == (["closed"], 0)
            assert await server.wait(within_s=5) == 0
            nursery.cancel_scope.cancel()

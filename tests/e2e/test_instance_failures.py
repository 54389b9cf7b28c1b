"""Instances that are killed or stopped: what the apps on other instances are told, and which commands act."""

import signal
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any, Final

import trio

from support.cluster import connect_device, online_app, register_machines, start_instances, traffic
from support.load import Delay, measured_delay
from support.postgresql import PostgreSQL
from support.process import ProcessServer, machine_id
from support.redis_server import RedisServer
from support.wire_client import WireClient, text

MACHINES: Final = 12
UNKNOWN_AFTER_S: Final = 1.0
OFFLINE_WITHIN_S: Final = 20.0
HUNG_OFFLINE_WITHIN_S: Final = 23.0
"""The lease of 15 s, 5 s in which a broker without its data would have learned it again, and three checks."""
ANSWER_S: Final = 2.0


@asynccontextmanager
async def instances(
    folder: Path, redis: RedisServer, count: int, *, database_url: str = "", within_s: float = 60.0
) -> AsyncIterator[list[ProcessServer]]:
    """Open instances for a block that has to end in time."""
    register_machines(folder, range(1, MACHINES + 1), database_url=database_url)
    failure: Exception | None = None
    with trio.fail_after(within_s):
        async with AsyncExitStack() as stack:
            servers = await start_instances(stack, folder, [redis.url] * count, database_url=database_url)
            try:
                yield servers
            except Exception as error:
                failure = error
    if failure is not None:
        raise failure


async def command(app: WireClient, number: int, **more: Any) -> tuple[str, float]:
    """Send a command; return its status, and how long that took."""
    began_at = trio.current_time()
    await app.send(text({"type": "command", "cmd": "tare", "requestId": str(number), "n": number, **more}))
    while (result := await app.read_until("command_status"))["requestId"] != str(number):
        pass
    return result["status"], trio.current_time() - began_at


async def refused_from(app: WireClient, delay: Delay) -> float:
    """Send commands until one is refused at once. Return when that was sent (trio time).

    The ones before it are lost, so that their outcome is unknown. **Owns:** a task that sends.
    """
    sent_at: list[float] = []

    async def send() -> None:
        while True:
            sent_at.append(trio.current_time())
            await app.send(text({"type": "command", "cmd": "tare", "requestId": len(sent_at) - 1}))
            await trio.sleep(0.05)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(send)
        while (result := await app.read_until("command_status"))["status"] != "device_offline":
            assert result["status"] == "unknown"
        nursery.cancel_scope.cancel()
    number: int = result["requestId"]
    refused_at = sent_at[number]
    assert trio.current_time() - refused_at < ANSWER_S / 2 + delay.since(refused_at)
    return refused_at


async def read_online(app: WireClient, online: bool) -> None:
    """Read up to the message that the device is online, or offline."""
    await app.read_until("device_online" if online else "device_offline")


async def commands_until(device: WireClient, last: int) -> list[int]:
    """Read the numbers of the commands that a device gets, up to this one."""
    found: list[int] = []
    while last not in found:
        found.append((await device.read_until("command"))["n"])
    return found


async def test_machines_of_a_killed_instance_are_unknown_at_once_and_offline_soon(
    redis: RedisServer, postgresql: PostgreSQL, tmp_path: Path
) -> None:
    ids = [machine_id(number) for number in range(1, MACHINES + 1)]
    async with AsyncExitStack() as stack:
        url = stack.enter_context(postgresql.new_database())
        delay = await stack.enter_async_context(measured_delay())
        killed, other, third = await stack.enter_async_context(
            instances(tmp_path, redis, 3, database_url=url)
        )
        loads = []
        for device_id in ids[:4]:
            device = await connect_device(killed, device_id)
            app = await online_app(other, device_id)
            loads.append(await stack.enter_async_context(traffic(device, app, may_end=True)))
        apps = {}
        for device_id in ids[4:]:
            await connect_device(killed, device_id)
            apps[device_id] = await online_app(other, device_id)
        await connect_device(third, ids[0])  # so that one machine of the load has moved before

        killed.send_signal(signal.SIGKILL)
        killed_at = trio.current_time()
        moving, *staying = apps.values()
        refused_after_s = await refused_from(staying[0], delay) - killed_at
        print(f"commands are refused at once from {refused_after_s:.2f} s on")
        assert refused_after_s < UNKNOWN_AFTER_S + 0.3 + delay.since(killed_at)
        for app in staying:
            sent_at = trio.current_time()
            status, took_s = await command(app, -1)
            assert status == "device_offline"
            assert took_s < 0.5 + delay.since(sent_at)

        # A machine that connects to another instance is followed there at once.
        moved = await connect_device(third, ids[4])
        came_at = trio.current_time()
        number = 1
        while (await command(moving, number))[0] != "delivered":
            number += 1
        print(f"a machine is found {trio.current_time() - came_at:.2f} s after its next claim")
        assert trio.current_time() - came_at < 1.0 + delay.since(came_at)
        assert number in await commands_until(moved, number)

        for app in staying:
            await read_online(app, False)
        took_s = trio.current_time() - killed_at
        print(f"offline after {took_s:.2f} s")
        assert took_s < OFFLINE_WITHIN_S + delay.since(killed_at)
        for each in loads[1:]:
            assert "device_offline" in each.events(killed_at)


async def test_a_command_that_a_stopped_instance_reads_too_late_never_acts(
    redis: RedisServer, tmp_path: Path
) -> None:
    machine = machine_id(1)
    async with measured_delay() as delay, instances(tmp_path, redis, 2) as [owner, other]:
        device, app = await connect_device(owner, machine), await online_app(other, machine)
        assert (await command(app, 1))[0] == "delivered"
        owner.send_signal(signal.SIGSTOP)
        try:
            sent_at = trio.current_time()
            status, took_s = await command(app, 2)
            assert status == "unknown"
            assert ANSWER_S - 0.1 < took_s < ANSWER_S + 0.5 + delay.since(sent_at)
            await app.send(text({"type": "command", "cmd": "tare", "requestId": "3", "n": 3}))
            await trio.sleep(0.5)
        finally:
            owner.send_signal(signal.SIGCONT)  # in time for the second one
        while (result := await app.read_until("command_status"))["requestId"] != "3":
            pass
        assert result["status"] == "delivered"
        assert (await command(app, 4))[0] == "delivered"
        assert await commands_until(device, 4) == [1, 3, 4]


async def test_a_command_whose_sender_was_stopped_never_acts_late(redis: RedisServer, tmp_path: Path) -> None:
    """The command waits in the socket of the sender's instance, which is not on time itself."""
    machine = machine_id(1)
    async with instances(tmp_path, redis, 2) as [owner, other]:
        device, app = await connect_device(owner, machine), await online_app(other, machine)
        other.send_signal(signal.SIGSTOP)
        try:
            await app.send(text({"type": "command", "cmd": "tare", "requestId": "1", "n": 1}))
            await trio.sleep(ANSWER_S + 0.2)
        finally:
            other.send_signal(signal.SIGCONT)
        told = await app.read_until("command_status")
        assert (await command(app, 2))[0] == "delivered"
        acted = 1 in await commands_until(device, 2)
        assert (told["status"] == "delivered") == acted


async def test_a_stopped_instance_loses_its_machines_and_has_them_again_when_it_continues(
    redis: RedisServer, tmp_path: Path
) -> None:
    stays, moves = machine_id(1), machine_id(2)
    async with measured_delay() as delay, instances(tmp_path, redis, 2) as [stopped, other]:
        device, moving = await connect_device(stopped, stays), await connect_device(stopped, moves)
        app, moving_app = await online_app(other, stays), await online_app(other, moves)
        stopped.send_signal(signal.SIGSTOP)
        stopped_at = trio.current_time()
        try:
            moved = await connect_device(other, moves)
            await read_online(app, False)
            took_s = trio.current_time() - stopped_at
            print(f"offline after {took_s:.2f} s")
            assert took_s < HUNG_OFFLINE_WITHIN_S + delay.since(stopped_at)
        finally:
            stopped.send_signal(signal.SIGCONT)
        continued_at = trio.current_time()
        await read_online(app, True)
        print(f"online again after {trio.current_time() - continued_at:.2f} s")
        assert (await command(app, 1))[0] == "delivered"
        assert await commands_until(device, 1) == [1]
        # The newer connection stays.
        assert (await moving.read_close())[0] == 4002
        assert (await command(moving_app, 1))[0] == "delivered"
        assert await commands_until(moved, 1) == [1]

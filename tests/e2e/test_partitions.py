"""Two instances that both believe they own a machine, because one was cut off from the bus."""

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal

import pytest
import trio

from support.bus_proxy import BusProxy, open_bus_proxy
from support.cluster import connect_device, open_instances, register_machines, wait_for_bus
from support.http_client import ask
from support.load import measured_delay
from support.process import Reach, machine_id
from support.redis_server import RedisServer
from support.wire_client import WireClient, text

MACHINE: Final = machine_id(1)
MIN_AGE_S: Final = 1.5
HEALED_WITHIN_S: Final = 2.0


@dataclass
class Side:
    """One instance, with an app of the machine and the way to the bus."""

    server: Reach
    proxy: BusProxy
    app: WireClient

    async def cut(self, how: Literal["stalled", "refused"]) -> None:
        """Cut the instance off from the bus."""
        if how == "stalled":
            self.proxy.partition()
        else:
            self.proxy.refuses = True
            self.proxy.cut()
            await wait_for_bus([self.server], False)

    def heal(self) -> None:
        self.proxy.refuses = False
        self.proxy.heal()


@asynccontextmanager
async def sides(folder: Path, redis: RedisServer) -> AsyncIterator[tuple[Side, Side]]:
    """Open two instances, each with an app of the machine, which is absent."""
    register_machines(folder, [1])
    failure: Exception | None = None
    with trio.fail_after(45):
        async with AsyncExitStack() as stack:
            proxies = [await stack.enter_async_context(open_bus_proxy(redis.port)) for _ in range(2)]
            buses = [f"redis://127.0.0.1:{proxy.port}" for proxy in proxies]
            servers = await open_instances(stack, folder, buses, device_min_age_s=MIN_AGE_S)
            first, second = [
                Side(server, proxy, await server.client(MACHINE))
                for server, proxy in zip(servers, proxies, strict=True)
            ]
            try:
                yield first, second
            except Exception as error:
                failure = error
    if failure is not None:
        raise failure


async def say(device: WireClient, name: str) -> None:
    """Send a status with a name as the device."""
    await device.send(text({"type": "status", "name": name}))


async def read_name(app: WireClient, name: str) -> None:
    """Read up to a status with this name."""
    while (await app.read_until("status")).get("name") != name:
        pass


async def see_commands_arrive(device: WireClient, side: Side, name: str) -> None:
    """Check that a command of the side's app arrives at the device."""
    await side.app.send(text({"type": "command", "cmd": "tare", "name": name}))
    while (await device.read_until("command"))["name"] != name:
        pass


async def see_agreement(device: WireClient, both: tuple[Side, Side]) -> float:
    """Check that the apps on both instances, and the API of both, see one connection of the machine.

    Return how long it took until commands of both apps arrived at the device.
    """
    began_at = trio.current_time()
    for number, side in enumerate(both):
        arrived = False
        while not arrived:  # one instance may still have the other connection
            await side.app.send(text({"type": "command", "cmd": "tare", "name": number}))
            with trio.move_on_after(0.2):
                while (await device.read_until("command"))["name"] != number:
                    pass
                arrived = True
    took_s = trio.current_time() - began_at
    await say(device, "agreed")
    for side in both:
        await read_name(side.app, "agreed")
        told = await ask(side.server, "GET", f"/api/devices/{MACHINE}", token=side.server.token())
        assert told.content["device"]["isOnline"] is True, told.content
    return took_s


async def closed(device: WireClient) -> tuple[int, float]:
    """Read up to the end of a connection; return its code, and when that was (trio time)."""
    code, _ = await device.read_close()
    return code, trio.current_time()


@pytest.mark.parametrize("how", ["stalled", "refused"])
@pytest.mark.parametrize("cut_off", ["older", "newer"])
async def test_of_two_owners_the_newer_connection_stays(
    redis: RedisServer, tmp_path: Path, how: Literal["stalled", "refused"], cut_off: str
) -> None:
    async with measured_delay() as delay, sides(tmp_path, redis) as both:
        first, second = both
        opened_at = trio.current_time()
        older = await connect_device(first.server, MACHINE)
        await first.app.read_until("device_online")
        await second.app.read_until("device_online")
        side = first if cut_off == "older" else second
        await side.cut(how)
        newer = await connect_device(second.server, MACHINE)
        # Both believe that they own it. An app is served by the instance that it is connected to.
        await say(older, "older")
        await say(newer, "newer")
        await read_name(first.app, "older")
        await read_name(second.app, "newer")
        await see_commands_arrive(older, first, "to the older one")
        await see_commands_arrive(newer, second, "to the newer one")

        side.heal()
        healed_at = trio.current_time()
        code, closed_at = await closed(older)
        print(f"closed {closed_at - healed_at:.2f} s after healing, {closed_at - opened_at:.2f} s old")
        assert code == 4002
        assert closed_at - opened_at > MIN_AGE_S
        in_time_at = max(healed_at + HEALED_WITHIN_S, opened_at + 2 * MIN_AGE_S)
        assert closed_at < in_time_at + delay.since(opened_at)
        await see_agreement(newer, both)


async def test_an_older_connection_that_is_announced_later_loses(redis: RedisServer, tmp_path: Path) -> None:
    async with sides(tmp_path, redis) as both:
        first, second = both
        await first.cut("refused")
        opened_at = trio.current_time()
        older = await connect_device(first.server, MACHINE)
        await first.app.read_until("device_online")
        newer = await connect_device(second.server, MACHINE)
        await second.app.read_until("device_online")
        first.heal()
        code, closed_at = await closed(older)
        assert code == 4002
        assert closed_at - opened_at > MIN_AGE_S
        await see_agreement(newer, both)


async def test_a_young_connection_is_held_until_its_key_is_safe(redis: RedisServer, tmp_path: Path) -> None:
    async with measured_delay() as delay, sides(tmp_path, redis) as both:
        first, second = both
        await first.cut("stalled")
        opened_at = trio.current_time()
        older = await connect_device(first.server, MACHINE)
        newer = await connect_device(second.server, MACHINE)
        first.heal()
        took_s = await see_agreement(newer, both)
        print(f"the apps agree {took_s:.2f} s after healing")
        assert trio.current_time() - opened_at < MIN_AGE_S + delay.since(opened_at)
        # It is held, but counts no longer.
        await say(older, "ignored")
        await say(newer, "counts")
        for side in both:
            while (name := (await side.app.read_until("status")).get("name")) != "counts":
                assert name != "ignored"
        code, closed_at = await closed(older)
        assert (code, closed_at - opened_at > MIN_AGE_S) == (4002, True)


async def test_each_instance_serves_its_own_machines_while_it_is_cut_off(
    redis: RedisServer, tmp_path: Path
) -> None:
    async with sides(tmp_path, redis) as both:
        first, second = both
        await first.cut("refused")
        device = await connect_device(first.server, MACHINE)
        await first.app.read_until("device_online")
        await say(device, "here")
        await read_name(first.app, "here")
        app = await first.server.client(MACHINE)
        assert app.connected["deviceOnline"]
        await see_commands_arrive(device, first, "here")
        first.heal()
        await second.app.read_until("device_online")
        await read_name(second.app, "here")
        await see_agreement(device, both)

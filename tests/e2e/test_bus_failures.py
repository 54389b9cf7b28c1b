"""A bus that fails: what two instances notice, and what their machines and apps do not."""

from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import pytest
import trio

from brewos_relay.cluster.redis_broker import LOST_AFTER_S
from brewos_relay.cluster.resp import OUTBOX_BYTES
from support.bus_proxy import BusProxy, open_bus_proxy
from support.cluster import (
    Traffic,
    bus_is_connected,
    connect_device,
    log_events,
    metric,
    online_app,
    open_instances,
    readiness,
    register_machines,
    start_instances,
    traffic,
    wait_for_bus,
)
from support.load import Delay, measured_delay
from support.logs import errors_in
from support.process import ProcessServer, Reach, machine_id
from support.redis_server import RedisServer, open_redis
from support.resources import most_memory_mib
from support.wire_client import text

HERE, ACROSS, LATER, LOUD = (machine_id(number) for number in range(1, 5))
AT_ONCE_S: Final = 0.5
BACK_WITHIN_S: Final = 1.0
NO_GAP_S: Final = 0.3


@dataclass
class Pair:
    """Two instances: one machine has its app on the same instance, one on the other instance."""

    owner: Reach
    other: Reach
    here: Traffic
    across: Traffic
    proxies: Sequence[BusProxy]
    """Between the bus and each instance, if the test has asked for that."""
    delay: Delay

    @property
    def servers(self) -> list[Reach]:
        return [self.owner, self.other]

    @property
    def pids(self) -> list[int]:
        return [server.pid for server in self.servers if isinstance(server, ProcessServer)]


@asynccontextmanager
async def pair(
    folder: Path,
    redis: RedisServer,
    *,
    as_processes: bool = False,
    through_proxies: bool = False,
    within_s: float = 60.0,
) -> AsyncIterator[Pair]:
    """Open two instances with traffic. In the end, check that the local traffic had no gap."""
    register_machines(folder, range(1, 5))
    failure: Exception | None = None
    with trio.fail_after(within_s):
        async with AsyncExitStack() as stack:
            proxies = [
                await stack.enter_async_context(open_bus_proxy(redis.port))
                for _ in range(2 * through_proxies)
            ]
            ports = [proxy.port for proxy in proxies] or 2 * [redis.port]
            buses = [f"redis://127.0.0.1:{port}" for port in ports]
            owner, other = await (start_instances if as_processes else open_instances)(stack, folder, buses)
            device, distant = await connect_device(owner, HERE), await connect_device(owner, ACROSS)
            app, distant_app = await online_app(owner, HERE), await online_app(other, ACROSS)
            delay = await stack.enter_async_context(measured_delay())
            here = await stack.enter_async_context(traffic(device, app))
            across = await stack.enter_async_context(traffic(distant, distant_app))
            try:
                yield Pair(owner, other, here, across, proxies, delay)
                here.see_no_gap(within_s=NO_GAP_S + delay.worst_s(NO_GAP_S))
            except Exception as error:
                failure = error  # raised here, it would come out wrapped by every nursery
            for server in (owner, other):
                if isinstance(server, ProcessServer):
                    assert not errors_in(server.log_file.read_text())
    if failure is not None:
        raise failure


async def see_delivering(both: Pair, since: float, *, within_s: float = BACK_WITHIN_S) -> None:
    """Check that messages sent from `since` on cross in both directions soon."""
    took_s = await both.across.until_delivered(since)
    print(f"delivering again after {took_s:.2f} s")
    assert took_s < within_s + both.delay.since(since)


async def see_degraded(both: Pair) -> None:
    """Check that both instances are ready, but report the bus."""
    for server in both.servers:
        status, [problem] = await readiness(server)
        assert status == 200
        assert problem.startswith("the bus is unavailable")
        assert await metric(server, "bus_reconnects_total") == 1
        if isinstance(server, ProcessServer):
            assert len(log_events(server, "the bus is unavailable")) == 1


async def see_recovered(both: Pair) -> None:
    for server in both.servers:
        assert await readiness(server) == (200, [])


async def test_a_killed_bus_is_noticed_at_once_and_used_as_soon_as_it_is_back(
    redis: RedisServer, tmp_path: Path
) -> None:
    async with pair(tmp_path, redis, as_processes=True) as both:
        await see_recovered(both)
        killed_at = trio.current_time()
        await trio.to_thread.run_sync(redis.kill)
        took_s = await wait_for_bus(both.servers, False)
        print(f"noticed after {took_s:.2f} s")
        assert took_s < AT_ONCE_S + both.delay.since(killed_at)
        await see_degraded(both)
        await trio.sleep(2)  # the pauses between attempts have become as long as they get
        refused = both.across.errors(killed_at)
        assert set(refused) <= {"outcome_unknown", "bus_unavailable"}
        assert refused.count("bus_unavailable") > 50
        await trio.to_thread.run_sync(redis.start)
        await see_delivering(both, trio.current_time())
        await see_recovered(both)
        assert len(set(both.across.executed)) == len(both.across.executed)
        assert "device_offline" not in both.across.events()


async def test_a_command_without_the_bus_is_refused_and_never_acts(
    redis: RedisServer, tmp_path: Path
) -> None:
    async with pair(tmp_path, redis) as both:
        await trio.to_thread.run_sync(redis.kill)
        await wait_for_bus(both.servers, False)
        refused_from = len(both.across.commanded_at)
        await trio.sleep(0.5)
        refused_to = len(both.across.commanded_at)
        await trio.to_thread.run_sync(redis.start)
        await both.across.until_delivered(trio.current_time())
        await trio.sleep(0.5)
        assert not set(range(refused_from, refused_to - 1)) & set(both.across.executed)


async def test_a_flushed_bus_learns_the_owners_again(redis: RedisServer, tmp_path: Path) -> None:
    async with pair(tmp_path, redis) as both:
        owner = redis.run("GET", f"own:{ACROSS}")
        flushed_at = trio.current_time()
        redis.flush()
        # The first app of a machine on an instance finds it once it is claimed again.
        await online_app(both.other, HERE)
        print(f"claimed again after {trio.current_time() - flushed_at:.2f} s")
        assert redis.run("GET", f"own:{ACROSS}") == owner
        both.across.see_complete()
        for server in both.servers:
            assert await metric(server, "bus_reconnects_total") == 0


async def test_a_slow_bus_delivers_late_but_all(redis: RedisServer, tmp_path: Path) -> None:
    delay_s = 0.3
    async with pair(tmp_path, redis, through_proxies=True) as both:
        for proxy in both.proxies:
            proxy.delay_s = delay_s
        await trio.sleep(6)
        await see_delivering(both, trio.current_time(), within_s=4 * delay_s + 0.5)
        # A machine and an app that come now find each other.
        app = await both.other.client(LATER)
        device = await connect_device(both.owner, LATER)
        await app.read_until("device_online")
        await app.send(text({"type": "command", "cmd": "tare"}))
        await device.read_until("command")
        both.across.see_order()
        unknown = both.across.errors()
        assert set(unknown) <= {
            "outcome_unknown"
        }  # on a busy computer: four delays are close to the deadline
        sent = range(max(both.across.executed))
        assert len(set(sent) - set(both.across.executed)) <= len(unknown)
        assert not both.across.events()
        for server in both.servers:
            assert await metric(server, "bus_reconnects_total") == 0


async def test_a_stalled_bus_is_lost_after_5_s_and_costs_no_memory(
    redis: RedisServer, tmp_path: Path
) -> None:
    async with pair(tmp_path, redis, as_processes=True) as both, trio.open_nursery() as nursery:
        loud, app = await connect_device(both.owner, LOUD), await online_app(both.other, LOUD)
        sent_bytes = 0

        async def shout() -> None:
            nonlocal sent_bytes
            while True:
                status = text({"type": "status", "padding": "x" * 10_000})
                await loud.send(status)
                sent_bytes += len(status)
                await trio.sleep(0.001)

        async def listen() -> None:
            while True:
                await app.read_json()

        nursery.start_soon(shout)
        nursery.start_soon(listen)
        await trio.sleep(1)
        before_mib = [most_memory_mib(pid) for pid in both.pids]
        sent_before_bytes = sent_bytes
        stalled_at = trio.current_time()
        redis.pause()
        await wait_for_bus(both.servers, False)
        took_s = trio.current_time() - stalled_at
        print(f"lost after {took_s:.2f} s")
        assert LOST_AFTER_S - 1 <= took_s < LOST_AFTER_S + 1.5 + both.delay.since(stalled_at)
        await see_degraded(both)
        await trio.sleep(3)
        grown_mib = [most_memory_mib(pid) - before for pid, before in zip(both.pids, before_mib, strict=True)]
        print(f"grown by {grown_mib} MiB while {(sent_bytes - sent_before_bytes) >> 20} MiB were sent")
        assert sent_bytes - sent_before_bytes > 4 * OUTBOX_BYTES
        assert max(grown_mib) < 3 * OUTBOX_BYTES >> 20
        nursery.cancel_scope.cancel()
        redis.resume()
        await see_delivering(both, trio.current_time(), within_s=BACK_WITHIN_S + 5)
        await see_recovered(both)


async def test_connections_to_the_bus_that_are_cut_are_opened_again(
    redis: RedisServer, tmp_path: Path
) -> None:
    async with pair(tmp_path, redis, through_proxies=True) as both:
        for proxy in both.proxies:
            cut_at = trio.current_time()
            proxy.cut()
            await see_delivering(both, cut_at + AT_ONCE_S)
        for server in both.servers:
            assert await metric(server, "bus_reconnects_total") == 1
            assert await bus_is_connected(server)


async def test_a_demoted_bus_is_used_again_once_it_is_promoted(redis: RedisServer, tmp_path: Path) -> None:
    async with pair(tmp_path, redis) as both:
        demoted_at = trio.current_time()
        redis.run("REPLICAOF", "127.0.0.1", "1")
        await wait_for_bus(both.servers, False)  # with the next renewal of the lease
        print(f"noticed after {trio.current_time() - demoted_at:.2f} s")
        await see_degraded(both)
        redis.run("REPLICAOF", "NO", "ONE")
        await see_delivering(both, trio.current_time())
        await see_recovered(both)


async def test_a_replica_takes_over_from_a_killed_bus(redis: RedisServer, tmp_path: Path) -> None:
    async with pair(tmp_path, redis, through_proxies=True) as both:
        with open_redis() as replica:
            replica.run("REPLICAOF", "127.0.0.1", str(redis.port))
            while b"master_link_status:up" not in replica.run("INFO", "replication"):  # noqa: ASYNC110
                await trio.sleep(0.05)
            await trio.to_thread.run_sync(redis.kill)
            await wait_for_bus(both.servers, False)
            for proxy in both.proxies:
                proxy.target_port = replica.port
            await trio.sleep(1)  # they reach a replica, which they cannot use
            for server in both.servers:
                assert not await bus_is_connected(server)
            replica.run("REPLICAOF", "NO", "ONE")
            await see_delivering(both, trio.current_time())
            await see_recovered(both)


@pytest.mark.parametrize("where", ["owner", "other"])
async def test_an_instance_without_the_bus_for_long_tells_that_machines_are_offline(
    redis: RedisServer, tmp_path: Path, where: str
) -> None:
    async with pair(tmp_path, redis, through_proxies=True) as both:
        proxy = both.proxies[0 if where == "owner" else 1]
        proxy.refuses = True
        cut_at = trio.current_time()
        proxy.cut()
        while "device_offline" not in both.across.events():  # noqa: ASYNC110 - another process tells
            await trio.sleep(0.05)
        took_s = trio.current_time() - cut_at
        print(f"offline after {took_s:.2f} s")
        assert took_s < 22 + both.delay.since(cut_at)
        healed_at = trio.current_time()
        proxy.refuses = False
        await see_delivering(both, healed_at)
        assert "device_online" in both.across.events(healed_at)

"""The broker on Redis, with a real server that fails in several ways."""

import re
import time
import tracemalloc
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from urllib.parse import quote

import pytest
import trio
import trio.testing

from brewos_relay.cluster import redis_broker
from brewos_relay.cluster.broker import (
    LEASE_S,
    BrokerConnection,
    BrokerError,
    Claim,
    Located,
    Mail,
    OwnerChanged,
    Since,
)
from brewos_relay.cluster.redis_broker import (
    DESCRIPTION_BYTES,
    LOST_AFTER_S,
    PROBE_EVERY_S,
    RedisBroker,
    RedisConnection,
)
from brewos_relay.cluster.redis_url import RedisAddress, parse_redis_url
from brewos_relay.cluster.resp import OUTBOX_BYTES, PENDING_REPLIES, join
from support.broker_members import Member, members
from support.bus_proxy import open_bus_proxy
from support.certificates import write_certificate
from support.pages import read
from support.redis_server import PASSWORD, RedisServer, open_redis
from support.steady_clock import SteadyClock
from support.waiting import until

D = "BRW-0000000D"
PROBE_S = 0.1
LOST_S = 0.4


def broker_at(url: str, **times_s: float) -> RedisBroker:
    """Make a broker for a server."""
    return RedisBroker(parse_redis_url(url), **times_s)


def quick(url: str, **times_s: float) -> RedisBroker:
    """Make a broker that soon notices a stalled server."""
    return broker_at(url, **{"probe_every_s": PROBE_S, "lost_after_s": LOST_S, **times_s})


def ignore(_message: Mail | OwnerChanged) -> None:
    """Receive nothing."""


async def lost(bus: BrokerConnection, *, within_s: float = 5.0) -> tuple[str, float]:
    """Wait for the loss of a connection; return why, and how long that took."""
    began_s = trio.current_time()
    with trio.fail_after(within_s):
        why = await bus.wait_lost()
    with pytest.raises(BrokerError):
        await bus.now_us()
    return why, trio.current_time() - began_s


async def refusal(broker: RedisBroker) -> str:
    """Fail to connect; return the error."""
    with trio.fail_after(5), pytest.raises(BrokerError) as refused:
        async with broker.connect("a", ignore):
            pass
    return str(refused.value)


@asynccontextmanager
async def connected(broker: RedisBroker, name: str = "a") -> AsyncIterator[BrokerConnection]:
    with trio.fail_after(15):
        async with broker.connect(name, ignore) as bus:
            yield bus


# Killed, stalled, slow and partitioned servers


async def test_killed_server_is_noticed_at_once_and_used_again_once_it_is_back(
    redis: RedisServer, steady_clock: SteadyClock
) -> None:
    broker = broker_at(redis.url)
    async with members(broker, "a", "b") as [a, b], trio.open_nursery() as nursery:
        failures = []

        async def locate() -> None:
            try:
                while True:
                    await a.bus.locate([D])
            except BrokerError as error:
                failures.append(error)

        nursery.start_soon(locate)
        await trio.testing.wait_all_tasks_blocked()
        await trio.to_thread.run_sync(redis.kill)
        for member in (a, b):
            _, took_s = await lost(member.bus)
            assert took_s < LOST_AFTER_S / 2
        await until(lambda: bool(failures))
        refused = await refusal(broker)
        assert f"cannot connect to redis://127.0.0.1:{redis.port}/0: " in refused
        assert "Connection refused" in refused

        await trio.to_thread.run_sync(redis.start)
        began_cpu_s = time.process_time()
        for member in (a, b):
            await member.stop()
            await nursery.start(member.run)
        assert not await a.bus.renew(b"")
        ids = [f"BRW-{n:08X}" for n in range(5_000)]
        results = await a.bus.claim([Claim(each, at_us=1_000 + n) for n, each in enumerate(ids)])
        a.bus.send("b", b"again")
        await a.bus.now_us()
        assert await b.take() == [Mail(b"again")]
        assert time.process_time() - began_cpu_s < 1.0
        assert [result.since.at_us for result in results] == [1_000 + n for n in range(5_000)]
        assert all(result.won for result in results)
        for member in (a, b):
            await member.stop()


async def test_devices_are_claimed_by_short_scripts(redis: RedisServer) -> None:
    async with members(broker_at(redis.url), "a") as [a]:
        redis.run("CONFIG", "RESETSTAT")
        ids = [f"BRW-{n:08X}" for n in range(1_001)]
        await a.bus.claim([Claim(each, 1) for each in ids])
        await a.bus.locate(ids)
        assert b"cmdstat_evalsha:calls=22," in redis.run("INFO", "commandstats")


async def test_stalled_server_is_lost_after_several_probes(
    redis: RedisServer, steady_clock: SteadyClock
) -> None:
    assert (PROBE_EVERY_S, LOST_AFTER_S) == (1.0, 5.0)
    async with connected(quick(redis.url)) as bus:
        redis.pause()
        why, took_s = await lost(bus)
        assert why == f"no message came back for {LOST_S:g} s"
        assert LOST_S * 0.9 < took_s < LOST_S + 1
        assert "did not answer within 0.2 s" in await refusal(quick(redis.url, connect_within_s=0.2))
        redis.resume()
        async with connected(quick(redis.url), "b") as again:
            await again.now_us()


async def test_stalled_server_does_not_increase_memory(redis: RedisServer) -> None:
    async with connected(broker_at(redis.url, lost_after_s=30)) as bus:
        assert isinstance(bus, RedisConnection)
        redis.pause()
        tracemalloc.start()
        try:
            refused = 0
            while refused < 10_000:
                for _ in range(500):
                    refused += not bus.send("b", bytes(600))
                assert bus.link.outbox_bytes <= OUTBOX_BYTES
                assert bus.link.pending_replies <= PENDING_REPLIES
                await trio.lowlevel.checkpoint()
            # The outbox once, and once joined for the system.
            assert tracemalloc.get_traced_memory()[1] < 3 * OUTBOX_BYTES
        finally:
            tracemalloc.stop()
        redis.resume()
        with trio.fail_after(5):
            assert await bus.now_us()


async def test_pubsub_that_fails_while_other_clients_are_answered_is_lost(redis: RedisServer) -> None:
    async with connected(quick(redis.url)) as bus:
        redis.run("CLIENT", "PAUSE", "60000", "WRITE")
        try:
            why, _ = await lost(bus)
            assert "no message came back" in why
            assert redis.run("PING") == b"+PONG\r\n"
        finally:
            redis.run("CLIENT", "UNPAUSE")


async def test_connection_whose_subscription_was_lost_is_lost(redis: RedisServer) -> None:
    async with connected(quick(redis.url)) as bus:
        assert isinstance(bus, RedisConnection)
        bus.link.unsubscribe(b"brewos:0:box:a")
        assert await bus.now_us()
        why, _ = await lost(bus)
        assert "no message came back" in why


async def test_pause_of_this_process_loses_nothing(redis: RedisServer) -> None:
    async with members(quick(redis.url), "a", "b") as [a, b]:
        a.bus.send("b", b"before")
        await a.bus.now_us()
        time.sleep(LOST_S * 3)  # noqa: ASYNC251 - nothing else may run
        a.bus.send("b", b"after")
        await a.bus.now_us()
        assert await b.take() == [Mail(b"before"), Mail(b"after")]


async def test_slow_network_loses_nothing(redis: RedisServer) -> None:
    async with open_bus_proxy(redis.port) as proxy:
        broker = broker_at(f"redis://127.0.0.1:{proxy.port}", lost_after_s=3)
        async with members(broker, "a", "b") as [a, b]:
            proxy.delay_s = 0.03
            await b.bus.subscribe(D)
            sent: list[Mail | OwnerChanged] = []
            for n in range(200):
                assert a.bus.send("b", b"%d" % n)
                sent.append(Mail(b"%d" % n))
                await trio.lowlevel.checkpoint()
            [result] = await a.bus.claim([Claim(D, 1)])
            assert await b.take() == [*sent, OwnerChanged(D, result.since, result.since)]


async def test_partitioned_instance_notices_and_returns(redis: RedisServer) -> None:
    async with open_bus_proxy(redis.port) as proxy:
        far = Member(quick(f"redis://127.0.0.1:{proxy.port}"), "far")
        async with members(quick(redis.url), "near") as [near], trio.open_nursery() as nursery:
            await nursery.start(far.run)
            await far.bus.renew(b"")
            [own] = await far.bus.claim([Claim(D, at_us=7)])
            proxy.partition()
            near.bus.send("far", b"too late")
            await lost(far.bus)
            assert "did not answer" in await refusal(
                quick(f"redis://127.0.0.1:{proxy.port}", connect_within_s=0.1)
            )
            # Its lease is still valid, and it does not know of the newer connection.
            [taken] = await near.bus.claim([Claim(D, at_us=8)])
            assert taken.won
            proxy.heal()
            await far.stop()
            far.received.clear()
            await nursery.start(far.run)
            assert await far.bus.renew(b"")
            [again] = await far.bus.claim([Claim(D, at_us=own.since.at_us)])
            assert again.owner == taken.since
            assert await far.take() == []
            await far.stop()


async def test_cut_connection_is_noticed_at_once(redis: RedisServer, steady_clock: SteadyClock) -> None:
    async with open_bus_proxy(redis.port) as proxy:
        async with connected(broker_at(f"redis://127.0.0.1:{proxy.port}", lost_after_s=60)) as bus:
            proxy.cut()
            _, took_s = await lost(bus)
            assert took_s < LOST_AFTER_S / 2
        proxy.refuses = True
        assert "cannot use redis://127.0.0.1" in await refusal(broker_at(f"redis://127.0.0.1:{proxy.port}"))


async def test_server_that_became_a_replica_is_left(redis: RedisServer) -> None:
    async with connected(broker_at(redis.url)) as bus:
        await bus.renew(b"")
        redis.run("REPLICAOF", "127.0.0.1", "1")
        with pytest.raises(BrokerError, match="READONLY"):
            await bus.renew(b"")
        assert "READONLY" in (await lost(bus))[0]
        assert "it is a replica" in await refusal(broker_at(redis.url))
        redis.run("REPLICAOF", "NO", "ONE")
        async with connected(broker_at(redis.url), "b") as again:
            assert not await again.renew(b"")


async def test_redis_cluster_is_refused_with_a_remedy() -> None:
    with open_redis("--cluster-enabled", "yes") as server:
        assert "use a single server, or one with replicas" in await refusal(broker_at(server.url))


async def test_scripts_are_sent_again_after_they_were_flushed(redis: RedisServer) -> None:
    async with members(broker_at(redis.url), "a", renewed=False) as [a]:

        async def forgotten(call: Callable[[], Awaitable[object]]) -> object:
            redis.run("SCRIPT", "FLUSH")
            return await call()

        assert not await forgotten(lambda: a.bus.renew(b"x"))
        assert await forgotten(a.bus.instances) == {"a": b"x"}
        claims = [Claim(f"BRW-{n:08X}", at_us=n) for n in range(250)]
        results = await forgotten(lambda: a.bus.claim(claims))
        assert isinstance(results, list)
        assert [result.owner for result in results] == [Since(n, "a") for n in range(250)]
        await forgotten(lambda: a.bus.note_swap(D))
        assert await forgotten(lambda: a.bus.locate(["BRW-00000007"])) == [Located(Since(7, "a"))]
        await forgotten(lambda: a.bus.release("BRW-00000007", Since(7, "a")))
        assert await forgotten(lambda: a.bus.subscribe("BRW-00000007")) == Located(None)
        assert await forgotten(lambda: a.bus.take_budget("b", amount=1, per_s=0.001, burst=1)) is True
        await forgotten(lambda: a.bus.refund_budget("b", amount=1, burst=1))
        assert await forgotten(lambda: a.bus.take_budget("b", amount=1, per_s=0.001, burst=1)) is True


# Signing in


async def use_everything(broker: RedisBroker) -> None:
    """Call each method once."""
    async with members(broker, "a", "b") as [a, b]:
        await a.bus.now_us()
        assert await a.bus.instances() == {"a": b"", "b": b""}
        assert await a.bus.count_mailboxes(["b"]) == [True]
        await b.bus.subscribe(D)
        await b.bus.unsubscribe(D)
        [result] = await a.bus.claim([Claim(D, 1)])
        await a.bus.note_swap(D)
        assert await a.bus.locate([D]) == [Located(result.since)]
        await a.bus.release(D, result.since)
        assert await a.bus.take_budget("x", amount=1, per_s=1, burst=1)
        await a.bus.refund_budget("x", amount=1, burst=1)
        a.bus.send("b", b"hello")
        await a.bus.resign()
        assert await b.take() == [Mail(b"hello")]


async def test_password_is_needed_and_never_shown(tmp_path: Path) -> None:
    with open_redis("--requirepass", PASSWORD) as server:
        await use_everything(broker_at(f"redis://:{quote(PASSWORD, safe='')}@127.0.0.1:{server.port}"))
        await use_everything(broker_at(f"unix://:{quote(PASSWORD, safe='')}@{server.socket}"))
        wrong = await refusal(broker_at(f"redis://:hunter3@127.0.0.1:{server.port}"))
        assert "WRONGPASS" in wrong
        assert "hunter" not in wrong
        missing = await refusal(broker_at(server.url))
        assert "NOAUTH" in missing


async def test_user_needs_only_the_documented_rights(redis: RedisServer) -> None:
    [documented] = re.findall(r"ACL SETUSER relay on >PASSWORD ([^`]+)", read("reference/settings.md"))
    redis.run("ACL", "SETUSER", "relay", "reset", "on", ">hunter2", *documented.split())
    url = redis.url.replace("//", "//relay:hunter2@")
    try:
        await use_everything(broker_at(url))
        redis.run("ACL", "SETUSER", "relay", "-evalsha")
        async with connected(broker_at(url)) as bus:
            with pytest.raises(BrokerError, match="NOPERM"):
                await bus.renew(b"")
        assert "NOPERM" in await refusal(broker_at(f"{url}?prefix=other:"))
    finally:
        redis.run("ACL", "DELUSER", "relay")


async def test_tls_checks_the_certificate_of_the_server(tmp_path: Path) -> None:
    files = write_certificate(tmp_path, names=["localhost", "127.0.0.1"])
    with open_redis(tls=files) as server:
        url = f"rediss://localhost:{server.tls_port}/0"
        await use_everything(broker_at(f"{url}?ca={files.cert}"))
        await use_everything(broker_at(f"rediss://127.0.0.1:{server.tls_port}/0?ca={files.cert}"))
        assert "CERTIFICATE_VERIFY_FAILED" in await refusal(broker_at(url))
        other = write_certificate(tmp_path, names=["redis.example"])
        assert "CERTIFICATE_VERIFY_FAILED" in await refusal(broker_at(f"{url}?ca={other.cert}"))
        # Not TLS at all.
        plain = f"rediss://localhost:{server.port}?ca={files.cert}"
        await refusal(broker_at(plain, connect_within_s=0.2))
        await refusal(broker_at(f"redis://localhost:{server.tls_port}"))


async def test_server_can_demand_a_certificate_of_the_relay(tmp_path: Path) -> None:
    files = write_certificate(tmp_path, names=["localhost"])
    with open_redis("--tls-auth-clients", "yes", tls=files) as server:
        url = f"rediss://localhost:{server.tls_port}/0?ca={files.cert}"
        await use_everything(broker_at(f"{url}&cert={files.cert}&key={files.key}"))
        await refusal(broker_at(url))


async def test_unix_socket_that_is_missing_is_named(tmp_path: Path) -> None:
    assert f"cannot connect to unix://{tmp_path}/none" in await refusal(broker_at(f"unix://{tmp_path}/none"))


async def test_database_that_does_not_exist_is_reported(redis: RedisServer) -> None:
    assert "DB index is out of range" in await refusal(broker_at(redis.url.replace("/0", "/999")))


# What is stored


async def test_databases_and_prefixes_are_clusters_of_their_own(redis: RedisServer) -> None:
    first = redis.url
    for other in (redis.url.replace("/0", "/1"), f"{redis.url}?prefix=other:"):
        redis.flush()
        async with (
            members(broker_at(first), "a", "b") as [a, b],
            members(broker_at(other), "a", "c") as [c, d],
        ):
            await b.bus.subscribe(D)
            await d.bus.subscribe(D)
            [result] = await a.bus.claim([Claim(D, 1)])
            for _ in range(3):
                await a.bus.note_swap(D)
            a.bus.send("c", b"x")
            a.bus.send("a", b"own")
            await a.bus.take_budget("x", amount=1, per_s=0.001, burst=1)
            await a.bus.now_us()
            assert await a.take() == [Mail(b"own")]
            assert await b.take() == [OwnerChanged(D, result.since, result.since)]
            assert await c.take() == await d.take() == []
            assert await c.bus.instances() == {"a": b"", "c": b""}
            assert await c.bus.count_mailboxes(["a", "b", "c"]) == [True, False, True]
            assert await d.bus.locate([D]) == [Located(None)]
            assert await d.bus.take_budget("x", amount=1, per_s=0.001, burst=1)


async def test_everything_stored_expires(redis: RedisServer) -> None:
    async with members(broker_at(redis.url), "a") as [a]:
        await a.bus.claim([Claim(D, 1)])
        await a.bus.note_swap(D)
        await a.bus.take_budget("x", amount=1, per_s=0.1, burst=60)
        await a.bus.take_budget("never", amount=1, per_s=0, burst=60)
        assert isinstance(a.bus, RedisConnection)

    def left_s(key: str) -> int:
        return int(redis.run("TTL", f"brewos:{key}")[1:])

    assert int(LEASE_S) - 2 <= left_s("alive:a") <= LEASE_S
    assert 7 * 86400 - 5 <= left_s(f"own:{D}") <= 7 * 86400
    assert 295 <= left_s(f"swaps:{D}") <= 300
    assert 595 <= left_s("budget:x") <= 601
    assert 29 * 86400 <= left_s("budget:never") <= 30 * 86400 + 1
    # All keys but the set of live instances, which each renewal cleans up.
    assert redis.run("DBSIZE") == b":6\r\n"
    async with members(broker_at(redis.url, lease_s=0.001), *(f"i{n}" for n in range(20))) as gone:
        await trio.sleep(0.01)
        await gone[0].bus.renew(b"")
    assert redis.run("ZCARD", "brewos:instances") in (b":1\r\n", b":2\r\n")


async def test_renewals_keep_owned_devices_from_expiry(redis: RedisServer) -> None:
    async with members(broker_at(redis.url), "a", "b") as [a, b]:
        ids = [f"BRW-{n:08X}" for n in range(4)]
        await a.bus.claim([Claim(each, at_us=1) for each in ids])
        await b.bus.claim([Claim(ids[1], at_us=2)])
        await a.bus.release(ids[2], Since(1, "a"))
        await a.take()
        for each in ids:
            redis.run("EXPIRE", f"brewos:own:{each}", "100")
        for _ in range(2):  # one device with each renewal
            await a.bus.renew(b"")
        left_s = [int(redis.run("TTL", f"brewos:own:{each}")[1:]) for each in ids]
        assert [each > 100 for each in left_s] == [True, False, False, True]
        assert left_s[2] == -2


async def test_description_and_names_are_bounded(redis: RedisServer) -> None:
    async with connected(broker_at(redis.url)) as bus:
        await bus.renew(bytes(DESCRIPTION_BYTES))
        with pytest.raises(ValueError, match="4096 bytes, got 4097"):
            await bus.renew(bytes(DESCRIPTION_BYTES + 1))
        for claim in (Claim(D, at_us=2**53), Claim(D, at_us=-(2**53))):
            with pytest.raises(ValueError, match="below 2⁵³"):
                await bus.claim([claim])
    for name in ("", "a b", "a\n", "é", "x" * 201):
        with pytest.raises(ValueError, match="the name of an instance"):
            async with broker_at(redis.url).connect(name, ignore):
                pass


async def test_only_so_many_instances_are_listed(redis: RedisServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(redis_broker, "INSTANCES", 2)
    async with members(broker_at(redis.url), "a", "b", "c") as [a, *_]:
        assert len(await a.bus.instances()) == 2


# Replies of other programs than Redis


class Forged(trio.abc.Stream):
    """A server that answers every command with the same bytes."""

    def __init__(self, reply: bytes) -> None:
        self._reply = reply
        self._more = trio.Event()

    async def send_all(self, data: bytes | bytearray | memoryview) -> None:
        self._more.set()
        await trio.lowlevel.checkpoint()

    async def wait_send_all_might_not_block(self) -> None:
        raise NotImplementedError

    async def receive_some(self, max_bytes: int | None = None) -> bytes:
        await self._more.wait()
        self._more = trio.Event()
        return self._reply

    async def aclose(self) -> None:
        await trio.lowlevel.checkpoint()


CALLS: dict[str, Callable[[RedisConnection], Awaitable[object]]] = {
    "now_us": lambda bus: bus.now_us(),
    "instances": lambda bus: bus.instances(),
    "count_mailboxes": lambda bus: bus.count_mailboxes(["a"]),
    "claim": lambda bus: bus.claim([Claim(D, 1)]),
    "locate": lambda bus: bus.locate([D]),
    "greet": lambda bus: bus.greet(RedisAddress("host")),
}
NO_RECORD = b"*2\r\n$1\r\n5\r\n$9\r\n99 \xff\xff\xff\xff\xff\xff\r\n"
WELL_FORMED = {("instances", b"*0\r\n"), ("instances", NO_RECORD)}


@pytest.mark.parametrize("call", CALLS)
@pytest.mark.parametrize(
    "reply",
    [
        b"_\r\n",
        b"+text\r\n",
        b"*0\r\n",
        b"*1\r\n_\r\n",
        b"*1\r\n$3\r\nabc\r\n",
        NO_RECORD,
        b"*2\r\n$1\r\n1\r\n*1\r\n:1\r\n",
        b"*3\r\n:1\r\n:2\r\n:3\r\n",
        b"*2\r\n-ERR no\r\n-ERR no\r\n",
        b"%1\r\n$1\r\na\r\n*0\r\n",
        b",1.5\r\n",
        b"#t\r\n",
    ],
)
async def test_reply_of_the_wrong_form_loses_the_connection(call: str, reply: bytes) -> None:
    if (call, reply) in WELL_FORMED:
        return
    with trio.fail_after(5):
        async with trio.open_nursery() as nursery:
            bus = RedisConnection(Forged(reply), "a", ignore, RedisAddress("host"), LEASE_S)
            nursery.start_soon(bus.link.run)
            with pytest.raises(BrokerError, match="wrong form"):
                await CALLS[call](bus)
            assert bus.link.is_lost
            nursery.cancel_scope.cancel()


@pytest.mark.parametrize(
    "payload",
    [
        b"j\x00\x00",
        b"j\x00\x00\x00\x09short",
        b"j\xff\xff\xff\xff",
        b"+",
        b"-1 a",
        b"+1\nBRW",
        b"+1 a\n",
        b"+x a\nBRW",
        b"+1 a b\nBRW",
        b"+99999999999999999999 a\nBRW",
        b"+1 " + b"a" * 300 + b"\nBRW",
        b"+1 a\n\xff",
        b"+1 a\n" + b"x" * 300,
    ],
)
async def test_malformed_message_loses_the_connection(redis: RedisServer, payload: bytes) -> None:
    async with members(broker_at(redis.url), "a", "b") as [a, b]:
        assert isinstance(a.bus, RedisConnection)
        a.bus.link.publish_now(b"brewos:0:box:b", payload)
        why, _ = await lost(b.bus)
        assert "malformed" in why
        assert b.received == []


async def test_message_of_an_unknown_kind_is_ignored(redis: RedisServer) -> None:
    async with members(quick(redis.url), "a", "b") as [a, b]:
        assert isinstance(a.bus, RedisConnection)
        for payload in (b"", b"z", b"p", b"p-1", b"p99999999999999999", b"p999999"):
            a.bus.link.publish_now(b"brewos:0:box:b", payload)
        a.bus.link.publish_now(b"brewos:0:box:b", join([b"x"]))
        await a.bus.now_us()
        assert await b.take() == [Mail(b"x")]
        # A forged answer does not hide that real ones are missing.
        assert isinstance(b.bus, RedisConnection)
        b.bus.link.unsubscribe(b"brewos:0:box:b")
        await lost(b.bus)


async def test_other_server_than_redis_is_refused() -> None:
    async def serve(stream: trio.SocketStream) -> None:
        async with stream:
            await stream.send_all(b"220 mail.example ESMTP\r\n")
            await stream.receive_some()

    async with trio.open_nursery() as nursery:
        [listener] = await nursery.start(partial(trio.serve_tcp, serve, 0, host="127.0.0.1"))
        port = listener.socket.getsockname()[1]
        assert "no RESP3" in await refusal(broker_at(f"redis://127.0.0.1:{port}"))
        nursery.cancel_scope.cancel()

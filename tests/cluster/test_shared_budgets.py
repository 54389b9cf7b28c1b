"""Rate limits of two instances that share a bus: in memory on a virtual clock, and on Redis."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
import trio
from trio.testing import MockClock

from brewos_relay.api.payloads import Refused
from brewos_relay.api.request_limits import RequestLimits
from brewos_relay.cluster import shared_budgets
from brewos_relay.cluster.broker import BrokerConnection
from brewos_relay.cluster.redis_broker import RedisBroker
from brewos_relay.cluster.redis_url import parse_redis_url
from brewos_relay.cluster.shared_budgets import SLOW_S, SLOW_WAIT_S, WAIT_S, SharedBudgets
from brewos_relay.instances import Bucket, BucketsTaken
from brewos_relay.networks import network_of
from support.memory_broker import MemoryBroker
from support.redis_server import RedisServer
from support.steady_clock import SteadyClock

SECRET = b"s" * 32
HOME = "192.0.2.1"


class Pair:
    """The limits of two instances. `connections` are theirs; None while the bus is away."""

    def __init__(self, *connections: BrokerConnection | None) -> None:
        self.connections = list(connections)
        self.limits = [
            RequestLimits(SharedBudgets(lambda n=n: self.connections[n], secret=SECRET))  # type: ignore[misc]
            for n in range(len(connections))
        ]


@asynccontextmanager
async def in_memory(broker: MemoryBroker | None = None) -> AsyncIterator[Pair]:
    broker = broker or MemoryBroker()
    async with (
        broker.connect("a", lambda _message: None) as one,
        broker.connect("b", lambda _message: None) as two,
    ):
        yield Pair(one, two)


@asynccontextmanager
async def on_redis(server: RedisServer) -> AsyncIterator[Pair]:
    broker = RedisBroker(parse_redis_url(server.url))
    async with (
        broker.connect("a", lambda _message: None) as one,
        broker.connect("b", lambda _message: None) as two,
    ):
        yield Pair(one, two)


async def alternate(pair: Pair, name: str, *, most: int = 100, key: str = HOME, about: str = "") -> int:
    """Use a limit on all instances in turn; return how often before each of them refuses."""
    count = 0
    refusals: list[Refused] = []
    for number in range(most):
        try:
            await getattr(pair.limits[number % len(pair.limits)], name).take(key, about=about)
        except Refused as refusal:
            refusals.append(refusal)
            if len(refusals) == len(pair.limits):
                break
        else:
            count += 1
            refusals.clear()
    assert {refusal.status for refusal in refusals} <= {429}
    assert all(int(refusal.headers["Retry-After"]) >= 1 for refusal in refusals)
    return count


@pytest.mark.parametrize(
    "name",
    [
        *("sign_ins", "passwords", "passwords_from_new_networks", "refreshes"),
        *("pairings_by_user", "pairings_by_address", "shares_by_user"),
        *("register_by_device", "register_by_address"),
    ],
)
async def test_alternating_between_instances_gains_no_attempt(autojump_clock: MockClock, name: str) -> None:
    async with in_memory() as pair:
        limit = getattr(pair.limits[0], name)
        assert await alternate(pair, name, most=1100) == limit.burst
        await trio.sleep(60 / limit.each_minute)
        assert await alternate(pair, name) == 1


@pytest.mark.parametrize("name", ["requests", "pages", "health"])
async def test_limits_against_floods_are_those_of_each_instance(autojump_clock: MockClock, name: str) -> None:
    async with in_memory() as pair:
        limit = getattr(pair.limits[0], name)
        assert limit.shared is None
        assert await alternate(pair, name, most=10_000) == 2 * limit.burst


async def test_wider_networks_are_shared_too(autojump_clock: MockClock) -> None:
    async with in_memory() as pair:
        burst = pair.limits[0].sign_ins.burst
        used = 0
        for number in range(20):
            used += await alternate(pair, "sign_ins", key=network_of(f"2001:db8:0:{number:x}::1"))
        assert used == 2 * burst  # the budget of a /56
        # The refused attempts have cost the other bucket nothing.
        assert await alternate(pair, "sign_ins", key=network_of("2001:db8:0:100::1")) == burst


async def test_limits_and_their_subjects_have_separate_budgets(autojump_clock: MockClock) -> None:
    async with in_memory() as pair:
        for about in ("ada@example.org", "eve@example.org"):
            assert await alternate(pair, "passwords", about=about) == 8
        assert await alternate(pair, "pairings_by_user", key="x") == 10
        assert await alternate(pair, "pairings_by_address", key="x") == 40


async def test_an_attempt_that_does_not_count_is_given_back_on_the_bus(autojump_clock: MockClock) -> None:
    async with in_memory() as pair:
        one, two = (limits.pairings_by_user for limits in pair.limits)
        for _ in range(3 * one.burst):
            async with one.attempt("ada") as attempt:
                pass
            await attempt.give_back()
            await attempt.give_back()
        for _ in range(3 * one.burst):
            with pytest.raises(Refused, match="busy"):
                async with two.attempt("ada"):
                    raise Refused("busy", status=503)
        assert await alternate(pair, "pairings_by_user", key="ada") == one.burst


async def test_without_the_bus_each_instance_counts_alone(autojump_clock: MockClock) -> None:
    async with in_memory() as pair:
        burst = pair.limits[0].sign_ins.burst
        for _ in range(4):
            await pair.limits[0].sign_ins.take(HOME)
        pair.connections = [None, None]
        began_at = trio.current_time()
        # What was taken before counts here all the same.
        assert await alternate(pair, "sign_ins", most=3 * burst) == 2 * burst - 4
        assert trio.current_time() == began_at


async def test_a_lost_connection_refuses_no_attempt(autojump_clock: MockClock) -> None:
    broker = MemoryBroker()
    async with in_memory(broker) as pair:
        broker.cut("a")
        attempt = await pair.limits[0].sign_ins.take(HOME)
        await attempt.give_back()
        assert await alternate(pair, "sign_ins") >= pair.limits[0].sign_ins.burst


async def test_a_stalled_bus_delays_an_attempt_once_and_by_a_bounded_time(
    autojump_clock: MockClock,
) -> None:
    broker = MemoryBroker()
    async with in_memory(broker) as pair:
        broker.stop("a")
        limits = pair.limits[0]
        began_at = trio.current_time()
        async with limits.sign_ins.attempt(HOME), limits.passwords.attempt(HOME, about="ada") as attempt:
            pass
        await attempt.give_back()
        assert trio.current_time() - began_at == pytest.approx(WAIT_S + SLOW_WAIT_S)
        await trio.sleep(SLOW_S)
        began_at = trio.current_time()
        await limits.sign_ins.take(HOME)
        assert trio.current_time() - began_at == pytest.approx(WAIT_S)


async def test_a_bus_that_answers_again_counts_at_once(autojump_clock: MockClock) -> None:
    broker = MemoryBroker()
    async with in_memory(broker) as pair:
        limit = pair.limits[0].sign_ins
        broker.stop("a")
        for _ in range(4):
            await limit.take(HOME)
        broker.go_on("a")
        # What was taken meanwhile is missing from this instance's budget, and late or not from the other's.
        assert limit.burst - 4 <= await alternate(pair, "sign_ins") <= limit.burst


async def test_no_more_is_given_back_than_was_taken(autojump_clock: MockClock) -> None:
    broker = MemoryBroker()
    async with in_memory(broker) as pair:
        limits = pair.limits[0].passwords
        for _ in range(4):
            await limits.take(HOME, about="ada")
        broker.stop("a")
        attempt = await limits.take(HOME, about="ada")  # the bus did not tell
        broker.go_on("a")
        await trio.sleep(SLOW_S)
        await attempt.give_back()
        assert await alternate(pair, "passwords", about="ada") <= limits.burst - 4


async def test_redis_counts_the_attempts_of_both_instances(
    redis: RedisServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shared_budgets, "WAIT_S", 5.0)  # this machine may be slow
    with trio.fail_after(20):
        async with on_redis(redis) as pair:
            # A slow machine may refill some.
            assert 8 <= await alternate(pair, "passwords", about="ada@example.org") <= 9
            assert 30 <= await alternate(pair, "sign_ins") <= 33


async def test_redis_gets_no_address_of_a_person_or_network(redis: RedisServer) -> None:
    with trio.fail_after(20):
        async with on_redis(redis) as pair:
            await pair.limits[0].passwords.take(HOME, about="ada@example.org")
            await pair.limits[0].sign_ins.take(HOME)
        keys = redis.run("KEYS", "*")
        assert keys.count(b"brewos:budget:") == 4  # the address, and the /24 around it
        everything = keys + b"".join(
            redis.run("GET", key.decode()) for key in keys.split() if key.startswith(b"brewos:")
        )
        for secret in (b"ada", b"example", b"192.0", b"passwords", b"sign_ins"):
            assert secret not in everything


async def test_a_paused_redis_does_not_slow_attempts_beyond_the_bound(
    redis: RedisServer, steady_clock: SteadyClock
) -> None:
    with trio.fail_after(20):
        async with on_redis(redis) as pair:
            redis.pause()
            began_at = trio.current_time()
            for _ in range(20):
                await pair.limits[0].sign_ins.take(HOME)
            assert trio.current_time() - began_at < WAIT_S + 20 * SLOW_WAIT_S + 0.5
            redis.resume()


async def test_instances_with_other_keys_have_other_budgets(autojump_clock: MockClock) -> None:
    broker = MemoryBroker()
    bucket = Bucket("sign_ins 192.0.2.1", per_s=0.001, burst=1)
    async with broker.connect("a", lambda _message: None) as connection:
        one, other = (SharedBudgets(lambda: connection, secret=secret) for secret in (SECRET, b"other"))
        assert await one.take([bucket]) == BucketsTaken([bucket])
        assert await one.take([bucket]) == BucketsTaken((), empty=bucket)
        assert await other.take([bucket]) == BucketsTaken([bucket])


async def test_an_attempt_that_a_wider_network_refuses_costs_the_narrow_one_nothing(
    autojump_clock: MockClock,
) -> None:
    narrow, wide = Bucket("narrow", per_s=0.001, burst=1), Bucket("wide", per_s=0.001, burst=1)
    broker = MemoryBroker()
    async with broker.connect("a", lambda _message: None) as connection:
        budgets = SharedBudgets(lambda: connection, secret=SECRET)
        await budgets.take([wide])
        assert await budgets.take([narrow, wide]) == BucketsTaken((), empty=wide)
        assert await budgets.take([narrow]) == BucketsTaken([narrow])

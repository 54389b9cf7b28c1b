"""The promises of a broker, checked with the one in memory, with Redis and with Valkey."""

from collections.abc import Iterator
from itertools import permutations

import pytest
import trio

from brewos_relay.cluster.broker import (
    LEASE_S,
    SWAPS,
    SWAPS_WITHIN_S,
    BrokerConnection,
    BrokerError,
    Claim,
    ClaimResult,
    Located,
    Mail,
    OwnerChanged,
    Since,
)
from support.broker_members import (
    BrokerUnderTest,
    MemoryUnderTest,
    RedisUnderTest,
    members,
)
from support.redis_server import RedisServer

D, E = "BRW-0000000D", "BRW-0000000E"


@pytest.fixture(params=["memory", "redis", "valkey"])
def tested(request: pytest.FixtureRequest) -> Iterator[BrokerUnderTest]:
    if request.param == "memory":
        yield MemoryUnderTest()
        return
    server: RedisServer = request.getfixturevalue(request.param)
    yield RedisUnderTest(server)


async def claim(
    bus: BrokerConnection, device_id: str = D, *, at_us: int | None = None, age_us: int = 0
) -> ClaimResult:
    """Claim one device for a connection that was made at a time, or that has an age."""
    if at_us is None:
        at_us = await bus.now_us() - age_us
    [result] = await bus.claim([Claim(device_id, at_us)])
    return result


def ignore(_message: Mail | OwnerChanged) -> None:
    """Receive nothing."""


async def owner_of(bus: BrokerConnection, device_id: str = D) -> Since | None:
    """Locate one device."""
    [located] = await bus.locate([device_id])
    return located.owner


# Leases


async def test_renewal_tells_whether_the_lease_was_valid(tested: BrokerUnderTest) -> None:
    async with members(tested.broker, "a", renewed=False) as [a]:
        assert not await a.bus.renew(b"")
        assert await a.bus.renew(b"")
        tested.age(LEASE_S - 1)
        assert await a.bus.renew(b"")
        tested.age(LEASE_S + 1)
        assert not await a.bus.renew(b"")
        tested.flush()
        assert not await a.bus.renew(b"")
        await a.bus.resign()
        assert not await a.bus.renew(b"")


async def test_live_instances_are_listed_with_their_last_description(tested: BrokerUnderTest) -> None:
    async with members(tested.broker, "a", "b", "c", renewed=False) as [a, b, c]:
        assert await a.bus.instances() == {}
        await c.bus.renew(b"early")
        tested.age(LEASE_S - 1)
        await a.bus.renew(b"first")
        await a.bus.renew(b"\x00 second \xff")
        await b.bus.renew(b"")
        assert await b.bus.instances() == {"a": b"\x00 second \xff", "b": b"", "c": b"early"}
        tested.age(2)
        assert await b.bus.instances() == {"a": b"\x00 second \xff", "b": b""}
        await a.bus.resign()
        assert await b.bus.instances() == {"b": b""}
        tested.flush()
        assert await b.bus.instances() == {}


async def test_devices_of_an_instance_without_a_lease_have_no_owner(tested: BrokerUnderTest) -> None:
    async with members(tested.broker, "a", "b", renewed=False) as [a, b]:
        since = (await claim(a.bus)).since
        assert await owner_of(b.bus) is None
        await a.bus.renew(b"")
        assert await owner_of(b.bus) == since
        tested.age(LEASE_S + 1)
        assert await owner_of(b.bus) is None
        await a.bus.renew(b"")
        assert await owner_of(b.bus) == since
        await a.bus.resign()
        assert await owner_of(b.bus) is None


async def test_broker_time_is_in_microseconds(tested: BrokerUnderTest) -> None:
    async with members(tested.broker, "a") as [a]:
        at_us = await a.bus.now_us()
        assert 1_790_000_000_000_000 < at_us < 4_000_000_000_000_000
        assert at_us <= await a.bus.now_us() < at_us + 5_000_000


# Owners


@pytest.mark.parametrize("order", list(permutations(range(3))))
async def test_newest_connection_owns_the_device_in_any_order_of_claims(
    tested: BrokerUnderTest, order: tuple[int, ...]
) -> None:
    async with members(tested.broker, "a", "b", "c") as joined:
        since = [Since(1_000_000 + n, member.name) for n, member in enumerate(joined)]
        newest: Since | None = None
        for n in order:
            result = await claim(joined[n].bus, at_us=since[n].at_us)
            newest = max(newest or since[n], since[n])
            assert result == ClaimResult(since[n], newest)
            assert result.won == (newest == since[n])
            assert await owner_of(joined[0].bus) == newest


@pytest.mark.parametrize("names", [("a", "b"), ("b", "a"), ("A", "a"), ("a", "aa"), ("a-", "a1")])
async def test_equal_times_are_ordered_by_the_bytes_of_the_instance(
    tested: BrokerUnderTest, names: tuple[str, str]
) -> None:
    async with members(tested.broker, *names) as joined:
        for member in (*joined, *joined):
            await claim(member.bus, at_us=7)
        assert await owner_of(joined[0].bus) == Since(7, max(names))


async def test_connection_that_is_older_loses_against_the_present_owner(tested: BrokerUnderTest) -> None:
    async with members(tested.broker, "a", "b") as [a, b]:
        owner = (await claim(a.bus, age_us=1_000_000)).since
        late = await claim(b.bus, age_us=60_000_000)
        assert not late.won
        assert late.owner == owner
        newer = await claim(b.bus, age_us=0)
        assert newer.won
        assert not (await claim(a.bus, at_us=owner.at_us)).won


async def test_claim_repeated_after_a_loss_of_data_keeps_its_time(tested: BrokerUnderTest) -> None:
    async with members(tested.broker, "a", "b") as [a, b]:
        older = (await claim(a.bus, age_us=2_000_000)).since
        newer = (await claim(b.bus, age_us=1_000_000)).since
        tested.flush()
        for member in (a, b):
            await member.bus.renew(b"")
        assert (await claim(b.bus, at_us=newer.at_us)).since == newer
        assert await claim(a.bus, at_us=older.at_us) == ClaimResult(older, newer)


async def test_owner_without_a_lease_loses_against_an_older_connection(tested: BrokerUnderTest) -> None:
    async with members(tested.broker, "a", "b") as [a, b]:
        await claim(a.bus, at_us=2_000)
        await a.bus.resign()
        result = await claim(b.bus, at_us=1_000)
        assert result.won
        # It may live, and learns of it when it is back.
        assert await a.take() == [OwnerChanged(D, result.since, result.since)]
        await a.bus.renew(b"")
        assert await owner_of(a.bus) == result.since


async def test_owner_that_no_longer_subscribes_is_told_when_an_earlier_one_is_back(
    tested: BrokerUnderTest,
) -> None:
    async with members(tested.broker, "a", "b") as [a, b]:
        await a.bus.subscribe(D)
        first = (await claim(b.bus, at_us=2)).since
        assert await a.take() == [OwnerChanged(D, first, first)]
        await a.bus.unsubscribe(D)
        await b.bus.resign()
        assert (await claim(a.bus, at_us=1)).won
        await b.bus.renew(b"")
        assert (await claim(b.bus, at_us=2)).won
        assert await a.take() == [OwnerChanged(D, first, first)], "the same as before, and yet news"


async def test_released_device_has_no_owner(tested: BrokerUnderTest) -> None:
    async with members(tested.broker, "a", "b") as [a, b]:
        await b.bus.subscribe(D)
        since = (await claim(a.bus)).since
        await a.bus.release(D, Since(since.at_us - 1, "a"))
        await a.bus.release(D, Since(since.at_us, "b"))
        await a.bus.release(E, since)
        assert await owner_of(b.bus) == since
        await a.bus.release(D, since)
        await a.bus.release(D, since)
        assert await owner_of(b.bus) is None
        assert await b.take() == [OwnerChanged(D, since, since), OwnerChanged(D, since, None)]


async def test_thousands_of_devices_are_claimed_and_located_in_order(tested: BrokerUnderTest) -> None:
    async with members(tested.broker, "a", "b") as [a, b]:
        ids = [f"BRW-{n:08X}" for n in range(2_050)]
        claimed = await a.bus.claim([Claim(each, at_us=n + 1) for n, each in enumerate(ids)])
        assert [result.since.at_us for result in claimed] == [n + 1 for n in range(len(ids))]
        assert all(result.won for result in claimed)
        located = await b.bus.locate(ids[::-1])
        assert [each.owner for each in located] == [result.owner for result in claimed[::-1]]
        assert await b.bus.claim([]) == []
        assert await b.bus.locate([]) == []


# Announcements


async def test_subscriber_learns_of_each_owner_in_order(tested: BrokerUnderTest) -> None:
    async with members(tested.broker, "a", "b", "c") as [a, b, c]:
        first = (await claim(a.bus, at_us=1)).since
        assert await c.bus.subscribe(D) == Located(first)
        assert await c.bus.subscribe(E) == Located(None)
        second = (await claim(b.bus, at_us=2)).since
        assert not (await claim(a.bus, at_us=1)).won
        await b.bus.release(D, second)
        other = (await claim(a.bus, E, at_us=1)).since
        assert await c.take() == [
            OwnerChanged(D, second, second),
            OwnerChanged(D, second, None),
            OwnerChanged(E, other, other),
        ]


async def test_claim_that_is_repeated_is_announced_again(tested: BrokerUnderTest) -> None:
    async with members(tested.broker, "a", "b") as [a, b]:
        since = (await claim(a.bus)).since
        await a.bus.resign()
        assert (await b.bus.subscribe(D)).owner is None
        await a.bus.renew(b"")
        assert await b.take() == []
        for _ in range(2):
            assert (await claim(a.bus, at_us=since.at_us)).won
            assert await b.take() == [OwnerChanged(D, since, since)]


async def test_owner_until_now_learns_of_its_successor_once(tested: BrokerUnderTest) -> None:
    async with members(tested.broker, "a", "b", "c") as [a, b, c]:
        await claim(a.bus, at_us=1)
        await claim(a.bus, E, at_us=1)
        await a.bus.subscribe(E)
        since = (await claim(b.bus, at_us=2)).since
        await claim(b.bus, E, at_us=2)
        assert await a.take() == [OwnerChanged(D, since, since), OwnerChanged(E, since, since)]
        assert await b.take() == []
        assert await c.take() == []


async def test_newer_connection_on_the_same_instance_is_announced_to_subscribers(
    tested: BrokerUnderTest,
) -> None:
    async with members(tested.broker, "a", "b") as [a, b]:
        await claim(a.bus, at_us=1)
        await b.bus.subscribe(D)
        since = (await claim(a.bus, at_us=2)).since
        assert await a.take() == []
        assert await b.take() == [OwnerChanged(D, since, since)]


async def test_instance_that_unsubscribed_learns_of_no_owner(tested: BrokerUnderTest) -> None:
    async with members(tested.broker, "a", "b") as [a, b]:
        await b.bus.subscribe(D)
        await b.bus.subscribe(D)
        await b.bus.unsubscribe(D)
        await b.bus.unsubscribe(E)
        await claim(a.bus, at_us=1)
        assert await b.take() == []
        await b.bus.subscribe(D)
        since = (await claim(a.bus, at_us=2)).since
        assert await b.take() == [OwnerChanged(D, since, since)]


async def test_subscriptions_survive_a_loss_of_data(tested: BrokerUnderTest) -> None:
    async with members(tested.broker, "a", "b") as [a, b]:
        await b.bus.subscribe(D)
        tested.flush()
        since = (await claim(a.bus)).since
        assert await b.take() == [OwnerChanged(D, since, since)]


async def test_mail_and_change_of_owner_arrive_in_the_order_of_their_sender(tested: BrokerUnderTest) -> None:
    async with members(tested.broker, "a", "b") as [a, b]:
        await b.bus.subscribe(D)
        expected: list[Mail | OwnerChanged] = []
        for n in range(20):
            a.bus.send("b", b"before %d" % n)
            since = (await claim(a.bus, at_us=n)).since
            a.bus.send("b", b"after %d" % n)
            a.bus.send("b", b"again %d" % n)
            expected += [Mail(b"before %d" % n), OwnerChanged(D, since, since)]
            expected += [Mail(b"after %d" % n), Mail(b"again %d" % n)]
        await a.bus.now_us()
        assert await b.take() == expected


# Two machines with one id


async def test_device_is_contested_after_several_swaps_within_minutes(tested: BrokerUnderTest) -> None:
    async with members(tested.broker, "a", "b") as [a, b]:
        await claim(a.bus)
        await claim(a.bus, E)
        for _ in range(SWAPS):
            assert await b.bus.locate([D, E]) == [Located(await owner_of(b.bus)), await b.bus.subscribe(E)]
            tested.age(1)
            await a.bus.renew(b"")
            await b.bus.note_swap(D)
        located = await b.bus.subscribe(D)
        assert located.contested
        assert await b.bus.locate([D, E]) == [located, Located(await owner_of(b.bus, E))]
        tested.age(SWAPS_WITHIN_S - SWAPS + 1.5)  # the first one is older now, the second one is not
        await a.bus.renew(b"")
        assert not (await b.bus.subscribe(D)).contested
        await b.bus.note_swap(D)
        assert (await b.bus.subscribe(D)).contested


async def test_device_without_an_owner_is_never_contested(tested: BrokerUnderTest) -> None:
    async with members(tested.broker, "a") as [a]:
        for _ in range(SWAPS):
            await a.bus.note_swap(D)
        assert await a.bus.subscribe(D) == Located(None)
        since = (await claim(a.bus)).since
        assert await a.bus.locate([D]) == [Located(since, contested=True)]
        await a.bus.release(D, since)
        assert await a.bus.locate([D]) == [Located(None)]


# Mail


async def test_mail_arrives_once_and_in_order(tested: BrokerUnderTest) -> None:
    async with members(tested.broker, "a", "b", "c") as [a, b, c]:
        sent = [Mail(b"%d" % n + b"\x00" * (n % 7) * 1000) for n in range(300)]
        for mail in (*sent, Mail(b"")):
            assert a.bus.send("b", mail.payload)
            if len(mail.payload) % 3 == 0:
                await trio.lowlevel.checkpoint()
        await a.bus.now_us()
        assert await b.take() == [*sent, Mail(b"")]
        assert await a.take() == []
        assert await c.take() == []


async def test_instance_can_send_mail_to_itself(tested: BrokerUnderTest) -> None:
    async with members(tested.broker, "a") as [a]:
        assert a.bus.send("a", b"note")
        assert await a.take() == [Mail(b"note")]


async def test_mail_to_an_unknown_instance_is_dropped(tested: BrokerUnderTest) -> None:
    async with members(tested.broker, "a") as [a]:
        assert a.bus.send("b", b"lost")
        async with members(tested.broker, "b") as [b]:
            assert await b.take() == []


async def test_mailboxes_of_connected_instances_are_counted(tested: BrokerUnderTest) -> None:
    async with members(tested.broker, "a", "b", renewed=False) as [a, b]:
        assert await a.bus.count_mailboxes(["b", "c", "a", "b"]) == [True, False, True, True]
        assert await a.bus.count_mailboxes([]) == []
        await b.stop()
        with trio.fail_after(10):  # the server may notice the end of the connection a moment later
            while await a.bus.count_mailboxes(["a", "b"]) != [True, False]:  # noqa: ASYNC110
                await trio.sleep(0.01)


# Budgets


async def test_budget_is_shared_and_refilled(tested: BrokerUnderTest) -> None:
    async with members(tested.broker, "a", "b") as [a, b]:
        budget = {"per_s": 0.01, "burst": 3.0}
        taken = [await each.bus.take_budget("login 1", amount=1, **budget) for each in (a, b, a, b, a)]
        assert taken == [True, True, True, False, False]
        assert await a.bus.take_budget("login 2", amount=3, **budget)
        tested.age(101)
        assert await b.bus.take_budget("login 1", amount=1, **budget)
        assert not await b.bus.take_budget("login 1", amount=1, **budget)
        tested.age(1000)
        assert not await b.bus.take_budget("login 1", amount=4, **budget)
        assert await b.bus.take_budget("login 1", amount=3, **budget)


async def test_budget_that_is_never_refilled_stays_empty(tested: BrokerUnderTest) -> None:
    async with members(tested.broker, "a") as [a]:
        assert await a.bus.take_budget("once", amount=0.5, per_s=0, burst=0.5)
        tested.age(24 * 3600)
        assert not await a.bus.take_budget("once", amount=0.25, per_s=0, burst=0.5)


async def test_refund_fills_a_budget_up_to_its_capacity(tested: BrokerUnderTest) -> None:
    async with members(tested.broker, "a", "b") as [a, b]:
        await b.bus.refund_budget("login", amount=5, burst=2)
        for _ in range(2):
            assert await a.bus.take_budget("login", amount=1, per_s=0.001, burst=2)
        await b.bus.refund_budget("login", amount=1, burst=2)
        assert await a.bus.take_budget("login", amount=1, per_s=0.001, burst=2)
        assert not await a.bus.take_budget("login", amount=1, per_s=0.001, burst=2)
        await b.bus.refund_budget("login", amount=50, burst=2)
        assert not await a.bus.take_budget("login", amount=3, per_s=0.001, burst=2)
        assert await a.bus.take_budget("login", amount=2, per_s=0.001, burst=2)


# The connection


async def test_calls_on_a_lost_connection_fail(tested: BrokerUnderTest) -> None:
    async with members(tested.broker, "a", "b") as [a, b]:
        tested.cut("a")
        assert await a.bus.wait_lost()
        assert not a.bus.send("b", b"lost")
        for call in (
            lambda: a.bus.now_us(),
            lambda: a.bus.renew(b""),
            lambda: a.bus.resign(),
            lambda: a.bus.instances(),
            lambda: a.bus.count_mailboxes(["a"]),
            lambda: a.bus.claim([Claim(D, 1)]),
            lambda: a.bus.release(D, Since(1, "a")),
            lambda: a.bus.locate([D]),
            lambda: a.bus.note_swap(D),
            lambda: a.bus.subscribe(D),
            lambda: a.bus.unsubscribe(D),
            lambda: a.bus.take_budget("a", amount=1, per_s=1, burst=1),
            lambda: a.bus.refund_budget("a", amount=1, burst=1),
        ):
            with pytest.raises(BrokerError):
                await call()
        assert await b.take() == []


async def test_lost_connection_receives_nothing_and_the_next_one_starts_afresh(
    tested: BrokerUnderTest,
) -> None:
    async with members(tested.broker, "a", "b") as [a, b], trio.open_nursery() as nursery:
        await a.bus.subscribe(D)
        tested.cut("a")
        await a.bus.wait_lost()
        await claim(b.bus)
        b.bus.send("a", b"between")
        await b.bus.now_us()
        await a.stop()
        await nursery.start(a.run)
        since = (await claim(b.bus, age_us=0)).since
        assert await a.take() == []
        assert await a.bus.subscribe(D) == Located(since)
        await a.stop()


async def test_leaving_the_block_closes_the_connection(tested: BrokerUnderTest) -> None:
    async with members(tested.broker, "b") as [b]:
        async with tested.broker.connect("a", ignore) as bus:
            bus.send("b", b"last words")
        assert await bus.wait_lost()
        assert not bus.send("b", b"too late")
        with pytest.raises(BrokerError):
            await bus.now_us()
        assert await b.take() == [Mail(b"last words")]


async def test_failure_of_the_block_is_raised_as_it_is(tested: BrokerUnderTest) -> None:
    with pytest.raises(ZeroDivisionError), trio.fail_after(5):
        async with tested.broker.connect("a", ignore):
            raise ZeroDivisionError


async def test_cancelled_calls_disturb_no_other_one(tested: BrokerUnderTest) -> None:
    async with members(tested.broker, "a", "b") as [a, b]:
        await claim(b.bus, at_us=5)
        for n in range(100):
            with trio.CancelScope() as scope:
                async with trio.open_nursery() as nursery:
                    for call in (a.bus.now_us, a.bus.instances):
                        nursery.start_soon(call)
                    nursery.start_soon(a.bus.locate, [D, E])
                    nursery.start_soon(a.bus.subscribe, E)
                    await trio.lowlevel.checkpoint()
                    if n % 2:
                        await trio.lowlevel.checkpoint()
                    scope.cancel()
            assert await owner_of(a.bus) == Since(5, "b")
        await a.bus.unsubscribe(E)
        await claim(b.bus, E)
        assert await a.take() == []


async def test_calls_of_many_tasks_get_their_own_results(tested: BrokerUnderTest) -> None:
    async with members(tested.broker, "a", "b") as [a, b]:
        ids = [f"BRW-{n:08X}" for n in range(200)]
        await b.bus.claim([Claim(each, at_us=n) for n, each in enumerate(ids)])
        found: dict[int, Since | None] = {}

        async def find(n: int) -> None:
            found[n] = (await a.bus.subscribe(ids[n])).owner if n % 2 else await owner_of(a.bus, ids[n])

        async with trio.open_nursery() as nursery:
            for n in range(len(ids)):
                nursery.start_soon(find, n)
        assert found == {n: Since(n, "b") for n in range(len(ids))}


async def test_connection_of_a_cancelled_block_is_closed(tested: BrokerUnderTest) -> None:
    async with members(tested.broker, "b") as [b]:
        with trio.CancelScope() as scope:
            async with tested.broker.connect("a", ignore):
                assert await b.bus.count_mailboxes(["a"]) == [True]
                scope.cancel()
                await trio.sleep_forever()
        while await b.bus.count_mailboxes(["a"]) == [True]:
            pass

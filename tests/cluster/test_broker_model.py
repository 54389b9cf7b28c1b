"""The broker in memory is a model of the real one: random calls of several instances have equal results."""

from collections.abc import Sequence
from typing import Any, Final, NamedTuple, TypeAlias

import pytest
import trio
import trio.testing
from hypothesis import Phase, given, settings
from hypothesis import strategies as st

from brewos_relay.cluster.broker import (
    BrokerConnection,
    Claim,
    Mail,
    OwnerChanged,
    Since,
)
from support.broker_members import MemoryUnderTest, RedisUnderTest
from support.redis_server import RedisServer

NAMES: Final = ("a", "B", "aa")
DEVICES: Final = ("BRW-00000001", "BRW-00000002")

names = st.sampled_from(NAMES)
devices = st.sampled_from(DEVICES)
times_us = st.integers(0, 4)
"""Few, so that equal and crossing times are frequent."""
amounts = st.sampled_from([1.0, 2.0, 5.0])
REFILL_PER_S: Final = 1 / 64
ages_s = st.sampled_from([8, 16, 64, 256, 320])
"""The server's clock goes on while the model's stands still. With these ages, no sum is just below the end of
a lease, the time for swaps, or a whole number of a budget."""


class Step(NamedTuple):
    """A call of an instance, or of the test if `name` is empty."""

    name: str
    call: str
    arguments: tuple[Any, ...] = ()


def step(call: str, *arguments: st.SearchStrategy[Any]) -> st.SearchStrategy[Step]:
    return st.builds(Step, names, st.just(call), st.tuples(*arguments))


some_claims = st.lists(st.builds(Claim, devices, times_us), min_size=1, max_size=3).map(tuple)
some_devices = st.lists(devices, max_size=3).map(tuple)
TIME: Final = [
    st.builds(Step, st.just(""), st.just("age"), st.tuples(ages_s)),
    step("renew", st.binary(max_size=3)),
]
OWNERS: Final = [
    step("claim", some_claims),
    step("claim", some_claims),
    step("claim_again", devices),
    step("release", devices, st.builds(Since, times_us, names)),
    step("release_own", devices),
    step("locate", some_devices),
    step("subscribe", devices),
    step("subscribe", devices),
    step("unsubscribe", devices),
    step("resign"),
    step("send", names, st.binary(max_size=3)),
]
SWAPS: Final = [
    step("claim", some_claims),
    step("note_swap", devices),
    step("note_swap", devices),
    step("locate", st.just(DEVICES)),
]
BUDGETS: Final = [
    step("take_budget", st.sampled_from("kl"), amounts),
    step("take_budget", st.sampled_from("kl"), amounts),
    step("refund_budget", st.sampled_from("kl"), amounts),
]
OTHERS: Final = [
    step("instances"),
    step("count_mailboxes", st.lists(names, max_size=3).map(tuple)),
    step("cut"),
    st.just(Step("", "flush")),
]
GROUPS: Final = {
    "owners": OWNERS + TIME,
    "swaps": SWAPS + TIME,
    "budgets": BUDGETS + TIME,
    "all": OWNERS + SWAPS + BUDGETS + OTHERS + TIME,
}

Received: TypeAlias = list[Mail | OwnerChanged]


class Instance:
    """One instance at both brokers."""

    def __init__(self) -> None:
        self.buses: list[BrokerConnection] = []
        self.received: list[Received] = [[], []]
        self.own: dict[str, int] = {}
        """The time of the last claim to each device."""
        self.scope = trio.CancelScope()


class Run:
    """Applies each step to the model and to the server."""

    def __init__(self, redis: RedisServer) -> None:
        self.model = MemoryUnderTest()
        self.real = RedisUnderTest(redis)
        self.instances = {name: Instance() for name in NAMES}

    async def keep_connected(
        self, name: str, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED
    ) -> None:
        """Connect an instance to both brokers until its scope is cancelled."""
        instance = self.instances[name] = Instance()
        model, real = instance.received
        with instance.scope:
            async with (
                self.model.broker.connect(name, model.append) as first,
                self.real.broker.connect(name, real.append) as second,
            ):
                instance.buses = [first, second]
                task_status.started()
                await trio.sleep_forever()

    async def apply(self, step: Step, nursery: trio.Nursery) -> None:
        """Apply a step, and compare the results."""
        if step.call in {"age", "flush"}:
            for tested in (self.model, self.real):
                getattr(tested, step.call)(*step.arguments)
        elif step.call == "cut":
            await self.compare()
            for tested in (self.model, self.real):
                tested.cut(step.name)
            for bus in self.instances[step.name].buses:
                await bus.wait_lost()
            self.instances[step.name].scope.cancel()
            await nursery.start(self.keep_connected, step.name)
        else:
            await self.call(self.instances[step.name], step)

    async def call(self, instance: Instance, step: Step) -> None:
        model, real = instance.buses
        match step.call, step.arguments:
            case "claim", (claims,):
                await self.claim(instance, claims)
            case "claim_again", (device_id,):
                if device_id in instance.own:
                    await self.claim(instance, [Claim(device_id, at_us=instance.own[device_id])])
            case "release_own", (device_id,):
                since = Since(instance.own.get(device_id, 0), step.name)
                for bus in (real, model):
                    await bus.release(device_id, since)
            case "unsubscribe", (device_id,):
                await real.now_us()  # the announcements up to now arrive before the answer
                for bus in (real, model):
                    await bus.unsubscribe(device_id)
            case "send", (target, payload):
                assert real.send(target, payload)
                assert model.send(target, payload)
                await real.now_us()
            case "take_budget", (key, amount):
                given = {"amount": amount, "per_s": REFILL_PER_S, "burst": 5.0}
                assert await real.take_budget(key, **given) == await model.take_budget(key, **given)
            case "refund_budget", (key, amount):
                for bus in (real, model):
                    await bus.refund_budget(key, amount=amount, burst=5.0)
            case call, arguments:
                assert await getattr(real, call)(*arguments) == await getattr(model, call)(*arguments), step

    async def claim(self, instance: Instance, claims: Sequence[Claim]) -> None:
        """Claim devices, and keep the times for later steps."""
        model, real = instance.buses
        assert await real.claim(claims) == await model.claim(claims)
        for claim in claims:
            instance.own[claim.device_id] = claim.at_us

    async def compare(self) -> None:
        """Wait until everything that was sent has arrived, and compare it."""
        for instance in self.instances.values():
            for bus in instance.buses:
                # Its own announcements come after everything that others have sent.
                await bus.now_us()
        await trio.testing.wait_all_tasks_blocked()
        for name, instance in self.instances.items():
            assert instance.received[1] == instance.received[0], name


@pytest.mark.parametrize("group", GROUPS)
@settings(max_examples=30, phases=[Phase.explicit, Phase.reuse, Phase.generate])  # shrinking takes minutes
@given(data=st.data())
async def test_model_and_server_agree(shared_redis: RedisServer, group: str, data: st.DataObject) -> None:
    steps = data.draw(st.lists(st.one_of(GROUPS[group]), min_size=20, max_size=40))
    shared_redis.restore()
    run = Run(shared_redis)
    with trio.fail_after(30):
        async with trio.open_nursery() as nursery:
            for name in NAMES:
                await nursery.start(run.keep_connected, name)
                await run.apply(Step(name, "renew", (b"",)), nursery)
            for each in steps:
                await run.apply(each, nursery)
            await run.compare()
            nursery.cancel_scope.cancel()

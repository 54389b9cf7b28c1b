"""Two instances and more, joined by a broker in memory, on a virtual clock."""

import pytest
import trio
from trio.testing import MockClock

from brewos_relay.cluster.broker import RENEW_EVERY_S, BrokerError
from brewos_relay.instances import Description
from support.instances import DEVICE_ID, connect, contents, open_instance, open_instances, types
from support.memory_broker import MemoryBroker

COMMAND = {"type": "command", "cmd": "tare", "requestId": 7}


async def test_a_client_gets_the_state_and_the_messages_of_a_device_elsewhere(
    autojump_clock: MockClock,
) -> None:
    async with open_instances("a", "b") as (a, b):
        device = await a.online_device()
        await trio.sleep(0.1)
        client = await b.client()
        first = await contents(client)
        assert [each["type"] for each in first] == ["connected", "device_status", "status"]
        assert first[0]["deviceOnline"] is True
        await device.send({"type": "status_delta", "seq": 2, "temps": {"brew": 93}})
        assert [each["type"] for each in await contents(client)] == ["status_delta"]


async def test_a_client_that_waits_is_told_when_the_device_comes_and_goes(
    autojump_clock: MockClock,
) -> None:
    async with open_instances("a", "b") as (a, b):
        client = await b.client()
        assert await types(client) == ["connected"]
        device = await a.online_device()
        assert (await types(client))[:1] == ["device_online"]
        device.close()
        assert await types(client) == ["device_offline"]


async def test_a_command_crosses_once_and_its_sender_is_told(autojump_clock: MockClock) -> None:
    async with open_instances("a", "b") as (a, b):
        device, client = await connect(a, b)
        await types(device)
        await client.send(COMMAND)
        assert [each["cmd"] for each in await contents(device)] == ["tare"]
        told = await contents(client)
        assert [(each["type"], each["status"]) for each in told] == [("command_status", "delivered")]
        assert [event.kind for event in b.activity if event.kind == "command"] == ["command"]
        assert not [event for event in a.activity if event.kind == "command"]


async def test_the_newest_connection_wins_on_any_instance(autojump_clock: MockClock) -> None:
    async with open_instances("a", "b", "c") as (a, b, c):
        first = await a.online_device()
        await trio.sleep(10)
        watcher, here = await b.client(), await a.client()
        await types(watcher)
        await types(here)
        second = await c.online_device()
        await trio.sleep(1)
        assert a.relay.is_online(DEVICE_ID)
        assert not a.relay.has_device(DEVICE_ID)
        assert first.close_code == 4002
        for client in (watcher, here):
            assert not {"device_online", "device_offline"} & set(await types(client))
        await second.send({"type": "status_delta", "seq": 2, "temps": {}})
        assert await types(watcher) == ["status_delta"]
        assert await types(here) == ["status_delta"]


async def test_devices_of_an_instance_that_died_go_offline_within_20_s(
    autojump_clock: MockClock,
) -> None:
    broker = MemoryBroker()
    async with open_instance("b", broker) as b, trio.open_nursery() as nursery:

        async def run_a(task_status: trio.TaskStatus[None]) -> None:
            async with open_instance("a", broker) as a:
                await a.online_device()
                await trio.sleep(0.1)
                task_status.started()
                await trio.sleep_forever()

        await nursery.start(run_a)
        client = await b.client()
        await types(client)
        broker.cut("a")
        broker.reachable = False
        await client.send(COMMAND)
        assert (await b.view.find_live([DEVICE_ID]))[DEVICE_ID].is_online
        told = await contents(client, within_s=3)
        assert told[-1]["status"] in ("unknown", "device_offline")
        assert "device_offline" in await types(client, within_s=20)
        nursery.cancel_scope.cancel()


async def test_everything_goes_on_after_the_broker_lost_its_data(
    autojump_clock: MockClock,
) -> None:
    broker = MemoryBroker()
    async with open_instances("a", "b", broker=broker) as (a, b):
        device, client = await connect(a, b)
        broker.flush()
        broker.cut("a")
        broker.cut("b")
        await trio.sleep(1)
        await types(client)
        await device.send({"type": "status_delta", "seq": 2, "temps": {}})
        assert await types(client) == ["status_delta"]


async def test_nothing_crosses_without_clients(autojump_clock: MockClock) -> None:
    async with open_instances("a", "b") as (a, b):
        _, client = await connect(a, b)
        client.close()
        await trio.sleep(7)  # another client may have been about to come
        assert a.table.records[DEVICE_ID].clients is None
        assert DEVICE_ID not in b.table.records
        assert b.relay.session_count == 0


# The connection to the broker


class Flaky(MemoryBroker):
    """A broker whose calls can be made to fail."""

    def __init__(self) -> None:
        super().__init__()
        self.error: Exception | None = None
        self.renewals: list[float] = []

    def renew(self, instance: str, info: bytes) -> bool:
        """Renew a lease, or fail."""
        self.renewals.append(trio.current_time())
        if self.error is not None:
            raise self.error
        return super().renew(instance, info)


@pytest.mark.parametrize(
    "error",
    [BrokerError("refused"), ValueError("wrong"), ExceptionGroup("", [BrokerError("refused")])],
    ids=["broker error", "other error", "group"],
)
async def test_failing_task_ends_the_connection_and_the_instance_joins_again(
    autojump_clock: MockClock, caplog: pytest.LogCaptureFixture, error: Exception
) -> None:
    broker = Flaky()
    async with open_instances("a", "b", broker=broker) as (a, b):
        device, client = await connect(a, b)
        broker.error = error
        await trio.sleep(RENEW_EVERY_S + 1)
        assert a.member.connection is None
        assert a.member.reconnects == 1
        tries = len(broker.renewals)
        await trio.sleep(10)
        assert 50 < len(broker.renewals) - tries < 80, "about one each 0.3 s for each instance"
        assert caplog.text.count("the bus is unavailable") <= 2
        broker.error = None
        await trio.sleep(2)
        await types(client)
        await device.send({"type": "note"})
        assert await types(client) == ["note"]


async def test_devices_are_claimed_again_after_the_lease_was_lost(autojump_clock: MockClock) -> None:
    broker = MemoryBroker()
    async with open_instances("a", broker=broker) as [a]:
        await a.online_device()
        await trio.sleep(0.1)
        broker.flush()
        await trio.sleep(RENEW_EVERY_S + 0.5)
        assert broker.locate(DEVICE_ID).owner is not None
        assert a.member.reconnects == 0
        assert a.member.unreadable == 0
        broker.send("a", b"junk")
        await trio.sleep(0.1)
        assert a.member.unreadable == 1


async def test_description_that_fails_does_not_end_the_instance(autojump_clock: MockClock) -> None:
    async with open_instances("a") as [a]:
        describe = a.member.describe

        def fail() -> Description:
            raise ValueError("it cannot be described")

        a.member.describe = fail
        await trio.sleep(RENEW_EVERY_S + 1)
        assert a.member.connection is None
        a.member.describe = describe
        with trio.fail_after(2):
            while a.member.connection is None:  # noqa: ASYNC110 - the clock jumps
                await trio.sleep(0.01)


async def test_instance_works_without_the_broker_from_the_start(autojump_clock: MockClock) -> None:
    broker = MemoryBroker()
    broker.reachable = False
    async with open_instances("a", broker=broker) as [a]:
        device, client = await a.online_device(), await a.client()
        await types(device)
        await client.send(COMMAND)
        assert [each["cmd"] for each in await contents(device)] == ["tare"]
        assert not a.member.joined.is_set()
        broker.reachable = True
        with trio.fail_after(2):
            await a.member.joined.wait()


async def test_instance_that_has_resigned_owns_nothing(autojump_clock: MockClock) -> None:
    broker = MemoryBroker()
    async with open_instance("b", broker) as b:
        async with open_instance("a", broker) as a:
            await a.online_device()
            await trio.sleep(0.1)
            await a.member.resign()
            await trio.sleep(RENEW_EVERY_S + 1)
            assert set(await b.view.instances()) == {"b"}
            assert broker.locate(DEVICE_ID).owner is None
        broker.cut("b")
        await b.member.resign()


async def test_resigning_does_not_wait_for_a_broker_that_does_not_answer(autojump_clock: MockClock) -> None:
    broker = MemoryBroker()
    async with open_instance("a", broker):
        broker.stop("a")
        began_at = trio.current_time()
    assert trio.current_time() - began_at <= 1.1
    async with open_instance("a", broker):
        broker.unreachable.add("a")
        broker.cut("a")
        await trio.sleep(0.1)


async def test_outcome_is_unknown_in_time_while_the_broker_does_not_answer(autojump_clock: MockClock) -> None:
    broker = MemoryBroker()
    async with open_instances("a", "b", broker=broker) as (a, b):
        device, client = await connect(a, b)
        await types(device)
        broker.stop("b")
        await client.send(COMMAND)
        assert await types(client, within_s=1.9) == []
        assert (await contents(client, within_s=0.5))[-1]["status"] == "unknown"
        broker.go_on("b")
        assert await types(device) == [], "it is too late"


async def test_outcome_that_comes_over_the_next_connection_counts(autojump_clock: MockClock) -> None:
    broker = MemoryBroker()
    async with open_instances("a", "b", broker=broker) as (a, b):
        device, client = await connect(a, b)
        broker.stop("a")
        await client.send(COMMAND)
        await trio.sleep(0.1)
        broker.cut("b")
        assert "command_status" not in await types(client)
        broker.go_on("a")
        told = [each for each in await contents(client) if each["type"] == "command_status"]
        assert [each["status"] for each in told] == ["delivered"]
        assert "command" in await types(device)


async def test_command_is_refused_at_once_without_the_broker(autojump_clock: MockClock) -> None:
    broker = MemoryBroker()
    async with open_instances("a", "b", broker=broker) as (a, b):
        _, client = await connect(a, b)
        broker.unreachable.add("b")
        broker.cut("b")
        await trio.sleep(0.1)
        await client.send(COMMAND)
        assert (await contents(client))[-1]["status"] == "bus_unavailable"


async def test_change_of_an_owner_that_fails_does_not_end_the_connection(
    autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    async with open_instances("a", "b") as (a, b):
        client = await b.client()
        await types(client)

        def fail(device_id: str, *args: object, **options: object) -> None:
            raise ValueError(device_id)

        with monkeypatch.context() as patch:
            patch.setattr(b.relay, "attach_remote_device", fail)
            await a.online_device()
            await trio.sleep(0.5)
        assert "the change of the owner" in caplog.text
        assert b.member.reconnects == 0

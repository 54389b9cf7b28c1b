"""Two instances and more, joined by a broker in memory, on a virtual clock."""

import trio
from trio.testing import MockClock

from support.instances import DEVICE_ID, contents, open_instance, open_instances, types
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
        device = await a.online_device()
        await trio.sleep(0.1)
        client = await b.client()
        await types(client)
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
        device = await a.online_device()
        await trio.sleep(0.1)
        client = await b.client()
        await types(client)
        broker.flush()
        broker.cut("a")
        broker.cut("b")
        await trio.sleep(1)
        await types(client)
        await device.send({"type": "status_delta", "seq": 2, "temps": {}})
        assert await types(client) == ["status_delta"]


async def test_nothing_crosses_without_clients(autojump_clock: MockClock) -> None:
    async with open_instances("a", "b") as (a, b):
        await a.online_device()
        await trio.sleep(0.1)
        client = await b.client()
        await types(client)
        client.close()
        await trio.sleep(7)  # another client may have been about to come
        assert a.table.records[DEVICE_ID].clients is None
        assert DEVICE_ID not in b.table.records
        assert b.relay.session_count == 0

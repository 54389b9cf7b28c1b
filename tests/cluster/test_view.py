"""ClusterView: devices of all instances, for admission and the API."""

from collections.abc import Sequence
from functools import partial

import msgspec
import pytest
import trio
import trio.testing
from trio.testing import MockClock

from brewos_relay.cluster import view
from brewos_relay.cluster.broker import Located, Since
from brewos_relay.cluster.view import FIND_S
from brewos_relay.core.grant import Grant
from brewos_relay.instances import Description
from brewos_relay.live_devices import PeerCounts
from brewos_relay.messages import Message, encode
from support.instances import DEVICE_ID, Instance, contents, open_instances, types
from support.memory_broker import MemoryBroker

OTHER_ID = "BRW-00000002"
RESTART = encode({"type": "restart"})


async def test_absent_device_is_looked_for_no_longer_than_needed(autojump_clock: MockClock) -> None:
    broker = MemoryBroker()
    async with open_instances("a", "b", broker=broker) as (a, b):
        began_at = trio.current_time()
        await b.view.find(DEVICE_ID)
        await b.view.find(DEVICE_ID)
        await a.online_device()
        await a.view.find(DEVICE_ID)
        await trio.sleep(0.1)
        await b.view.find(DEVICE_ID)
        assert trio.current_time() - began_at < 0.2
        broker.stop("b")
        await b.view.find(OTHER_ID)
        assert trio.current_time() - began_at == pytest.approx(FIND_S, abs=0.3)
        broker.unreachable.add("b")
        broker.cut("b")
        await trio.sleep(0.1)
        began_at = trio.current_time()
        await b.view.find(OTHER_ID)
        assert trio.current_time() == began_at


async def test_two_clients_wait_for_one_state(autojump_clock: MockClock) -> None:
    async with open_instances("a", "b") as (a, b):
        await a.online_device()
        await trio.sleep(0.1)
        began_at = trio.current_time()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(b.view.find, DEVICE_ID)
            nursery.start_soon(b.view.find, DEVICE_ID)
        assert trio.current_time() == began_at
        assert (await contents(await b.client()))[0]["deviceOnline"] is True


async def test_nothing_is_contested_without_an_answer(autojump_clock: MockClock) -> None:
    broker = MemoryBroker()
    async with open_instances("a", broker=broker) as [a]:
        assert not await a.view.is_contested(DEVICE_ID)
        broker.stop("a")
        assert not await a.view.is_contested(DEVICE_ID)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(a.view.is_contested, DEVICE_ID)
            await trio.sleep(0.1)
            broker.cut("a")  # it waits for the answer
        assert not await a.view.is_contested(DEVICE_ID)


async def test_devices_that_come_together_share_a_question(
    autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with open_instances("a") as [a]:
        await trio.sleep(0.1)
        asked: list[int] = []
        connection = a.member.connection
        assert connection is not None
        locate, is_held = connection.locate, trio.Event()

        async def counting(device_ids: Sequence[str]) -> list[Located]:
            asked.append(len(device_ids))
            if not is_held.is_set():
                is_held.set()
                await trio.sleep_forever()
            return [Located(None, contested=found.owner is None) for found in await locate(device_ids)]

        monkeypatch.setattr(connection, "locate", counting)
        contested: list[bool] = []

        async def ask(number: int) -> None:
            contested.append(await a.view.is_contested(f"BRW-{number:08X}"))

        with trio.CancelScope() as first:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(ask, 0)
                await is_held.wait()
                first.cancel()
        async with trio.open_nursery() as nursery:
            for number in range(5):
                nursery.start_soon(ask, number)
        assert asked == [1, 5]
        assert contested == 5 * [True]


async def test_question_goes_on_without_the_task_that_asked_first(
    autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with open_instances("a") as [a]:
        await trio.sleep(0.1)
        search = view._Search()
        monkeypatch.setattr(a.view, "_search", search)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(a.view.is_contested, DEVICE_ID)
            await trio.testing.wait_all_tasks_blocked()
            began_at = trio.current_time()
            search.done.set()  # and nothing was found
        assert trio.current_time() == began_at


async def test_live_devices_of_all_instances_are_merged(autojump_clock: MockClock) -> None:
    broker = MemoryBroker()
    async with open_instances("a", "b", broker=broker) as (a, b):
        await a.online_device()
        await b.client(grant=Grant(user_id="ada"))
        await a.client(grant=Grant(user_id="bob"))
        for view in (a.view, b.view):
            live = await view.find_live([DEVICE_ID, OTHER_ID])
            assert live[DEVICE_ID].is_online
            assert set(live[DEVICE_ID].user_ids) == {"ada", "bob"}
            assert not live[OTHER_ID].is_online
        broker.unreachable.add("b")
        broker.cut("b")
        await trio.sleep(0.1)
        live = await b.view.find_live([DEVICE_ID])
        assert list(live[DEVICE_ID].user_ids) == ["ada"]


async def test_broker_knows_the_devices_of_an_instance_that_does_not_answer(
    autojump_clock: MockClock,
) -> None:
    broker = MemoryBroker()
    async with open_instances("a", "b", broker=broker) as (a, b):
        await a.online_device()
        await trio.sleep(0.1)
        broker.stop("a")
        assert (await b.view.find_live([DEVICE_ID]))[DEVICE_ID].is_online


async def test_answer_about_devices_that_nobody_asked_for_is_dropped(
    autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with open_instances("a", "b") as (a, b):
        await a.online_device()
        live = await a.view.find_live([DEVICE_ID, OTHER_ID])

        async def answer(instance: str, device_ids: object) -> object:
            await trio.lowlevel.checkpoint()
            return live

        monkeypatch.setattr(b.member.requests, "ask_live", answer)
        assert set(await b.view.find_live([DEVICE_ID])) == {DEVICE_ID}


async def test_peers_of_all_instances_are_counted(autojump_clock: MockClock) -> None:
    async with open_instances("a", "b") as (a, b):
        await a.online_device()
        a.member.describe = lambda: Description(devices=a.relay.device_count, clients=2)
        await trio.sleep(5)
        assert await b.view.count_peers() == PeerCounts(1, 2)
        assert b.view.closing is False
        assert b.view.counters is b.relay.counters


async def test_instances_are_listed_with_their_descriptions(autojump_clock: MockClock) -> None:
    broker = MemoryBroker()
    async with open_instances("a", "b", broker=broker) as (a, _):
        broker.renew("c", b"not JSON")
        broker.renew("d", b"[]")
        own = Description()
        assert await a.view.instances() == {"a": own, "b": own, "c": own, "d": own}
        broker.cut("a")
        assert await a.view.instances() == {"a": own}
        await trio.sleep(0.05)
        assert await a.view.instances() == {"a": own}


async def mode_of(instance: Instance) -> object:
    state = await instance.view.state_of(DEVICE_ID)
    return state["messages"]["status"]["machine"]["mode"] if state is not None else None


async def test_state_is_asked_of_the_instance_that_has_the_device(
    autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    broker = MemoryBroker()
    async with open_instances("a", "b", broker=broker) as (a, b):
        assert await mode_of(b) is None
        device = await a.online_device()
        await trio.sleep(0.1)
        assert await mode_of(a) == "on"
        assert await mode_of(b) == "on"
        await b.client()
        assert await mode_of(b) == "on"

        async def answer(instance: str, device_id: str) -> bytes | None:
            await trio.lowlevel.checkpoint()
            return answers.pop()

        monkeypatch.setattr(b.member.requests, "ask_state", answer)
        answers = [None, b"not JSON"]
        device.close()
        await trio.sleep(0.1)
        broker._owners[DEVICE_ID] = Since(1, "a")
        assert await b.view.state_of(DEVICE_ID) is None
        assert await b.view.state_of(DEVICE_ID) is None
        broker._owners[DEVICE_ID] = Since(1, "b")
        assert await mode_of(b) == "on"
        broker.stop("b")
        assert await mode_of(b) == "on"


async def test_log_is_read_and_cleared_where_the_device_is(autojump_clock: MockClock) -> None:
    broker = MemoryBroker()
    async with open_instances("a", "b", broker=broker) as (a, b):
        assert await b.view.log_of(DEVICE_ID, "look") is None
        device = await a.online_device()
        await device.send({"type": "log_config", "enabled": True})
        await device.send({"type": "log", "level": "info", "source": "esp32", "message": "Pump on"})
        await trio.sleep(2)
        for view in (a.view, b.view):
            looked = await view.log_of(DEVICE_ID, "look")
            assert looked is not None
            assert (looked.config.enabled, looked.lines) == (True, [])
            assert looked.age_s == pytest.approx(2)
            read = await view.log_of(DEVICE_ID, "read")
            assert read is not None
            assert [line.rpartition(": ")[2] for line in read.lines] == ["Pump on"]
        cleared = await b.view.log_of(DEVICE_ID, "clear")
        assert cleared is not None
        assert cleared.size_bytes == 0
        assert a.relay.log_of(DEVICE_ID).lines() == []  # type: ignore[union-attr]
        broker.stop("a")
        assert await b.view.log_of(DEVICE_ID, "look") is None


async def test_measurements_are_read_where_the_device_is(autojump_clock: MockClock) -> None:
    broker = MemoryBroker()
    async with open_instances("a", "b", broker=broker) as (a, b):
        assert await b.view.history_of(DEVICE_ID, seconds=60) is None
        await a.online_device()
        await trio.sleep(2)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(partial(a.relay.histories.answer, within_s=5))
            here, elsewhere = [await view.history_of(DEVICE_ID, seconds=60) for view in (a.view, b.view)]
        assert here is not None
        assert elsewhere is not None
        assert here.online == elsewhere.online == [True]
        broker.stop("a")
        assert await b.view.history_of(DEVICE_ID, seconds=60) is None


async def test_message_of_the_relay_reaches_the_device_on_any_instance(autojump_clock: MockClock) -> None:
    broker = MemoryBroker()
    async with open_instances("a", "b", broker=broker) as (a, b):
        assert await b.view.send_to_device(DEVICE_ID, RESTART) == "device_offline"
        device = await a.online_device()
        await trio.sleep(0.1)
        await types(device)
        for view in (a.view, b.view):
            assert await view.send_to_device(DEVICE_ID, RESTART) == "delivered"
        assert await types(device) == ["restart", "restart"]
        broker.full.add("b")
        assert await b.view.send_to_device(DEVICE_ID, RESTART) == "bus_unavailable"
        broker.full.clear()
        broker.stop("a")
        assert await b.view.send_to_device(DEVICE_ID, RESTART) == "unknown"
        broker.stop("b")
        assert await b.view.send_to_device(DEVICE_ID, RESTART) == "device_offline"


async def test_device_that_takes_nothing_is_busy(autojump_clock: MockClock) -> None:
    async with open_instances("a") as [a]:
        device = await a.online_device()
        while a.relay.send_to_device(DEVICE_ID, RESTART):
            pass
        assert await a.view.send_to_device(DEVICE_ID, RESTART) == "busy"
        assert msgspec.json.decode((await device.receive()).payload) == {"type": "restart"}


async def test_no_device_elsewhere_is_found_without_the_broker(autojump_clock: MockClock) -> None:
    broker = MemoryBroker()
    broker.reachable = False
    async with open_instances("a", broker=broker) as [a]:
        assert not await a.view.is_contested(DEVICE_ID)
        assert await a.view.state_of(DEVICE_ID) is None
        assert await a.view.send_to_device(DEVICE_ID, Message(b"{}")) == "device_offline"

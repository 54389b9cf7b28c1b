"""MailHandler: what other instances send, also foreign and late envelopes."""

import math
from functools import partial
from typing import Any

import msgspec
import pytest
import trio
from trio.testing import MockClock

from brewos_relay.cluster.broker import Claim, Mail, OwnerChanged
from brewos_relay.cluster.envelopes import (
    ChangesWritten,
    Command,
    Confirmed,
    DeviceMessages,
    Envelope,
    HistoryRequest,
    LiveRequest,
    LogRequest,
    NotHere,
    Outcome,
    StateRequest,
    Unwatch,
    Watch,
    pack,
    pack_state,
    unpack,
)
from brewos_relay.core.snapshot import SnapshotState
from brewos_relay.messages import Message
from brewos_relay.vocabulary import now_ms
from support.instances import DEVICE_ID, contents, open_instances, types
from support.memory_broker import MemoryBroker, MemoryConnection

OTHER_ID = "BRW-00000002"


class Foreign:
    """A connection to the broker that sends any mail, and keeps what comes."""

    def __init__(self, broker: MemoryBroker) -> None:
        self.received: list[Envelope | None] = []
        self.bus = MemoryConnection(broker, "x", self._receive)
        broker._connections["x"] = self.bus

    def _receive(self, message: Mail | OwnerChanged) -> None:
        if isinstance(message, Mail):
            self.received.append(unpack(message.payload))

    async def tell(self, envelope: Any) -> list[Any]:
        """Send an envelope to instance a; return what comes back."""
        self.received.clear()
        payload = envelope if isinstance(envelope, bytes) else pack(envelope)
        assert self.bus.send("a", payload)
        await trio.sleep(0.05)
        return list(self.received)


def command(*, device_id: str = DEVICE_ID, number: int = 1, left_s: float = 1.0, **more: Any) -> Command:
    """Write a command of instance x. The broker's clock is Trio's."""
    payload = msgspec.json.encode({"type": "command", "cmd": "tare", "requestId": number})
    deadline_us = round((trio.current_time() + left_s) * 1e6)
    return Command("x", device_id, number, deadline_us, more.get("not_after_ms", math.inf), payload)


@pytest.mark.parametrize(
    "payload",
    [
        b"",
        b"junk",
        msgspec.msgpack.encode([99, "x", DEVICE_ID]),
        msgspec.msgpack.encode([1, "x y", DEVICE_ID]),
    ],
    ids=["empty", "junk", "unknown tag", "not a name"],
)
async def test_foreign_mail_is_dropped_and_counted(autojump_clock: MockClock, payload: bytes) -> None:
    broker = MemoryBroker()
    async with open_instances("a", broker=broker) as [a]:
        assert await Foreign(broker).tell(payload) == []
        assert a.member.unreadable == 1


async def test_instance_without_the_device_says_so_and_keeps_nothing(autojump_clock: MockClock) -> None:
    broker = MemoryBroker()
    async with open_instances("a", broker=broker) as [a]:
        foreign = Foreign(broker)
        for n in range(20):
            device_id = f"BRW-{n:08X}"
            assert await foreign.tell(Watch("x", device_id)) == [NotHere("a", device_id)]
            assert await foreign.tell(Unwatch("x", device_id)) == []
            assert await foreign.tell(command(device_id=device_id)) == [Outcome(1, "device_offline")]
            assert await foreign.tell(NotHere("x", device_id)) == []
            assert await foreign.tell(DeviceMessages("x", device_id, [])) == [Unwatch("a", device_id)]
        assert a.table.records == {}
        assert a.relay.session_count == 0


async def test_watching_twice_sends_the_state_twice_and_each_message_once(
    autojump_clock: MockClock,
) -> None:
    broker = MemoryBroker()
    async with open_instances("a", broker=broker) as [a]:
        device = await a.online_device()
        await trio.sleep(0.1)
        foreign = Foreign(broker)
        for _ in range(2):
            [state] = await foreign.tell(Watch("x", DEVICE_ID))
            assert state.sender == "a"
        foreign.received.clear()
        await device.send({"type": "note"})
        await trio.sleep(0.1)
        assert foreign.received == [DeviceMessages("a", DEVICE_ID, [(b'{"type":"note"}', True)])]
        await foreign.tell(Unwatch("x", DEVICE_ID))
        await device.send({"type": "note"})
        await trio.sleep(0.1)
        assert foreign.received == []
        assert a.table.records[DEVICE_ID].clients is None
        assert await foreign.tell(Unwatch("x", DEVICE_ID)) == []


async def test_instance_that_has_the_state_is_confirmed(autojump_clock: MockClock) -> None:
    broker = MemoryBroker()
    async with open_instances("a", broker=broker) as [a]:
        device = await a.online_device()
        await trio.sleep(3)
        await types(device)
        foreign = Foreign(broker)
        [state] = await foreign.tell(Watch("x", DEVICE_ID, has_state=True, has_waited=True))
        assert state.sender == "a", "it is not known to have missed nothing"
        assert await types(device) == ["request_state"]
        assert await foreign.tell(Watch("x", DEVICE_ID, has_state=True)) == [Confirmed("a", DEVICE_ID)]
        [state] = await foreign.tell(Watch("x", DEVICE_ID))
        assert state.sender == "a"
        assert await types(device) == []


async def test_confirmation_counts_from_the_instance_of_the_device_only(autojump_clock: MockClock) -> None:
    broker = MemoryBroker()
    async with open_instances("a", broker=broker) as [a]:
        foreign = Foreign(broker)
        assert await foreign.tell(Confirmed("x", DEVICE_ID)) == [Unwatch("a", DEVICE_ID)]
        broker.renew("x", b"{}")
        broker.claim("x", Claim(DEVICE_ID, at_us=1))
        await a.client()
        remote = a.table.records[DEVICE_ID].remote
        assert remote is not None
        await foreign.tell(Confirmed("x", DEVICE_ID))
        assert remote.awaits_state, "it has no state yet"
        status = Message(b'{"type":"status"}')
        await foreign.tell(pack_state("x", DEVICE_ID, SnapshotState(status, [], 1, 0.0, None), None))
        remote.ask()
        await foreign.tell(Confirmed("x", DEVICE_ID))
        assert not remote.awaits_state


async def test_one_of_two_instances_leaves(autojump_clock: MockClock) -> None:
    broker = MemoryBroker()
    async with open_instances("a", "b", broker=broker) as (a, b):
        device = await a.online_device()
        await trio.sleep(0.1)
        client, foreign = await b.client(), Foreign(broker)
        await foreign.tell(Watch("x", DEVICE_ID))
        await foreign.tell(Unwatch("x", DEVICE_ID))
        await types(client)
        await device.send({"type": "note"})
        assert await types(client) == ["note"]


async def test_command_that_is_late_does_not_act(autojump_clock: MockClock) -> None:
    broker = MemoryBroker()
    async with open_instances("a", broker=broker) as [a]:
        device = await a.online_device()
        await trio.sleep(0.1)
        foreign = Foreign(broker)
        assert await foreign.tell(command(left_s=-0.001)) == [Outcome(1, "unknown")]
        assert await foreign.tell(command(not_after_ms=now_ms() - 1.0)) == [Outcome(1, "expired")]
        assert await foreign.tell(command(number=0)) == []
        assert await foreign.tell(command(not_after_ms=now_ms() + 5000.0)) == [Outcome(1, "delivered")]
        assert [each["requestId"] for each in await contents(device)] == [0, 1]


async def test_command_does_not_act_without_the_brokers_time(autojump_clock: MockClock) -> None:
    broker = MemoryBroker()
    async with open_instances("a", broker=broker) as [a]:
        device = await a.online_device()
        await trio.sleep(0.1)
        a.member._clock.__init__(trio.current_time)  # type: ignore[misc]
        assert await Foreign(broker).tell(command()) == [Outcome(1, "unknown")]
        assert await contents(device) == []


async def test_messages_of_instances_without_the_device_do_not_count(autojump_clock: MockClock) -> None:
    broker = MemoryBroker()
    async with open_instances("b", "a", broker=broker) as (b, a):
        await b.online_device()
        await trio.sleep(0.1)
        client, foreign = await a.client(), Foreign(broker)
        await types(client)
        state = pack_state("x", DEVICE_ID, SnapshotState(Message(b'{"type":"status"}'), [], 1, 0.0, None), 1)
        assert await foreign.tell(state) == [Unwatch("a", DEVICE_ID)]
        messages = DeviceMessages("x", DEVICE_ID, [(b'{"type":"note"}', True)])
        assert await foreign.tell(messages) == [Unwatch("a", DEVICE_ID)]
        assert await foreign.tell(NotHere("x", DEVICE_ID)) == []
        assert await types(client) == []
        remote = a.table.records[DEVICE_ID].remote
        assert remote is not None
        assert remote.has_state


async def test_messages_before_the_state_do_not_count(autojump_clock: MockClock) -> None:
    broker = MemoryBroker()
    async with open_instances("a", broker=broker) as [a]:
        foreign = Foreign(broker)
        broker.renew("x", b"{}")
        broker.claim("x", Claim(DEVICE_ID, at_us=1))
        client = await a.client()
        assert foreign.received == [Watch("a", DEVICE_ID)]
        messages = DeviceMessages("x", DEVICE_ID, [(b'{"type":"note"}', True)])
        await foreign.tell(messages)
        status = Message(b'{"type":"status"}')
        await foreign.tell(pack_state("x", DEVICE_ID, SnapshotState(status, [], 1, 0.0, None), None))
        await foreign.tell(messages)
        assert await types(client) == ["connected", "status", "note"]
        assert await foreign.tell(NotHere("x", DEVICE_ID)) == []
        await foreign.tell(messages)
        assert await types(client) == []


async def test_state_is_answered_as_json(autojump_clock: MockClock) -> None:
    broker = MemoryBroker()
    async with open_instances("a", broker=broker) as [a]:
        await a.online_device()
        await trio.sleep(0.1)
        foreign = Foreign(broker)
        [answer] = await foreign.tell(StateRequest("x", DEVICE_ID, 5))
        assert answer.number == 5
        assert msgspec.json.decode(answer.content)["messages"]["status"]["machine"] == {"mode": "on"}
        [answer] = await foreign.tell(StateRequest("x", OTHER_ID, 6))
        assert (answer.number, answer.content) == (6, None)


async def test_log_and_measurements_are_answered(autojump_clock: MockClock) -> None:
    broker = MemoryBroker()
    async with open_instances("a", broker=broker) as [a]:
        device = await a.online_device()
        await device.send({"type": "log_config", "enabled": True})
        await trio.sleep(2)
        foreign = Foreign(broker)
        [log] = await foreign.tell(LogRequest("x", DEVICE_ID, 5, "look"))
        assert (log.number, log.log.config.enabled) == (5, True)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(partial(a.relay.histories.answer, within_s=5))
            [history] = await foreign.tell(HistoryRequest("x", DEVICE_ID, 6, 60.0))
            [nothing] = await foreign.tell(HistoryRequest("x", OTHER_ID, 7, 60.0))
        assert (history.number, history.history.online) == (6, [True])
        assert (nothing.number, nothing.history) == (7, None)


async def test_answers_reach_their_questions(autojump_clock: MockClock) -> None:
    async with open_instances("a", "b") as (a, b):
        await a.online_device()
        await trio.sleep(0.1)
        client = await b.client()
        await client.send({"type": "command", "cmd": "tare", "requestId": 1})
        assert (await contents(client))[-1]["status"] == "delivered"
        answer = await b.member.requests.ask_state("a", DEVICE_ID)
        assert answer is not None
        assert b"machine" in answer


async def test_live_devices_are_listed_up_to_a_limit(autojump_clock: MockClock) -> None:
    broker = MemoryBroker()
    async with open_instances("a", broker=broker) as [a]:
        await a.online_device()
        await a.client(OTHER_ID)
        ids = [DEVICE_ID, OTHER_ID, *(f"BRW-{n:08X}" for n in range(16, 1000))]
        [answer] = await Foreign(broker).tell(LiveRequest("x", 7, ids))
        assert answer.number == 7
        assert {name: live.is_online for name, live in answer.devices.items()} == {
            DEVICE_ID: True,
            OTHER_ID: False,
        }


async def test_envelope_that_fails_does_not_end_anything(
    autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    broker = MemoryBroker()
    async with open_instances("a", broker=broker) as [a]:

        def fail(device_id: str) -> None:
            raise ValueError(device_id)

        monkeypatch.setattr(a.relay, "state_of", fail)
        foreign = Foreign(broker)
        assert await foreign.tell(StateRequest("x", DEVICE_ID, 5)) == []
        assert "a message of another instance failed" in caplog.text
        assert await foreign.tell(Watch("x", DEVICE_ID)) == [NotHere("a", DEVICE_ID)]


async def test_changes_of_another_instance_are_read(autojump_clock: MockClock) -> None:
    broker = MemoryBroker()
    async with open_instances("a", broker=broker) as [a]:
        assert await Foreign(broker).tell(ChangesWritten("x")) == []
        assert len(a.reads) == 1

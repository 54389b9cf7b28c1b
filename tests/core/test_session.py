import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from typing import Any

import msgspec
import pytest
import trio
from trio.testing import MockClock, wait_all_tasks_blocked

from brewos_relay import messages
from brewos_relay.core.limits import Limits
from brewos_relay.core.session import Attachment, Counters, DeviceSession
from brewos_relay.errors import CloseCode
from brewos_relay.messages import Message, encode
from support.peers import ScriptedPeer

DEVICE_ID = "BRW-00000001"
STATUS = Message(b'{ "type": "status",  "n": 1.50 }')
DELTA = Message(msgspec.msgpack.encode({"type": "status_delta", "t": 93.2}), is_text=False)
COMMAND = encode({"type": "command", "cmd": "set_mode", "mode": "on"})
GARBAGE = Message(b"[1]")


class ScriptedHost:
    """What a session asks of its relay."""

    def __init__(self, limits: Limits) -> None:
        self.limits = limits
        self.counters = Counters()
        self.emptied: list[DeviceSession] = []
        self.seen: list[tuple[str, int]] = []
        self.attached: set[Attachment] = set()

    def session_emptied(self, session: DeviceSession) -> None:
        self.emptied.append(session)

    def device_seen(self, device_id: str, at_ms: int) -> None:
        self.seen.append((device_id, at_ms))


class Opened:
    """A session under test, with the ways to get at it that tests need."""

    def __init__(self, **limits: Any) -> None:
        self.host = ScriptedHost(Limits(**limits))
        self.session = DeviceSession(DEVICE_ID, self.host)
        self.counters = self.host.counters

    async def device(self, peer: ScriptedPeer | None = None) -> ScriptedPeer:
        """Attach a device and forget its greeting."""
        peer = peer or ScriptedPeer()
        self.session.attach_device(peer)
        await wait_all_tasks_blocked()
        peer.forget()
        return peer

    async def client(self, peer: ScriptedPeer | None = None) -> ScriptedPeer:
        """Attach a client and forget its greeting."""
        peer = peer or ScriptedPeer()
        self.session.attach_client(peer)
        await wait_all_tasks_blocked()
        peer.forget()
        return peer


@asynccontextmanager
async def open_session(**limits: Any) -> AsyncIterator[Opened]:
    """Run a session from its first peer on; leaving the block cancels it."""
    opened = Opened(**limits)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(opened.session.run)
        yield opened
        nursery.cancel_scope.cancel()


def now_ms() -> int:
    return int(datetime.now(UTC).timestamp() * 1000)


# Coming and going


async def test_a_device_is_greeted() -> None:
    async with open_session() as opened:
        before = now_ms()
        device = ScriptedPeer()
        attachment = opened.session.attach_device(device)
        assert attachment.is_device
        assert opened.session.online
        (greeting,) = device.received
        assert greeting.pop("type") == "connected"
        assert before <= greeting.pop("timestamp") <= now_ms()
        assert greeting == {}


@pytest.mark.parametrize("online", [True, False])
async def test_a_client_is_greeted_and_told_whether_the_device_is_there(online: bool) -> None:
    async with open_session() as opened:
        before = now_ms()
        if online:
            await opened.device()
        client = ScriptedPeer()
        attachment = opened.session.attach_client(client)
        assert not attachment.is_device
        assert opened.session.client_count == 1
        (greeting,) = client.received
        assert before <= greeting.pop("timestamp") <= now_ms()
        assert greeting == {
            "type": "connected",
            "sessionId": attachment.id,
            "deviceId": DEVICE_ID,
            "deviceOnline": online,
        }


async def test_each_attachment_has_an_id_of_its_own() -> None:
    async with open_session() as opened:
        ids = {opened.session.attach_client(ScriptedPeer()).id for _ in range(5)}
        assert len(ids) == 5


async def test_clients_are_told_when_the_device_comes_and_goes() -> None:
    async with open_session() as opened:
        clients = [await opened.client() for _ in range(2)]
        device = await opened.device()
        device.leave()
        await wait_all_tasks_blocked()
        for client in clients:
            assert client.messages == [messages.DEVICE_ONLINE, messages.DEVICE_OFFLINE]
        assert not opened.session.online


async def test_a_client_that_leaves_concerns_nobody() -> None:
    async with open_session() as opened:
        device, leaving, staying = await opened.device(), await opened.client(), await opened.client()
        leaving.leave()
        await wait_all_tasks_blocked()
        device.say(STATUS)
        assert (leaving.messages, staying.messages, device.messages) == ([], [STATUS], [])
        assert leaving.acloses == 1
        assert opened.session.client_count == 1


@pytest.mark.parametrize("device_goes_first", [True, False])
async def test_the_session_ends_when_its_last_peer_leaves(device_goes_first: bool) -> None:
    opened = Opened()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(opened.session.run)
        leaving = [await opened.device(), await opened.client()]
        for peer in leaving if device_goes_first else reversed(leaving):
            assert opened.host.emptied == []
            peer.leave()
            await wait_all_tasks_blocked()
    assert opened.host.emptied == [opened.session]
    assert [peer.acloses for peer in leaving] == [1, 1]


async def test_the_host_knows_everybody_whose_goodbye_is_not_said(autojump_clock: MockClock) -> None:
    async with open_session() as opened:
        slow = ScriptedPeer(goodbye_s=5)
        client, device = opened.session.attach_client(slow), opened.session.attach_device(ScriptedPeer())
        assert opened.host.attached == {client, device}
        await wait_all_tasks_blocked()
        slow.leave()
        await wait_all_tasks_blocked()
        assert opened.session.client_count == 0
        assert opened.host.attached == {client, device}
        with trio.fail_after(6):
            await client.wait_closed()
        assert opened.host.attached == {device}
    assert opened.host.attached == set()


async def test_the_host_learns_when_the_device_was_seen() -> None:
    async with open_session() as opened:
        before = now_ms()
        client, device = await opened.client(), await opened.device()
        assert len(opened.host.seen) == 1
        device.leave()
        await wait_all_tasks_blocked()
        assert [device_id for device_id, _ in opened.host.seen] == [DEVICE_ID, DEVICE_ID]
        assert before <= opened.host.seen[0][1] <= opened.host.seen[1][1] <= now_ms()
        assert opened.session.last_seen_ms == opened.host.seen[1][1]
        client.leave()
        await wait_all_tasks_blocked()
        assert len(opened.host.seen) == 2


async def test_cancelling_says_goodbye_to_everybody(autojump_clock: MockClock) -> None:
    peers = [ScriptedPeer(goodbye_s=2) for _ in range(3)]
    async with open_session() as opened:
        opened.session.attach_device(peers[0])
        opened.session.attach_client(peers[1])
        await wait_all_tasks_blocked()
        opened.session.attach_client(peers[2])  # its task has not begun when the session is cancelled
        started = trio.current_time()
    assert [(peer.runs, peer.acloses) for peer in peers] == [(1, 1)] * 3
    assert trio.current_time() - started == pytest.approx(2), "the goodbyes are said at the same time"
    assert opened.host.emptied == [opened.session]


# Replacing a device's connection


async def test_a_newer_connection_replaces_the_older(autojump_clock: MockClock) -> None:
    async with open_session() as opened:
        client = await opened.client()
        old = await opened.device(ScriptedPeer(goodbye_s=5))
        client.forget()
        new = ScriptedPeer()
        opened.session.attach_device(new)
        assert new.types == ["connected"]
        assert old.close_code == CloseCode.REPLACED
        new.forget()
        old.say(STATUS)
        client.say(COMMAND)
        new.say(DELTA)
        await wait_all_tasks_blocked()
        assert old.acloses_begun == 1
        old.say(STATUS)
        await trio.sleep(6)
        assert old.acloses == 1
        assert old.messages == []
        assert new.messages == [COMMAND]
        assert client.messages == [DELTA], "the apps see neither an end nor a beginning"
        assert opened.session.online
        assert opened.host.emptied == []
        assert opened.counters.received_from_devices == 1
        assert len(opened.host.seen) == 2


async def test_a_device_is_replaced_even_if_it_cannot_be_closed(caplog: pytest.LogCaptureFixture) -> None:
    async with open_session() as opened:
        old = await opened.device()
        old.close_error = ValueError("no close")
        new = await opened.device()
        old.say(STATUS)
        assert (opened.session.online, new.closes, new.acloses) == (True, [], 0)
        assert "ValueError: no close" in caplog.text


async def test_replacing_before_anything_ran() -> None:
    async with open_session() as opened:
        devices = [ScriptedPeer() for _ in range(3)]
        for device in devices:
            opened.session.attach_device(device)
        await wait_all_tasks_blocked()
        assert [device.close_code for device in devices] == [4002, 4002, None]
        assert [device.acloses for device in devices] == [1, 1, 0]
        assert opened.session.online


async def test_a_replaced_connection_may_end_after_the_session_emptied(autojump_clock: MockClock) -> None:
    async with open_session() as opened:
        old = await opened.device(ScriptedPeer(goodbye_s=5))
        new = await opened.device()
        new.leave()
        await wait_all_tasks_blocked()
        assert opened.host.emptied == [opened.session]
        await trio.sleep(6)
        assert old.acloses == 1
        assert opened.host.emptied == [opened.session]


# From the device to its clients


async def test_payloads_reach_every_client_untouched_and_in_order() -> None:
    async with open_session() as opened:
        device, clients = await opened.device(), [await opened.client() for _ in range(3)]
        for _ in range(2):
            device.say(STATUS)
            device.say(DELTA)
        for client in clients:
            assert client.messages == [STATUS, DELTA, STATUS, DELTA]
        assert device.messages == []
        assert opened.counters.received_from_devices == 4


async def test_messages_of_one_pass_leave_as_one_delivery() -> None:
    async with open_session() as opened:
        device, clients = await opened.device(), [await opened.client() for _ in range(2)]
        device.say(STATUS, DELTA, STATUS)
        (delivery,) = clients[0].deliveries
        assert list(delivery.messages) == [STATUS, DELTA, STATUS]
        assert clients[1].deliveries[0] is delivery, "so that its encoding is made once"


async def test_a_device_without_clients_talks_to_itself() -> None:
    async with open_session() as opened:
        device = await opened.device()
        device.say(STATUS, GARBAGE)
        assert device.messages == []
        assert opened.counters.received_from_devices == 2
        assert opened.counters.invalid == 1


async def test_what_a_device_garbles_is_dropped_and_counted() -> None:
    async with open_session() as opened:
        device, client = await opened.device(), await opened.client()
        device.say(GARBAGE, STATUS, Message(b"\xc1", is_text=False), DELTA)
        device.say(GARBAGE)
        assert client.messages == [STATUS, DELTA]
        assert len(client.deliveries) == 1
        assert device.messages == []
        assert opened.counters.invalid == 3
        assert opened.counters.received_from_devices == 5


async def test_messagepack_that_is_not_utf_8_is_dropped_and_counted() -> None:
    async with open_session() as opened:
        device, client = await opened.device(), await opened.client()
        device.say(Message(b"\x81\xa4type\xa1\xff", is_text=False))
        client.say(Message(b"\x81\xa4type\xa1\xff", is_text=False))
        assert opened.counters.invalid == 2
        assert client.messages == [messages.INVALID_MESSAGE]


async def test_a_client_that_is_too_far_behind_is_left_out_and_counted() -> None:
    async with open_session() as opened:
        device, stuck, client = await opened.device(), await opened.client(), await opened.client()
        stuck.refuses = True
        device.say(STATUS, DELTA)
        stuck.refuses = False
        device.say(STATUS)
        assert client.messages == [STATUS, DELTA, STATUS]
        assert stuck.messages == [STATUS]
        assert stuck.closes == []
        assert opened.counters.left_out == 2


async def test_a_client_that_cannot_be_delivered_to_ends_alone(caplog: pytest.LogCaptureFixture) -> None:
    async with open_session() as opened:
        device, broken, client = await opened.device(), await opened.client(), await opened.client()
        broken.deliver_error = ValueError("no way out")
        device.say(STATUS)
        await wait_all_tasks_blocked()
        device.say(DELTA)
        assert client.messages == [STATUS, DELTA]
        assert broken.close_code == CloseCode.INTERNAL_ERROR
        assert broken.acloses == 1
        assert device.closes == []
        (record,) = [record for record in caplog.records if record.levelno >= logging.ERROR]
        assert record.exc_info is not None
        assert record.exc_info[1] is broken.deliver_error
        assert DEVICE_ID in record.getMessage()


# From a client to the device


async def test_commands_reach_the_device_untouched_and_in_order() -> None:
    async with open_session() as opened:
        device, clients = await opened.device(), [await opened.client() for _ in range(2)]
        other = Message(b'{"type":"backflush",\n"cmd" : "record_maintenance"}')
        clients[0].say(COMMAND, other)
        clients[1].say(other)
        assert device.messages == [COMMAND, other, other]
        assert len(device.deliveries) == 2
        assert [client.messages for client in clients] == [[], []]
        assert opened.counters.received_from_clients == 3


async def test_messagepack_of_a_client_reaches_the_device_as_json() -> None:
    async with open_session() as opened:
        device, client = await opened.device(), await opened.client()
        content = {"type": "command", "cmd": "set_temp", "temp": 93.5}
        client.say(Message(msgspec.msgpack.encode(content), is_text=False))
        assert device.received == [content]
        assert device.messages[0].is_text


@pytest.mark.parametrize("payload", [b"[]", b"{}", b'{"type":7}', b"", b"on"])
async def test_what_a_client_garbles_is_dropped_and_it_is_told(payload: bytes) -> None:
    async with open_session() as opened:
        device, client, other = await opened.device(), await opened.client(), await opened.client()
        client.say(Message(payload), COMMAND, Message(b"\xc1", is_text=False))
        assert device.messages == [COMMAND]
        assert client.messages == [messages.INVALID_MESSAGE] * 2
        assert len(client.deliveries) == 1
        assert other.messages == []
        assert opened.counters.invalid == 2
        assert opened.counters.received_from_clients == 3
        assert client.closes == []


async def test_a_command_may_be_as_large_as_the_limit_and_no_larger() -> None:
    async with open_session(client_message_bytes=100) as opened:
        device, client = await opened.device(), await opened.client()
        largest = Message(b'{"type":"command","x":"' + b"x" * 75 + b'"}')
        larger = Message(b'{"type":"command","x":"' + b"x" * 76 + b'"}')
        assert len(largest.payload) == 100
        client.say(larger, largest)
        assert device.messages == [largest]
        assert client.messages == [messages.MESSAGE_TOO_BIG]


async def test_what_counts_is_the_size_that_the_device_gets() -> None:
    async with open_session(client_message_bytes=100) as opened:
        device, client = await opened.device(), await opened.client()
        compact = Message(msgspec.msgpack.encode({"type": "command", "x": [None] * 60}), is_text=False)
        assert len(compact.payload) < 100
        client.say(compact)
        assert device.messages == []
        assert client.messages == [messages.MESSAGE_TOO_BIG]


async def test_a_device_that_is_too_far_behind_gets_no_command_and_the_client_is_told() -> None:
    async with open_session() as opened:
        device, client = await opened.device(), await opened.client()
        device.refuses = True
        client.say(COMMAND, GARBAGE, COMMAND)
        assert client.messages == [messages.INVALID_MESSAGE, messages.DEVICE_BUSY]
        assert opened.counters.undeliverable == 2
        device.refuses = False
        client.say(COMMAND)
        assert device.messages == [COMMAND]


async def test_a_command_for_an_absent_device_is_answered_with_an_error() -> None:
    async with open_session() as opened:
        client, other = await opened.client(), await opened.client()
        client.say(COMMAND, {"type": "backflush"})
        for answer in client.received:
            assert answer.pop("message")
            assert answer == {"type": "error", "error": "device_offline", "deviceId": DEVICE_ID}
        assert len(client.messages) == 2
        assert other.messages == []
        assert opened.counters.undeliverable == 2


@pytest.mark.parametrize("question", ["request_state", "request_full_status"])
@pytest.mark.parametrize(
    ("last_seen_ms", "last_seen"),
    [
        (None, None),
        (0, "1970-01-01T00:00:00.000Z"),
        (1_700_000_000_007, "2023-11-14T22:13:20.007Z"),
        (1_700_000_000_999, "2023-11-14T22:13:20.999Z"),
        (4_102_444_800_000, "2100-01-01T00:00:00.000Z"),
    ],
)
async def test_a_question_for_an_absent_device_is_answered_quietly(
    question: str, last_seen_ms: int | None, last_seen: str | None
) -> None:
    async with open_session() as opened:
        opened.session.last_seen_ms = last_seen_ms
        client = await opened.client()
        client.say({"type": question})
        assert client.received == [
            {"type": "device_status", "deviceId": DEVICE_ID, "online": False, "lastSeen": last_seen}
        ]


async def test_the_answer_says_when_the_device_went() -> None:
    async with open_session() as opened:
        client, device = await opened.client(), await opened.device()
        device.leave()
        await wait_all_tasks_blocked()
        client.say({"type": "request_state"})
        went_ms = opened.host.seen[-1][1]
        at = datetime.fromisoformat(client.received[-1]["lastSeen"])
        assert round(at.timestamp() * 1000) == went_ms


# Peers that fail


@pytest.mark.parametrize("is_device", [True, False])
async def test_a_peer_that_fails_ends_alone(is_device: bool, caplog: pytest.LogCaptureFixture) -> None:
    async with open_session() as opened:
        device, client, other = await opened.device(), await opened.client(), await opened.client()
        failing = device if is_device else client
        failing.fail(ValueError("broken"))
        await wait_all_tasks_blocked()
        assert failing.close_code == CloseCode.INTERNAL_ERROR
        assert failing.acloses == 1
        assert other.acloses == 0
        assert other.messages == ([messages.DEVICE_OFFLINE] if is_device else [])
        assert (opened.session.online, opened.session.client_count) == (
            (False, 2) if is_device else (True, 1)
        )
        assert "ValueError: broken" in caplog.text
        assert DEVICE_ID in caplog.text


async def test_a_peer_that_cannot_be_closed_ends_alone(caplog: pytest.LogCaptureFixture) -> None:
    async with open_session() as opened:
        broken, client = ScriptedPeer(), await opened.client()
        attachment = opened.session.attach_client(broken)
        broken.aclose_error = ValueError("no goodbye")
        broken.leave()
        with trio.fail_after(1):
            await attachment.wait_closed()
        assert client.acloses == 0
        assert opened.session.client_count == 1
        assert "ValueError: no goodbye" in caplog.text


async def test_a_peer_that_breaks_in_every_way_is_closed_nevertheless(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async with open_session() as opened:
        device, broken = await opened.device(), await opened.client()
        broken.close_error = ValueError("no close")
        broken.aclose_error = ValueError("no goodbye")
        broken.fail(ValueError("broken"))
        await wait_all_tasks_blocked()
        assert broken.acloses == 1
        assert (opened.session.online, opened.session.client_count) == (True, 0)
        assert device.closes == []
        assert "ValueError: no goodbye" in caplog.text


@pytest.mark.parametrize("is_device", [True, False])
async def test_a_peer_that_cannot_be_greeted_ends_alone(is_device: bool) -> None:
    async with open_session() as opened:
        client, broken = await opened.client(), ScriptedPeer()
        broken.deliver_error = ValueError("no way out")
        (opened.session.attach_device if is_device else opened.session.attach_client)(broken)
        await wait_all_tasks_blocked()
        assert (broken.close_code, broken.acloses) == (CloseCode.INTERNAL_ERROR, 1)
        assert client.closes == []


async def test_a_device_that_cannot_be_delivered_to_ends_alone() -> None:
    async with open_session() as opened:
        device, client = await opened.device(), await opened.client()
        device.deliver_error = ValueError("no way out")
        client.say(COMMAND)
        await wait_all_tasks_blocked()
        assert (device.close_code, device.acloses) == (CloseCode.INTERNAL_ERROR, 1)
        assert client.closes == []
        assert client.messages == [messages.DEVICE_BUSY, messages.DEVICE_OFFLINE]
        assert opened.counters.undeliverable == 1


# What a peer does beside its reading


@pytest.mark.parametrize("is_device", [True, False])
async def test_a_peer_whose_task_fails_ends_alone(is_device: bool, caplog: pytest.LogCaptureFixture) -> None:
    async def fail(message: str) -> None:
        raise ValueError(message)

    async with open_session() as opened:
        device, client, other = await opened.device(), await opened.client(), await opened.client()
        failing = device if is_device else client
        assert failing.tasks is not None
        failing.tasks.start_soon(fail, "cannot write")
        await wait_all_tasks_blocked()
        assert (failing.close_code, failing.acloses) == (CloseCode.INTERNAL_ERROR, 1)
        assert other.acloses == 0
        assert (opened.session.online, opened.session.client_count) == (
            (False, 2) if is_device else (True, 1)
        )
        assert "ValueError: cannot write" in caplog.text


async def test_the_session_lasts_as_long_as_the_tasks_of_its_peers(autojump_clock: MockClock) -> None:
    opened = Opened()
    with trio.fail_after(10):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(opened.session.run)
            client = await opened.client()
            assert client.tasks is not None
            client.tasks.start_soon(trio.sleep, 3)
            client.leave()
    assert client.acloses == 1
    assert trio.current_time() == pytest.approx(3)


async def test_cancelling_ends_the_tasks_of_its_peers() -> None:
    async with open_session() as opened:
        client = await opened.client()
        assert client.tasks is not None
        client.tasks.start_soon(trio.sleep_forever)
        await wait_all_tasks_blocked()
    assert client.acloses == 1
    assert client.closes == []


# Waiting for the end


async def test_waiting_for_the_end_before_and_after_it(
    nursery: trio.Nursery, autojump_clock: MockClock
) -> None:
    ended_at: list[float] = []

    async def wait(attachment: Attachment) -> None:
        await attachment.wait_closed()
        ended_at.append(trio.current_time())

    async with open_session() as opened:
        peer = ScriptedPeer(goodbye_s=3)
        attachment = opened.session.attach_client(peer)
        nursery.start_soon(wait, attachment)
        nursery.start_soon(wait, attachment)
        with trio.move_on_after(1) as impatient:
            await attachment.wait_closed()
        assert impatient.cancelled_caught
        started = trio.current_time()
        attachment.close(1000, "enough")
        assert peer.closes == [(1000, "enough")]
        with trio.fail_after(10):
            await attachment.wait_closed()
            await attachment.wait_closed()
        await wait_all_tasks_blocked()
        assert ended_at == [pytest.approx(started + 3)] * 2


async def test_waiting_only_after_the_end() -> None:
    async with open_session() as opened:
        peer = ScriptedPeer()
        attachment = opened.session.attach_client(peer)
        peer.leave()
        await wait_all_tasks_blocked()
        with trio.testing.assert_checkpoints():
            await attachment.wait_closed()

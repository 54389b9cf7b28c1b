import gc
import logging
import weakref
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from typing import Any, get_args

import msgspec
import pytest
import trio
from trio.testing import MockClock, wait_all_tasks_blocked

from brewos_relay import messages
from brewos_relay.core.attachment import Attachment, ClientAttachment, DeviceAttachment
from brewos_relay.core.counters import Counters
from brewos_relay.core.grant import ClientCounts, Grant
from brewos_relay.core.histories import Histories
from brewos_relay.core.limits import Limits
from brewos_relay.core.merging import decode
from brewos_relay.core.peer import STAYS, PeerEnd, Receive, Tasks
from brewos_relay.core.peer_tasks import own_peers
from brewos_relay.core.rate_limits import LogLineLimits
from brewos_relay.core.recording import EventKind
from brewos_relay.core.relay import open_relay
from brewos_relay.core.remote import RemotePresence
from brewos_relay.core.session import DeviceSession, SessionHost
from brewos_relay.core.snapshot import KnownState, SmallSnapshot, Snapshot, SnapshotState
from brewos_relay.dialect import BREWOS, Policy
from brewos_relay.errors import CloseCode
from brewos_relay.messages import CommandHead, Message, encode
from brewos_relay.registry.records import ActivityKind
from support.peers import RecordedPresence, ScriptedAudience, ScriptedPeer, ScriptedRemotePeer
from support.state_messages import update

DEVICE_ID = "BRW-00000001"
STATUS = Message(b'{ "type": "status",  "n": 1.50 }')
DELTA = Message(msgspec.msgpack.encode({"type": "status_delta", "t": 93.2}), is_text=False)
COMMAND = encode({"type": "command", "cmd": "set_mode", "mode": "on"})
TARE = encode({"type": "command", "cmd": "tare"})
GARBAGE = Message(b"[1]")


class StayingPeer(ScriptedPeer):
    """A peer that needs no task."""

    async def run(self, tasks: Tasks, receive: Receive) -> PeerEnd | None:
        await trio.lowlevel.checkpoint()
        return STAYS


class ScriptedHost:
    """The relay of a session."""

    def __init__(self, limits: Limits) -> None:
        self.limits = limits
        self.policy = Policy(BREWOS)
        self.counters = Counters()
        self.logs_messages = False
        self.recorded_presence = RecordedPresence()
        self.remote: RemotePresence = self.recorded_presence
        self.lines = LogLineLimits("connections", rate_per_s=20.0, burst=1000.0, each_at_once=1000.0)
        self.emptied: list[DeviceSession] = []
        self.seen: list[tuple[str, int]] = []
        self.recorded: list[tuple[str, str | None, dict[str, str | int | float]]] = []
        self.histories = Histories(limits, BREWOS)
        self.attached: set[Attachment] = set()
        self.client_counts = ClientCounts()

    def session_emptied(self, session: DeviceSession) -> None:
        self.emptied.append(session)

    def device_seen(self, device_id: str, at_ms: int) -> None:
        self.seen.append((device_id, at_ms))

    def record_command(self, device_id: str, user_id: str | None, head: CommandHead, outcome: str) -> bool:
        self.record_activity(device_id, "command", user_id, {"name": head.name, "outcome": outcome})
        return True

    def record_activity(
        self, device_id: str, kind: str, user_id: str | None, detail: Mapping[str, str | int | float]
    ) -> None:
        assert device_id == DEVICE_ID
        self.recorded.append((kind, user_id, dict(detail)))


class Opened:
    """A session under test, with helpers for its peers."""

    def __init__(self, **limits: Any) -> None:
        self.host = ScriptedHost(Limits(**limits))
        self.session = DeviceSession(DEVICE_ID, self.host)
        self.remote = self.host.recorded_presence
        self.counters = self.host.counters

    def is_online(self) -> bool:
        return self.session.device is not None

    async def pass_s(self, duration_s: float, *alive: ScriptedPeer) -> None:
        """Let time pass with a check every second; the given peers give signs of life."""
        until = trio.current_time() + duration_s
        while trio.current_time() < until:
            await trio.sleep(min(1.0, until - trio.current_time()))
            for peer in alive:
                peer.say()
            self.session.run_checks(trio.current_time())
            await wait_all_tasks_blocked()

    async def device(self, peer: ScriptedPeer | None = None, **options: Any) -> ScriptedPeer:
        """Attach a device, let it give a sign of life, and forget its greeting."""
        peer = peer or ScriptedPeer()
        self.session.attach_device(peer, **options)
        await wait_all_tasks_blocked()
        peer.forget()
        return peer

    async def remote_device(self) -> ScriptedRemotePeer:
        """Attach a device on another instance."""
        peer = ScriptedRemotePeer()
        self.session.attach_remote_device(peer)
        await wait_all_tasks_blocked()
        return peer

    async def client(self, peer: ScriptedPeer | None = None, **options: Any) -> ScriptedPeer:
        """Attach a client and forget its greeting."""
        peer = peer or ScriptedPeer()
        self.session.attach_client(peer, **options)
        await wait_all_tasks_blocked()
        peer.forget()
        return peer


@asynccontextmanager
async def open_session(**limits: Any) -> AsyncIterator[Opened]:
    """Run a session from its first peer on; leaving the block cancels it."""
    opened = Opened(**limits)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(own_peers, opened.session)
        yield opened
        nursery.cancel_scope.cancel()


def now_ms() -> int:
    return int(datetime.now(UTC).timestamp() * 1000)


# Attaching and detaching


async def test_a_device_is_greeted_and_asked_for_a_sign_of_life() -> None:
    async with open_session() as opened:
        before = now_ms()
        device = ScriptedPeer(silent=True)
        attachment = opened.session.attach_device(device)
        assert isinstance(attachment, DeviceAttachment)
        (greeting,) = device.received
        assert greeting.pop("type") == "connected"
        assert before <= greeting.pop("timestamp") <= now_ms()
        assert greeting == {}
        assert len(device.pinged_at) == 1
        assert not opened.is_online()


@pytest.mark.parametrize("says", [(), (STATUS,)])
async def test_a_device_is_there_from_its_first_sign_of_life(says: tuple[Message, ...]) -> None:
    async with open_session() as opened:
        client, device = await opened.client(), ScriptedPeer(silent=True)
        opened.session.attach_device(device)
        await wait_all_tasks_blocked()
        assert not opened.is_online()
        assert (client.messages, opened.host.seen) == ([], [])
        device.say(*says)
        assert opened.is_online()
        assert client.messages == [messages.DEVICE_ONLINE, *says]
        assert len(opened.host.seen) == 1
        device.say(*says)
        assert client.messages == [messages.DEVICE_ONLINE, *says, *says], "once"


async def test_a_device_that_is_sure_to_be_alive_is_there_at_once() -> None:
    async with open_session() as opened:
        client, device = await opened.client(), ScriptedPeer(silent=True)
        device.is_sure = True
        opened.session.attach_device(device)
        assert opened.is_online()
        assert client.messages == [messages.DEVICE_ONLINE]


@pytest.mark.parametrize("clients", [0, 1, 3])
async def test_arriving_device_is_asked_for_its_state_if_clients_are_attached(clients: int) -> None:
    async with open_session() as opened:
        attached = [await opened.client() for _ in range(clients)]
        device = ScriptedPeer()
        opened.session.attach_device(device)
        await wait_all_tasks_blocked()
        assert device.types == ["connected", *["request_state"] * (clients > 0)]
        for client in attached:
            client.say({"type": "request_state"})
        assert device.types == ["connected", *["request_state"] * (clients > 0)], "it was asked already"


async def test_pending_commands_go_out_when_the_device_comes() -> None:
    async with open_session() as opened:
        client = await opened.client()
        client.say(TARE, COMMAND)
        assert client.types == ["device_status", "error"]
        client.forget()
        zombie, device = ScriptedPeer(silent=True), ScriptedPeer()
        opened.session.attach_device(zombie)
        await wait_all_tasks_blocked()
        assert zombie.types == ["connected"]
        opened.session.attach_device(device)
        await wait_all_tasks_blocked()
        assert zombie.types == ["connected"], "a possible leftover gets nothing"
        assert device.types == ["connected", "request_state", "command"]
        assert client.types == ["device_online", "queued_message_sent"]


@pytest.mark.parametrize("online", [True, False])
async def test_a_client_is_greeted_and_told_whether_the_device_is_there(online: bool) -> None:
    async with open_session() as opened:
        before = now_ms()
        if online:
            await opened.device()
        client = ScriptedPeer()
        attachment = opened.session.attach_client(client)
        assert isinstance(attachment, ClientAttachment)
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
        assert not opened.is_online()


async def test_client_that_leaves_affects_no_other_peer() -> None:
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
        nursery.start_soon(own_peers, opened.session)
        leaving = [await opened.device(), await opened.client()]
        for peer in leaving if device_goes_first else reversed(leaving):
            assert opened.host.emptied == []
            peer.leave()
            await wait_all_tasks_blocked()
    assert opened.host.emptied == [opened.session]
    assert [peer.acloses for peer in leaving] == [1, 1]


async def test_session_without_a_first_peer_is_forgotten() -> None:
    opened = Opened()
    await own_peers(opened.session)
    assert opened.host.emptied == [opened.session]


async def test_host_lists_every_peer_that_has_not_ended(autojump_clock: MockClock) -> None:
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
        assert opened.session.presence.last_seen_ms == opened.host.seen[1][1]
        client.leave()
        await wait_all_tasks_blocked()
        assert len(opened.host.seen) == 2


async def test_cancelling_closes_every_peer(autojump_clock: MockClock) -> None:
    peers = [ScriptedPeer(goodbye_s=2) for _ in range(3)]
    async with open_session() as opened:
        opened.session.attach_device(peers[0])
        opened.session.attach_client(peers[1])
        await wait_all_tasks_blocked()
        opened.session.attach_client(peers[2])  # its task has not begun when the session is cancelled
        started = trio.current_time()
    assert [(peer.runs, peer.acloses) for peer in peers] == [(1, 1)] * 3
    assert trio.current_time() - started == pytest.approx(2), "the peers are closed at the same time"
    assert opened.host.emptied == [opened.session]


# Replacing a device's connection


async def test_a_newer_connection_replaces_the_older_when_it_speaks(autojump_clock: MockClock) -> None:
    async with open_session() as opened:
        client = await opened.client()
        old = await opened.device(ScriptedPeer(goodbye_s=5))
        client.forget()
        await opened.pass_s(8)
        client.forget()
        new = ScriptedPeer(silent=True)
        opened.session.attach_device(new)
        await wait_all_tasks_blocked()
        assert new.types == ["connected"]
        old.say(STATUS)
        client.say(COMMAND)
        assert (old.messages, old.closes) == ([COMMAND], []), "until then the old connection stays"
        new.say(DELTA)
        assert old.close_code == CloseCode.REPLACED
        old.say(STATUS)
        client.say(COMMAND)
        await wait_all_tasks_blocked()
        assert old.acloses_begun == 1
        old.say(STATUS)
        await trio.sleep(6)
        assert old.acloses == 1
        assert old.messages == [COMMAND]
        assert new.types == ["connected", "request_state", "command"]
        assert client.messages == [STATUS, DELTA], "the apps see neither offline nor online"
        assert opened.is_online()
        assert opened.host.emptied == []
        assert opened.counters.received_from_devices == 2
        assert len(opened.host.seen) == 2


async def test_young_connection_is_not_replaced_before_8_s(
    autojump_clock: MockClock,
) -> None:
    async with open_session() as opened:
        old = await opened.device()
        await opened.pass_s(3)
        new = await opened.device()
        new.say(STATUS)
        await opened.pass_s(4.5)
        assert old.closes == []
        await opened.pass_s(1.5)
        assert old.close_code == CloseCode.REPLACED
        assert old.closed_at[0] - old.opened_at >= 8
        assert new.closes == []
        await opened.pass_s(30)
        assert new.closes == []


async def test_a_newer_connection_takes_over_when_the_older_leaves(autojump_clock: MockClock) -> None:
    async with open_session() as opened:
        client, old = await opened.client(), await opened.device()
        new = await opened.device()
        old.leave()
        await opened.pass_s(1)
        assert opened.is_online()
        assert client.messages == [messages.DEVICE_ONLINE, messages.DEVICE_OFFLINE, messages.DEVICE_ONLINE]
        new.say(STATUS)
        assert client.messages[-1] == STATUS


async def test_zombie_replaces_no_connection_and_is_closed_after_10_s(autojump_clock: MockClock) -> None:
    async with open_session() as opened:
        client, device = await opened.client(), await opened.device()
        client.forget()
        await opened.pass_s(10)
        zombie = ScriptedPeer(silent=True, min_age_s=8)
        opened.session.attach_device(zombie)
        await opened.pass_s(10)
        assert zombie.closes == []
        device.say()
        await opened.pass_s(1)
        assert zombie.close_code == CloseCode.POLICY_VIOLATION
        assert (zombie.types, zombie.acloses) == (["connected"], 1)
        assert zombie.gone_at is not None
        assert zombie.gone_at - zombie.opened_at >= 8
        assert device.closes == []
        assert {"device_online", "device_offline"}.isdisjoint(str(kind) for kind in client.types)
        assert opened.counters.zombies == 1


async def test_a_device_whose_101_was_late_is_replaced_once_its_key_is_safe(
    autojump_clock: MockClock,
) -> None:
    async with open_session() as opened:
        old, new = ScriptedPeer(silent=True), ScriptedPeer()
        opened.session.attach_device(old)
        await opened.pass_s(4)
        old.say()
        opened.session.attach_device(new)
        await opened.pass_s(5)
        assert old.closes == [], "it read its 101 5 s ago at the earliest"
        await opened.pass_s(1)
        assert old.close_code == CloseCode.REPLACED
        assert old.closed_at[0] - old.opened_at >= 4 + 5.5


async def test_a_zombie_alone_is_never_online(autojump_clock: MockClock) -> None:
    async with open_session() as opened:
        client, zombie = await opened.client(), ScriptedPeer(silent=True)
        opened.session.attach_device(zombie)
        await opened.pass_s(11)
        assert zombie.acloses == 1
        assert set(client.types) == {"keepalive"}
        assert opened.host.seen == []


async def test_a_device_is_replaced_even_if_it_cannot_be_closed(
    caplog: pytest.LogCaptureFixture, autojump_clock: MockClock
) -> None:
    async with open_session() as opened:
        old = await opened.device()
        await trio.sleep(8)
        old.close_error = ValueError("no close")
        new = await opened.device()
        old.say(STATUS)
        assert (opened.is_online(), new.closes, new.acloses) == (True, [], 0)
        assert "ValueError: no close" in caplog.text


async def test_last_of_several_silent_connections_stays(autojump_clock: MockClock) -> None:
    async with open_session() as opened:
        devices = [ScriptedPeer(silent=True, min_age_s=8) for _ in range(3)]
        for device in devices:
            opened.session.attach_device(device)
        await wait_all_tasks_blocked()
        assert [device.close_code for device in devices] == [4002, 4002, None]
        devices[0].say()
        assert not opened.is_online()
        devices[2].say()
        assert opened.is_online()
        await trio.sleep(9)
        assert [device.acloses for device in devices] == [1, 1, 0]
        assert devices[0].gone_at == 8, "a replaced connection is not closed young either"


async def test_a_replaced_connection_may_end_after_the_session_emptied(autojump_clock: MockClock) -> None:
    async with open_session() as opened:
        old = await opened.device(ScriptedPeer(goodbye_s=5))
        await trio.sleep(8)
        new = await opened.device()
        new.leave()
        await wait_all_tasks_blocked()
        assert opened.host.emptied == [opened.session]
        await trio.sleep(6)
        assert old.acloses == 1
        assert opened.host.emptied == [opened.session]


async def test_two_machines_that_fight_for_one_id_are_noticed(
    autojump_clock: MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    async with open_session() as opened:
        assert not opened.session.is_contested()
        for _ in range(4):
            assert not opened.session.is_contested()
            device = await opened.device()
            await opened.pass_s(10)
            device.say()
        assert opened.session.is_contested()
        assert f"two machines use the id {DEVICE_ID}" in caplog.text
        device.leave()
        await wait_all_tasks_blocked()
        assert not opened.session.is_contested(), "the remaining device may reconnect"


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
        assert clients[1].deliveries[0] is delivery, "so its encoding is made once"


async def test_a_device_without_clients_talks_to_itself() -> None:
    async with open_session() as opened:
        device = await opened.device()
        device.say(STATUS, GARBAGE)
        assert device.messages == []
        assert opened.counters.received_from_devices == 2
        assert opened.counters.invalid == 1


async def test_malformed_messages_of_a_device_are_dropped_and_counted() -> None:
    async with open_session() as opened:
        device, client = await opened.device(), await opened.client()
        device.say(GARBAGE, STATUS, Message(b"\xc1", is_text=False), DELTA)
        device.say(GARBAGE)
        assert client.messages == [STATUS, DELTA]
        assert len(client.deliveries) == 1
        assert device.messages == []
        assert opened.counters.invalid == 3
        assert opened.counters.received_from_devices == 5


ODD = [
    Message(rb'{"type":"status","ssid":"\ud800"}'),
    Message(b"\x82\xa4type\xa6status\x01\x02", is_text=False),
    Message(b"\x82\xa4type\xa6status\xc4\x01a\x02", is_text=False),
    Message(b"\x82\xa4type\xa6status\xa1n\xa1\xff", is_text=False),
    Message(b'{"type":"status","seq":1e999}'),
]


async def test_messages_that_only_their_machine_and_its_app_can_read_arrive_as_they_were_sent() -> None:
    async with open_session() as opened:
        device, client = await opened.device(), await opened.client()
        device.say(*ODD)
        assert client.messages == ODD
        assert opened.counters.invalid == 0


async def test_why_a_message_was_dropped_is_logged_once_for_each_connection(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async with open_session() as opened:
        device = await opened.device()
        device.say(STATUS, Message(b'{"secret":1}'), Message(b"\xc1", is_text=False))
        device.say(GARBAGE)
        assert opened.counters.invalid == 3
        warnings = [line.getMessage() for line in caplog.records if line.levelno >= logging.WARNING]
        assert len(warnings) == 1
        assert warnings[0].startswith(f"device {DEVICE_ID} sent a message that was dropped: it has no 'type'")
        for _ in range(30):  # few of these connections may log lines
            (await opened.device()).say(GARBAGE)
        assert sum("was dropped" in line.getMessage() for line in caplog.records) < 20


async def test_a_client_that_lags_catches_up_with_a_snapshot(autojump_clock: MockClock) -> None:
    async with open_session() as opened:
        device, stuck, client = await opened.device(), await opened.client(), await opened.client()
        stuck.refuses = True
        stuck.backlog_bytes = 70_000
        device.say({"type": "status", "seq": 1, "n": 1}, {"type": "status_delta", "seq": 2, "n": 2})
        device.leave()
        await wait_all_tasks_blocked()
        assert stuck.messages == [messages.DEVICE_OFFLINE]
        assert opened.counters.left_out == 2
        assert opened.session.lagging_count == 1
        stuck.refuses, stuck.backlog_bytes = False, 0
        await opened.pass_s(1)
        status, snapshot = stuck.received[1:]
        assert (status["type"], status["online"]) == ("device_status", False)
        assert snapshot == {"type": "status", "seq": 2, "n": 2}
        assert client.types == ["status", "status_delta", "device_offline"]


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


# The known state


async def test_pause_counts_for_the_age_of_the_state_but_not_for_silence(
    autojump_clock: MockClock,
) -> None:
    async with open_session(device_silence_s=45, snapshot_s=60) as opened:
        device = await opened.device()
        device.say(STATUS)
        await opened.pass_s(1)
        opened.session.resume(trio.current_time(), 3600)
        opened.session.run_checks(trio.current_time())
        await wait_all_tasks_blocked()
        assert opened.is_online()
        assert opened.session.presence.snapshot.age_s(trio.current_time()) >= 3600
        device.leave()
        await wait_all_tasks_blocked()
        left_at = opened.session.presence.gone_at
        opened.session.resume(trio.current_time(), 3600)
        assert opened.session.presence.gone_at == left_at - 3600


async def test_joining_client_gets_the_known_state(autojump_clock: MockClock) -> None:
    async with open_session() as opened:
        device = await opened.device()
        device.say({"type": "status", "seq": 1, "a": 1}, {"type": "status_delta", "seq": 2, "b": 2})
        device.say({"type": "device_info"})
        await opened.pass_s(3)
        client = ScriptedPeer()
        opened.session.attach_client(client)
        await wait_all_tasks_blocked()
        greeting, status, *snapshot = client.received
        assert greeting["type"] == "connected"
        assert 1000 <= status.pop("snapshotAgeMs") <= 3000
        assert datetime.fromisoformat(status.pop("lastSeen"))
        assert status == {"type": "device_status", "deviceId": DEVICE_ID, "online": True}
        assert snapshot == [{"type": "status", "seq": 2, "a": 1, "b": 2}, {"type": "device_info"}]
        assert len(client.deliveries) == 1
        client.forget()
        device.say({"type": "status_delta", "seq": 3})
        client.say({"type": "request_full_status"})
        assert client.types == ["status_delta", "status"]


async def test_the_snapshot_goes_when_the_device_has_been_away_for_a_minute(
    autojump_clock: MockClock,
) -> None:
    async with open_session() as opened:
        client, device = await opened.client(), await opened.device()
        device.say({"type": "status", "seq": 1})
        await opened.pass_s(100, client, device)
        assert not opened.session.presence.snapshot.empty, "the device is online"
        device.leave()
        await opened.pass_s(59, client)
        late = ScriptedPeer()
        opened.session.attach_client(late)
        assert late.types == ["connected", "device_status", "status"]
        told = late.received[1]
        assert (told["online"], 150_000 < told["snapshotAgeMs"] < 160_000) == (False, True)
        await opened.pass_s(2, client)
        later = ScriptedPeer()
        opened.session.attach_client(later)
        assert later.types == ["connected"]
        assert client.closes == []


KNOWN = encode({"type": "status", "seq": 7, "machine": {"state": "ready"}, "pressure": 9.0})


def known_state(age_s: float = 60.0) -> KnownState:
    return KnownState(KNOWN, now_ms() - round(age_s * 1000))


async def test_clients_are_told_the_state_from_before_an_absence(autojump_clock: MockClock) -> None:
    async with open_session() as opened:
        client = await opened.client()
        device = await opened.device(known_state=known_state())
        assert client.types == ["device_online"]
        joins_at_once = ScriptedPeer()
        opened.session.attach_client(joins_at_once)
        assert joins_at_once.types == ["connected", "device_status"]
        await opened.pass_s(2, device)
        assert client.types == ["device_online", "device_status", "status"]
        _, status, state = client.received
        assert 60_000 <= status["snapshotAgeMs"] <= 63_000
        assert (status["online"], status["staleGroups"]) == (True, ["machine", "pressure"])
        assert state == {"type": "status", "machine": {"state": "ready"}}
        assert joins_at_once.types[2:] == ["device_status", "status"]
        await opened.pass_s(1, device)
        assert client.types == ["device_online", "device_status", "status"], "once"
        device.say({"type": "status_delta", "seq": 50, "pressure": 0.0})
        joins_later = ScriptedPeer()
        opened.session.attach_client(joins_later)
        assert joins_later.received[2] == {
            "type": "status",
            "seq": 50,
            "machine": {"state": "ready"},
            "pressure": 0.0,
        }


@pytest.mark.parametrize("ahead_us", [-5_000_000, 5_000_000], ids=["earlier", "the clock was set back"])
async def test_connection_is_later_than_the_one_of_the_state_it_continues(
    autojump_clock: MockClock, ahead_us: int
) -> None:
    async with open_session() as opened:
        before_us = now_ms() * 1000
        known = known_state()._replace(since_us=before_us + ahead_us)
        await opened.device(known_state=known)
        assert opened.session.presence.snapshot.since_us >= max(before_us, known.since_us + 1)
        assert opened.session.presence.snapshot.since_us < before_us + 60_000_000


async def test_nothing_old_is_told_of_a_device_that_says_its_whole_state(autojump_clock: MockClock) -> None:
    async with open_session() as opened:
        client = await opened.client()
        device = await opened.device(known_state=known_state())
        await trio.sleep(0.5)
        device.say(STATUS)
        await opened.pass_s(3, device)
        assert client.types == ["device_online", "status"]


async def test_a_device_that_goes_at_once_is_not_told_of(autojump_clock: MockClock) -> None:
    async with open_session() as opened:
        client = await opened.client()
        device = await opened.device(known_state=known_state())
        device.leave()
        await opened.pass_s(3, client)
        assert client.types == ["device_online", "device_offline"]


@pytest.mark.parametrize(
    ("age_s", "limits", "is_told"),
    [
        (890.0, {}, True),
        (901.0, {}, False),
        (-5.0, {}, False),
        (20.0, {"restored_state_s": 10.0}, False),
        (1.0, {"restored_state_s": 0.0}, False),
    ],
)
async def test_an_old_state_is_not_told(
    age_s: float, limits: dict[str, float], is_told: bool, autojump_clock: MockClock
) -> None:
    async with open_session(**limits) as opened:
        client = await opened.client()
        device = await opened.device(known_state=known_state(age_s))
        await opened.pass_s(3, device)
        assert ("status" in client.types) == is_told
        client.say({"type": "request_full_status"})
        assert client.types.count("status") == 2 * is_told
        device.say({"type": "status_delta", "pressure": 1.0})
        assert opened.session.presence.snapshot.as_dict()["status"]["pressure"] == 1.0


async def test_a_restored_state_ages_while_the_process_does_not_run(autojump_clock: MockClock) -> None:
    async with open_session() as opened:
        device = await opened.device(known_state=known_state())
        await opened.pass_s(2, device)
        opened.session.resume(trio.current_time(), 500.0)
        assert 560.0 <= opened.session.presence.snapshot.age_s(trio.current_time()) <= 565.0


async def test_state_in_memory_wins_over_the_given_one(autojump_clock: MockClock) -> None:
    async with open_session() as opened:
        client, device = await opened.client(), await opened.device()
        device.say({"type": "status", "seq": 9, "machine": {"state": "idle"}})
        device.leave()
        await opened.pass_s(31, client)
        device = await opened.device(known_state=known_state())
        await opened.pass_s(2, device)
        assert client.received[-1] == {"type": "status", "machine": {"state": "idle"}}


async def test_given_state_that_is_not_a_status_is_ignored(autojump_clock: MockClock) -> None:
    async with open_session() as opened:
        client = await opened.client()
        device = await opened.device(known_state=KnownState(GARBAGE, now_ms()))
        await opened.pass_s(3, device)
        assert client.types == ["device_online"]


async def test_a_state_is_forgotten_with_the_key_that_it_came_with(autojump_clock: MockClock) -> None:
    async with open_session() as opened:
        await opened.client()
        device = await opened.device(credential=b"old")
        device.say(STATUS)
        opened.session.end_device([b"old"], code=4003, reason="")
        assert not opened.session.presence.snapshot.empty
        opened.session.presence.forget_state()
        assert not opened.session.presence.snapshot.empty, "the device is online"
        arriving = ScriptedPeer(silent=True)
        attachment = opened.session.attach_device(arriving, credential=b"new", known_state=known_state())
        opened.session.end_device([b"new"], code=4003, reason="")
        assert not opened.session.presence.snapshot.has_status
        assert attachment.known_before is None


async def test_held_messages_of_a_departed_device_age_from_its_end(autojump_clock: MockClock) -> None:
    async with open_session(device_rate=1.0, device_burst=1.0) as opened:
        device = await opened.device()
        device.say({"type": "status", "seq": 1}, {"type": "status", "seq": 2})
        device.leave()
        await wait_all_tasks_blocked()
        await trio.sleep(30)
        assert opened.session.presence.snapshot.seq == 2
        assert opened.session.presence.snapshot.age_s(trio.current_time()) == pytest.approx(30)


async def test_age_counts_from_the_last_message_even_if_the_device_leaves_at_once(
    autojump_clock: MockClock,
) -> None:
    async with open_session() as opened:
        device = await opened.device()
        device.say({"type": "status", "seq": 1})
        device.leave()
        await wait_all_tasks_blocked()
        await trio.sleep(30)
        assert opened.session.presence.snapshot.age_s(trio.current_time()) == pytest.approx(30)


# From a client to the device


async def test_commands_reach_the_device_untouched_and_in_order() -> None:
    async with open_session() as opened:
        device, clients = await opened.device(), [await opened.client() for _ in range(2)]
        clients[0].say(COMMAND, TARE)
        clients[1].say(TARE)
        assert device.messages == [COMMAND, TARE, TARE]
        assert [client.messages for client in clients] == [[], []]
        assert opened.counters.received_from_clients == 3


async def test_commands_that_wait_too_long_expire(autojump_clock: MockClock) -> None:
    async with open_session() as opened:
        client = await opened.client()
        client.say(TARE)
        assert opened.session.pending_count == 1
        await opened.pass_s(11)
        assert opened.session.pending_count == 0
        assert [kind for kind in client.types if kind != "keepalive"] == ["device_status", "error"]
        device = await opened.device()
        assert device.messages == []


async def test_the_answer_says_when_the_device_went() -> None:
    async with open_session() as opened:
        client, device = await opened.client(), await opened.device()
        device.leave()
        await wait_all_tasks_blocked()
        client.say({"type": "request_state"})
        went_ms = opened.host.seen[-1][1]
        at = datetime.fromisoformat(client.received[-1]["lastSeen"])
        assert round(at.timestamp() * 1000) == went_ms


# Rates


async def test_a_client_that_is_too_fast_is_slowed_down_but_nothing_is_lost() -> None:
    async with open_session(client_rate=20.0, client_burst=60.0) as opened:
        device, client, other = await opened.device(), await opened.client(), await opened.client()
        client.say(*[TARE] * 100)
        assert client.pauses_s == [pytest.approx(2.0, abs=0.1)]
        assert device.messages == [TARE] * 100
        other.say(TARE)
        client.say()
        assert (other.pauses_s, client.pauses_s[1:]) == ([0.0], [0.0])


async def test_device_beyond_its_rate_is_still_read() -> None:
    async with open_session(device_rate=50.0, device_burst=200.0) as opened:
        device, client = await opened.device(), await opened.client()
        device.say(*[STATUS] * 100, *[GARBAGE] * 150)
        device.say()
        assert device.pauses_s == [0.0, 0.0]
        assert client.messages == [STATUS] * 100
        assert opened.counters.invalid == 150


def delta(seq: int, **groups: Any) -> Message:
    content = {"type": "status_delta", "seq": seq, **groups}
    return Message(msgspec.msgpack.encode(content), is_text=False)


def last_values(peer: ScriptedPeer) -> dict[str, Any]:
    """Merge the messages to a client as apps do."""
    known: dict[str, Any] = {}
    for content in peer.received:
        if content["type"] in ("status", "status_delta"):
            for name, group in content.items():
                is_map = isinstance(group, dict) and isinstance(known.get(name), dict)
                known[name] = {**known[name], **group} if is_map else group
    return known


async def talk(
    opened: Opened, device: ScriptedPeer, *alive: ScriptedPeer, rate_per_s: int, duration_s: int
) -> int:
    """Let a device send deltas of two groups in turn, ten times a second; return the last `seq`."""
    seq, in_a_tenth = 0, rate_per_s // 10
    for tenth in range(duration_s * 10):
        deltas = []
        for _ in range(in_a_tenth):
            seq += 1
            group = {"power": {"current": seq}} if seq % 2 else {"temps": {"group": seq}}
            deltas.append(delta(seq, **group))
        device.say(*deltas)
        await trio.sleep(0.1)
        if tenth % 10 == 9:
            for peer in alive:
                peer.say()
            opened.session.run_checks(trio.current_time())
    return seq


@pytest.mark.parametrize("rate_per_s", [100, 400])
async def test_a_chatty_device_is_read_for_minutes_and_its_last_state_arrives(
    rate_per_s: int, autojump_clock: MockClock
) -> None:
    async with open_session() as opened:
        client, device = await opened.client(), await opened.device()
        device.say({"type": "status", "seq": 0, "power": {"current": 0, "voltage": 230}})
        last = await talk(opened, device, client, rate_per_s=rate_per_s, duration_s=180)
        assert set(device.pauses_s) == {0.0}
        assert len(client.messages) <= 200 + 181 * 50
        await opened.pass_s(2, device, client)
        known = last_values(client)
        assert known["seq"] == last
        assert known["power"] == {"current": last - 1, "voltage": 230}
        assert known["temps"] == {"group": last}
        seqs = [content["seq"] for content in client.received if content["type"] == "status_delta"]
        assert seqs == sorted(set(seqs))
        joined = ScriptedPeer()
        opened.session.attach_client(joined)
        assert last_values(joined) | {"type": ""} == known | {"type": ""}
        device.leave()
        await wait_all_tasks_blocked()
        [offline] = [detail for kind, _, detail in opened.host.recorded if kind == "offline"]
        assert offline["messages"] == last + 1, "messages that were merged count as received"
        assert opened.counters.received_from_devices == last + 1
        assert opened.counters.merged > 0


async def test_throttle_is_recorded_when_it_begins_and_when_it_ends(autojump_clock: MockClock) -> None:
    async with open_session() as opened:
        device = await opened.device()
        await talk(opened, device, rate_per_s=200, duration_s=30)
        assert [kind for kind, _, _ in opened.host.recorded] == ["online", "throttled"]
        await opened.pass_s(9, device)
        kind, user_id, detail = opened.host.recorded[-1]
        assert (kind, user_id, len(opened.host.recorded)) == ("throttle_ended", None, 3)
        assert 30 < float(detail["throttledS"]) < 45
        assert (int(detail["merged"]) > 3000, detail["dropped"]) == (True, 0)
        await talk(opened, device, rate_per_s=400, duration_s=1)
        await opened.pass_s(19, device)
        assert len(opened.host.recorded) == 3, "once a minute"
        assert opened.counters.throttled == 2
        await opened.pass_s(60, device)
        await talk(opened, device, rate_per_s=400, duration_s=1)
        assert opened.host.recorded[-1][0] == "throttled"


async def test_last_messages_of_a_device_pass_before_it_is_offline() -> None:
    async with open_session(device_burst=1.0) as opened:
        client, device = await opened.client(), await opened.device()
        device.say(*[delta(seq, power={"current": seq}) for seq in range(10)])
        device.leave()
        await wait_all_tasks_blocked()
        assert client.types == ["device_online", "status_delta", "status_delta", "device_offline"]
        assert last_values(client)["power"] == {"current": 9}


async def test_messages_of_a_replaced_connection_come_first(
    autojump_clock: MockClock,
) -> None:
    async with open_session(device_burst=1.0) as opened:
        client, device = await opened.client(), await opened.device()
        await opened.pass_s(10, client, device)
        client.forget()
        device.say(*[delta(seq, power={"current": seq}) for seq in range(10)])
        newer = ScriptedPeer()
        opened.session.attach_device(newer)
        newer.say(delta(20, power={"current": 20}))
        await wait_all_tasks_blocked()
        assert [content["seq"] for content in client.received if "seq" in content] == [0, 9, 20]


async def test_held_messages_of_a_revoked_device_are_dropped() -> None:
    async with open_session(device_burst=1.0) as opened:
        client = await opened.client()
        device = await opened.device(credential=b"old")
        device.say(*[delta(seq, power={"current": seq}) for seq in range(10)])
        opened.session.end_device((), code=CloseCode.ACCESS_ENDED, reason="revoked")
        assert [content["seq"] for content in client.received if "seq" in content] == [0]
        assert opened.counters.over_rate == 1


async def test_a_device_at_line_rate_is_paused_but_for_a_second_at_most(autojump_clock: MockClock) -> None:
    async with open_session() as opened:
        client, device = await opened.client(), await opened.device()
        for _ in range(20):
            device.say(*[delta(seq, power={"current": seq}) for seq in range(4000)])
        assert set(device.pauses_s[1:]) == {1.0}
        assert len(client.messages) <= 200 + 1


async def test_rate_of_0_is_no_limit() -> None:
    async with open_session(device_rate=0.0, client_rate=0.0) as opened:
        device, client = await opened.device(), await opened.client()
        device.say(*[STATUS] * 1000)
        client.say(*[TARE] * 1000)
        assert device.pauses_s == client.pauses_s == [0.0]


# Periodic checks


async def test_a_pause_of_the_process_makes_no_peer_silent(autojump_clock: MockClock) -> None:
    async with open_session() as opened:
        client, device = await opened.client(), await opened.device()
        device.say(STATUS)
        opened.session.run_checks(trio.current_time())
        await trio.sleep(100)
        opened.session.resume(trio.current_time(), 50.0)
        opened.session.run_checks(trio.current_time())
        await wait_all_tasks_blocked()
        assert client.closes == device.closes == []
        assert opened.session.presence.snapshot.age_s(trio.current_time()) == 150


async def test_a_device_that_is_silent_for_45_s_is_gone(autojump_clock: MockClock) -> None:
    async with open_session() as opened:
        client, device = await opened.client(), await opened.device()
        await opened.pass_s(40, client, device)
        await opened.pass_s(44, client)
        assert device.closes == []
        await opened.pass_s(2, client)
        assert device.close_code == CloseCode.POLICY_VIOLATION
        assert messages.DEVICE_OFFLINE in client.messages
        assert not opened.is_online()


async def test_a_device_that_only_listens_is_asked_and_stays(autojump_clock: MockClock) -> None:
    async with open_session() as opened:
        device = await opened.device()
        answered = len(device.pinged_at)
        for _ in range(120):
            await opened.pass_s(1)
            if len(device.pinged_at) > answered:
                answered = len(device.pinged_at)
                device.say()
        assert device.closes == []
        assert 3 <= answered <= 9


async def test_a_silent_client_is_gone_after_35_s_and_the_others_stay(autojump_clock: MockClock) -> None:
    async with open_session() as opened:
        silent, client = await opened.client(), await opened.client()
        for _ in range(12):
            client.say()
            await opened.pass_s(3)
        assert (silent.acloses, client.closes) == (1, [])
        assert opened.session.client_count == 1


async def test_a_client_is_closed_at_the_end_of_its_token(autojump_clock: MockClock) -> None:
    async with open_session() as opened:
        client = ScriptedPeer()
        opened.session.attach_client(client, expires_at_s=now_ms() / 1000 + 20)
        await opened.pass_s(19)
        assert (client.closes, "token_expiring" in client.types) == ([], True)
        await opened.pass_s(2)
        assert (client.close_code, client.acloses) == (4002, 1)


async def test_a_client_may_bring_a_fresh_token(autojump_clock: MockClock) -> None:
    async with open_session() as opened:
        client = ScriptedPeer()
        opened.session.attach_client(
            client, expires_at_s=now_ms() / 1000 + 20, renew=lambda token: now_ms() // 1000 + 3600
        )
        await opened.pass_s(10)
        client.say({"type": "refresh_auth", "token": "fresh"})
        assert client.received[-1]["success"] is True
        await opened.pass_s(20)
        assert client.closes == []


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
        assert (opened.is_online(), opened.session.client_count) == ((False, 2) if is_device else (True, 1))
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
        assert (opened.is_online(), opened.session.client_count) == (True, 0)
        assert device.closes == []
        assert "ValueError: no goodbye" in caplog.text


@pytest.mark.parametrize("is_device", [True, False])
async def test_a_peer_that_cannot_be_greeted_ends_alone(is_device: bool) -> None:
    async with open_session() as opened:
        client, broken = await opened.client(), ScriptedPeer()
        broken.deliver_error = ValueError("no way out")
        if is_device:
            opened.session.attach_device(broken)
        else:
            opened.session.attach_client(broken)
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


# Tasks of a peer


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
        assert (opened.is_online(), opened.session.client_count) == ((False, 2) if is_device else (True, 1))
        assert "ValueError: cannot write" in caplog.text


async def test_the_session_lasts_as_long_as_the_tasks_of_its_peers(autojump_clock: MockClock) -> None:
    opened = Opened()
    with trio.fail_after(10):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(own_peers, opened.session)
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


# Lists and records of peers


async def test_clients_of_a_session_are_listed(autojump_clock: MockClock) -> None:
    opened = Opened()
    clients = [opened.session.attach_client(ScriptedPeer()) for _ in range(2)]
    opened.session.attach_device(ScriptedPeer())
    assert opened.session.clients == clients
    async with trio.open_nursery() as nursery:
        nursery.start_soon(own_peers, opened.session)
        await wait_all_tasks_blocked()
        clients[0].close(1000, "enough")
        await wait_all_tasks_blocked()
        assert opened.session.clients == clients[1:]
        nursery.cancel_scope.cancel()
    assert opened.session.clients == []


@pytest.mark.parametrize("is_silent", [True, False])
async def test_a_device_that_is_ended_has_no_say_from_then_on(
    is_silent: bool, autojump_clock: MockClock
) -> None:
    async with open_session() as opened:
        client = await opened.client()
        device = ScriptedPeer(silent=is_silent, min_age_s=8.0)
        device.stays = True
        opened.session.attach_device(device, credential=b"old")
        opened.session.end_device([b"old", b"new"], code=4003, reason="enough")
        await wait_all_tasks_blocked()
        assert opened.is_online() != is_silent
        opened.session.end_device([b"new"], code=4003, reason="enough")
        assert not opened.is_online()
        device.say(STATUS)
        client.say(COMMAND)
        await opened.pass_s(2)
        expected = ["error"] if is_silent else ["device_online", "device_offline", "error"]
        assert [kind for kind in client.types if kind != "keepalive"] == expected
        assert device.closes == [(4003, "enough")]
        assert "command" not in device.types
        device.stays = False
        device.leave()
        await wait_all_tasks_blocked()
        assert client.types.count("device_offline") == (not is_silent), "it is told once"
        assert opened.host.emptied == []
        client.leave()
        await wait_all_tasks_blocked()
        assert opened.host.emptied == [opened.session]


async def test_departed_client_with_a_pending_command_is_listed(autojump_clock: MockClock) -> None:
    async with open_session() as opened:
        staying, leaving = ScriptedPeer(), ScriptedPeer()
        attachments = [opened.session.attach_client(peer) for peer in (staying, leaving)]
        await wait_all_tasks_blocked()
        for peer in (staying, leaving):
            peer.say(TARE, TARE)
        leaving.leave()
        await wait_all_tasks_blocked()
        assert opened.session.clients == attachments, "each once"
        assert opened.session.client_count == 1
        device = await opened.device()
        assert opened.session.clients == attachments[:1]
        assert device.messages == []  # forgotten with the greeting
        assert len(staying.messages) > 0


async def test_pending_commands_end_with_the_session() -> None:
    opened = Opened()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(own_peers, opened.session)
        client = await opened.client()
        client.say(TARE)
        assert len(opened.session.clients) == 1
        client.leave()
    assert opened.session.clients == []


async def test_peers_that_come_and_go_are_recorded() -> None:
    async with open_session() as opened:
        recorded = opened.host.recorded
        client = await opened.client(grant=Grant(user_id="ada", session_id="s1"))
        assert recorded == [("client_came", "ada", {})]
        recorded.clear()
        device = await opened.device()
        assert recorded == [("online", None, {})]
        client.say(TARE)
        assert recorded[1:] == [("command", "ada", {"name": "tare", "outcome": "delivered"})]
        recorded.clear()
        device.leave()
        await wait_all_tasks_blocked()
        client.leave()
        await wait_all_tasks_blocked()
        by_itself = {"by": "peer", "connectedS": 0.0}
        assert recorded == [
            ("offline", None, {**by_itself, "messages": 0}),
            ("client_went", "ada", {**by_itself, "messages": 1}),
        ]


async def test_how_a_connection_ended_is_recorded_and_counted(autojump_clock: MockClock) -> None:
    async with open_session() as opened:
        device, client = await opened.device(), await opened.client()
        device.say(STATUS, STATUS)
        device.say(GARBAGE)
        await trio.sleep(2)
        opened.host.recorded.clear()
        device.end = PeerEnd("peer", 1001, "a new\nfirmware", round_trip_s=0.0421)
        device.leave()
        await wait_all_tasks_blocked()
        assert opened.host.recorded == [
            (
                "offline",
                None,
                {
                    "by": "peer",
                    "code": 1001,
                    "connectedS": 2.0,
                    "messages": 2,
                    "reason": "a new firmware",
                    "roundTripMs": 42.1,
                },
            )
        ]
        client.stays = True
        client.fail(ValueError("no"))
        await wait_all_tasks_blocked()
        assert opened.host.recorded[1][2]["code"] == 1011
        assert opened.counters.ended == {("device", "peer", "1001"): 1, ("client", "relay", "1011"): 1}
    assert (opened.counters.devices_attached, opened.counters.clients_attached) == (1, 1)


async def test_messages_and_bytes_are_counted(autojump_clock: MockClock) -> None:
    async with open_session() as opened:
        device = await opened.device()
        device.say(STATUS)
        one = await opened.client()
        device.say(STATUS, GARBAGE)
        two = await opened.client()
        device.say(STATUS)
        one.say(TARE)
        await opened.pass_s(1, device)
        size_bytes = len(STATUS.payload)
        assert opened.counters.bytes_from_devices == 3 * size_bytes
        assert (opened.counters.sent_to_clients, opened.counters.bytes_to_clients) == (3, 3 * size_bytes)
        assert opened.counters.bytes_from_clients == opened.counters.bytes_to_devices == len(TARE.payload)
        assert opened.counters.sent_to_devices == 1
        assert opened.counters.commands == {"delivered": 1}
        device.say(STATUS)
        two.leave()
        await wait_all_tasks_blocked()
        assert opened.counters.sent_to_clients == 5, "messages to the departed client count"


async def test_replaced_connections_know_how_much_they_said(
    autojump_clock: MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    async with open_session() as opened:
        old = await opened.device()
        old.say(STATUS, STATUS)
        await opened.pass_s(9, old)
        new = await opened.device()
        new.say(STATUS)
        await wait_all_tasks_blocked()
    over = [record for record in caplog.records if "is over" in record.getMessage()]
    assert [(each.messages, each.connection) for each in over] == [(2, 1)]  # type: ignore[attr-defined]
    (went,) = [record for record in caplog.records if f"device {DEVICE_ID} went" in record.getMessage()]
    assert went.messages == 1  # type: ignore[attr-defined]
    assert "the relay ended it with 1001: the relay is shutting down" in went.getMessage()


async def test_message_types_are_logged_at_debug_level(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    opened = Opened()
    opened.host.logs_messages = True
    async with trio.open_nursery() as nursery:
        nursery.start_soon(own_peers, opened.session)
        device, client = await opened.device(), await opened.client()
        device.say(*[STATUS] * 9)
        client.say(TARE)
        assert "from a device: status, " in caplog.text
        assert " and 1 more" in caplog.text
        assert "from a client: command" in caplog.text
        assert "tare" not in caplog.text
        nursery.cancel_scope.cancel()


async def test_a_connection_that_is_replaced_is_neither_a_coming_nor_a_going(
    autojump_clock: MockClock,
) -> None:
    async with open_session() as opened:
        old = await opened.device()
        await opened.pass_s(9, old)
        await opened.device()
        await opened.device(ScriptedPeer(silent=True))
        assert old.close_code == CloseCode.REPLACED
        assert opened.host.recorded == [("online", None, {})]


async def test_the_first_peer_may_end_before_the_others_and_leaves_nothing() -> None:
    async with open_session() as opened:
        device = await opened.device()
        client = await opened.client()
        first = weakref.ref(device)
        device.leave()
        del device
        await wait_all_tasks_blocked()
        gc.collect()  # this peer refers to itself
        assert first() is None
        again = await opened.device()
        again.say(STATUS)
        await wait_all_tasks_blocked()
        assert client.types[-1] == "status"


async def test_peer_that_stays_without_a_task_ends_when_it_says_so() -> None:
    async with open_session() as opened:
        peer = StayingPeer()
        attachment = opened.session.attach_device(peer)
        await wait_all_tasks_blocked()
        assert peer.acloses == 0
        attachment.end_peer(PeerEnd("peer", 1000))
        await wait_all_tasks_blocked()
        assert peer.acloses == 1
        assert opened.host.emptied == [opened.session]
        assert attachment.end == PeerEnd("peer", 1000)


async def test_a_client_s_grant_is_looked_at_for_each_message() -> None:
    async with open_session() as opened:
        device, peer = await opened.device(), ScriptedPeer()
        client = opened.session.attach_client(peer, grant=Grant(may_command=False, may_manage=False))
        await wait_all_tasks_blocked()
        peer.forget()
        peer.say(TARE)
        client.set_grant(Grant())
        peer.say(TARE)
        client.set_grant(Grant(may_command=False))
        peer.say(TARE)
        assert device.messages == [TARE]
        assert [content["error"] for content in peer.received] == ["forbidden", "forbidden"]
        device.say(STATUS)
        assert peer.messages[-1] == STATUS


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


# Newer connections on other instances


class Elsewhere(ScriptedPeer):
    """A connection of the device on another instance."""

    def send_command(self, message: Message, take_outcome: object, not_after_ms: float) -> None:
        raise AssertionError("there are no clients")


@pytest.mark.parametrize("is_followed", [True, False])
async def test_connection_that_waits_ends_for_a_newer_one_elsewhere(is_followed: bool) -> None:
    async with open_session() as opened:
        first, waiting = await opened.device(), await opened.device()
        connected_at = trio.current_time() + 0.1
        await opened.pass_s(0.2)
        if is_followed:
            opened.session.attach_remote_device(Elsewhere(), connected_at=connected_at)
        else:
            opened.session.yield_device(connected_at=connected_at)
        assert (first.close_code, waiting.close_code) == (CloseCode.REPLACED, CloseCode.REPLACED)
        assert opened.session.presence.arriving is None
        await opened.pass_s(10)
        assert not opened.session.has_device


async def test_connection_that_waits_stays_if_the_one_elsewhere_is_older() -> None:
    async with open_session() as opened:
        first, waiting = await opened.device(), await opened.device()
        before = trio.current_time() - 0.1
        opened.session.attach_remote_device(Elsewhere(), connected_at=before)
        assert (first.close_code, waiting.close_code) == (CloseCode.REPLACED, None)
        await opened.pass_s(2, waiting)
        assert opened.session.has_device


# Anonymous devices


async def test_little_is_kept_of_an_anonymous_device_until_it_has_a_user() -> None:
    status, power = encode({"type": "status", "n": 1}), encode({"type": "power_meter_status", "w": 2})
    async with open_session() as opened:
        device = await opened.device(anonymous=True)
        device.say(status, power)
        assert opened.session.presence.snapshot.messages() == [status]
        # It has a user now: it comes back with its id, and with the known state.
        device = await opened.device(anonymous=False)
        await opened.pass_s(10, device)
        device.say(power)
        assert opened.session.presence.snapshot.messages() == [status, power]
        # Its last owner has released it.
        await opened.device(anonymous=True)
        assert opened.session.presence.snapshot.empty


async def test_state_of_an_anonymous_device_expires() -> None:
    async with open_session(snapshot_s=0.0) as opened:
        client = await opened.client()
        await opened.device(ScriptedPeer(silent=True), anonymous=True)
        opened.session.run_checks(trio.current_time())
        assert type(opened.session.presence.snapshot) is SmallSnapshot
        client.leave()


def test_registry_stores_every_kind_of_activity() -> None:
    assert set(get_args(EventKind)) < set(get_args(ActivityKind))


async def test_relay_is_a_host() -> None:
    async with open_relay(dialect=BREWOS) as relay:
        host: SessionHost = relay
        host.record_activity("BRW-00000001", "online", None, {})
        host.device_seen("BRW-00000001", 1)
        assert host.attached == set()
        assert len(host.client_counts) == 0


# A device on another instance


def state_of(*said: Message, age_s: float = 0.0) -> SnapshotState:
    """Return the state of a device on another instance; with an age, a restored one that is not shown."""
    snapshot, now = Snapshot(BREWOS), trio.current_time()
    if age_s:
        snapshot.restore(said[0], at=now - age_s)
    else:
        update(snapshot, *said)
    return snapshot.export(now)


async def test_remote_device_stands_for_the_device_without_the_duties_of_a_connection(
    autojump_clock: MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    async with open_session() as opened:
        client = await opened.client()
        opened.host.recorded.clear()
        caplog.clear()
        remote = await opened.remote_device()
        assert opened.is_online()
        assert not opened.session.has_device
        assert client.messages == [messages.DEVICE_ONLINE]
        await opened.pass_s(300, client)
        assert (remote.messages, remote.pinged_at, remote.closes) == ([], [], [])
        assert [peer.peer for peer in opened.host.attached] == [client]
        remote.leave()
        await wait_all_tasks_blocked()
        assert not opened.is_online()
        assert client.types[-1] == "device_offline"
        assert remote.acloses == 1
        assert (opened.host.recorded, opened.host.seen, caplog.messages) == ([], [], [])
        assert (opened.counters.devices_attached, opened.counters.ended) == (0, {})
        assert opened.remote.calls == [("wanted", DEVICE_ID)]
        seen_ms = opened.session.presence.last_seen_ms
        assert seen_ms is not None
        assert abs(seen_ms - now_ms()) < 60_000


async def test_messages_of_a_remote_device_reach_clients_and_only_those_are_counted() -> None:
    async with open_session() as opened:
        client, other, remote = await opened.client(), await opened.client(), await opened.remote_device()
        client.forget()
        remote.say(STATUS, DELTA)
        assert client.messages == [STATUS, DELTA]
        assert opened.session.presence.snapshot.has_status
        remote.say(STATUS, GARBAGE)
        assert client.messages == [STATUS, DELTA, STATUS]
        other.leave()
        await wait_all_tasks_blocked()
        remote.say(STATUS)
        opened.session.run_checks(trio.current_time())
        counters = opened.counters
        assert (counters.received_from_devices, counters.bytes_from_devices) == (0, 0)
        assert counters.sent_to_clients == 2 * 3 + 1
        assert counters.bytes_to_clients == 7 * len(STATUS.payload) + 2 * (
            len(DELTA.payload) - len(STATUS.payload)
        )


async def test_remote_device_is_not_ended_with_a_key_but_its_state_ends_with_it() -> None:
    async with open_session() as opened:
        client, remote = await opened.client(), await opened.remote_device()
        remote.say(STATUS)
        opened.session.end_device([], code=4003, reason="enough")
        assert remote.closes == []
        assert opened.is_online()
        assert opened.session.presence.snapshot.messages() == [STATUS]
        remote.leave()
        await wait_all_tasks_blocked()
        assert opened.session.presence.snapshot.messages() == []
        assert client.types[-1] == "device_offline"


async def test_remote_device_alone_keeps_the_session_until_it_leaves() -> None:
    opened = Opened()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(own_peers, opened.session)
        client, remote = await opened.client(), await opened.remote_device()
        client.leave()
        await wait_all_tasks_blocked()
        assert opened.host.emptied == []
        remote.leave()
    assert opened.host.emptied == [opened.session]


async def test_state_of_a_remote_device_is_told_to_clients_and_known_to_later_ones(
    autojump_clock: MockClock,
) -> None:
    async with open_session() as opened:
        early = await opened.client()
        remote = ScriptedRemotePeer()
        device = opened.session.attach_remote_device(remote)
        await wait_all_tasks_blocked()
        early.forget()
        status = encode({"type": "status", "seq": 7, "temps": {"brew": 93}})
        opened.session.take_remote_state(device, state_of(status), last_seen_ms=1000)
        assert early.messages == [status], "the client has missed nothing"
        early.forget()
        opened.session.take_remote_state(device, state_of(status), last_seen_ms=1000)
        assert early.types == ["device_status", "status"]
        assert early.received[0]["online"] is True
        assert early.received[0]["lastSeen"] == "1970-01-01T00:00:01.000Z"
        assert "seq" not in early.received[1], "the client may know that number"
        remote.say(encode({"type": "status_delta", "seq": 8, "temps": {"group": 90}}))
        late = ScriptedPeer()
        opened.session.attach_client(late)
        assert late.types == ["connected", "device_status", "status"]
        assert late.received[0]["deviceOnline"] is True
        assert late.received[2] == {"type": "status", "seq": 8, "temps": {"brew": 93, "group": 90}}


async def test_state_for_a_remote_device_that_was_replaced_is_ignored() -> None:
    async with open_session() as opened:
        client = await opened.client()
        old = opened.session.attach_remote_device(ScriptedRemotePeer())
        new = opened.session.attach_remote_device(ScriptedRemotePeer())
        await wait_all_tasks_blocked()
        client.forget()
        opened.session.take_remote_state(old, state_of(STATUS), last_seen_ms=1)
        assert (client.messages, opened.session.presence.snapshot.empty) == ([], True)
        opened.session.take_remote_state(new, state_of(STATUS), last_seen_ms=1)
        assert client.types == ["device_status", "status"]


async def test_remote_device_that_went_is_absent_at_once() -> None:
    async with open_session() as opened:
        client, remote = await opened.client(), ScriptedRemotePeer()
        device = opened.session.attach_remote_device(remote)
        await wait_all_tasks_blocked()
        client.forget()
        device.go()
        assert not opened.is_online()
        assert client.messages == [messages.DEVICE_OFFLINE]
        await wait_all_tasks_blocked()
        assert (remote.close_code, remote.acloses) == (CloseCode.GOING_AWAY, 1)
        assert client.messages == [messages.DEVICE_OFFLINE], "once"


async def test_remote_device_that_was_replaced_does_not_go() -> None:
    async with open_session() as opened:
        client = await opened.client()
        old = opened.session.attach_remote_device(ScriptedRemotePeer())
        opened.session.attach_remote_device(ScriptedRemotePeer())
        client.forget()
        old.go()
        assert opened.is_online()
        assert client.messages == []
        await wait_all_tasks_blocked()


async def test_empty_state_of_a_remote_device_is_not_told() -> None:
    async with open_session() as opened:
        client = await opened.client()
        device = opened.session.attach_remote_device(ScriptedRemotePeer())
        await wait_all_tasks_blocked()
        opened.session.take_remote_state(device, state_of(), last_seen_ms=1000)
        assert client.messages == [messages.DEVICE_ONLINE]
        assert opened.session.presence.last_seen_ms == 1000


async def test_state_without_clients_is_only_kept() -> None:
    async with open_session() as opened:
        device = opened.session.attach_remote_device(ScriptedRemotePeer())
        opened.session.take_remote_state(device, state_of(STATUS), last_seen_ms=1)
        assert opened.session.presence.snapshot.messages() == [STATUS]
        await wait_all_tasks_blocked()


async def test_newer_remote_device_replaces_the_older_one_silently() -> None:
    async with open_session() as opened:
        client, old = await opened.client(), await opened.remote_device()
        new = await opened.remote_device()
        assert old.close_code == CloseCode.REPLACED
        old.say(STATUS)
        new.say(DELTA)
        assert client.messages == [messages.DEVICE_ONLINE, DELTA]
        assert old.acloses == 1
        assert opened.is_online()


async def test_local_connection_replaces_a_remote_device_at_once() -> None:
    async with open_session() as opened:
        client, remote = await opened.client(), await opened.remote_device()
        remote.say(STATUS)
        opened.host.recorded.clear()
        device = ScriptedPeer()
        opened.session.attach_device(device, known_state=known_state())
        await wait_all_tasks_blocked()
        assert remote.close_code == CloseCode.REPLACED
        assert device.types == ["connected", "request_state"]
        remote.say(DELTA)
        device.say(DELTA)
        assert client.messages == [messages.DEVICE_ONLINE, STATUS, DELTA], "neither offline nor online"
        assert opened.session.has_device
        assert opened.session.presence.snapshot.stale_groups() == [], "the state goes on"
        assert opened.host.recorded == []
        assert len(opened.host.seen) == 1
        assert opened.remote.calls == [("wanted", DEVICE_ID), ("came", DEVICE_ID)]


async def test_local_connection_restores_the_state_that_the_other_instance_did_not_send(
    autojump_clock: MockClock,
) -> None:
    async with open_session() as opened:
        client = await opened.client()
        await opened.remote_device()
        client.forget()
        device = await opened.device(known_state=known_state())
        await opened.pass_s(2, device)
        assert client.types == ["device_status", "status"]


async def test_pending_commands_go_to_a_remote_device_that_comes() -> None:
    async with open_session() as opened:
        client = await opened.client()
        client.say(TARE)
        client.forget()
        remote = await opened.remote_device()
        assert remote.sent == [TARE]
        client.say(COMMAND)
        assert remote.sent == [TARE, COMMAND]
        remote.commands[0].becomes("delivered")
        assert client.types == ["device_online", "queued_message_sent"]
        assert opened.counters.received_from_clients == 2


async def test_remote_peer_that_fails_ends_alone(caplog: pytest.LogCaptureFixture) -> None:
    async with open_session() as opened:
        client, remote = await opened.client(), await opened.remote_device()
        remote.fail(ValueError("no"))
        await wait_all_tasks_blocked()
        assert client.messages == [messages.DEVICE_ONLINE, messages.DEVICE_OFFLINE]
        assert remote.acloses == 1
        assert client.closes == []
        assert f"a peer of device {DEVICE_ID} failed" in caplog.text


async def test_cancelled_session_closes_a_remote_device() -> None:
    async with open_session() as opened:
        await opened.client()
        remote = await opened.remote_device()
    assert remote.acloses == 1


# Yielding to another instance


async def test_connection_yields_to_a_newer_one_on_another_instance(autojump_clock: MockClock) -> None:
    async with open_session() as opened:
        client = await opened.client()
        local = await opened.device(ScriptedPeer(min_age_s=8.0))
        local.say(STATUS)
        client.forget()
        opened.host.recorded.clear()
        seen = len(opened.host.seen)
        await opened.pass_s(3)
        local.stays = True
        remote = await opened.remote_device()
        assert local.closes == [(CloseCode.REPLACED, "a newer connection replaced this one")]
        local.say(DELTA)
        client.say(TARE)
        assert (local.messages, remote.sent) == ([], [TARE])
        local.stays = False
        local.close(CloseCode.REPLACED, "again")
        await opened.pass_s(4)
        assert local.acloses == 0, "the machine would lose its key"
        local.say(DELTA)
        remote.say(DELTA)
        await opened.pass_s(2)
        assert local.acloses == 1
        assert local.gone_at == pytest.approx(local.opened_at + 8)
        assert [kind for kind in client.types if kind != "keepalive"] == ["status_delta"]
        assert opened.is_online()
        assert [kind for kind, *_ in opened.host.recorded if kind != "command"] == []
        assert len(opened.host.seen) == seen
        assert opened.counters.received_from_devices == 1
        assert opened.counters.ended == {("device", "relay", "4002"): 1}
        calls = [name for name, _ in opened.remote.calls]
        assert calls == ["wanted", "came", "went"]
        for _ in range(4):  # no contest: the other instances count such swaps
            await opened.device()
            await opened.pass_s(9)
            await opened.remote_device()
        assert not opened.session.is_contested()


async def test_connection_without_clients_yields_and_the_session_ends(autojump_clock: MockClock) -> None:
    opened = Opened()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(own_peers, opened.session)
        local = await opened.device(ScriptedPeer(goodbye_s=5))
        local.say(STATUS)
        assert opened.session.yield_device(), "it was lively"
        assert not opened.is_online()
        local.say(STATUS)
        await wait_all_tasks_blocked()
        assert local.close_code == CloseCode.REPLACED
        assert opened.host.emptied == [opened.session]
        assert not opened.session.yield_device()
    assert local.acloses == 1
    assert [kind for kind, *_ in opened.host.recorded] == ["online"]
    assert opened.remote.calls == [("came", DEVICE_ID), ("went", DEVICE_ID)]
    assert opened.counters.received_from_devices == 1


async def test_silent_connection_that_yields_was_not_lively(autojump_clock: MockClock) -> None:
    async with open_session() as opened:
        local = await opened.device()
        await opened.pass_s(25)
        assert not opened.session.yield_device()
        assert local.close_code == CloseCode.REPLACED


async def test_remote_device_does_not_yield() -> None:
    async with open_session() as opened:
        assert not opened.session.yield_device()
        remote = await opened.remote_device()
        assert not opened.session.yield_device()
        assert opened.is_online()
        assert remote.closes == []


async def test_held_messages_pass_before_a_connection_yields() -> None:
    async with open_session(device_rate=1.0, device_burst=1.0) as opened:
        client, local, audience = await opened.client(), await opened.device(), ScriptedAudience()
        assert opened.session.set_remote_audience(audience)
        client.forget()
        lines = [encode({"type": "log", "level": "error", "n": n}) for n in range(2)]
        local.say(*lines)
        await opened.remote_device()
        assert client.messages == lines
        assert audience.messages == lines


# Clients on other instances


async def test_remote_audience_gets_each_message_of_the_device_once(autojump_clock: MockClock) -> None:
    async with open_session() as opened:
        device, audience = await opened.device(), ScriptedAudience()
        assert opened.session.set_remote_audience(audience)
        device.say(STATUS, DELTA)
        client = await opened.client()
        device.say(STATUS)
        assert audience.messages == [STATUS, DELTA, STATUS]
        assert client.messages == [STATUS]
        await opened.pass_s(30, device, client)
        assert audience.messages == [STATUS, DELTA, STATUS], "it gets no keepalive"
        client.leave()
        await wait_all_tasks_blocked()
        device.say(DELTA)
        assert audience.messages[3:] == [DELTA]
        assert opened.session.client_count == 0
        opened.session.set_remote_audience(None)
        device.say(STATUS)
        assert audience.messages[4:] == []


async def test_remote_audience_gets_merged_messages_of_a_throttled_device_as_a_client_does(
    autojump_clock: MockClock,
) -> None:
    async with open_session(device_rate=2.0, device_burst=2.0) as opened:
        device, client, audience = await opened.device(), await opened.client(), ScriptedAudience()
        assert opened.session.set_remote_audience(audience)
        for seq in range(20):
            device.say(
                encode({"type": "status_delta", "seq": seq, "temps": {f"t{seq}": seq}}),
                encode({"type": "log", "level": "error", "n": seq}),
            )
        await opened.pass_s(60, client, device)
        assert opened.counters.merged > 0
        assert [message for message in client.messages if message.peek_type() != "keepalive"] == (
            audience.messages
        )
        numbers = [decode(message)["n"] for message in audience.messages if message.peek_type() == "log"]
        assert len(numbers) == len(set(numbers))


async def test_remote_audience_stays_when_the_device_reconnects_here_and_it_is_asked_for_its_state(
    autojump_clock: MockClock,
) -> None:
    async with open_session() as opened:
        old, audience = await opened.device(), ScriptedAudience()
        old.say(STATUS)
        assert opened.session.set_remote_audience(audience)
        assert old.messages == [], "its state is current"
        await opened.pass_s(9, old)
        new = ScriptedPeer()
        opened.session.attach_device(new)
        await wait_all_tasks_blocked()
        assert new.types == ["connected", "request_state"], "as with clients here"
        new.say(DELTA)
        assert audience.messages == [STATUS, DELTA][1:]


@pytest.mark.parametrize("ends", ["it leaves", "its key ends", "it yields", "a remote device comes"])
async def test_remote_audience_ends_with_the_device(ends: str, autojump_clock: MockClock) -> None:
    async with open_session() as opened:
        await opened.client()
        device, audience = await opened.device(), ScriptedAudience()
        assert opened.session.set_remote_audience(audience)
        if ends == "it leaves":
            device.leave()
        elif ends == "its key ends":
            opened.session.end_device([], code=4003, reason="enough")
        elif ends == "it yields":
            opened.session.yield_device()
        else:
            opened.session.attach_remote_device(ScriptedRemotePeer())
        await wait_all_tasks_blocked()
        assert not opened.session.set_remote_audience(ScriptedAudience()), "the device is not here"
        device.say(STATUS)
        new = await opened.device()
        new.say(STATUS)
        assert audience.messages == []


async def test_device_is_asked_for_its_state_once_for_clients_on_other_instances(
    autojump_clock: MockClock,
) -> None:
    async with open_session() as opened:
        opened.session.ask_for_state()
        device = await opened.device(known_state=known_state())
        for _ in range(3):
            opened.session.set_remote_audience(ScriptedAudience())
        assert device.messages == []
        for _ in range(3):
            opened.session.ask_for_state()
        assert device.types == ["request_state"]
        remote = await opened.remote_device()
        opened.session.ask_for_state()
        assert remote.messages == []


async def test_remote_audience_renews_its_state_when_a_restored_one_is_shown(
    autojump_clock: MockClock,
) -> None:
    async with open_session() as opened:
        client, audience = await opened.client(), ScriptedAudience()
        device = await opened.device(known_state=known_state())
        assert opened.session.set_remote_audience(audience)
        assert audience.renewals == 0
        await opened.pass_s(2, device)
        assert audience.renewals == 1
        assert (audience.messages, client.types[-1]) == ([], "status")
        await opened.pass_s(10, device, client)
        assert audience.renewals == 1


async def test_command_of_another_instance_reaches_only_a_device_that_is_here() -> None:
    async with open_session() as opened:
        assert opened.session.take_remote_command(TARE) == "device_offline"
        device = await opened.device()
        assert opened.session.take_remote_command(TARE) == "delivered"
        assert device.messages == [TARE]
        device.refuses = True
        assert opened.session.take_remote_command(TARE) == "busy"
        remote = await opened.remote_device()
        assert opened.session.take_remote_command(TARE) == "device_offline"
        assert (device.messages, remote.commands) == ([TARE], [])
        assert (opened.counters.sent_to_devices, opened.counters.commands) == (1, {})


# What other instances are told


async def test_device_is_wanted_from_the_first_client_to_the_last() -> None:
    async with open_session() as opened:
        broken = ScriptedPeer()
        broken.deliver_error = ValueError("no way out")
        opened.session.attach_client(broken)
        assert opened.remote.calls == [("wanted", DEVICE_ID)]
        await wait_all_tasks_blocked()
        assert opened.remote.calls == [("wanted", DEVICE_ID), ("unwanted", DEVICE_ID)]
    opened = Opened()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(own_peers, opened.session)
        one, two = await opened.client(), await opened.client()
        one.fail(ValueError("no"))
        await wait_all_tasks_blocked()
        assert opened.remote.wanted == {DEVICE_ID}
        two.leave()
    assert opened.remote.calls == [("wanted", DEVICE_ID), ("unwanted", DEVICE_ID)]


async def test_cancelled_session_is_neither_wanted_nor_there() -> None:
    async with open_session() as opened:
        await opened.client()
        await opened.device()
        await opened.client()
        assert opened.remote.wanted == {DEVICE_ID}
        assert list(opened.remote.connected_at) == [DEVICE_ID]
    assert opened.remote.wanted == set()
    assert opened.remote.connected_at == {}


async def test_device_came_with_the_time_of_its_upgrade_and_its_state_restored(
    autojump_clock: MockClock,
) -> None:
    class Checking(RecordedPresence):
        def device_came(self, device_id: str, connected_at: float) -> None:
            super().device_came(device_id, connected_at)
            assert opened.session.presence.snapshot.has_status
            assert opened.session.set_remote_audience(ScriptedAudience())

    async with open_session() as opened:
        opened.host.remote = checking = Checking()
        device = ScriptedPeer(silent=True)
        opened.session.attach_device(device, known_state=known_state())
        attached_at = trio.current_time()
        await trio.sleep(3)
        assert checking.calls == []
        device.say()
        assert checking.connected_at == {DEVICE_ID: attached_at}


async def test_client_is_told_of_a_remote_device_that_is_attached_as_soon_as_it_is_wanted() -> None:
    class Attaching(RecordedPresence):
        def device_wanted(self, device_id: str) -> None:
            opened.session.attach_remote_device(ScriptedRemotePeer())

        def device_unwanted(self, device_id: str) -> None:
            pass

    async with open_session() as opened:
        opened.host.remote = Attaching()
        client = ScriptedPeer()
        opened.session.attach_client(client)
        assert client.types == ["connected", "device_online"]
        assert client.received[0]["deviceOnline"] is False
        await wait_all_tasks_blocked()

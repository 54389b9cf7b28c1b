import math
import time
from collections.abc import Awaitable, Callable, Sequence
from functools import partial

import pytest
import trio
from trio.testing import MockClock, assert_checkpoints, wait_all_tasks_blocked

from brewos_relay import messages
from brewos_relay.core.attachment import (
    Attachment,
    ClientAttachment,
    DeviceAttachment,
    RemoteDeviceAttachment,
)
from brewos_relay.core.grant import FULL, Grant
from brewos_relay.core.peer import PeerEnd
from brewos_relay.core.remote import RemoteOutcome
from brewos_relay.delivery import Delivery
from brewos_relay.errors import CloseCode
from brewos_relay.messages import Message
from support.peers import PassiveSession, ScriptedPeer, ScriptedRemotePeer

DEVICE_ID = "BRW-00000001"
DELIVERY = Delivery((messages.DEVICE_ONLINE,))


class InNursery(PassiveSession):
    """The session of an attachment."""

    device_id = DEVICE_ID

    def __init__(self, nursery: trio.Nursery) -> None:
        self._nursery = nursery

    def start_soon(self, async_fn: Callable[..., Awaitable[object]], *args: object) -> None:
        self._nursery.start_soon(async_fn, *args)


class TakingSession(PassiveSession):
    """A session that records what it takes, and from which kind of attachment."""

    def end_peer(self, attachment: Attachment) -> None:
        self.ended.append(attachment)

    def __init__(self) -> None:
        self.ended: list[Attachment] = []
        self.taken: list[tuple[str, Attachment, Sequence[Message]]] = []

    def take_from_device(self, device: DeviceAttachment, received: Sequence[Message]) -> float:
        self.taken.append(("device", device, received))
        return 1.0

    def take_from_remote_device(self, device: RemoteDeviceAttachment, received: Sequence[Message]) -> float:
        self.taken.append(("remote", device, received))
        return 2.0

    def take_from_client(self, client: ClientAttachment, received: Sequence[Message]) -> float:
        self.taken.append(("client", client, received))
        return 3.0

    def remote_device_went(self, device: RemoteDeviceAttachment) -> None:
        self.taken.append(("went", device, ()))


@pytest.fixture
async def peer() -> ScriptedPeer:
    return ScriptedPeer()


@pytest.fixture
async def device(peer: ScriptedPeer, nursery: trio.Nursery) -> DeviceAttachment:
    return DeviceAttachment(InNursery(nursery), peer, bucket=None)


@pytest.fixture
async def make_client(peer: ScriptedPeer, nursery: trio.Nursery) -> "partial[ClientAttachment]":
    return partial(ClientAttachment, InNursery(nursery), peer, bucket=None)


async def test_a_delivery_is_handed_to_the_peer(device: DeviceAttachment, peer: ScriptedPeer) -> None:
    assert device.deliver(DELIVERY)
    assert device.deliver(DELIVERY, keep=True)
    assert (peer.deliveries, peer.kept) == ([DELIVERY, DELIVERY], [False, True])
    peer.refuses = True
    assert not device.deliver(DELIVERY)
    assert device.deliver(DELIVERY, keep=True)


async def test_a_peer_that_cannot_be_delivered_to_is_closed(
    device: DeviceAttachment, peer: ScriptedPeer, caplog: pytest.LogCaptureFixture
) -> None:
    peer.deliver_error = ValueError("no way out")
    assert not device.deliver(DELIVERY)
    assert peer.close_code == CloseCode.INTERNAL_ERROR
    assert DEVICE_ID in caplog.text
    assert "ValueError: no way out" in caplog.text


async def test_a_ping_is_handed_to_the_peer_and_closes_it_if_it_fails(
    device: DeviceAttachment, peer: ScriptedPeer
) -> None:
    device.ping()
    assert (len(peer.pinged_at), peer.closes, device.heard) == (1, [], False)
    peer.is_sure = True
    device.ping()
    assert device.heard, "memory peers need no answer"
    peer.ping_error = ValueError("no ping")
    device.ping()
    assert peer.close_code == CloseCode.INTERNAL_ERROR


async def test_closing_never_raises(
    device: DeviceAttachment, peer: ScriptedPeer, caplog: pytest.LogCaptureFixture
) -> None:
    device.close(1000, "enough")
    peer.close_error = ValueError("no close")
    device.close(1001, "really")
    assert peer.closes == [(1000, "enough"), (1001, "really")]
    assert "ValueError: no close" in caplog.text
    assert DEVICE_ID in caplog.text


async def test_a_task_of_the_peer_that_fails_closes_it(device: DeviceAttachment, peer: ScriptedPeer) -> None:
    done: list[str] = []

    async def write(text: str) -> None:
        await trio.lowlevel.checkpoint()
        done.append(text)

    async def fail() -> None:
        raise ExceptionGroup("two", [ValueError("one"), KeyError("other")])

    device.start_soon(write, "x")
    await wait_all_tasks_blocked()
    assert (done, peer.closes) == (["x"], [])
    device.start_soon(fail)
    await wait_all_tasks_blocked()
    assert peer.close_code == CloseCode.INTERNAL_ERROR


async def test_silence_counts_from_the_last_check_that_found_a_sign_of_life(
    device: DeviceAttachment, autojump_clock: MockClock
) -> None:
    await trio.sleep(5)
    assert device.silent_s(trio.current_time()) == pytest.approx(5)
    device.heard = True
    await trio.sleep(1)
    assert device.silent_s(trio.current_time()) == 0
    await trio.sleep(3)
    assert device.silent_s(trio.current_time()) == pytest.approx(3)
    assert device.heard_at > device.attached_at


async def test_waiting_for_the_end_before_and_after_it(
    device: DeviceAttachment, nursery: trio.Nursery, autojump_clock: MockClock
) -> None:
    ended_at: list[float] = []

    async def wait(attachment: Attachment) -> None:
        await attachment.wait_closed()
        ended_at.append(trio.current_time())

    nursery.start_soon(wait, device)
    nursery.start_soon(wait, device)
    await trio.sleep(3)
    assert ended_at == []
    device.mark_ended()
    await wait_all_tasks_blocked()
    assert ended_at == [pytest.approx(3)] * 2
    with assert_checkpoints():
        await device.wait_closed()


async def test_peer_may_end_without_a_waiter(device: DeviceAttachment) -> None:
    device.mark_ended()
    device.mark_ended()
    with trio.fail_after(1):
        await device.wait_closed()


async def test_each_client_has_an_id_of_its_own(make_client: Callable[..., ClientAttachment]) -> None:
    assert len({make_client().id for _ in range(5)}) == 5


async def test_a_client_without_a_token_is_never_too_late(
    make_client: Callable[..., ClientAttachment],
) -> None:
    client = make_client()
    assert client.expires_at == math.inf
    assert client.renew is None


async def test_the_end_of_a_token_is_kept_on_the_clock_of_the_relay(
    make_client: Callable[..., ClientAttachment], autojump_clock: MockClock
) -> None:
    await trio.sleep(1000)
    client = make_client(expires_at_s=time.time() + 600)
    assert client.expires_at == pytest.approx(1600, abs=1)
    client.warned = True
    client.set_token_end(time.time() + 3600)
    assert client.expires_at == pytest.approx(4600, abs=1)
    assert not client.warned, "it is warned before the new end"


async def test_device_attachment_keeps_its_credential(
    device: DeviceAttachment, peer: ScriptedPeer, nursery: trio.Nursery
) -> None:
    assert device.credential is None
    proven = DeviceAttachment(InNursery(nursery), peer, bucket=None, credential=b"hash")
    assert proven.credential == b"hash"


# Grants


async def test_client_without_a_grant_may_do_everything_without_end(
    make_client: Callable[..., ClientAttachment],
) -> None:
    client = make_client()
    assert client.grant is FULL
    assert client.access_ends_at == math.inf


async def test_the_end_of_access_is_kept_on_the_clock_of_the_relay(
    make_client: Callable[..., ClientAttachment], autojump_clock: MockClock
) -> None:
    await trio.sleep(1000)
    client = make_client(grant=Grant(user_id="ada", until_s=time.time() + 600))
    assert client.access_ends_at == pytest.approx(1600, abs=1)
    later = Grant(user_id="ada", may_manage=False, until_s=time.time() + 3600)
    client.set_grant(later)
    assert client.access_ends_at == pytest.approx(4600, abs=1)
    assert client.grant is later
    client.set_grant(Grant(until_s=0))
    assert client.access_ends_at < trio.current_time()
    client.set_grant(Grant())
    assert client.access_ends_at == math.inf, "access that expired by itself can be given again"


async def test_access_that_was_ended_does_not_come_back(
    make_client: Callable[..., ClientAttachment], peer: ScriptedPeer
) -> None:
    grant = Grant(user_id="ada", session_id="s1")
    client = make_client(grant=grant)
    client.end_access(CloseCode.ACCESS_ENDED, "enough")
    assert peer.closes == [(CloseCode.ACCESS_ENDED, "enough")]
    assert client.access_ends_at == -math.inf
    client.set_grant(Grant(user_id="ada"))
    assert client.access_ends_at == -math.inf
    assert client.grant is grant, "the grant still names the user"


async def test_the_access_ends_even_if_the_peer_cannot_be_closed(
    make_client: Callable[..., ClientAttachment], peer: ScriptedPeer
) -> None:
    client = make_client()
    peer.close_error = ValueError("no close")
    client.end_access(CloseCode.TOKEN_REJECTED, "signed out")
    assert client.access_ends_at == -math.inf


async def test_after_a_pause_silence_begins_again(device: DeviceAttachment, mock_clock: MockClock) -> None:
    mock_clock.jump(50)
    device.restart_silence(trio.current_time())
    assert device.silent_s(trio.current_time()) == 0
    assert device.pinged_at == trio.current_time()


async def test_a_pause_that_the_clock_did_not_count_brings_ends_closer(
    peer: ScriptedPeer, nursery: trio.Nursery
) -> None:
    client = ClientAttachment(InNursery(nursery), peer, bucket=None, expires_at_s=time.time() + 100)
    ends = client.expires_at
    client.due_at = ends
    client.count_pause(60.0)
    assert client.expires_at == ends - 60
    assert client.access_ends_at == math.inf
    assert client.due_at == -math.inf


async def test_session_takes_the_messages_of_each_kind_of_attachment() -> None:
    session, received = TakingSession(), DELIVERY.messages
    device = DeviceAttachment(session, ScriptedPeer(), bucket=None)
    remote = RemoteDeviceAttachment(session, ScriptedRemotePeer())
    client = ClientAttachment(session, ScriptedPeer(), bucket=None)
    assert [attachment.receive(received) for attachment in (device, remote, client)] == [1.0, 2.0, 3.0]
    assert session.taken == [
        ("device", device, received),
        ("remote", remote, received),
        ("client", client, received),
    ]


# A device on another instance


async def test_remote_device_has_no_credential_and_no_rate(nursery: trio.Nursery) -> None:
    peer = ScriptedRemotePeer()
    device = RemoteDeviceAttachment(InNursery(nursery), peer)
    assert (device.remote, device.credential, device.bucket) == (peer, None, None)
    assert DeviceAttachment(InNursery(nursery), ScriptedPeer(), bucket=None).remote is None


async def test_remote_device_that_goes_is_closed_and_the_session_told() -> None:
    session, peer = TakingSession(), ScriptedRemotePeer()
    device = RemoteDeviceAttachment(session, peer)
    device.go()
    assert session.taken == [("went", device, ())]
    assert peer.close_code == CloseCode.GOING_AWAY


async def test_command_is_handed_to_the_remote_peer_with_its_deadline(nursery: trio.Nursery) -> None:
    peer, outcomes = ScriptedRemotePeer(), list[RemoteOutcome]()
    device = RemoteDeviceAttachment(InNursery(nursery), peer)
    device.send_command(messages.DEVICE_ONLINE, outcomes.append, 123.5)
    device.send_command(messages.DEVICE_OFFLINE, None, math.inf)
    assert [(each.message, each.not_after_ms) for each in peer.commands] == [
        (messages.DEVICE_ONLINE, 123.5),
        (messages.DEVICE_OFFLINE, math.inf),
    ]
    assert outcomes == []
    peer.commands[0].becomes("busy")
    assert outcomes == ["busy"]


async def test_remote_peer_that_fails_to_send_is_closed_and_the_outcome_is_unknown(
    nursery: trio.Nursery, caplog: pytest.LogCaptureFixture
) -> None:
    peer, outcomes = ScriptedRemotePeer(), list[RemoteOutcome]()
    device = RemoteDeviceAttachment(InNursery(nursery), peer)
    peer.send_error = ValueError("no way out")
    device.send_command(messages.DEVICE_ONLINE, outcomes.append, math.inf)
    device.send_command(messages.DEVICE_ONLINE, None, math.inf)
    assert outcomes == ["unknown"]
    assert peer.close_code == CloseCode.INTERNAL_ERROR
    assert "no way out" in caplog.text


async def test_peer_that_stays_tells_its_session_how_it_ended() -> None:
    session = TakingSession()
    attachment = Attachment(session, ScriptedPeer(), bucket=None)
    attachment.end_peer(PeerEnd("peer", 1000))
    assert session.ended == [attachment]
    assert attachment.end == PeerEnd("peer", 1000)

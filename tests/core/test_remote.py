"""Two relays in one process: a device on one, its clients on the other, and a link in memory between them."""

import contextlib
from collections.abc import AsyncIterator, Callable
from typing import Any, Final

import pytest
import trio
from trio.testing import MockClock, wait_all_tasks_blocked

from brewos_relay.core.attachment import RemoteDeviceAttachment
from brewos_relay.core.grant import Grant
from brewos_relay.core.peer import PeerEnd, Receive, Tasks
from brewos_relay.core.relay import Relay, open_relay
from brewos_relay.core.remote import SINGLE_INSTANCE, RemoteAudience, RemotePeer, RemotePresence, TakeOutcome
from brewos_relay.core.snapshot import KnownState
from brewos_relay.delivery import Delivery
from brewos_relay.dialect import BREWOS
from brewos_relay.errors import CloseCode
from brewos_relay.messages import Message, encode
from brewos_relay.vocabulary import now_ms
from support.peers import ScriptedPeer

ONE: Final = "BRW-00000001"
STATUS: Final = encode({"type": "status", "seq": 1, "temps": {"brew": 93}, "machine": {"mode": "on"}})
DELTA: Final = encode({"type": "status_delta", "seq": 2, "temps": {"group": 90}})
TARE: Final = encode({"type": "command", "cmd": "tare", "requestId": "r1"})
HEAT: Final = encode({"type": "command", "cmd": "set_mode", "mode": "on", "requestId": "r2"})


class Instance:
    """One relay, and its end of the link. It is the `RemotePresence` of its relay.

    The instance where the device came last owns it, as the broker of a cluster would decide.
    """

    def __init__(self, cluster: "Cluster") -> None:
        self.cluster = cluster
        self.relay: Relay
        self.wanted: set[str] = set()
        self.followed: dict[str, tuple[LinkPeer, RemoteDeviceAttachment]] = {}
        """The devices on the other instance that have clients here."""

    @property
    def other(self) -> "Instance":
        a, b = self.cluster.instances
        return b if self is a else a

    def device_came(self, device_id: str, connected_at: float) -> None:
        assert connected_at <= trio.current_time()
        self.cluster.owners[device_id] = self
        self.unfollow(device_id)
        if device_id in self.other.wanted:
            self.other.follow(device_id)  # its own connection yields, if it has one
        else:
            self.other.relay.yield_device(device_id)

    def device_went(self, device_id: str) -> None:
        if self.cluster.owners.get(device_id) is self:
            del self.cluster.owners[device_id]
            self.other.unfollow(device_id)

    def device_wanted(self, device_id: str) -> None:
        self.wanted.add(device_id)
        if self.cluster.owners.get(device_id) is self.other:
            self.follow(device_id)

    def device_unwanted(self, device_id: str) -> None:
        self.wanted.remove(device_id)
        self.unfollow(device_id)

    def follow(self, device_id: str) -> None:
        """Let the device of the other instance stand for it here, and get its state and messages."""
        peer = LinkPeer(device_id, self.other)
        self.followed[device_id] = peer, self.relay.attach_remote_device(device_id, peer)
        self.other.relay.set_remote_audience(device_id, LinkAudience(device_id, self))
        self.other.relay.ask_for_state(device_id)
        self.take_state(device_id)

    def take_state(self, device_id: str) -> None:
        state, seen_ms = self.other.relay.export_state(device_id)
        assert seen_ms is not None
        self.relay.take_remote_state(self.followed[device_id][1], state, seen_ms)

    def unfollow(self, device_id: str) -> None:
        if (followed := self.followed.pop(device_id, None)) is not None:
            followed[0].close(CloseCode.GOING_AWAY, "the device is not there any more")
            self.other.relay.set_remote_audience(device_id, None)


class LinkPeer:
    """The device of another instance, here; a `RemotePeer`."""

    def __init__(self, device_id: str, owner: Instance) -> None:
        self._device_id = device_id
        self._owner = owner
        self._closed = trio.Event()
        self._early: list[Message] = []
        self._receive: Receive | None = None

    async def run(self, tasks: Tasks, receive: Receive) -> PeerEnd | None:
        self._receive = receive
        receive(self._early)
        await self._closed.wait()
        self._receive = None
        return None

    def pass_on(self, messages: list[Message]) -> None:
        if self._receive is None:
            self._early += messages
        else:
            assert self._receive(messages) == 0.0

    def send_command(self, message: Message, take_outcome: TakeOutcome | None, not_after_ms: float) -> None:
        if now_ms() > not_after_ms:
            outcome: Any = "expired"
        else:
            outcome = self._owner.relay.deliver_remote_command(self._device_id, message)
        if take_outcome is not None:
            self._owner.cluster.later(lambda: take_outcome(outcome))

    def deliver(self, delivery: Delivery, keep: bool = False) -> bool:
        raise AssertionError("a remote device gets commands only")

    @property
    def backlog_bytes(self) -> int:
        return 0

    def ping(self) -> bool:
        raise AssertionError("a remote device gets no ping")

    def close(self, code: int, reason: str) -> None:
        self._closed.set()

    async def aclose(self) -> None:
        await trio.lowlevel.checkpoint()


class LinkAudience:
    """The clients of another instance; a `RemoteAudience`."""

    def __init__(self, device_id: str, watcher: Instance) -> None:
        self._device_id = device_id
        self._watcher = watcher

    def deliver(self, delivery: Delivery) -> None:
        self._watcher.followed[self._device_id][0].pass_on(list(delivery.messages))

    def renew_state(self) -> None:
        self._watcher.take_state(self._device_id)


class Cluster:
    def __init__(self) -> None:
        self.owners: dict[str, Instance] = {}
        self.instances = (Instance(self), Instance(self))
        self._later: list[Callable[[], None]] = []

    def later(self, do: Callable[[], None]) -> None:
        self._later.append(do)

    async def settle(self) -> None:
        """Let outcomes arrive, and let all tasks run."""
        await wait_all_tasks_blocked()
        while self._later:
            self._later.pop(0)()
        await wait_all_tasks_blocked()


@contextlib.asynccontextmanager
async def open_cluster() -> AsyncIterator[Cluster]:
    cluster = Cluster()
    a, b = cluster.instances
    with trio.fail_after(3600):
        async with (
            open_relay(dialect=BREWOS, remote=a) as a.relay,
            open_relay(dialect=BREWOS, remote=b) as b.relay,
        ):
            yield cluster


async def comes(cluster: Cluster, instance: int, **options: Any) -> ScriptedPeer:
    device = ScriptedPeer(min_age_s=8.0)
    cluster.instances[instance].relay.attach_device(ONE, device, **options)
    await cluster.settle()
    return device


async def joins(cluster: Cluster, instance: int, **options: Any) -> ScriptedPeer:
    client = ScriptedPeer()
    cluster.instances[instance].relay.attach_client(ONE, client, **options)
    await cluster.settle()
    return client


def told(client: ScriptedPeer) -> list[Any]:
    """Return the messages to a client without keepalives and varying times, and forget them."""
    received = [content for content in client.received if content["type"] != "keepalive"]
    client.forget()
    for content in received:
        for name in ("timestamp", "sessionId", "lastSeen", "snapshotAgeMs"):
            content.pop(name, None)
    return received


def test_single_instance_takes_note_of_nothing() -> None:
    remote: RemotePresence = SINGLE_INSTANCE
    remote.device_came(ONE, 0.0)
    remote.device_went(ONE)
    remote.device_wanted(ONE)
    remote.device_unwanted(ONE)


async def test_what_the_link_is_made_of_fits_the_protocols() -> None:
    cluster = Cluster()
    presence: RemotePresence = cluster.instances[0]
    peer: RemotePeer = LinkPeer(ONE, cluster.instances[1])
    audience: RemoteAudience = LinkAudience(ONE, cluster.instances[0])
    assert (presence.device_came, peer.backlog_bytes, audience.deliver) is not None


@pytest.mark.parametrize("client_first", [True, False])
async def test_device_and_client_on_two_instances_behave_as_on_one(
    client_first: bool, autojump_clock: MockClock
) -> None:
    heard = []
    for client_at in (0, 1):
        async with open_cluster() as cluster:
            if client_first:
                client, device = await joins(cluster, client_at), await comes(cluster, 0)
                device.say(STATUS)
            else:
                device = await comes(cluster, 0)
                device.say(STATUS)
                client = await joins(cluster, client_at)
            device.say(DELTA)
            client.say(TARE, HEAT, {"type": "request_full_status"})
            await cluster.settle()
            device.leave()
            await cluster.settle()
            client.say(HEAT)
            late = await joins(cluster, client_at)
            assert [message for message in device.messages if message in (TARE, HEAT)] == [TARE, HEAT]
            heard.append((told(client), told(late)))
    (here, late_here), (elsewhere, late_elsewhere) = heard
    by_content = sorted(elsewhere, key=repr)
    if client_first:
        assert by_content == sorted(here, key=repr)
    else:  # the state follows the greeting, since it has to be fetched
        kinds = [content["type"] for content in elsewhere]
        assert kinds.count("device_online") == 1
        assert kinds.index("device_online") < kinds.index("status")
        assert sorted(map(repr, commands_of(elsewhere))) == sorted(map(repr, commands_of(here)))
    assert late_elsewhere == late_here


def commands_of(contents: list[Any]) -> list[Any]:
    return [content for content in contents if content["type"] in {"command_status", "error", "status_delta"}]


async def test_state_with_restored_groups_is_the_same_on_both_instances(autojump_clock: MockClock) -> None:
    async with open_cluster() as cluster:
        a, b = (instance.relay for instance in cluster.instances)
        early = await joins(cluster, 1)
        known = KnownState(STATUS, now_ms() - 60_000)
        device = await comes(cluster, 0, known_state=known)
        device.say(DELTA)
        told(early)
        await trio.sleep(3)
        device.say()
        (status, state) = told(early)
        assert (status["online"], status["staleGroups"]) == (True, ["machine"])
        assert state["temps"] == {"brew": 93, "group": 90}
        for relay in (a, b):
            content = relay.state_of(ONE)
            assert content is not None
            assert (content["lastKnown"], content["staleGroups"]) == (True, ["machine"])
        late = [await joins(cluster, instance) for instance in (0, 1)]
        (_, *here), (_, *there) = map(told, late)
        assert here == there
        device.say(STATUS)
        for relay in (a, b):
            content = relay.state_of(ONE)
            assert content is not None
            assert not content["lastKnown"]


async def test_device_that_moves_to_another_instance_stays_online_for_its_clients(
    autojump_clock: MockClock,
) -> None:
    async with open_cluster() as cluster:
        clients = [await joins(cluster, instance) for instance in (0, 1)]
        old = await comes(cluster, 0)
        old.say(STATUS)
        await trio.sleep(3)
        list(map(told, clients))
        new = await comes(cluster, 1)
        assert old.close_code == CloseCode.REPLACED
        assert old.acloses == 0, "its key is not safe yet"
        new.say(DELTA)
        await cluster.settle()
        for client in clients:
            kinds = {content["type"] for content in told(client)}
            assert kinds <= {"device_status", "status", "status_delta"}
            assert "status_delta" in kinds
            client.say(TARE)
            await cluster.settle()
            assert [content["status"] for content in told(client)] == ["delivered"]
        assert new.messages.count(TARE) == 2
        await trio.sleep(6)
        assert old.acloses == 1
        assert cluster.owners[ONE] is cluster.instances[1]
        for instance in cluster.instances:
            content = instance.relay.state_of(ONE)
            assert content is not None
            assert content["messages"]["status"]["temps"] == {"brew": 93, "group": 90}
        new.leave()
        await cluster.settle()
        assert [told(client) for client in clients] == [[{"type": "device_offline"}]] * 2
        assert cluster.owners == {}


async def test_machine_that_comes_and_goes_between_instances_is_counted_once_on_each(
    autojump_clock: MockClock,
) -> None:
    async with open_cluster() as cluster:
        client = await joins(cluster, 0)
        for number in range(6):
            device = await comes(cluster, number % 2)
            device.say(STATUS)
            client.say()
            await trio.sleep(9)
        counters = [instance.relay.counters for instance in cluster.instances]
        assert [each.devices_attached for each in counters] == [3, 3]
        assert [each.received_from_devices for each in counters] == [3, 3]
        assert [each.ended for each in counters] == [
            {("device", "relay", "4002"): 3},
            {("device", "relay", "4002"): 2},
        ]
        assert [each.sent_to_clients for each in counters] == [6, 0]
        assert [instance.relay.device_count for instance in cluster.instances] == [0, 1]
        assert told(client).count({"type": "device_online"}) == 1


async def test_messages_cross_only_while_the_other_instance_has_clients(autojump_clock: MockClock) -> None:
    async with open_cluster() as cluster:
        device = await comes(cluster, 0)
        watcher = cluster.instances[1]
        assert watcher.relay.session_count == 0
        client = await joins(cluster, 1)
        assert watcher.relay.session_count == 1
        client.leave()
        await cluster.settle()
        assert (watcher.followed, watcher.relay.session_count) == ({}, 0)
        device.say(STATUS)
        assert watcher.relay.state_of(ONE) is None


async def test_command_of_a_member_is_checked_where_the_member_is(autojump_clock: MockClock) -> None:
    async with open_cluster() as cluster:
        device = await comes(cluster, 0)
        client = await joins(cluster, 1, grant=Grant(may_command=False, may_manage=False))
        device.forget()
        told(client)
        client.say(TARE)
        await cluster.settle()
        assert [content["type"] for content in told(client)] == ["error", "command_status"]
        assert device.messages == []

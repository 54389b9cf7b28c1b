"""The tasks of a peer: what they contain, and in which order they end."""

import logging
from collections.abc import Sequence

import pytest
import trio
from trio.testing import wait_all_tasks_blocked

from brewos_relay.core.attachment import Attachment
from brewos_relay.core.peer import LEFT, STAYS, PeerEnd, Receive, Tasks
from brewos_relay.core.peer_tasks import end_peer, own_peer, own_peers, run_beside
from brewos_relay.delivery import Delivery
from brewos_relay.messages import DEVICE_ONLINE, Message
from support.peers import PassiveSession


class Peer:
    """A peer that ends at once, as it is told."""

    backlog_bytes = 0

    def __init__(self, steps: list[str], end: PeerEnd | Exception | None, closing: Exception | None) -> None:
        self.steps = steps
        self.end = end
        self.closing = closing

    async def run(self, tasks: Tasks, receive: Receive) -> PeerEnd | None:
        await trio.lowlevel.checkpoint()
        receive((DEVICE_ONLINE,))
        if isinstance(self.end, Exception):
            raise self.end
        return self.end

    def deliver(self, delivery: Delivery, keep: bool = False) -> bool:
        raise AssertionError

    def ping(self) -> bool:
        raise AssertionError

    def close(self, code: int, reason: str) -> None:
        self.steps.append(f"closed with {code}")

    async def aclose(self) -> None:
        await trio.lowlevel.checkpoint()
        self.steps.append("aclose")
        if self.closing is not None:
            raise self.closing


class Owner:
    """Records what it is told."""

    device_id = "BRW-00000001"

    def __init__(self) -> None:
        self.steps: list[str] = []
        self.nursery: trio.Nursery | None = None
        self.waiting: list[tuple[Attachment, Receive]] = []
        self.staying: list[Attachment] | None = None
        self.watcher: trio.lowlevel.Task | None = None

    def receive(self, received: Sequence[Message]) -> float:
        self.steps.append(f"received {len(received)}")
        return 0.0

    def give_up(self) -> None:
        self.steps.append("give up")

    def detach(self, attachment: Attachment) -> None:
        self.steps.append("detach")

    def forget(self, attachment: Attachment) -> None:
        self.steps.append("forget")


async def own(owner: Owner, end: PeerEnd | Exception | None, closing: Exception | None = None) -> Attachment:
    """Run the task of a peer to its end."""
    attachment = Attachment(PassiveSession(), Peer(owner.steps, end, closing), bucket=None)
    with trio.fail_after(1):
        await own_peer(owner, attachment, owner.receive)
    return attachment


@pytest.mark.parametrize("end", [PeerEnd("peer", 1000), None])
async def test_peer_is_detached_then_closed_then_forgotten(end: PeerEnd | None) -> None:
    owner = Owner()
    attachment = await own(owner, end)
    assert owner.steps == ["received 1", "detach", "aclose", "forget"]
    assert attachment.end == (end or LEFT)


async def test_failing_peer_is_closed_with_1011(caplog: pytest.LogCaptureFixture) -> None:
    owner = Owner()
    attachment = await own(owner, ValueError("broken"))
    assert owner.steps == ["received 1", "closed with 1011", "detach", "aclose", "forget"]
    assert attachment.end is not None
    assert attachment.end.code == 1011
    assert [record.levelno for record in caplog.records] == [logging.ERROR]


async def test_peer_that_cannot_be_closed_is_forgotten(caplog: pytest.LogCaptureFixture) -> None:
    owner = Owner()
    await own(owner, None, closing=ValueError("broken"))
    assert owner.steps[-1] == "forget"
    assert "closing a peer of device BRW-00000001 failed" in caplog.text


async def test_error_of_a_task_beside_is_handed_over() -> None:
    failures: list[Exception] = []

    async def fail(error: Exception) -> None:
        await trio.lowlevel.checkpoint()
        raise error

    with trio.fail_after(1):
        await run_beside(failures.append, trio.sleep, (0,))
        await run_beside(failures.append, fail, (ValueError("broken"),))
    (group,) = failures
    assert isinstance(group, ExceptionGroup)
    assert group.subgroup(ValueError) is not None


async def test_nursery_is_open_until_the_last_task_of_a_peer_has_ended() -> None:
    owner = Owner()
    for _ in range(3):
        attachment = Attachment(PassiveSession(), Peer(owner.steps, None, None), bucket=None)
        owner.waiting.append((attachment, owner.receive))
    last = trio.Event()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(own_peers, owner)
        with trio.fail_after(1):
            while owner.nursery is None:
                await trio.lowlevel.checkpoint()
        opened = owner.nursery
        opened.start_soon(last.wait)
        await wait_all_tasks_blocked()
        assert owner.steps.count("forget") == 3
        assert owner.waiting == []
        assert owner.nursery is opened
        last.set()
    assert [owner.nursery] == [None]


async def test_session_without_a_peer_gives_up() -> None:
    owner = Owner()
    await own_peers(owner)
    assert owner.steps == ["give up"]


# Peers that stay without a task


class OpenSession:
    """A session with peers that stay; leaving the block cancels it."""

    def __init__(self) -> None:
        self.owner = Owner()
        self.peers: list[Attachment] = []

    def attach(self) -> Attachment:
        attachment = Attachment(PassiveSession(), Peer(self.owner.steps, STAYS, None), bucket=None)
        if self.owner.nursery is None:
            self.owner.waiting.append((attachment, self.owner.receive))
        else:
            self.owner.nursery.start_soon(own_peer, self.owner, attachment, self.owner.receive)
        return attachment

    def tasks(self) -> int:
        """How many tasks the session has besides the one that runs its nursery."""
        assert self.owner.nursery is not None
        return len(self.owner.nursery.child_tasks)


@pytest.mark.parametrize("last_is_first", [True, False])
async def test_peers_that_stay_share_one_task_and_the_last_ends_the_session(last_is_first: bool) -> None:
    session = OpenSession()
    owner = session.owner
    early = [session.attach() for _ in range(2)]
    with trio.fail_after(5):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(own_peers, owner)
            await wait_all_tasks_blocked()
            peers = [*early, session.attach()]
            await wait_all_tasks_blocked()
            assert session.tasks() <= 1
            owner.steps.clear()
            for peer in peers if last_is_first else reversed(peers):
                assert nursery.child_tasks
                end_peer(owner, peer)
                end_peer(owner, peer)  # has no effect
                await wait_all_tasks_blocked()
    assert owner.steps == ["detach", "aclose", "forget"] * 3
    assert (owner.nursery, owner.watcher, owner.staying) == (None, None, None)


async def test_cancelling_closes_peers_that_stay() -> None:
    session = OpenSession()
    peers = [session.attach() for _ in range(3)]
    with trio.fail_after(5):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(own_peers, session.owner)
            await wait_all_tasks_blocked()
            session.owner.steps.clear()
            nursery.cancel_scope.cancel()
    assert session.owner.steps.count("detach") == session.owner.steps.count("forget") == 3
    end_peer(session.owner, peers[0])  # too late
    assert session.owner.steps.count("detach") == 3


async def test_peer_that_stays_as_the_last_one_leaves_keeps_the_session() -> None:
    session = OpenSession()
    first = session.attach()
    with trio.fail_after(5):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(own_peers, session.owner)
            await wait_all_tasks_blocked()
            end_peer(session.owner, first)
            second = session.attach()
            await wait_all_tasks_blocked()
            assert session.owner.staying == [second]
            assert session.owner.watcher is not None
            end_peer(session.owner, second)
            closing = session.attach()
            await wait_all_tasks_blocked()
            assert session.owner.staying == [closing]
            nursery.cancel_scope.cancel()


async def test_peer_that_stays_and_ends_before_the_task_wakes_up_wakes_it_once() -> None:
    session = OpenSession()
    first = session.attach()
    with trio.fail_after(5):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(own_peers, session.owner)
            await wait_all_tasks_blocked()
            end_peer(session.owner, first)
            second = Attachment(PassiveSession(), Peer(session.owner.steps, STAYS, None), bucket=None)
            session.owner.staying = [second]
            end_peer(session.owner, second)
    assert session.owner.steps.count("forget") == 2

"""The tasks of a peer: what they contain, and in which order they end."""

import logging
from collections.abc import Sequence

import pytest
import trio
from trio.testing import wait_all_tasks_blocked

from brewos_relay.core.attachment import Attachment
from brewos_relay.core.peer import LEFT, PeerEnd, Receive, Tasks
from brewos_relay.core.peer_tasks import own_peer, own_peers, run_beside
from brewos_relay.messages import DEVICE_ONLINE, Delivery, Message
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

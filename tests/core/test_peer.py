import inspect
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import trio
from trio.testing import wait_all_tasks_blocked

from brewos_relay.core.attachment import Attachment
from brewos_relay.core.peer import MemoryPeer, Peer, PeerEnd, Tasks, end_details, memory_peer, shown
from brewos_relay.delivery import Delivery
from brewos_relay.errors import PeerGone
from brewos_relay.messages import Message
from brewos_relay.wire.connection import WebSocketConnection
from support.peers import PeerTasks, ScriptedPeer

NEEDS_ANNOTATIONS = pytest.mark.interpreted(reason="compiled functions have no annotations")
METHODS = [Peer.run, Peer.deliver, Peer.ping, Peer.close, Peer.aclose]


@pytest.mark.parametrize(
    "peer_class", [MemoryPeer, ScriptedPeer, pytest.param(WebSocketConnection, marks=NEEDS_ANNOTATIONS)]
)
@pytest.mark.parametrize("method", METHODS, ids=lambda method: method.__name__)
def test_every_peer_has_the_methods_of_the_protocol(
    peer_class: type[Peer], method: Callable[..., Any]
) -> None:
    own = getattr(peer_class, method.__name__)
    assert inspect.signature(own) == inspect.signature(method)
    assert inspect.iscoroutinefunction(own) == inspect.iscoroutinefunction(method)


def test_the_methods_are_all_that_the_protocol_asks_for() -> None:
    asked_for = {name for name in vars(Peer) if not name.startswith("_")}
    assert asked_for == {method.__name__ for method in METHODS} | {"backlog_bytes"}


async def test_type_checkers_take_them_for_peers() -> None:
    peers: list[Peer] = [memory_peer()[0], ScriptedPeer()]
    assert [peer.backlog_bytes for peer in peers] == [0, 0]


@NEEDS_ANNOTATIONS
def test_an_attachment_is_where_a_peer_starts_its_tasks() -> None:
    assert inspect.signature(Attachment.start_soon) == inspect.signature(Tasks.start_soon)


@pytest.mark.parametrize(
    ("end", "text"),
    [
        (PeerEnd("peer", None), "the peer ended it without a goodbye"),
        (PeerEnd("relay", 1008, "too\nquiet"), "the relay ended it with 1008: too quiet"),
    ],
)
def test_an_end_in_words(end: PeerEnd, text: str) -> None:
    assert str(end) == text


def test_details_of_an_end() -> None:
    assert end_details(PeerEnd("peer", None), connected_s=1.24, received=7) == {
        "by": "peer",
        "connectedS": 1.2,
        "messages": 7,
    }
    kept = end_details(PeerEnd("relay", 4003, "x", 0.01), connected_s=0, received=0)
    assert (kept["code"], kept["reason"], kept["roundTripMs"]) == (4003, "x", 10.0)


def test_texts_of_others_stay_on_their_line_and_short() -> None:
    assert shown("a\x1b[2J\nb") == "a [2J b"
    assert len(shown("x" * 500)) == 120


@pytest.mark.parametrize(
    ("code", "label"),
    [
        (None, "none"),
        (1000, "1000"),
        (1015, "1015"),
        (4002, "4002"),
        (4003, "4003"),
        (3000, "other"),
        (4999, "other"),
    ],
)
def test_metrics_show_few_close_codes(code: int | None, label: str) -> None:
    assert PeerEnd("peer", code).label == label


ONE, TWO, THREE = (Message(b'{"type":"%d"}' % number) for number in (1, 2, 3))
BINARY = Message(b"\x81\xa4type\xa1x", is_text=False)


class Running:
    """A peer that runs in a nursery, and the messages that it passed on."""

    def __init__(self, peer: MemoryPeer, nursery: trio.Nursery) -> None:
        self.passes: list[Sequence[Message]] = []
        self.pause_s = 0.0
        self.ended = False
        self._peer = peer
        nursery.start_soon(self._run, nursery)

    @property
    def received(self) -> list[Message]:
        return [message for one_pass in self.passes for message in one_pass]

    async def _run(self, nursery: trio.Nursery) -> None:
        await self._peer.run(PeerTasks(nursery), self._receive)
        self.ended = True

    def _receive(self, messages: Sequence[Message]) -> float:
        self.passes.append(messages)
        return self.pause_s


async def test_messages_of_the_other_end_arrive_in_order(nursery: trio.Nursery) -> None:
    peer, end = memory_peer()
    running = Running(peer, nursery)
    await end.send({"type": "1"})
    await end.send(TWO)
    await end.send(BINARY)
    await wait_all_tasks_blocked()
    assert running.received == [ONE, TWO, BINARY]


async def test_a_peer_is_sure_to_be_alive(nursery: trio.Nursery) -> None:
    peer, _end = memory_peer()
    assert peer.ping()
    running = Running(peer, nursery)
    await wait_all_tasks_blocked()
    assert peer.ping()
    assert running.passes == []


async def test_nothing_is_read_during_a_pause(
    nursery: trio.Nursery, autojump_clock: trio.testing.MockClock
) -> None:
    peer, end = memory_peer()
    running = Running(peer, nursery)
    running.pause_s = 5.0
    await end.send(ONE)
    await end.send(TWO)
    await trio.sleep(4)
    assert running.received == [ONE]
    running.pause_s = 0.0
    await end.send(THREE)
    await trio.sleep(2)
    assert running.received == [ONE, TWO, THREE], "no message was dropped"


async def test_backlog_is_the_unread_messages() -> None:
    peer, end = memory_peer()
    assert peer.backlog_bytes == 0
    peer.deliver(Delivery([ONE, TWO]))
    assert peer.backlog_bytes > 0
    for _ in range(2):
        await end.receive()
    assert peer.backlog_bytes == 0


async def test_keep_gives_no_extra_room_in_memory() -> None:
    peer, _end = memory_peer(capacity_messages=1)
    assert peer.deliver(Delivery([ONE]), keep=True)
    assert not peer.deliver(Delivery([TWO]), keep=True)


async def test_deliveries_are_received_in_order() -> None:
    peer, end = memory_peer()
    assert peer.deliver(Delivery([ONE, TWO]))
    assert peer.deliver(Delivery([BINARY]))
    assert [await end.receive() for _ in range(3)] == [ONE, TWO, BINARY]


async def test_receive_waits_for_a_delivery(
    nursery: trio.Nursery, autojump_clock: trio.testing.MockClock
) -> None:
    peer, end = memory_peer()

    async def deliver_later() -> None:
        await trio.sleep(5)
        peer.deliver(Delivery([ONE]))

    nursery.start_soon(deliver_later)
    with trio.fail_after(6):
        assert await end.receive() == ONE
    assert trio.current_time() >= 5


async def test_a_peer_that_is_too_far_behind_is_left_out() -> None:
    peer, end = memory_peer(capacity_messages=2)
    assert peer.deliver(Delivery([ONE]))
    assert peer.deliver(Delivery([TWO]))
    assert not peer.deliver(Delivery([THREE]))
    assert await end.receive() == ONE
    assert peer.deliver(Delivery([THREE]))
    assert [await end.receive(), await end.receive()] == [TWO, THREE]


async def test_a_delivery_that_does_not_fit_is_left_out_as_a_whole() -> None:
    peer, end = memory_peer(capacity_messages=2)
    assert peer.deliver(Delivery([ONE]))
    assert not peer.deliver(Delivery([TWO, THREE]))
    assert await end.receive() == ONE
    assert peer.deliver(Delivery([THREE]))
    assert await end.receive() == THREE


async def test_waiting_receiver_is_room_for_one_message(nursery: trio.Nursery) -> None:
    peer, end = memory_peer(capacity_messages=1)
    received: list[Message] = []

    async def receive_one() -> None:
        received.append(await end.receive())

    nursery.start_soon(receive_one)
    await wait_all_tasks_blocked()
    assert not peer.deliver(Delivery([ONE, TWO, THREE]))
    assert peer.deliver(Delivery([ONE, TWO]))
    assert not peer.deliver(Delivery([THREE]))
    await wait_all_tasks_blocked()
    assert received == [ONE]
    assert await end.receive() == TWO


async def test_sending_waits_for_the_reader(autojump_clock: trio.testing.MockClock) -> None:
    _, end = memory_peer(capacity_messages=1)
    await end.send(ONE)
    with trio.move_on_after(1) as waited:
        await end.send(TWO)
    assert waited.cancelled_caught


async def test_run_ends_when_the_other_end_leaves(nursery: trio.Nursery) -> None:
    peer, end = memory_peer()
    running = Running(peer, nursery)
    await end.send(ONE)
    end.close()
    await wait_all_tasks_blocked()
    assert running.ended
    assert running.received == [ONE]
    assert end.close_code is None
    assert not peer.deliver(Delivery([ONE]))


async def test_close_ends_run_and_the_first_code_counts(nursery: trio.Nursery) -> None:
    peer, end = memory_peer()
    running = Running(peer, nursery)
    await wait_all_tasks_blocked()
    peer.close(4002, "replaced")
    peer.close(1011, "failed")
    await wait_all_tasks_blocked()
    assert running.ended
    assert end.close_code == peer.close_code == 4002
    with pytest.raises(PeerGone, match="the relay closed: 4002 replaced"):
        await end.send(ONE)


async def test_close_before_run_and_from_within(nursery: trio.Nursery) -> None:
    peer, end = memory_peer()
    peer.close(1012, "restarting")
    running = Running(peer, nursery)
    await wait_all_tasks_blocked()
    assert running.ended

    peer, end = memory_peer()
    await end.send(ONE)
    await end.send(TWO)
    received: list[Message] = []

    def receive(messages: Sequence[Message]) -> float:
        received.extend(messages)
        peer.close(1011, "failed")
        return 0.0

    await peer.run(PeerTasks(nursery), receive)
    assert received == [ONE]


async def test_nothing_is_delivered_after_close() -> None:
    peer, _end = memory_peer()
    peer.close(4002, "replaced")
    assert not peer.deliver(Delivery([ONE]))


async def test_messages_before_the_end_can_still_be_received() -> None:
    peer, end = memory_peer()
    peer.deliver(Delivery([ONE]))
    peer.close(1012, "restarting")
    await peer.aclose()
    assert await end.receive() == ONE
    with pytest.raises(PeerGone, match="the relay closed: 1012 restarting"):
        await end.receive()
    assert not peer.deliver(Delivery([TWO]))


async def test_an_end_without_a_code_is_an_end(nursery: trio.Nursery) -> None:
    peer, end = memory_peer()
    await peer.aclose()
    await peer.aclose()
    assert end.close_code is None
    with pytest.raises(PeerGone, match="the connection has ended"):
        await end.receive()
    with pytest.raises(PeerGone, match="the connection has ended"):
        await end.send(ONE)


async def test_an_end_that_left_neither_sends_nor_receives() -> None:
    _, end = memory_peer()
    end.close()
    end.close()
    with pytest.raises(PeerGone):
        await end.send(ONE)
    with pytest.raises(PeerGone):
        await end.receive()


async def test_aclose_lets_go_even_when_cancelled() -> None:
    peer, end = memory_peer()
    with trio.CancelScope() as scope:
        scope.cancel()
        await peer.aclose()
    assert scope.cancelled_caught
    with pytest.raises(PeerGone):
        await end.receive()

import inspect
from collections.abc import Callable
from typing import Any

import pytest

from brewos_relay.core.attachment import Attachment
from brewos_relay.core.memory import MemoryPeer, memory_peer
from brewos_relay.core.peer import Peer, Tasks
from brewos_relay.wire.connection import WebSocketConnection
from support.peers import ScriptedPeer

METHODS = [Peer.run, Peer.deliver, Peer.ping, Peer.close, Peer.aclose]


@pytest.mark.parametrize("peer_class", [MemoryPeer, ScriptedPeer, WebSocketConnection])
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


def test_an_attachment_is_where_a_peer_starts_its_tasks() -> None:
    assert inspect.signature(Attachment.start_soon) == inspect.signature(Tasks.start_soon)

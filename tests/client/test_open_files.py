"""Tests that connections of the SDK leave no open sockets."""

import itertools
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import trio
import trio.testing

from brewos_relay.client import KeyStore, LinkState, open_app, open_device
from brewos_relay.client import reconnecting_link as link_module
from brewos_relay.client.backoff import Backoff
from brewos_relay.client.linked_peer import LinkedPeer
from support.plain_websockets import Peer, PlainServer, open_plain_server
from support.resources import own_open_files
from support.waiting import until
from support.websocket_server import answering, open_server

CONNECTIONS = 200
DEADLINE_S = 60.0
ANSWERS = [
    b"",
    b"SSH-2.0-OpenSSH_9.6\r\n",
    b"HTTP/1.1 401 Unauthorized\r\nContent-Length: 0\r\n\r\n",
    b"HTTP/1.1 503 Unavailable\r\nContent-Length: 99\r\n\r\nshort",
    b"HTTP/1.1 101 Switching Protocols\r\n\r\n",
]


@pytest.fixture(autouse=True)
def _no_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(link_module, "Backoff", lambda: Backoff(first_s=0.0, longest_s=0.0))
    monkeypatch.setattr(link_module, "_AT_ONCE_S", 0.0)


@asynccontextmanager
async def opened(end: str, url: str, folder: Path) -> AsyncIterator[LinkedPeer]:
    if end == "device":
        async with open_device(url, "BRW-00000001", KeyStore(folder / "key.json")) as device:
            yield device
    else:
        async with open_app(url, "t0ken", "BRW-00000001") as app:
            yield app


async def replaced(peer: Peer) -> None:
    await peer.close(4002, "replaced")


async def closed(peer: Peer) -> None:
    await peer.close(1012)


async def garbled(peer: Peer) -> None:
    await peer.connection.stream.send_all(b"\xff\xff\xff\xff")


ENDS: list[Callable[[Peer], Awaitable[None]]] = [replaced, Peer.cut, closed, garbled]


async def refuse_and_end(server: PlainServer, link: LinkedPeer) -> None:
    """Refuse half of the connections, and end the others in every possible way."""
    server.refusals = [(status, {}) for status in itertools.islice(itertools.cycle([401, 409, 503]), 100)]
    for number in range(CONNECTIONS - 100):
        peer = await server.accept()
        await ENDS[number % len(ENDS)](peer)
        if number % len(ENDS) == 0:
            await link.wait_for_state(LinkState.STOPPED)
            link.kick()
    await server.accept()


@pytest.mark.parametrize("end", ["device", "app"])
async def test_refused_cut_and_replaced_connections_leave_no_open_socket(tmp_path: Path, end: str) -> None:
    with trio.fail_after(DEADLINE_S):
        async with open_plain_server() as server:
            await trio.to_thread.run_sync(own_open_files)  # threads have files of their own
            before = own_open_files()
            async with opened(end, server.url, tmp_path) as link:
                await refuse_and_end(server, link)
                # One connection, and some that the server is still closing.
                assert own_open_files() <= before + 6
            await trio.testing.wait_all_tasks_blocked(0.01)
            assert own_open_files() <= before
            assert len(server.asked) >= CONNECTIONS


async def test_invalid_answers_leave_no_open_socket(tmp_path: Path) -> None:
    answers = itertools.cycle(ANSWERS)
    count = 0

    async def serve(stream: trio.SocketStream) -> None:
        nonlocal count
        count += 1
        await answering(next(answers))(stream)

    with trio.fail_after(DEADLINE_S):
        async with open_server(serve) as url:
            await trio.to_thread.run_sync(own_open_files)
            before = own_open_files()
            async with opened("device", url, tmp_path):
                await until(lambda: count >= CONNECTIONS)
            await trio.testing.wait_all_tasks_blocked(0.01)
            assert own_open_files() <= before


async def test_cancellation_at_any_moment_leaves_no_open_socket(tmp_path: Path) -> None:
    with trio.fail_after(DEADLINE_S):
        async with open_plain_server() as server:
            await trio.to_thread.run_sync(own_open_files)
            before = own_open_files()
            for number in range(60):
                with trio.move_on_after(number / 20_000):
                    async with opened("device", server.url, tmp_path):
                        await trio.sleep_forever()
            await trio.testing.wait_all_tasks_blocked(0.3)
            assert own_open_files() <= before

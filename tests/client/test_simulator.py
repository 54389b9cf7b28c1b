"""Tests of client.simulator: a machine's behaviour on the wire."""

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import pytest
import trio
from trio_websocket import ConnectionClosed, WebSocketConnection

from brewos_relay.client.app import decode
from brewos_relay.client.machine import Machine
from brewos_relay.client.simulator import Simulator
from brewos_relay.messages import Message
from support.websocket_server import Accepted, answering, open_server, open_websocket_server

DEADLINE_S = 10.0
KEY = "k" * 43


def make_simulator(url: str, **parameters: Any) -> Simulator:
    machine = Machine(device_id="BRW-0000ABCD", now_ms=lambda: 1_700_000_000_000)
    defaults: dict[str, Any] = {"tick_s": 0.01, "reconnect_s": 0.02, "first_info_s": 60.0}
    return Simulator(machine, url=url, key=KEY, **defaults | parameters)


async def receive(connection: WebSocketConnection) -> tuple[bool, dict[str, Any]]:
    """Give the next message, and whether it was text."""
    payload = await connection.get_message()
    is_text = isinstance(payload, str)
    message = Message(payload.encode() if isinstance(payload, str) else payload, is_text=is_text)
    content = decode(message)
    assert content is not None
    return is_text, content


async def receive_until(
    connection: WebSocketConnection, wanted: Callable[[dict[str, Any]], bool]
) -> dict[str, Any]:
    while True:
        _, content = await receive(connection)
        if wanted(content):
            return content


async def receive_close_code(connection: WebSocketConnection) -> int:
    """Read to the end of a connection; gives the code that it was closed with."""
    while True:
        try:
            await connection.get_message()
        except ConnectionClosed as closed:
            return closed.reason.code if closed.reason is not None else 0


@asynccontextmanager
async def running(**parameters: Any) -> AsyncIterator[tuple[Simulator, Accepted]]:
    """Run a simulator against a server of ours; gives it and the server's end of its first connection."""
    with trio.fail_after(DEADLINE_S):
        async with open_websocket_server() as (url, accepted), trio.open_nursery() as nursery:
            simulator = make_simulator(url, **parameters)
            nursery.start_soon(simulator.run)
            yield simulator, await accepted.receive()
            nursery.cancel_scope.cancel()


async def test_asks_for_the_upgrade_as_a_machine_does() -> None:
    async with running() as (_, server):
        assert server.path == f"/ws/device?id=BRW-0000ABCD&key={KEY}"
        assert server.subprotocols == ("arduino",)
        assert server.headers["origin"] == "file://"
        assert server.headers["user-agent"] == "arduino-WebSocket-Client"


async def test_begins_with_a_full_status_in_binary() -> None:
    async with running() as (_, server):
        is_text, status = await receive(server.connection)
        assert (is_text, status["type"], status["seq"]) == (False, "status", 1)
        assert status["machine"]["state"] == "idle"
        assert status["temps"]["brew"] == {"current": 22.0, "setpoint": 93.0}


async def test_pings_at_once() -> None:
    pinged = trio.Event()

    async def listen(stream: trio.SocketStream) -> None:
        from wsproto import ConnectionType, WSConnection
        from wsproto.events import AcceptConnection, Ping, Request

        protocol = WSConnection(ConnectionType.SERVER)
        async with stream:
            while data := await stream.receive_some():
                protocol.receive_data(data)
                for event in protocol.events():
                    if isinstance(event, Request):
                        await stream.send_all(protocol.send(AcceptConnection()))
                    elif isinstance(event, Ping):
                        assert event.payload == b""
                        pinged.set()

    with trio.fail_after(DEADLINE_S):
        async with open_server(listen) as url, trio.open_nursery() as nursery:
            nursery.start_soon(make_simulator(url, tick_s=60.0).run)
            await pinged.wait()
            nursery.cancel_scope.cancel()


async def test_heats_up_holds_and_brews_with_gapless_numbers() -> None:
    async with running(speed=2000.0, shot_every_s=60.0) as (_, server):
        await receive(server.connection)
        await server.connection.send_message('{"type":"command","cmd":"set_mode","mode":"on"}')
        seqs, kinds, states = [1], set[str](), list[str]()
        while "brewing" not in states or states[-1] != "ready":
            is_text, content = await receive(server.connection)
            if is_text:
                continue
            seqs.append(content["seq"])
            kinds.add(content["type"])
            if content["type"] == "status":
                states.append(content["machine"]["state"])
        assert kinds == {"status", "status_delta"}
        assert seqs == list(range(1, len(seqs) + 1))
        assert states[0] in ("heating", "ready")


@pytest.mark.parametrize("kind", ["request_state", "request_full_status"])
async def test_introduces_itself_when_asked(kind: str) -> None:
    async with running() as (_, server):
        await server.connection.send_message(f'{{"type":"{kind}"}}')
        info = await receive_until(server.connection, lambda content: content["type"] == "device_info")
        assert info["deviceId"] == "BRW-0000ABCD"


async def test_introduces_itself_unasked_after_a_while() -> None:
    async with running(first_info_s=0.05) as (_, server):
        await server.connection.send_message('{"type":"request_state","source":"proactive"}')
        for _ in range(2):  # once for the question, which does not cancel the introduction, and once for that
            await receive_until(server.connection, lambda content: content["type"] == "device_info")


async def test_obeys_and_says_so() -> None:
    async with running() as (simulator, server):
        await receive(server.connection)
        await server.connection.send_message('{"type":"command","cmd":"set_mode","mode":"on","deviceId":"x"}')
        log = await receive_until(server.connection, lambda content: content["type"] == "log")
        assert (log["level"], log["source"]) == ("info", "esp32")
        status = await receive_until(server.connection, lambda content: content["type"] == "status")
        assert (status["machine"]["state"], status["machine"]["mode"]) == ("heating", "on")
        await server.connection.send_message(
            '{"type":"command","cmd":"set_temp","boiler":"steam","temp":125}'
        )
        info = await receive_until(server.connection, lambda content: content["type"] == "device_info")
        assert info["steamSetpoint"] == 125
        await receive_until(
            server.connection,
            lambda content: content.get("temps", {}).get("steam", {}).get("setpoint") == 125,
        )
        await server.connection.send_message('{"type":"command","cmd":"set_temp","temp":300}')
        await receive_until(server.connection, lambda content: content.get("level") == "warn")
        assert simulator.machine.brew.setpoint_c == 93


@pytest.mark.parametrize(
    "junk",
    [
        b'{"type":"command","cmd":"set_mode","mode":"on"}',
        "not JSON",
        "[1]",
        "null",
        "{}",
        '{"type":7}',
        '{"type":"connected","timestamp":1}',
        '{"type":"error","error":"device_offline"}',
        '{"type":"key_rotate","key":"x"}',
        "[" * 10_000,
        '{"type":"command","cmd":' + "1" * 5000 + "}",
    ],
)
async def test_ignores_everything_else(junk: str | bytes) -> None:
    async with running(tick_s=60.0) as (simulator, server):
        await server.connection.send_message(junk)
        await server.connection.send_message('{"type":"request_state"}')
        _, content = await receive(server.connection)
        assert content["type"] == "device_info"
        assert simulator.machine.state == "idle"


async def test_takes_no_message_of_more_than_15_kib() -> None:
    async with running() as (_, server):
        await server.connection.send_message("x" * (15 * 1024 + 1))
        assert await receive_close_code(server.connection) == 1009


async def test_comes_back_with_higher_numbers_and_counts_early_losses() -> None:
    said: list[str] = []
    with trio.fail_after(DEADLINE_S):
        async with open_websocket_server() as (url, accepted), trio.open_nursery() as nursery:
            simulator = make_simulator(url, announce=said.append)
            nursery.start_soon(simulator.run)
            first = await accepted.receive()
            await receive(first.connection)
            assert simulator.key_losses == 0
            await first.connection.aclose(4002, "replaced")
            second = await accepted.receive()
            _, status = await receive(second.connection)
            assert status["type"] == "status"
            assert status["seq"] > 1
            assert (simulator.connections, simulator.key_losses) == (2, 1)
            await trio.aclose_forcefully(second.connection._stream)
            await accepted.receive()
            nursery.cancel_scope.cancel()
    assert said[0] == "machine connected"
    assert "4002: replaced" in said[1]
    assert "lost" in said[3]


async def test_tries_again_when_it_is_refused_or_nobody_is_there() -> None:
    said: list[str] = []
    told = trio.Event()

    def announce(text: str) -> None:
        said.append(text)
        if len(said) == 3:
            told.set()

    answer = b"HTTP/1.1 401 Unauthorized\r\nContent-Length: 0\r\n\r\n"
    with trio.fail_after(DEADLINE_S):
        async with open_server(answering(answer)) as url, trio.open_nursery() as nursery:
            simulator = make_simulator(url, announce=announce)
            nursery.start_soon(simulator.run)
            await told.wait()
            nursery.cancel_scope.cancel()
    assert all("HTTP 401" in text and KEY not in text for text in said)
    assert (simulator.connections, simulator.key_losses) == (0, 0)


async def test_says_goodbye_when_it_is_switched_off() -> None:
    with trio.fail_after(DEADLINE_S):
        async with open_websocket_server() as (url, accepted):
            async with trio.open_nursery() as nursery:
                simulator = make_simulator(url)
                nursery.start_soon(simulator.run)
                server = await accepted.receive()
                nursery.cancel_scope.cancel()
            assert await receive_close_code(server.connection) == 1000
            assert simulator.key_losses == 0

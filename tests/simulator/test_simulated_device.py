"""Tests of simulator.simulated_device: a machine's behaviour on the wire."""

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import Any

import pytest
import trio
from trio_websocket import ConnectionClosed, WebSocketConnection

from brewos_relay.client.codec import decode
from brewos_relay.messages import Message
from brewos_relay.simulator.connection_policy import FAITHFUL, RICH, ConnectionPolicy
from brewos_relay.simulator.model.machine import Machine
from brewos_relay.simulator.simulated_device import SimulatedDevice
from brewos_relay.simulator.usage_patterns import Barista
from support.waiting import until
from support.websocket_server import Accepted, answering, open_server, open_websocket_server

DEADLINE_S = 10.0
KEY = "k" * 43


POLICY = replace(RICH, tick_s=0.01, first_info_s=60.0, reconnect_s=0.02, refused_s=0.02, unreachable_s=0.02)


def make_simulator(
    url: str, *, rich: bool = False, tick_s: float = 0.01, first_info_s: float = 60.0, **parameters: Any
) -> SimulatedDevice:
    machine = Machine(device_id="BRW-0000ABCD", now_ms=lambda: 1_700_000_000_000, rich=rich)
    policy: ConnectionPolicy = replace(POLICY, tick_s=tick_s, first_info_s=first_info_s)
    return SimulatedDevice(machine, url=url, **{"key": KEY, "policy": policy, **parameters})


async def receive(connection: WebSocketConnection) -> tuple[bool, dict[str, Any]]:
    """Return the next message, and whether it was text."""
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
    """Read to the end of a connection; return its close code."""
    while True:
        try:
            await connection.get_message()
        except ConnectionClosed as closed:
            return closed.reason.code if closed.reason is not None else 0


@asynccontextmanager
async def running(**parameters: Any) -> AsyncIterator[tuple[SimulatedDevice, Accepted]]:
    """Run a device against a test server; yield it and the server's end of its first connection."""
    with trio.fail_after(DEADLINE_S):
        async with open_websocket_server() as (url, accepted), trio.open_nursery() as nursery:
            simulator = make_simulator(url, **parameters)
            nursery.start_soon(simulator.run)
            yield simulator, await accepted.receive()
            nursery.cancel_scope.cancel()


async def test_upgrade_request_is_that_of_firmware() -> None:
    async with running() as (_, server):
        assert server.path == f"/ws/device?id=BRW-0000ABCD&key={KEY}"
        assert server.subprotocols == ("arduino",)
        assert server.headers["origin"] == "file://"
        assert server.headers["user-agent"] == "arduino-WebSocket-Client"


async def test_first_message_is_a_full_status_in_binary() -> None:
    async with running() as (_, server):
        is_text, status = await receive(server.connection)
        assert (is_text, status["type"], status["seq"]) == (False, "status", 1)
        assert status["machine"]["state"] == "idle"
        assert status["temps"]["brew"] == {"current": 22.0, "setpoint": 93.0}


async def test_first_ping_is_immediate() -> None:
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


async def test_heats_up_and_brews_with_gapless_seq() -> None:
    async with running(speed=1000.0, usage=Barista(200.0)) as (_, server):
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
async def test_device_info_on_request(kind: str) -> None:
    async with running() as (_, server):
        await server.connection.send_message(f'{{"type":"{kind}"}}')
        info = await receive_until(server.connection, lambda content: content["type"] == "device_info")
        assert info["deviceId"] == "BRW-0000ABCD"


async def test_device_info_without_a_request() -> None:
    async with running(first_info_s=0.05) as (_, server):
        await server.connection.send_message('{"type":"request_state","source":"proactive"}')
        for _ in range(
            2
        ):  # the answer to the request, and the introduction, which the request does not cancel
            await receive_until(server.connection, lambda content: content["type"] == "device_info")


async def test_command_is_obeyed_and_logged() -> None:
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
async def test_unknown_messages_are_ignored(junk: str | bytes) -> None:
    async with running(tick_s=60.0, policy=replace(FAITHFUL, grace_s=0.0, tick_s=60.0)) as (
        simulator,
        server,
    ):
        await server.connection.send_message(junk)
        await server.connection.send_message('{"type":"request_state"}')
        _, content = await receive(server.connection)
        assert content["type"] == "device_info"
        assert simulator.machine.state == "idle"


async def test_message_over_15_kib_closes_the_connection() -> None:
    async with running() as (_, server):
        await server.connection.send_message("x" * (15 * 1024 + 1))
        assert await receive_close_code(server.connection) == 1009


async def test_reconnect_continues_seq_and_counts_early_losses() -> None:
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
    assert said[0] == "connected"
    assert "4002: replaced" in said[1]
    assert "lost" in said[3]


async def test_refused_or_failed_attempt_is_repeated() -> None:
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
    assert simulator.refusals == 3


@pytest.mark.parametrize(
    ("registers", "remedy"), [(True, "open the link as owner, "), (False, "remove the device there")]
)
async def test_machine_with_another_key_says_what_to_do(registers: bool, remedy: str) -> None:
    said: list[str] = []

    async def serve(stream: trio.SocketStream) -> None:
        async with stream:
            received = b""
            while not received.endswith((b"}", b"\r\n\r\n")) or (b"POST" in received) != (b"}" in received):
                received += await stream.receive_some()
            status = b"200 OK" if received.startswith(b"POST") else b"401 Unauthorized"
            await stream.send_all(b"HTTP/1.1 " + status + b"\r\nContent-Length: 2\r\n\r\n{}")

    policy = replace(POLICY, grace_s=0.0, after_register_s=0.0)
    with trio.fail_after(DEADLINE_S):
        async with open_server(serve) as url, trio.open_nursery() as nursery:
            simulator = SimulatedDevice(
                Machine(device_id="BRW-0000ABCD", now_ms=lambda: 0),
                url=url,
                registers=registers,
                policy=policy,
                announce=said.append,
            )
            nursery.start_soon(simulator.run)
            while not any("HTTP 401" in line for line in said):  # noqa: ASYNC110
                await trio.sleep(0.01)
            nursery.cancel_scope.cancel()
    [refused, *_] = [line for line in said if "HTTP 401" in line]
    assert remedy in refused
    assert (simulator.pairing_url in refused) == registers


async def test_cancellation_sends_a_close_frame() -> None:
    with trio.fail_after(DEADLINE_S):
        async with open_websocket_server() as (url, accepted):
            async with trio.open_nursery() as nursery:
                simulator = make_simulator(url)
                nursery.start_soon(simulator.run)
                server = await accepted.receive()
                nursery.cancel_scope.cancel()
            assert await receive_close_code(server.connection) == 1000
            assert simulator.key_losses == 0


async def test_registers_key_and_pairing_token() -> None:
    received: list[bytes] = []
    registered = trio.Event()

    async def register_only(stream: trio.SocketStream) -> None:
        async with stream:
            data = b""
            while not data.endswith(b"}"):
                data += await stream.receive_some()
            received.append(data)
            status = b"200 OK" if len(received) > 1 else b"503 Later"
            await stream.send_all(b"HTTP/1.1 %s\r\nContent-Length: 2\r\n\r\n{}" % status)

    def announce(text: str) -> None:
        said.append(text)
        if text.startswith("registered"):
            registered.set()

    said: list[str] = []
    with trio.fail_after(DEADLINE_S):
        async with open_server(register_only) as url, trio.open_nursery() as nursery:
            policy = replace(POLICY, register_s=0.01)
            simulator = make_simulator(url, key=None, registers=True, policy=policy, announce=announce)
            nursery.start_soon(simulator.run)
            await registered.wait()
            nursery.cancel_scope.cancel()
    assert len(received) == 2
    assert simulator.key.encode() in received[0]
    assert simulator.token.encode() in received[1]
    assert said[0].startswith("not registered: the relay refused the connection: HTTP 503")
    assert said[1].endswith(f"/pair?id=BRW-0000ABCD&token={simulator.token}")
    assert simulator.key not in "".join(said)


async def test_rich_device_sends_more_messages() -> None:
    async with running(rich=True, first_info_s=0.01) as (_, server):
        wanted = {"device_info", "esp_status", "pico_status", "bbw_settings", "preinfusion_settings"}
        while wanted:
            _, content = await receive(server.connection)
            wanted.discard(content["type"])
            if content["type"] == "status":
                assert content["shot"] == {"active": False}


async def test_reconnects_with_a_new_key() -> None:
    said: list[str] = []
    with trio.fail_after(DEADLINE_S):
        async with open_websocket_server() as (url, accepted), trio.open_nursery() as nursery:
            simulator = make_simulator(url, announce=said.append)
            nursery.start_soon(simulator.run)
            first = await accepted.receive()
            await first.connection.send_message('{"type":"key_rotate","key":"%s"}' % ("n" * 43))
            assert await receive_close_code(first.connection) == 1000
            assert simulator.key == KEY
            second = await accepted.receive()
            assert second.path.endswith("&key=" + "n" * 43)
            await second.connection.send_message('{"type":"connected"}')
            await receive(second.connection)
            await until(lambda: simulator.key != KEY)
            nursery.cancel_scope.cancel()
    assert simulator.key_losses == 0
    assert not any(KEY in text or "nnnn" in text for text in said)


async def test_waits_as_long_as_a_draining_relay_asks() -> None:
    said: list[str] = []
    async with running(policy=replace(RICH, tick_s=0.01), announce=said.append) as (_, server):
        await server.connection.send_message('{"type":"restarting","reconnectInMs":700}')
        await server.connection.aclose(1012)
        await until(lambda: len(said) >= 2)
    assert said[1].endswith("next attempt in 0.7 s")


async def test_time_that_is_no_float_is_ignored() -> None:
    said: list[str] = []
    async with running(policy=replace(RICH, tick_s=0.01), announce=said.append) as (_, server):
        await server.connection.send_message('{"type":"restarting","reconnectInMs":700}')
        await server.connection.send_message('{"type":"restarting","reconnectInMs":%s}' % ("9" * 400))
        await server.connection.aclose(1012)
        await until(lambda: len(said) >= 2)
    assert said[1].endswith("next attempt in 0.7 s")


async def test_restart_command_restarts() -> None:
    with trio.fail_after(DEADLINE_S):
        async with open_websocket_server() as (url, accepted), trio.open_nursery() as nursery:
            simulator = make_simulator(url, policy=replace(POLICY, reboot_s=0.01))
            nursery.start_soon(simulator.run)
            first = await accepted.receive()
            await receive(first.connection)
            await first.connection.send_message('{"type":"command","cmd":"restart"}')
            assert await receive_close_code(first.connection) == 1000
            second = await accepted.receive()
            _, status = await receive(second.connection)
            assert (status["type"], status["seq"]) == ("status", 1)
            nursery.cancel_scope.cancel()


async def test_offline_command_lasts_until_a_power_cycle() -> None:
    with trio.fail_after(DEADLINE_S):
        async with open_websocket_server() as (url, accepted), trio.open_nursery() as nursery:
            simulator = make_simulator(url)
            nursery.start_soon(simulator.run)
            first = await accepted.receive()
            await first.connection.send_message('{"type":"command","cmd":"wifi_forget"}')
            await until(lambda: simulator.state == "offline")
            await trio.sleep(0.1)
            assert simulator.connections == 1
            simulator.power_cycle()
            await accepted.receive()
            nursery.cancel_scope.cancel()


def test_shots_take_as_long_as_real_ones_if_wanted() -> None:
    took_s = {}
    for real in (False, True):
        simulator = make_simulator("http://relay", rich=True, speed=6.0, shots_in_real_time=real)
        machine = simulator.machine
        machine.switch_on()
        at_s = 0.0
        while machine.state != "ready":
            at_s += 0.5
            simulator.tick(at_s)
        assert at_s < 120, "it warms up at full speed"
        assert machine.pull_shot()
        began_s = at_s
        while machine.shot is not None:
            at_s += 0.1
            simulator.tick(at_s)
        took_s[real] = at_s - began_s
    assert took_s[False] < 7
    assert 20 < took_s[True] < 45

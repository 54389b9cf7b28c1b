"""The simulator's faithful mode against sections of the device contract, on a virtual clock."""

import contextlib
import itertools
import random
import struct
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from typing import Any

import msgspec
import pytest
import trio
from trio.testing import MockClock

from brewos_relay.simulator.connection_policy import FAITHFUL
from brewos_relay.simulator.model.machine import Machine
from brewos_relay.simulator.simulated_device import SimulatedDevice
from support.wire_client import (
    BINARY,
    CLOSE,
    CONTINUATION,
    PING,
    PONG,
    TEXT,
    Ended,
    Frame,
    WireClient,
    accept_value,
    frame,
)

GRACE_S = 12.25  # 10.25 s, then 2 s after the registration
DEADLINE_S = 400.0


@dataclass
class Visit:
    """One TCP connection of the machine: its start, its request, and the server's end."""

    at_s: float
    head: bytes
    wire: WireClient

    async def let_in(self) -> None:
        key = next(
            line[19:] for line in self.head.decode().split("\r\n") if line.startswith("Sec-WebSocket-Key: ")
        )
        await self.wire.send(
            b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
            b"Sec-WebSocket-Accept: " + accept_value(key).encode() + b"\r\n\r\n"
        )

    async def say(self, content: dict[str, Any]) -> None:
        await self.wire.send(frame(TEXT, msgspec.json.encode(content), mask=None))

    async def read_masked(self) -> tuple[Frame, bytes]:
        """Read a frame; return it unmasked, with the mask."""
        first, second = await self.wire._take(2)
        assert second & 0x80, "a machine masks everything"
        length = second & 0x7F
        if length == 126:
            length = int.from_bytes(await self.wire._take(2), "big")
        key = await self.wire._take(4)
        masked = await self.wire._take(length)
        payload = bytes(byte ^ key[i & 3] for i, byte in enumerate(masked))
        return Frame(first, second, payload), key

    async def read_until(self, wanted: Callable[[Frame], bool]) -> Frame:
        while True:
            found, _ = await self.read_masked()
            if found.opcode == PING:
                await self.wire.send(frame(PONG, found.payload, mask=None))
            if wanted(found):
                return found


def content(found: Frame) -> dict[str, Any]:
    decoded = (msgspec.json if found.opcode == TEXT else msgspec.msgpack).decode(found.payload)
    assert isinstance(decoded, dict)
    return decoded


@dataclass
class Cloud:
    """A server that accepts registrations, and passes all other connections to the test."""

    simulator: SimulatedDevice
    visits: trio.MemoryReceiveChannel[Visit]
    began_s: float
    registrations: list[tuple[float, bytes]] = field(default_factory=list)

    async def next_visit(self) -> Visit:
        return await self.visits.receive()


@contextlib.asynccontextmanager
async def cloud(*, registered: bytes = b"HTTP/1.1 200 OK", **parameters: Any) -> AsyncIterator[Cloud]:
    """Switch on a faithful machine that connects to a test server."""
    send, receive = trio.open_memory_channel[Visit](100)
    registrations: list[tuple[float, bytes]] = []

    async def serve(stream: trio.SocketStream) -> None:
        wire = WireClient(stream)
        at_s = trio.current_time()
        head = b""
        while not head.endswith((b"\r\n\r\n", b"}")) or (
            head.startswith(b"POST") and not head.endswith(b"}")
        ):
            data = await stream.receive_some()
            if not data:
                return
            head += data
        if head.startswith(b"POST"):
            registrations.append((at_s, head))
            await wire.send(registered + b"\r\nContent-Length: 2\r\nConnection: close\r\n\r\n{}")
            return
        await send.send(Visit(at_s, head, wire))
        await trio.sleep_forever()

    with trio.fail_after(DEADLINE_S):
        listeners = await trio.open_tcp_listeners(0, host="127.0.0.1")
        port = listeners[0].socket.getsockname()[1]
        async with trio.open_nursery() as nursery:
            nursery.start_soon(trio.serve_listeners, serve, listeners)
            machine = Machine(
                device_id="BRW-0000ABCD", now_ms=lambda: 1_700_000_000_000, rng=random.Random(1)
            )
            simulator = SimulatedDevice(
                machine, url=f"http://127.0.0.1:{port}", registers=True, policy=FAITHFUL, **parameters
            )
            nursery.start_soon(simulator.run)
            yield Cloud(simulator, receive, trio.current_time(), registrations)
            nursery.cancel_scope.cancel()


async def test_7_1_waits_registers_and_connects(autojump_clock: MockClock) -> None:
    async with cloud() as here:
        visit = await here.next_visit()
        ((registered_at_s, body),) = here.registrations
        assert registered_at_s - here.began_s == pytest.approx(10.25, abs=0.1)
        assert visit.at_s - here.began_s == pytest.approx(GRACE_S, abs=0.2)
        assert here.simulator.key.encode() in body
        lines = visit.head.decode().split("\r\n")
        assert lines[0] == f"GET /ws/device?id=BRW-0000ABCD&key={here.simulator.key} HTTP/1.1"
        assert [line.partition(":")[0] for line in lines[1:] if line] == [
            *("Host", "Connection", "Upgrade", "Sec-WebSocket-Version", "Sec-WebSocket-Key"),
            *("Sec-WebSocket-Protocol", "Origin", "User-Agent"),
        ]


async def test_1_3_pings_at_once_with_a_zero_mask_and_then_every_15_s(autojump_clock: MockClock) -> None:
    async with cloud() as here:
        visit = await here.next_visit()
        await visit.let_in()
        pings: list[float] = []
        while len(pings) < 3:
            found, key = await visit.read_masked()
            if found.opcode == PING:
                assert (found.payload, key) == (b"", b"\0\0\0\0")
                pings.append(trio.current_time())
                await visit.wire.send(frame(PONG, mask=None))
        assert pings[0] - visit.at_s < 0.3
        assert pings[1] - pings[0] == pytest.approx(15, abs=0.2)
        assert pings[2] - pings[1] == pytest.approx(15, abs=0.2)


async def test_7_1_status_after_half_a_second_and_device_info_after_three(autojump_clock: MockClock) -> None:
    async with cloud() as here:
        visit = await here.next_visit()
        await visit.let_in()
        status = await visit.read_until(lambda found: found.opcode == BINARY)
        assert trio.current_time() - visit.at_s < 0.8
        assert list(content(status))[:3] == ["type", "seq", "machine"]
        assert "shot" not in content(status)
        info = await visit.read_until(lambda found: found.opcode == TEXT)
        assert content(info)["type"] == "device_info"
        assert trio.current_time() - visit.at_s == pytest.approx(3.1, abs=0.3)


async def test_7_1_idle_machine_sends_keepalives_and_a_full_status_every_5_min(
    autojump_clock: MockClock,
) -> None:
    async with cloud() as here:
        visit = await here.next_visit()
        await visit.let_in()
        kinds: list[str] = []
        at_s: list[float] = []
        while len(kinds) < 3 or kinds[-1] != "status":
            found = await visit.read_until(lambda found: found.opcode == BINARY)
            kinds.append(content(found)["type"])
            at_s.append(trio.current_time())
        assert kinds == ["status", *["keepalive"] * 9, "status"]
        assert at_s[1] - at_s[0] == pytest.approx(30, abs=0.6)
        assert at_s[-1] - at_s[0] == pytest.approx(300, abs=1)
        assert "stats" in content(found)


async def test_1_3_answers_pings_and_ignores_binary_and_fragments(autojump_clock: MockClock) -> None:
    async with cloud() as here:
        visit = await here.next_visit()
        await visit.let_in()
        command = msgspec.json.encode({"type": "command", "cmd": "set_mode", "mode": "on"})
        await visit.wire.send(
            frame(BINARY, command, mask=None),
            frame(TEXT, command, fin=False, mask=None),
            frame(CONTINUATION, b"", mask=None),
            frame(PING, b"hello", mask=None),
        )
        pong = await visit.read_until(lambda found: found.opcode == PONG)
        assert pong.payload == b"hello"
        assert here.simulator.machine.state == "idle"


@pytest.mark.parametrize(("size", "ends"), [(15_360, False), (15_361, True)])
async def test_0_6_reads_15_360_bytes_and_no_more(autojump_clock: MockClock, size: int, ends: bool) -> None:
    async with cloud() as here:
        visit = await here.next_visit()
        await visit.let_in()
        await trio.sleep(6)
        await visit.wire.send(frame(TEXT, b"x" * size, mask=None), frame(PING, b"!", mask=None))
        found = await visit.read_until(lambda found: found.opcode in (CLOSE, PONG) and bool(found.payload))
        assert (found.opcode == CLOSE) is ends
        if ends:
            assert found.payload == struct.pack(">H", 1009)


async def test_2_5_too_long_text_is_dropped(autojump_clock: MockClock) -> None:
    async with cloud() as here:
        machine = here.simulator.machine
        for _ in range(10):
            machine.execute({"cmd": "add_schedule", "name": "n" * 23})
        machine.execute({"cmd": "set_time_config", "ntpServer": "s" * 63})
        machine.execute({"cmd": "set_machine_info", "name": "é" * 32, "brand": "é" * 32, "model": "m" * 32})
        assert len(msgspec.json.encode(machine.device_info())) > 2047
        visit = await here.next_visit()
        await visit.let_in()
        await visit.say({"type": "request_state"})
        await visit.say({"type": "command", "cmd": "get_log_config"})
        text = await visit.read_until(lambda found: found.opcode == TEXT)
        assert content(text)["type"] == "log"


async def test_1_3_large_texts_have_a_zero_mask(autojump_clock: MockClock) -> None:
    async with cloud() as here:
        for _ in range(8):
            here.simulator.machine.execute({"cmd": "add_schedule", "name": "n" * 23})
        visit = await here.next_visit()
        await visit.let_in()
        await visit.say({"type": "request_state"})
        keys = {}
        while "device_info" not in keys or "status" not in keys:
            found, key = await visit.read_masked()
            if found.opcode in (TEXT, BINARY):
                keys[content(found)["type"]] = (len(found.payload), key)
        assert keys["device_info"][0] >= 1400
        assert keys["device_info"][1] == b"\0\0\0\0"
        assert keys["status"][1] != b"\0\0\0\0"


async def test_2_1_answers_1000_to_a_close_frame_and_reconnects(autojump_clock: MockClock) -> None:
    async with cloud() as here:
        visit = await here.next_visit()
        await visit.let_in()
        await trio.sleep(6)
        closed_at_s = trio.current_time()
        await visit.wire.send(frame(CLOSE, struct.pack(">H", 1012), mask=None))
        echo = await visit.read_until(lambda found: found.opcode == CLOSE)
        assert echo.payload == struct.pack(">H", 1000)
        with pytest.raises(Ended):
            await visit.wire.read_frame()
        again = await here.next_visit()
        assert again.at_s - closed_at_s == pytest.approx(30.25, abs=0.2)
        assert (here.simulator.key_losses, here.simulator.silent_connections) == (0, 0)


async def test_2_6_1_full_status_only_on_the_first_connection(autojump_clock: MockClock) -> None:
    async with cloud() as here:
        visit = await here.next_visit()
        await visit.let_in()
        assert content(await visit.read_until(lambda found: found.opcode == BINARY))["type"] == "status"
        await trio.sleep(6)
        await visit.wire.send(frame(CLOSE, struct.pack(">H", 1012), mask=None))
        visit = await here.next_visit()
        await visit.let_in()
        await visit.say({"type": "request_full_status"})
        said: list[str] = []
        while "keepalive" not in said:
            found = await visit.read_until(lambda found: found.opcode in (BINARY, TEXT))
            said.append(content(found)["type"])
        assert "device_info" in said
        assert "status" not in said


async def test_0_4_loss_without_a_close_frame_leaves_a_silent_connection(autojump_clock: MockClock) -> None:
    async with cloud() as here:
        visit = await here.next_visit()
        await visit.let_in()
        await trio.sleep(6)
        lost_at_s = trio.current_time()
        visit.wire.abort()
        zombie = await here.next_visit()
        assert zombie.at_s - lost_at_s < 0.2
        await zombie.let_in()
        real = await here.next_visit()
        assert real.at_s - lost_at_s == pytest.approx(30.25, abs=0.2)
        assert (here.simulator.silent_connections, here.simulator.key_losses) == (1, 0)
        with pytest.raises(Ended):
            await zombie.wire.read_frame()


@pytest.mark.parametrize("bare", [True, False])
async def test_0_1_early_end_costs_the_key_and_the_cloud(autojump_clock: MockClock, bare: bool) -> None:
    async with cloud() as here:
        first_key = here.simulator.key
        visit = await here.next_visit()
        await visit.let_in()
        await visit.read_until(lambda found: found.opcode == BINARY)
        await trio.sleep(4)
        if bare:
            visit.wire.abort()
        else:
            await visit.wire.send(frame(CLOSE, struct.pack(">H", 4003), mask=None))
        with trio.move_on_after(120) as silence:
            await here.next_visit()
        assert silence.cancelled_caught
        assert (here.simulator.key_losses, here.simulator.state) == (1, "offline")
        assert here.simulator.key != first_key
        here.simulator.power_cycle()
        again = await here.next_visit()
        assert here.simulator.key.encode() in again.head
        assert here.simulator.key.encode() in here.registrations[-1][1]


async def test_1_2_refused_machine_writes_its_farewell_and_retries(autojump_clock: MockClock) -> None:
    async with cloud() as here:
        visit = await here.next_visit()
        await visit.wire.send(b"HTTP/1.1 401 No\r\nContent-Length: 0\r\n\r\n")
        assert await visit.wire.read_to_end() == b"This is a webSocket client!"
        again = await here.next_visit()
        assert again.at_s - visit.at_s == pytest.approx(30.3, abs=0.4)
        assert (here.simulator.refusals, here.simulator.key_losses) == (1, 0)


@pytest.mark.parametrize("closes_at_once", [True, False])
async def test_2_6_3_plain_refusal_that_ends_at_once_is_retried_at_once(
    autojump_clock: MockClock, closes_at_once: bool
) -> None:
    async with cloud() as here:
        visit = await here.next_visit()
        await visit.wire.send(b"HTTP/1.1 401 No\r\nContent-Length: 0\r\n\r\n")
        if closes_at_once:
            await visit.wire.send_eof()
        else:
            assert await visit.wire.read_to_end() == b"This is a webSocket client!"
        again = await here.next_visit()
        pause_s = again.at_s - visit.at_s
        assert pause_s < 1 if closes_at_once else pause_s > 30
        await again.wire.send(b"HTTP/1.1 401 No\r\nContent-Length: 0\r\n\r\n")
        assert await again.wire.read_to_end() == b"This is a webSocket client!"
        later = await here.next_visit()
        assert later.at_s - again.at_s == pytest.approx(30.3, abs=0.4)


async def test_1_3_gives_up_after_two_pings_without_an_answer(autojump_clock: MockClock) -> None:
    async with cloud() as here:
        visit = await here.next_visit()
        await visit.let_in()
        pings = 0
        with contextlib.suppress(Ended):
            while True:
                found, _ = await visit.read_masked()
                assert found.opcode != CLOSE
                pings += found.opcode == PING
        assert pings == 2
        assert trio.current_time() - visit.at_s == pytest.approx(16.2, abs=0.4)


async def test_1_2_answer_must_arrive_in_5_s(autojump_clock: MockClock) -> None:
    async with cloud() as here:
        visit = await here.next_visit()
        with pytest.raises(Ended):
            await visit.wire.read_frame()
        assert trio.current_time() - visit.at_s == pytest.approx(5, abs=0.2)


async def test_2_6_command_is_logged_and_changes_are_reported(autojump_clock: MockClock) -> None:
    async with cloud() as here:
        visit = await here.next_visit()
        await visit.let_in()
        await visit.read_until(lambda found: found.opcode == BINARY)
        await visit.say({"type": "command", "cmd": "set_temp", "boiler": "steam", "temp": 125})
        log = content(await visit.read_until(lambda found: found.opcode == TEXT))
        assert (log["type"], log["level"], log["source"]) == ("log", "info", "esp32")
        assert log["timestamp"] < 60_000
        info = content(await visit.read_until(lambda found: found.opcode == TEXT))
        assert (info["type"], info["steamSetpoint"]) == ("device_info", 125)
        delta = content(await visit.read_until(lambda found: found.opcode == BINARY))
        assert (delta["type"], delta["temps"]["steam"]["setpoint"]) == ("status_delta", 125)


async def test_1_3_some_commands_block_the_machine(autojump_clock: MockClock) -> None:
    async with cloud() as here:
        visit = await here.next_visit()
        await visit.let_in()
        await visit.read_until(lambda found: found.opcode == BINARY)
        began_s = trio.current_time()
        await visit.say({"type": "command", "cmd": "run_diagnostics"})
        await visit.wire.send(frame(PING, b"?", mask=None))
        await visit.read_until(lambda found: found.opcode == PONG)
        assert trio.current_time() - began_s >= 2.2


async def test_3_1_its_key_and_its_token_have_the_form_of_real_ones(autojump_clock: MockClock) -> None:
    async with cloud() as here:
        await here.next_visit()
        assert (len(here.simulator.key), len(here.simulator.token)) == (43, 32)
        assert set(here.simulator.key + here.simulator.token) <= set(
            "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_-"
        )


async def test_2_6_power_meter_is_reported_every_5_s(autojump_clock: MockClock) -> None:
    async with cloud() as here:
        visit = await here.next_visit()
        await visit.let_in()
        await visit.say({"type": "command", "cmd": "configure_power_meter", "source": "mqtt", "topic": "m"})
        at_s: list[float] = []
        while len(at_s) < 4:
            found = await visit.read_until(lambda found: found.opcode == TEXT)
            if content(found)["type"] == "power_meter_status":
                at_s.append(trio.current_time())
        assert content(found)["reading"]["voltage"] == pytest.approx(230, abs=4)
        pauses = [after - before for before, after in itertools.pairwise(at_s)]
        assert pauses == pytest.approx([5.0] * 3, abs=0.3)


async def test_2_7_ping_is_logged_and_other_messages_are_ignored(autojump_clock: MockClock) -> None:
    async with cloud() as here:
        visit = await here.next_visit()
        await visit.let_in()
        await visit.say({"type": "key_rotate", "key": "n" * 43})
        await visit.say({"type": "restarting", "reconnectInMs": 1})
        await visit.say({"type": "setLogLevel", "level": "debug"})
        await visit.say({"type": "setLogLevel", "level": ["loud"]})
        await visit.say({"type": "ping"})
        log = content(await visit.read_until(lambda found: found.opcode == TEXT))
        assert (log["type"], log["message"]) == ("log", "Pico answered the ping")
        assert here.simulator.machine.configuration.log_level == "debug"
        assert here.simulator.key != "n" * 43


async def test_1_3_incomplete_frame_times_out_after_5_s(autojump_clock: MockClock) -> None:
    async with cloud() as here:
        visit = await here.next_visit()
        await visit.let_in()
        await visit.read_until(lambda found: found.opcode == PING)
        await trio.sleep(6)
        began_s = trio.current_time()
        await visit.wire.send(frame(TEXT, b"x" * 100, mask=None)[:50])
        closed = await visit.read_until(lambda found: found.opcode == CLOSE)
        assert closed.payload == struct.pack(">H", 1002)
        assert trio.current_time() - began_s == pytest.approx(5, abs=0.2)


async def test_2_1_rejected_registration_keeps_the_machine_offline(autojump_clock: MockClock) -> None:
    async with cloud(registered=b"HTTP/1.1 201 Made") as here:
        with trio.move_on_after(110):
            await here.next_visit()
        assert [round(at_s - here.began_s) for at_s, _ in here.registrations] == [10, 40, 70, 100]

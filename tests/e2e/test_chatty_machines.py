"""Machines that send more than their rate: they stay connected, and their apps know their last state."""

from pathlib import Path
from typing import Any

import msgspec
import pytest
import trio

from support import faithful_device
from support.faithful_device import FaithfulDevice
from support.firmware_wire import pack
from support.process import KEY, Unharmed, machine_id, serve_here
from support.steady_clock import SteadyClock
from support.waiting import until
from support.wire_client import BINARY, PING, PONG, TEXT, WireClient, frame, packed, text

CHATTY = machine_id(1)
TALK_S = 4.0
STATE: dict[str, Any] = {
    "machine": {"state": "ready", "mode": "on"},
    "temps": {"brew": {"current": 93.2, "setpoint": 93.0}, "group": 88.0},
    "power": {"current": 0, "voltage": 230},
    "pad": "x" * 600,
}


async def read_state(client: WireClient, known: dict[str, Any]) -> None:
    """Merge what an app receives, as apps do, until cancelled."""
    while True:
        found = await client.read_message()
        decode = msgspec.json.decode if found.opcode == TEXT else msgspec.msgpack.decode
        content: dict[str, Any] = decode(found.payload)
        if content["type"] not in ("status", "status_delta"):
            continue
        for name, group in content.items():
            is_map = isinstance(group, dict) and isinstance(known.get(name), dict)
            known[name] = {**known[name], **group} if is_map else group


async def wait_for_seq(known: dict[str, Any], seq: int) -> None:
    with trio.fail_after(3):
        await until(lambda: known.get("seq") == seq)


@pytest.mark.parametrize(("rate_per_s", "talk_s"), [(100, 7.0), (400, 4.0)])
async def test_the_pings_of_a_chatty_machine_are_answered_and_its_last_state_arrives(
    unharmed: Unharmed, rate_per_s: int, talk_s: float, steady_clock: SteadyClock
) -> None:
    known: dict[str, Any] = {}
    waited_s: list[float] = []
    async with unharmed(device_burst=20.0, within_s=15.0) as server, trio.open_nursery() as nursery:
        device, client = await server.device(CHATTY), await server.client(CHATTY)

        async def measure_pings() -> None:
            """Note how long each ping waited: its payload is the time at which it was sent."""
            while True:
                found = await device.read_frame()
                if found.opcode == PONG:
                    waited_s.append(trio.current_time() - float(found.payload))

        nursery.start_soon(read_state, client, known)
        nursery.start_soon(measure_pings)
        await device.send(packed({"type": "status", "seq": 0, **STATE}))
        seq, ends_at = 0, trio.current_time() + talk_s
        while trio.current_time() < ends_at:
            frames = []
            for _ in range(rate_per_s // 20):
                seq += 1
                group = {"power": {"current": seq}} if seq % 2 else {"temps": {"group": seq}}
                content = {"type": "status_delta", "seq": seq, **group}
                frames.append(packed({**content, "type": "status", **STATE} if seq % 50 == 0 else content))
            await device.send(*frames, frame(PING, str(trio.current_time()).encode()))
            await trio.sleep(0.05)
        seq += 2
        await device.send(packed({"type": "status_delta", "seq": seq - 1, "power": {"current": 1500}}))
        await device.send(packed({"type": "status_delta", "seq": seq, "temps": {"group": 77.5}}))
        await wait_for_seq(known, seq)
        assert known["power"] == {"current": 1500, "voltage": 230}
        assert known["temps"] == {**STATE["temps"], "group": 77.5}
        assert len(waited_s) > 20
        assert max(waited_s) < 3.0
        nursery.cancel_scope.cancel()


async def test_a_chatty_machine_as_it_is_built_keeps_its_connection(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its times are shortened: it pings every half second and waits 0.75 s for the answer, twice."""
    monkeypatch.setattr(faithful_device, "PING_S", 0.5)
    monkeypatch.setattr(faithful_device, "PONG_S", 0.75)
    known: dict[str, Any] = {}
    async with (
        serve_here(tmp_path, device_burst=20.0, within_s=15.0) as server,
        trio.open_nursery() as nursery,
    ):
        device = FaithfulDevice(server.address, CHATTY, KEY, grace_s=0.0)
        client = await server.client(CHATTY)
        nursery.start_soon(read_state, client, known)
        nursery.start_soon(device.run)
        with trio.fail_after(3):
            await until(lambda: device.online)
        ends_at = trio.current_time() + TALK_S
        while trio.current_time() < ends_at:
            for _ in range(20):  # 400 a second
                device.seq += 1
                content = {"type": "status_delta", "seq": device.seq, "power": {"current": device.seq}}
                await device.send(BINARY, pack(content))
            await trio.sleep(0.05)
        await wait_for_seq(known, device.seq)
        assert known["power"]["current"] == device.seq
        assert (device.ends, len(device.opened_at), device.keys_destroyed) == ([], 1, 0)
        nursery.cancel_scope.cancel()


@pytest.mark.parametrize(
    "burst",
    [
        text({"type": "status_delta", "seq": 1, "pad": "x" * 100}) * 500,
        text({"type": "x"}) * 3000,
        text({"type": "log", "level": "info", "message": "x" * 2000}) * 30,
        frame(PING) * 10_000,
        text("x" * 1_000_000),
    ],
    ids=["deltas", "tiny messages", "log lines", "pings", "too large"],
)
async def test_a_device_at_line_rate_is_read_slowly_and_uses_little_cpu(
    unharmed: Unharmed, burst: bytes, steady_clock: SteadyClock
) -> None:
    async with unharmed(within_s=10.0) as server:
        device = await server.device(CHATTY)
        sent_bytes = 0
        with trio.move_on_after(2):
            while True:
                await device.send(burst)
                sent_bytes += len(burst)
        assert sent_bytes < 20 * 1024 * 1024, (
            "the bytes that the relay reads, and those in the buffers of the system"
        )


async def test_a_ping_behind_a_flood_of_pings_is_answered_within_3_s(
    unharmed: Unharmed, steady_clock: SteadyClock
) -> None:
    async with unharmed(within_s=8.0) as server:
        device = await server.device(CHATTY)
        await device.send(frame(PING) * 9_000)
        await trio.sleep(0.2)
        await device.send(frame(PING, b"last"))
        with trio.fail_after(3):
            while (await device.read_frame()).payload != b"last":
                pass

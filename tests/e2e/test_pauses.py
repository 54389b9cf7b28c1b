"""A server that is stopped for longer than every timeout, and goes on: SIGSTOP, as `docker pause` does."""

import signal
from contextlib import suppress
from pathlib import Path
from typing import Final

import trio

from support.cluster import register_machines
from support.process import machine_id, serve_process
from support.wire_client import PING, Ended, WireClient, frame, text

SILENCE_S: Final = 2.0
STOPPED_S: Final = 4.5
HEALTH: Final = b"GET /api/health HTTP/1.1\r\nHost: a\r\n\r\n"
LIMITS: Final = {
    "DEVICE_SILENCE_S": SILENCE_S,
    "DEVICE_PING_S": 1,
    "DEVICE_FIRST_FRAME_S": SILENCE_S,
    "CLIENT_SILENCE_S": SILENCE_S,
    "CLIENT_PING_S": 1,
    "MESSAGE_S": SILENCE_S,
    "STALL_S": SILENCE_S,
    "HTTP_IDLE_S": SILENCE_S,
    "REQUEST_HEAD_S": SILENCE_S,
    "DEVICE_MIN_AGE_S": 0.001,
    "DRAIN_S": 0.1,
}


async def keep_pinging(peer: WireClient) -> None:
    with suppress(trio.BrokenResourceError, trio.ClosedResourceError):
        while True:
            await peer.send(frame(PING))
            await trio.sleep(0.5)


async def count_end(peer: WireClient, name: str, ends: list[str]) -> None:
    with suppress(Ended, trio.ClosedResourceError):
        ends.append(f"{name} was closed with {await peer.read_close()}")
        return
    ends.append(f"{name} was lost")


async def test_a_server_that_was_stopped_closes_no_peer_for_the_silence(tmp_path: Path) -> None:
    ids = [machine_id(number) for number in (1, 2)]
    register_machines(tmp_path / "data", (1, 2))
    bounds = {f"BREWOS_RELAY_{name}": value for name, value in LIMITS.items()}
    ends: list[str] = []
    with trio.fail_after(30):
        async with serve_process(tmp_path, **bounds) as server, trio.open_nursery() as nursery:
            peers = {
                "device": await server.device(ids[0]),
                "client": await server.client(ids[0]),
                "client that sends a message": await server.client(ids[0]),
            }
            idle, half = await server.connect(), await server.connect()
            assert (await idle.ask(HEALTH)).status == 200
            await half.send(HEALTH[:20])
            command = text({"type": "command", "cmd": "tare"})
            await peers["client that sends a message"].send(command[:10])
            peers["device that says nothing yet"] = await server.device(ids[1], silent=True)
            server.send_signal(signal.SIGSTOP)
            for name, peer in peers.items():
                nursery.start_soon(count_end, peer, name, ends)
            for name in ("device", "client"):
                nursery.start_soon(keep_pinging, peers[name])
            await trio.sleep(STOPPED_S)
            await peers["client that sends a message"].send(command[10:])
            await half.send(HEALTH[20:])
            server.send_signal(signal.SIGCONT)
            await trio.sleep(SILENCE_S / 2)
            assert ends == []
            assert (await half.read_response()).status == 200
            assert (await idle.ask(HEALTH)).status == 200
            assert "did not run for" in server.log_file.read_text()
            for _ in range(20):  # a peer that goes on being silent is closed, counted from now
                if ends:
                    break
                await trio.sleep(0.25)
            assert sorted(end.partition(" was")[0] for end in ends)[-1:] == ["device that says nothing yet"]
            nursery.cancel_scope.cancel()

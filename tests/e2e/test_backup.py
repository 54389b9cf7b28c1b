"""A copy of the registry of a server that is busy writing, and the way back from it."""

import signal
from pathlib import Path

import msgspec
import trio

from support.process import KEY, machine_id, run_command, serve_process
from support.wire_client import WireClient, upgrade_head


async def register(address: tuple[str, int], number: int) -> None:
    """Register a machine, as it does when it is switched on."""
    body = msgspec.json.encode({"deviceId": machine_id(number), "token": "t" * 32, "deviceKey": KEY})
    connection = await WireClient.connect(address)
    try:
        answer = await connection.ask(
            b"POST /api/devices/register-claim HTTP/1.1\r\nHost: relay.example\r\nConnection: close\r\n"
            b"Content-Type: application/json\r\nContent-Length: %d\r\n\r\n%s" % (len(body), body)
        )
    finally:
        connection.abort()
    assert answer.status == 200, answer


async def test_a_copy_of_a_busy_server_brings_its_machines_back(tmp_path: Path) -> None:
    with trio.fail_after(60):
        async with (
            serve_process(tmp_path, BREWOS_RELAY_DRAIN_S=0.1) as server,
            trio.open_nursery() as nursery,
        ):
            enough = trio.Event()

            async def keep_registering() -> None:
                for number in range(1, 300):
                    await register(server.address, number)
                    if number == 10:
                        enough.set()

            nursery.start_soon(keep_registering)
            await enough.wait()
            made = await run_command(tmp_path, "db", "backup", "copy.db")
            assert made.returncode == 0, made.stderr
            assert int(made.stderr.split()[2]) >= 10
            nursery.cancel_scope.cancel()
        async with serve_process(tmp_path, BREWOS_RELAY_DRAIN_S=0.1) as server:
            await register(server.address, 999)
            refused = await run_command(tmp_path, "db", "restore", "copy.db")
            assert refused.returncode == 1
            assert b"is in use; stop the server" in refused.stderr
            assert (await server.device(machine_id(999))).connected["type"] == "connected"
            server.abort()
            server.send_signal(signal.SIGTERM)
            assert await server.wait(within_s=15) == 0
        restored = await run_command(tmp_path, "db", "restore", "copy.db")
        assert restored.returncode == 0, restored.stderr
        async with serve_process(tmp_path) as server:
            assert (await server.device(machine_id(10))).connected["type"] == "connected"
            asking = await server.connect()
            answer = await asking.ask(upgrade_head(f"/ws/device?id={machine_id(999)}&key={KEY}"))
            assert answer.status == 401  # it came after the copy

"""The disk of the registry is full: machines are served, and users and operators are told."""

import resource
import subprocess
import sys
from pathlib import Path

import pytest
import trio

from brewos_relay.auth.secrets import hash_secret
from brewos_relay.doctor.system_checks import check_degraded
from brewos_relay.registry.database import Database
from brewos_relay.registry.devices import add_devices
from brewos_relay.registry.records import NewDevice
from brewos_relay.vocabulary import now_ms
from support.http_client import ask
from support.process import KEY, Reach, environment, machine_id

MACHINE = machine_id(1)
METRICS_TOKEN = "m" * 32
LIMIT_BYTES = 1024
"""Less than one page of the registry, so that no write finds room, also where the log begins again."""
_SERVE = """
from brewos_relay.server import health_checks
health_checks.LOOK_EVERY_S = 0.1
from brewos_relay.cli import main
main(["serve", "--host", "127.0.0.1", "--port", "0", "--log-format", "json"])
"""


async def degraded(server: Reach) -> list[str]:
    told = await ask(server, "GET", "/readyz")
    assert told.status == 200
    return list(told.content["degraded"])


async def gauge(server: Reach) -> float:
    """Read whether any problem is told of."""
    told = await ask(server, "GET", "/metrics", token=METRICS_TOKEN)
    begins = b"brewos_relay_degraded{"
    return max(
        float(line.rpartition(b" ")[2]) for line in told.response.body.splitlines() if line.startswith(begins)
    )


@pytest.mark.skipif(not hasattr(resource, "prlimit"), reason="needs Linux")
async def test_a_server_that_cannot_write_serves_machines_and_reports_it(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path}/data/brewos-relay.db"
    with Database.open(url) as database, database.writing() as db:
        row = NewDevice(id=MACHINE, key_hash=hash_secret(KEY), more_user_ids=("ada",))
        add_devices(db, [row], now_ms=now_ms())
    server: Reach | None = None
    said = bytearray()

    async def read_log(stream: trio.abc.ReceiveStream) -> None:
        async for part in stream:
            said.extend(part)

    with trio.fail_after(60):
        process = await trio.lowlevel.open_process(
            [sys.executable, "-c", _SERVE],
            cwd=tmp_path,
            env=environment(BREWOS_RELAY_METRICS_TOKEN=METRICS_TOKEN, BREWOS_RELAY_DRAIN_S="0.1"),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,  # the limit is for files
        )
        assert process.stdout is not None
        assert process.stderr is not None
        async with trio.open_nursery() as nursery:
            nursery.start_soon(read_log, process.stderr)
            try:
                ready = (await process.stdout.receive_some(1000)).decode()
                server = Reach(("127.0.0.1", int(ready.partition("127.0.0.1:")[2].partition(" ")[0])))
                assert await degraded(server) == []
                assert await gauge(server) == 0

                # As a quota: no file may grow beyond this, and no privilege is needed to say so.
                _, hard = resource.prlimit(process.pid, resource.RLIMIT_FSIZE)
                resource.prlimit(process.pid, resource.RLIMIT_FSIZE, (LIMIT_BYTES, hard))
                token = server.token([MACHINE])
                statuses = set()
                while 503 not in statuses:
                    told = await ask(server, "PATCH", f"/api/devices/{MACHINE}", {"name": "x"}, token=token)
                    statuses.add(told.status)
                assert statuses <= {200, 503}
                found = await degraded(server)
                assert len(found) == 1
                assert str(tmp_path) not in found[0]
                assert await gauge(server) == 1
                await server.device(MACHINE)
                body = {"deviceId": MACHINE, "token": "shown-on-its-screen", "deviceKey": KEY}
                assert (await ask(server, "POST", "/api/devices/register-claim", body)).status == 200
                body["deviceKey"] = "o" * 43
                assert (await ask(server, "POST", "/api/devices/register-claim", body)).status == 503
                address = f"http://127.0.0.1:{server.address[1]}"
                (finding,) = await trio.to_thread.run_sync(check_degraded, address)  # the doctor's
                assert finding.text == f"degraded: {found[0]}"

                resource.prlimit(process.pid, resource.RLIMIT_FSIZE, (hard, hard))
                while await degraded(server):  # noqa: ASYNC110 - it looks for itself
                    await trio.sleep(0.02)
                assert await gauge(server) == 0
                told = await ask(server, "PATCH", f"/api/devices/{MACHINE}", {"name": "x"}, token=token)
                assert told.status == 200
            finally:
                if server is not None:
                    server.abort()
                process.kill()
                with trio.CancelScope(shield=True, deadline=trio.current_time() + 5):
                    await process.wait()
                await trio.aclose_forcefully(process.stdout)
    assert said.count(b'"event": "degraded: ') == 1
    assert said.count(b"no longer degraded: ") == 1

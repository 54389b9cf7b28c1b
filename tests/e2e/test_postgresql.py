"""A server whose PostgreSQL stops and starts."""

import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
import trio

from brewos_relay.auth.secrets import hash_secret
from brewos_relay.registry.access import take
from brewos_relay.registry.database import Database
from brewos_relay.registry.devices import add_devices, find_devices
from brewos_relay.registry.records import NewDevice
from support.http_client import ask
from support.postgresql import PostgreSQL
from support.process import KEY, ProcessServer, machine_id, serve_process
from support.wire_client import WireClient, text, upgrade_head

pytestmark = pytest.mark.postgresql

MACHINES = [machine_id(number) for number in range(1, 5)]
PASSWORD = "hunter2"


@pytest.fixture
def url(postgresql: PostgreSQL) -> Iterator[str]:
    """The URL of a registry where Ada and Bob have machines."""
    with postgresql.new_database() as url:
        with Database.open(url) as database, database.writing() as db:
            rows = [
                NewDevice(id=id_, key_hash=hash_secret(KEY), more_user_ids=("ada", "bob")) for id_ in MACHINES
            ]
            add_devices(db, rows, now_ms=1)
        yield url


async def until_ready(server: ProcessServer, status: int) -> list[str]:
    """Wait until the server reports itself ready, or not ready. Return its reasons."""
    while (told := await ask(server, "GET", "/readyz")).status != status:  # noqa: ASYNC110 - nobody says when
        await trio.sleep(0.1)
    reasons: list[str] = told.content["reasons"]
    return reasons


async def pass_on(device: WireClient, app: WireClient, mode: str) -> None:
    """Check that a message of a machine reaches its app."""
    await device.send(text(f'{{"type":"status","mode":"{mode}"}}'))
    assert (await app.read_until("status"))["mode"] == mode


def last_seen(url: str) -> list[bool]:
    with Database.open(url) as database, database.reading() as db:
        found = sorted(find_devices(db, MACHINES), key=lambda device: device.id)
    return [device.last_seen_ms is not None for device in found]


async def test_a_server_survives_a_database_outage(url: str, postgresql: PostgreSQL, tmp_path: Path) -> None:
    settings = {"BREWOS_RELAY_DATABASE_URL": url, "BREWOS_RELAY_DRAIN_S": 0.1}
    with trio.fail_after(60):
        async with serve_process(tmp_path, **settings) as server:
            bobs = server.token([], user_id="bob")
            device, app = await server.device(MACHINES[0]), await server.client(MACHINES[0], token=bobs)
            await pass_on(device, app, "on")
            assert await until_ready(server, 200) == []

            postgresql.stop()
            try:
                # Attached peers notice nothing; new ones are told to retry.
                await pass_on(device, app, "off")
                newcomer = await server.connect()
                refused = await newcomer.ask(upgrade_head(f"/ws/device?id={MACHINES[1]}&key={KEY}"))
                assert (refused.status, refused.header("retry-after")) == (503, ["5"])
                assert (await ask(server, "GET", "/api/devices", token=server.token())).status == 503
                assert await until_ready(server, 503) == ["the registry does not answer"]
                await pass_on(device, app, "on")
            finally:
                postgresql.start()

            # The connection recovers by itself, and so does the change feed.
            await server.device(MACHINES[1])
            assert await until_ready(server, 200) == []
            with Database.open(url) as database, database.writing() as db:
                assert take(db, MACHINES[0], "bob", now_ms=1)
            assert (await app.read_close())[0] == 4003

            # Idle connections that broke.
            postgresql.stop()
            postgresql.start()
            await server.device(MACHINES[2])
            server.send_signal(signal.SIGTERM)
            assert await server.wait(within_s=15) == 0
    assert last_seen(url) == [True, True, True, False]
    assert PASSWORD in url
    log = server.log_file.read_text()
    assert "changes cannot be followed" in log
    assert PASSWORD not in log

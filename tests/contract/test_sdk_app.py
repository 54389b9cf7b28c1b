"""The SDK's App with a relay and faithful machines."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import trio
from trio.testing import MockClock

from brewos_relay.auth.secrets import hash_secret
from brewos_relay.client import (
    App,
    History,
    KeyStore,
    LinkState,
    NothingKnown,
    RelayRefused,
    SessionFile,
    open_app,
    open_device,
)
from brewos_relay.client.key_store import Keys, write_private
from brewos_relay.registry.access import give
from brewos_relay.registry.database import Database
from brewos_relay.registry.invites import add_invite
from brewos_relay.registry.shots import shots_of
from brewos_relay.settings import Settings
from brewos_relay.vocabulary import now_ms
from support.http_client import ask
from support.kitchen import Kitchen, open_kitchen
from support.process import KEY, HereServer, machine_id, serve_here
from support.relay_here import token
from support.waiting import until
from support.wire_client import text, upgrade_head

ID = machine_id(1)


@asynccontextmanager
async def attached(kitchen: Kitchen, given: str | None = None) -> AsyncIterator[App]:
    async with open_app(f"http://127.0.0.1:{kitchen.here.address[1]}", given or token(), ID) as app:
        yield app


async def test_attached_app_knows_the_state_at_once(autojump_clock: MockClock) -> None:
    async with open_kitchen() as kitchen:
        device = kitchen.device()
        await trio.sleep(20)
        async with attached(kitchen) as app:
            state = await app.state(timeout_s=0.5)
            assert state.online
            assert state.status["temps"] == device.state["temps"]
            assert state.info["deviceName"] == "Kitchen"
            device.change(pressure=9.1)
            await trio.sleep(1)
            assert (await app.state()).status["pressure"] == 9.1


async def test_state_of_a_machine_without_connections_is_unknown(autojump_clock: MockClock) -> None:
    async with open_kitchen() as kitchen, attached(kitchen) as app:
        with pytest.raises(NothingKnown, match="the device is offline"):
            await app.state()


async def test_command_is_delivered_and_executed(autojump_clock: MockClock) -> None:
    async with open_kitchen() as kitchen:
        device = kitchen.device()
        await trio.sleep(20)
        async with attached(kitchen) as app:
            outcome = await app.command("set_temp", boiler="brew", temp=94.5, timeout_s=5)
            assert outcome.delivered
            await trio.sleep(1)
            assert device.state["temps"]["brew"]["setpoint"] == 94.5
            assert (await app.state()).status["temps"]["brew"]["setpoint"] == 94.5


async def test_a_harmless_command_waits_and_one_that_heats_does_not(autojump_clock: MockClock) -> None:
    async with open_kitchen() as kitchen, attached(kitchen) as app, trio.open_nursery() as nursery:
        heats = await app.command("set_mode", mode="on", timeout_s=20)
        assert (heats.fate, heats.waited) == ("device_offline", False)

        async def come_later() -> None:
            await trio.sleep(4)
            kitchen.device()

        nursery.start_soon(come_later)
        harmless = await app.command("tare", timeout_s=20)
        assert (harmless.fate, harmless.waited) == ("delivered", True)


async def test_waiting_command_expires(autojump_clock: MockClock) -> None:
    async with open_kitchen() as kitchen, attached(kitchen) as app:
        outcome = await app.command("tare", timeout_s=20)
        assert (outcome.fate, outcome.waited) == ("expired", True)


async def test_nothing_is_delivered_after_the_time_of_a_command(tmp_path: Path) -> None:
    async with serve_here(tmp_path) as server:
        url = f"http://127.0.0.1:{server.address[1]}"
        async with open_app(url, server.token(), ID) as app:
            while (outcome := await app.command("tare", timeout_s=0.2)).fate == "not_sent":
                pass  # a busy computer did not send it in time
            assert outcome.fate in ("expired", "unknown")
            assert outcome.waited
            device = await server.device(ID)
            outcome = await app.command("second", timeout_s=5)
            assert outcome.delivered
            said = [await device.read_json() for _ in range(2)]
            assert [message.get("cmd") for message in said] == [None, "second"]


async def test_app_reads_the_history_and_the_shot_is_stored(tmp_path: Path) -> None:
    async with serve_here(tmp_path, within_s=8.0) as server:
        url = f"http://127.0.0.1:{server.address[1]}"
        device = await server.device(ID)
        for state, bar in (("ready", 0.0), ("brewing", 9.0)):
            brewing = {"state": state, "isBrewing": state == "brewing"}
            await device.send(text({"type": "status", "machine": brewing, "pressure": bar}))
        async with open_app(url, server.token(), ID) as app:

            async def read() -> History:
                history = await app.history(seconds=60)
                return history if history.times_ms else await read()

            history = await read()
            await trio.sleep(2.2)
            await device.send(text({"type": "status", "machine": {"state": "ready"}, "pressure": 0.0}))
            while list(history.values["pressure"])[-2:] != [9.0, 0.0]:
                history = await app.history(seconds=60)
            assert (history.brewing[-2:], history.online[-1]) == ([True, False], True)
            assert history.at_ms >= history.times_ms[-1] >= history.at_ms - 10_000
    with Database.open(database_url(tmp_path)) as database, database.reading() as db:
        (shot,) = shots_of(db, ID)
    assert shot.duration_ms > 2000
    assert shot.summary["peakPressure"] == 9.0


async def test_app_without_access_gets_no_history(tmp_path: Path) -> None:
    async with serve_here(tmp_path) as server:
        url = f"http://127.0.0.1:{server.address[1]}"
        async with open_app(url, server.token([machine_id(2)]), ID, enabled=False) as app:
            with pytest.raises(RelayRefused) as refused:
                await app.history()
            assert refused.value.status == 404


async def test_viewers_command_is_forbidden(autojump_clock: MockClock) -> None:
    async with open_kitchen() as kitchen:
        kitchen.device()
        await trio.sleep(20)
        async with attached(kitchen, token(role="viewer")) as app:
            assert (await app.command("tare")).fate == "forbidden"


async def test_app_reconnects_when_the_relay_asks(autojump_clock: MockClock) -> None:
    async with open_kitchen() as kitchen, attached(kitchen) as app:
        await app.wait_for_state(LinkState.CONNECTED)
        began_s = trio.current_time()
        await kitchen.relay.drain()
        waiting = await app.wait_for_state(LinkState.WAITING)
        assert waiting.close_code == 1012
        assert waiting.next_attempt_at_s is not None
        assert 20 < waiting.next_attempt_at_s - began_s < 42


@pytest.mark.parametrize("given", ["nonsense", token().rpartition(".")[0] + ".x"])
async def test_invalid_token_stops_the_link_with_the_reason(autojump_clock: MockClock, given: str) -> None:
    async with open_kitchen() as kitchen, attached(kitchen, given) as app:
        stopped = await app.wait_for_state(LinkState.STOPPED)
        assert stopped.close_code == 4002
        assert "token" in stopped.reason


async def test_token_of_another_device_waits_for_access(autojump_clock: MockClock) -> None:
    async with open_kitchen() as kitchen, attached(kitchen, token([machine_id(2)])) as app:
        waiting = await app.wait_for_state(LinkState.WAITING)
        assert waiting.http_status == 403


# With the API


def database_url(folder: Path) -> str:
    return Settings(data_dir=folder, jwt_secret="").resolved_database_url()


async def sign_up(server: HereServer, folder: Path, tokens: SessionFile) -> str:
    """Create an account for a bot, and sign in; return its id."""
    secret = "i" * 43
    with Database.open(database_url(folder)) as database, database.writing() as db:
        add_invite(
            db,
            email="bot@example.org",
            token_hash=hash_secret(secret),
            is_admin=False,
            expires_at_ms=now_ms() + 60_000,
            now_ms=now_ms(),
        )
    await tokens.sign_in("/api/auth/invite", token=secret)
    told = await ask(server, "GET", "/api/auth/me", token=await tokens.token())
    return str(told.content["user"]["id"])


async def test_app_runs_on_a_login_session(tmp_path: Path) -> None:
    async with serve_here(tmp_path) as server:
        url = f"http://127.0.0.1:{server.address[1]}"
        tokens = SessionFile(url, tmp_path / "session.json")
        user_id = await sign_up(server, tmp_path, tokens)
        with Database.open(database_url(tmp_path)) as database, database.writing() as db:
            give(db, ID, user_id, role="owner", until_ms=None, now_ms=now_ms())
        await server.device(ID)
        async with open_app(url, tokens, ID) as app:
            assert (await app.command("tare")).delivered
            before = tokens.path.read_bytes()
            app._expiring.set()  # as `token_expiring` does
            await until(lambda: tokens.path.read_bytes() != before)
            assert (await app.command("tare")).delivered
            told = await ask(server, "POST", "/api/auth/logout", token=await tokens.token())
            assert told.status == 200
            stopped = await app.wait_for_state(LinkState.STOPPED)
            assert "sign in again" in stopped.reason


async def test_a_relay_changes_the_key_of_a_device(tmp_path: Path) -> None:
    path = tmp_path / "key.json"
    write_private(path, b'{"key":"%s"}' % KEY.encode())
    async with serve_here(tmp_path) as server:
        url = f"http://127.0.0.1:{server.device_address[1]}"
        async with open_device(url, ID, KeyStore(path)) as device:
            await device.wait_for_state(LinkState.CONNECTED)
            await until(lambda: server.device_server.relay.is_online(ID))
            for connections in (1, 2):
                before = KeyStore(path).load()
                told = await ask(server, "POST", f"/api/devices/{ID}/rotate-key", token=server.token())
                assert told.status == 202, told
                await until(lambda count=connections: device.connections > count)  # type: ignore[misc]
                await until(lambda: KeyStore(path).load().next_key is None)
                after: Any = KeyStore(path).load()
                assert after == Keys(after.key)
                assert after.key != before.key
                await until(lambda: server.device_server.relay.is_online(ID))
        refused = await server.connect()
        response = await refused.ask(upgrade_head(f"/ws/device?id={ID}&key={KEY}"))
        assert response.status == 401

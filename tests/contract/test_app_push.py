"""Notifications from end to end: the app's and the firmware's requests, and a push service that decrypts."""

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import trio
from sqlalchemy import Connection, update

from brewos_relay import outbound
from brewos_relay.auth.secrets import generate_secret_token, hash_secret
from brewos_relay.outbound import Outbound
from brewos_relay.registry.access import give
from brewos_relay.registry.invites import add_invite
from brewos_relay.registry.schema import devices
from brewos_relay.server import assembly, push_watcher
from brewos_relay.vocabulary import now_ms
from support.http_client import Told, ask
from support.process import KEY, HereServer, machine_id, serve_here, serve_instances
from support.push_service import PushService, open_push_service
from support.redis_server import RedisServer
from support.wire_client import text

MACHINE = machine_id(1)
REPORT = {"type": "WATER_EMPTY", "message": "Water tank is empty", "timestamp": 1, "is_alert": True}


@pytest.fixture
async def service(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[PushService]:
    monkeypatch.setattr(outbound, "is_public", lambda _: True)
    for name in ("LOOK_EVERY_S", "DEVICES_EVERY_S"):
        monkeypatch.setattr(push_watcher, name, 0.05)
    async with open_push_service(tmp_path) as service:
        monkeypatch.setattr(assembly, "Outbound", lambda: Outbound(service.server.tls))
        yield service


class AppHere:
    """The app of a signed-in user: it sends its cookie, and no token, to these routes."""

    def __init__(self, server: HereServer, cookie: str, user_id: str) -> None:
        self.server, self.cookie, self.user_id = server, cookie, user_id

    async def ask(self, method: str, path: str, body: Any = None) -> Told:
        return await ask(self.server, method, path, body, cookie=self.cookie)

    async def subscribe(self, service: PushService, path: str) -> None:
        body = {"subscription": service.subscription(path), "userId": "someone", "deviceId": MACHINE}
        assert (await self.ask("POST", "/api/push/subscribe", body)).status == 200


async def signed_in(server: HereServer, who: str = "ada") -> AppHere:
    token, at_ms = generate_secret_token(), now_ms()
    await server.server.store.write(
        add_invite,
        email=f"{who}@example.org",
        token_hash=hash_secret(token),
        is_admin=False,
        now_ms=at_ms,
        expires_at_ms=at_ms + 60_000,
    )
    told = await ask(server, "POST", "/api/auth/invite", {"token": token})
    cookie = told.response.header("set-cookie")[0].partition(";")[0]
    user_id = told.content["user"]["id"]
    await server.server.store.write(give, MACHINE, user_id, role="owner", now_ms=at_ms)
    return AppHere(server, cookie, user_id)


def status(**machine: Any) -> bytes:
    return text({"type": "status", "seq": 1, "machine": machine})


async def test_rows_20_to_24_notifications(tmp_path: Path, service: PushService) -> None:
    async with serve_here(tmp_path) as server:
        app = await signed_in(server)
        key = (await app.ask("GET", "/api/push/vapid-key")).content["publicKey"]
        assert len(key) == 87
        await app.subscribe(service, "/one")
        preferences = (await app.ask("GET", "/api/push/preferences")).content
        assert (preferences["machineReady"], preferences["brewComplete"]) == (True, False)
        assert (await app.ask("POST", "/api/push/preferences", {"scheduleTriggered": False})).status == 200

        # What the machine says becomes a notification, without a request of the firmware.
        device = await server.device(MACHINE)
        await device.send(status(state="heating"))
        await trio.sleep(0.3)
        await device.send(text({"type": "status_delta", "seq": 2, "machine": {"state": "ready"}}))
        path, content = await service.next()
        assert (path, content["data"]) == (
            "/one",
            {"type": "machineReady", "deviceId": MACHINE, "url": f"/machine/{MACHINE}"},
        )
        assert content["title"] == f"{MACHINE}: Ready to brew"

        # The firmware's own request.
        body = {"deviceId": MACHINE, "notification": REPORT}
        for _ in range(2):  # repeats are suppressed
            assert (await ask(server, "POST", "/api/push/notify", body, device_key=KEY)).status == 200
        assert (await ask(server, "POST", "/api/push/notify", body, device_key="x" * 43)).status == 401
        assert (await service.next())[1]["body"] == "Water tank is empty"

        # The browser is told nothing more after the app has unsubscribed.
        body = {"subscription": {"endpoint": service.server.url("/one")}}
        assert (await app.ask("POST", "/api/push/unsubscribe", body)).status == 200
        fault = {"deviceId": MACHINE, "notification": {**REPORT, "type": "MACHINE_ERROR"}}
        assert (await ask(server, "POST", "/api/push/notify", fault, device_key=KEY)).status == 200
        await trio.sleep(0.3)
        assert service.server.asked == []


async def test_row_26_statistics(tmp_path: Path, service: PushService) -> None:
    async with serve_here(tmp_path) as server:
        app = await signed_in(server)
        told = await app.ask("GET", "/api/stats/extended")  # with the cookie, and without a device
        assert told.status == 200
        arrays = {"weekly", "hourlyDistribution", "powerHistory", "dailyHistory", "brewHistory"}
        assert told.content.keys() >= arrays
        assert all(isinstance(told.content[name], list) for name in arrays)
        assert told.response.header("vary") == ["*"]
        assert (await ask(server, "GET", "/api/stats/extended")).status == 401


async def test_machine_that_stays_offline_is_notified_of_once(
    tmp_path: Path, service: PushService, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(push_watcher, "ABSENT_EVERY_S", 0.05)
    async with serve_here(tmp_path, machines=(1, 2), settings={"push_offline_s": 0.5}) as server:
        app = await signed_in(server)
        await app.subscribe(service, "/one")
        await server.device(machine_id(2))

        def age(db: Connection) -> None:
            db.execute(update(devices).values(last_seen_ms=now_ms() - 60_000))

        await server.server.store.write(age)
        content = (await service.next())[1]
        assert content["data"]["type"] == "machineOffline"
        await trio.sleep(0.5)
        assert service.server.asked == []


async def test_machines_in_a_cluster_are_notified_of_once(
    tmp_path: Path, service: PushService, redis: RedisServer
) -> None:
    async with serve_instances(tmp_path, redis.url) as (one, two):
        app = await signed_in(two)
        await app.subscribe(service, "/one")
        device = await one.device(MACHINE)
        await two.client(MACHINE)  # the other instance follows the state
        await device.send(status(state="heating", isBrewing=False))
        await trio.sleep(0.3)
        await device.send(status(state="ready", isBrewing=False))
        body = {"deviceId": MACHINE, "notification": {**REPORT, "type": "MACHINE_READY"}}
        for server in (one, two):
            assert (await ask(server, "POST", "/api/push/notify", body, device_key=KEY)).status == 200
        assert (await service.next())[1]["data"]["type"] == "machineReady"
        await trio.sleep(0.5)
        assert service.server.asked == []

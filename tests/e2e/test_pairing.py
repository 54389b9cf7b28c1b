"""Pairing through the front door of a real server: strangers who register and claim before a buyer does."""

import secrets
from ipaddress import ip_network
from pathlib import Path
from typing import Any

import trio

from brewos_relay.registry.pairing_limits import close_window, open_window
from brewos_relay.vocabulary import now_ms
from support.home import MACHINE, REGISTER, Home, open_home
from support.http_client import Told, ask
from support.process import KEY, machine_id

EVES_KEY = "e" * 43


async def register(home: Home, number: int, *, key: str = KEY) -> Told:
    body = {"deviceId": machine_id(number), "token": secrets.token_urlsafe(24), "deviceKey": key}
    return await ask(home.server, "POST", REGISTER, body)


async def notices(person: Any) -> list[str]:
    return [one["kind"] for one in (await person.must("GET", "/api/notices"))["notices"]]


async def test_flood_of_unknown_ids_from_one_address_ends_at_the_quota(tmp_path: Path) -> None:
    async with open_home(tmp_path, within_s=30) as home:
        eve = await home.person("eve")
        statuses: list[int] = []
        claims: list[int] = []

        async def squat(first: int) -> None:
            for number in range(first, first + 52):
                token = secrets.token_urlsafe(24)
                body = {"deviceId": machine_id(number), "token": token, "deviceKey": EVES_KEY}
                statuses.append((await ask(home.server, "POST", REGISTER, body)).status)
                if number % 10 == 0:
                    claims.append((await eve.claim(token, number)).status)

        async with trio.open_nursery() as nursery:
            for first in range(1, 521, 52):
                nursery.start_soon(squat, first)
        assert len(statuses) == 520
        assert statuses.count(200) == 500
        assert set(statuses) == {200, 429}
        assert claims.count(200) == 5
        assert set(claims) <= {200, 404, 409, 429}
        # A known machine gets the same answers as before.
        assert (await register(home, 1, key=EVES_KEY)).status in {200, 429}


async def test_real_machine_takes_precedence_over_a_claim_whose_machine_never_connected(
    tmp_path: Path,
) -> None:
    async with open_home(tmp_path, within_s=20) as home:
        eve, buyer = await home.person("eve"), await home.person("buyer")
        assert (await eve.claim(await home.show(key=EVES_KEY))).status == 200
        token = await home.show()
        assert (await buyer.claim(token)).status == 404
        # The machine comes once, is refused, and keeps its key.
        assert await home.status_of_key(KEY) == 401
        app = await eve.app()
        assert (await buyer.claim(token)).content["role"] == "owner"
        # It may hear of the key that waited first.
        while "owns the device now" not in (await app.read_until("log"))["message"]:
            pass
        await home.server.device(MACHINE, key=KEY)
        assert (await eve.ask("GET", f"/api/devices/{MACHINE}")).status == 404
        assert await notices(eve) == ["lost_to_machine"]
        assert await notices(buyer) == ["won_by_machine"]
        activity = (await buyer.must("GET", f"/api/devices/{MACHINE}/activity"))["activity"]
        assert "owner_changed" in [entry["kind"] for entry in activity]


async def test_an_owner_regains_a_machine_from_a_stranger_when_it_is_switched_on(tmp_path: Path) -> None:
    async with open_home(tmp_path, within_s=20) as home:
        owner, eve = await home.person("owner"), await home.person("eve")
        await home.pair(owner)
        token = await home.show(key=EVES_KEY)
        assert (await eve.claim(token)).status == 404
        assert await home.status_of_key(EVES_KEY) == 401
        assert (await eve.claim(token)).status == 200
        fake = await home.server.device(MACHINE, key=EVES_KEY)
        await home.show()
        await home.server.device(MACHINE, key=KEY)
        await fake.read_close()
        assert (await owner.must("GET", f"/api/devices/{MACHINE}"))["device"]["role"] == "owner"
        assert (await eve.ask("GET", f"/api/devices/{MACHINE}")).status == 404
        assert await home.status_of_key(EVES_KEY) == 401


async def test_registrations_of_one_address_do_not_evict_a_token_of_another_network(tmp_path: Path) -> None:
    async with open_home(
        tmp_path, within_s=20, settings={"trusted_proxies": (ip_network("127.0.0.0/8"),)}
    ) as home:
        buyer = await home.person("buyer")
        token = secrets.token_urlsafe(24)

        async def show(token: str, key: str, address: str) -> int:
            body = {"deviceId": MACHINE, "token": token, "deviceKey": key}
            return (await ask(home.server, "POST", REGISTER, body, forwarded_for=address)).status

        assert await show(token, KEY, "192.0.2.1") == 200
        for _ in range(10):
            assert await show(secrets.token_urlsafe(24), secrets.token_urlsafe(32), "198.51.100.7") == 200
        assert (await buyer.claim(token)).content["role"] == "owner"
        await home.server.device(MACHINE, key=KEY)


async def test_window_decides_for_unknown_machines_at_once(tmp_path: Path) -> None:
    async with open_home(tmp_path, within_s=20, settings={"pairing": "window"}) as home:
        refused = await register(home, 1)
        assert refused.status == 403
        assert "200 " not in str(refused.content)
        with home.registry() as db:
            open_window(db, now_ms=now_ms(), for_ms=60_000)
        assert (await register(home, 1)).status == 200
        with home.registry() as db:
            close_window(db)
        assert (await register(home, 2)).status == 403
        assert (await register(home, 1)).status == 200
        assert await home.status_of_key(KEY) == 101

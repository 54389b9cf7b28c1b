"""Control of pairing by administrators: the window, and the release of a device."""

from pathlib import Path
from typing import Any

import pytest

from brewos_relay.api import pairing
from brewos_relay.api.account_rules import AccountRules
from brewos_relay.registry.accounts import set_admin
from brewos_relay.registry.pairing_limits import NewDeviceRules, PairingMode
from support.household import MACHINE, SECOND, Answer, Household, open_household
from support.sign_ins import sign_in

pytestmark = pytest.mark.usefixtures("each_registry")

NEW = "BRW-0000004D"
REGISTRATION = {"deviceId": NEW, "token": "t" * 32, "deviceKey": "k" * 43}


def rules(mode: PairingMode, per_network: int = 500) -> AccountRules:
    return AccountRules(new_devices=NewDeviceRules(mode=mode, per_network=per_network))


async def administrator(house: Household) -> str:
    """Sign in an administrator, and return the token."""
    session = await sign_in(house)
    await house.store.write(set_admin, session["user"]["id"], True)
    return str(session["accessToken"])


async def register(house: Household, **changed: Any) -> Answer:
    return await house.ask("POST", "/devices/register-claim", {**REGISTRATION, **changed}, by=None)


async def test_administrator_opens_and_closes_the_window(tmp_path: Path) -> None:
    async with open_household(tmp_path, accounts=rules("window")) as house:
        token = await administrator(house)
        closed = {"mode": "window", "isOpen": False, "openUntil": None}
        assert (await house.ask("GET", "/admin/pairing", token=token)).content == closed
        refused = await register(house)
        assert refused.status == 403
        assert b"200 " not in refused.body
        opened = await house.ask("POST", "/admin/pairing", {"minutes": 10}, token=token)
        assert (opened.status, opened.content["isOpen"]) == (200, True)
        assert (await house.ask("GET", "/admin/pairing", token=token)).content == opened.content
        assert (await register(house)).status == 200
        assert (await house.ask("DELETE", "/admin/pairing", token=token)).content == closed
        assert (await register(house)).status == 200
        assert (await register(house, deviceId="BRW-0000004E")).status == 403


async def test_administrator_sorts_and_filters_devices_and_accounts(tmp_path: Path) -> None:
    async with open_household(tmp_path) as house:
        token = await administrator(house)
        ids: list[str] = []
        path: str | None = "/admin/devices?sort=id&order=desc&limit=1"
        while path is not None:
            answer = (await house.ask("GET", path, token=token)).content
            ids += [one["id"] for one in answer["devices"]]
            following = answer["next"]
            path = following and f"/admin/devices?sort=id&order=desc&limit=1&after={following}"
        assert ids == sorted(ids, reverse=True)
        assert {MACHINE, SECOND} <= set(ids)
        for query in ("only=unowned", "only=newKey", "owner=stranger"):
            found = (await house.ask("GET", f"/admin/devices?{query}", token=token)).content["devices"]
            assert MACHINE not in [one["id"] for one in found]
        people = await house.ask("GET", "/admin/users?only=administrators&sort=createdAt", token=token)
        assert len(people.content["users"]) == 1
        for path in ("/admin/devices?sort=key_hash", "/admin/devices?order=up", "/admin/users?sort=lastSeen"):
            assert (await house.ask("GET", path, token=token)).status == 400


@pytest.mark.parametrize("minutes", [0, -1, 24 * 60 + 1, "10", 1.5])
async def test_window_opens_for_a_day_at_most(tmp_path: Path, minutes: Any) -> None:
    async with open_household(tmp_path, accounts=rules("window")) as house:
        token = await administrator(house)
        answer = await house.ask("POST", "/admin/pairing", {"minutes": minutes}, token=token)
        assert answer.status in {400, 422}
        assert not (await house.ask("GET", "/admin/pairing", token=token)).content["isOpen"]


async def test_window_cannot_be_opened_where_pairing_is_closed(tmp_path: Path) -> None:
    async with open_household(tmp_path, accounts=rules("closed")) as house:
        token = await administrator(house)
        assert (await house.ask("POST", "/admin/pairing", {}, token=token)).status == 409
        assert (await register(house)).status == 403
        # A known key and a reset machine with an owner can still register.
        known = {"deviceId": MACHINE, "token": "u" * 32, "deviceKey": "n" * 43}
        assert (await register(house, **known)).status == 200


async def test_pairing_is_open_by_default(tmp_path: Path) -> None:
    async with open_household(tmp_path) as house:
        token = await administrator(house)
        answer = await house.ask("GET", "/admin/pairing", token=token)
        assert answer.content == {"mode": "open", "isOpen": True, "openUntil": None}


async def test_network_that_registered_too_many_new_ids_is_told_to_wait(tmp_path: Path) -> None:
    async with open_household(tmp_path, accounts=rules("open", per_network=2)) as house:
        for number in range(2):
            assert (await register(house, deviceId=f"BRW-0000005{number}")).status == 200
        refused = await register(house)
        assert refused.status == 429
        assert b"200 " not in refused.body
        assert int(refused.headers["Retry-After"]) > 3600
        assert (await register(house, deviceId="BRW-00000051")).status == 200


async def test_administrator_releases_a_device_and_its_owner_is_told(tmp_path: Path) -> None:
    async with open_household(tmp_path) as house:
        token = await administrator(house)
        ben = await sign_in(house, "ben@example.org")
        await house.give(ben["user"]["id"])
        released = await house.ask("POST", f"/admin/devices/{MACHINE.lower()}/release", token=token)
        assert released.status == 200
        gone = await house.ask("GET", f"/devices/{MACHINE}", token=ben["accessToken"])
        assert gone.status == 404
        [notice] = (await house.ask("GET", "/notices", token=ben["accessToken"])).content["notices"]
        assert (notice["kind"], notice["deviceId"]) == ("released", MACHINE)
        assert (await house.ask("POST", "/admin/devices/BRW-0000009F/release", token=token)).status == 404


async def test_notices_are_dismissed(tmp_path: Path) -> None:
    async with open_household(tmp_path) as house:
        token = await administrator(house)
        ben = await sign_in(house, "ben@example.org")
        await house.give(ben["user"]["id"])
        await house.ask("POST", f"/admin/devices/{MACHINE}/release", token=token)
        [notice] = (await house.ask("GET", "/notices", token=ben["accessToken"])).content["notices"]
        path = f"/notices?upTo={notice['id']}"
        assert (await house.ask("DELETE", path, token=token)).status == 200
        assert len((await house.ask("GET", "/notices", token=ben["accessToken"])).content["notices"]) == 1
        assert (await house.ask("DELETE", path, token=ben["accessToken"])).status == 200
        assert (await house.ask("GET", "/notices", token=ben["accessToken"])).content == {"notices": []}


async def test_network_over_its_quota_is_refused_without_a_write(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with open_household(tmp_path, accounts=rules("open", per_network=1)) as house:
        assert (await register(house, deviceId="BRW-00000A01")).status == 200
        assert (await register(house, deviceId="BRW-00000A02")).status == 429

        async def fail(*_: object, **__: object) -> None:
            raise AssertionError("nothing is written")

        with monkeypatch.context() as patch:
            patch.setattr(house.store, "write_anonymous", fail)
            answer = await register(house, deviceId="BRW-00000A03")
            assert answer.status == 429
            assert 0 < int(answer.headers["Retry-After"]) <= 60
        assert (await register(house, deviceId="BRW-00000A01")).status == 200, "this one is not new"


async def test_number_of_remembered_full_networks_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pairing, "_FULL_KEPT", 3)
    full = pairing.FullNetworks()
    for number in range(10):
        full.add(f"192.0.2.{number}", 3600)
    assert list(full._until) == ["192.0.2.7", "192.0.2.8", "192.0.2.9"]

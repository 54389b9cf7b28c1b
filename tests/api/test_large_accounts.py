"""Accounts with very many machines, sessions and guests: bounded answers, quotas, removal in steps."""

from pathlib import Path
from typing import Any

import pytest
import trio

from brewos_relay.api import admin_accounts as admin_api
from brewos_relay.api.account_rules import AccountRules
from brewos_relay.registry import account_removal, bulk
from brewos_relay.registry.access import devices_of, give
from brewos_relay.registry.account_removal import closed_accounts
from brewos_relay.registry.accounts import set_admin
from brewos_relay.registry.devices import add_devices
from brewos_relay.registry.issued_tokens import add_token
from brewos_relay.registry.records import NewDevice, StoredToken
from brewos_relay.vocabulary import now_ms
from support.household import MACHINE, SECOND, Household, open_household
from support.sign_ins import EMAIL, ask, sign_in

BEN = "ben@example.org"
MANY = 520


def ids(count: int) -> list[str]:
    return [f"BRW-B{number:07X}" for number in range(count)]


async def fill(house: Household, user_id: str | None, count: int = MANY) -> list[str]:
    made = [NewDevice(id=id_, key_hash=bytes(32), user_id=user_id) for id_ in ids(count)]
    await house.store.write(add_devices, made, now_ms=now_ms())
    return [device.id for device in made]


async def pages(house: Household, path: str, entries: str, **by: Any) -> list[list[Any]]:
    found, after = [], ""
    while True:
        answer = await house.ask("GET", f"{path}?limit=2&after={after}", **by)
        assert answer.status == 200
        found.append(answer.content[entries])
        after = answer.content["next"]
        if after is None:
            return found


# Lists


async def test_an_app_gets_all_machines_up_to_the_quota_in_one_answer(tmp_path: Path) -> None:
    rules = AccountRules(machines_per_account=MANY)
    async with open_household(tmp_path, accounts=rules) as house:
        await fill(house, "bob")
        answer = await house.ask("GET", "/devices", by="bob")
        assert [device["id"] for device in answer.content["devices"]] == ids(MANY)


@pytest.mark.parametrize("devices", [frozenset(), "*"])
async def test_number_of_machines_in_an_answer_is_bounded(house: Household, devices: Any) -> None:
    await fill(house, "bob")
    token = house.token("bob", devices=devices)
    answer = await house.ask("GET", "/devices", token=token)
    assert len(answer.content["devices"]) == 500
    rest = await house.ask("GET", f"/devices?after={answer.content['next'].lower()}", token=token)
    found = [device["id"] for device in answer.content["devices"] + rest.content["devices"]]
    assert [id_ for id_ in found if id_.startswith("BRW-B")] == ids(MANY)
    assert rest.content["next"] is None
    assert (await house.ask("GET", "/devices?limit=501", token=token)).status == 400


async def test_pages_of_machines_that_a_user_has_and_that_a_token_names(house: Household) -> None:
    unknown = "BRW-0000004D"
    await fill(house, "ada", 2)
    token = house.token("ada", devices=[MACHINE, unknown])
    found = await pages(house, "/devices", "devices", token=token)
    assert [[device["id"] for device in page] for page in found] == [
        sorted([MACHINE, SECOND, unknown, *ids(2)])[start : start + 2] for start in (0, 2, 4)
    ]


async def test_one_machine_is_read_without_the_others(
    house: Household, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[object] = []

    def counted(*args: Any, **given: Any) -> Any:
        asked.append(given.get("only"))
        return devices_of(*args, **given)

    monkeypatch.setattr("brewos_relay.api.devices.devices_of", counted)
    assert (await house.ask("GET", f"/devices/{MACHINE}")).content["device"]["id"] == MACHINE
    assert asked == [[MACHINE]]


async def test_pages_of_the_users_of_a_machine(house: Household) -> None:
    at_ms = now_ms()
    for number in range(4):  # two at a time
        await house.store.write(give, MACHINE, f"guest{number}", role="member", now_ms=at_ms + number // 2)
    found = await pages(house, f"/devices/{MACHINE}/users", "users")
    assert [[user["userId"] for user in page] for page in found] == [
        ["ada", "guest0"],
        ["guest1", "guest2"],
        ["guest3"],
    ]
    for after in ("x", "1:\0", "1e3:x", "99999999999999999999:x"):
        answer = await house.ask("GET", f"/devices/{MACHINE}/users?after={after}")
        assert answer.status == 400


async def test_pages_of_sessions(house: Household) -> None:
    tokens = [(await sign_in(house))["accessToken"] for _ in range(5)]
    found = await pages(house, "/auth/sessions", "sessions", token=tokens[0])
    assert [len(page) for page in found] == [2, 2, 1]
    assert len({session["id"] for page in found for session in page}) == 5


async def test_pages_of_tokens_without_a_session(house: Household) -> None:
    ada = await sign_in(house)
    await house.store.write(set_admin, ada["user"]["id"], True)
    at_ms = now_ms()
    for number in range(5):  # two at a time
        stored = StoredToken(
            id=f"t{number}",
            name=None,
            user_id="ada",
            role="viewer",
            devices="*",
            created_at_ms=at_ms + number // 2,
            expires_at_ms=at_ms + 60_000,
        )
        await house.store.write(add_token, stored)
    found = await pages(house, "/admin/tokens", "tokens", token=ada["accessToken"])
    assert [[token["id"] for token in page] for page in found] == [["t4", "t3"], ["t2", "t1"], ["t0"]]


# Quotas


@pytest.mark.parametrize("by_code", [False, True])
async def test_a_share_is_refused_to_a_user_with_as_many_machines_as_the_quota(
    tmp_path: Path, by_code: bool
) -> None:
    async with open_household(tmp_path, accounts=AccountRules(machines_per_account=2)) as house:
        await fill(house, "bob", 2)
        share = (await house.ask("POST", f"/devices/{MACHINE}/share")).content
        body = {"deviceId": MACHINE, "token": share["token"]}
        if by_code:
            body = {"deviceId": share["manualCode"], "token": ""}
        refused = await house.ask("POST", "/devices/claim-share", body, by="bob")
        assert refused.status == 409
        assert "2 machines" in refused.content["error"]
        # The share is not used up, and the user keeps the machines.
        assert (await house.ask("DELETE", f"/devices/{ids(1)[0]}", by="bob")).status == 200
        for _ in range(2):
            assert (await house.ask("POST", "/devices/claim-share", body, by="bob")).status == 200


# Removal


async def test_large_account_is_signed_out_before_its_machines_are_released(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bulk, "STEP_S", 0.0)
    monkeypatch.setattr(account_removal, "DEVICES_AT_ONCE", 100)
    monkeypatch.setattr(admin_api, "REMOVAL_S", 0.0)
    async with open_household(tmp_path) as house:
        ada, ben = await sign_in(house), await sign_in(house, BEN)
        await house.store.write(set_admin, ada["user"]["id"], True)
        await fill(house, ben["user"]["id"])
        path = f"/admin/users/{ben['user']['id']}"
        assert (await house.ask("DELETE", path, token=ada["accessToken"])).status == 200
        # The answer does not wait for the release of the machines.
        assert await house.store.read(closed_accounts) == [ben["user"]["id"]]
        assert (await house.ask("GET", "/devices", token=ben["accessToken"])).status == 401
        assert (await house.ask("DELETE", path, token=ada["accessToken"])).status == 404
        # Meanwhile another user signs in, and ends all sessions.
        again = await sign_in(house, EMAIL)
        with trio.fail_after(2):
            answer = await ask(house, "/auth/logout-all", {}, token=again["accessToken"])
        assert (answer.status, answer.content["ended"]) == (200, 2)
        assert await house.store.read(closed_accounts) != []
        # The address can be used again at once.
        new = await sign_in(house, BEN)
        assert new["user"]["id"] != ben["user"]["id"]
        with trio.fail_after(20):
            while await house.store.read(closed_accounts):  # noqa: ASYNC110  another task removes it
                await trio.sleep(0.01)
        assert await house.store.read(devices_of, ben["user"]["id"], now_ms=now_ms()) == []

from pathlib import Path

import pytest

from brewos_relay.core.clock import now_ms
from brewos_relay.core.grant import Grant
from brewos_relay.registry.accounts import add_user
from brewos_relay.registry.records import Role
from support.household import MACHINE, SECOND, Household, open_household

WATCHERS = f"/devices/{MACHINE}/watchers"


async def test_an_owner_sees_who_is_connected_and_how_often(tmp_path: Path) -> None:
    async with open_household(tmp_path) as house:
        cleo = await house.store.write(add_user, email="cleo@example.org", name="Cleo", now_ms=now_ms())
        house.relay.grants[MACHINE] = [
            Grant(user_id="ada"),
            Grant(user_id=cleo.id),
            Grant(user_id="ada", by_token=True),
            Grant(),
        ]
        house.relay.grants[SECOND] = [Grant(user_id="bob")]
        answer = await house.ask("GET", WATCHERS.replace("BRW", "brw"))
        assert answer.status == 200
        found = {one["userId"]: one for one in answer.content["watchers"]}
        assert found == {
            "ada": {
                "userId": "ada",
                "email": "ada@example.org",
                "displayName": "ada@example.org",
                "avatarUrl": None,
                "connections": 2,
            },
            cleo.id: {
                "userId": cleo.id,
                "email": "cleo@example.org",
                "displayName": "Cleo",
                "avatarUrl": None,
                "connections": 1,
            },
        }


async def test_nobody_is_connected(house: Household) -> None:
    assert (await house.ask("GET", WATCHERS)).content == {"watchers": []}


@pytest.mark.parametrize(("role", "status"), [("member", 403), ("viewer", 403), (None, 404)])
async def test_others_do_not_see_it(tmp_path: Path, role: Role | None, status: int) -> None:
    async with open_household(tmp_path) as house:
        house.relay.grants[MACHINE] = [Grant(user_id="ada")]
        if role is not None:
            await house.give("bob", role)
        assert (await house.ask("GET", WATCHERS, by="bob")).status == status
        assert (await house.ask("GET", WATCHERS, by=None)).status == 401

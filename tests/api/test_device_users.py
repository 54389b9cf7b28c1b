from pathlib import Path
from typing import Any

import pytest

from brewos_relay.core.grant import Grant
from brewos_relay.registry.accounts import add_user
from brewos_relay.vocabulary import Role, now_ms
from support.household import MACHINE, SECOND, Household, open_household

pytestmark = pytest.mark.usefixtures("each_registry")

USERS = f"/devices/{MACHINE}/users"
HOUR_MS = 3_600_000


async def listed(house: Household, *, by: str = "ada") -> dict[str, dict[str, Any]]:
    answer = await house.ask("GET", USERS, by=by)
    assert answer.status == 200
    return {user["userId"]: user for user in answer.content["users"]}


async def test_users_of_a_device_are_listed(tmp_path: Path) -> None:
    async with open_household(tmp_path) as house:
        account = await house.store.write(add_user, email="cleo@example.org", name="Cleo", now_ms=now_ms())
        await house.give(account.id, "viewer", until_ms=now_ms() + HOUR_MS)
        users = await listed(house)
        assert users["ada"] == {
            "userId": "ada",
            "email": "ada@example.org",
            "displayName": "ada@example.org",
            "avatarUrl": None,
            "claimedAt": "1970-01-01T00:00:01.000Z",
            "role": "owner",
            "until": None,
        }
        cleo = users[account.id]
        assert (cleo["email"], cleo["displayName"]) == ("cleo@example.org", "Cleo")
        assert cleo["role"] == "viewer"
        assert cleo["until"] > cleo["claimedAt"] > "2020"


async def test_member_sees_all_users_and_viewer_only_themselves(tmp_path: Path) -> None:
    async with open_household(tmp_path) as house:
        await house.give("bob", "member")
        await house.give("cleo", "viewer")
        assert set(await listed(house, by="bob")) == {"ada", "bob", "cleo"}
        assert set(await listed(house, by="cleo")) == {"cleo"}
        assert (await house.ask("GET", USERS, by="eve")).status == 404


@pytest.mark.parametrize("role", ["owner", "member", "viewer"])
async def test_an_owner_gives_another_role(tmp_path: Path, role: Role) -> None:
    async with open_household(tmp_path) as house:
        await house.give("bob", "member")
        answer = await house.ask("PATCH", f"{USERS}/bob", {"role": role})
        assert (answer.status, answer.content["role"]) == (200, role)
        assert (await listed(house))["bob"]["role"] == role


async def test_omitted_fields_stay_unchanged(tmp_path: Path) -> None:
    async with open_household(tmp_path) as house:
        until_ms = now_ms() + HOUR_MS
        await house.give("bob", "member", until_ms=until_ms)
        before = (await listed(house))["bob"]
        assert (await house.ask("PATCH", f"{USERS}/bob", {})).content == before
        changed = (await house.ask("PATCH", f"{USERS}/bob", {"role": "viewer"})).content
        assert (changed["role"], changed["until"]) == ("viewer", before["until"])
        changed = (await house.ask("PATCH", f"{USERS}/bob", {"until": until_ms + HOUR_MS})).content
        assert changed["until"] > before["until"]
        changed = (await house.ask("PATCH", f"{USERS}/bob", {"until": None})).content
        assert (changed["role"], changed["until"]) == ("viewer", None)


async def test_access_of_a_new_owner_has_no_end(tmp_path: Path) -> None:
    async with open_household(tmp_path) as house:
        until_ms = now_ms() + HOUR_MS
        await house.give("bob", "member", until_ms=until_ms)
        wrong = await house.ask("PATCH", f"{USERS}/bob", {"role": "owner", "until": until_ms})
        assert wrong.status == 422
        changed = (await house.ask("PATCH", f"{USERS}/bob", {"role": "owner"})).content
        assert (changed["role"], changed["until"]) == ("owner", None)
        assert (await house.ask("PATCH", f"{USERS}/bob", {"until": until_ms})).status == 422


@pytest.mark.parametrize(
    ("body", "status"), [({"role": "king"}, 400), ({"until": "soon"}, 400), ({"until": 1}, 422), ([], 400)]
)
async def test_invalid_change_is_refused(tmp_path: Path, body: Any, status: int) -> None:
    async with open_household(tmp_path) as house:
        await house.give("bob", "member")
        before = await listed(house)
        assert (await house.ask("PATCH", f"{USERS}/bob", body)).status == status
        assert await listed(house) == before


async def test_last_owner_cannot_be_removed(tmp_path: Path) -> None:
    async with open_household(tmp_path) as house:
        await house.give("bob", "member")
        demoted = await house.ask("PATCH", f"{USERS}/ada", {"role": "viewer"})
        taken = await house.ask("DELETE", f"{USERS}/ada")
        assert (demoted.status, taken.status) == (409, 409)
        assert (await listed(house))["ada"]["role"] == "owner"


async def test_change_gives_no_access_to_new_users(tmp_path: Path) -> None:
    async with open_household(tmp_path) as house:
        for method, body in [("PATCH", {"role": "owner"}), ("DELETE", None)]:
            for nobody in ("eve", "%00", "x" * 300):
                assert (await house.ask(method, f"{USERS}/{nobody}", body)).status == 404
        assert set(await listed(house)) == {"ada"}


@pytest.mark.parametrize("role", ["owner", "member", "viewer"])
async def test_owner_removes_a_user(tmp_path: Path, role: Role) -> None:
    async with open_household(tmp_path) as house:
        await house.give("bob", role)
        answer = await house.ask("DELETE", f"{USERS}/bob")
        assert (answer.status, answer.content) == (200, {"success": True})
        assert set(await listed(house)) == {"ada"}
        assert (await house.ask("GET", USERS, by="bob")).status == 404


@pytest.mark.parametrize("role", ["member", "viewer"])
async def test_non_owners_can_only_remove_themselves(tmp_path: Path, role: Role) -> None:
    async with open_household(tmp_path) as house:
        await house.give("bob", role)
        await house.give("cleo", "viewer")
        for user in ("bob", "ada", "cleo"):
            answer = await house.ask("PATCH", f"{USERS}/{user}", {"role": "owner"}, by="bob")
            assert answer.status == 403
        for user in ("ada", "cleo"):
            assert (await house.ask("DELETE", f"{USERS}/{user}", by="bob")).status == 403
        assert (await house.ask("DELETE", f"{USERS}/bob", by="bob")).status == 200
        assert set(await listed(house)) == {"ada", "cleo"}


async def test_owner_of_one_device_has_no_rights_to_another(tmp_path: Path) -> None:
    async with open_household(tmp_path) as house:
        await house.give("bob", "owner")
        path = f"/devices/{SECOND}/users/ada"
        assert (await house.ask("DELETE", path, by="bob")).status == 404
        assert (await house.ask("PATCH", path, {"role": "viewer"}, by="bob")).status == 404


async def test_a_token_that_owns_a_device_manages_its_users(tmp_path: Path) -> None:
    async with open_household(tmp_path) as house:
        await house.give("bob", "member")
        viewer = house.token("ops", devices=[MACHINE], role="viewer")
        assert (await house.ask("DELETE", f"{USERS}/bob", token=viewer)).status == 403
        owner = house.token("ops", devices=[MACHINE], role="owner")
        assert (await house.ask("DELETE", f"{USERS}/bob", token=owner)).status == 200


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


async def test_no_watchers_without_connections(house: Household) -> None:
    assert (await house.ask("GET", WATCHERS)).content == {"watchers": []}


@pytest.mark.parametrize(("role", "status"), [("member", 403), ("viewer", 403), (None, 404)])
async def test_only_owners_see_watchers(tmp_path: Path, role: Role | None, status: int) -> None:
    async with open_household(tmp_path) as house:
        house.relay.grants[MACHINE] = [Grant(user_id="ada")]
        if role is not None:
            await house.give("bob", role)
        assert (await house.ask("GET", WATCHERS, by="bob")).status == status
        assert (await house.ask("GET", WATCHERS, by=None)).status == 401

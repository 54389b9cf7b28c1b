from pathlib import Path
from typing import Any

import pytest

from brewos_relay.registry.accounts import add_user
from brewos_relay.registry.activity import add_activity
from brewos_relay.registry.records import Activity
from brewos_relay.vocabulary import iso_time, now_ms
from support.household import MACHINE, SECOND, Household, open_household

PATH = f"/devices/{MACHINE}/activity"


async def page(house: Household, query: str = "") -> tuple[list[dict[str, Any]], int | None]:
    answer = await house.ask("GET", PATH + query)
    assert answer.status == 200
    return answer.content["activity"], answer.content["next"]


async def test_an_owner_sees_who_did_what(tmp_path: Path) -> None:
    async with open_household(tmp_path) as house:
        account = await house.store.write(add_user, email="b@example.org", name=None, now_ms=now_ms())
        at_ms = now_ms()  # the housekeeping deletes old entries
        detail = {"cmd": "set_mode"}
        entries = [
            Activity(device_id=MACHINE, at_ms=at_ms, kind="online"),
            Activity(device_id=SECOND, at_ms=at_ms + 1, kind="online"),
            Activity(device_id=MACHINE, at_ms=at_ms + 2, kind="command", user_id=account.id, detail=detail),
            Activity(device_id=MACHINE, at_ms=at_ms + 3, kind="client_came", user_id="cli"),
        ]
        await house.store.write(add_activity, entries)
        newest, middle, oldest = (await page(house))[0]
        assert (newest["kind"], newest["userId"], newest["email"]) == ("client_came", "cli", None)
        assert middle == {
            "id": middle["id"],
            "at": iso_time(at_ms + 2),
            "kind": "command",
            "userId": account.id,
            "email": "b@example.org",
            "detail": detail,
        }
        assert (oldest["kind"], oldest["userId"], oldest["detail"]) == ("online", None, {})


async def test_pages_follow_each_other(tmp_path: Path) -> None:
    async with open_household(tmp_path) as house:
        began_ms = now_ms()  # the housekeeping deletes old entries
        entries = [Activity(device_id=MACHINE, at_ms=began_ms + n, kind="online") for n in range(5)]
        await house.store.write(add_activity, entries)
        first, after = await page(house, "?limit=3")
        assert (len(first), after) == (3, first[-1]["id"])
        second, after = await page(house, f"?limit=3&before={after}")
        assert (len(second), after) == (2, None)
        ids = [entry["id"] for entry in first + second]
        assert ids == sorted(ids, reverse=True)


async def test_renaming_and_sharing_are_recorded(tmp_path: Path) -> None:
    async with open_household(tmp_path) as house:
        await house.give("bob", "member")
        await house.ask("PATCH", f"/devices/{MACHINE}", {"name": "Bar"})
        made = (await house.ask("POST", f"/devices/{MACHINE}/share")).content
        await house.ask("POST", "/devices/claim", {"deviceId": made["manualCode"], "token": ""}, by="cleo")
        await house.ask("DELETE", f"/devices/{MACHINE}/shares/{made['shareId']}")
        await house.ask("PATCH", f"/devices/{MACHINE}/users/bob", {"role": "viewer"})
        await house.ask("DELETE", f"/devices/{MACHINE}/users/bob")
        house.relay.online = {MACHINE}
        await house.ask("POST", f"/devices/{MACHINE}/rotate-key")
        entries = (await page(house))[0]
        assert [(entry["kind"], entry["userId"]) for entry in reversed(entries)] == [
            ("renamed", "ada"),
            ("shared", "ada"),
            ("share_claimed", "cleo"),
            ("share_revoked", "ada"),
            ("role_changed", "ada"),
            ("user_removed", "ada"),
            ("key_sent", "ada"),
        ]


@pytest.mark.parametrize(
    "query", ["limit=0", "limit=501", "limit=x", "before=-1", "before=x", f"before={2**64}"]
)
async def test_invalid_page_is_a_400(tmp_path: Path, query: str) -> None:
    async with open_household(tmp_path) as house:
        assert (await house.ask("GET", f"{PATH}?{query}")).status == 400


async def test_only_owners_see_the_activity(tmp_path: Path) -> None:
    async with open_household(tmp_path) as house:
        await house.give("bob", "member")
        for by, status in [("bob", 403), ("eve", 404), (None, 401)]:
            assert (await house.ask("GET", PATH, by=by)).status == status

from pathlib import Path
from typing import Any

import pytest
import trio

from brewos_relay.auth.secrets import hash_secret
from brewos_relay.registry.access import users_of
from brewos_relay.registry.devices import record_info, record_seen
from brewos_relay.registry.pairing import register_pairing
from brewos_relay.registry.records import StoredState
from brewos_relay.vocabulary import now_ms
from support.household import KEY, MACHINE, OTHER_KEY, SECOND, STRANGE, Household, open_household

pytestmark = pytest.mark.usefixtures("each_registry")

UNKNOWN = "BRW-0000004D"
HOUR_MS = 3_600_000


async def listed(house: Household, **by: Any) -> list[dict[str, Any]]:
    answer = await house.ask("GET", "/devices", **by)
    assert answer.status == 200
    devices: list[dict[str, Any]] = answer.content["devices"]
    return devices


async def one(house: Household, device_id: str = MACHINE, **by: Any) -> dict[str, Any]:
    answer = await house.ask("GET", f"/devices/{device_id}", **by)
    assert answer.status == 200
    device: dict[str, Any] = answer.content["device"]
    return device


# Lists


async def test_devices_of_a_user_are_listed(tmp_path: Path) -> None:
    async with open_household(tmp_path) as house:
        house.relay.online = {MACHINE}
        await house.give("bob", "member")
        await house.store.write(record_seen, {MACHINE: 2_000})
        kitchen, second = await listed(house)
        assert kitchen == {
            "id": MACHINE,
            "name": "Kitchen",
            "isOnline": True,
            "lastSeen": "1970-01-01T00:00:02.000Z",
            "firmwareVersion": None,
            "machineType": None,
            "claimedAt": "1970-01-01T00:00:01.000Z",
            "userCount": 2,
            "role": "owner",
            "until": None,
            "keyPending": False,
        }
        assert second["id"] == second["name"] == SECOND
        assert (second["isOnline"], second["lastSeen"], second["userCount"]) == (False, None, 1)
        assert [device["id"] for device in await listed(house, by="bob")] == [MACHINE]
        assert await listed(house, by="eve") == []


async def test_a_guest_sees_their_role_and_its_end(tmp_path: Path) -> None:
    async with open_household(tmp_path) as house:
        until_ms = now_ms() + HOUR_MS
        await house.give("bob", "viewer", until_ms=until_ms)
        await house.give("cleo", "member", until_ms=now_ms() - 1)
        (device,) = await listed(house, by="bob")
        assert device["role"] == "viewer"
        assert device["until"].endswith("Z")
        assert device["claimedAt"] > "2020"
        assert await listed(house, by="cleo") == []


async def test_list_has_devices_of_the_token_and_of_its_user(tmp_path: Path) -> None:
    async with open_household(tmp_path) as house:
        await house.give("bob", "viewer")
        token = house.token("bob", devices=[MACHINE, STRANGE, UNKNOWN], role="member")
        found = {device["id"]: device for device in await listed(house, token=token)}
        assert list(found) == [MACHINE, STRANGE, UNKNOWN]
        assert {device["role"] for device in found.values()} == {"member"}
        assert "userCount" not in found[STRANGE]
        assert found[UNKNOWN]["claimedAt"] is None
        assert found[UNKNOWN]["name"] == UNKNOWN


async def test_a_star_lists_every_registered_device(tmp_path: Path) -> None:
    async with open_household(tmp_path) as house:
        token = house.token("ops", devices="*", role="viewer")
        assert [device["id"] for device in await listed(house, token=token)] == [MACHINE, SECOND, STRANGE]
        assert (await one(house, STRANGE, token=token))["role"] == "viewer"
        mine = house.token("ada", devices="*", role="viewer")
        roles = {device["id"]: device["role"] for device in await listed(house, token=mine)}
        assert roles == dict.fromkeys([MACHINE, SECOND, STRANGE], "viewer")


async def test_reported_facts_take_precedence_over_stored_ones(tmp_path: Path) -> None:
    async with open_household(tmp_path) as house:
        await house.store.write(record_info, MACHINE, firmware_version="0.8.1", machine_type="dual_boiler")
        device = await one(house)
        assert (device["firmwareVersion"], device["machineType"]) == ("0.8.1", "dual_boiler")
        info: dict[str, Any] = {"firmwareVersion": "0.8.62", "machineType": 7}
        house.relay.states[MACHINE] = {"snapshotAgeMs": 0, "messages": {"device_info": info}}
        device = await one(house)
        assert (device["firmwareVersion"], device["machineType"]) == ("0.8.62", "dual_boiler")


@pytest.mark.parametrize("info", [None, [], "x", {}, {"firmwareVersion": "x" * 51}])
async def test_reported_facts_of_wrong_type_are_ignored(tmp_path: Path, info: Any) -> None:
    async with open_household(tmp_path) as house:
        house.relay.states[MACHINE] = {"snapshotAgeMs": 0, "messages": {"device_info": info}}
        assert (await one(house))["firmwareVersion"] is None


async def test_a_pending_key_is_shown(tmp_path: Path) -> None:
    async with open_household(tmp_path) as house:
        at_ms = now_ms()
        await house.store.write(
            register_pairing,
            device_id=MACHINE,
            key_hash=hash_secret(OTHER_KEY),
            token_hash=hash_secret("t" * 32),
            now_ms=at_ms,
            expires_at_ms=at_ms + HOUR_MS,
        )
        assert (await one(house))["keyPending"] is True
        assert (await one(house, SECOND))["keyPending"] is False


@pytest.mark.parametrize("path", ["", f"/{MACHINE}", f"/{MACHINE}/state"])
async def test_requests_without_a_valid_token_are_refused(tmp_path: Path, path: str) -> None:
    async with open_household(tmp_path) as house:
        answer = await house.ask("GET", f"/devices{path}", by=None)
        assert answer.status == 401
        assert answer.headers["WWW-Authenticate"] == "Bearer"


@pytest.mark.parametrize("device_id", [SECOND, UNKNOWN])
async def test_devices_of_other_users_are_not_found(tmp_path: Path, device_id: str) -> None:
    async with open_household(tmp_path) as house:
        await house.give("bob", "owner")
        for path in ("", "/state", "/users", "/shares", "/activity"):
            answer = await house.ask("GET", f"/devices/{device_id}{path}", by="bob")
            there = await house.ask("GET", f"/devices/{STRANGE}{path}", by="bob")
            assert (answer.status, answer.body) == (404, there.body), path


@pytest.mark.parametrize(
    "device_id", ["nonsense", "BRW-1", "%00", f"{MACHINE}%0a", "claim", "register-claim"]
)
async def test_malformed_device_id_is_not_found(tmp_path: Path, device_id: str) -> None:
    async with open_household(tmp_path) as house:
        assert (await house.ask("GET", f"/devices/{device_id}")).status in {404, 405}
        assert (await house.ask("PATCH", f"/devices/{device_id}", {"name": "x"})).status in {404, 405}


# State


async def test_state_of_a_device_has_its_last_messages(tmp_path: Path) -> None:
    async with open_household(tmp_path) as house:
        house.relay.online = {MACHINE}
        status = {"type": "status", "pressure": 9.1}
        house.relay.states[MACHINE] = {"snapshotAgeMs": 1200, "messages": {"status": status}}
        answer = await house.ask("GET", f"/devices/{MACHINE.lower()}/state")
        assert answer.content == {
            "deviceId": MACHINE,
            "isOnline": True,
            "lastSeen": None,
            "snapshotAgeMs": 1200,
            "lastKnown": False,
            "staleGroups": [],
            "messages": {"status": status},
        }


async def test_stored_state_of_a_device_is_marked_last_known(tmp_path: Path) -> None:
    async with open_household(tmp_path) as house:
        info = {"type": "device_info", "machineType": "dual_boiler"}
        house.relay.states[MACHINE] = {
            "snapshotAgeMs": 0,
            "lastKnown": False,
            "staleGroups": [],
            "messages": {"device_info": info},
        }
        payload = b'{"type":"status","seq":7,"machine":{"state":"ready"},"pressure":0.1}'
        at_ms = now_ms() + 10  # after the pairing, a moment ago
        stored = StoredState(device_id=MACHINE, payload=payload, is_text=True, at_ms=at_ms)
        await house.store.save_states([stored])
        await trio.sleep(0.02)
        answer = await house.ask("GET", f"/devices/{MACHINE}/state")
        assert 0 <= answer.content.pop("snapshotAgeMs") < 60_000
        assert answer.content == {
            "deviceId": MACHINE,
            "isOnline": False,
            "lastSeen": None,
            "lastKnown": True,
            "staleGroups": ["machine", "pressure"],
            "messages": {
                "status": {"type": "status", "seq": 7, "machine": {"state": "ready"}, "pressure": 0.1},
                "device_info": info,
            },
        }
        # Only users with access to the machine see it.
        assert (await house.ask("GET", f"/devices/{MACHINE}/state", by="eve")).status == 404
        stored = StoredState(device_id=MACHINE, payload=b"\xc1", is_text=False, at_ms=at_ms)
        await house.store.save_states([stored])
        answer = await house.ask("GET", f"/devices/{MACHINE}/state")
        assert answer.content["messages"] == {"device_info": info}


async def test_device_without_messages_has_an_empty_state(tmp_path: Path) -> None:
    async with open_household(tmp_path) as house:
        token = house.token("eve", devices=[UNKNOWN])
        answer = await house.ask("GET", f"/devices/{UNKNOWN}/state", token=token)
        assert answer.status == 200
        assert (answer.content["snapshotAgeMs"], answer.content["messages"]) == (None, {})


# Renaming


async def test_an_owner_renames(tmp_path: Path) -> None:
    async with open_household(tmp_path) as house:
        answer = await house.ask("PATCH", f"/devices/{MACHINE.lower()}", {"name": "  Küche ☕ "})
        assert (answer.status, answer.content["device"]["name"]) == (200, "Küche ☕")
        assert (await one(house))["name"] == "Küche ☕"


async def test_invalid_name_is_refused(tmp_path: Path) -> None:
    async with open_household(tmp_path) as house:
        for name in ("", "  ", "x" * 101, "a\nb", "a\x00", None, 7):
            answer = await house.ask("PATCH", f"/devices/{MACHINE}", {"name": name})
            assert answer.status == 400, name
            assert (await one(house))["name"] == "Kitchen", name


async def test_only_owners_rename(tmp_path: Path) -> None:
    async with open_household(tmp_path) as house:
        await house.give("bob", "member")
        for by, status in [("bob", 403), ("eve", 404), (None, 401)]:
            answer = await house.ask("PATCH", f"/devices/{MACHINE}", {"name": "Mine"}, by=by)
            assert answer.status == status
        assert (await one(house))["name"] == "Kitchen"


# Leaving


async def users(house: Household, device_id: str = MACHINE) -> set[str]:
    found = await house.store.read(users_of, device_id, now_ms=now_ms())
    return {user.user_id for user in found}


@pytest.mark.parametrize("role", ["owner", "member", "viewer"])
async def test_leaving_removes_one_user_only(tmp_path: Path, role: Any) -> None:
    async with open_household(tmp_path) as house:
        await house.give("bob", role)
        answer = await house.ask("DELETE", f"/devices/{MACHINE.lower()}", by="bob")
        assert (answer.status, answer.content) == (200, {"success": True})
        assert await users(house) == {"ada"}
        assert await listed(house, by="bob") == []
        assert (await house.ask("DELETE", f"/devices/{MACHINE}", by="bob")).status == 404


async def test_last_owner_who_leaves_removes_all_users_but_not_the_registration(tmp_path: Path) -> None:
    async with open_household(tmp_path) as house:
        await house.give("bob", "member")
        assert (await house.ask("DELETE", f"/devices/{MACHINE}")).status == 200
        assert await users(house) == set()
        device = await house.store.find_device(MACHINE)
        assert device is not None
        assert (device.key_hash, device.name) == (hash_secret(KEY), None)


async def test_owner_may_remove_a_device_for_all_users(tmp_path: Path) -> None:
    async with open_household(tmp_path) as house:
        await house.give("bob", "owner")
        await house.give("cleo", "viewer")
        by_cleo = await house.ask("DELETE", f"/devices/{MACHINE}?everyone=true", by="cleo")
        assert by_cleo.status == 403
        assert (await house.ask("DELETE", f"/devices/{MACHINE}?everyone=maybe")).status == 400
        assert await users(house) == {"ada", "bob", "cleo"}
        assert (await house.ask("DELETE", f"/devices/{MACHINE}?everyone=true")).status == 200
        assert await users(house) == set()
        assert await users(house, SECOND) == {"ada"}


async def test_token_without_access_in_registry_cannot_leave(tmp_path: Path) -> None:
    async with open_household(tmp_path) as house:
        token = house.token("ops", devices="*")
        assert (await house.ask("DELETE", f"/devices/{MACHINE}", token=token)).status == 409
        assert await users(house) == {"ada"}
        assert (await house.ask("DELETE", f"/devices/{MACHINE}?everyone=true", token=token)).status == 200
        assert await users(house) == set()


async def test_list_does_not_decode_device_states(house: Household, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(_device_id: str) -> None:
        raise AssertionError("a state can be large")

    monkeypatch.setattr(house.relay, "state_of", refuse)
    assert (await house.ask("GET", "/devices")).status == 200

"""Tokens without a session: their rights over HTTP, and their revocation by administrators."""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

import pytest

from brewos_relay.core.grant import NamedDevices
from brewos_relay.registry.accounts import set_admin
from brewos_relay.registry.issued_tokens import add_token, revoke_token
from brewos_relay.registry.records import StoredToken
from brewos_relay.vocabulary import Role, now_ms
from support.household import MACHINE, SECOND, Household, open_household

pytestmark = pytest.mark.usefixtures("each_registry")

DEVICE = f"/devices/{MACHINE}"

WITHOUT_A_TOKEN = """
    POST /devices/register-claim
    POST /auth/code/finish
    POST /auth/code/start
    POST /auth/facebook
    POST /auth/google
    POST /auth/invite
    POST /auth/oidc
    POST /auth/password
    POST /auth/refresh
    GET /auth/jwks.json
    GET /health
    GET /info
    GET /mode
    GET /openapi.json
    GET /push/vapid-key
    POST /push/notify
"""
FOR_ALL_TOKENS = """
    GET /auth/me
    POST /auth/logout
    GET /devices
    GET /devices/<device:device_id>
    PATCH /devices/<device:device_id>
    DELETE /devices/<device:device_id>
    GET /devices/<device:device_id>/activity
    POST /devices/<device:device_id>/rotate-key
    GET /devices/<device:device_id>/state
    GET /devices/<device:device_id>/users
    DELETE /devices/<device:device_id>/users/<user_id>
    GET /devices/<device:device_id>/watchers
    GET /devices/<device:device_id>/history
    GET /devices/<device:device_id>/shots
    GET /devices/<device:device_id>/shots/<int:shot_id>
    DELETE /devices/<device:device_id>/shots/<int:shot_id>
    GET /devices/<device:device_id>/shots/<int:shot_id>/json
    GET /devices/<device:device_id>/shots/<int:shot_id>/csv
    GET /devices/<device:device_id>/shots/<int:shot_id>/visualizer
    GET /firmware/releases
    GET /logs
    DELETE /logs
    GET /logs/info
    POST /logs/enable
    POST /logs/pico
    POST /logs/debug
    GET /stats/extended
"""
"""What concerns an account, or gives access that outlasts the token, needs a session."""


def account_routes(house: Household) -> list[tuple[str, str]]:
    """Return the methods and paths of the routes that are not listed above."""
    listed = {tuple(line.split()) for line in (WITHOUT_A_TOKEN + FOR_ALL_TOKENS).split("\n")}
    names = {"<device:device_id>": MACHINE, "<user_id>": "bob"}
    found = []
    for rule in house.app.url_map.iter_rules():
        if not rule.rule.startswith("/api/"):
            continue
        path = rule.rule.removeprefix("/api")
        for method in (rule.methods or set()) - {"HEAD", "OPTIONS"}:
            if (method, path) not in listed:
                filled = re.sub("<[^>]*>", lambda name: names.get(name[0], "some"), path)
                found.append((method, filled))
            listed.discard((method, path))
    assert listed == {()}, "routes that are gone"
    return found


async def keep(house: Household, id_: str) -> None:
    at_ms = now_ms()
    stored = StoredToken(
        id=id_,
        name="wall",
        user_id="ada",
        role="owner",
        devices=frozenset({MACHINE}),
        created_at_ms=at_ms,
        expires_at_ms=at_ms + 60_000,
    )
    await house.store.write(add_token, stored)


async def test_an_account_route_refuses_a_token_without_a_session(tmp_path: Path) -> None:
    async with open_household(tmp_path) as house:
        await house.signed_in("ada")
        await house.give("bob", "member")
        await house.store.write(set_admin, "ada", True)
        routes = account_routes(house)
        assert len(routes) > 20
        for method, path in routes:
            for devices in (frozenset[str](), frozenset({MACHINE}), "*"):
                token = house.token("ada", devices=devices)
                answer = await house.ask(method, path, {} if method != "GET" else None, token=token)
                assert answer.status == 403, (method, path)
                assert "has no session" in answer.content["error"]


OWNERS_ONLY: Final[Sequence[tuple[str, str, Any]]] = (
    ("DELETE", DEVICE, None),
    ("DELETE", f"{DEVICE}?everyone=true", None),
    ("PATCH", DEVICE, {"name": "Mine"}),
    ("DELETE", f"{DEVICE}/users/ada", None),
    ("DELETE", f"{DEVICE}/users/bob", None),
    ("GET", f"{DEVICE}/activity", None),
    ("GET", f"{DEVICE}/watchers", None),
    ("POST", f"{DEVICE}/rotate-key", None),
    ("DELETE", f"{DEVICE}/shots/1", None),
    ("DELETE", f"/logs?device={MACHINE}", None),
    *(("POST", f"/logs/{what}?device={MACHINE}", {"enabled": True}) for what in ("enable", "pico", "debug")),
)


@pytest.mark.parametrize("devices", [frozenset(), frozenset({MACHINE}), "*"])
@pytest.mark.parametrize("role", ["viewer", "member"])
async def test_the_role_of_a_token_limits_what_its_user_owns(
    tmp_path: Path, devices: NamedDevices, role: Role
) -> None:
    async with open_household(tmp_path) as house:
        await house.give("bob", "member")
        house.relay.online.add(MACHINE)
        token = house.token("ada", devices=devices, role=role)
        for method, path, body in OWNERS_ONLY:
            answer = await house.ask(method, path, body, token=token)
            assert answer.status == 403, (method, path)
            shown = (await house.ask("GET", "/devices", token=token)).content["devices"]
            assert {one["id"]: one["role"] for one in shown}[MACHINE] == role, (method, path)
            assert (await house.ask("GET", DEVICE)).content["device"]["role"] == "owner", (method, path)


async def test_owner_token_has_the_rights_of_its_user(tmp_path: Path) -> None:
    async with open_household(tmp_path) as house:
        token = house.token("ada", token_id="known")
        await keep(house, "known")
        assert (await house.ask("PATCH", DEVICE, {"name": "Mine"}, token=token)).status == 200
        assert (await house.ask("DELETE", DEVICE, token=token)).status == 200


async def test_a_restricted_user_may_still_leave(tmp_path: Path) -> None:
    async with open_household(tmp_path) as house:
        await house.give("bob", "viewer")
        assert (await house.ask("DELETE", DEVICE, by="bob")).status == 200


async def test_token_without_a_session_reads_nothing_of_the_account(
    house: Household,
) -> None:
    await house.signed_in("ada")
    me = (await house.ask("GET", "/auth/me", token=house.token("ada"))).content
    assert (me["user"]["name"], me["isAdmin"], me["hasPassword"]) == ("", False, False)


async def test_a_revoked_token_is_refused_and_others_are_not(tmp_path: Path) -> None:
    async with open_household(tmp_path) as house:
        for id_ in ("revoked", "kept"):
            await keep(house, id_)
        await house.store.write(revoke_token, "revoked", now_ms=now_ms())
        answer = await house.ask("GET", "/devices", token=house.token("ada", token_id="revoked"))
        assert (answer.status, answer.content["error"]) == (401, "The token has been revoked.")
        for good in ("kept", "of-another-service", None):
            token = house.token("ada", token_id=good)
            assert (await house.ask("GET", "/devices", token=token)).status == 200


async def test_the_token_of_a_session_costs_no_lookup_of_revoked_tokens(
    house: Household, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[str] = []

    async def is_revoked(token_id: str) -> bool:
        asked.append(token_id)
        return False

    monkeypatch.setattr(house.store, "is_revoked", is_revoked)
    assert (await house.ask("GET", "/devices")).status == 200
    assert asked == []


async def test_an_administrator_lists_and_revokes_tokens(tmp_path: Path) -> None:
    async with open_household(tmp_path) as house:
        await keep(house, "known")
        assert (await house.ask("GET", "/admin/tokens")).status == 403
        await house.store.write(set_admin, "ada", True)
        [listed] = (await house.ask("GET", "/admin/tokens")).content["tokens"]
        assert listed["expiresAt"] > listed["createdAt"] > "2020"
        assert {key: listed[key] for key in ("id", "name", "userId", "role", "devices", "revokedAt")} == {
            "id": "known",
            "name": "wall",
            "userId": "ada",
            "role": "owner",
            "devices": [MACHINE],
            "revokedAt": None,
        }
        assert (await house.ask("DELETE", "/admin/tokens/unknown")).status == 404
        assert (await house.ask("DELETE", "/admin/tokens/known")).status == 200
        assert (await house.ask("DELETE", "/admin/tokens/known")).status == 404
        [listed] = (await house.ask("GET", "/admin/tokens")).content["tokens"]
        assert listed["revokedAt"] is not None
        answer = await house.ask("GET", f"/devices/{SECOND}", token=house.token("ada", token_id="known"))
        assert answer.status == 401

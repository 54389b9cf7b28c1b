from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from brewos_relay.auth.secrets import hash_secret
from brewos_relay.core.grant import Grant
from brewos_relay.registry.accounts import find_user, find_user_by_email, set_admin
from brewos_relay.registry.invites import redeem_invite
from brewos_relay.vocabulary import now_ms
from support.household import BASE_URL, MACHINE, SECOND, STRANGE, Household, open_household
from support.sign_ins import EMAIL, ask, sign_in

pytestmark = pytest.mark.usefixtures("each_registry")

BEN = "ben@example.org"
ROUTES = [
    ("GET", "/admin/users", None),
    ("POST", "/admin/invites", {"email": BEN}),
    ("PATCH", "/admin/users/x", {"isAdmin": True}),
    ("DELETE", "/admin/users/x", None),
    ("GET", "/admin/devices", None),
    ("GET", "/admin/stats", None),
    ("GET", "/admin/pairing", None),
    ("POST", "/admin/pairing", {"minutes": 5}),
    ("DELETE", "/admin/pairing", None),
    ("POST", f"/admin/devices/{STRANGE}/release", None),
]


class Office:
    """A household with Ada, a signed-in administrator, and Ben, an ordinary user."""

    def __init__(self, house: Household, ada: dict[str, Any], ben: dict[str, Any]) -> None:
        self.house = house
        self.ada_id, self.token = ada["user"]["id"], ada["accessToken"]
        self.ben_id, self.bens_token = ben["user"]["id"], ben["accessToken"]

    async def ask(self, method: str, path: str, body: Any = None, *, status: int = 200) -> Any:
        answer = await self.house.ask(method, f"/admin{path}", body, token=self.token)
        assert answer.status == status, answer.content
        return answer.content


@pytest.fixture
async def office(tmp_path: Path) -> AsyncIterator[Office]:
    async with open_household(tmp_path) as house:
        ada, ben = await sign_in(house), await sign_in(house, BEN)
        await house.store.write(set_admin, ada["user"]["id"], True)
        yield Office(house, ada, ben)


async def test_only_administrators_get_an_answer(office: Office) -> None:
    house = office.house
    for method, path, body in ROUTES:
        assert (await house.ask(method, path, body, by=None)).status == 401, (method, path)
        assert (await house.ask(method, path, body, token=office.bens_token)).status == 403, (method, path)
        # A token of the command line has no session, even if it names an administrator.
        for_all = house.token(office.ada_id, devices="*")
        assert (await house.ask(method, path, body, token=for_all)).status == 403, (method, path)


async def test_removed_administrator_is_refused_at_once(office: Office) -> None:
    await office.house.store.write(set_admin, office.ada_id, False)
    for method, path, body in ROUTES:
        answer = await office.house.ask(method, path, body, token=office.token)
        assert (answer.status, answer.content["error"]) == (
            403,
            "Only an administrator of this server may do this.",
        ), (method, path)


async def test_invites_end_when_their_administrator_is_removed(office: Office) -> None:
    body = {"email": "backdoor@example.org", "isAdmin": True}
    link = (await office.ask("POST", "/invites", body))["url"]
    await office.house.store.write(set_admin, office.ada_id, False)
    answer = await ask(office.house, "/auth/invite", {"token": link.rpartition("=")[2]})
    assert answer.status == 401


async def test_accounts_are_sorted_by_address(office: Office) -> None:
    answer = await office.ask("GET", "/users")
    assert answer["next"] is None
    ada, ben = answer["users"]
    assert (ada["email"], ada["isAdmin"], ada["id"]) == (EMAIL, True, office.ada_id)
    assert (ben["email"], ben["isAdmin"], ben["hasPassword"], ben["name"]) == (BEN, False, False, None)
    assert ada["createdAt"] > "2020"


async def test_lists_come_in_pages_and_can_be_searched(office: Office) -> None:
    first = await office.ask("GET", "/users?limit=1")
    assert ([one["email"] for one in first["users"]], first["next"]) == ([EMAIL], EMAIL)
    second = await office.ask("GET", f"/users?limit=1&after={first['next']}")
    assert [one["email"] for one in second["users"]] == [BEN]
    last = await office.ask("GET", f"/users?limit=1&after={second['next']}")
    assert last == {"users": [], "next": None}
    assert [one["email"] for one in (await office.ask("GET", "/users?find=BEN"))["users"]] == [BEN]
    devices = await office.ask("GET", "/devices?limit=2")
    assert ([one["id"] for one in devices["devices"]], devices["next"]) == ([MACHINE, SECOND], SECOND)
    rest = await office.ask("GET", f"/devices?limit=2&after={SECOND}")
    assert ([one["id"] for one in rest["devices"]], rest["next"]) == ([STRANGE], None)
    assert [one["id"] for one in (await office.ask("GET", "/devices?find=kitch"))["devices"]] == [MACHINE]


@pytest.mark.parametrize("query", ["limit=0", "limit=501", "limit=x", f"find={'x' * 321}"])
async def test_invalid_query_is_a_400(office: Office, query: str) -> None:
    for path in ("/users", "/devices"):
        await office.ask("GET", f"{path}?{query}", status=400)


async def test_an_invite_signs_in_once(office: Office) -> None:
    made = await office.ask("POST", "/invites", {"email": " Cleo@Example.org ", "isAdmin": True})
    start = f"{BASE_URL}/login#invite="
    assert made["url"].startswith(start)
    assert made["email"] == "Cleo@Example.org"
    assert made["expiresAt"] > "2020"
    token = made["url"].removeprefix(start)
    store = office.house.store
    cleo = await store.write(redeem_invite, hash_secret(token), now_ms=now_ms())
    assert cleo is not None
    assert (cleo.email, cleo.is_admin) == ("cleo@example.org", True)
    assert await store.write(redeem_invite, hash_secret(token), now_ms=now_ms()) is None


@pytest.mark.parametrize("body", [{"email": "nobody"}, {"email": ""}, {}, [], {"email": BEN, "isAdmin": 1}])
async def test_invite_needs_an_address(office: Office, body: Any) -> None:
    await office.ask("POST", "/invites", body, status=400)


async def test_administrator_grants_and_withdraws_administrator_rights(office: Office) -> None:
    changed = await office.ask("PATCH", f"/users/{office.ben_id}", {"isAdmin": True})
    assert (changed["email"], changed["isAdmin"]) == (BEN, True)
    assert (await office.house.ask("GET", "/admin/stats", token=office.bens_token)).status == 200
    changed = await office.ask("PATCH", f"/users/{office.ben_id}", {"isAdmin": False})
    assert changed["isAdmin"] is False
    assert (await office.house.ask("GET", "/admin/stats", token=office.bens_token)).status == 403


async def test_last_administrator_cannot_be_removed(office: Office) -> None:
    await office.ask("PATCH", f"/users/{office.ada_id}", {"isAdmin": False}, status=409)
    await office.ask("DELETE", f"/users/{office.ada_id}", status=409)
    ada = await office.house.store.read(find_user, office.ada_id)
    assert ada is not None
    assert ada.is_admin
    # With another administrator, both requests succeed.
    await office.ask("PATCH", f"/users/{office.ben_id}", {"isAdmin": True})
    await office.ask("PATCH", f"/users/{office.ada_id}", {"isAdmin": False})


async def test_an_account_is_removed_with_its_sessions(office: Office) -> None:
    assert await office.ask("DELETE", f"/users/{office.ben_id}") == {"success": True}
    assert await office.house.store.read(find_user_by_email, BEN) is None
    assert (await office.house.ask("GET", "/auth/me", token=office.bens_token)).status == 401
    await office.ask("DELETE", f"/users/{office.ben_id}", status=404)
    await office.ask("PATCH", f"/users/{office.ben_id}", {"isAdmin": True}, status=404)


async def test_devices_are_listed_with_their_state(office: Office) -> None:
    office.house.relay.online.add(MACHINE)
    office.house.relay.grants[MACHINE] = [Grant(user_id="ada"), Grant(user_id="ben")]
    await office.house.give(office.ben_id, "owner")
    await office.house.give("cleo", "member")
    kitchen, second, strange = (await office.ask("GET", "/devices"))["devices"]
    assert kitchen == {
        "id": MACHINE,
        "name": "Kitchen",
        "isOnline": True,
        "clients": 2,
        "lastSeen": None,
        "firmwareVersion": None,
        "machineType": None,
        "keyPending": False,
        "owners": ["ada", BEN],
    }
    assert (second["name"], second["isOnline"], second["clients"], second["owners"]) == (
        None,
        False,
        0,
        ["ada"],
    )
    assert strange["owners"] == []


async def test_stats_count_peers_and_messages(office: Office) -> None:
    relay = office.house.relay
    relay.online.add(MACHINE)
    relay.client_count = 3
    relay.counters.received_from_devices = 17
    relay.counters.left_out = 2
    stats = await office.ask("GET", "/stats")
    assert (stats["devices"], stats["clients"]) == (1, 3)
    assert stats["registered"] == {"devices": 3, "users": 2}
    assert (stats["totals"]["receivedFromDevices"], stats["totals"]["leftOut"]) == (17, 2)
    assert abs(stats["timestamp"] - now_ms()) < 60_000


async def test_character_nul_is_no_failure_of_the_registry(office: Office) -> None:
    of_admins: list[tuple[str, str, Any]] = [
        ("PATCH", "/admin/users/%00", {"isAdmin": True}),
        ("DELETE", "/admin/users/%00", None),
        ("DELETE", "/admin/tokens/%00", None),
        ("DELETE", "/auth/sessions/%00", None),
        ("GET", "/admin/devices?find=%00", None),
        ("GET", "/admin/devices?after=%00", None),
        ("POST", "/admin/invites", {"email": "a\0@example.org"}),
        ("POST", "/auth/password", {"email": "a\0@example.org", "password": "a\0"}),
    ]
    of_owners: list[tuple[str, str, Any]] = [
        ("PATCH", f"/devices/{MACHINE}/users/%00", {"role": "viewer"}),
        ("DELETE", f"/devices/{MACHINE}/users/%00", None),
        ("DELETE", f"/devices/{MACHINE}/shares/%00", None),
        ("POST", "/devices/claim-share", {"token": "\0"}),
    ]
    house = office.house
    for requests, token in ((of_admins, office.token), (of_owners, house.token("ada"))):
        for method, path, body in requests:
            assert 400 <= (await house.ask(method, path, body, token=token)).status < 500, path

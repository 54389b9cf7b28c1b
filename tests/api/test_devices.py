from typing import Any

import pytest
from quart import Response
from quart_trio import QuartTrio

from support.api_fakes import FakeClaims, FakeDevice, FakeRelay, FakeStore, FakeTokens

KITCHEN = FakeDevice("BRW-00000001", name="Kitchen", created_at_ms=1_000, last_seen_ms=2_000)
OFFICE = FakeDevice("BRW-00000002")
SOMEBODY_ELSES = FakeDevice("BRW-00000003", name="Not yours")
UNKNOWN_ID = "BRW-0000000F"


@pytest.fixture(autouse=True)
def registered(store: FakeStore) -> None:
    store.devices = [SOMEBODY_ELSES, OFFICE, KITCHEN]


async def ask(app: QuartTrio, token: str = "good") -> Response:
    response = await app.test_client().get("/api/devices", headers={"Authorization": f"Bearer {token}"})
    assert isinstance(response, Response)
    return response


async def listed(app: QuartTrio) -> list[dict[str, Any]]:
    response = await ask(app)
    assert response.status_code == 200
    devices: list[dict[str, Any]] = (await response.get_json())["devices"]
    return devices


async def test_lists_what_the_token_names_and_what_its_user_has(
    app: QuartTrio, relay: FakeRelay, store: FakeStore, tokens: FakeTokens
) -> None:
    tokens.good["good"] = FakeClaims("u1", frozenset({OFFICE.id, UNKNOWN_ID}))
    store.owned["u1"] = [KITCHEN.id]
    store.owned["u2"] = [SOMEBODY_ELSES.id]
    relay.online = {KITCHEN.id}
    assert await listed(app) == [
        {
            "id": KITCHEN.id,
            "name": "Kitchen",
            "isOnline": True,
            "lastSeen": "1970-01-01T00:00:02.000Z",
            "firmwareVersion": None,
            "machineType": None,
            "claimedAt": "1970-01-01T00:00:01.000Z",
        },
        {
            "id": OFFICE.id,
            "name": OFFICE.id,
            "isOnline": False,
            "lastSeen": None,
            "firmwareVersion": None,
            "machineType": None,
            "claimedAt": "2023-11-14T22:13:20.000Z",
        },
        {
            "id": UNKNOWN_ID,
            "name": UNKNOWN_ID,
            "isOnline": False,
            "lastSeen": None,
            "firmwareVersion": None,
            "machineType": None,
            "claimedAt": None,
        },
    ]


async def test_a_device_that_is_named_and_owned_is_listed_once(
    app: QuartTrio, store: FakeStore, tokens: FakeTokens
) -> None:
    tokens.good["good"] = FakeClaims("u1", frozenset({KITCHEN.id}))
    store.owned["u1"] = [KITCHEN.id]
    assert [device["name"] for device in await listed(app)] == ["Kitchen"]


async def test_a_star_lists_every_registered_device(app: QuartTrio, tokens: FakeTokens) -> None:
    tokens.good["good"] = FakeClaims("u1", "*")
    assert [device["id"] for device in await listed(app)] == [KITCHEN.id, OFFICE.id, SOMEBODY_ELSES.id]


async def test_nothing_named_and_nothing_owned_is_an_empty_list(app: QuartTrio, tokens: FakeTokens) -> None:
    tokens.good["good"] = FakeClaims()
    assert await listed(app) == []


@pytest.mark.parametrize(
    "authorization", [None, "", "Bearer", "Bearer ", "Basic good", "good", "Bearer  bad", "\xff"]
)
async def test_a_missing_or_bad_token_is_a_401_in_json(
    app: QuartTrio, tokens: FakeTokens, authorization: str | None
) -> None:
    tokens.good["good"] = FakeClaims("u1", "*")
    headers = {} if authorization is None else {"Authorization": authorization}
    response = await app.test_client().get("/api/devices", headers=headers)
    assert response.status_code == 401
    assert response.headers["WWW-Authenticate"] == "Bearer"
    assert (await response.get_json())["error"]


@pytest.mark.parametrize("authorization", ["bearer good", "BEARER  good "])
async def test_the_word_bearer_may_be_written_in_any_case(
    app: QuartTrio, tokens: FakeTokens, authorization: str
) -> None:
    tokens.good["good"] = FakeClaims()
    response = await app.test_client().get("/api/devices", headers={"Authorization": authorization})
    assert response.status_code == 200


async def test_a_registry_that_fails_is_a_503_in_json(
    app: QuartTrio, store: FakeStore, tokens: FakeTokens
) -> None:
    tokens.good["good"] = FakeClaims("u1", "*")
    store.failing = True
    response = await ask(app)
    assert response.status_code == 503
    assert response.headers["Retry-After"] == "5"
    assert "locked" not in (await response.get_json())["error"]


# /api/devices/ID/state


async def ask_for_state(app: QuartTrio, device_id: str) -> Response:
    response = await app.test_client().get(
        f"/api/devices/{device_id}/state", headers={"Authorization": "Bearer good"}
    )
    assert isinstance(response, Response)
    return response


async def test_the_state_of_a_device_is_what_is_known_of_it(
    app: QuartTrio, relay: FakeRelay, store: FakeStore, tokens: FakeTokens
) -> None:
    tokens.good["good"] = FakeClaims("u1")
    store.owned["u1"] = [KITCHEN.id]
    relay.online = {KITCHEN.id}
    relay.states = {
        KITCHEN.id: {"snapshotAgeMs": 1200, "messages": {"status": {"type": "status", "pressure": 9.1}}},
        SOMEBODY_ELSES.id: {"snapshotAgeMs": 0, "messages": {"status": {"secret": True}}},
    }
    response = await ask_for_state(app, KITCHEN.id)
    assert response.status_code == 200
    assert response.headers["Vary"] == "Authorization"
    assert await response.get_json() == {
        "deviceId": KITCHEN.id,
        "isOnline": True,
        "lastSeen": "1970-01-01T00:00:02.000Z",
        "snapshotAgeMs": 1200,
        "messages": {"status": {"type": "status", "pressure": 9.1}},
    }


async def test_a_device_of_which_nothing_is_known_has_an_empty_state(
    app: QuartTrio, tokens: FakeTokens
) -> None:
    tokens.good["good"] = FakeClaims("u1", frozenset({OFFICE.id, UNKNOWN_ID}))
    for device_id in (OFFICE.id, UNKNOWN_ID):
        response = await ask_for_state(app, device_id)
        assert response.status_code == 200
        assert await response.get_json() == {
            "deviceId": device_id,
            "isOnline": False,
            "lastSeen": None,
            "snapshotAgeMs": None,
            "messages": {},
        }


@pytest.mark.parametrize("device_id", [SOMEBODY_ELSES.id, "BRW-0000000A", "x"])
async def test_the_state_of_a_device_that_is_not_ones_own_is_a_404(
    app: QuartTrio, relay: FakeRelay, store: FakeStore, tokens: FakeTokens, device_id: str
) -> None:
    tokens.good["good"] = FakeClaims("u1")
    store.owned["u1"] = [KITCHEN.id]
    relay.states = {SOMEBODY_ELSES.id: {"snapshotAgeMs": 0, "messages": {"status": {"secret": True}}}}
    response = await ask_for_state(app, device_id)
    assert response.status_code == 404
    assert set(await response.get_json()) == {"error"}


async def test_a_star_may_ask_for_the_state_of_every_registered_device(
    app: QuartTrio, tokens: FakeTokens
) -> None:
    tokens.good["good"] = FakeClaims("u1", "*")
    assert (await ask_for_state(app, SOMEBODY_ELSES.id)).status_code == 200
    assert (await ask_for_state(app, UNKNOWN_ID)).status_code == 404


async def test_the_state_needs_a_token_and_the_registry(
    app: QuartTrio, store: FakeStore, tokens: FakeTokens
) -> None:
    assert (await ask_for_state(app, KITCHEN.id)).status_code == 401
    tokens.good["good"] = FakeClaims("u1", "*")
    store.failing = True
    assert (await ask_for_state(app, KITCHEN.id)).status_code == 503

import re
from pathlib import Path
from typing import Any

import pytest
from quart_trio import QuartTrio

from brewos_relay.api.account_rules import AccountRules
from support.household import Household, open_household
from support.sign_ins import PlainVerifier


async def test_health_counts_devices_and_clients(app: QuartTrio, relay: Any) -> None:
    relay.online |= {"BRW-00000001", "BRW-00000002"}
    relay.client_count = 7
    response = await app.test_client().get("/api/health")
    assert response.status_code == 200
    assert response.content_type == "application/json"
    answer = await response.get_json()
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z", answer.pop("timestamp"))
    assert answer == {"status": "ok", "devices": 2, "clients": 7}


async def test_health_is_503_during_drain(app: QuartTrio, relay: Any) -> None:
    relay.closing = True
    response = await app.test_client().get("/api/health")
    assert response.status_code == 503
    assert (await response.get_json())["status"] == "closing"


async def test_health_answers_head_and_ignores_a_query(app: QuartTrio) -> None:
    response = await app.test_client().head("/api/health?x=%00")
    assert response.status_code == 200


async def test_livez_is_ok(app: QuartTrio, relay: Any) -> None:
    relay.closing = True
    response = await app.test_client().get("/livez")
    assert (response.status_code, await response.get_json()) == (200, {"status": "ok"})


async def test_ready_until_the_drain(app: QuartTrio, relay: Any) -> None:
    response = await app.test_client().get("/readyz")
    ready = {"status": "ready", "reasons": [], "degraded": []}
    assert (response.status_code, await response.get_json()) == (200, ready)
    relay.closing = True
    response = await app.test_client().get("/readyz")
    assert response.status_code == 503
    shutting_down = {"status": "not ready", "reasons": ["the relay is shutting down"], "degraded": []}
    assert await response.get_json() == shutting_down
    assert response.headers["Cache-Control"] == "no-store"


async def test_info_has_the_fields_that_apps_need(app: QuartTrio) -> None:
    response = await app.test_client().get("/api/info")
    assert response.status_code == 200
    answer = await response.get_json()
    assert answer["mode"] == "cloud"
    assert answer["apiVersion"] >= 1
    assert {"temperature_control", "power_monitoring"} <= set(answer["features"])
    assert answer["firmwareVersion"] is None
    assert answer["webVersion"] is None
    assert answer["relayVersion"]


async def test_mode_is_cloud(app: QuartTrio) -> None:
    response = await app.test_client().get("/api/mode")
    assert await response.get_json() == {"mode": "cloud", "apMode": False}


async def test_info_lists_ways_to_sign_in_without_secrets(
    tmp_path: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    async with open_household(tmp_path) as house:
        answer = await house.ask("GET", "/info", by=None)
        assert answer.content["signIn"] == {
            "google": None,
            "facebook": False,
            "oidc": None,
            "byCode": [],
            "password": True,
        }
    rules = AccountRules(
        verifiers={"google": PlainVerifier(), "facebook": PlainVerifier(), "oidc": PlainVerifier()},
        google_client_id="id-at-google",
        oidc_issuer="https://issuer.example",
        oidc_audience="id-at-the-issuer",
    )
    async with open_household(tmp_path_factory.mktemp("more"), accounts=rules) as house:
        answer = await house.ask("GET", "/info", by=None)
        assert answer.content["signIn"] == {
            "google": "id-at-google",
            "facebook": True,
            "oidc": {"issuer": "https://issuer.example", "audience": "id-at-the-issuer"},
            "byCode": [],
            "password": True,
        }


async def test_no_public_keys_with_a_shared_secret(house: Household) -> None:
    answer = await house.ask("GET", "/auth/jwks.json", by=None)
    assert answer.content == {"keys": []}

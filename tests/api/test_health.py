import re
from typing import Any

from quart_trio import QuartTrio


async def test_says_who_is_connected(app: QuartTrio, relay: Any) -> None:
    relay.online |= {"BRW-00000001", "BRW-00000002"}
    relay.client_count = 7
    response = await app.test_client().get("/api/health")
    assert response.status_code == 200
    assert response.content_type == "application/json"
    answer = await response.get_json()
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z", answer.pop("timestamp"))
    assert answer == {"status": "ok", "devices": 2, "clients": 7}


async def test_is_503_once_the_relay_is_leaving(app: QuartTrio, relay: Any) -> None:
    relay.closing = True
    response = await app.test_client().get("/api/health")
    assert response.status_code == 503
    assert (await response.get_json())["status"] == "closing"


async def test_answers_head_without_a_query_in_the_way(app: QuartTrio) -> None:
    response = await app.test_client().head("/api/health?x=%00")
    assert response.status_code == 200


async def test_whoever_answers_is_alive(app: QuartTrio, relay: Any) -> None:
    relay.closing = True
    response = await app.test_client().get("/livez")
    assert (response.status_code, await response.get_json()) == (200, {"status": "ok"})


async def test_ready_until_it_leaves(app: QuartTrio, relay: Any) -> None:
    response = await app.test_client().get("/readyz")
    ready = {"status": "ready", "reasons": [], "degraded": []}
    assert (response.status_code, await response.get_json()) == (200, ready)
    relay.closing = True
    response = await app.test_client().get("/readyz")
    assert response.status_code == 503
    leaving = {"status": "not ready", "reasons": ["the relay is leaving"], "degraded": []}
    assert await response.get_json() == leaving
    assert response.headers["Cache-Control"] == "no-store"

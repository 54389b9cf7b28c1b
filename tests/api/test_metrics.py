import logging
from collections.abc import Iterator
from typing import Any

import pytest
import structlog
import trio
import trio.testing
from quart_trio import QuartTrio

from brewos_relay.api.account_rules import AccountRules
from brewos_relay.api.app import create_app
from brewos_relay.api.metrics import MetricsPage, RequestMetrics
from brewos_relay.api.request_limits import RequestLimit, RequestLimits
from brewos_relay.auth.proxy_trust import ProxyTrust
from brewos_relay.telemetry.measurements import RequestCounters
from support.household import Household

TOKEN = "metrics-token-0123456789"


async def render() -> bytes:
    return b"up 1\n"


@pytest.fixture
def measured(house: Household) -> QuartTrio:
    return create_app(
        relay=house.relay,
        store=house.store,
        keys=house.keys,
        proxy_trust=ProxyTrust(),
        accounts=AccountRules(),
        web_dist_path=None,
        metrics=MetricsPage(render, TOKEN),
    )


async def test_metrics_with_their_token(measured: QuartTrio) -> None:
    response = await measured.test_client().get("/metrics", headers={"Authorization": f"Bearer {TOKEN}"})
    assert (response.status_code, await response.get_data()) == (200, b"up 1\n")
    assert response.content_type == "text/plain; version=0.0.4; charset=utf-8"


@pytest.mark.parametrize("header", [None, "", "Bearer", "Bearer no", TOKEN, f"Basic {TOKEN}"])
async def test_metrics_without_their_token_are_refused(measured: QuartTrio, header: str | None) -> None:
    headers = {} if header is None else {"Authorization": header}
    response = await measured.test_client().get("/metrics", headers=headers)
    assert response.status_code == 401
    assert response.headers["WWW-Authenticate"] == "Bearer"


async def test_without_a_configured_token_metrics_are_not_served(app: QuartTrio) -> None:
    response = await app.test_client().get("/metrics", headers={"Authorization": "Bearer "})
    assert response.status_code == 404


def test_the_token_is_not_shown() -> None:
    assert TOKEN not in repr(MetricsPage(render, TOKEN))


class Measuring:
    """An application with its counters."""

    def __init__(self, app: QuartTrio, counters: RequestCounters) -> None:
        self.counters = counters
        app.asgi_app = RequestMetrics(app.asgi_app, counters)  # type: ignore[method-assign]
        self.client = app.test_client()


@pytest.fixture
def measuring(house: Household) -> Measuring:
    counters, request_limits = RequestCounters(), RequestLimits()
    request_limits.sign_ins = RequestLimit("attempts to sign in", burst=1, each_minute=1)
    app = create_app(
        relay=house.relay,
        store=house.store,
        keys=house.keys,
        proxy_trust=ProxyTrust(),
        accounts=AccountRules(),
        web_dist_path=None,
        request_limits=request_limits,
        counters=counters,
    )
    return Measuring(app, counters)


@pytest.fixture
def noted(caplog: pytest.LogCaptureFixture) -> Iterator[pytest.LogCaptureFixture]:
    with caplog.at_level(logging.DEBUG, logger="brewos_relay.api.metrics"):
        yield caplog


async def test_requests_are_counted_by_method_route_and_status(measuring: Measuring) -> None:
    ids = [
        (await measuring.client.open(path, method=method, json=None)).headers["X-Request-Id"]
        for method, path in (
            ("GET", "/api/health"),
            ("GET", "/api/health?token=abc"),
            ("GET", "/api/devices/BRW-12AB34CD/users"),
            ("GET", "/no/such/page"),
            ("BREW", "/api/health"),
        )
    ]
    assert measuring.counters.answered == {
        ("GET", "/api/health", "200"): 2,
        ("GET", "/api/devices/{device_id}/users", "401"): 1,
        ("GET", "none", "404"): 1,
        ("other", "none", "405"): 1,
    }
    assert sum(measuring.counters.took["/api/health"].counts) == 2
    assert measuring.counters.in_flight == 0
    assert len(set(ids)) == 5
    assert {len(each) for each in ids} == {16}


async def test_refused_requests_are_counted_by_reason(measuring: Measuring) -> None:
    for _ in range(3):
        await measuring.client.post("/api/auth/invite", json={"token": "x" * 43})
    assert measuring.counters.refused == {"too_many_attempts_to_sign_in": 2}


async def test_log_entries_have_the_request_id(measuring: Measuring, noted: pytest.LogCaptureFixture) -> None:
    seen: list[dict[str, Any]] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        seen.append(structlog.contextvars.get_contextvars())
        await send({"type": "http.response.start", "status": 204, "headers": [(b"a", b"b")]})
        await send({"type": "http.response.body", "body": b""})

    sent: list[Any] = []

    async def send(event: Any) -> None:
        sent.append(event)

    scope = {"type": "http", "method": "GET", "path": "/secret-path"}
    await RequestMetrics(app, measuring.counters)(scope, None, send)
    start, _ = sent
    assert start["headers"] == [(b"a", b"b"), (b"x-request-id", seen[0]["request"].encode())]
    assert structlog.contextvars.get_contextvars() == {}
    assert "secret-path" not in noted.text
    (record,) = noted.records
    assert record.getMessage() == "GET none: 204"


async def test_requests_are_in_flight_until_they_end_or_fail() -> None:
    counters = RequestCounters()

    async def hangs(scope: Any, receive: Any, send: Any) -> None:
        await trio.sleep_forever()

    async def fails(scope: Any, receive: Any, send: Any) -> None:
        raise ValueError("no")

    scope = {"type": "http", "method": "GET"}
    async with trio.open_nursery() as nursery:
        nursery.start_soon(RequestMetrics(hangs, counters), scope, None, None)
        await trio.testing.wait_all_tasks_blocked()
        assert counters.in_flight == 1
        nursery.cancel_scope.cancel()
    with pytest.raises(ValueError, match="no"):
        await RequestMetrics(fails, counters)(scope, None, None)
    assert counters.in_flight == 0
    assert counters.answered == {("GET", "none", "none"): 2}


async def test_lifespan_events_are_passed_on() -> None:
    counters, seen = RequestCounters(), []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        seen.append(scope["type"])

    await RequestMetrics(app, counters)({"type": "lifespan"}, None, None)
    assert seen == ["lifespan"]
    assert not counters.answered

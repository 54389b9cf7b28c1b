"""Request metrics, request ids, and GET /metrics."""

import logging
import secrets
import time
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final, TypeAlias

from quart import Blueprint, Request, Response, request
from structlog.contextvars import bound_contextvars

from brewos_relay.api.openapi import pattern_of
from brewos_relay.api.payloads import Refused
from brewos_relay.auth.secrets import bearer_matches
from brewos_relay.telemetry.measurements import RequestCounters, method_label
from brewos_relay.telemetry.metrics import CONTENT_TYPE

log = logging.getLogger(__name__)

NO_ROUTE: Final = "none"
"""The route of requests that match no route."""
_ROUTE: Final = "brewos_relay.route"

_AsgiApp: TypeAlias = Callable[[Any, Any, Any], Awaitable[None]]
"""An ASGI application. Servers and frameworks each have their own types for it."""


@dataclass(frozen=True, slots=True)
class MetricsPage:
    """The page at /metrics, and its bearer token."""

    render: Callable[[], Awaitable[bytes]]
    token: str = field(repr=False)


def metrics_blueprint(page: MetricsPage) -> Blueprint:
    """Make the blueprint. Requests without the token get 401."""
    blueprint = Blueprint("metrics", __name__)

    @blueprint.get("/metrics")
    async def metrics() -> Response:
        if not bearer_matches(request.headers.get("Authorization"), page.token):
            raise Refused(
                "The metrics need their bearer token: send 'Authorization: Bearer <token>'.",
                status=401,
                headers={"WWW-Authenticate": "Bearer"},
            )
        text = await page.render()
        return Response(text, content_type=CONTENT_TYPE, headers={"Cache-Control": "no-store"})

    return blueprint


class RequestMetrics:
    """ASGI middleware that counts requests, and gives each an id for its log entries.

    The answer has the id in `X-Request-Id`, so that users can report it. An id from the client is ignored, as
    it could forge log entries.
    """

    def __init__(self, app: _AsgiApp, counters: RequestCounters) -> None:
        self._app = app
        self._counters = counters

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        """Answer a request, and count it even if it fails or is cancelled."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        counters, began_at_s = self._counters, time.perf_counter()
        request_id, status = secrets.token_hex(8), "none"

        async def send_observed(event: Mapping[str, Any]) -> None:
            nonlocal status
            if event["type"] == "http.response.start":
                status = str(event["status"])
                headers = [*event.get("headers", ()), (b"x-request-id", request_id.encode())]
                event = {**event, "headers": headers}
            await send(event)

        counters.in_flight += 1
        with bound_contextvars(request=request_id):
            try:
                await self._app(scope, receive, send_observed)
            finally:
                counters.in_flight -= 1
                took_s = time.perf_counter() - began_at_s
                route = scope.get(_ROUTE, NO_ROUTE)
                method = method_label(scope["method"])
                counters.count_answer(method, route, status, took_s)
                fields = {"route": route, "status": status, "tookMs": f"{took_s * 1000:.1f}"}
                log.debug("%s %s: %s", method, route, status, extra=fields)


def store_route(request: Request) -> None:
    """Store the route pattern of a request for RequestMetrics."""
    if request.url_rule is not None:
        request.scope[_ROUTE] = pattern_of(request.url_rule.rule)  # type: ignore[typeddict-unknown-key]

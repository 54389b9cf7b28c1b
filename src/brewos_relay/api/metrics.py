"""Request metrics, request ids, and GET /metrics."""

import hmac
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
from brewos_relay.telemetry.measurements import RequestCounters, method_label

CONTENT_TYPE: Final = "text/plain; version=0.0.4; charset=utf-8"


@dataclass(frozen=True, slots=True)
class MetricsPage:
    """What /metrics shows, and the token that it takes to see it."""

    render: Callable[[], bytes]
    token: str = field(repr=False)


def metrics_blueprint(page: MetricsPage) -> Blueprint:
    """Make the blueprint; 401 without the token."""
    blueprint = Blueprint("metrics", __name__)

    @blueprint.get("/metrics")
    async def metrics() -> Response:
        if not bearer_matches(request.headers.get("Authorization"), page.token):
            raise Refused(
                "The metrics need their token as a bearer.",
                status=401,
                headers={"WWW-Authenticate": "Bearer"},
            )
        return Response(page.render(), content_type=CONTENT_TYPE, headers={"Cache-Control": "no-store"})

    return blueprint


def bearer_matches(header: str | None, token: str) -> bool:
    """Tell whether an Authorization header has this token, in constant time."""
    scheme, _, given = (header or "").partition(" ")
    matches = hmac.compare_digest(given.strip().encode("utf-8", "surrogatepass"), token.encode())
    return matches and scheme.lower() == "bearer"


log = logging.getLogger(__name__)

NO_ROUTE: Final = "none"
"""Where nothing is served."""
_ROUTE: Final = "brewos_relay.route"

_AsgiApp: TypeAlias = Callable[[Any, Any, Any], Awaitable[None]]
"""An ASGI application, which servers and frameworks have types of their own for."""


class RequestMetrics:
    """An ASGI application around another one.

    The id is in the answer, too, as `X-Request-Id`: whoever has trouble can say it. It is always made here,
    so that nobody writes into the log what they like.
    """

    def __init__(self, app: _AsgiApp, counters: RequestCounters) -> None:
        self._app = app
        self._counters = counters

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        """Answer a request, and count it however it ends."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        counters, began_at_s = self._counters, time.perf_counter()
        request_id, status = secrets.token_hex(8), "none"

        async def send_noted(event: Mapping[str, Any]) -> None:
            nonlocal status
            if event["type"] == "http.response.start":
                status = str(event["status"])
                headers = [*event.get("headers", ()), (b"x-request-id", request_id.encode())]
                event = {**event, "headers": headers}
            await send(event)

        counters.in_flight += 1
        with bound_contextvars(request=request_id):
            try:
                await self._app(scope, receive, send_noted)
            finally:
                counters.in_flight -= 1
                took_s = time.perf_counter() - began_at_s
                route = scope.get(_ROUTE, NO_ROUTE)
                method = method_label(scope["method"])
                counters.note_answered(method, route, status, took_s)
                fields = {"route": route, "status": status, "tookMs": f"{took_s * 1000:.1f}"}
                log.debug("%s %s: %s", method, route, status, extra=fields)


def note_route(request: Request) -> None:
    """Note which route a request is for, as a pattern."""
    if request.url_rule is not None:
        request.scope[_ROUTE] = pattern_of(request.url_rule.rule)  # type: ignore[typeddict-unknown-key]

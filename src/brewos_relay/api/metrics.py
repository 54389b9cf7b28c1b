"""GET /metrics, for whoever has its token."""

import hmac
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final

from quart import Blueprint, Response, request

from brewos_relay.api.answers import Refused

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

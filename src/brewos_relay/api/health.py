"""Whether the relay runs: /api/health for people and apps, /livez and /readyz for whoever runs it."""

from collections.abc import Awaitable, Callable, Sequence
from typing import Literal, TypeAlias

import msgspec
from quart import Blueprint, Response

from brewos_relay.api.answers import iso_utc, json_answer
from brewos_relay.api.openapi import described
from brewos_relay.core.clock import now_ms
from brewos_relay.protocols import RelayView

Problems: TypeAlias = Callable[[], Awaitable[Sequence[str]]]
"""Gives the reasons why nobody should be sent to this server now."""
Degraded: TypeAlias = Callable[[], Sequence[str]]
"""Gives what is wrong with a server that peers can still use."""


class Health(msgspec.Struct):
    """How the relay is, and how many devices and clients are connected."""

    status: Literal["ok", "closing"]
    timestamp: str
    devices: int
    clients: int


class Readiness(msgspec.Struct):
    """Whether the server should be sent anybody, and why not."""

    status: Literal["ready", "not ready"]
    reasons: Sequence[str]
    degraded: Sequence[str]


def health_blueprint(
    *, relay: RelayView, problems: Problems | None = None, degraded: Degraded = tuple
) -> Blueprint:
    """Make the blueprint. The answer is 503 once the relay is leaving, so that nobody new is sent here.

    `problems` is asked by /readyz; without it, the relay's leaving is the only one. `degraded` is listed
    there as well, and changes no status: machines must still be sent here.
    """
    blueprint = Blueprint("health", __name__)

    async def leaving() -> list[str]:
        return ["the relay is leaving"] if relay.closing else []

    find_problems = problems or leaving

    @blueprint.get("/api/health")
    @described("Whether the relay runs; 503 when it is leaving", answer=Health, needs_token=False)
    async def health() -> Response:
        return json_answer(
            Health(
                status="closing" if relay.closing else "ok",
                timestamp=iso_utc(now_ms()),
                devices=relay.device_count,
                clients=relay.client_count,
            ),
            status=503 if relay.closing else 200,
        )

    @blueprint.get("/livez")
    async def livez() -> Response:
        # Whoever can answer this is alive: it takes the event loop, and nothing else.
        return json_answer({"status": "ok"}, headers={"Cache-Control": "no-store"})

    @blueprint.get("/readyz")
    async def readyz() -> Response:
        reasons = await find_problems()
        return json_answer(
            Readiness("not ready" if reasons else "ready", reasons, list(degraded())),
            status=503 if reasons else 200,
            headers={"Cache-Control": "no-store"},
        )

    return blueprint

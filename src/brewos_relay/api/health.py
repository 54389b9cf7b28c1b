"""GET /api/health: whether the relay runs, and how many are connected."""

import time

from quart import Blueprint, Response

from brewos_relay.api.answers import iso_utc, json_answer
from brewos_relay.api.needs import RelayView


def health_blueprint(*, relay: RelayView) -> Blueprint:
    """Make the blueprint. The answer is 503 once the relay is leaving, so that nobody new is sent here."""
    blueprint = Blueprint("health", __name__)

    @blueprint.get("/api/health")
    async def health() -> Response:
        return json_answer(
            {
                "status": "closing" if relay.closing else "ok",
                "timestamp": iso_utc(time.time_ns() // 1_000_000),
                "devices": relay.device_count,
                "clients": relay.client_count,
            },
            status=503 if relay.closing else 200,
        )

    return blueprint

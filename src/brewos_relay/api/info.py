"""GET /api/info and /api/mode: what an app asks first, to learn what it talks to."""

from importlib.metadata import PackageNotFoundError, version
from typing import Final

from quart import Blueprint, Response

from brewos_relay.api.answers import json_answer

API_VERSION: Final = 1
# An app that misses one of these warns that the server is too old for it. Both live in the machine, and
# everything that a machine can do passes through here.
FEATURES: Final = ("temperature_control", "power_monitoring")


def _own_version() -> str:
    try:
        return version("brewos-relay")
    except PackageNotFoundError:
        return "0+unknown"


def info_blueprint() -> Blueprint:
    """Make the blueprint. Without `mode: cloud` an app would take this server for a machine."""
    blueprint = Blueprint("info", __name__)
    own_version = _own_version()

    @blueprint.get("/api/info")
    async def info() -> Response:
        return json_answer(
            {
                "mode": "cloud",
                "apiVersion": API_VERSION,
                "features": FEATURES,
                "relayVersion": own_version,
                # The firmware is the machine's, and an app knows which build of itself it is: it shows that.
                "firmwareVersion": None,
                "webVersion": None,
            }
        )

    @blueprint.get("/api/mode")
    async def mode() -> Response:
        return json_answer({"mode": "cloud", "apMode": False})

    return blueprint

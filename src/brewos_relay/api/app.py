"""The web application: every blueprint, and what holds for all of them."""

import logging
from pathlib import Path
from typing import Final

from quart import Response, request
from quart_trio import QuartTrio
from werkzeug.exceptions import HTTPException

from brewos_relay.api.answers import error_answer
from brewos_relay.api.devices import devices_blueprint
from brewos_relay.api.health import health_blueprint
from brewos_relay.api.info import info_blueprint
from brewos_relay.api.needs import DeviceStore, RelayView, TokenVerifier
from brewos_relay.api.web import PagePath, console_blueprint, web_blueprint
from brewos_relay.errors import RegistryError, TokenRejected

log = logging.getLogger(__name__)

_BODY_S: Final = 30


def create_app(
    *,
    relay: RelayView,
    store: DeviceStore,
    tokens: TokenVerifier,
    web_dist_path: Path | None,
    body_bytes: int = 64 * 1024,
) -> QuartTrio:
    """Make the application that answers everything that is not a WebSocket.

    `web_dist_path` is the folder of a built single-page app; None for the page that comes with the relay.
    `body_bytes` bounds the bodies of requests (413).
    Raises errors.SettingsError if that folder holds no app.
    """
    app = QuartTrio(__name__, static_folder=None, template_folder=None)
    # Set here because Quart reads the first from the environment, and shows tracebacks to everybody with it.
    app.debug = False
    app.config.update(
        PROPAGATE_EXCEPTIONS=False,
        MAX_CONTENT_LENGTH=body_bytes,
        BODY_TIMEOUT=_BODY_S,
        # A large file on a slow line is no failure: whoever serves the connection sees to it that it moves.
        RESPONSE_TIMEOUT=None,
    )
    # A service worker mistakes a redirect for a failure, so no path is answered with one.
    app.url_map.merge_slashes = False
    app.url_map.strict_slashes = False
    app.url_map.converters["page"] = PagePath

    app.register_blueprint(health_blueprint(relay=relay))
    app.register_blueprint(info_blueprint())
    app.register_blueprint(devices_blueprint(relay=relay, store=store, tokens=tokens))
    app.register_blueprint(console_blueprint() if web_dist_path is None else web_blueprint(web_dist_path))

    app.register_error_handler(TokenRejected, _no_token)
    app.register_error_handler(RegistryError, _no_registry)
    app.register_error_handler(HTTPException, _refuse)
    app.after_request(_add_headers)
    return app


async def _no_token(problem: TokenRejected) -> Response:
    return error_answer(str(problem), status=401, headers={"WWW-Authenticate": "Bearer"})


async def _no_registry(problem: RegistryError) -> Response:
    log.warning("the registry could not be read: %s", problem.code)
    return error_answer(
        "The registry cannot be read at the moment; try again soon.",
        status=503,
        headers={"Retry-After": "5"},
    )


async def _refuse(problem: HTTPException) -> Response:
    """Answer what Quart refuses or what failed, in JSON under /api and as plain text elsewhere."""
    status = problem.code or 500
    headers = {name: value for name, value in problem.get_headers() if name.lower() != "content-type"}
    text = f"{problem.name}: {request.method} {request.path}" if status in {404, 405} else problem.name
    if _is_api(request.path):
        return error_answer(text, status=status, headers=headers)
    return Response(
        f"{problem.name}\n", status=status, headers=headers, content_type="text/plain; charset=utf-8"
    )


async def _add_headers(response: Response) -> Response:
    response.headers["X-Content-Type-Options"] = "nosniff"
    if _is_api(request.path):
        # A service worker that caches an answer in spite of no-store must not give it to somebody else.
        response.headers["Cache-Control"] = "no-store"
        response.headers["Vary"] = "Authorization"
    return response


def _is_api(path: str) -> bool:
    return path == "/api" or path.startswith("/api/")

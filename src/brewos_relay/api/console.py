"""The relay's own pages, and what they are made of below /console."""

import hashlib
from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from importlib.resources import files
from pathlib import PurePosixPath
from typing import Any, Final

from quart import Blueprint, Response, abort, current_app, request

from brewos_relay.api.ranges import limit_to_range
from brewos_relay.api.web import CONTENT_TYPES, REVALIDATE

# The first is there beside a built web app too: that one may be built without any way to sign in.
_LOGIN: Final = ("/login", "login.html")
_PAGES: Final = (
    ("/", "index.html"),
    ("/machine/<device:device_id>", "machine.html"),
    ("/pair", "pair.html"),
    ("/admin", "admin.html"),
)
_ALSO: Final = (
    ("/console", "index.html"),
    ("/console/machine/<device:device_id>", "machine.html"),
    ("/console/admin", "admin.html"),
)


@dataclass(frozen=True, slots=True)
class _Page:
    """A file of the package, as it is sent."""

    content: bytes
    content_type: str
    tag: str


def console_blueprint(*, beside_app: bool) -> Blueprint:
    """Make the blueprint; `beside_app` leaves a built web app all but /login and what is below /console."""
    blueprint = Blueprint("console", __name__)
    pages = _read_pages()

    def send(name: str) -> Callable[[], Coroutine[Any, Any, Response]]:
        async def view(device_id: str = "") -> Response:
            return await _send(pages[name])  # it reads the rest from its own address

        return view

    for path, name in (_LOGIN, *_ALSO, *(() if beside_app else _PAGES)):
        blueprint.add_url_rule(path, path.strip("/") or "home", send(name), methods=["GET"])

    @blueprint.get("/console/<name>")
    async def part(name: str) -> Response:
        if name not in pages or name.endswith(".html"):
            abort(404)
        return await _send(pages[name])

    return blueprint


def _read_pages() -> dict[str, _Page]:
    """Read every page, script and style of the console, by its name."""
    folder = files("brewos_relay") / "console"
    return {
        entry.name: _Page(content, CONTENT_TYPES[suffix], hashlib.sha256(content).hexdigest()[:32])
        for entry in folder.iterdir()
        if (suffix := PurePosixPath(entry.name).suffix) in CONTENT_TYPES
        for content in [entry.read_bytes()]
    }


async def _send(page: _Page) -> Response:
    """Send a page or the part that is asked for, or 304 to a browser that has it."""
    response = current_app.response_class(page.content, content_type=page.content_type)
    response.headers["Cache-Control"] = REVALIDATE
    response.set_etag(page.tag)
    await response.make_conditional(request)
    first, stop = limit_to_range(response, request, size_bytes=len(page.content))
    if (first, stop) != (0, len(page.content)):
        response.set_data(page.content[first:stop])
    return response

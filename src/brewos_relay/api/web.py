"""Files for browsers: those of somebody's built single-page app."""

from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from stat import S_ISREG
from typing import Final

import trio
from quart import Blueprint, Response, abort, current_app, request
from werkzeug.routing import PathConverter

from brewos_relay.errors import SettingsError

INDEX: Final = "index.html"
READ_BYTES: Final = 128 * 1024

REVALIDATE: Final = "no-cache"
_IMMUTABLE: Final = "public, max-age=31536000, immutable"

# A table of our own: a host's idea of what .js is can be anything, and a wrong one keeps an app from loading.
CONTENT_TYPES: Final = {
    ".avif": "image/avif",
    ".css": "text/css; charset=utf-8",
    ".gif": "image/gif",
    ".html": "text/html; charset=utf-8",
    ".ico": "image/x-icon",
    ".jpeg": "image/jpeg",
    ".jpg": "image/jpeg",
    ".js": "text/javascript; charset=utf-8",
    ".json": "application/json",
    ".map": "application/json",
    ".mjs": "text/javascript; charset=utf-8",
    ".mp3": "audio/mpeg",
    ".mp4": "video/mp4",
    ".otf": "font/otf",
    ".pdf": "application/pdf",
    ".png": "image/png",
    ".svg": "image/svg+xml",
    ".ttf": "font/ttf",
    ".txt": "text/plain; charset=utf-8",
    ".wasm": "application/wasm",
    ".webm": "video/webm",
    ".webmanifest": "application/manifest+json",
    ".webp": "image/webp",
    ".woff": "font/woff",
    ".woff2": "font/woff2",
    ".xml": "application/xml",
}


class PagePath(PathConverter):
    """Match every path except /api and what is below it, so that those stay free for JSON answers."""

    regex = r"(?!api(?:/|$)).*?"


@dataclass(frozen=True, slots=True)
class _File:
    """A file that may be sent, as it was when it was found."""

    path: Path
    size_bytes: int
    changed_ns: int


def web_blueprint(root: Path) -> Blueprint:
    """Make the blueprint that serves a built single-page app from a folder.

    Every path that is no file is answered with the app's index.html, since the app has its own idea of paths;
    only below /assets, where names are hashed, a missing file is missing. Raises errors.SettingsError.
    """
    if not (root / INDEX).is_file():
        raise SettingsError(
            f"WEB_DIST_PATH is {str(root)!r}, where there is no {INDEX}: "
            "give the folder of a built web app, or leave it out"
        )
    blueprint = Blueprint("web", __name__)

    @blueprint.get("/", defaults={"path": ""})
    @blueprint.get("/<page:path>")
    async def web(path: str) -> Response:
        if not _is_plain(path, request.scope.get("raw_path", b"")):
            abort(404)
        immutable = path.startswith("assets/")
        found = await trio.to_thread.run_sync(_find, root, path)
        if found is None and immutable:
            abort(404)
        found = found or await trio.to_thread.run_sync(_find, root, INDEX)
        if found is None:
            abort(503)  # the app is just being replaced
        return await _send(found, immutable=immutable)

    return blueprint


async def _send(found: _File, *, immutable: bool) -> Response:
    """Send a file, or 304 to somebody who has it.

    Range requests get the whole file, which HTTP allows (RFC 9110 §14.2).
    """
    body = current_app.response_class.file_body_class(found.path, buffer_size=READ_BYTES)
    response = current_app.response_class(body, content_type=_content_type(found.path))
    response.content_length = found.size_bytes
    response.headers["Cache-Control"] = _IMMUTABLE if immutable else REVALIDATE
    response.set_etag(f"{found.changed_ns:x}-{found.size_bytes:x}")
    return await response.make_conditional(request)


def _is_plain(path: str, raw_path: bytes) -> bool:
    """Whether a path means the same to everybody: nothing hidden in escapes, no way up, no private file."""
    raw_path = raw_path.lower()
    if b"%2f" in raw_path or b"%5c" in raw_path:
        return False
    if "\\" in path or any(character < " " or character == "\x7f" for character in path):
        return False
    return all(not part.startswith(".") or part == ".well-known" for part in path.split("/"))


def _find(root: Path, path: str) -> _File | None:
    """Find a regular file inside of `root`; links may not lead out of it. Runs in a worker thread."""
    try:
        root = root.resolve(strict=True)
        target = (root / PurePosixPath(path)).resolve(strict=True)
        if not target.is_relative_to(root):
            return None
        status = target.stat()
    except (OSError, RuntimeError, ValueError):
        return None
    if not S_ISREG(status.st_mode):
        return None
    return _File(target, status.st_size, status.st_mtime_ns)


def _content_type(path: Path) -> str:
    if not path.suffix and path.parent.name == ".well-known":
        return "application/json"  # association files have no suffix and are JSON
    return CONTENT_TYPES.get(path.suffix.lower(), "application/octet-stream")

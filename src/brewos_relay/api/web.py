"""Pages and files for browsers: a built single-page app, and the console that is part of the relay."""

import hashlib
import os
from collections.abc import Callable, Coroutine, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from pathlib import Path, PurePosixPath
from stat import S_ISREG
from typing import Any, BinaryIO, Final, Self

import trio
from quart import Blueprint, Response, abort, current_app, request
from quart.wrappers.response import ResponseBody
from werkzeug.routing import PathConverter

from brewos_relay.api.app_index import MOST_BYTES, with_entry_script
from brewos_relay.api.page_texts import language_for, read_catalogues
from brewos_relay.api.ranges import limit_to_range
from brewos_relay.errors import SettingsError

INDEX: Final = "index.html"
READ_BYTES: Final = 128 * 1024

REVALIDATE: Final = "no-cache"
_IMMUTABLE: Final = "public, max-age=31536000, immutable"

# A fixed table: the MIME types of a host may be wrong, and a wrong type for .js keeps an app from loading.
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


class PagePathConverter(PathConverter):
    """Match every path except /api and paths below it, which have JSON answers."""

    regex = r"(?!api(?:/|$)).*?"


@dataclass(frozen=True, slots=True)
class _File:
    """A file to send, with its state when it was found. None of its `names` below `root` is a link."""

    root: Path
    names: tuple[str, ...]
    device: int
    inode: int
    size_bytes: int
    changed_ns: int


class _FileBody(ResponseBody):
    """An answer body: a file or a part of it.

    The file is opened when it is sent, and must still be the file that was found.
    """

    def __init__(self, found: _File, first: int, stop: int) -> None:
        self._found = found
        self._first = first
        self._left = stop - first
        self._file: BinaryIO | None = None

    async def __aenter__(self) -> Self:
        self._file = await trio.to_thread.run_sync(_open, self._found, self._first)
        return self

    async def __aexit__(self, *_problem: object) -> None:
        if self._file is not None:
            self._file.close()

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> bytes:
        if self._file is None or self._left == 0:
            raise StopAsyncIteration
        chunk = await trio.to_thread.run_sync(self._file.read, min(READ_BYTES, self._left))
        if not chunk:
            raise StopAsyncIteration
        self._left -= len(chunk)
        return chunk


def web_blueprint(root: Path) -> Blueprint:
    """Make the blueprint that serves a built single-page app from a folder.

    A path without a file gets index.html, as the app has its own routes. Only below /assets, where names are
    hashed, it gets 404. index.html is sent with a script that leads signed-out users to the relay's own
    pages, see `app_index`. Raises errors.SettingsError if the folder has no index.html.
    """
    if _find(root, INDEX) is None:
        raise SettingsError(
            f"WEB_DIST_PATH must be the folder of a built web app, got {str(root)!r}: its {INDEX} is missing,"
            " or is a link that leads out of the folder. Without WEB_DIST_PATH, the relay serves its console"
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
            abort(503)  # the app is being replaced right now
        if found.names == (INDEX,) and found.size_bytes <= MOST_BYTES:
            return await _send_index(found)
        return await _send_file(found, immutable=immutable)

    return blueprint


async def _send_index(found: _File) -> Response:
    """Send the index page of the app, with the relay's script."""
    try:
        content = with_entry_script(await trio.to_thread.run_sync(_read, found))
    except OSError:
        abort(503)  # the app is being replaced right now
    return await _send_page(_page(content, _content_type(found.names)))


async def _send_file(found: _File, *, immutable: bool) -> Response:
    """Send a file or the requested part of it, or 304 if the browser has it."""
    whole = _FileBody(found, 0, found.size_bytes)
    response = current_app.response_class(whole, content_type=_content_type(found.names))
    response.content_length = found.size_bytes
    response.headers["Cache-Control"] = _IMMUTABLE if immutable else REVALIDATE
    response.set_etag(f"{found.changed_ns:x}-{found.size_bytes:x}")
    await response.make_conditional(request)
    first, stop = limit_to_range(response, request, size_bytes=found.size_bytes)
    if (first, stop) != (0, found.size_bytes):
        response.response = _FileBody(found, first, stop)
    return response


def _is_plain(path: str, raw_path: bytes) -> bool:
    """Tell whether a path is safe: no escaped slashes, no way up, no private file."""
    raw_path = raw_path.lower()
    if b"%2f" in raw_path or b"%5c" in raw_path:
        return False
    if "\\" in path or any(character < " " or character == "\x7f" for character in path):
        return False
    return _is_public(path.split("/"))


def _is_public(names: Sequence[str]) -> bool:
    """Tell whether no name begins with a dot, except .well-known (RFC 8615) at the top."""
    return all(
        not name.startswith(".") or (number == 0 and name == ".well-known")
        for number, name in enumerate(names)
    )


def _find(root: Path, path: str) -> _File | None:
    """Find a regular file below `root`. Links must not lead out of it. Runs in a worker thread."""
    try:
        root = root.resolve(strict=True)
        names = (root / PurePosixPath(path)).resolve(strict=True).relative_to(root).parts
        if not names or not _is_public(names):  # a link may lead to a private file
            return None
        file = _open_below(root, names)
        try:
            status = os.fstat(file)
        finally:
            os.close(file)
    except (OSError, RuntimeError, ValueError):
        return None
    if not S_ISREG(status.st_mode):
        return None
    return _File(root, names, status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns)


def _open(found: _File, first: int) -> BinaryIO:
    """Open a file that was found, at a byte. Raises OSError if the file has been replaced.

    Runs in a worker thread.
    """
    file = _open_below(found.root, found.names)
    status = os.fstat(file)
    now = (status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns)
    if now != (found.device, found.inode, found.size_bytes, found.changed_ns):
        os.close(file)
        raise OSError(f"{'/'.join(found.names)} was replaced during the request")
    os.lseek(file, first, os.SEEK_SET)
    return os.fdopen(file, "rb", buffering=0)


def _read(found: _File) -> bytes:
    """Read a file that was found. Raises OSError like `_open`. Runs in a worker thread."""
    with _open(found, 0) as file:
        return file.read(found.size_bytes)


def _open_below(root: Path, names: Sequence[str]) -> int:
    """Open a file by its names below a folder. Fails if one of them is a link, even one created just now."""
    folder = os.open(root, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        for name in names[:-1]:
            flags = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
            below = os.open(name, flags, dir_fd=folder)
            os.close(folder)
            folder = below
        # O_NONBLOCK: opening a pipe must not wait for its other end.
        return os.open(names[-1], os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, dir_fd=folder)
    finally:
        os.close(folder)


def _content_type(names: Sequence[str]) -> str:
    suffix = PurePosixPath(names[-1]).suffix
    if not suffix and names[:-1] == (".well-known",):
        return "application/json"  # app association files are JSON without a suffix
    return CONTENT_TYPES.get(suffix.lower(), "application/octet-stream")


# These exist besides a built web app too, as that app may be built without a way to sign in.
_ENTRIES: Final = (("/login", "login.html"), ("/pair", "pair.html"))
_PAGES: Final = (
    ("/", "index.html"),
    ("/settings", "settings.html"),
    ("/machine/<device:device_id>", "machine.html"),
    ("/admin", "admin.html"),
)
_ALSO: Final = (
    ("/console", "index.html"),
    ("/console/machine/<device:device_id>", "machine.html"),
    ("/console/pair", "pair.html"),
    ("/console/admin", "admin.html"),
    ("/console/settings", "settings.html"),
)


@dataclass(frozen=True, slots=True)
class _Page:
    """A page or a part of one, in memory."""

    content: bytes
    content_type: str
    tag: str


@dataclass(frozen=True, slots=True)
class PublishedCa:
    """The certificate of the local CA, which users can install, and its SHA-256 fingerprint."""

    pem: bytes
    fingerprint: str


FindCa = Callable[[], PublishedCa | None]


def no_ca() -> None:
    """Return no local CA, as on a server whose certificate is not one of its own CA."""


CA_PATH: Final = "/ca.crt"
CA_TYPE: Final = "application/x-x509-ca-cert"
_FINGERPRINT: Final = b"<!-- fingerprint -->"
_HTML: Final = CONTENT_TYPES[".html"]
_CONSOLE: Final = files("brewos_relay") / "console"


def console_blueprint(*, beside_app: bool, local_ca: FindCa = no_ca) -> Blueprint:
    """Make the blueprint of the console.

    `beside_app` limits it to /login, /pair, paths below /console, and the pages of the local CA: /ca.crt, and
    /ca with instructions. Both get 404 if `local_ca` returns None.
    """
    blueprint = Blueprint("console", __name__)
    pages, parts = _read_pages(), _read_parts()

    def send(name: str) -> Callable[[], Coroutine[Any, Any, Response]]:
        async def view(device_id: str = "") -> Response:
            # The page reads the device id from its URL.
            return await _send_in_language({language: each[name] for language, each in pages.items()})

        return view

    for path, name in (*_ENTRIES, *_ALSO, *(() if beside_app else _PAGES)):
        blueprint.add_url_rule(path, path.strip("/") or "home", send(name), methods=["GET"])

    @blueprint.get("/console/<name>")
    async def part(name: str) -> Response:
        if name not in parts:
            abort(404)
        return await _send_page(parts[name])

    @blueprint.get("/ca")
    async def ca_page() -> Response:
        found = local_ca()
        if found is None:
            abort(404)
        fingerprint = found.fingerprint.encode()
        return await _send_in_language(
            {
                language: _page(each["ca.html"].content.replace(_FINGERPRINT, fingerprint), _HTML)
                for language, each in pages.items()
            }
        )

    @blueprint.get(CA_PATH)
    async def ca_certificate() -> Response:
        found = local_ca()
        if found is None:
            abort(404)
        # With this type, phones offer to install it.
        return await _send_page(_page(found.pem, CA_TYPE))

    return blueprint


@cache
def _read_parts() -> Mapping[str, _Page]:
    """Read the scripts, styles and pictures of the console, by name."""
    return {
        entry.name: _page(entry.read_bytes(), CONTENT_TYPES[suffix])
        for entry in _CONSOLE.iterdir()
        if (suffix := PurePosixPath(entry.name).suffix) in CONTENT_TYPES and suffix != ".html"
    }


@cache
def _read_pages() -> Mapping[str, Mapping[str, _Page]]:
    """Read the pages of the console, by language and name."""
    pages = {
        entry.name: entry.read_text("utf-8") for entry in _CONSOLE.iterdir() if entry.name.endswith(".html")
    }
    scripts = {name: part.content.decode() for name, part in _read_parts().items() if name.endswith(".js")}
    return {
        language: {
            name: _page(catalogue.render(page, scripts=scripts).encode(), _HTML)
            for name, page in pages.items()
        }
        for language, catalogue in read_catalogues(_CONSOLE / "texts").items()
    }


async def _send_in_language(pages: Mapping[str, _Page]) -> Response:
    """Send the page in the best language for the request."""
    language = language_for(request, tuple(pages))
    response = await _send_page(pages[language])
    response.vary.update(["Accept-Language", "Cookie"])
    response.content_language.add(language)
    return response


def _page(content: bytes, content_type: str) -> _Page:
    return _Page(content, content_type, hashlib.sha256(content).hexdigest()[:32])


async def _send_page(page: _Page) -> Response:
    """Send a page or the requested part of it, or 304 if the browser has it."""
    response = current_app.response_class(page.content, content_type=page.content_type)
    response.headers["Cache-Control"] = REVALIDATE
    response.set_etag(page.tag)
    await response.make_conditional(request)
    first, stop = limit_to_range(response, request, size_bytes=len(page.content))
    if (first, stop) != (0, len(page.content)):
        response.set_data(page.content[first:stop])
    return response

"""The pages of the console, which are part of the relay.

The files that a page loads have the version of the console in their URL. So browsers keep them until the next
version, and the modules of a page all are of the same version. The page names its modules in advance, so that
a browser loads them at once instead of one import after the other.
"""

import hashlib
import re
from collections.abc import Callable, Coroutine, Mapping
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from pathlib import PurePosixPath
from typing import Any, Final

from quart import Blueprint, Response, abort, g, request
from werkzeug.exceptions import HTTPException

from brewos_relay.api.app_index import ENTRY
from brewos_relay.api.console_app import MANIFEST, OFFLINE, SCOPE, WORKER, manifest_of, worker_of
from brewos_relay.api.content_codings import CompressedContents
from brewos_relay.api.error_handlers import http_exception
from brewos_relay.api.page_texts import Catalogue, Scripts, language_for, read_catalogues, read_pages
from brewos_relay.api.payloads import is_api_path
from brewos_relay.api.static_content import CONTENT_TYPES, IMMUTABLE, REVALIDATE, Page, make_page, send_page

CALLBACK_PATH: Final = "/login/callback"
"""The page that identity providers send browsers back to."""

# These exist besides a built web app too, as that app may be built without a way to sign in.
_ENTRIES: Final = (("/login", "login.html"), (CALLBACK_PATH, "login.html"), ("/pair", "pair.html"))
_PAGES: Final = (
    ("/", "index.html"),
    ("/settings", "settings.html"),
    ("/machine/<device:device_id>", "machine.html"),
    ("/machine/<device:device_id>/shots", "shots.html"),
    ("/admin", "admin.html"),
)
_ALSO: Final = (
    ("/console", "index.html"),
    ("/console/machine/<device:device_id>", "machine.html"),
    ("/console/machine/<device:device_id>/shots", "shots.html"),
    ("/console/pair", "pair.html"),
    ("/console/admin", "admin.html"),
    ("/console/settings", "settings.html"),
    ("/console/offline", "offline.html"),
)


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
FILES: Final = "/console/files"
"""The path of the files of the pages, with their version below it."""
_FINGERPRINT: Final = b"<!-- fingerprint -->"
_ICON: Final = "public, max-age=86400"
_HTML: Final = CONTENT_TYPES[".html"]
_CONSOLE: Final = files("brewos_relay") / "console"


def console_blueprint(
    compressed: CompressedContents, *, beside_app: bool, local_ca: FindCa = no_ca
) -> Blueprint:
    """Make the blueprint of the console.

    `beside_app` limits it to /login, /pair, paths below /console, and the pages of the local CA: /ca.crt, and
    /ca with instructions. Both get 404 if `local_ca` returns None.
    """
    blueprint = Blueprint("console", __name__)
    console = _read_console()
    pages, parts = console.pages, console.parts

    def send(name: str) -> Callable[[], Coroutine[Any, Any, Response]]:
        async def view(device_id: str = "") -> Response:
            # The page reads the device id from its URL.
            return await _send_in_language(
                {language: each[name] for language, each in pages.items()}, compressed
            )

        return view

    for path, name in (*_ENTRIES, *_ALSO, *(() if beside_app else _PAGES)):
        blueprint.add_url_rule(path, path.strip("/") or "home", send(name), methods=["GET"])

    manifests = {
        language: make_page(content, CONTENT_TYPES[".webmanifest"])
        for language, content in console.manifests(beside_app=beside_app).items()
    }

    @blueprint.get(f"/console/{MANIFEST}")
    async def manifest() -> Response:
        return await _send_in_language(manifests, compressed)

    @blueprint.get(f"/console/{WORKER}")
    async def worker() -> Response:
        response = await _send_in_language(console.workers, compressed)
        response.headers["Service-Worker-Allowed"] = SCOPE
        return response

    @blueprint.get("/console/<path:name>")
    async def part(name: str) -> Response:
        if name not in parts:
            abort(404)
        cache = _ICON if name.endswith(".png") else REVALIDATE
        return await send_page(parts[name], compressed, cache=cache)

    @blueprint.get(f"{FILES}/<asked>/<path:name>")
    async def versioned_part(asked: str, name: str) -> Response:
        if name not in parts:
            abort(404)
        # A page of another instance may ask for its own version during an update.
        cache = IMMUTABLE if asked == console.version else REVALIDATE
        return await send_page(parts[name], compressed, cache=cache)

    async def answer_not_found(problem: HTTPException) -> Response:
        # Only a browser that opens a page gets one.
        if is_api_path(request.path) or "text/html" not in request.headers.get("Accept", ""):
            return await http_exception(problem)
        g.part = blueprint.name
        response = await _send_in_language(
            {language: each["not_found.html"] for language, each in pages.items()}, compressed
        )
        response.vary.add("Accept")
        response.status_code = 404
        return response

    blueprint.app_errorhandler(404)(answer_not_found)

    @blueprint.get("/ca")
    async def ca_page() -> Response:
        found = local_ca()
        if found is None:
            abort(404)
        # A phone breaks the line after a colon, so that both are easy to compare.
        fingerprint = found.fingerprint.replace(":", ":<wbr>").encode()
        return await _send_in_language(
            {
                language: make_page(each["ca.html"].content.replace(_FINGERPRINT, fingerprint), _HTML)
                for language, each in pages.items()
            },
            compressed,
        )

    @blueprint.get(CA_PATH)
    async def ca_certificate() -> Response:
        found = local_ca()
        if found is None:
            abort(404)
        # With this type, phones offer to install it.
        return await send_page(make_page(found.pem, CA_TYPE), compressed)

    return blueprint


_KEPT: Final = (".css", ".js", ".svg")
"""The kinds of files that pages load, and the service worker keeps."""
_FIRST_SCRIPT: Final = re.compile("<script ")
_REFERENCE: Final = re.compile(r'(?<==")/console/([^"/]+\.(?:css|js|svg))(?=")')


@dataclass(frozen=True, slots=True)
class _Console:
    """The pages by language and name, their files by path, and the version of the files.

    The service worker has a form for each language.
    """

    catalogues: Mapping[str, Catalogue]
    pages: Mapping[str, Mapping[str, Page]]
    parts: Mapping[str, Page]
    version: str
    workers: Mapping[str, Page]

    def manifests(self, *, beside_app: bool) -> dict[str, bytes]:
        """Write the manifest in each language."""
        return {
            language: manifest_of(catalogue, beside_app=beside_app)
            for language, catalogue in self.catalogues.items()
        }


@cache
def _read_console() -> _Console:
    libraries = [(f"vendor/{folder.name}/", folder) for folder in (_CONSOLE / "vendor").iterdir()]
    parts = {
        path + entry.name: make_page(entry.read_bytes(), CONTENT_TYPES[suffix])
        for path, folder in [("", _CONSOLE), *libraries]
        for entry in folder.iterdir()
        if (suffix := PurePosixPath(entry.name).suffix) in CONTENT_TYPES
        and suffix != ".html"
        and entry.name != WORKER
    }
    tags = "".join(f"{name} {part.tag}\n" for name, part in sorted(parts.items()))
    version = hashlib.sha256(tags.encode()).hexdigest()[:16]
    scripts = Scripts({name: part.content.decode() for name, part in parts.items() if name.endswith(".js")})
    pages = {
        name: (with_versions(page, version, scripts), scripts.literals(page))
        for name, page in read_pages(_CONSOLE).items()
    }
    catalogues = read_catalogues(_CONSOLE / "texts")
    in_languages = {
        language: {
            name: make_page(catalogue.render(page, named=named).encode(), _HTML)
            for name, (page, named) in pages.items()
        }
        for language, catalogue in catalogues.items()
    }
    source = (_CONSOLE / WORKER).read_bytes()
    kept = [f"{FILES}/{version}/{name}" for name in parts if name.endswith(_KEPT) and name != ENTRY]
    workers = {
        language: make_page(
            worker_of(source, catalogue, files=kept, offline=in_languages[language][OFFLINE].tag),
            CONTENT_TYPES[".js"],
        )
        for language, catalogue in catalogues.items()
    }
    return _Console(catalogues, in_languages, parts, version, workers)


def with_versions(page: str, version: str, scripts: Scripts) -> str:
    """Return a page that loads its files by version, and the modules of its scripts in advance."""
    links = "".join(
        f'<link rel="modulepreload" href="/console/{name}">\n'
        for name in scripts.of_page(page)
        if f'src="/console/{name}"' not in page
    )
    return _REFERENCE.sub(rf"{FILES}/{version}/\1", _FIRST_SCRIPT.sub(rf"{links}\g<0>", page, count=1))


async def _send_in_language(pages: Mapping[str, Page], compressed: CompressedContents) -> Response:
    """Send the page in the best language for the request."""
    language = language_for(request, tuple(pages))
    response = await send_page(pages[language], compressed)
    response.vary.update(["Accept-Language", "Cookie"])
    response.content_language.add(language)
    return response

"""The console as an installed app: its manifest, and its service worker."""

import json
from collections.abc import Iterable
from typing import Any, Final

from brewos_relay.api.page_texts import Catalogue
from brewos_relay.notifications import KINDS

SCOPE: Final = "/console"
"""The scope of the service worker: below it are all pages for signed-in users."""
WORKER: Final = "worker.js"
MANIFEST: Final = "manifest.webmanifest"
OFFLINE: Final = "offline.html"
"""The page that the service worker shows if the server cannot be reached."""

_PAPER: Final = "#faf7f4"
_ACCENT: Final = "#96480f"


def manifest_of(catalogue: Catalogue, *, beside_app: bool) -> bytes:
    """Write the manifest (W3C Web Application Manifest). A web app at / keeps the paths outside of SCOPE."""
    icons = [
        ("icon-192.png", 192, "any"),
        ("icon-512.png", 512, "any"),
        ("icon-maskable-512.png", 512, "maskable"),
    ]
    content = {
        "id": SCOPE,
        "start_url": SCOPE,
        "scope": SCOPE if beside_app else "/",
        "name": "brewos-relay",
        "short_name": "brewos-relay",
        "description": catalogue.texts["app.description"],
        "lang": catalogue.language,
        "display": "standalone",
        "background_color": _PAPER,
        "theme_color": _ACCENT,
        "icons": [
            {"src": f"/console/{name}", "sizes": f"{size}x{size}", "type": "image/png", "purpose": purpose}
            for name, size, purpose in icons
        ],
    }
    return _json(content)


def worker_of(source: bytes, catalogue: Catalogue, *, files: Iterable[str], offline: str) -> bytes:
    """Put the data that the service worker needs before its source.

    `files` are the paths of the files that it keeps, which contain their version. `offline` is the entity tag
    of the page for times without a server: the worker gets a new page when the tag changes.
    """
    served = {
        "language": catalogue.language,
        "files": sorted(files),
        "offline": offline,
        "notifications": {
            name: {
                "title": [kind.title, catalogue.texts[f"notification.{name}"]],
                "text": [kind.text, catalogue.texts[f"notification.{name}-text"]],
            }
            for name, kind in KINDS.items()
        },
    }
    return b"const served = " + _json(served) + b";\n" + source


def _json(content: Any) -> bytes:
    return json.dumps(content, ensure_ascii=False).encode()

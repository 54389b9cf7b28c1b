"""Content codings (RFC 9110 §8.4): public files compressed with Brotli or gzip, once for each content.

Only pages and files that are the same for everyone are compressed. The length of a compressed answer tells
about its content, so a page of another site could guess the secrets of an answer that contains its input
(BREACH).
"""

import gzip
from collections import OrderedDict
from collections.abc import Callable, Hashable
from typing import Final

import trio
from quart import Request, abort

try:
    import brotli
except ImportError:  # there are no wheels for some processors
    brotli = None

BROTLI: Final = "br"
GZIP: Final = "gzip"
CODINGS: Final = (BROTLI, GZIP) if brotli is not None else (GZIP,)
"""The codings that this server produces, the smaller one first."""
SUFFIXES: Final = {BROTLI: ".br", GZIP: ".gz"}
"""What build tools append to the name of a compressed file."""

MOST_INPUT_BYTES: Final = 4 * 1024 * 1024
"""Larger files are only compressed if there is a compressed file beside them."""
_MOST_KEPT_BYTES: Final = 16 * 1024 * 1024
_MOST_KEPT: Final = 1024
_BEST_UP_TO_BYTES: Final = 256 * 1024
"""Up to this size, Brotli compresses as well as it can. That takes a second for each megabyte."""

_COMPRESSIBLE: Final = frozenset(
    {
        "application/json",
        "application/manifest+json",
        "application/wasm",
        "application/xml",
        "font/otf",
        "font/ttf",
        "image/svg+xml",
        "image/x-icon",
    }
)


def is_compressible(content_type: str) -> bool:
    """Tell whether content of a type becomes smaller. Pictures and web fonts are compressed already."""
    kind = content_type.partition(";")[0]
    return kind.startswith("text/") or kind in _COMPRESSIBLE


def wanted_codings(request: Request) -> list[str]:
    """List the codings for the answer to a request, the best one first. Without any, it is sent as it is.

    A request for a part of a file gets a part of the original.
    """
    accepted = request.accept_encodings
    if request.method == "GET" and "Range" in request.headers and _allows_original(request):
        return []
    at_least = accepted.quality("identity")
    wanted = [name for name in (BROTLI, GZIP) if accepted.quality(name) > 0]
    return sorted(
        (name for name in wanted if accepted.quality(name) >= at_least),
        key=accepted.quality,
        reverse=True,
    )


def require_original(request: Request) -> None:
    """End a request with 406 if its Accept-Encoding excludes an answer without a coding."""
    if not _allows_original(request):
        abort(406)


def _allows_original(request: Request) -> bool:
    accepted = request.accept_encodings
    is_named = any(name.lower() in {"identity", "*"} for name, _ in accepted)
    return not is_named or accepted.quality("identity") > 0


class CompressedContents:
    """A cache of compressed contents. The least recently used ones are dropped.

    Requests for the same content wait for one compression, in a thread; only one content is compressed at a
    time.
    """

    def __init__(self, *, most_bytes: int = _MOST_KEPT_BYTES) -> None:
        self._most_bytes = most_bytes
        self._kept: OrderedDict[Hashable, bytes | None] = OrderedDict()
        self._kept_bytes = 0
        self._working: dict[Hashable, trio.Event] = {}
        self._limiter = trio.CapacityLimiter(1)

    async def find(self, content: Hashable, coding: str, read: Callable[[], bytes]) -> bytes | None:
        """Return a content in a coding, or None if it does not become smaller.

        `read` returns the content that `content` identifies. It runs in a thread; its exceptions are raised.
        """
        key = (content, coding)
        while key not in self._kept:
            if (working := self._working.get(key)) is not None:
                await working.wait()
                continue
            self._working[key] = trio.Event()
            try:
                self._keep(key, await trio.to_thread.run_sync(_compress, coding, read, limiter=self._limiter))
            finally:
                self._working.pop(key).set()
        self._kept.move_to_end(key)
        return self._kept[key]

    def _keep(self, key: Hashable, compressed: bytes | None) -> None:
        self._kept[key] = compressed
        self._kept_bytes += len(compressed or b"")
        while len(self._kept) > 1 and (self._kept_bytes > self._most_bytes or len(self._kept) > _MOST_KEPT):
            _, dropped = self._kept.popitem(last=False)
            self._kept_bytes -= len(dropped or b"")


def _compress(coding: str, read: Callable[[], bytes]) -> bytes | None:
    content = read()
    if coding == GZIP:
        compressed = gzip.compress(content, mtime=0)
    else:
        quality = 11 if len(content) <= _BEST_UP_TO_BYTES else 9
        compressed = brotli.compress(content, quality=quality)
    return compressed if len(compressed) < len(content) else None

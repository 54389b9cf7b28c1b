"""Answers with static content: its type, entity tag, coding and range, or 304 if the browser has it."""

import hashlib
from dataclasses import dataclass
from functools import partial
from typing import Final

from quart import Response, current_app, request
from quart.wrappers.response import ResponseBody

from brewos_relay.api.content_codings import (
    CODINGS,
    CompressedContents,
    is_compressible,
    require_original,
    wanted_codings,
)
from brewos_relay.api.ranges import limit_to_range

REVALIDATE: Final = "no-cache"
IMMUTABLE: Final = "public, max-age=31536000, immutable"

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


@dataclass(frozen=True, slots=True)
class Page:
    """A page or a part of one, in memory. `tag` identifies its content."""

    content: bytes
    content_type: str
    tag: str


def make_page(content: bytes, content_type: str) -> Page:
    """Make a page of a content."""
    return Page(content, content_type, hashlib.sha256(content).hexdigest()[:32])


async def send_page(page: Page, compressed: CompressedContents, *, cache: str = REVALIDATE) -> Response:
    """Send a page, compressed if the browser accepts that, or the requested part of it."""
    if is_compressible(page.content_type):
        for coding in wanted_codings(request):
            if coding in CODINGS:
                content = await compressed.find(page.tag, coding, partial(bytes, page.content))
                if content is not None:
                    return await start_answer(
                        content, len(content), page.content_type, tag=page.tag, cache=cache, coding=coding
                    )
    response = await start_answer(
        page.content, len(page.content), page.content_type, tag=page.tag, cache=cache
    )
    first, stop = limit_to_range(response, request, size_bytes=len(page.content))
    if (first, stop) != (0, len(page.content)):
        response.set_data(page.content[first:stop])
    return response


async def start_answer(
    body: bytes | ResponseBody,
    size_bytes: int,
    content_type: str,
    *,
    tag: str,
    cache: str,
    coding: str | None = None,
) -> Response:
    """Make an answer with a whole content, or 304. Each coding of a content has an entity tag of its own."""
    response = current_app.response_class(body, content_type=content_type)
    response.content_length = size_bytes
    response.headers["Cache-Control"] = cache
    if is_compressible(content_type):
        response.headers["Vary"] = "Accept-Encoding"
    if coding is None:
        require_original(request)
        response.set_etag(tag)
    else:
        response.headers["Content-Encoding"] = coding
        response.set_etag(f"{tag}-{coding}")
    await response.make_conditional(request)
    return response

"""Single byte ranges of files (RFC 9110 §14), for media players and resumed downloads."""

import re
from typing import Final

from quart import Request, Response

_single_range = re.compile(r"bytes=[ \t]*(\d*)-(\d*)[ \t]*", re.ASCII | re.IGNORECASE).fullmatch
_MOST_DIGITS: Final = 18
"""Numbers with more digits are larger than any file."""


class Unsatisfiable(Exception):
    """The range begins after the end of the file."""


def parse_range(value: str, size_bytes: int) -> tuple[int, int]:
    """Parse a Range header. Return the first byte and the first byte after the part. Raises Unsatisfiable.

    Multiple ranges, other units and malformed headers mean the whole file, as HTTP allows.
    """
    found = _single_range(value)
    if found is None or not (found[1] or found[2]):
        return 0, size_bytes
    if not found[1]:
        last_bytes = _number(found[2])
        if last_bytes == 0:
            raise Unsatisfiable
        return max(0, size_bytes - last_bytes), size_bytes
    first, last = _number(found[1]), _number(found[2]) if found[2] else size_bytes - 1
    if found[2] and last < first:
        return 0, size_bytes
    if first >= size_bytes:
        raise Unsatisfiable
    return first, min(last + 1, size_bytes)


def limit_to_range(response: Response, request: Request, *, size_bytes: int) -> tuple[int, int]:
    """Set the range headers of an answer. Return the first byte to send and the first byte after the part.

    Only GET has ranges. If-Range must match the entity tag of the answer; otherwise the whole file is sent.
    """
    response.headers["Accept-Ranges"] = "bytes"
    wanted = request.headers.get("Range")
    unchanged_if = request.headers.get("If-Range")
    is_same = unchanged_if is None or unchanged_if == response.headers.get("ETag")
    if wanted is None or not is_same or request.method != "GET" or response.status_code != 200:
        return 0, size_bytes
    try:
        first, stop = parse_range(wanted, size_bytes)
    except Unsatisfiable:
        response.status_code = 416
        response.content_length = 0
        response.headers["Content-Range"] = f"bytes */{size_bytes}"
        response.headers["Cache-Control"] = "no-store"
        return 0, 0
    if (first, stop) != (0, size_bytes):
        response.status_code = 206
        response.content_length = stop - first
        response.headers["Content-Range"] = f"bytes {first}-{stop - 1}/{size_bytes}"
    return first, stop


def _number(digits: str) -> int:
    return 10**_MOST_DIGITS if len(digits.lstrip("0")) > _MOST_DIGITS else int(digits[-_MOST_DIGITS:])

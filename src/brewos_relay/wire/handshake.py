"""HTTP/1.1 request heads and the WebSocket upgrade, seen from the server. No I/O.

A head goes in, a Request comes out, or a Refusal that knows how to say itself (RFC 9112, RFC 6455 §4.2).
"""

import binascii
import hashlib
import http
import json
import re
from base64 import b64decode, b64encode
from typing import Final
from urllib.parse import parse_qsl

HEAD_END: Final = b"\r\n\r\n"

_GUID: Final = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11"
_TOKEN: Final = rb"[!#$%&'*+\-.^_`|~0-9A-Za-z]+"
_request_line = re.compile(rb"([A-Z]{1,20}) ([!-~]+) HTTP/1\.([01])").fullmatch
_header_line = re.compile(rb"(%s):[ \t]*+([\t -~\x80-\xff]*+)" % _TOKEN).fullmatch
_host = re.compile(r"(?:\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9._~%!$&'()*+,;=-]+)(?::[0-9]{0,5})?").fullmatch
_subprotocol = re.compile(_TOKEN.decode()).fullmatch
_MAX_QUERY_FIELDS: Final = 50


class Refusal(Exception):
    """The request is answered with an HTTP status and a sentence, and the connection is closed."""

    def __init__(self, status: int, message: str, *, headers: dict[str, str] | None = None) -> None:
        super().__init__(f"{status} {message}")
        self.status = status
        self.message = message
        self.headers = headers or {}

    def encode(self) -> bytes:
        """Build the whole response; it never asks for another request on this connection."""
        body = json.dumps({"error": self.message}).encode()
        lines = [
            f"HTTP/1.1 {self.status} {http.HTTPStatus(self.status).phrase}",
            "Content-Type: application/json",
            f"Content-Length: {len(body)}",
            "Cache-Control: no-store",
            *(f"{name}: {value}" for name, value in self.headers.items()),
            "Connection: close",
        ]
        return "\r\n".join(lines).encode("latin-1") + HEAD_END + body


class Request:
    """A request head: `method`, `path` and `query` as they came, `headers` by lower-case name.

    Headers that came several times are joined with commas (RFC 9110 §5.3). Whoever has the connection
    fills in `peer_address`, where it comes from, and `secure`, whether TLS protects it.
    """

    __slots__ = ("headers", "method", "minor_version", "path", "peer_address", "query", "secure")

    def __init__(
        self, *, method: str, path: str, query: str, minor_version: int, headers: dict[str, str]
    ) -> None:
        self.method = method
        self.path = path
        self.query = query
        self.minor_version = minor_version
        self.headers = headers
        self.peer_address = ""
        self.secure = False

    @property
    def wants_upgrade(self) -> bool:
        """Whether the request asks for another protocol on this connection, whichever."""
        return "upgrade" in self.headers

    def parameters(self) -> dict[str, str]:
        """Read the query string. Of a name that is there several times, the last value counts.

        An app puts its own parameters behind those of the page that it runs in, which may be anything: what
        is not UTF-8 there becomes U+FFFD.
        """
        try:
            return dict(
                parse_qsl(
                    self.query, keep_blank_values=True, errors="replace", max_num_fields=_MAX_QUERY_FIELDS
                )
            )
        except ValueError:
            raise Refusal(400, "the query string cannot be read") from None


def begins_like_http(data: bytes) -> bool:
    """Whether these first bytes of a connection can be those of a request."""
    return b"A" <= data[:1] <= b"Z"


def parse_head(head: bytes) -> Request:
    """Read a request head, without the empty line at its end. Raises Refusal."""
    lines = head.split(b"\r\n")
    start = _request_line(lines[0])
    if start is None:
        raise Refusal(400, "not an HTTP/1.1 request")
    headers: dict[str, str] = {}
    for line in lines[1:]:
        match = _header_line(line)
        if match is None:
            raise Refusal(400, "a header line cannot be read")
        name = match[1].decode().lower()
        value = match[2].decode("latin-1").rstrip(" \t")
        headers[name] = f"{headers[name]}, {value}" if name in headers else value
    minor_version = int(start[3])
    host = headers.get("host")
    if (host is None and minor_version == 1) or (host and not _host(host)):
        raise Refusal(400, "the Host header is missing or cannot be read")
    path, _, query = start[2].decode().partition("?")
    if not path.startswith("/"):
        raise Refusal(400, "the request target must begin with a slash")
    return Request(
        method=start[1].decode(), path=path, query=query, minor_version=minor_version, headers=headers
    )


def accept_upgrade(request: Request) -> bytes:
    """Build the 101 answer to a WebSocket opening handshake. Raises Refusal.

    The first subprotocol that the client offers is agreed on, since a browser that offers one insists; no
    extension ever is.
    """
    headers = request.headers
    if request.method != "GET" or request.minor_version != 1:
        raise Refusal(400, "a WebSocket begins with GET and HTTP/1.1")
    if "content-length" in headers or "transfer-encoding" in headers:
        raise Refusal(400, "a WebSocket handshake has no body")
    if "websocket" not in _tokens(headers.get("upgrade", "")):
        raise Refusal(
            426,
            "this address speaks WebSocket",
            headers={"Upgrade": "websocket", "Sec-WebSocket-Version": "13"},
        )
    if "upgrade" not in _tokens(headers.get("connection", "")):
        raise Refusal(400, "the Connection header does not say Upgrade")
    if headers.get("sec-websocket-version") != "13":
        raise Refusal(
            426,
            "this server speaks WebSocket version 13",
            headers={"Upgrade": "websocket", "Sec-WebSocket-Version": "13"},
        )
    key = headers.get("sec-websocket-key", "")
    if not _is_key(key):
        raise Refusal(400, "Sec-WebSocket-Key must be 16 bytes in base64")
    accept = b64encode(hashlib.sha1(key.encode() + _GUID, usedforsecurity=False).digest()).decode()
    subprotocol = headers.get("sec-websocket-protocol")
    agreed = ""
    if subprotocol is not None:
        first = subprotocol.partition(",")[0].strip(" \t")
        if not _subprotocol(first):
            raise Refusal(400, "Sec-WebSocket-Protocol cannot be read")
        agreed = f"Sec-WebSocket-Protocol: {first}\r\n"
    return (
        "HTTP/1.1 101 Switching Protocols\r\n"
        "Upgrade: websocket\r\n"
        "Connection: Upgrade\r\n"
        f"Sec-WebSocket-Accept: {accept}\r\n"
        f"{agreed}\r\n"
    ).encode()


def _tokens(value: str) -> list[str]:
    return [token.strip(" \t").lower() for token in value.split(",")]


def _is_key(key: str) -> bool:
    try:
        return len(b64decode(key, validate=True)) == 16
    except (binascii.Error, ValueError):
        return False

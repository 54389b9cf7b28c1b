"""HTTP/1.1 request heads and the WebSocket upgrade of a server. No I/O.

`parse_head` returns a Request, or raises a Refusal that can be encoded as the response (RFC 9112, RFC 6455
§4.2).
"""

import hashlib
import http
import json
import re
from base64 import b64encode
from typing import Final
from urllib.parse import parse_qsl

HEAD_END: Final = b"\r\n\r\n"

_GUID: Final = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11"
_NAME: Final = r"[!#$%&'*+\-.^_`|~0-9A-Za-z]++"
_request_line = re.compile(rb"([A-Z]{1,20}) ([!-~]+) HTTP/1\.([01])").fullmatch
_header_lines = re.compile(rf"\r\n({_NAME}):[ \t]*+([\t -~\x80-\xff]*+)(?=\r\n|\Z)").findall
_empty_line = re.compile(rb"\r?\n|\r\Z").match
_absolute_target = re.compile(r"(?i:https?|wss?)://([^/?#]+)([/?].*)?").fullmatch
_no_content = re.compile(r"0{1,20}").fullmatch
_host = re.compile(r"(?:\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9._~%!$&'()*+,;=-]+)(?::[0-9]{0,5})?").fullmatch
_key = re.compile(r"[A-Za-z0-9+/]{22}==").fullmatch
"""16 bytes in base64."""
_subprotocol = re.compile(_NAME).fullmatch
_MAX_QUERY_FIELDS: Final = 50


class Refusal(Exception):
    """A response with an HTTP status and a message. The connection is closed after it."""

    def __init__(self, status: int, message: str, *, headers: dict[str, str] | None = None) -> None:
        super().__init__(f"{status} {message}")
        self.status = status
        self.message = message
        self.headers = headers or {}

    def encode(self, *, head_only: bool = False) -> bytes:
        """Build the response; `head_only` leaves the body out, as in every response to HEAD."""
        body = json.dumps({"error": self.message}).encode()
        headers = {"Content-Type": "application/json", **self.headers}
        return encode_response(self.status, headers, body, head_only=head_only)


class Request:
    """A request head: `method`, `path` and `query` as they came, `headers` by lower-case name.

    Headers that came several times are joined with commas (RFC 9110 §5.3). The owner of the connection sets
    `peer_address`, and `secure` if TLS protects the connection.
    """

    __slots__ = (
        "_parameters",
        "headers",
        "method",
        "minor_version",
        "path",
        "peer_address",
        "query",
        "secure",
    )

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
        self._parameters: dict[str, str] | None = None

    @property
    def wants_websocket(self) -> bool:
        """Whether the request asks for a WebSocket. HTTP/1.0 has no upgrades (RFC 9110 §7.8)."""
        return self.minor_version == 1 and names_websocket(self.headers.get("upgrade", ""))

    def parameters(self) -> dict[str, str]:
        """Parse the query string. If a name comes several times, the last value is used.

        An app appends its parameters to those of the page that it runs in, which may be anything: bytes that
        are not UTF-8 become U+FFFD.
        """
        if self._parameters is None:
            self._parameters = _parse_query(self.query)
        return self._parameters


def _parse_query(query: str) -> dict[str, str]:
    if "%" not in query and "+" not in query and query.count("&") < _MAX_QUERY_FIELDS:
        # Nothing to decode, as in the requests of machines: a fifth of the time of `parse_qsl`.
        fields = (field.partition("=") for field in query.split("&") if field)
        return {name: value for name, _, value in fields}
    try:
        return dict(
            parse_qsl(query, keep_blank_values=True, errors="replace", max_num_fields=_MAX_QUERY_FIELDS)
        )
    except ValueError:
        raise Refusal(400, "the query string has too many fields") from None


def encode_response(status: int, headers: dict[str, str], body: bytes = b"", *, head_only: bool) -> bytes:
    """Build the last response of a connection; `head_only` leaves out the body, but changes no header."""
    lines = [
        f"HTTP/1.1 {status} {http.HTTPStatus(status).phrase}",
        f"Content-Length: {len(body)}",
        "Cache-Control: no-store",
        *(f"{name}: {value}" for name, value in headers.items()),
        "Connection: Upgrade, close" if "Upgrade" in headers else "Connection: close",
    ]
    return "\r\n".join(lines).encode("latin-1") + HEAD_END + (b"" if head_only else body)


def skip_empty_line(data: bytes) -> bytes:
    """Drop one empty line, or its beginning, before a request line: old clients send one after a body.

    RFC 9112 §2.2 asks for that. A second empty line stays, and is an invalid request line.
    """
    line = _empty_line(data)
    return data[line.end() :] if line is not None else data


def is_head_only(data: bytes) -> bool:
    """Whether the response to a request that begins with this data has no body, as far as the data tells."""
    return bool(data) and b"HEAD ".startswith(data[:5])


def names_websocket(upgrade: str) -> bool:
    """Whether an Upgrade header names WebSocket."""
    return _names(upgrade, "websocket")


def split_target(method: str, target: str) -> tuple[str, str | None]:
    """Return a request target in origin form, and the authority of one in absolute form. Raises Refusal.

    An origin server has to accept both (RFC 9112 §3.2). The target `*` stands for the server as a whole, and
    is for OPTIONS only; with OPTIONS, an address without a path means the same.
    """
    if target.startswith("/") or (target == "*" and method == "OPTIONS"):
        return target, None
    found = _absolute_target(target)
    if found is None or not _host(found[1]):
        raise Refusal(400, "the request target must be a path, or a whole address of http, https, ws or wss")
    path = found[2] or ("*" if method == "OPTIONS" else "/")
    return f"/{path}" if path.startswith("?") else path, found[1]


def begins_like_http(data: bytes) -> bool:
    """Whether a connection that begins with these bytes can be HTTP."""
    return b"A" <= data[:1] <= b"Z"


def parse_head(head: bytes) -> Request:
    """Parse a request head, without the empty line at its end. Raises Refusal."""
    line, _, _ = head.partition(b"\r\n")
    start = _request_line(line)
    if start is None:
        raise Refusal(400, "not an HTTP/1.1 request")
    text = head[len(line) :].decode("latin-1")
    lines = _header_lines(text)
    if len(lines) != text.count("\r\n"):
        raise Refusal(400, "a header line is malformed")
    headers: dict[str, str] = {}
    for name, value in lines:
        lower, value = name.lower(), value.rstrip(" \t")
        headers[lower] = f"{headers[lower]}, {value}" if lower in headers else value
    minor_version = int(start[3])
    host = headers.get("host")
    if (host is None and minor_version == 1) or (host and not _host(host)):
        raise Refusal(400, "the Host header is missing or malformed")
    method = start[1].decode()
    target, authority = split_target(method, start[2].decode())
    if authority is not None:
        headers["host"] = authority
    path, _, query = target.partition("?")
    return Request(method=method, path=path, query=query, minor_version=minor_version, headers=headers)


def accept_upgrade(request: Request) -> bytes:
    """Build the 101 response to a WebSocket opening handshake. Raises Refusal.

    The first subprotocol that the client offers is selected, since a browser that offers some requires one.
    Extensions are never selected.
    """
    headers = request.headers
    if request.method != "GET" or request.minor_version != 1:
        raise Refusal(400, "a WebSocket handshake must use GET and HTTP/1.1")
    if "transfer-encoding" in headers or (
        "content-length" in headers and not _no_content(headers["content-length"])
    ):
        raise Refusal(400, "a WebSocket handshake has no body")
    if not names_websocket(headers.get("upgrade", "")):
        raise Refusal(
            426,
            "this path accepts only WebSocket connections",
            headers={"Upgrade": "websocket", "Sec-WebSocket-Version": "13"},
        )
    if not _names(headers.get("connection", ""), "upgrade"):
        raise Refusal(400, "the Connection header does not name Upgrade")
    if headers.get("sec-websocket-version") != "13":
        raise Refusal(
            426,
            "this server speaks WebSocket version 13",
            headers={"Upgrade": "websocket", "Sec-WebSocket-Version": "13"},
        )
    key = headers.get("sec-websocket-key", "")
    if not _key(key):
        raise Refusal(400, "Sec-WebSocket-Key must be 16 bytes in base64")
    accept = b64encode(hashlib.sha1(key.encode() + _GUID, usedforsecurity=False).digest()).decode()
    subprotocol = headers.get("sec-websocket-protocol")
    agreed = ""
    if subprotocol is not None:
        first = subprotocol.partition(",")[0].strip(" \t")
        if not _subprotocol(first):
            raise Refusal(400, "Sec-WebSocket-Protocol is malformed")
        agreed = f"Sec-WebSocket-Protocol: {first}\r\n"
    return (
        "HTTP/1.1 101 Switching Protocols\r\n"
        "Upgrade: websocket\r\n"
        "Connection: Upgrade\r\n"
        f"Sec-WebSocket-Accept: {accept}\r\n"
        f"{agreed}\r\n"
    ).encode()


def _names(value: str, token: str) -> bool:
    """Whether a header with a list names a token."""
    lower = value.lower()
    return lower == token or token in [each.strip(" \t") for each in lower.split(",")]

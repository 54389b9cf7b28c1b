"""Asking a server over HTTP as the web app does."""

from typing import Any, NamedTuple

import msgspec

from support.process import Reach
from support.wire_client import Response


class Told(NamedTuple):
    """A response; `content` is None unless it is JSON."""

    status: int
    content: Any
    response: Response


async def ask(
    server: Reach,
    method: str,
    path: str,
    body: Any = None,
    *,
    token: str | None = None,
    content_type: str = "application/json",
    host: str = "relay.example",
    forwarded_for: str | None = None,
    cookie: str | None = None,
    device_key: str | None = None,
) -> Told:
    """Send a request over a connection of its own. Bytes go out as they are, everything else as JSON."""
    data = body if isinstance(body, bytes) else b"" if body is None else msgspec.json.encode(body)
    lines = [f"{method} {path} HTTP/1.1", f"Host: {host}", "Connection: close"]
    if forwarded_for is not None:
        lines.append(f"X-Forwarded-For: {forwarded_for}")
    if cookie is not None:
        lines.append(f"Cookie: {cookie}")
    if device_key is not None:
        lines.append(f"X-Device-Key: {device_key}")
    if token is not None:
        lines.append(f"Authorization: Bearer {token}")
    if method != "GET":
        lines += [f"Content-Type: {content_type}", f"Content-Length: {len(data)}"]
    connection = await server.connect()
    response = await connection.ask("\r\n".join([*lines, "", ""]).encode() + data)
    is_json = response.header("content-type") == ["application/json"]
    return Told(response.status, msgspec.json.decode(response.body) if is_json else None, response)

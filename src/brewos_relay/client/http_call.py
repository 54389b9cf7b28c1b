"""One HTTP request to a relay, with a JSON answer."""

import ssl
from contextlib import suppress
from typing import Any, Final

import h11
import msgspec
import trio

from brewos_relay.client.backoff import parse_retry_after
from brewos_relay.client.endpoint import Endpoint, RelayUnreachable, open_stream, parse_url
from brewos_relay.client.websocket import RelayRefused
from brewos_relay.errors import SettingsError
from brewos_relay.texts import one_line

_ANSWER_BYTES: Final = 4 * 1024 * 1024
_READ_BYTES: Final = 16 * 1024


async def post_json(
    url: str,
    path: str,
    body: dict[str, Any],
    *,
    ssl_context: ssl.SSLContext | None = None,
    timeout_s: float = 10.0,
) -> dict[str, Any]:
    """POST `body` to `path` of the relay at `url`, over a new connection, and return its answer.

    Raises SettingsError for a URL without TLS, unless it leads to this computer: these requests contain
    secrets. Raises RelayUnreachable, and RelayRefused for any status but 200. None repeats `body`.
    """
    endpoint = parse_url(url)
    shown = url.strip()
    if not endpoint.tls and not endpoint.is_here:
        raise SettingsError(f"{shown} would send secrets over the network in plain text; use https://…")
    payload = msgspec.json.encode(body)
    request = h11.Request(
        method="POST",
        target=path,
        headers=[
            ("Host", endpoint.host_header),
            ("Content-Type", "application/json"),
            ("Content-Length", str(len(payload))),
            ("Connection", "close"),
        ],
    )
    return await _call(endpoint, shown, request, payload, ssl_context=ssl_context, timeout_s=timeout_s)


async def get_json(
    url: str,
    path: str,
    token: str,
    *,
    ssl_context: ssl.SSLContext | None = None,
    timeout_s: float = 10.0,
) -> dict[str, Any]:
    """GET `path` of the relay at `url` with an access token, over a new connection, and return its answer.

    Raises RelayUnreachable, and RelayRefused for any status but 200.
    """
    endpoint = parse_url(url)
    request = h11.Request(
        method="GET",
        target=path,
        headers=[
            ("Host", endpoint.host_header),
            ("Authorization", f"Bearer {token}"),
            ("Connection", "close"),
        ],
    )
    return await _call(endpoint, url.strip(), request, b"", ssl_context=ssl_context, timeout_s=timeout_s)


async def _call(
    endpoint: Endpoint,
    shown: str,
    request: h11.Request,
    payload: bytes,
    *,
    ssl_context: ssl.SSLContext | None,
    timeout_s: float,
) -> dict[str, Any]:
    with trio.move_on_after(timeout_s):
        stream = await open_stream(endpoint, shown, ssl_context)
        try:
            http = h11.Connection(h11.CLIENT)
            head = http.send(request) or b""
            body = http.send(h11.Data(data=payload)) if payload else b""
            await stream.send_all(head + (body or b""))
            http.send(h11.EndOfMessage())
            response, answer = await _read_answer(http, stream)
        except (trio.BrokenResourceError, h11.ProtocolError):
            raise RelayUnreachable(f"{shown} did not answer in HTTP") from None
        finally:
            await trio.aclose_forcefully(stream)
        return _content_of(response, answer)
    raise RelayUnreachable(f"{shown} did not answer in {timeout_s:g} s")


async def _read_answer(http: h11.Connection, stream: trio.abc.Stream) -> tuple[h11.Response, bytes]:
    """Read the complete answer. Raises h11.RemoteProtocolError if it is invalid or too long."""
    response: h11.Response | None = None
    answer = bytearray()
    while True:
        event = http.next_event()
        if event is h11.NEED_DATA:
            http.receive_data(bytes(await stream.receive_some(_READ_BYTES)))
        elif isinstance(event, h11.Response):
            response = event
        elif isinstance(event, h11.Data):
            answer += event.data
            if len(answer) > _ANSWER_BYTES:
                raise h11.RemoteProtocolError("the answer is too long")
        elif isinstance(event, h11.EndOfMessage) and response is not None:
            return response, bytes(answer)


def _content_of(response: h11.Response, answer: bytes) -> dict[str, Any]:
    """Return the content of an answer. Raises RelayRefused."""
    content: dict[str, Any] = {}
    with suppress(msgspec.MsgspecError, RecursionError):
        content = msgspec.json.decode(answer, type=dict[str, Any])
    if response.status_code == 200:
        return content
    asked = dict(response.headers).get(b"retry-after")
    raise RelayRefused(
        response.status_code,
        one_line(str(content.get("error") or "")),
        retry_after_s=parse_retry_after(asked.decode("latin-1")) if asked is not None else None,
    )

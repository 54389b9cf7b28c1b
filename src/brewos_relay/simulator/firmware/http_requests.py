"""The two HTTP requests of firmware, as bytes, and how it reads the answers. No I/O."""

from base64 import b64encode
from dataclasses import dataclass
from hashlib import sha1
from typing import Final

import msgspec

#: What firmware writes after an answer that it does not accept.
FAREWELL: Final = b"This is a webSocket client!"
HEAD_BYTES: Final = 16 * 1024

_GUID: Final = "258EAFA5-E914-47DA-95CA-C5AB0DC85B11"


def upgrade_request(*, device_id: str, key: str, host: str, websocket_key: str) -> bytes:
    """Build the upgrade request; `host` includes the port."""
    lines = (
        f"GET /ws/device?id={device_id}&key={key} HTTP/1.1",
        f"Host: {host}",
        "Connection: Upgrade",
        "Upgrade: websocket",
        "Sec-WebSocket-Version: 13",
        f"Sec-WebSocket-Key: {websocket_key}",
        "Sec-WebSocket-Protocol: arduino",
        "Origin: file://",
        "User-Agent: arduino-WebSocket-Client",
        "",
        "",
    )
    return "\r\n".join(lines).encode()


def websocket_key(random_bytes: bytes) -> str:
    """Encode 16 bytes as `Sec-WebSocket-Key`."""
    return b64encode(random_bytes).decode()


def register_request(*, device_id: str, key: str, token: str, host: str) -> list[bytes]:
    """Build the registration of key and token, as a list of writes: one for each line, then the body."""
    body = msgspec.json.encode({"deviceId": device_id, "token": token, "deviceKey": key})
    lines = (
        "POST /api/devices/register-claim HTTP/1.1\r\n",
        f"Host: {host}\r\n",
        "Content-Type: application/json\r\n",
        f"Content-Length: {len(body)}\r\n",
        "Connection: close\r\n\r\n",
    )
    return [*(line.encode() for line in lines), body]


@dataclass(frozen=True, slots=True)
class Answer:
    """The head of an answer; names in `headers` are in lower case."""

    status: int
    headers: dict[str, str]
    lines: int


def parse_head(head: bytes) -> Answer | None:
    """Parse the head of an answer; None if it is not HTTP."""
    first, *rest = head.decode("latin-1").replace("\r\n", "\n").split("\n")
    version, _, status = first.partition(" ")
    if not version.startswith("HTTP/1.") or not status[:3].isdecimal():
        return None
    headers: dict[str, str] = {}
    for line in rest:
        name, colon, value = line.partition(":")
        if colon:
            headers[name.lower()] = value
    return Answer(int(status[:3]), headers, len(rest) + 1)


def accepted(answer: Answer, websocket_key: str) -> bool:
    """Tell whether firmware accepts an answer to its upgrade: it checks two headers strictly."""
    accept = sha1((websocket_key + _GUID).encode(), usedforsecurity=False).digest()
    return (
        answer.status == 101
        and _value(answer, "connection").lower() == "upgrade"
        and _value(answer, "sec-websocket-accept") == b64encode(accept).decode()
    )


def _value(answer: Answer, name: str) -> str:
    return answer.headers.get(name, "").removeprefix(" ")

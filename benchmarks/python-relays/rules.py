"""The rules of the Python relays: which peers are admitted, and which keys of a message are read."""

import argparse
import hashlib
import hmac
import os
import ssl
from collections.abc import Callable, Coroutine
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import jwt
import msgspec
import trio
import uvloop


class _Head(msgspec.Struct, gc=False):
    type: str


_peek_text = msgspec.json.Decoder(_Head).decode
_peek_binary = msgspec.msgpack.Decoder(_Head).decode


def has_type(payload: bytes, *, is_text: bool) -> bool:
    """Say whether a message is an object with a text `type`, which is all that a relay asks of it."""
    try:
        (_peek_text if is_text else _peek_binary)(payload)
    except (msgspec.MsgspecError, ValueError):
        return False
    return True


@dataclass(slots=True)
class Session:
    """The attached peers of one device."""

    device: Any = None
    apps: list[Any] = field(default_factory=list)


class Rules:
    """The keys of all devices, the secret of all tokens, and the sessions."""

    def __init__(self, devices: Path, secret: str) -> None:
        self._secret = secret
        self._key_hashes = {}
        for line in devices.read_text(encoding="ascii").splitlines():
            device_id, _, key = line.partition(",")
            self._key_hashes[device_id] = hashlib.sha256(key.encode()).digest()
        self._sessions: dict[str, Session] = {}

    def session(self, device_id: str) -> Session:
        return self._sessions.setdefault(device_id, Session())

    def admit(self, target: str) -> tuple[int, bool, str]:
        """Return the HTTP status for a request target, whether it is a device's, and the device's id."""
        url = urlsplit(target)
        asked = {name: values[-1] for name, values in parse_qs(url.query).items()}
        if url.path == "/ws/device":
            device_id = asked.get("id", "")
            given = hashlib.sha256(asked.get("key", "").encode()).digest()
            expected = self._key_hashes.get(device_id)
            fine = expected is not None and hmac.compare_digest(given, expected)
            return (101 if fine else 401), True, device_id
        if url.path != "/ws/client":
            return 404, False, ""
        try:
            claims = jwt.decode(asked.get("token", ""), self._secret, algorithms=["HS256"])
        except jwt.InvalidTokenError:
            return 401, False, ""
        device_id = asked.get("device", "")
        allowed = claims.get("devices") == "*" or device_id in claims.get("devices", [])
        return (101 if allowed else 403), False, device_id


Serve = Callable[[Rules, int, ssl.SSLContext | None], Coroutine[Any, Any, None]]


def main(serve: Serve) -> None:
    """Read the command line and serve for ever, on uvloop."""
    uvloop.run(serve(*_read_command_line()))


def main_on_trio(serve: Serve) -> None:
    """Read the command line and serve for ever, on Trio."""
    trio.run(serve, *_read_command_line())


def _read_command_line() -> tuple[Rules, int, ssl.SSLContext | None]:
    parser = argparse.ArgumentParser()
    parser.add_argument("port", type=int)
    parser.add_argument("devices", type=Path, help="a CSV file with the lines `id,key`")
    parser.add_argument("--pem", type=Path, help="certificate and key: serve TLS")
    chosen = parser.parse_args()
    context = None
    if chosen.pem is not None:
        context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        context.load_cert_chain(chosen.pem)
    return Rules(chosen.devices, os.environ["JWT_SECRET"]), chosen.port, context

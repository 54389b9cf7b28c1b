"""JSON Web Tokens (RFC 7519), signed with HS256, that say who a client is and which devices it may reach."""

import json
import secrets
import time
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Final, Literal, TypeAlias

import jwt

from brewos_relay.auth.keys import parse_device_id
from brewos_relay.errors import TokenRejected

MIN_SECRET_BYTES: Final = 32
DEFAULT_TTL_S: Final = 7 * 24 * 3600

_ALGORITHM: Final = "HS256"
_LAST_TIME_S: Final = 253_402_300_799  # the end of year 9999, which is as far as dates can be written
_USER_ID_CHARS: Final = 256
_EMAIL_CHARS: Final = 320

NamedDevices: TypeAlias = frozenset[str] | Literal["*"]
"""Device ids in upper case, or "*" for all of them."""


@dataclass(frozen=True, slots=True)
class Claims:
    """What a valid token says. Times are Unix times in seconds."""

    user_id: str
    email: str
    issued_at_s: int
    expires_at_s: int
    devices: NamedDevices


def generate_secret() -> str:
    """Make a secret to sign tokens with: 64 characters, 384 random bits."""
    return secrets.token_urlsafe(48)


class TokenSigner:
    """Issues tokens, and verifies those that were signed with the same secret."""

    def __init__(self, secret: str) -> None:
        """Take a secret of at least 32 bytes (RFC 7518 §3.2); ValueError if it is shorter."""
        self._secret = secret.encode()
        if len(self._secret) < MIN_SECRET_BYTES:
            raise ValueError(
                f"the secret has {len(self._secret)} bytes; it must have {MIN_SECRET_BYTES} or more"
            )
        self._jws = jwt.PyJWS(algorithms=[_ALGORITHM])

    def issue(
        self,
        *,
        user_id: str,
        email: str,
        devices: Iterable[str] = (),
        ttl_s: int = DEFAULT_TTL_S,
        now_s: int | None = None,
    ) -> str:
        """Sign a token; `devices` are ids, or "*". ValueError for anything that `verify` would not take."""
        issued_at_s = int(time.time()) if now_s is None else now_s
        if ttl_s <= 0:
            raise ValueError(f"a token cannot live for {ttl_s} s: it must be more than 0")
        content: dict[str, Any] = {
            "userId": user_id,
            "email": email,
            "iat": issued_at_s,
            "exp": issued_at_s + ttl_s,
        }
        named = devices if devices == "*" else sorted({parse_device_id(device_id) for device_id in devices})
        if named:
            content["devices"] = named
        _read_claims(content)
        return self._jws.encode(json.dumps(content).encode(), self._secret, algorithm=_ALGORITHM)

    def verify(self, token: str) -> Claims:
        """Read a token; TokenRejected if it is malformed, forged, expired, or lacks a claim."""
        if not token.isascii():
            raise TokenRejected("the token has characters that no token has")
        try:
            # Only the signature is left to PyJWT: it takes claims of types that make no sense.
            content = json.loads(self._jws.decode(token, self._secret, algorithms=[_ALGORITHM]))
        except jwt.InvalidSignatureError:
            raise TokenRejected("the token was signed with another secret") from None
        except jwt.InvalidAlgorithmError:
            raise TokenRejected(f"the token must be signed with {_ALGORITHM}") from None
        except (jwt.PyJWTError, ValueError, TypeError, RecursionError):
            raise TokenRejected("the token is malformed") from None
        if not isinstance(content, dict):
            raise TokenRejected("the token's content must be a JSON object")
        try:
            claims = _read_claims(content)
            valid_from_s = _read_time(content, "nbf") if "nbf" in content else 0
        except ValueError as problem:
            raise TokenRejected(f"the token cannot be taken: {problem}") from None
        now_s = time.time()
        if claims.expires_at_s <= now_s:
            raise TokenRejected("the token has expired")
        if valid_from_s > now_s:
            raise TokenRejected("the token is not valid yet")
        return claims


def _read_claims(content: dict[str, Any]) -> Claims:
    """Check the type and the range of every claim; ValueError says which one is wrong, without its value."""
    return Claims(
        user_id=_read_text(content, "userId", longest_chars=_USER_ID_CHARS),
        email=_read_text(content, "email", longest_chars=_EMAIL_CHARS),
        issued_at_s=_read_time(content, "iat"),
        expires_at_s=_read_time(content, "exp"),
        devices=_read_devices(content.get("devices", [])),
    )


def _read_text(content: dict[str, Any], name: str, *, longest_chars: int) -> str:
    value = content.get(name)
    # What is not printable (a NUL, half of a surrogate pair) could not be stored or shown.
    if not isinstance(value, str) or not 0 < len(value) <= longest_chars or not value.isprintable():
        raise ValueError(f"{name} must be a text of 1 to {longest_chars} printable characters")
    return value


def _read_time(content: dict[str, Any], name: str) -> int:
    value: Any = content.get(name)
    # RFC 7519 §2 lets a NumericDate have a fraction.
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    # NaN and Infinity, which Python's JSON has and which compare as false or too large, end here as well.
    if not is_number or not 0 <= value <= _LAST_TIME_S:
        raise ValueError(f"{name} must be a time in seconds since 1970")
    return int(value)


def _read_devices(value: object) -> NamedDevices:
    if value == "*":
        return "*"
    if not isinstance(value, list) or not all(isinstance(device_id, str) for device_id in value):
        raise ValueError('devices must be a list of device ids, or "*"')
    return frozenset(parse_device_id(device_id) for device_id in value)

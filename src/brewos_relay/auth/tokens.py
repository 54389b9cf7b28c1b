"""Access tokens: JSON Web Tokens (RFC 7519) that name a user, devices and a role."""

import json
import re
import time
from base64 import urlsafe_b64decode
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import jwt

from brewos_relay.auth.signing_keys import PrivateKey, SecretKey, SigningKey
from brewos_relay.core.grant import NamedDevices
from brewos_relay.errors import TokenRejected
from brewos_relay.texts import EMAIL_CHARS, USER_ID_CHARS, is_identifier
from brewos_relay.vocabulary import LAST_TIME_MS, ROLES, Role, parse_device_id

DEFAULT_TTL_S: Final = 7 * 24 * 3600
MAX_TOKEN_CHARS: Final = 16_384
CLOCKS_DIFFER_S: Final = 60
"""How far the clock of another issuer may be ahead, for tokens that become valid later (`nbf`)."""

_LAST_TIME_S: Final = LAST_TIME_MS // 1000
_SESSION_ID_CHARS: Final = 128
_TOKEN_ID: Final = re.compile("[A-Za-z0-9_-]{1,32}")
_HEADERS_KEPT: Final = 64
"""How many headers of verified tokens are kept. An issuer uses the same one for all its tokens."""


@dataclass(frozen=True, slots=True)
class TokenClaims:
    """The claims of a valid token. Times are Unix times in seconds.

    `role` is the bearer's role for the devices that the token names, and the highest role for the user's
    other devices. `token_id` is the id for revoking the token.
    """

    user_id: str
    email: str
    issued_at_s: int
    expires_at_s: int
    devices: NamedDevices
    session_id: str | None = None
    role: Role = "owner"
    token_id: str | None = None


class KeyRing:
    """Issues tokens with its first key, and verifies tokens of all its keys.

    So a key can be replaced without signing users out: put the new key first, and keep the old one until its
    last token has expired.
    """

    def __init__(self, secrets: Sequence[str], private_keys: Sequence[PrivateKey] = ()) -> None:
        """Take secrets of at least 32 bytes and private keys, which go first.

        Raises ValueError without any.
        """
        self._secrets = [SecretKey(secret) for secret in secrets]
        self._private_keys = list(private_keys)
        keys: list[SigningKey] = [*self._private_keys, *self._secrets]
        if not keys:
            raise ValueError("a key ring must have a secret or a private key")
        self._signing = keys[0]
        self._by_id = {key.id: key for key in keys}
        self._headers: dict[str, SecretKey] = {}  # headers of verified tokens, as they are encoded

    def jwks(self) -> dict[str, list[dict[str, str]]]:
        """Return the public halves of the private keys as a JSON Web Key Set (RFC 7517)."""
        return {"keys": [key.jwk() for key in self._private_keys]}

    def issue(
        self,
        *,
        user_id: str,
        email: str,
        devices: Iterable[str] = (),
        ttl_s: int = DEFAULT_TTL_S,
        now_s: int | None = None,
        session_id: str | None = None,
        role: Role = "owner",
        token_id: str | None = None,
    ) -> str:
        """Sign a token.

        `devices` are ids, or "*". Raises ValueError for claims that `verify` would reject.
        """
        issued_at_s = int(time.time()) if now_s is None else now_s
        if ttl_s <= 0:
            raise ValueError(f"the lifetime of a token must be more than 0 s, got {ttl_s}")
        content: dict[str, Any] = {
            "userId": user_id,
            "email": email,
            "iat": issued_at_s,
            "exp": issued_at_s + ttl_s,
        }
        named = devices if devices == "*" else sorted({parse_device_id(device_id) for device_id in devices})
        if named:
            content["devices"] = named
        if session_id is not None:
            content["sid"] = session_id
        if role != "owner":
            content["role"] = role
        if token_id is not None:
            content["jti"] = token_id
        _read_claims(content)
        token = self._signing.sign(json.dumps(content, separators=(",", ":")).encode())
        if len(token) > MAX_TOKEN_CHARS:
            raise ValueError(f"{len(named)} devices are too many for one token: name fewer, or all of them")
        return token

    def verify(self, token: str) -> TokenClaims:
        """Verify a token. Raises TokenRejected if it is malformed, forged, expired or incomplete."""
        # PyJWT verifies the signature only: it would accept claims of wrong types.
        return _read_content(self.open(token))

    def sign(self, content: Mapping[str, object]) -> str:
        """Sign content of another kind than token claims, for `open`."""
        return self._signing.sign(json.dumps(content, separators=(",", ":")).encode())

    def open(self, token: str) -> bytes:
        """Return the content of a token that one of the keys signed. Raises TokenRejected."""
        if len(token) > MAX_TOKEN_CHARS:
            raise TokenRejected(f"the token is longer than {MAX_TOKEN_CHARS} characters")
        try:
            return self._open(token)
        # A lone surrogate or deeply nested JSON may raise other errors than PyJWT's own.
        except (jwt.PyJWTError, ValueError, TypeError, RecursionError):
            raise TokenRejected("the token is malformed") from None

    def _open(self, token: str) -> bytes:
        """Return the payload of a token that one of the keys signed.

        Raises TokenRejected or PyJWT's errors.
        """
        signed, _, signature = token.rpartition(".")
        header = signed.partition(".")[0]
        known = self._headers.get(header)
        if known is not None and (payload := known.open_signed(signed.encode(), signature)) is not None:
            return payload
        for key in self._keys_for(_read_header(token)):
            payload = key.verify(token)
            if payload is not None:
                if isinstance(key, SecretKey) and len(self._headers) < _HEADERS_KEPT:
                    self._headers[header] = key
                return payload
        raise TokenRejected("the token was signed with another secret or key")

    def _keys_for(self, header: dict[str, Any]) -> Sequence[SigningKey]:
        """List the keys that can have signed a token with this header. Raises TokenRejected."""
        # PyJWT refuses unknown extensions in `crit`, but it knows this one (RFC 7797).
        if "b64" in header:
            raise TokenRejected("the token uses an unsupported extension (b64)")
        if "kid" not in header:
            return self._secrets
        key = self._by_id.get(header["kid"])
        return [] if key is None else [key]


def _read_header(token: str) -> dict[str, Any]:
    """Read the header of an unverified token. Raises ValueError if it is malformed.

    PyJWT reads it too, but parses the whole token for it, and again once the key is known.
    """
    encoded = token.partition(".")[0]
    header = json.loads(urlsafe_b64decode(encoded + "=" * (-len(encoded) % 4)))
    if not isinstance(header, dict):
        raise ValueError("the header must be a JSON object")
    return header


def _read_content(payload: bytes) -> TokenClaims:
    """Read the claims of a verified payload and check its times. Raises TokenRejected."""
    try:
        content = json.loads(payload)
    except (ValueError, RecursionError):
        raise TokenRejected("the token is malformed") from None
    if not isinstance(content, dict):
        raise TokenRejected("the token's content must be a JSON object")
    try:
        claims = _read_claims(content)
        valid_from_s = _read_time(content, "nbf") if "nbf" in content else 0
    except ValueError as problem:
        raise TokenRejected(f"the token has an invalid claim: {problem}") from None
    now_s = time.time()
    if claims.expires_at_s <= now_s:
        raise TokenRejected("the token has expired")
    if valid_from_s > now_s + CLOCKS_DIFFER_S:
        raise TokenRejected("the token is not valid yet")
    return claims


def _read_claims(content: dict[str, Any]) -> TokenClaims:
    """Check the type and range of every claim. Raises ValueError that names the claim, not its value."""
    role = content.get("role", "owner")
    if role not in ROLES:
        raise ValueError(f"role must be one of {', '.join(ROLES)}")
    return TokenClaims(
        user_id=_read_text(content, "userId", longest_chars=USER_ID_CHARS),
        email=_read_text(content, "email", longest_chars=EMAIL_CHARS),
        issued_at_s=_read_time(content, "iat"),
        expires_at_s=_read_time(content, "exp"),
        devices=_read_devices(content.get("devices", [])),
        session_id=_read_text(content, "sid", longest_chars=_SESSION_ID_CHARS) if "sid" in content else None,
        role=role,
        token_id=_read_token_id(content.get("jti")),
    )


def _read_token_id(value: object) -> str | None:
    """Return an id that the registry can have issued.

    None for ids of other issuers, which may be any text.
    """
    return value if isinstance(value, str) and _TOKEN_ID.fullmatch(value) else None


def _read_text(content: dict[str, Any], name: str, *, longest_chars: int) -> str:
    value = content.get(name)
    if not isinstance(value, str) or not is_identifier(value, longest_chars=longest_chars):
        raise ValueError(f"{name} must be a text of 1 to {longest_chars} printable characters")
    return value


def _read_time(content: dict[str, Any], name: str) -> int:
    value: Any = content.get(name)
    # RFC 7519 §2 allows fractions in a NumericDate.
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    # This also rejects NaN and Infinity, which Python's JSON accepts.
    if not is_number or not 0 <= value <= _LAST_TIME_S:
        raise ValueError(f"{name} must be a time in seconds since 1970")
    return int(value)


def _read_devices(value: object) -> NamedDevices:
    if value == "*":
        return "*"
    if not isinstance(value, list) or not all(isinstance(device_id, str) for device_id in value):
        raise ValueError('devices must be a list of device ids, or "*"')
    return frozenset(parse_device_id(device_id) for device_id in value)

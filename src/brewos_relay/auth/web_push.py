"""Web Push: encryption of messages for a browser (RFC 8291), and the server's identification (RFC 8292).

Built on `cryptography` and PyJWT, which the relay has anyway. Libraries for Web Push bring HTTP clients that
block or need asyncio.
"""

import base64
import binascii
import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

import jwt
from cryptography.exceptions import InvalidKey
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric.ec import (
    ECDH,
    SECP256R1,
    EllipticCurvePrivateKey,
    EllipticCurvePublicKey,
    derive_private_key,
    generate_private_key,
)
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

MOST_PLAINTEXT_BYTES: Final = 3000
"""Push services accept bodies of 4096 bytes."""
CLAIM_S: Final = 12 * 3600
"""How long a signed identification is valid; push services accept 24 h at most."""
PRIVATE_BYTES: Final = 32

_POINT_BYTES: Final = 65
_AUTH_BYTES: Final = 16
_SALT_BYTES: Final = 16
_RECORD_BYTES: Final = 4096
_LAST_RECORD: Final = b"\x02"


@dataclass(frozen=True, slots=True)
class BrowserKeys:
    """The keys of a subscription: the public key of the browser, and a secret that it shares with us."""

    public: bytes
    auth: bytes

    def __repr__(self) -> str:
        return "<BrowserKeys>"


def read_browser_keys(p256dh: str, auth: str) -> BrowserKeys:
    """Decode the keys of a subscription, in either base64 alphabet. Raises ValueError if they are invalid."""
    keys = BrowserKeys(decode(p256dh), decode(auth))
    if len(keys.auth) != _AUTH_BYTES:
        raise ValueError("keys.auth must have 16 bytes")
    _public_key(keys.public)
    return keys


def encrypt(plaintext: bytes, keys: BrowserKeys) -> bytes:
    """Encrypt a message for a browser: a body with the content coding aes128gcm (RFC 8188)."""
    return encrypt_with(plaintext, keys, own=generate_private_key(SECP256R1()), salt=os.urandom(_SALT_BYTES))


def encrypt_with(plaintext: bytes, keys: BrowserKeys, *, own: EllipticCurvePrivateKey, salt: bytes) -> bytes:
    """Encrypt a message with this key and salt, which must be used once only."""
    if len(plaintext) > MOST_PLAINTEXT_BYTES:
        raise ValueError(f"a message must have at most {MOST_PLAINTEXT_BYTES} bytes, got {len(plaintext)}")
    own_public = point_of(own.public_key())
    shared = own.exchange(ECDH(), _public_key(keys.public))
    secret = _hkdf(keys.auth, shared, b"WebPush: info\0" + keys.public + own_public, 32)
    key = _hkdf(salt, secret, b"Content-Encoding: aes128gcm\0", 16)
    nonce = _hkdf(salt, secret, b"Content-Encoding: nonce\0", 12)
    header = salt + _RECORD_BYTES.to_bytes(4, "big") + bytes([len(own_public)]) + own_public
    return header + AESGCM(key).encrypt(nonce, plaintext + _LAST_RECORD, None)


class ServerKey:
    """The key by which push services recognize this server."""

    def __init__(self, private: bytes) -> None:
        """Take the 32 bytes of a private key. Raises ValueError if they are none."""
        if len(private) != PRIVATE_BYTES:
            raise ValueError("the key must have 32 bytes")
        self._key = derive_private_key(int.from_bytes(private, "big"), SECP256R1())
        self.public = encode(point_of(self._key.public_key()))
        """The public key, as browsers take it."""

    def __repr__(self) -> str:
        return "<ServerKey>"

    def headers(self, *, origin: str, contact: str | None, now_s: int) -> Mapping[str, str]:
        """Sign an identification for the push service at an origin. `contact` is a mailto or https URL."""
        claims: dict[str, str | int] = {"aud": origin, "exp": now_s + CLAIM_S}
        if contact is not None:
            claims["sub"] = contact
        token = jwt.encode(claims, self._key, algorithm="ES256")
        return {"Authorization": f"vapid t={token}, k={self.public}"}


def generate_server_key() -> bytes:
    """Generate a private key for `ServerKey`."""
    key = generate_private_key(SECP256R1())
    return key.private_numbers().private_value.to_bytes(PRIVATE_BYTES, "big")


def point_of(key: EllipticCurvePublicKey) -> bytes:
    """Write a public key as an uncompressed point."""
    return key.public_bytes(serialization.Encoding.X962, serialization.PublicFormat.UncompressedPoint)


def encode(content: bytes) -> str:
    """Encode bytes in base64url without padding (RFC 7515 §2)."""
    return base64.urlsafe_b64encode(content).rstrip(b"=").decode()


def decode(text: str) -> bytes:
    """Decode base64 or base64url, with or without padding. Raises ValueError."""
    plain = text.rstrip("=").replace("-", "+").replace("_", "/")
    try:
        return base64.b64decode(plain + "=" * (-len(plain) % 4), validate=True)
    except (binascii.Error, UnicodeEncodeError):
        raise ValueError("it is not base64") from None


def _public_key(point: bytes) -> EllipticCurvePublicKey:
    if len(point) != _POINT_BYTES:
        raise ValueError("keys.p256dh must have 65 bytes")
    try:
        return EllipticCurvePublicKey.from_encoded_point(SECP256R1(), point)
    except (ValueError, InvalidKey):
        raise ValueError("keys.p256dh is no public key") from None


def _hkdf(salt: bytes, secret: bytes, info: bytes, length: int) -> bytes:
    return HKDF(algorithm=hashes.SHA256(), length=length, salt=salt, info=info).derive(secret)

"""A browser's end of Web Push: its keys, and the decryption of messages (RFC 8291, written from the RFC)."""

import os
from dataclasses import dataclass, field

from cryptography.hazmat.primitives import hashes, hmac
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from brewos_relay.auth.web_push import decode, encode, point_of


@dataclass
class BrowserEnd:
    """The secrets of a subscription."""

    key: ec.EllipticCurvePrivateKey = field(default_factory=lambda: ec.generate_private_key(ec.SECP256R1()))
    auth: bytes = field(default_factory=lambda: os.urandom(16))

    @property
    def keys(self) -> dict[str, str]:
        return {"p256dh": encode(point_of(self.key.public_key())), "auth": encode(self.auth)}

    def decrypt(self, body: bytes) -> bytes:
        salt, size, length = body[:16], int.from_bytes(body[16:20], "big"), body[20]
        sender, record = body[21 : 21 + length], body[21 + length :]
        assert len(record) <= size
        peer = ec.EllipticCurvePublicKey.from_encoded_point(ec.SECP256R1(), sender)
        secret = self.key.exchange(ec.ECDH(), peer)
        own = point_of(self.key.public_key())
        ikm = _mac(_mac(self.auth, secret), b"WebPush: info\0" + own + sender + b"\1")
        prk = _mac(salt, ikm)
        key = _mac(prk, b"Content-Encoding: aes128gcm\0\1")[:16]
        nonce = _mac(prk, b"Content-Encoding: nonce\0\1")[:12]
        plain = AESGCM(key).decrypt(nonce, record, None)
        content, delimiter = plain.rstrip(b"\0")[:-1], plain.rstrip(b"\0")[-1:]
        assert delimiter == b"\2"
        return content


def browser_end(private: str, auth: str) -> BrowserEnd:
    key = ec.derive_private_key(int.from_bytes(decode(private), "big"), ec.SECP256R1())
    return BrowserEnd(key, decode(auth))


def _mac(key: bytes, content: bytes) -> bytes:
    mac = hmac.HMAC(key, hashes.SHA256())
    mac.update(content)
    return mac.finalize()

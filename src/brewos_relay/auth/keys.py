"""Device ids and device keys: their form, making them, and comparing them in constant time."""

import hashlib
import hmac
from typing import Final

# What an unknown device's key is compared with, so that the answer takes as long as for a known one.
_NO_KEY_HASH: Final = bytes(hashlib.sha256().digest_size)


def hash_key(key: str) -> bytes:
    """Hash a key for keeping: SHA-256, 32 bytes.

    Keys are random and long, so there is nothing to guess and no reason for a slow hash.
    """
    return hashlib.sha256(key.encode("utf-8", "surrogatepass")).digest()


def key_matches(key: str, key_hash: bytes | None) -> bool:
    """Compare a key with a stored hash in constant time; None (no such device) is as much work, and False."""
    return hash_matches(hash_key(key), key_hash)


def hash_matches(presented_hash: bytes, key_hash: bytes | None) -> bool:
    """Compare the hash of a key that somebody has with a stored one, as `key_matches` does."""
    expected = _NO_KEY_HASH if key_hash is None else key_hash
    return hmac.compare_digest(presented_hash, expected) and key_hash is not None

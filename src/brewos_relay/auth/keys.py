"""Device ids and device keys: their form, making them, and comparing them in constant time."""

import hashlib
import hmac
import re
import secrets
from typing import Final

DEVICE_ID: Final = re.compile(r"[Bb][Rr][Ww]-[0-9A-Fa-f]{8}")
"""A device id in any case; `parse_device_id` gives the form that everything else works with."""

_KEY: Final = re.compile(r"[A-Za-z0-9_-]{32,128}")
_KEY_BYTES: Final = 32
_SHOWN_CHARS: Final = 16

# What an unknown device's key is compared with, so that the answer takes as long as for a known one.
_NO_KEY_HASH: Final = bytes(hashlib.sha256().digest_size)


def parse_device_id(text: str) -> str:
    """Give a device id in upper case; ValueError if the text is none.

    The error repeats short texts only: a longer one may well be a key that was put in the wrong place.
    """
    if DEVICE_ID.fullmatch(text) is None:
        shown = repr(text) if len(text) <= _SHOWN_CHARS else f"a text of {len(text)} characters"
        raise ValueError(f"{shown} is not a device id: it must be BRW- and 8 hex digits, as in BRW-12AB34CD")
    return text.upper()


def generate_key() -> str:
    """Make a device key of 256 random bits: 43 characters, as the machines make them themselves."""
    return secrets.token_urlsafe(_KEY_BYTES)


def valid_key(text: str) -> bool:
    """Tell whether a text has the form of a device key: 32 to 128 of `A-Z a-z 0-9 _ -`."""
    return _KEY.fullmatch(text) is not None


def check_key(text: str) -> None:
    """Raise ValueError if a text is no device key; the error does not repeat it."""
    if not valid_key(text):
        raise ValueError(
            f"the key has {len(text)} characters or some that no key has:"
            " it must be 32 to 128 of A-Z a-z 0-9 _ -"
        )


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

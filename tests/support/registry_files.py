"""Times, ids and the hashes that stand for the secrets of a test."""

import hashlib
import itertools
from typing import Final

NOW_MS: Final = 1_800_000_000_000
MINUTE_MS: Final = 60_000
DAY_MS: Final = 24 * 3600 * 1000

_numbers: Final = itertools.count(1)


def hash_of(secret: str) -> bytes:
    """Give 32 bytes for a token, a code or a key."""
    return hashlib.sha256(secret.encode()).digest()


def fresh_device_id() -> str:
    """Give an id that no other test has used."""
    return f"BRW-{next(_numbers):08X}"

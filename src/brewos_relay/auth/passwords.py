"""Passwords: length rules, and hashing with argon2id (RFC 9106) into PHC strings.

Hashing and comparing take about 30 ms and 19 MiB: call them in a worker thread.
"""

import os
import unicodedata
from typing import Final

from cryptography.exceptions import InvalidKey
from cryptography.hazmat.primitives.kdf.argon2 import Argon2id

MIN_PASSWORD_CHARS: Final = 10
MAX_PASSWORD_CHARS: Final = 200

_SALT_BYTES: Final = 16
_HASH_BYTES: Final = 32
_PASSES: Final = 2
_LANES: Final = 1
_MEMORY_KIB: Final = 19 * 1024

# Compared with if no password is stored, so that the answer takes as long.
_NO_PASSWORD: Final = f"$argon2id$v=19$m={_MEMORY_KIB},t={_PASSES},p={_LANES}${'A' * 22}${'A' * 43}"


def check_password(password: str) -> None:
    """Raise ValueError unless a password has 10 to 200 characters."""
    count = len(password)
    if not MIN_PASSWORD_CHARS <= count <= MAX_PASSWORD_CHARS:
        raise ValueError(
            f"the password has {count} characters: it must have {MIN_PASSWORD_CHARS} to {MAX_PASSWORD_CHARS}"
        )


def hash_password(password: str) -> str:
    """Hash a password with a new salt into a PHC string. Raises ValueError like `check_password`."""
    check_password(password)
    kdf = Argon2id(
        salt=os.urandom(_SALT_BYTES),
        length=_HASH_BYTES,
        iterations=_PASSES,
        lanes=_LANES,
        memory_cost=_MEMORY_KIB,
    )
    return kdf.derive_phc_encoded(_encode(password))


def password_matches(password: str, phc: str | None) -> bool:
    """Compare a password with a stored hash.

    False if there is none (no account or no password), after equal work.
    """
    if len(password) > MAX_PASSWORD_CHARS:  # no account has one, and normalising it could take long
        password, phc = "", None
    try:
        Argon2id.verify_phc_encoded(_encode(password), _NO_PASSWORD if phc is None else phc)
    except (InvalidKey, ValueError):
        return False
    return phc is not None


def _encode(password: str) -> bytes:
    # Keyboards and systems encode the same letters as different code points.
    return unicodedata.normalize("NFKC", password).encode("utf-8", "surrogatepass")

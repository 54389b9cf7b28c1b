"""Secrets: generating signing secrets, tokens and short codes, and hashing and comparing them."""

import hashlib
import hmac
import secrets
from base64 import urlsafe_b64encode
from typing import Final

_SIGNING_BYTES: Final = 48
_TOKEN_BYTES: Final = 32
_SUCCESSOR: Final = b"brewos-relay successor of a token\0"

# Crockford's base32 leaves out I, L, O and U, which look like other characters or form words.
_ALPHABET: Final = "0123456789ABCDEFGHJKMNPQRSTVWXYZ"
_MEANT: Final = str.maketrans("OIL", "011", "- ")
_CODE_CHARS: Final = 8
_TYPED_CHARS: Final = 32

# A code has 40 random bits. At 16 MiB and about 30 ms for each guess, codes cannot be recovered from stolen
# hashes before they expire. The salt is fixed because a code is looked up by its hash.
_CODE_SALT: Final = b"brewos-relay short code"
_SCRYPT_N: Final = 2**14
_SCRYPT_R: Final = 8
_HASH_BYTES: Final = 32

_NO_HASH: Final = bytes(hashlib.sha256().digest_size)
"""Compared with if there is no stored hash, so that the answer takes as long as for a known device."""


def generate_secret() -> str:
    """Generate a secret for signing tokens: 64 characters, 384 random bits."""
    return secrets.token_urlsafe(_SIGNING_BYTES)


def generate_secret_token() -> str:
    """Generate a token of 256 random bits: 43 characters that need no escaping in a URL."""
    return secrets.token_urlsafe(_TOKEN_BYTES)


def generate_salt() -> bytes:
    """Generate a salt for `derive_token`: 256 random bits."""
    return secrets.token_bytes(_TOKEN_BYTES)


def derive_token(token: str, salt: bytes) -> str:
    """Derive a token's successor: HMAC-SHA256 of a salt, with the token as key, in 43 characters.

    The registry stores the salt and the token's hash; the client stores the token. Only both together give
    the successor.
    """
    key = token.encode("utf-8", "surrogatepass")
    digest = hmac.digest(key, _SUCCESSOR + salt, "sha256")
    return urlsafe_b64encode(digest).rstrip(b"=").decode()


def hash_secret(secret: str) -> bytes:
    """Hash a device key or a token for storing and finding: SHA-256, 32 bytes.

    These secrets are long and random and cannot be guessed, so they need no slow hash.
    """
    return hashlib.sha256(secret.encode("utf-8", "surrogatepass")).digest()


def secret_matches(secret: str, stored_hash: bytes | None) -> bool:
    """Compare a secret with a stored hash in constant time. False if there is none, after equal work."""
    return hash_matches(hash_secret(secret), stored_hash)


def hash_matches(presented_hash: bytes, stored_hash: bytes | None) -> bool:
    """Compare the hash of a presented secret with a stored one, like `secret_matches`."""
    expected = _NO_HASH if stored_hash is None else stored_hash
    return hmac.compare_digest(presented_hash, expected) and stored_hash is not None


def generate_code() -> str:
    """Generate a short code for people to read out and type: `XXXX-XXXX`, 40 random bits."""
    code = "".join(secrets.choice(_ALPHABET) for _ in range(_CODE_CHARS))
    return f"{code[:4]}-{code[4:]}"


def normalise_code(text: str) -> str | None:
    """Convert a typed code to its generated form, `XXXX-XXXX`. Returns None if it is malformed.

    Case, spaces and dashes do not matter. O counts as 0, I and L as 1.
    """
    if len(text) > _TYPED_CHARS or not text.isascii():
        return None
    code = text.strip().upper().translate(_MEANT)
    if len(code) != _CODE_CHARS or not set(code) <= set(_ALPHABET):
        return None
    return f"{code[:4]}-{code[4:]}"


def hash_code(code: str) -> bytes:
    """Hash a code for storing and finding: scrypt, 32 bytes. Takes 30 ms: call it in a worker thread."""
    return hashlib.scrypt(code.encode(), salt=_CODE_SALT, n=_SCRYPT_N, r=_SCRYPT_R, p=1, dklen=_HASH_BYTES)


def bearer_matches(header: str | None, token: str) -> bool:
    """Tell in constant time whether an Authorization header has this token."""
    scheme, _, given = (header or "").partition(" ")
    matches = hmac.compare_digest(given.strip().encode("utf-8", "surrogatepass"), token.encode())
    return matches and scheme.lower() == "bearer"

"""Keys that sign tokens: secrets (HS256) and private keys from PEM files (EdDSA with Ed25519, RS256).

Each key knows the one algorithm that it is for, so that nothing in a token can choose another.
"""

import base64
import binascii
import hashlib
import hmac
import json
from typing import Final, Literal, TypeAlias, get_args

import jwt
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.asymmetric.rsa import RSAPrivateKey, RSAPublicKey
from jwt.algorithms import HMACAlgorithm, OKPAlgorithm, RSAAlgorithm

from brewos_relay.errors import TokenRejected

MIN_SECRET_BYTES: Final = 32
MIN_RSA_BITS: Final = 2048

Algorithm: TypeAlias = Literal["HS256", "EdDSA", "RS256"]

_SECRET_ID: Final = b"brewos-relay key id"
_SECRET_ID_BYTES: Final = 12

_STANDARD_ALPHABET: Final = bytes.maketrans(b"-_", b"+/")
"""From the alphabet of base64url (RFC 4648 §5) to that of base64."""

_HS256: Final = HMACAlgorithm(HMACAlgorithm.SHA256)


class _CheckedHs256(HMACAlgorithm):
    """HS256 that checks its secret once, in SecretKey, rather than for each token."""

    def prepare_key(self, key: str | bytes) -> bytes:
        """Return the secret unchanged."""
        assert isinstance(key, bytes)
        return key


_EDDSA_NAMES: Final = ("EdDSA", "Ed25519")
"""Names of one algorithm in RFC 8037 and RFC 9864. We sign under the first, which more services know."""

_JWS: Final = jwt.PyJWS(algorithms=get_args(Algorithm))
_JWS.register_algorithm("Ed25519", OKPAlgorithm())
_JWS.unregister_algorithm("HS256")
_JWS.register_algorithm("HS256", _CheckedHs256(HMACAlgorithm.SHA256))


class SigningKey:
    """A key that signs and verifies tokens. `id` is derived from the key and reveals nothing secret."""

    def __init__(
        self,
        *,
        key_id: str,
        algorithm: Algorithm,
        signs_with: bytes | Ed25519PrivateKey | RSAPrivateKey,
        verifies_with: bytes | Ed25519PublicKey | RSAPublicKey,
    ) -> None:
        self.id = key_id
        self.algorithm = algorithm
        self._accepted = _EDDSA_NAMES if algorithm == "EdDSA" else (algorithm,)
        self._signs_with = signs_with
        self._verifies_with = verifies_with

    def sign(self, payload: bytes) -> str:
        """Sign a payload: a JWS in compact form (RFC 7515 §7.1)."""
        return _JWS.encode(payload, self._signs_with, algorithm=self.algorithm, headers={"kid": self.id})

    def verify(self, token: str) -> bytes | None:
        """Return the payload of a token, or None if another key signed it.

        Raises TokenRejected for another algorithm, and PyJWT's errors for a malformed token.
        """
        try:
            payload: bytes = _JWS.decode(token, self._verifies_with, algorithms=self._accepted)
        except jwt.InvalidSignatureError:
            return None
        except jwt.InvalidAlgorithmError:
            raise TokenRejected(f"the token must be signed with {self.algorithm}") from None
        return payload


class SecretKey(SigningKey):
    """A secret that both signs and verifies, with HMAC and SHA-256 (RFC 7518 §3.2)."""

    def __init__(self, secret: str) -> None:
        """Take a secret of at least 32 bytes. Raises ValueError if it is shorter or is a key file."""
        try:
            key = secret.encode()
        except UnicodeEncodeError:
            raise ValueError("the secret is not UTF-8") from None
        if len(key) < MIN_SECRET_BYTES:
            raise ValueError(f"the secret has {len(key)} bytes; it must have {MIN_SECRET_BYTES} or more")
        try:
            _HS256.prepare_key(key)
        except jwt.InvalidKeyError:
            # A public key used as a secret would let everyone who has it sign.
            raise ValueError("the secret is a key in PEM or another form; it must be a random text") from None
        key_id = _encode(_HS256.sign(_SECRET_ID, key)[:_SECRET_ID_BYTES])
        super().__init__(key_id=key_id, algorithm="HS256", signs_with=key, verifies_with=key)
        self._secret = key

    def open_signed(self, signed: bytes, signature: str) -> bytes | None:
        """Return the payload of a token with a header that `verify` has accepted before.

        `signed` is the token without its signature. None if anything is unusual: `verify` then decides. This
        takes a tenth of its time.
        """
        expected = _encode(hmac.digest(self._secret, signed, "sha256"))
        if not hmac.compare_digest(expected.encode(), signature.encode("utf-8", "surrogatepass")):
            return None
        payload = signed.partition(b".")[2].translate(_STANDARD_ALPHABET)
        try:
            return binascii.a2b_base64(payload + b"=" * (-len(payload) % 4), strict_mode=True)
        except binascii.Error:
            return None


class PrivateKey(SigningKey):
    """A private key. Other services can verify its signatures with the public half."""

    def __init__(self, key: Ed25519PrivateKey | RSAPrivateKey) -> None:
        public_key = key.public_key()
        algorithm: Algorithm
        # The required members, which RFC 7638 hashes into a thumbprint. PyJWT returns more.
        if isinstance(public_key, Ed25519PublicKey):
            algorithm, members = "EdDSA", ("crv", "kty", "x")
            shown = OKPAlgorithm.to_jwk(public_key, as_dict=True)
        else:
            algorithm, members = "RS256", ("e", "kty", "n")
            shown = RSAAlgorithm.to_jwk(public_key, as_dict=True)
        self._public = {name: str(shown[name]) for name in members}
        hashed = hashlib.sha256(json.dumps(self._public, separators=(",", ":")).encode())
        super().__init__(
            key_id=_encode(hashed.digest()), algorithm=algorithm, signs_with=key, verifies_with=public_key
        )

    def jwk(self) -> dict[str, str]:
        """Return the public half as a JSON Web Key (RFC 7517)."""
        return {**self._public, "kid": self.id, "alg": self.algorithm, "use": "sig"}


def load_private_key(pem: bytes) -> PrivateKey:
    """Read a private key: Ed25519, or RSA of at least 2048 bits. Raises ValueError with the reason."""
    try:
        key = serialization.load_pem_private_key(pem, password=None)
    except TypeError:
        raise ValueError("the key is encrypted; store it without a passphrase") from None
    except (ValueError, UnsupportedAlgorithm):
        raise ValueError("it contains no private key in PEM form") from None
    if isinstance(key, RSAPrivateKey) and key.key_size < MIN_RSA_BITS:
        raise ValueError(f"the RSA key has {key.key_size} bits; it must have {MIN_RSA_BITS} or more")
    if not isinstance(key, RSAPrivateKey | Ed25519PrivateKey):
        raise ValueError("the key is neither an Ed25519 nor an RSA key")
    return PrivateKey(key)


def _encode(digest: bytes) -> str:
    return base64.urlsafe_b64encode(digest).rstrip(b"=").decode()

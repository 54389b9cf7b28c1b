"""The public keys of an OpenID Connect issuer: discovered, fetched (JWKS, RFC 7517) and cached."""

import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final

import jwt

from brewos_relay.auth.issuer_metadata import ask_issuer, endpoint_in, fetch_metadata
from brewos_relay.errors import IdentityRejected, IdentityUnavailable

_RSA: Final = ("RS256", "RS384", "RS512", "PS256", "PS384", "PS512")
_BY_CURVE: Final = {
    ("EC", "P-256"): ("ES256",),
    ("EC", "P-384"): ("ES384",),
    ("EC", "P-521"): ("ES512",),
    ("OKP", "Ed25519"): ("EdDSA", "Ed25519"),  # RFC 8037 and RFC 9864 name the same signature
}

#: Algorithms for ID tokens: key pairs only. Everyone who can verify with a shared secret can also forge.
ALGORITHMS: Final = frozenset({*_RSA, *(name for names in _BY_CURVE.values() for name in names)})

CANDIDATES_AT_MOST: Final = 8
"""How many keys are tried for one token. Several may share an id, and a token may name none."""

_KEYS_AT_MOST: Final = 100
_GOOD_FOR_S: Final = 3600.0
_BEARABLE_FOR_S: Final = 24 * 3600.0
_PAUSE_S: Final = 60.0
_PAUSE_AFTER_FAILURE_S: Final = 5.0


@dataclass(frozen=True, slots=True)
class IssuerKey:
    """A public key of an issuer, ready for each algorithm that it supports."""

    key_id: str | None
    by_algorithm: Mapping[str, jwt.PyJWK]


class _Ed25519(jwt.PyJWK):
    """A key for the algorithm `Ed25519` (RFC 9864). PyJWT knows it as EdDSA only."""

    def __init__(self, shown: dict[str, Any]) -> None:
        super().__init__(shown, "EdDSA")
        self.algorithm_name = "Ed25519"


class IssuerKeys:
    """A cache of an issuer's keys. Thread-safe.

    Keys are fetched on first use, again after an hour, and, at most once a minute, when a token names an
    unknown key. While the issuer is unreachable, cached keys stay valid for a day.
    """

    def __init__(
        self, *, issuer: str, jwks_url: str | None, timeout_s: float, clock: Callable[[], float]
    ) -> None:
        self._issuer = issuer
        self._jwks_url = jwks_url
        self._timeout_s = timeout_s
        self._clock = clock
        self._fetching = threading.Lock()
        self._keys: list[IssuerKey] = []
        self._fetched_s = -_BEARABLE_FOR_S
        self._may_fetch_s = clock()
        self._problem: IdentityUnavailable | None = None

    def find(self, key_id: str | None) -> list[IssuerKey]:
        """Return the keys with this id, at most 8. A token without a key id gets all keys.

        Raises IdentityRejected if there is none, IdentityUnavailable if the keys cannot be fetched.
        """
        if not self._pick(key_id) or self._are_old():
            with self._fetching:
                # Another thread may have fetched the keys while this one waited.
                if self._clock() >= self._may_fetch_s and (not self._pick(key_id) or self._are_old()):
                    self._refresh()
        keys = self._pick(key_id)
        if keys:
            return keys
        if self._problem is not None:
            raise IdentityUnavailable(str(self._problem))
        raise IdentityRejected("the issuer does not publish the token's key")

    def _are_old(self) -> bool:
        return self._clock() - self._fetched_s >= _GOOD_FOR_S

    def _pick(self, key_id: str | None) -> list[IssuerKey]:
        found = [key for key in self._keys if key_id is None or key.key_id == key_id]
        return found[:CANDIDATES_AT_MOST]

    def _refresh(self) -> None:
        try:
            self._keys = self._fetch()
        except IdentityUnavailable as problem:
            self._problem = problem
            self._may_fetch_s = self._clock() + _PAUSE_AFTER_FAILURE_S
            if self._clock() - self._fetched_s >= _BEARABLE_FOR_S:
                self._keys = []
        else:
            self._problem = None
            self._fetched_s = self._clock()
            self._may_fetch_s = self._fetched_s + _PAUSE_S

    def _fetch(self) -> list[IssuerKey]:
        url = self._jwks_url
        if url is None:
            metadata = fetch_metadata(self._issuer, timeout_s=self._timeout_s)
            url = endpoint_in(metadata, "jwks_uri", issuer=self._issuer)
        shown = ask_issuer(self._issuer, url, timeout_s=self._timeout_s).get("keys")
        read = [_read_key(one) for one in shown[:_KEYS_AT_MOST]] if isinstance(shown, list) else []
        keys = [key for key in read if key is not None]
        if not keys:
            raise IdentityUnavailable(f"{self._issuer} publishes no usable keys")
        return keys


def _read_key(shown: Any) -> IssuerKey | None:
    """Read a JSON Web Key (RFC 7517). Returns None for an unusable key; the others still count."""
    if not isinstance(shown, dict) or shown.get("use", "sig") != "sig" or "d" in shown:
        return None
    operations = shown.get("key_ops", ["verify"])
    if not isinstance(operations, list) or "verify" not in operations:
        return None
    key_id = shown.get("kid")
    if key_id is not None and not isinstance(key_id, str):
        return None
    try:
        by_algorithm = {name: _ready(shown, name) for name in _algorithms_of(shown)}
    except (jwt.PyJWTError, ValueError, TypeError, AttributeError):
        return None
    return IssuerKey(key_id, by_algorithm) if by_algorithm else None


def _algorithms_of(shown: Mapping[str, Any]) -> tuple[str, ...]:
    """List the algorithms that a key's type, curve and `alg` allow."""
    kind, curve = str(shown.get("kty")), str(shown.get("crv"))
    fitting = _RSA if kind == "RSA" else _BY_CURVE.get((kind, curve), ())
    named = shown.get("alg")
    if named is None:
        return fitting
    if named in _BY_CURVE["OKP", "Ed25519"] and named in fitting:
        return fitting  # two names of one algorithm
    return tuple(name for name in fitting if name == named)


def _ready(shown: dict[str, Any], algorithm: str) -> jwt.PyJWK:
    return _Ed25519(shown) if algorithm == "Ed25519" else jwt.PyJWK(shown, algorithm)

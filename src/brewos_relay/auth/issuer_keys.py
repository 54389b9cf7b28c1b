"""The public keys of an OpenID Connect issuer: found (Discovery 1.0), fetched (RFC 7517), kept."""

import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final

import jwt

from brewos_relay.auth.outbound_http import check_url, fetch_json
from brewos_relay.errors import IdentityRejected, IdentityUnavailable

_RSA: Final = ("RS256", "RS384", "RS512", "PS256", "PS384", "PS512")
_BY_CURVE: Final = {
    ("EC", "P-256"): ("ES256",),
    ("EC", "P-384"): ("ES384",),
    ("EC", "P-521"): ("ES512",),
    ("OKP", "Ed25519"): ("EdDSA", "Ed25519"),  # RFC 8037 and RFC 9864 name the same signature
}

#: What an ID token may be signed with: key pairs only. With a shared secret, whoever can verify can forge.
ALGORITHMS: Final = frozenset({*_RSA, *(name for names in _BY_CURVE.values() for name in names)})

CANDIDATES_AT_MOST: Final = 8
"""How many keys are tried for one token: several may have the same id, and a token need not name any."""

_KEYS_AT_MOST: Final = 100
_GOOD_FOR_S: Final = 3600.0
_BEARABLE_FOR_S: Final = 24 * 3600.0
_PAUSE_S: Final = 60.0
_PAUSE_AFTER_FAILURE_S: Final = 5.0


@dataclass(frozen=True, slots=True)
class IssuerKey:
    """A public key of an issuer, ready for each of the algorithms that it may be used with."""

    key_id: str | None
    by_algorithm: Mapping[str, jwt.PyJWK]


class _Ed25519(jwt.PyJWK):
    """A key for the algorithm `Ed25519` (RFC 9864), which PyJWT knows as EdDSA alone."""

    def __init__(self, shown: dict[str, Any]) -> None:
        super().__init__(shown, "EdDSA")
        self.algorithm_name = "Ed25519"


class IssuerKeys:
    """Keeps the keys of an issuer. Safe to use from several threads.

    They are fetched when first needed, again every hour, and when a token names one that is not among them,
    at most once a minute. While the issuer cannot be reached, those that are there are good for a day.
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
        """Return the keys of this id, or all of them for a token that names none; 8 at most.

        Raises IdentityRejected if there is no such key; IdentityUnavailable if that cannot be told now.
        """
        if not self._pick(key_id) or self._are_old():
            with self._fetching:
                # Another thread may have fetched them while this one waited.
                if self._clock() >= self._may_fetch_s and (not self._pick(key_id) or self._are_old()):
                    self._refresh()
        keys = self._pick(key_id)
        if keys:
            return keys
        if self._problem is not None:
            raise IdentityUnavailable(str(self._problem))
        raise IdentityRejected("the token was signed with a key that its issuer does not show")

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
        shown = self._ask(self._jwks_url or self._discover()).get("keys")
        read = [_read_key(one) for one in shown[:_KEYS_AT_MOST]] if isinstance(shown, list) else []
        keys = [key for key in read if key is not None]
        if not keys:
            raise IdentityUnavailable(f"{self._issuer} shows no keys that can be used")
        return keys

    def _discover(self) -> str:
        about = self._ask(f"{self._issuer.rstrip('/')}/.well-known/openid-configuration")
        if about.get("issuer") != self._issuer:
            raise IdentityUnavailable(f"{self._issuer} goes by another name where it introduces itself")
        url = about.get("jwks_uri")
        try:
            check_url(url if isinstance(url, str) else "")
        except ValueError as problem:
            raise IdentityUnavailable(f"{self._issuer} does not say where its keys are: {problem}") from None
        if self._issuer.startswith("https:") and not str(url).startswith("https:"):
            raise IdentityUnavailable(f"{self._issuer} wants its keys to be fetched unencrypted")
        return str(url)

    def _ask(self, url: str) -> dict[str, Any]:
        status, answer = fetch_json(url, timeout_s=self._timeout_s)
        if status != 200 or not isinstance(answer, dict):
            raise IdentityUnavailable(f"{self._issuer} answers with status {status}, or not as it should")
        return answer


def _read_key(shown: Any) -> IssuerKey | None:
    """Read a JSON Web Key (RFC 7517); None if it cannot be used here, which does not spoil the others."""
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
    """Tell what a key may be used with: what its type and curve allow, and its `alg` if it has one."""
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

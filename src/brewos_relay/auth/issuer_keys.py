"""The public keys of an OpenID Connect issuer: found (Discovery 1.0), fetched (RFC 7517), kept."""

import threading
from collections.abc import Callable
from typing import Any, Final

import jwt

from brewos_relay.auth.fetching import check_url, fetch_json
from brewos_relay.errors import IdentityRejected, IdentityUnavailable

#: What an ID token may be signed with: key pairs only. With a shared secret, whoever can verify can forge.
ALGORITHMS: Final = frozenset(
    {"RS256", "RS384", "RS512", "PS256", "PS384", "PS512", "ES256", "ES384", "ES512", "EdDSA"}
)

_GOOD_FOR_S: Final = 3600.0
_BEARABLE_FOR_S: Final = 24 * 3600.0
_PAUSE_S: Final = 60.0
_PAUSE_AFTER_FAILURE_S: Final = 5.0


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
        self._keys: list[jwt.PyJWK] = []
        self._fetched_s = -_BEARABLE_FOR_S
        self._may_fetch_s = clock()
        self._problem: IdentityUnavailable | None = None

    def find(self, key_id: str | None) -> jwt.PyJWK:
        """Give the key of this id; the only one there is, for a token that names none.

        Raises IdentityRejected if there is no such key; IdentityUnavailable if that cannot be told now.
        """
        if self._pick(key_id) is None or self._are_old():
            with self._fetching:
                # Somebody else may have fetched them while this one waited.
                if self._clock() >= self._may_fetch_s and (self._pick(key_id) is None or self._are_old()):
                    self._refresh()
        key = self._pick(key_id)
        if key is not None:
            return key
        if self._problem is not None:
            raise IdentityUnavailable(str(self._problem))
        raise IdentityRejected("the token was signed with a key that its issuer does not show")

    def _are_old(self) -> bool:
        return self._clock() - self._fetched_s >= _GOOD_FOR_S

    def _pick(self, key_id: str | None) -> jwt.PyJWK | None:
        keys = self._keys
        if key_id is None:
            return keys[0] if len(keys) == 1 else None
        return next((key for key in keys if key.key_id == key_id), None)

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

    def _fetch(self) -> list[jwt.PyJWK]:
        shown = self._ask(self._jwks_url or self._discover()).get("keys")
        read = [_read_key(one) for one in shown] if isinstance(shown, list) else []
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


def _read_key(shown: Any) -> jwt.PyJWK | None:
    """Read a JSON Web Key; None if it is of no use here, which does not spoil the others."""
    try:
        key = jwt.PyJWK(shown)
        is_useful = key.algorithm_name in ALGORITHMS and key.public_key_use in (None, "sig")
    except (jwt.PyJWTError, ValueError, TypeError, AttributeError):
        return None
    return key if is_useful else None

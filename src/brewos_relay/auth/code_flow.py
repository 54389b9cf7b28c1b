"""The authorization code flow (OpenID Connect Core 1.0 §3.1) with PKCE (RFC 7636), at one issuer.

The browser goes to the issuer, and comes back with a code, which the relay exchanges for an ID token. One
random secret stands for an attempt: `state`, `nonce` and the PKCE verifier are derived from it. It stays in
a signed cookie of the browser, so any instance can complete the attempt, and nothing is stored.

Calls may fetch from the issuer and block meanwhile: make them in a worker thread.
"""

import base64
import hashlib
import hmac
import secrets
import threading
import time
from collections.abc import Callable, Mapping
from typing import Any, Final
from urllib.parse import quote_plus, urlencode, urlsplit

import msgspec

from brewos_relay.auth.identity_providers import ProvenIdentity, Verifier
from brewos_relay.auth.issuer_metadata import endpoint_in, fetch_metadata
from brewos_relay.auth.outbound_http import FETCH_TIMEOUT_S, fetch_json
from brewos_relay.auth.tokens import KeyRing
from brewos_relay.errors import IdentityRejected, IdentityUnavailable, TokenRejected

COOKIE: Final = "brewos_relay_sign_in"
PATH: Final = "/api/auth/code"
"""Where browsers send the cookie."""
ATTEMPT_S: Final = 600
"""How long a user may take at the issuer."""

_USE: Final = "sign-in attempt"
_SCOPE: Final = "openid email profile"
_GOOD_FOR_S: Final = 3600.0
_PAUSE_AFTER_FAILURE_S: Final = 5.0


class Attempt(msgspec.Struct, frozen=True):
    """An attempt of a browser to sign in, as its cookie has it: the way, the secret, and when it ends."""

    use: str
    kind: str
    secret: str
    exp: int

    def derive(self, what: str) -> str:
        """Derive a value of the attempt that does not reveal the others: 256 bits in base64."""
        return _base64(hmac.digest(self.secret.encode(), what.encode(), "sha256"))

    @property
    def state(self) -> str:
        """The value that the issuer must give back to this browser."""
        return self.derive("state")


def new_attempt(kind: str) -> Attempt:
    """Begin an attempt."""
    return Attempt(_USE, kind, secrets.token_urlsafe(32), int(time.time()) + ATTEMPT_S)


def sign_attempt(keys: KeyRing, attempt: Attempt) -> str:
    """Write the cookie of an attempt."""
    return keys.sign(msgspec.structs.asdict(attempt))


def read_attempt(keys: KeyRing, cookie: str | None, *, state: str) -> Attempt:
    """Return the attempt of a cookie.

    Raises TokenRejected if it is not valid, or `state` belongs to another attempt.
    """
    try:
        attempt = msgspec.json.decode(keys.open(cookie or ""), type=Attempt)
    except (TokenRejected, msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        raise TokenRejected("this browser has not begun to sign in") from None
    if attempt.use != _USE or not hmac.compare_digest(
        attempt.state.encode(), state.encode("utf-8", "replace")
    ):
        raise TokenRejected("this browser has not begun to sign in")
    if attempt.exp <= time.time():
        raise TokenRejected("this attempt to sign in has expired")
    return attempt


class CodeFlow:
    """Signs users in at an issuer, for one client of it. Thread-safe.

    `name` is what users call the issuer. `redirect_uri` is the page to which it sends browsers back. A client
    without a secret is a public one, which PKCE protects.
    """

    def __init__(
        self,
        *,
        name: str,
        verifier: Verifier,
        client_id: str,
        client_secret: str,
        redirect_uri: str,
        timeout_s: float = FETCH_TIMEOUT_S,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.name = name
        self.redirect_uri = redirect_uri
        self._verifier = verifier
        self._issuer = verifier.issuer
        self._client_id = client_id
        self._client_secret = client_secret
        self._timeout_s = timeout_s
        self._clock = clock
        self._fetching = threading.Lock()
        self._metadata: Mapping[str, Any] | None = None
        self._problem: IdentityUnavailable | None = None
        self._due_s = clock()

    def authorization_url(self, attempt: Attempt) -> str:
        """Return the page of the issuer for an attempt. Raises IdentityUnavailable."""
        url = endpoint_in(self._read_metadata(), "authorization_endpoint", issuer=self._issuer)
        challenge = _base64(hashlib.sha256(attempt.derive("verifier").encode()).digest())
        query = urlencode(
            {
                "response_type": "code",
                "client_id": self._client_id,
                "redirect_uri": self.redirect_uri,
                "scope": _SCOPE,
                "state": attempt.state,
                "nonce": attempt.derive("nonce"),
                "code_challenge": challenge,
                "code_challenge_method": "S256",
            }
        )
        return f"{url}{'&' if urlsplit(url).query else '?'}{query}"

    def redeem(self, attempt: Attempt, code: str, *, issuer: str | None) -> ProvenIdentity:
        """Exchange a code for the identity that it stands for.

        `issuer` is the parameter `iss` of the response (RFC 9207). Raises IdentityRejected, or
        IdentityUnavailable if the issuer does not answer, or does not accept the client.
        """
        metadata = self._read_metadata()
        is_named = metadata.get("authorization_response_iss_parameter_supported") is True
        if issuer != self._issuer and (issuer is not None or is_named):
            raise IdentityRejected("the response is from another issuer")
        form = {
            "grant_type": "authorization_code",
            "code": code,
            "redirect_uri": self.redirect_uri,
            "code_verifier": attempt.derive("verifier"),
        }
        authorization = self._authenticate(metadata, form)
        status, answer = fetch_json(
            endpoint_in(metadata, "token_endpoint", issuer=self._issuer),
            form=form,
            authorization=authorization,
            timeout_s=self._timeout_s,
        )
        said = answer if isinstance(answer, dict) else {}
        if status == 400 and said.get("error") == "invalid_grant":
            raise IdentityRejected("the code has expired or was used already")
        id_token = said.get("id_token")
        if status != 200 or not isinstance(id_token, str):
            raise IdentityUnavailable(
                f"{self._issuer} gave no ID token (status {status}): check the id and secret of the client"
            )
        return self._verifier.verify(id_token, nonce=attempt.derive("nonce"))

    def _authenticate(self, metadata: Mapping[str, Any], form: dict[str, str]) -> str | None:
        """Add the client to a request for a token. Returns the Authorization header, if it has one."""
        methods = metadata.get("token_endpoint_auth_methods_supported")
        if self._client_secret and (not isinstance(methods, list) or "client_secret_basic" in methods):
            pair = f"{quote_plus(self._client_id)}:{quote_plus(self._client_secret)}"
            return f"Basic {base64.b64encode(pair.encode()).decode()}"
        form["client_id"] = self._client_id
        if self._client_secret:
            form["client_secret"] = self._client_secret
        return None

    def _read_metadata(self) -> Mapping[str, Any]:
        """Return the issuer's document, fetched once an hour; an earlier one while the issuer fails."""
        with self._fetching:
            if self._clock() >= self._due_s:
                try:
                    self._metadata = fetch_metadata(self._issuer, timeout_s=self._timeout_s)
                except IdentityUnavailable as problem:
                    self._problem = problem
                    self._due_s = self._clock() + _PAUSE_AFTER_FAILURE_S
                else:
                    self._due_s = self._clock() + _GOOD_FOR_S
            if self._metadata is None:
                raise IdentityUnavailable(str(self._problem))
            return self._metadata


def _base64(content: bytes) -> str:
    return base64.urlsafe_b64encode(content).rstrip(b"=").decode()

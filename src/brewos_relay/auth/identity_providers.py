"""Identity providers: verify ID tokens of OpenID Connect issuers, and access tokens of Facebook.

Verification may fetch from the provider and blocks meanwhile: call it in a worker thread.
"""

import hashlib
import hmac
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import suppress
from typing import Any, Final, NamedTuple

import jwt

from brewos_relay.auth.issuer_keys import ALGORITHMS, IssuerKeys
from brewos_relay.auth.outbound_http import FETCH_TIMEOUT_S, fetch_json
from brewos_relay.errors import IdentityRejected, IdentityUnavailable
from brewos_relay.outbound import check_operator_url
from brewos_relay.texts import EMAIL_CHARS, NAME_CHARS, clean_name, is_identifier

GOOGLE_ISSUER: Final = "https://accounts.google.com"
GOOGLE_KEYS_URL: Final = "https://www.googleapis.com/oauth2/v3/certs"
FACEBOOK_ISSUER: Final = "https://www.facebook.com"
FACEBOOK_GRAPH_URL: Final = "https://graph.facebook.com"

MAX_PROOF_CHARS: Final = 16_384

_NO_MAIL_DOMAIN: Final = "facebook.invalid"  # RFC 2606: no mail ever gets there
_CLOCKS_DIFFER_S: Final = 60
_SUBJECT_CHARS: Final = 255
_URL_CHARS: Final = 2048


class ProvenIdentity(NamedTuple):
    """An identity that a provider has confirmed.

    `subject` never changes for a user of the issuer; all fields after it may. `email_verified` is true only
    if the user is known to read the mail of this address now.
    """

    issuer: str
    subject: str
    email: str | None
    email_verified: bool
    name: str | None
    picture_url: str | None


class Verifier:
    """Verifies ID tokens (OpenID Connect Core 1.0 §3.1.3.7) of one issuer, made for one of our client ids."""

    def __init__(
        self,
        *,
        issuer: str,
        audiences: Collection[str],
        jwks_url: str | None = None,
        timeout_s: float = FETCH_TIMEOUT_S,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Take the issuer as its tokens name it.

        Without `jwks_url`, the issuer's discovery document names it.

        Nothing is fetched yet. Raises ValueError without an audience, and for a URL that is neither https nor
        on this computer.
        """
        check_operator_url(issuer)
        if jwks_url is not None:
            check_operator_url(jwks_url)
        if not audiences:
            raise ValueError(
                "an audience is required: without it, tokens for other services would be accepted"
            )
        self._issuer = issuer
        self._audiences = tuple(audiences)
        self._keys = IssuerKeys(issuer=issuer, jwks_url=jwks_url, timeout_s=timeout_s, clock=clock)

    @property
    def issuer(self) -> str:
        """The issuer whose tokens are verified."""
        return self._issuer

    def verify(self, id_token: str, *, nonce: str | None = None) -> ProvenIdentity:
        """Verify an ID token, which must name the nonce if one was sent to the issuer.

        Raises IdentityRejected, or IdentityUnavailable if the issuer does not answer.
        """
        content = self._read(id_token)
        if nonce is not None and content.get("nonce") != nonce:
            raise IdentityRejected("the token belongs to another attempt to sign in")
        self._check_presenter(content)
        subject = _short_text(content.get("sub"), longest_chars=_SUBJECT_CHARS)
        if subject is None:
            raise IdentityRejected("the token has no valid 'sub'")
        email = _short_text(content.get("email"), longest_chars=EMAIL_CHARS)
        return ProvenIdentity(
            issuer=self._issuer,
            subject=subject,
            email=email,
            email_verified=email is not None and self._is_verified(email, content),
            name=_name(content.get("name")),
            picture_url=_picture_url(content.get("picture")),
        )

    def _read(self, id_token: str) -> dict[str, Any]:
        if len(id_token) > MAX_PROOF_CHARS or not id_token.isascii():
            raise IdentityRejected("the token is malformed")
        try:
            header = jwt.get_unverified_header(id_token)
            key_id, algorithm = header.get("kid"), header.get("alg")
            if algorithm not in ALGORITHMS:
                raise IdentityRejected("the token must be signed with a key pair, like RS256 or ES256")
            ready = [key.by_algorithm.get(algorithm) for key in self._keys.find(key_id)]
            candidates = [key for key in ready if key is not None]
            if not candidates:
                raise IdentityRejected("the token's algorithm does not fit the issuer's key")
            return self._decode_with_any(id_token, candidates)
        except jwt.PyJWTError as problem:
            raise IdentityRejected(_reason(problem)) from None
        except (ValueError, TypeError, ArithmeticError, RecursionError):
            raise IdentityRejected("the token is malformed") from None

    def _decode_with_any(self, id_token: str, keys: Sequence[jwt.PyJWK]) -> dict[str, Any]:
        """Verify a token with the first key that fits. Raises the error of the last key if none does."""
        for key in keys[:-1]:
            with suppress(jwt.InvalidSignatureError, jwt.InvalidKeyError):
                return self._decode(id_token, key)
        return self._decode(id_token, keys[-1])

    def _decode(self, id_token: str, key: jwt.PyJWK) -> dict[str, Any]:
        content: dict[str, Any] = jwt.decode(
            id_token,
            key=key,
            algorithms=[key.algorithm_name],
            audience=self._audiences,
            issuer=self._issuer_names(),
            leeway=_CLOCKS_DIFFER_S,
            options={"require": ["exp", "iat", "iss", "sub", "aud"], "enforce_minimum_key_length": True},
        )
        return content

    def _issuer_names(self) -> list[str]:
        return [self._issuer]

    def _check_presenter(self, content: Mapping[str, Any]) -> None:
        """Reject a token for our audience that was issued to another client (`azp`)."""
        presenter = content.get("azp")
        is_shared = isinstance(content["aud"], list) and len(content["aud"]) > 1
        if presenter not in self._audiences and (presenter is not None or is_shared):
            raise IdentityRejected("the token was issued to another client")

    def _is_verified(self, email: str, content: Mapping[str, Any]) -> bool:
        # Some issuers write booleans as strings.
        said = content.get("email_verified")
        return said is True or said == "true"


class GoogleVerifier(Verifier):
    """Verifies the ID tokens of Google."""

    def __init__(
        self,
        *,
        client_ids: Collection[str],
        jwks_url: str = GOOGLE_KEYS_URL,
        timeout_s: float = FETCH_TIMEOUT_S,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        super().__init__(
            issuer=GOOGLE_ISSUER, audiences=client_ids, jwks_url=jwks_url, timeout_s=timeout_s, clock=clock
        )

    def _issuer_names(self) -> list[str]:
        return [GOOGLE_ISSUER, GOOGLE_ISSUER.removeprefix("https://")]

    def _check_presenter(self, content: Mapping[str, Any]) -> None:
        """Accept any presenter: a phone app requests a token for us under its own client id."""

    def _is_verified(self, email: str, content: Mapping[str, Any]) -> bool:
        # Google is authoritative for the addresses that it hosts: gmail.com, and Workspace domains (`hd`). It
        # verified any other address when the account was made; the address may have changed hands since.
        is_hosted = email.lower().endswith("@gmail.com") or bool(content.get("hd"))
        return is_hosted and super()._is_verified(email, content)


class FacebookVerifier:
    """Verifies access tokens that Facebook issued to our app."""

    issuer: Final = FACEBOOK_ISSUER

    def __init__(
        self,
        *,
        app_id: str,
        app_secret: str,
        graph_url: str = FACEBOOK_GRAPH_URL,
        timeout_s: float = FETCH_TIMEOUT_S,
    ) -> None:
        """Take the app's id and secret. Raises ValueError if one is missing or the URL is not accepted."""
        check_operator_url(graph_url)
        if not app_id or not app_secret:
            raise ValueError("Facebook needs both the app's id and its secret")
        self._app_id = app_id
        self._app_secret = app_secret
        self._graph_url = graph_url.rstrip("/")
        self._timeout_s = timeout_s

    def verify(self, access_token: str) -> ProvenIdentity:
        """Look up the user of a token. Raises IdentityRejected, or IdentityUnavailable without an answer."""
        if not 0 < len(access_token) <= MAX_PROOF_CHARS or not access_token.isascii():
            raise IdentityRejected("the access token is malformed")
        subject = self._check(access_token)
        # An app that requires this proof makes stolen tokens useless.
        proof = hmac.new(self._app_secret.encode(), access_token.encode(), hashlib.sha256).hexdigest()
        about = self._ask(
            "/me",
            fields="id,name,picture.type(large)",
            access_token=access_token,
            appsecret_proof=proof,
        )
        if about is None or about.get("id") != subject:
            raise IdentityRejected("Facebook did not name the user of the access token")
        picture = about.get("picture")
        data = picture.get("data") if isinstance(picture, dict) else None
        return ProvenIdentity(
            issuer=FACEBOOK_ISSUER,
            subject=subject,
            # Facebook does not say whether it has verified an address. This one is unique to the user and no
            # other user can prove it, so it never leads to another account.
            email=f"{subject}@{_NO_MAIL_DOMAIN}",
            email_verified=True,
            name=_name(about.get("name")),
            picture_url=_picture_url(data.get("url") if isinstance(data, dict) else None),
        )

    def _check(self, access_token: str) -> str:
        """Check that a token is valid and was issued to our app. Returns the user's id in the app."""
        answer = self._ask(
            "/debug_token", input_token=access_token, access_token=f"{self._app_id}|{self._app_secret}"
        )
        if answer is None:
            raise IdentityUnavailable("Facebook rejected the app's id and secret")
        data = answer.get("data")
        if not isinstance(data, dict) or data.get("is_valid") is not True:
            raise IdentityRejected("the access token is not valid or has expired")
        subject = _short_text(data.get("user_id"), longest_chars=_SUBJECT_CHARS)
        if str(data.get("app_id")) != self._app_id or subject is None:
            raise IdentityRejected("the access token was issued to another app")
        return subject

    def _ask(self, path: str, **query: str) -> dict[str, Any] | None:
        """Query the Graph API. Returns None if it refuses. Raises IdentityUnavailable."""
        status, answer = fetch_json(self._graph_url + path, query=query, timeout_s=self._timeout_s)
        if status == 200 and isinstance(answer, dict):
            return answer
        if 400 <= status < 500 and status != 429:
            return None
        raise IdentityUnavailable(f"Facebook gave an unexpected answer (status {status})")


def _reason(problem: jwt.PyJWTError) -> str:
    match problem:
        case jwt.ExpiredSignatureError():
            return "the token has expired"
        case jwt.ImmatureSignatureError():
            return "the token is not valid yet"
        case jwt.InvalidAudienceError():
            return "the token is for another audience"
        case jwt.InvalidIssuerError():
            return "the token is from another issuer"
        case jwt.InvalidSignatureError():
            return "the token's signature is wrong"
        case jwt.MissingRequiredClaimError():
            return f"the token has no {problem.claim!r}"
    return "the token is malformed"


def _short_text(value: object, *, longest_chars: int) -> str | None:
    return value if isinstance(value, str) and is_identifier(value, longest_chars=longest_chars) else None


def _name(value: object) -> str | None:
    return clean_name(value, longest_chars=NAME_CHARS) if isinstance(value, str) else None


def _picture_url(value: object) -> str | None:
    # A page shows the picture: refuse URLs that run code or are fetched unencrypted.
    url = _short_text(value, longest_chars=_URL_CHARS)
    return url if url is not None and url.startswith("https://") else None

import base64
import hashlib
import time
from collections.abc import Iterator
from typing import Any
from urllib.parse import parse_qsl, urlsplit

import pytest

from brewos_relay.auth.code_flow import ATTEMPT_S, Attempt, CodeFlow, new_attempt, read_attempt, sign_attempt
from brewos_relay.auth.identity_providers import Verifier
from brewos_relay.auth.tokens import KeyRing
from brewos_relay.errors import IdentityRejected, IdentityUnavailable, TokenRejected
from support.issuer import (
    CLIENT_ID,
    CLIENT_SECRET,
    DISCOVERY_PATH,
    TOKEN_PATH,
    Answer,
    Issuer,
    IssuerKey,
    open_issuer,
)

KEY = IssuerKey("ES256", "one")
KEYS = KeyRing(["tests-only-" + "s" * 32])
REDIRECT_URI = "https://coffee.example/login/callback"


class Clock:
    """A clock that advances only when told."""

    def __init__(self) -> None:
        self.now_s = 1000.0

    def __call__(self) -> float:
        return self.now_s


@pytest.fixture
def issuer() -> Iterator[Issuer]:
    with open_issuer(KEY) as opened:
        yield opened


def make_flow(issuer: Issuer, **changed: Any) -> CodeFlow:
    told: dict[str, Any] = {
        "name": "Home",
        "verifier": Verifier(issuer=issuer.url, audiences=[CLIENT_ID]),
        "client_id": CLIENT_ID,
        "client_secret": CLIENT_SECRET,
        "redirect_uri": REDIRECT_URI,
    }
    return CodeFlow(**{**told, **changed})


def authorize(issuer: Issuer, flow: CodeFlow, attempt: Attempt) -> dict[str, str]:
    """Do what a browser does at the issuer. Returns the parameters that it brings back."""
    asked = dict(parse_qsl(urlsplit(flow.authorization_url(attempt)).query))
    back = issuer.authorize(asked)
    assert back.startswith(f"{REDIRECT_URI}?")
    return dict(parse_qsl(urlsplit(back).query))


def rejected(issuer: Issuer, flow: CodeFlow, *, by: str | None) -> str:
    attempt = new_attempt("oidc")
    code = authorize(issuer, flow, attempt)["code"]
    with pytest.raises(IdentityRejected) as caught:
        flow.redeem(attempt, code, issuer=by)
    return str(caught.value)


@pytest.mark.parametrize("methods", [None, "any", ["client_secret_basic"], ["client_secret_post"], ["none"]])
def test_code_is_exchanged_for_an_identity(issuer: Issuer, methods: object) -> None:
    issuer.metadata = {} if methods is None else {"token_endpoint_auth_methods_supported": methods}
    issuer.secret = None if methods == ["none"] else CLIENT_SECRET
    flow = make_flow(issuer, client_secret=issuer.secret or "")
    attempt = new_attempt("oidc")
    back = authorize(issuer, flow, attempt)
    assert back["state"] == attempt.state
    proven = flow.redeem(attempt, back["code"], issuer=back["iss"])
    assert (proven.issuer, proven.subject) == (issuer.url, "ada-at-the-issuer")
    with pytest.raises(IdentityRejected, match="used already"):
        flow.redeem(attempt, back["code"], issuer=back["iss"])


def test_request_has_pkce_state_nonce_and_the_exact_redirect_uri(issuer: Issuer) -> None:
    issuer.metadata = {"authorization_endpoint": f"{issuer.url}/authorize?realm=home"}
    attempt = new_attempt("oidc")
    url = urlsplit(make_flow(issuer).authorization_url(attempt))
    asked = dict(parse_qsl(url.query))
    digest = hashlib.sha256(attempt.derive("verifier").encode()).digest()
    assert asked == {
        "realm": "home",
        "response_type": "code",
        "client_id": CLIENT_ID,
        "redirect_uri": REDIRECT_URI,
        "scope": "openid email profile",
        "state": attempt.state,
        "nonce": attempt.derive("nonce"),
        "code_challenge": base64.urlsafe_b64encode(digest).rstrip(b"=").decode(),
        "code_challenge_method": "S256",
    }
    assert len({attempt.state, attempt.derive("nonce"), attempt.derive("verifier"), attempt.secret}) == 4
    assert attempt.secret not in url.query
    assert new_attempt("oidc").state != attempt.state


def test_code_of_another_attempt_is_rejected(issuer: Issuer) -> None:
    flow = make_flow(issuer)
    other = authorize(issuer, flow, new_attempt("oidc"))
    with pytest.raises(IdentityRejected):
        flow.redeem(new_attempt("oidc"), other["code"], issuer=issuer.url)


@pytest.mark.parametrize("told", [{"nonce": "another"}, {"nonce": None}])
def test_id_token_must_name_the_nonce(issuer: Issuer, told: dict[str, Any]) -> None:
    issuer.answers[TOKEN_PATH] = Answer({"id_token": issuer.token(**told)})
    assert "another attempt" in rejected(issuer, make_flow(issuer), by=issuer.url)


def test_response_of_another_issuer_is_rejected(issuer: Issuer) -> None:
    flow = make_flow(issuer)
    assert "another issuer" in rejected(issuer, flow, by="https://evil.example")
    attempt = new_attempt("oidc")
    code = authorize(issuer, flow, attempt)["code"]
    assert flow.redeem(attempt, code, issuer=None).subject  # many issuers do not name themselves
    issuer.metadata = {"authorization_response_iss_parameter_supported": True}
    assert "another issuer" in rejected(issuer, make_flow(issuer), by=None)


@pytest.mark.parametrize(
    "answer",
    [
        Answer({"error": "invalid_client"}, status=401),
        Answer({"error": "invalid_request"}, status=400),
        Answer({"access_token": "x"}),
        Answer({"id_token": 1}),
        Answer([]),
        Answer({}, status=500),
    ],
)
def test_unexpected_answer_to_a_code_is_unavailable(issuer: Issuer, answer: Answer) -> None:
    flow, attempt = make_flow(issuer), new_attempt("oidc")
    code = authorize(issuer, flow, attempt)["code"]
    issuer.answers[TOKEN_PATH] = answer
    with pytest.raises(IdentityUnavailable, match="no ID token"):
        flow.redeem(attempt, code, issuer=issuer.url)


def test_document_is_fetched_once_an_hour_and_kept_while_the_issuer_fails(issuer: Issuer) -> None:
    clock = Clock()
    flow = make_flow(issuer, clock=clock)
    attempt = new_attempt("oidc")
    for _ in range(3):
        flow.authorization_url(attempt)
    assert issuer.asked.count(DISCOVERY_PATH) == 1
    issuer.answers[DISCOVERY_PATH] = Answer({}, status=500)
    clock.now_s += 3600
    for _ in range(3):
        flow.authorization_url(attempt)
    assert issuer.asked.count(DISCOVERY_PATH) == 2


def test_issuer_that_fails_is_asked_again_after_a_pause(issuer: Issuer) -> None:
    clock = Clock()
    flow = make_flow(issuer, clock=clock)
    issuer.answers[DISCOVERY_PATH] = Answer({}, status=500)
    for _ in range(3):
        with pytest.raises(IdentityUnavailable, match="status 500"):
            flow.authorization_url(new_attempt("oidc"))
    assert issuer.asked.count(DISCOVERY_PATH) == 1
    del issuer.answers[DISCOVERY_PATH]
    clock.now_s += 5
    assert flow.authorization_url(new_attempt("oidc"))


def test_attempt_is_bound_to_the_browser_with_its_cookie() -> None:
    attempt = new_attempt("google")
    cookie = sign_attempt(KEYS, attempt)
    assert read_attempt(KEYS, cookie, state=attempt.state) == attempt
    other = new_attempt("google")
    for told, state in ((cookie, other.state), (None, attempt.state), ("", ""), (cookie, "\ud800ä")):
        with pytest.raises(TokenRejected, match="has not begun"):
            read_attempt(KEYS, told, state=state)
    with pytest.raises(TokenRejected):
        read_attempt(KeyRing(["other-" + "s" * 32]), cookie, state=attempt.state)


def test_attempt_expires(monkeypatch: pytest.MonkeyPatch) -> None:
    attempt = new_attempt("oidc")
    cookie = sign_attempt(KEYS, attempt)
    late_s = time.time() + ATTEMPT_S
    monkeypatch.setattr("brewos_relay.auth.code_flow.time.time", lambda: late_s)
    with pytest.raises(TokenRejected, match="expired"):
        read_attempt(KEYS, cookie, state=attempt.state)


def test_cookie_of_an_attempt_is_no_token_and_a_token_is_no_attempt() -> None:
    attempt = new_attempt("oidc")
    with pytest.raises(TokenRejected):
        KEYS.verify(sign_attempt(KEYS, attempt))
    token = KEYS.issue(user_id="ada", email="ada@example.org")
    with pytest.raises(TokenRejected):
        read_attempt(KEYS, token, state=attempt.state)
    other_use = KEYS.sign({"use": "app cookie", "kind": "oidc", "secret": "s", "exp": int(time.time()) + 60})
    state = Attempt("app cookie", "oidc", "s", 0).state
    with pytest.raises(TokenRejected):
        read_attempt(KEYS, other_use, state=state)

import hashlib
import hmac
import json
import time
from collections.abc import Iterator
from typing import Any

import jwt
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from hypothesis import given, settings
from hypothesis import strategies as st
from jwt.algorithms import OKPAlgorithm

from brewos_relay.auth.identity_providers import (
    FACEBOOK_ISSUER,
    GOOGLE_ISSUER,
    FacebookVerifier,
    GoogleVerifier,
    ProvenIdentity,
    Verifier,
)
from brewos_relay.errors import IdentityRejected, IdentityUnavailable
from support.issuer import (
    APP_ID,
    APP_SECRET,
    CLIENT_ID,
    DISCOVERY_PATH,
    KEYS_PATH,
    Answer,
    Issuer,
    IssuerKey,
    encode_part,
    open_issuer,
)

RSA_KEY, EC_KEY = IssuerKey("RS256", "rsa"), IssuerKey("ES256", "ec")


@pytest.fixture(scope="module")
def shared() -> Iterator[Issuer]:
    with open_issuer(RSA_KEY, EC_KEY) as opened:
        yield opened


@pytest.fixture
def issuer(shared: Issuer) -> Issuer:
    shared.keys = [RSA_KEY, EC_KEY]
    shared.answers = {}
    shared.people = {}
    shared.asked.clear()
    shared.queries.clear()
    return shared


@pytest.fixture
def verifier(issuer: Issuer) -> Verifier:
    return Verifier(issuer=issuer.url, audiences=[CLIENT_ID, "another-id-of-ours"])


def assert_rejected(verifier: Verifier | FacebookVerifier, token: str, *, because: str | None = None) -> None:
    with pytest.raises(IdentityRejected, match=because) as caught:
        verifier.verify(token)
    assert not token or token not in str(caught.value)


# Valid tokens


@pytest.mark.parametrize("key", [RSA_KEY, EC_KEY])
def test_valid_id_token_is_accepted(issuer: Issuer, verifier: Verifier, key: IssuerKey) -> None:
    assert verifier.verify(issuer.token(key=key)) == ProvenIdentity(
        issuer=issuer.url,
        subject="ada-at-the-issuer",
        email="ada@example.org",
        email_verified=True,
        name="Ada",
        picture_url="https://pictures.example/ada.png",
    )
    assert issuer.asked == [DISCOVERY_PATH, KEYS_PATH]


def test_token_for_any_of_our_client_ids_is_accepted(issuer: Issuer, verifier: Verifier) -> None:
    assert verifier.verify(issuer.token(aud="another-id-of-ours")).subject == "ada-at-the-issuer"
    assert verifier.verify(issuer.token(aud=["another-id-of-ours"])).subject == "ada-at-the-issuer"


def test_nonce_must_be_that_of_the_request(issuer: Issuer, verifier: Verifier) -> None:
    assert verifier.issuer == issuer.url
    token = issuer.token(nonce="n1")
    assert verifier.verify(token, nonce="n1").subject == verifier.verify(token).subject
    for other, nonce in ((token, "n2"), (issuer.token(), "n1"), (issuer.token(nonce=[]), "n1")):
        with pytest.raises(IdentityRejected, match="another attempt"):
            verifier.verify(other, nonce=nonce)


def test_optional_claims_may_be_missing(issuer: Issuer, verifier: Verifier) -> None:
    proven = verifier.verify(issuer.token(email=None, email_verified=None, name=None, picture=None))
    assert proven == ProvenIdentity(issuer.url, "ada-at-the-issuer", None, False, None, None)


@pytest.mark.parametrize(
    ("said", "verified"),
    [
        (True, True),
        ("true", True),
        (False, False),
        ("false", False),
        (None, False),
        (1, False),
        ("yes", False),
    ],
)
def test_email_verified_is_read_as_boolean_or_text(
    issuer: Issuer, verifier: Verifier, said: object, verified: bool
) -> None:
    proven = verifier.verify(issuer.token(email_verified=said))
    assert (proven.email, proven.email_verified) == ("ada@example.org", verified)


@pytest.mark.parametrize("email", ["", 5, ["ada@example.org"], "x" * 321, "a\x00b@c.d", "a\nb@c.d"])
def test_malformed_email_is_left_out(issuer: Issuer, verifier: Verifier, email: object) -> None:
    proven = verifier.verify(issuer.token(email=email))
    assert (proven.email, proven.email_verified) == (None, False)


@pytest.mark.parametrize(
    ("name", "kept"),
    [
        ("x" * 300, "x" * 100),
        ("  Ada ", "Ada"),
        ("", None),
        (5, None),
        ("a\x00", "a"),
        ("\u202eAda\n L", "Ada L"),
        ("\x00", None),
        ("x" * 99 + "e\u0301", "x" * 99),
    ],
)
def test_name_is_cleaned(issuer: Issuer, verifier: Verifier, name: object, kept: str | None) -> None:
    assert verifier.verify(issuer.token(name=name)).name == kept


@pytest.mark.parametrize(
    "picture", ["", 5, "javascript:alert(1)", "http://p.example/x.png", "data:,x", "https://" + "x" * 2048]
)
def test_picture_url_must_be_https(issuer: Issuer, verifier: Verifier, picture: object) -> None:
    assert verifier.verify(issuer.token(picture=picture)).picture_url is None


# Invalid tokens


@pytest.mark.parametrize(
    ("changed", "problem"),
    [
        ({"aud": "somebody-else"}, "for another audience"),
        ({"aud": []}, "has no 'aud'"),
        ({"aud": 5}, "for another audience"),
        ({"aud": None}, "has no 'aud'"),
        ({"iss": "https://evil.example"}, "another issuer"),
        ({"iss": ["https://evil.example"]}, None),
        ({"iss": None}, "has no 'iss'"),
        ({"exp": int(time.time()) - 120}, "has expired"),
        ({"exp": None}, "has no 'exp'"),
        ({"exp": "soon"}, "malformed"),
        ({"exp": []}, "malformed"),
        ({"nbf": int(time.time()) + 86_400}, "not valid yet"),
        ({"iat": int(time.time()) + 86_400}, "not valid yet"),
        ({"iat": None}, "has no 'iat'"),
        ({"sub": None}, "has no 'sub'"),
        ({"sub": ""}, "has no valid 'sub'"),
        ({"sub": "x" * 256}, "has no valid 'sub'"),
        ({"sub": "a\x00b"}, "has no valid 'sub'"),
        ({"azp": "somebody-else"}, "issued to another client"),
        ({"azp": 5}, "issued to another client"),
        ({"aud": [CLIENT_ID, "somebody-else"]}, "issued to another client"),
        ({"aud": [CLIENT_ID, "somebody-else"], "azp": "somebody-else"}, "issued to another client"),
    ],
)
def test_wrong_claim_is_rejected(
    issuer: Issuer, verifier: Verifier, changed: dict[str, Any], problem: str | None
) -> None:
    header = {"alg": "RS256", "kid": "rsa"}
    assert_rejected(verifier, sign(header, issuer.claims(**changed)), because=problem)


def test_subject_must_be_text(issuer: Issuer, verifier: Verifier) -> None:
    assert_rejected(verifier, sign({"alg": "RS256", "kid": "rsa"}, issuer.claims(sub=5)))


def test_clocks_may_differ_a_little(issuer: Issuer, verifier: Verifier) -> None:
    now_s = int(time.time())
    verifier.verify(issuer.token(exp=now_s - 30))
    verifier.verify(issuer.token(iat=now_s + 30, nbf=now_s + 30))


def test_token_for_several_audiences_is_accepted_with_us_as_presenter(
    issuer: Issuer, verifier: Verifier
) -> None:
    verifier.verify(issuer.token(aud=[CLIENT_ID, "somebody-else"], azp=CLIENT_ID))


def sign(header: dict[str, Any], content: object) -> str:
    """Sign any content with the issuer's own RSA key."""
    signed = f"{encode_part(header)}.{encode_part(content)}"
    maker = jwt.get_algorithm_by_name("RS256")
    return f"{signed}.{encode_part(maker.sign(signed.encode(), RSA_KEY.private))}"


def test_token_signed_with_an_unknown_key_is_rejected(issuer: Issuer, verifier: Verifier) -> None:
    forger = IssuerKey("ES256", "ec")
    assert_rejected(verifier, issuer.token(key=forger), because="signature is wrong")
    forger.key_id = "forged"
    assert_rejected(verifier, issuer.token(key=forger), because="does not publish")


def without_algorithm(key: IssuerKey) -> dict[str, Any]:
    return {name: value for name, value in key.jwk().items() if name != "alg"}


@pytest.mark.parametrize("algorithm", ["RS256", "RS512", "PS256", "PS512"])
def test_key_without_algorithm_supports_each_of_its_type(
    issuer: Issuer, verifier: Verifier, algorithm: str
) -> None:
    issuer.answers = {KEYS_PATH: Answer({"keys": [without_algorithm(RSA_KEY)]})}
    token = jwt.encode(issuer.claims(), RSA_KEY.private, algorithm=algorithm, headers={"kid": "rsa"})
    assert verifier.verify(token).subject == "ada-at-the-issuer"


def test_two_keys_with_the_same_id_are_both_tried(issuer: Issuer, verifier: Verifier) -> None:
    older, newer = IssuerKey("ES256", "same"), IssuerKey("ES256", "same")
    other_type = IssuerKey("RS256", "same")
    issuer.keys = [other_type, older, newer]
    for key in (older, newer, other_type):
        assert verifier.verify(issuer.token(key=key)).subject == "ada-at-the-issuer"
    assert_rejected(verifier, issuer.token(key=IssuerKey("ES256", "same")), because="signature is wrong")
    # Other errors concern the token, so the next key is not tried.
    assert_rejected(verifier, issuer.token(key=older, exp=1), because="has expired")


@pytest.mark.parametrize("algorithm", ["EdDSA", "Ed25519"])
@pytest.mark.parametrize("shown_as", ["EdDSA", "Ed25519", None])
def test_both_names_of_ed25519_are_accepted(
    issuer: Issuer, verifier: Verifier, algorithm: str, shown_as: str | None
) -> None:
    private = Ed25519PrivateKey.generate()
    shown = {**OKPAlgorithm.to_jwk(private.public_key(), as_dict=True), "kid": "ed"}
    if shown_as is not None:
        shown["alg"] = shown_as
    issuer.answers = {KEYS_PATH: Answer({"keys": [shown]})}
    signed = f"{encode_part({'alg': algorithm, 'kid': 'ed'})}.{encode_part(issuer.claims())}"
    token = f"{signed}.{encode_part(private.sign(signed.encode()))}"
    assert verifier.verify(token).subject == "ada-at-the-issuer"
    forged = f"{signed}.{encode_part(Ed25519PrivateKey.generate().sign(signed.encode()))}"
    assert_rejected(verifier, forged, because="signature is wrong")


def test_key_inside_the_token_is_ignored(issuer: Issuer, verifier: Verifier) -> None:
    forger = IssuerKey("ES256", "forged")
    with open_issuer(forger) as other:
        for headers in ({"jwk": forger.jwk()}, {"jku": other.keys_url}, {"x5u": other.keys_url}):
            assert_rejected(verifier, issuer.token(key=forger, headers=headers))
            assert_rejected(verifier, issuer.token(key=forger, headers={**headers, "kid": "ec"}))
        assert other.asked == []


@pytest.mark.parametrize("algorithm", ["none", "None", "NONE", "HS256", "HS512", "ES256K", "", None, 5, []])
@pytest.mark.parametrize("key_id", ["rsa", None])
def test_shared_secret_algorithms_are_rejected(
    issuer: Issuer, verifier: Verifier, algorithm: object, key_id: str | None
) -> None:
    header = {"alg": algorithm} if key_id is None else {"alg": algorithm, "kid": key_id}
    assert_rejected(verifier, sign(header, issuer.claims()))
    signed = f"{encode_part(header)}.{encode_part(issuer.claims())}"
    assert_rejected(verifier, f"{signed}.")
    # The classic attack: the issuer's public key used as an HMAC secret.
    public = RSA_KEY.private.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    for secret in (public, public.strip(), json.dumps(RSA_KEY.jwk()).encode(), b""):
        signature = hmac.new(secret, signed.encode(), hashlib.sha256).digest()
        assert_rejected(verifier, f"{signed}.{encode_part(signature)}")
    assert issuer.asked == []


@pytest.mark.parametrize(
    "header", [{"alg": "PS256", "kid": "rsa"}, {"alg": "RS512", "kid": "rsa"}, {"alg": "RS256", "kid": "ec"}]
)
def test_algorithm_must_fit_the_key(issuer: Issuer, verifier: Verifier, header: dict[str, Any]) -> None:
    assert_rejected(verifier, sign(header, issuer.claims()), because="algorithm does not fit")


@pytest.mark.parametrize(
    "header",
    [
        {"alg": "RS256", "kid": 5},
        {"alg": "RS256", "kid": ["rsa"]},
        {"alg": "RS256", "kid": {"a": 1}},
        {"alg": "RS256", "kid": "rsa", "crit": ["exp"]},
        {"alg": "RS256", "kid": "rsa", "crit": []},
        {"alg": "RS256", "kid": "rsa", "b64": False},
        {"alg": "RS256", "kid": "rsa", "x": "x" * 20_000},
    ],
)
def test_bad_header_is_rejected(issuer: Issuer, verifier: Verifier, header: dict[str, Any]) -> None:
    assert_rejected(verifier, sign(header, issuer.claims()))


@pytest.mark.parametrize("token", ["", "x", "a.b.c", "...", "é.é.é", "\ud800", "x" * 100_000])
def test_malformed_token_is_rejected(issuer: Issuer, verifier: Verifier, token: str) -> None:
    assert_rejected(verifier, token)
    assert issuer.asked == []


@pytest.mark.parametrize("content", [[], 5, None, "x", b"{", b"\xff", b"[" * 9000])
def test_signed_content_must_be_an_object(verifier: Verifier, content: object) -> None:
    assert_rejected(verifier, sign({"alg": "RS256", "kid": "rsa"}, content))


GARBAGE_VERIFIERS: dict[str, Verifier] = {}  # one that keeps its keys: each example would ask for them

json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda children: st.lists(children, max_size=3) | st.dictionaries(st.text(), children, max_size=3),
    max_leaves=5,
)


@settings(max_examples=150)
@given(
    st.dictionaries(
        st.sampled_from(
            [
                "iss",
                "aud",
                "sub",
                "iat",
                "exp",
                "nbf",
                "azp",
                "email",
                "name",
                "picture",
                "email_verified",
                "hd",
                "jti",
            ]
        ),
        json_values,
    )
)
def test_signed_garbage_is_rejected_or_valid(shared: Issuer, changed: dict[str, Any]) -> None:
    shared.keys, shared.answers = [RSA_KEY, EC_KEY], {}
    claimed = {**shared.claims(), **changed}
    verifier = GARBAGE_VERIFIERS.setdefault(shared.url, Verifier(issuer=shared.url, audiences=[CLIENT_ID]))
    try:
        proven = verifier.verify(sign({"alg": "RS256", "kid": "rsa"}, claimed))
    except IdentityRejected:
        return
    assert proven.issuer == shared.url
    assert proven.subject == claimed["sub"]


@given(
    st.text(st.characters(codec=None))
    | st.lists(st.binary(max_size=40), max_size=4).map(
        lambda parts: ".".join(encode_part(part) for part in parts)
    )
)
def test_garbage_is_rejected(token: str) -> None:
    with pytest.raises(IdentityRejected):
        Verifier(issuer="http://127.0.0.1:1", audiences=["x"]).verify(token)


# The issuer


def test_new_key_of_the_issuer_is_fetched(issuer: Issuer) -> None:
    now_s = 0.0
    verifier = Verifier(issuer=issuer.url, audiences=[CLIENT_ID], clock=lambda: now_s)
    verifier.verify(issuer.token())
    fresh = IssuerKey("ES256", "fresh")
    issuer.keys = [fresh]
    assert_rejected(verifier, issuer.token(), because="does not publish")
    now_s = 60.0
    assert verifier.verify(issuer.token()).subject == "ada-at-the-issuer"
    assert_rejected(verifier, issuer.token(key=EC_KEY), because="does not publish")


def test_unreachable_issuer_is_unavailable() -> None:
    with open_issuer(EC_KEY) as gone:
        token = gone.token()
        verifier = Verifier(issuer=gone.url, audiences=[CLIENT_ID])
    with pytest.raises(IdentityUnavailable, match=r"cannot reach 127\.0\.0\.1") as caught:
        verifier.verify(token)
    assert caught.value.retry


def test_slow_issuer_is_unavailable() -> None:
    with open_issuer(EC_KEY) as slow:
        slow.answers = {KEYS_PATH: Answer({}, delay_s=30)}
        verifier = Verifier(issuer=slow.url, audiences=[CLIENT_ID], timeout_s=0.1)
        began_s = time.monotonic()
        with pytest.raises(IdentityUnavailable, match=r"did not answer within 0\.1 s"):
            verifier.verify(slow.token())
        assert time.monotonic() - began_s < 5


def test_keys_of_an_issuer_are_limited(issuer: Issuer, verifier: Verifier) -> None:
    issuer.answers = {KEYS_PATH: Answer({"keys": [EC_KEY.jwk()] * 5000})}
    with pytest.raises(IdentityUnavailable, match="more than 262144 bytes"):
        verifier.verify(issuer.token())


def test_redirect_of_an_issuer_is_not_followed(issuer: Issuer, verifier: Verifier) -> None:
    with open_issuer(RSA_KEY) as other:
        issuer.answers = {KEYS_PATH: Answer({}, status=302, location=other.keys_url)}
        with pytest.raises(IdentityUnavailable, match="redirect"):
            verifier.verify(issuer.token())
        assert other.asked == []


def test_issuer_must_be_https_unless_on_this_computer(issuer: Issuer) -> None:
    Verifier(issuer="https://issuer.example", audiences=["x"])
    Verifier(issuer="http://localhost:1", audiences=["x"], jwks_url="https://issuer.example/keys")
    with pytest.raises(ValueError, match=r"issuer\.example must begin with https"):
        Verifier(issuer="http://issuer.example", audiences=["x"])
    with pytest.raises(ValueError, match=r"issuer\.example must begin with https"):
        Verifier(issuer=issuer.url, audiences=["x"], jwks_url="http://issuer.example/keys")


def test_audience_is_required(issuer: Issuer) -> None:
    with pytest.raises(ValueError, match="an audience is required"):
        Verifier(issuer=issuer.url, audiences=[])


# Google


@pytest.fixture
def google(issuer: Issuer) -> GoogleVerifier:
    return GoogleVerifier(client_ids=[CLIENT_ID], jwks_url=issuer.keys_url)


@pytest.mark.parametrize("name", ["https://accounts.google.com", "accounts.google.com"])
def test_both_issuer_names_of_google_are_accepted(issuer: Issuer, google: GoogleVerifier, name: str) -> None:
    proven = google.verify(issuer.token(iss=name))
    assert (proven.issuer, proven.subject) == (GOOGLE_ISSUER, "ada-at-the-issuer")
    assert issuer.asked == [KEYS_PATH]


@pytest.mark.parametrize("name", ["http://accounts.google.com", "https://accounts.google.com/", "google.com"])
def test_other_issuer_names_are_rejected_for_google(
    issuer: Issuer, google: GoogleVerifier, name: str
) -> None:
    assert_rejected(google, issuer.token(iss=name), because="another issuer")


def test_google_token_may_have_another_presenter(issuer: Issuer, google: GoogleVerifier) -> None:
    token = issuer.token(iss=GOOGLE_ISSUER, azp="our-android-app")
    assert google.verify(token).subject == "ada-at-the-issuer"
    assert_rejected(google, issuer.token(iss=GOOGLE_ISSUER, aud="another-relay", azp=CLIENT_ID))


@pytest.mark.parametrize(
    ("email", "hd", "said", "verified"),
    [
        ("ada@gmail.com", None, True, True),
        ("Ada@GMail.com", None, True, True),
        ("ada@gmail.com", None, False, False),
        ("ada@home.example", "home.example", True, True),
        ("ada@home.example", "home.example", False, False),
        ("ada@elsewhere.example", None, True, False),
        ("ada@elsewhere.example", "", True, False),
        ("ada@notgmail.com", None, True, False),
    ],
)
def test_google_is_trusted_for_addresses_that_it_hosts(
    issuer: Issuer, google: GoogleVerifier, email: str, hd: str | None, said: bool, verified: bool
) -> None:
    proven = google.verify(issuer.token(iss=GOOGLE_ISSUER, email=email, hd=hd, email_verified=said))
    assert (proven.email, proven.email_verified) == (email, verified)


# Facebook

ADA = {
    "id": "10001",
    "name": "Ada",
    "email": "ada@example.org",
    "picture": {"data": {"url": "https://pictures.example/ada.png"}},
}


@pytest.fixture
def facebook(issuer: Issuer) -> FacebookVerifier:
    issuer.people = {"adas-token": ADA}
    return FacebookVerifier(app_id=APP_ID, app_secret=APP_SECRET, graph_url=f"{issuer.url}/")


def test_valid_access_token_is_accepted(issuer: Issuer, facebook: FacebookVerifier) -> None:
    assert facebook.verify("adas-token") == ProvenIdentity(
        FACEBOOK_ISSUER, "10001", "10001@facebook.invalid", True, "Ada", "https://pictures.example/ada.png"
    )
    assert issuer.asked == ["/debug_token", "/me"]
    proof = hmac.new(APP_SECRET.encode(), b"adas-token", hashlib.sha256).hexdigest()
    assert issuer.queries[1]["appsecret_proof"] == proof


@pytest.mark.parametrize("picture", [None, 5, {}, {"data": None}, {"data": {"url": "http://x"}}])
def test_user_may_have_no_picture(issuer: Issuer, facebook: FacebookVerifier, picture: object) -> None:
    issuer.people = {"adas-token": {"id": "10001", "name": "Ada", "picture": picture}}
    assert facebook.verify("adas-token") == ProvenIdentity(
        FACEBOOK_ISSUER, "10001", "10001@facebook.invalid", True, "Ada", None
    )


@pytest.mark.parametrize("token", ["", "x" * 20_000, "é", "\ud800"])
def test_malformed_access_token_is_rejected(issuer: Issuer, facebook: FacebookVerifier, token: str) -> None:
    assert_rejected(facebook, token, because="malformed")
    assert issuer.asked == []


def test_expired_access_token_is_rejected(issuer: Issuer, facebook: FacebookVerifier) -> None:
    assert_rejected(facebook, "bobs-token", because="not valid")
    assert issuer.asked == ["/debug_token"]


@pytest.mark.parametrize(
    ("data", "problem"),
    [
        ({"is_valid": True, "app_id": "999", "user_id": "10001"}, "another app"),
        ({"is_valid": True, "user_id": "10001"}, "another app"),
        ({"is_valid": True, "app_id": APP_ID}, "another app"),
        ({"is_valid": True, "app_id": APP_ID, "user_id": 5}, "another app"),
        ({"is_valid": "true", "app_id": APP_ID, "user_id": "10001"}, "not valid"),
        ({"is_valid": False, "app_id": APP_ID, "user_id": "10001"}, "not valid"),
        ({}, "not valid"),
        (None, "not valid"),
        ([], "not valid"),
    ],
)
def test_access_token_of_another_app_is_rejected(
    issuer: Issuer, facebook: FacebookVerifier, data: object, problem: str
) -> None:
    issuer.answers = {"/debug_token": Answer({"data": data})}
    assert_rejected(facebook, "adas-token", because=problem)
    assert issuer.asked == ["/debug_token"]


@pytest.mark.parametrize(
    "about", [Answer({**ADA, "id": "10002"}), Answer({}), Answer({"error": {}}, status=400)]
)
def test_access_token_of_another_user_is_rejected(
    issuer: Issuer, facebook: FacebookVerifier, about: Answer
) -> None:
    issuer.answers = {"/me": about}
    assert_rejected(facebook, "adas-token", because="did not name the user")


def test_wrong_app_secret_is_unavailable_not_rejected(issuer: Issuer) -> None:
    issuer.people = {"adas-token": ADA}
    verifier = FacebookVerifier(app_id=APP_ID, app_secret="wrong-secret", graph_url=issuer.url)
    with pytest.raises(IdentityUnavailable, match="rejected the app's id and secret") as caught:
        verifier.verify("adas-token")
    assert "wrong-secret" not in str(caught.value) + repr(verifier)


@pytest.mark.parametrize(
    "answer", [Answer({}, status=500), Answer({}, status=429), Answer([]), Answer(b"<html>")]
)
@pytest.mark.parametrize("path", ["/debug_token", "/me"])
def test_unexpected_answer_of_facebook_is_unavailable(
    issuer: Issuer, facebook: FacebookVerifier, path: str, answer: Answer
) -> None:
    issuer.answers = {path: answer}
    with pytest.raises(IdentityUnavailable) as caught:
        facebook.verify("adas-token")
    assert "adas-token" not in str(caught.value)
    assert APP_SECRET not in str(caught.value)


def test_facebook_needs_https_and_an_app() -> None:
    with pytest.raises(ValueError, match="https"):
        FacebookVerifier(app_id="1", app_secret="2", graph_url="http://graph.example")
    for app_id, app_secret in (("", "2"), ("1", "")):
        with pytest.raises(ValueError, match="both"):
            FacebookVerifier(app_id=app_id, app_secret=app_secret)

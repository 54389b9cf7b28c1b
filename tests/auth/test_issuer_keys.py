import threading
from collections.abc import Iterator
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric import ec, ed448, ed25519, rsa
from jwt.algorithms import ECAlgorithm, OKPAlgorithm, RSAAlgorithm

from brewos_relay.auth.issuer_keys import CANDIDATES_AT_MOST, IssuerKeys
from brewos_relay.auth.issuer_keys import IssuerKey as Found
from brewos_relay.errors import IdentityRejected, IdentityUnavailable
from support.issuer import DISCOVERY_PATH, KEYS_PATH, Answer, Issuer, IssuerKey, open_issuer

FIRST, SECOND = IssuerKey("ES256", "first"), IssuerKey("ES256", "second")
HOUR_S = 3600
DAY_S = 24 * HOUR_S


class Clock:
    """A clock that advances only when told."""

    def __init__(self) -> None:
        self.now_s = 1000.0

    def __call__(self) -> float:
        return self.now_s


@pytest.fixture
def issuer() -> Iterator[Issuer]:
    with open_issuer(FIRST) as opened:
        yield opened


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def keys(issuer: Issuer, clock: Clock) -> IssuerKeys:
    return make_keys(issuer, clock)


def make_keys(issuer: Issuer, clock: Clock, *, jwks_url: str | None = None) -> IssuerKeys:
    return IssuerKeys(issuer=issuer.url, jwks_url=jwks_url, timeout_s=5, clock=clock)


def ids(found: list[Found]) -> list[str | None]:
    return [key.key_id for key in found]


def test_nothing_is_fetched_before_a_key_is_needed(issuer: Issuer, keys: IssuerKeys) -> None:
    assert issuer.asked == []
    assert ids(keys.find("first")) == ["first"]
    assert issuer.asked == [DISCOVERY_PATH, KEYS_PATH]


def test_jwks_url_needs_no_discovery(issuer: Issuer, clock: Clock) -> None:
    assert ids(make_keys(issuer, clock, jwks_url=issuer.keys_url).find("first")) == ["first"]
    assert issuer.asked == [KEYS_PATH]


def test_keys_are_kept_for_an_hour(issuer: Issuer, clock: Clock, keys: IssuerKeys) -> None:
    keys.find("first")
    clock.now_s += HOUR_S - 1
    keys.find("first")
    assert len(issuer.asked) == 2
    issuer.keys = [SECOND]
    clock.now_s += 1
    with pytest.raises(IdentityRejected):
        keys.find("first")
    assert ids(keys.find("second")) == ["second"]
    assert len(issuer.asked) == 4


def test_unknown_key_is_fetched_at_most_once_a_minute(issuer: Issuer, clock: Clock, keys: IssuerKeys) -> None:
    keys.find("first")
    issuer.keys = [SECOND, FIRST]
    clock.now_s += 59
    for _ in range(3):
        with pytest.raises(IdentityRejected, match="does not publish"):
            keys.find("second")
    assert len(issuer.asked) == 2
    clock.now_s += 1
    assert ids(keys.find("second")) == ["second"]
    for number in range(3):
        with pytest.raises(IdentityRejected):
            keys.find(f"invented-{number}")
    assert len(issuer.asked) == 4


def test_token_without_key_id_may_be_of_any_key(issuer: Issuer, clock: Clock, keys: IssuerKeys) -> None:
    assert ids(keys.find(None)) == ["first"]
    issuer.keys = [FIRST, SECOND]
    clock.now_s += HOUR_S
    assert ids(keys.find(None)) == ["first", "second"]


def test_keys_with_the_same_id_are_all_found_up_to_a_bound(issuer: Issuer, keys: IssuerKeys) -> None:
    issuer.keys = [FIRST, SECOND, *[IssuerKey("ES256", "first") for _ in range(10)]]
    assert ids(keys.find("first")) == ["first"] * CANDIDATES_AT_MOST


def test_keys_stay_valid_for_a_day_while_the_issuer_is_unreachable(
    issuer: Issuer, clock: Clock, keys: IssuerKeys
) -> None:
    keys.find("first")
    issuer.answers = {DISCOVERY_PATH: Answer({}, status=500)}
    clock.now_s += DAY_S - 10
    assert ids(keys.find("first")) == ["first"]
    with pytest.raises(IdentityUnavailable, match="status 500"):
        keys.find("second")
    clock.now_s += 10
    with pytest.raises(IdentityUnavailable, match="status 500"):
        keys.find("first")
    issuer.answers = {}
    clock.now_s += 5
    assert ids(keys.find("first")) == ["first"]


def test_failed_fetch_is_retried_after_a_pause(issuer: Issuer, clock: Clock, keys: IssuerKeys) -> None:
    issuer.answers = {DISCOVERY_PATH: Answer({}, status=503)}
    for _ in range(3):
        with pytest.raises(IdentityUnavailable, match="status 503"):
            keys.find("first")
    assert len(issuer.asked) == 1
    clock.now_s += 5
    issuer.answers = {}
    assert ids(keys.find("first")) == ["first"]


def test_concurrent_lookups_fetch_once(issuer: Issuer, keys: IssuerKeys) -> None:
    issuer.answers = {
        DISCOVERY_PATH: Answer({"issuer": issuer.url, "jwks_uri": issuer.keys_url}, delay_s=0.1)
    }
    found: list[str | None] = []
    threads = [threading.Thread(target=lambda: found.extend(ids(keys.find("first")))) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(5)
    assert found == ["first"] * 8
    assert len(issuer.asked) == 2


@pytest.mark.parametrize(
    ("discovered", "problem"),
    [
        ([], "unexpected answer"),
        ({}, "another issuer"),
        ({"issuer": "https://evil.example"}, "another issuer"),
        ({"issuer": "SELF"}, "no valid jwks_uri"),
        ({"issuer": "SELF", "jwks_uri": 5}, "no valid jwks_uri"),
        ({"issuer": "SELF", "jwks_uri": "http://evil.example/keys"}, "must begin with https://"),
        ({"issuer": "SELF", "jwks_uri": "file:///etc/passwd"}, "must begin with https://"),
    ],
)
def test_invalid_discovery_document_is_unavailable(
    issuer: Issuer, keys: IssuerKeys, discovered: object, problem: str
) -> None:
    if isinstance(discovered, dict):
        discovered = {key: issuer.url if value == "SELF" else value for key, value in discovered.items()}
    issuer.answers = {DISCOVERY_PATH: Answer(discovered)}
    with pytest.raises(IdentityUnavailable, match=problem):
        keys.find("first")
    assert issuer.asked == [DISCOVERY_PATH]


def test_https_issuer_cannot_name_an_unencrypted_jwks_uri(
    monkeypatch: pytest.MonkeyPatch, clock: Clock
) -> None:
    about = {"issuer": "https://issuer.example", "jwks_uri": "http://127.0.0.1:1/keys"}
    monkeypatch.setattr("brewos_relay.auth.issuer_metadata.fetch_json", lambda _url, timeout_s: (200, about))
    keys = IssuerKeys(issuer="https://issuer.example", jwks_url=None, timeout_s=5, clock=clock)
    with pytest.raises(IdentityUnavailable, match="unencrypted jwks_uri"):
        keys.find("first")


def test_the_slash_at_the_end_of_an_issuer_is_part_of_its_name(issuer: Issuer, clock: Clock) -> None:
    name = f"{issuer.url}/"
    issuer.answers = {DISCOVERY_PATH: Answer({"issuer": name, "jwks_uri": issuer.keys_url})}
    keys = IssuerKeys(issuer=name, jwks_url=None, timeout_s=5, clock=clock)
    assert ids(keys.find("first")) == ["first"]


SYMMETRIC = {"kty": "oct", "k": "c2VjcmV0LXNlY3JldC1zZWNyZXQtc2VjcmV0LXNlYw", "kid": "first", "alg": "HS256"}


@pytest.mark.parametrize(
    "shown",
    [
        {},
        {"keys": []},
        {"keys": "x"},
        {"keys": {"a": 1}},
        {"keys": [5]},
        {"keys": [SYMMETRIC]},
        {"keys": [{"kty": "RSA", "kid": "first"}]},
        {"keys": [{"kty": "RSA", "kid": "first", "alg": [], "n": "AQAB", "e": "AQAB"}]},
    ],
)
def test_unusable_keys_are_unavailable(issuer: Issuer, keys: IssuerKeys, shown: object) -> None:
    issuer.answers = {KEYS_PATH: Answer(shown)}
    with pytest.raises(IdentityUnavailable, match="no usable keys"):
        keys.find("first")


def test_only_public_signature_keys_are_used(issuer: Issuer, keys: IssuerKeys) -> None:
    issuer.answers = {
        KEYS_PATH: Answer(
            {
                "keys": [
                    SYMMETRIC,
                    {**FIRST.jwk(), "use": "enc"},
                    5,
                    None,
                    {"kty": "x", "alg": []},
                    SECOND.jwk(),
                ]
            }
        )
    }
    with pytest.raises(IdentityRejected):
        keys.find("first")
    assert ids(keys.find("second")) == ["second"]


def jwk_of(private: Any, **members: object) -> dict[str, Any]:
    """Write the public half of a key as a JSON Web Key without `alg`."""
    makers: dict[type, Any] = {rsa.RSAPrivateKey: RSAAlgorithm, ec.EllipticCurvePrivateKey: ECAlgorithm}
    maker = next((made for kind, made in makers.items() if isinstance(private, kind)), OKPAlgorithm)
    return {**maker.to_jwk(private.public_key(), as_dict=True), "kid": "first", **members}


RSA = rsa.generate_private_key(public_exponent=65537, key_size=2048)
RSA_ALGORITHMS = {"RS256", "RS384", "RS512", "PS256", "PS384", "PS512"}
EDDSA = {"EdDSA", "Ed25519"}


@pytest.mark.parametrize(
    ("shown", "algorithms"),
    [
        (jwk_of(RSA), RSA_ALGORITHMS),
        (jwk_of(RSA, alg="PS384"), {"PS384"}),
        (jwk_of(RSA, use="sig", key_ops=["sign", "verify"]), RSA_ALGORITHMS),
        (jwk_of(ec.generate_private_key(ec.SECP256R1())), {"ES256"}),
        (jwk_of(ec.generate_private_key(ec.SECP384R1())), {"ES384"}),
        (jwk_of(ec.generate_private_key(ec.SECP521R1())), {"ES512"}),
        (jwk_of(ed25519.Ed25519PrivateKey.generate()), EDDSA),
        (jwk_of(ed25519.Ed25519PrivateKey.generate(), alg="EdDSA"), EDDSA),
        (jwk_of(ed25519.Ed25519PrivateKey.generate(), alg="Ed25519"), EDDSA),
    ],
)
def test_algorithms_follow_from_the_type_of_a_key(
    issuer: Issuer, keys: IssuerKeys, shown: dict[str, Any], algorithms: set[str]
) -> None:
    issuer.answers = {KEYS_PATH: Answer({"keys": [shown]})}
    [key] = keys.find("first")
    assert set(key.by_algorithm) == algorithms
    assert {ready.algorithm_name for ready in key.by_algorithm.values()} == algorithms


@pytest.mark.parametrize(
    "shown",
    [
        jwk_of(RSA, alg="ES256"),
        jwk_of(RSA, alg="HS256"),
        jwk_of(RSA, alg="RSA-OAEP"),
        jwk_of(RSA, alg=[]),
        jwk_of(RSA, key_ops=["encrypt"]),
        jwk_of(RSA, key_ops="verify"),
        jwk_of(RSA, use="enc"),
        jwk_of(RSA, kid=5),
        jwk_of(RSA, kty="EC", crv="P-256"),
        jwk_of(ec.generate_private_key(ec.SECP256K1())),
        jwk_of(ec.generate_private_key(ec.SECP256R1()), crv="P-384"),
        jwk_of(ed448.Ed448PrivateKey.generate()),
        {**OKPAlgorithm.to_jwk(ed25519.Ed25519PrivateKey.generate(), as_dict=True), "kid": "first"},
    ],
)
def test_keys_for_other_uses_are_left_out(issuer: Issuer, keys: IssuerKeys, shown: dict[str, Any]) -> None:
    issuer.answers = {KEYS_PATH: Answer({"keys": [shown, SECOND.jwk()]})}
    with pytest.raises(IdentityRejected, match="does not publish"):
        keys.find("first")

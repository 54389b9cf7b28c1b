import threading
from collections.abc import Iterator

import pytest

from brewos_relay.auth.issuer_keys import IssuerKeys
from brewos_relay.errors import IdentityRejected, IdentityUnavailable
from support.issuer import DISCOVERY_PATH, KEYS_PATH, Answer, Issuer, IssuerKey, open_issuer

FIRST, SECOND = IssuerKey("ES256", "first"), IssuerKey("ES256", "second")
HOUR_S = 3600
DAY_S = 24 * HOUR_S


class Clock:
    """A clock that stands still until it is told."""

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


def test_nobody_is_asked_before_a_key_is_needed(issuer: Issuer, keys: IssuerKeys) -> None:
    assert issuer.asked == []
    assert keys.find("first").key_id == "first"
    assert issuer.asked == [DISCOVERY_PATH, KEYS_PATH]


def test_with_the_address_of_the_keys_nothing_is_discovered(issuer: Issuer, clock: Clock) -> None:
    assert make_keys(issuer, clock, jwks_url=issuer.keys_url).find("first").key_id == "first"
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
    assert keys.find("second").key_id == "second"
    assert len(issuer.asked) == 4


def test_an_unknown_key_is_looked_for_at_most_once_a_minute(
    issuer: Issuer, clock: Clock, keys: IssuerKeys
) -> None:
    keys.find("first")
    issuer.keys = [SECOND, FIRST]
    clock.now_s += 59
    for _ in range(3):
        with pytest.raises(IdentityRejected, match="a key that its issuer does not show"):
            keys.find("second")
    assert len(issuer.asked) == 2
    clock.now_s += 1
    assert keys.find("second").key_id == "second"
    for number in range(3):
        with pytest.raises(IdentityRejected):
            keys.find(f"invented-{number}")
    assert len(issuer.asked) == 4


def test_a_token_that_names_no_key_gets_the_only_one(issuer: Issuer, clock: Clock, keys: IssuerKeys) -> None:
    assert keys.find(None).key_id == "first"
    issuer.keys = [FIRST, SECOND]
    clock.now_s += HOUR_S
    with pytest.raises(IdentityRejected):
        keys.find(None)


def test_while_the_issuer_is_away_its_keys_are_good_for_a_day(
    issuer: Issuer, clock: Clock, keys: IssuerKeys
) -> None:
    keys.find("first")
    issuer.answers = {DISCOVERY_PATH: Answer({}, status=500)}
    clock.now_s += DAY_S - 10
    assert keys.find("first").key_id == "first"
    with pytest.raises(IdentityUnavailable, match="status 500"):
        keys.find("second")
    clock.now_s += 10
    with pytest.raises(IdentityUnavailable, match="status 500"):
        keys.find("first")
    issuer.answers = {}
    clock.now_s += 5
    assert keys.find("first").key_id == "first"


def test_an_issuer_that_does_not_answer_is_left_alone_for_a_while(
    issuer: Issuer, clock: Clock, keys: IssuerKeys
) -> None:
    issuer.answers = {DISCOVERY_PATH: Answer({}, status=503)}
    for _ in range(3):
        with pytest.raises(IdentityUnavailable, match="status 503"):
            keys.find("first")
    assert len(issuer.asked) == 1
    clock.now_s += 5
    issuer.answers = {}
    assert keys.find("first").key_id == "first"


def test_many_at_once_ask_once(issuer: Issuer, keys: IssuerKeys) -> None:
    issuer.answers = {
        DISCOVERY_PATH: Answer({"issuer": issuer.url, "jwks_uri": issuer.keys_url}, delay_s=0.1)
    }
    found: list[str | None] = []
    threads = [threading.Thread(target=lambda: found.append(keys.find("first").key_id)) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(5)
    assert found == ["first"] * 8
    assert len(issuer.asked) == 2


@pytest.mark.parametrize(
    ("discovered", "problem"),
    [
        ([], "not as it should"),
        ({}, "another name"),
        ({"issuer": "https://evil.example"}, "another name"),
        ({"issuer": "SELF"}, "does not say where its keys are"),
        ({"issuer": "SELF", "jwks_uri": 5}, "does not say where its keys are"),
        ({"issuer": "SELF", "jwks_uri": "http://evil.example/keys"}, "must begin with https://"),
        ({"issuer": "SELF", "jwks_uri": "file:///etc/passwd"}, "must begin with https://"),
    ],
)
def test_a_discovery_that_leads_nowhere(
    issuer: Issuer, keys: IssuerKeys, discovered: object, problem: str
) -> None:
    if isinstance(discovered, dict):
        discovered = {key: issuer.url if value == "SELF" else value for key, value in discovered.items()}
    issuer.answers = {DISCOVERY_PATH: Answer(discovered)}
    with pytest.raises(IdentityUnavailable, match=problem):
        keys.find("first")
    assert issuer.asked == [DISCOVERY_PATH]


def test_an_encrypted_issuer_cannot_send_us_to_something_unencrypted(
    monkeypatch: pytest.MonkeyPatch, clock: Clock
) -> None:
    about = {"issuer": "https://issuer.example", "jwks_uri": "http://127.0.0.1:1/keys"}
    monkeypatch.setattr("brewos_relay.auth.issuer_keys.fetch_json", lambda _url, timeout_s: (200, about))
    keys = IssuerKeys(issuer="https://issuer.example", jwks_url=None, timeout_s=5, clock=clock)
    with pytest.raises(IdentityUnavailable, match="fetched unencrypted"):
        keys.find("first")


def test_the_slash_at_the_end_of_an_issuer_is_part_of_its_name(issuer: Issuer, clock: Clock) -> None:
    name = f"{issuer.url}/"
    issuer.answers = {DISCOVERY_PATH: Answer({"issuer": name, "jwks_uri": issuer.keys_url})}
    keys = IssuerKeys(issuer=name, jwks_url=None, timeout_s=5, clock=clock)
    assert keys.find("first").key_id == "first"


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
def test_keys_that_cannot_be_used(issuer: Issuer, keys: IssuerKeys, shown: object) -> None:
    issuer.answers = {KEYS_PATH: Answer(shown)}
    with pytest.raises(IdentityUnavailable, match="no keys that can be used"):
        keys.find("first")


def test_only_public_keys_for_signatures_count(issuer: Issuer, keys: IssuerKeys) -> None:
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
    assert keys.find("second").key_id == "second"

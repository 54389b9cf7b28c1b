from collections.abc import Iterator

import pytest

from brewos_relay.auth.issuer_metadata import ask_issuer, endpoint_in, fetch_metadata
from brewos_relay.errors import IdentityUnavailable
from support.issuer import DISCOVERY_PATH, Answer, Issuer, open_issuer

ISSUER = "https://issuer.example"


@pytest.fixture
def issuer() -> Iterator[Issuer]:
    with open_issuer() as opened:
        yield opened


def test_document_must_name_the_issuer_itself(issuer: Issuer) -> None:
    assert fetch_metadata(issuer.url, timeout_s=5)["jwks_uri"] == issuer.keys_url
    issuer.answers[DISCOVERY_PATH] = Answer({"issuer": ISSUER})
    with pytest.raises(IdentityUnavailable, match="names another issuer"):
        fetch_metadata(issuer.url, timeout_s=5)


def test_issuer_may_have_a_path(issuer: Issuer) -> None:
    name = f"{issuer.url}/realms/home/"
    issuer.answers[f"/realms/home{DISCOVERY_PATH}"] = Answer({"issuer": name})
    assert fetch_metadata(name, timeout_s=5) == {"issuer": name}


@pytest.mark.parametrize("answer", [Answer([]), Answer({}, status=500), Answer("text")])
def test_unexpected_answer_is_unavailable(issuer: Issuer, answer: Answer) -> None:
    issuer.answers["/x"] = answer
    with pytest.raises(IdentityUnavailable, match="unexpected answer"):
        ask_issuer(issuer.url, f"{issuer.url}/x", timeout_s=5)


@pytest.mark.parametrize("url", [None, 1, "", "http://issuer.example/token", "javascript:alert(1)"])
def test_endpoint_must_be_a_safe_url(url: object) -> None:
    with pytest.raises(IdentityUnavailable, match="no valid token_endpoint"):
        endpoint_in({"token_endpoint": url}, "token_endpoint", issuer=ISSUER)


def test_endpoint_is_not_less_safe_than_the_issuer() -> None:
    metadata = {"token_endpoint": "http://127.0.0.1/token"}
    with pytest.raises(IdentityUnavailable, match="unencrypted token_endpoint"):
        endpoint_in(metadata, "token_endpoint", issuer=ISSUER)
    assert endpoint_in(metadata, "token_endpoint", issuer="http://127.0.0.1").endswith("/token")

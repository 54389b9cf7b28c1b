import time
from typing import Any

import pytest

from brewos_relay.auth.app_cookies import make_cookie, read_cookie
from brewos_relay.auth.tokens import KeyRing
from brewos_relay.errors import TokenRejected

SECRET = "tests-only-" + "s" * 32
KEYS = KeyRing([SECRET])


def in_an_hour() -> int:
    return int(time.time()) + 3600


def test_cookie_names_a_session() -> None:
    cookie = make_cookie(KEYS, session_id="s1", user_id="ada", expires_at_s=in_an_hour())
    content = read_cookie(KEYS, cookie)
    assert (content.sid, content.sub) == ("s1", "ada")
    # Keys are replaced as for tokens.
    assert read_cookie(KeyRing(["new-" + SECRET, SECRET]), cookie) == content
    with pytest.raises(TokenRejected):
        read_cookie(KeyRing(["new-" + SECRET]), cookie)


def test_cookie_is_no_access_token_and_an_access_token_is_no_cookie() -> None:
    cookie = make_cookie(KEYS, session_id="s1", user_id="ada", expires_at_s=in_an_hour())
    with pytest.raises(TokenRejected):
        KEYS.verify(cookie)
    for more in ({}, {"session_id": "s1"}):
        token = KEYS.issue(user_id="ada", email="ada@example.org", **more)  # type: ignore[arg-type]
        with pytest.raises(TokenRejected, match="cookie is malformed"):
            read_cookie(KEYS, token)


@pytest.mark.parametrize(
    "content",
    [
        {},
        {"use": "app cookie", "sid": "s1", "sub": "ada"},
        {"use": "app cookie", "sid": 1, "sub": "ada", "exp": 9e12},
        {"use": "else", "sid": "s1", "sub": "ada", "exp": 2**40},
        {"use": "app cookie", "sid": "s1", "sub": "ada", "exp": 1},
    ],
)
def test_incomplete_and_expired_cookies_are_rejected(content: dict[str, Any]) -> None:
    with pytest.raises(TokenRejected):
        read_cookie(KEYS, KEYS.sign(content))


@pytest.mark.parametrize("text", ["", "x", "a.b.c", "x" * 20_000, "\ud800"])
def test_malformed_cookies_are_rejected(text: str) -> None:
    with pytest.raises(TokenRejected):
        read_cookie(KEYS, text)

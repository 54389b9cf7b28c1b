"""The app cookie: it authenticates the requests that the BrewOS app sends without a token.

It names a login session, and is no access token: no other route accepts it, and its routes accept no access
token in its place.
"""

import time
from typing import Final

import msgspec

from brewos_relay.auth.tokens import KeyRing
from brewos_relay.errors import TokenRejected

COOKIE: Final = "brewos_relay_app"
PATHS: Final = ("/api/push", "/api/stats")
"""Where browsers send the cookie."""

_USE: Final = "app cookie"


class CookieContent(msgspec.Struct, frozen=True):
    """The content of a cookie: the login session and its user, and when the cookie ends (s since 1970)."""

    use: str
    sid: str
    sub: str
    exp: int


def make_cookie(keys: KeyRing, *, session_id: str, user_id: str, expires_at_s: int) -> str:
    """Sign the cookie of a login session."""
    return keys.sign({"use": _USE, "sid": session_id, "sub": user_id, "exp": expires_at_s})


def read_cookie(keys: KeyRing, cookie: str) -> CookieContent:
    """Verify a cookie. Raises TokenRejected if it is malformed, forged or expired, or another token."""
    try:
        content = msgspec.json.decode(keys.open(cookie), type=CookieContent)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        raise TokenRejected("the cookie is malformed") from None
    if content.use != _USE:
        raise TokenRejected("the cookie is malformed")
    if content.exp <= time.time():
        raise TokenRejected("the cookie has expired: load the app again")
    return content

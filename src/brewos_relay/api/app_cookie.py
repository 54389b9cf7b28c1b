"""The app cookie in requests and answers: see `auth.app_cookies`."""

import time

from quart import Request, Response

from brewos_relay.api.authentication import Authenticator, Requester, current_caller
from brewos_relay.auth.app_cookies import COOKIE, PATHS, make_cookie, read_cookie
from brewos_relay.auth.tokens import KeyRing, TokenClaims
from brewos_relay.errors import TokenRejected
from brewos_relay.protocols import Registry


def set_cookie(response: Response, keys: KeyRing, *, session_id: str, user_id: str, ttl_s: int) -> Response:
    """Add the cookie of a login session to an answer. `ttl_s` is how long the session lasts unused."""
    value = make_cookie(keys, session_id=session_id, user_id=user_id, expires_at_s=int(time.time()) + ttl_s)
    return _write(response, value, max_age_s=ttl_s)


def clear_cookie(response: Response) -> Response:
    """Make the browser forget its cookie."""
    return _write(response, "", max_age_s=0)


def _write(response: Response, value: str, *, max_age_s: int) -> Response:
    for path in PATHS:
        response.set_cookie(
            COOKIE,
            value,
            max_age=max_age_s,
            path=path,
            secure=current_caller().scheme == "https",
            httponly=True,
            samesite="Strict",
        )
    return response


def not_kept(response: Response) -> Response:
    """Keep an answer out of all caches, also that of the app's service worker.

    The requests of two users look the same to a service worker, since it cannot see the cookie. It fails to
    store an answer that varies by everything.
    """
    response.headers["Vary"] = "*"
    return response


class AppAuthenticator:
    """Authenticates requests by the app cookie, or by an access token with a session if there is one."""

    def __init__(self, *, keys: KeyRing, store: Registry, authenticator: Authenticator) -> None:
        self._keys = keys
        self._store = store
        self._authenticator = authenticator

    async def __call__(self, request: Request) -> Requester:
        """Authenticate a request. Raises TokenRejected; Refused for a token without a session."""
        if "Authorization" in request.headers:
            return await self._authenticator.with_session(request)
        cookie = request.cookies.get(COOKIE)
        if cookie is None:
            raise TokenRejected("sign in first")
        content = read_cookie(self._keys, cookie)
        await request.get_data()  # a slow body must not keep rights that end meanwhile
        session = await self._store.find_session(content.sid)
        if session is None or session.user_id != content.sub:
            raise TokenRejected("the session has ended: sign in again")
        return Requester(
            user_id=session.user_id,
            email=session.email,
            session_id=session.id,
            claims=TokenClaims(
                user_id=session.user_id,
                email=session.email,
                issued_at_s=0,
                expires_at_s=content.exp,
                devices=frozenset(),
                session_id=session.id,
            ),
            is_admin=False,
        )

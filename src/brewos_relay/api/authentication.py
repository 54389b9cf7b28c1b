"""The sender of a request: its bearer token (RFC 6750), its login session, and its network address."""

from dataclasses import dataclass
from typing import Final

from quart import Request, g

from brewos_relay.api.payloads import Refused
from brewos_relay.auth.grants import principal_of
from brewos_relay.auth.proxy_trust import Caller, ProxyTrust
from brewos_relay.auth.tokens import KeyRing, TokenClaims
from brewos_relay.core.grant import Principal
from brewos_relay.core.rate_limits import LogLineLimits
from brewos_relay.errors import TokenRejected
from brewos_relay.networks import network_of
from brewos_relay.protocols import Registry

_NOT_ADMIN: Final = "Only an administrator of this server may do this."


@dataclass(frozen=True, slots=True, kw_only=True)
class Requester:
    """The authenticated sender of a request.

    `session_id` is None for a token without a session. `is_admin` is always false for such a token.
    """

    user_id: str
    email: str
    session_id: str | None
    claims: TokenClaims
    is_admin: bool

    @property
    def principal(self) -> Principal:
        """The principal, for checking rights and authorizing writes."""
        return principal_of(self.claims)


class Authenticator:
    """Authenticates requests: `requester = await authenticator(request)`."""

    def __init__(self, *, keys: KeyRing, store: Registry) -> None:
        self._keys = keys
        self._store = store

    async def __call__(self, request: Request) -> Requester:
        """Authenticate a request. Raises TokenRejected, also without a bearer token; RegistryError.

        Session and revocation are checked once the whole body has arrived: a client that sends its body
        slowly must not keep rights that end meanwhile.
        """
        token = bearer_token(request)
        self._keys.verify(token)  # do not wait for the body of a stranger
        await request.get_data()
        return await self.read(token)

    async def with_session(self, request: Request) -> Requester:
        """Authenticate a request to a route about the account itself.

        Raises Refused (403) for a token without a session: it is for devices only, and may name any user.
        """
        requester = await self(request)
        if requester.session_id is None:
            raise Refused("This token has no session: sign in to do this.", status=403)
        return requester

    async def administrator(self, request: Request) -> Requester:
        """Authenticate an administrator. Raises Refused (403) for other accounts.

        The account is read on every request, so withdrawn rights end at once.
        """
        requester = await self.with_session(request)
        if not requester.is_admin:
            raise admin_required()
        return requester

    def session_of(self, request: Request) -> tuple[str | None, str]:
        """Return the session id and user id of the token, even of an ended session. Raises TokenRejected."""
        claims = self._keys.verify(bearer_token(request))
        return claims.session_id, claims.user_id

    async def read(self, token: str) -> Requester:
        """Verify a token and its session.

        Raises TokenRejected if the session has ended or the token was revoked; RegistryError.
        """
        claims = self._keys.verify(token)
        if claims.token_id is not None and await self._store.is_revoked(claims.token_id):
            raise TokenRejected("the token has been revoked")
        if claims.session_id is None:
            return Requester(
                user_id=claims.user_id,
                email=claims.email,
                session_id=None,
                claims=claims,
                is_admin=False,
            )
        session = await self._store.find_session(claims.session_id)
        if session is None or session.user_id != claims.user_id:
            raise TokenRejected("the session has ended: sign in again")
        return Requester(
            user_id=session.user_id,
            email=session.email,
            session_id=session.id,
            claims=claims,
            is_admin=session.is_admin,
        )


def admin_required() -> Refused:
    """Make the refusal (403) of a request that only an administrator may send."""
    return Refused(_NOT_ADMIN, status=403)


def bearer_token(request: Request) -> str:
    """Return the bearer token of a request. Raises TokenRejected if there is none."""
    scheme, _, token = request.headers.get("Authorization", "").partition(" ")
    token = token.strip()
    if scheme.lower() != "bearer" or not token:
        raise TokenRejected("a token is needed: send 'Authorization: Bearer <token>'")
    return token


def caller_of(request: Request, *, proxy_trust: ProxyTrust) -> Caller:
    """Return the address and scheme of the caller. Uses X-Forwarded-* only from trusted proxies."""
    client = request.scope.get("client")
    return proxy_trust.caller(
        client[0] if client else "",
        request.scheme == "https",
        request.headers.items(),
    )


def store_caller(request: Request, *, proxy_trust: ProxyTrust) -> None:
    """Store the caller of a request for `current_caller`."""
    g.caller = caller_of(request, proxy_trust=proxy_trust)


def current_caller() -> Caller:
    """Return the caller of the current request."""
    caller: Caller = g.caller
    return caller


def may_log(lines: LogLineLimits | None, cause: str) -> bool:
    """Tell whether to log a line about the current request. Suppressed lines are counted."""
    return lines is None or lines.admit(cause, network_of(current_caller().address))

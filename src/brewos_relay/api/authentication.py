"""The sender of a request: its bearer token (RFC 6750), its login session, and its network address."""

from dataclasses import dataclass
from typing import Final

from quart import Request, g

from brewos_relay.api.payloads import Refused
from brewos_relay.auth.grants import principal_of
from brewos_relay.auth.proxy_trust import Caller, ProxyTrust
from brewos_relay.auth.tokens import KeyRing, TokenClaims
from brewos_relay.core.grant import Principal
from brewos_relay.core.rate_limits import LineLimits
from brewos_relay.errors import TokenRejected
from brewos_relay.networks import network_of
from brewos_relay.protocols import Registry

_NOT_ADMIN: Final = "Only an administrator of this server may do this."


@dataclass(frozen=True, slots=True, kw_only=True)
class Requester:
    """Who asks. A token may belong to no session; `session_id` is None then, and nobody an administrator."""

    user_id: str
    email: str
    session_id: str | None
    claims: TokenClaims
    is_admin: bool

    @property
    def principal(self) -> Principal:
        """The principal, for rights and for writes."""
        return principal_of(self.claims)


class Authenticator:
    """Finds out who asks: `who = await signed_in(request)`."""

    def __init__(self, *, keys: KeyRing, store: Registry) -> None:
        self._keys = keys
        self._store = store

    async def __call__(self, request: Request) -> Requester:
        """Read the request's token. Raises TokenRejected, also if there is none; RegistryError.

        Its body is waited for first: whoever may do something when it begins need not any more once it is
        all there, and it is they who say how long that takes.
        """
        token = bearer_token(request)
        self._keys.verify(token)  # nothing of a stranger's is waited for
        await request.get_data()
        return await self.read(token)

    async def with_session(self, request: Request) -> Requester:
        """Read the request's token, for a route about the account itself; as above.

        Raises Refused (403) without a session: such a token is for devices, and may name any user.
        """
        requester = await self(request)
        if requester.session_id is None:
            raise Refused("This token belongs to no session: sign in to do this.", status=403)
        return requester

    async def administrator(self, request: Request) -> Requester:
        """Read the request's token. Raises Refused (403) unless it is the session of an administrator.

        The account is read each time: it may be an ordinary one by now.
        """
        requester = await self.with_session(request)
        if not requester.is_admin:
            raise admin_required()
        return requester

    def session_of(self, request: Request) -> tuple[str | None, str]:
        """Give the session and the user of the request's token, be that over or not. Raises TokenRejected."""
        claims = self._keys.verify(bearer_token(request))
        return claims.session_id, claims.user_id

    async def read(self, token: str) -> Requester:
        """Read a token, and find its session.

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
    """Refuse (403) what only an administrator may do."""
    return Refused(_NOT_ADMIN, status=403)


def bearer_token(request: Request) -> str:
    """Take the token out of a request's head. Raises TokenRejected if there is none."""
    scheme, _, token = request.headers.get("Authorization", "").partition(" ")
    token = token.strip()
    if scheme.lower() != "bearer" or not token:
        raise TokenRejected("a token is needed: send 'Authorization: Bearer <token>'")
    return token


def caller_of(request: Request, *, proxy_trust: ProxyTrust) -> Caller:
    """Tell where a request comes from; X-Forwarded-* count only if `proxy_trust` trusts who sent them."""
    client = request.scope.get("client")
    return proxy_trust.caller(
        client[0] if client else "",
        request.scheme == "https",
        request.headers.items(),
    )


def note_caller(request: Request, *, proxy_trust: ProxyTrust) -> None:
    """Find out where a request comes from, once for everybody who asks."""
    g.caller = caller_of(request, proxy_trust=proxy_trust)


def current_caller() -> Caller:
    """Give the caller of the request that is being answered."""
    caller: Caller = g.caller
    return caller


def may_log(lines: LineLimits | None, cause: str) -> bool:
    """Tell whether a line about the request may be logged; otherwise it is counted. None is no limit."""
    return lines is None or lines.admit(cause, network_of(current_caller().address))

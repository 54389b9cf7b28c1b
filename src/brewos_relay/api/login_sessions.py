"""Login sessions: how one begins, and /api/auth/refresh, logout, logout-all, sessions and me."""

import logging
import time
import uuid
from collections.abc import Collection
from dataclasses import dataclass
from typing import Final

import msgspec
from quart import Blueprint, Request, Response, request
from sqlalchemy import Connection

from brewos_relay.api.account_rules import AccountRules
from brewos_relay.api.app_cookie import clear_cookie, set_cookie
from brewos_relay.api.authentication import Authenticator, current_caller
from brewos_relay.api.openapi import described, make_blueprint
from brewos_relay.api.payloads import (
    LongText,
    PageQuery,
    Refused,
    SecretStruct,
    body_of,
    cursor_of,
    json_answer,
    query_of,
    token_rejected,
)
from brewos_relay.api.request_limits import RequestLimits
from brewos_relay.auth.secrets import derive_token, generate_salt, generate_secret_token, hash_secret
from brewos_relay.auth.tokens import KeyRing
from brewos_relay.errors import TokenRejected
from brewos_relay.networks import network_of
from brewos_relay.protocols import Registry
from brewos_relay.registry import accounts as registered
from brewos_relay.registry import login_sessions
from brewos_relay.registry.authority import Authority
from brewos_relay.registry.records import User
from brewos_relay.texts import showable
from brewos_relay.vocabulary import iso_time, now_ms

log = logging.getLogger(__name__)

_USER_AGENT_CHARS: Final = 300
_ADDRESS_CHARS: Final = 64


class Person(msgspec.Struct):
    """The signed-in user. If `name` is empty, apps show the first letters of `email`."""

    id: str
    email: str
    name: str
    picture: str | None


class SessionTokens(SecretStruct, rename="camel"):
    """The tokens of a session. `expiresAt` is the end of the access token, in ms since 1970."""

    access_token: str
    refresh_token: str
    expires_at: int
    user: Person


class RefreshBody(SecretStruct, rename="camel"):
    """The body of `POST /api/auth/refresh`."""

    refresh_token: LongText


class ListedSession(msgspec.Struct, rename="camel"):
    """A session in a list. `current` is true for the session of the request. Times are in ISO 8601."""

    id: str
    current: bool
    created_at: str
    last_used_at: str
    expires_at: str
    user_agent: str | None
    address: str | None


class SessionList(msgspec.Struct):
    """The sessions of a user, last used first. `next` is the `after` of the next page, or null."""

    sessions: list[ListedSession]
    next: str | None


class Ended(msgspec.Struct):
    """How many sessions were ended."""

    ended: int


class Me(msgspec.Struct, rename="camel"):
    """The user of a token. `sessionId` is null for a token without a session.

    With `hasOtherWay`, the user can sign in with an identity provider, and may remove the password.
    """

    user: Person
    is_admin: bool
    has_password: bool
    has_other_way: bool
    session_id: str | None


class LoginSessions:
    """Starts login sessions, and renews their tokens."""

    def __init__(self, *, store: Registry, keys: KeyRing, accounts: AccountRules) -> None:
        self._store = store
        self._keys = keys
        self._accounts = accounts

    def answer(self, started: "StartedSession") -> Response:
        """Make the answer with the tokens of a session, and with its app cookie."""
        return set_cookie(
            json_answer(started.tokens),
            self._keys,
            session_id=started.session_id,
            user_id=started.tokens.user.id,
            ttl_s=self._accounts.refresh_ttl_s,
        )

    async def start(
        self, user: User, request: Request, *, password_hash: str | None = None
    ) -> "StartedSession":
        """Start a session for a user who has just authenticated.

        `password_hash` is the hash of the password that was used. Raises TokenRejected if the password has
        changed meanwhile; RegistryError.
        """
        session_id = uuid.uuid4().hex
        refresh_token = generate_secret_token()
        started_ms = now_ms()
        await self._store.write_anonymous(
            login_sessions.open_session,
            session_id=session_id,
            user_id=user.id,
            refresh_hash=hash_secret(refresh_token),
            user_agent=_shown(request.headers.get("User-Agent"), _USER_AGENT_CHARS),
            address=_shown(current_caller().address, _ADDRESS_CHARS),
            now_ms=started_ms,
            expires_at_ms=started_ms + self._accounts.refresh_ttl_s * 1000,
            password_hash=password_hash,
        )
        person = Person(user.id, user.email, user.name or "", user.picture_url)
        return self._tokens(person, session_id, refresh_token)

    async def refresh_tokens(self, refresh_token: str) -> "StartedSession | None":
        """Exchange a refresh token for new tokens. Return None if it is not valid. Raises RegistryError."""
        salt = generate_salt()
        at_ms = now_ms()
        outcome = await self._store.write_anonymous(
            login_sessions.refresh,
            hash_secret(refresh_token),
            successor_hash=hash_secret(derive_token(refresh_token, salt)),
            successor_salt=salt,
            now_ms=at_ms,
            grace_ms=self._accounts.refresh_grace_s * 1000,
            expires_at_ms=at_ms + self._accounts.refresh_ttl_s * 1000,
        )
        if isinstance(outcome, login_sessions.Copied):
            log.warning(
                "session %s of user %s was ended: a copied refresh token was used",
                outcome.session_id,
                outcome.user_id,
            )
            await self._store.catch_up(ends_only=True)
            return None
        if outcome is None:
            return None
        session = outcome.session
        person = Person(session.user_id, session.email, session.name or "", session.picture_url)
        return self._tokens(person, session.id, derive_token(refresh_token, outcome.salt))

    def _tokens(self, person: Person, session_id: str, refresh_token: str) -> "StartedSession":
        now_s = int(time.time())
        access_token = self._keys.issue(
            user_id=person.id,
            email=person.email,
            ttl_s=self._accounts.access_ttl_s,
            now_s=now_s,
            session_id=session_id,
        )
        expires_at_ms = (now_s + self._accounts.access_ttl_s) * 1000
        tokens = SessionTokens(access_token, refresh_token, expires_at_ms, person)
        return StartedSession(session_id, tokens)


@dataclass(frozen=True, slots=True)
class StartedSession:
    """A session that was started or renewed, and its tokens."""

    session_id: str
    tokens: SessionTokens


@dataclass(frozen=True, kw_only=True, eq=False)
class LoginSessionRoutes:
    """The routes of the login sessions of a user.

    A request that ends a session is answered after the connections of that session are closed.
    """

    store: Registry
    accounts: AccountRules
    login_sessions: LoginSessions
    authenticator: Authenticator
    request_limits: RequestLimits

    def blueprint(self) -> Blueprint:
        """Make the blueprint of these routes."""
        return make_blueprint(
            "sessions",
            {
                "POST /api/auth/refresh": self.refresh,
                "POST /api/auth/logout": self.logout,
                "POST /api/auth/logout-all": self.logout_all,
                "GET /api/auth/sessions": self.list_sessions,
                "DELETE /api/auth/sessions/<session_id>": self.end_session,
                "GET /api/auth/me": self.me,
            },
        )

    @described(
        "Exchange a refresh token for new tokens",
        body=RefreshBody,
        answer=SessionTokens,
        refusals=[401],
        needs_token=False,
    )
    async def refresh(self) -> Response:
        async with self.request_limits.refreshes.attempt(network_of(current_caller().address)):
            body = await body_of(request, RefreshBody)
            tokens = await self.login_sessions.refresh_tokens(body.refresh_token)
        if tokens is None:
            raise Refused("The session has ended. Sign in again.", status=401)
        return self.login_sessions.answer(tokens)

    @described(
        "Sign out: end the session of the token. It is no error if the session has ended already",
        answer=Ended,
    )
    async def logout(self) -> Response:
        try:
            session_id, user_id = self.authenticator.session_of(request)
        except TokenRejected as problem:
            # The app forgets its session anyway, so its cookie must not stay.
            return clear_cookie(token_rejected(problem))
        ended = session_id is not None and await self.store.write_anonymous(
            login_sessions.end_session, session_id, user_id=user_id, now_ms=now_ms()
        )
        await self.store.catch_up(ends_only=True)
        return clear_cookie(json_answer(Ended(int(ended))))

    @described("End all of your sessions", answer=Ended)
    async def logout_all(self) -> Response:
        requester = await self.authenticator.with_session(request)
        ended = await self.store.write_as(
            Authority(requester.principal), login_sessions.end_sessions, requester.user_id, now_ms=now_ms()
        )
        await self.store.catch_up(ends_only=True)
        return clear_cookie(json_answer(Ended(ended)))

    @described("List your sessions", answer=SessionList, query=PageQuery, refusals=[403])
    async def list_sessions(self) -> Response:
        requester = await self.authenticator.with_session(request)
        page = query_of(request, PageQuery)
        found = await self.store.read(
            login_sessions.sessions_of,
            requester.user_id,
            after=page.cursor(),
            limit=page.limit,
            now_ms=now_ms(),
        )
        return json_answer(
            SessionList(
                [
                    ListedSession(
                        id=session.id,
                        current=session.id == requester.session_id,
                        created_at=iso_time(session.created_at_ms),
                        last_used_at=iso_time(session.used_at_ms),
                        expires_at=iso_time(session.expires_at_ms),
                        user_agent=session.user_agent,
                        address=session.address,
                    )
                    for session in found
                ],
                cursor_of(found[-1].used_at_ms, found[-1].id) if len(found) == page.limit else None,
            )
        )

    @described("End one of your sessions", answer=Ended)
    async def end_session(self, session_id: str) -> Response:
        requester = await self.authenticator.with_session(request)
        if not await self.store.write_as(
            Authority(requester.principal),
            login_sessions.end_session,
            session_id,
            user_id=requester.user_id,
            now_ms=now_ms(),
        ):
            raise Refused("There is no such session. It may have ended already.", status=404)
        await self.store.catch_up(ends_only=True)
        return json_answer(Ended(1))

    @described("Read the user of the token", answer=Me)
    async def me(self) -> Response:
        requester = await self.authenticator(request)
        # A token without a session may name any user, so it gets only its own token claims.
        user, has_other_way = (
            await self.store.read(_read_user, requester.user_id, issuers=self.accounts.issuers)
            if requester.session_id is not None
            else (None, False)
        )
        if user is None:
            person, has_password = Person(requester.user_id, requester.email, "", None), False
        else:
            person = Person(user.id, user.email, user.name or "", user.picture_url)
            has_password = user.has_password
        return json_answer(
            Me(
                user=person,
                is_admin=requester.is_admin,
                has_password=has_password,
                has_other_way=has_other_way,
                session_id=requester.session_id,
            )
        )


def _read_user(db: Connection, user_id: str, *, issuers: Collection[str]) -> tuple[User | None, bool]:
    return registered.find_user(db, user_id), registered.has_identity(db, user_id, issuers=issuers)


def _shown(text: str | None, longest_chars: int) -> str | None:
    """Shorten a text, and drop characters that cannot be stored or shown. Return None for an empty text."""
    return showable(text or "")[:longest_chars] or None

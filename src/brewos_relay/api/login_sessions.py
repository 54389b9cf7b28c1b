"""Login sessions: how one begins, and /api/auth/refresh, logout, logout-all, sessions and me."""

import logging
import time
import uuid
from typing import Final

import msgspec
from quart import Blueprint, Request, Response, request

from brewos_relay.api.account_rules import AccountRules
from brewos_relay.api.authentication import SignedIn, current_caller
from brewos_relay.api.openapi import described
from brewos_relay.api.payloads import (
    LongText,
    Marked,
    Refused,
    Unshown,
    body_of,
    json_answer,
    mark_of,
    query_of,
)
from brewos_relay.api.request_limits import Throttles
from brewos_relay.auth.secrets import derive_token, generate_salt, generate_secret_token, hash_token
from brewos_relay.auth.tokens import KeyRing
from brewos_relay.networks import network_of
from brewos_relay.protocols import Registry
from brewos_relay.registry import accounts as registered
from brewos_relay.registry import sessions
from brewos_relay.registry.authority import Authority
from brewos_relay.registry.records import User
from brewos_relay.texts import showable
from brewos_relay.vocabulary import iso_time, now_ms

log = logging.getLogger(__name__)

_USER_AGENT_CHARS: Final = 300
_ADDRESS_CHARS: Final = 64


class Person(msgspec.Struct):
    """Who is signed in. An app takes the first letters of `email` where `name` is empty."""

    id: str
    email: str
    name: str
    picture: str | None


class SessionTokens(Unshown, rename="camel"):
    """What an app keeps to stay signed in; `expires_at` is that of the access token, in ms."""

    access_token: str
    refresh_token: str
    expires_at: int
    user: Person


class SessionStarter:
    """Begins sessions, and makes the tokens of those that go on."""

    def __init__(self, *, store: Registry, keys: KeyRing, accounts: AccountRules) -> None:
        self._store = store
        self._keys = keys
        self._accounts = accounts

    async def begin(self, user: User, request: Request, *, password_hash: str | None = None) -> SessionTokens:
        """Begin a session for a user who has just proved who they are, with a password if its hash is given.

        Raises TokenRejected if that has changed meanwhile; RegistryError.
        """
        session_id = uuid.uuid4().hex
        refresh_token = generate_secret_token()
        started_ms = now_ms()
        await self._store.write_anonymous(
            sessions.open_session,
            session_id=session_id,
            user_id=user.id,
            refresh_hash=hash_token(refresh_token),
            user_agent=_shown(request.headers.get("User-Agent"), _USER_AGENT_CHARS),
            address=_shown(current_caller().address, _ADDRESS_CHARS),
            now_ms=started_ms,
            expires_at_ms=started_ms + self._accounts.refresh_ttl_s * 1000,
            password_hash=password_hash,
        )
        person = Person(user.id, user.email, user.name or "", user.picture_url)
        return self._tokens(person, session_id, refresh_token)

    async def go_on(self, refresh_token: str) -> SessionTokens | None:
        """Exchange a refresh token for new tokens; None if it is not valid. Raises RegistryError."""
        salt = generate_salt()
        at_ms = now_ms()
        outcome = await self._store.write_anonymous(
            sessions.refresh,
            hash_token(refresh_token),
            successor_hash=hash_token(derive_token(refresh_token, salt)),
            successor_salt=salt,
            now_ms=at_ms,
            grace_ms=self._accounts.refresh_grace_s * 1000,
            expires_at_ms=at_ms + self._accounts.refresh_ttl_s * 1000,
        )
        if isinstance(outcome, sessions.Copied):
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

    def _tokens(self, person: Person, session_id: str, refresh_token: str) -> SessionTokens:
        now_s = int(time.time())
        access_token = self._keys.issue(
            user_id=person.id,
            email=person.email,
            ttl_s=self._accounts.access_ttl_s,
            now_s=now_s,
            session_id=session_id,
        )
        expires_at_ms = (now_s + self._accounts.access_ttl_s) * 1000
        return SessionTokens(access_token, refresh_token, expires_at_ms, person)


def _shown(text: str | None, longest_chars: int) -> str | None:
    """Shorten a text, without what cannot be stored or shown everywhere; None for nothing."""
    return showable(text or "")[:longest_chars] or None


class RefreshBody(Unshown, rename="camel"):
    """What `POST /api/auth/refresh` takes."""

    refresh_token: LongText


class ListedSession(msgspec.Struct, rename="camel"):
    """A session as it is listed; `current` for the one that asks. Times are in ISO 8601."""

    id: str
    current: bool
    created_at: str
    last_used_at: str
    expires_at: str
    user_agent: str | None
    address: str | None


class SessionList(msgspec.Struct):
    """The sessions of the caller, the last used first; `next` is the `after` of the next page, or null."""

    sessions: list[ListedSession]
    next: str | None


class Ended(msgspec.Struct):
    """How many sessions were ended."""

    ended: int


class Me(msgspec.Struct, rename="camel"):
    """Who asks; `session_id` is None with a token that belongs to no session."""

    user: Person
    is_admin: bool
    has_password: bool
    session_id: str | None


def sessions_blueprint(
    *, store: Registry, starter: SessionStarter, signed_in: SignedIn, throttles: Throttles
) -> Blueprint:
    """Make the blueprint; errors.TokenRejected and errors.RegistryError are left to the app to answer.

    Whoever ends a session is answered when its connections have been closed.
    """
    blueprint = Blueprint("sessions", __name__)

    @blueprint.post("/api/auth/refresh")
    @described(
        "Exchange a refresh token for new tokens",
        body=RefreshBody,
        answer=SessionTokens,
        refusals=[401],
        needs_token=False,
    )
    async def refresh() -> Response:
        with throttles.refreshes.attempt(network_of(current_caller().address)):
            body = await body_of(request, RefreshBody)
            tokens = await starter.go_on(body.refresh_token)
        if tokens is None:
            raise Refused("The session has ended: sign in again.", status=401)
        return json_answer(tokens)

    @blueprint.post("/api/auth/logout")
    @described("End the session that asks; one that is over already is no failure", answer=Ended)
    async def logout() -> Response:
        session_id, user_id = signed_in.session_of(request)
        ended = session_id is not None and await store.write_anonymous(
            sessions.end_session, session_id, user_id=user_id, now_ms=now_ms()
        )
        await store.catch_up(ends_only=True)
        return json_answer(Ended(int(ended)))

    @blueprint.post("/api/auth/logout-all")
    @described("End all sessions of whoever asks", answer=Ended)
    async def logout_all() -> Response:
        who = await signed_in.with_session(request)
        ended = await store.write_as(
            Authority(who.principal), sessions.end_sessions, who.user_id, now_ms=now_ms()
        )
        await store.catch_up(ends_only=True)
        return json_answer(Ended(ended))

    @blueprint.get("/api/auth/sessions")
    @described("List the sessions of whoever asks", answer=SessionList, query=Marked)
    async def list_sessions() -> Response:
        who = await signed_in.with_session(request)
        page = query_of(request, Marked)
        found = await store.read(
            sessions.sessions_of, who.user_id, after=page.mark(), limit=page.limit, now_ms=now_ms()
        )
        return json_answer(
            SessionList(
                [
                    ListedSession(
                        id=session.id,
                        current=session.id == who.session_id,
                        created_at=iso_time(session.created_at_ms),
                        last_used_at=iso_time(session.used_at_ms),
                        expires_at=iso_time(session.expires_at_ms),
                        user_agent=session.user_agent,
                        address=session.address,
                    )
                    for session in found
                ],
                mark_of(found[-1].used_at_ms, found[-1].id) if len(found) == page.limit else None,
            )
        )

    @blueprint.delete("/api/auth/sessions/<session_id>")
    @described("End one session of whoever asks", answer=Ended)
    async def end_session(session_id: str) -> Response:
        who = await signed_in.with_session(request)
        if not await store.write_as(
            Authority(who.principal),
            sessions.end_session,
            session_id,
            user_id=who.user_id,
            now_ms=now_ms(),
        ):
            raise Refused("No such session: it may have ended already.", status=404)
        await store.catch_up(ends_only=True)
        return json_answer(Ended(1))

    @blueprint.get("/api/auth/me")
    @described("Tell who asks", answer=Me)
    async def me() -> Response:
        who = await signed_in(request)
        # A token without a session may name any user: it is told what it says itself.
        user = await store.read(registered.find_user, who.user_id) if who.session_id is not None else None
        if user is None:
            person, has_password = Person(who.user_id, who.email, "", None), False
        else:
            person = Person(user.id, user.email, user.name or "", user.picture_url)
            has_password = user.has_password
        return json_answer(
            Me(user=person, is_admin=who.is_admin, has_password=has_password, session_id=who.session_id)
        )

    return blueprint

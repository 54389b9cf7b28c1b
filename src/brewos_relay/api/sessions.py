"""A session, from its start on: what an app keeps of it, and how a new one is begun."""

import logging
import time
import uuid
from typing import Final

import msgspec
from quart import Request

from brewos_relay.api.account_rules import AccountRules
from brewos_relay.api.bodies import Unshown
from brewos_relay.api.callers import current_caller
from brewos_relay.auth.secrets import derive_token, generate_salt, generate_secret_token, hash_token
from brewos_relay.auth.tokens import KeyRing
from brewos_relay.core.clock import now_ms
from brewos_relay.protocols import Registry
from brewos_relay.registry import sessions
from brewos_relay.registry.records import User
from brewos_relay.texts import showable

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

"""Where an app gets its access tokens from: one that it was given, a function, or a session that goes on.

RelayError
└── SignInEnded   there are no more tokens to be had: somebody has to sign in again
"""

import logging
import os
import ssl
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any, Final, Protocol, TypeAlias

import msgspec
import trio

from brewos_relay.client.endpoint import RelayUnreachable
from brewos_relay.client.http_call import post_json
from brewos_relay.client.key_store import KeyStoreError, read_private, write_private
from brewos_relay.client.websocket import RelayRefused
from brewos_relay.errors import RelayError

#: An access token that ends sooner than this is exchanged before it is used.
MARGIN_S: Final = 120.0
_REFRESH_S: Final = 10.0
_ENDED: Final = frozenset({401, 403})

_log = logging.getLogger(__name__)


class SignInEnded(RelayError):
    """There are no more tokens to be had."""

    code = "sign_in_ended"


class TokenSource(Protocol):
    """Where access tokens come from."""

    async def token(self) -> str:
        """Give a token to use. Raises SignInEnded, RelayUnreachable or RelayRefused."""
        ...

    async def fresh(self) -> str:
        """Give another token than the one before, if there is one: that ends soon, or was not accepted."""
        ...


#: What `open_app` takes as a token.
Token: TypeAlias = str | Callable[[], Awaitable[str]] | TokenSource


class StaticToken:
    """One token, for as long as it is good."""

    def __init__(self, token: str) -> None:
        self._token = token

    async def token(self) -> str:
        """Give the token."""
        return self._token

    async def fresh(self) -> str:
        """Give the same token: there is no other."""
        return self._token


class TokenFunction:
    """Whatever a function gives; it is called for every connection, and whenever a token is about to end."""

    def __init__(self, function: Callable[[], Awaitable[str]]) -> None:
        self._function = function

    async def token(self) -> str:
        """Ask the function."""
        return await self._function()

    async def fresh(self) -> str:
        """Ask the function."""
        return await self._function()


class _Session(msgspec.Struct, frozen=True, rename="camel"):
    """A session as a relay gives it, and as it is kept; `expires_at` is that of the access token, in ms."""

    access_token: str
    refresh_token: str
    expires_at: float


class SessionTokens:
    """The tokens of a session that goes on for as long as somebody uses it: an app can live on it for weeks.

    The session is in a file that only its owner can read (0600). Each exchange replaces the refresh token in
    it, so each app, and each process, needs a session and a file of its own.
    The file has what the relay answers to somebody who signs in; `sign_in` makes one.
    """

    def __init__(
        self, url: str, path: str | os.PathLike[str], *, ssl_context: ssl.SSLContext | None = None
    ) -> None:
        self.path = Path(path)
        self._url = url
        self._ssl_context = ssl_context
        self._session: _Session | None = None
        self._one_at_a_time = trio.Lock()

    def __repr__(self) -> str:
        return f"SessionTokens({str(self.path)!r})"

    async def sign_in(self, path: str, **proof: str) -> None:
        """Begin the session: `path` is one of `/api/auth/…`, and `proof` what it takes.

        `sign_in("/api/auth/password", email=…, password=…)`, or `sign_in("/api/auth/invite", token=…)` with
        what a one-time link ends in. Raises RelayUnreachable, RelayRefused, SettingsError or KeyStoreError.
        """
        async with self._one_at_a_time:
            await self._exchange(path, dict(proof))

    async def token(self) -> str:
        """Give a token that is good for two more minutes at least."""
        async with self._one_at_a_time:
            session = await self._load()
            if session.expires_at / 1000 - time.time() > MARGIN_S:
                return session.access_token
            return await self._refresh(session)

    async def fresh(self) -> str:
        """Exchange the tokens for new ones."""
        async with self._one_at_a_time:
            return await self._refresh(await self._load())

    async def _refresh(self, session: _Session) -> str:
        try:
            return await self._exchange("/api/auth/refresh", {"refreshToken": session.refresh_token})
        except RelayRefused as error:
            if error.status not in _ENDED:
                raise
            raise SignInEnded(f"the session in {self.path} has ended; sign in again") from None
        except KeyStoreError as error:
            if self._session is None or self._session is session:
                raise
            _log.error("the app goes on, but cannot be started again: %s", error)
            return self._session.access_token

    async def _exchange(self, path: str, body: dict[str, Any]) -> str:
        """Get tokens and keep them, without being interrupted: those before are good for nothing then."""
        with trio.move_on_after(2 * _REFRESH_S, shield=True):
            answer = await post_json(
                self._url, path, body, ssl_context=self._ssl_context, timeout_s=_REFRESH_S
            )
            try:
                session = msgspec.convert(answer, _Session)
            except msgspec.ValidationError:
                raise RelayUnreachable(f"what answers at {self._url} gives no tokens") from None
            self._session = session
            data = msgspec.json.encode(session) + b"\n"
            await trio.to_thread.run_sync(write_private, self.path, data)
            return session.access_token
        raise KeyStoreError(f"{self.path} was not written in time")  # pragma: no cover

    async def _load(self) -> _Session:
        if self._session is None:
            data = await trio.to_thread.run_sync(read_private, self.path)
            if data is None:
                raise SignInEnded(f"there is no session in {self.path}; sign in first")
            try:
                self._session = msgspec.json.decode(data, type=_Session)
            except (msgspec.MsgspecError, RecursionError):
                raise KeyStoreError(f"{self.path} does not hold a session; sign in again") from None
        return self._session


def token_source(token: Token) -> TokenSource:
    """Make a source of tokens of whatever somebody has."""
    if isinstance(token, str):
        return StaticToken(token)
    return TokenFunction(token) if callable(token) else token

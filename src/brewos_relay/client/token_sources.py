"""Sources of access tokens for an app: a fixed token, a function, or a login session that is refreshed.

RelayError
└── SignInEnded   no tokens are left: the user has to sign in again
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

#: An access token that expires sooner than this is exchanged before use.
MARGIN_S: Final = 120.0
_REFRESH_S: Final = 10.0
_ENDED: Final = frozenset({401, 403})

_log = logging.getLogger(__name__)


class SignInEnded(RelayError):
    """The source has no token that the relay accepts: the user has to sign in again.

    Raised if a login session has ended or its file does not exist, and if the relay has rejected a token and
    `fresh` returns the same one.
    """

    code = "sign_in_ended"


class TokenSource(Protocol):
    """A source of access tokens."""

    async def token(self) -> str:
        """Return a valid token. Raises SignInEnded, RelayUnreachable or RelayRefused."""
        ...

    async def fresh(self) -> str:
        """Return a new token if there is one, as the last one expires soon or was rejected."""
        ...


#: The kinds of tokens that `open_app` accepts.
Token: TypeAlias = str | Callable[[], Awaitable[str]] | TokenSource


class StaticToken:
    """A fixed token."""

    def __init__(self, token: str) -> None:
        self._token = token

    async def token(self) -> str:
        """Return the token."""
        return self._token

    async def fresh(self) -> str:
        """Return the same token: there is no other."""
        return self._token


class TokenFunction:
    """A function that returns tokens; called for every connection, and when a token is about to expire."""

    def __init__(self, function: Callable[[], Awaitable[str]]) -> None:
        self._function = function

    async def token(self) -> str:
        """Call the function."""
        return await self._function()

    async def fresh(self) -> str:
        """Call the function."""
        return await self._function()


class _Session(msgspec.Struct, frozen=True, rename="camel"):
    """A login session as the relay returns it, and as the file stores it.

    `expires_at` is the end of the access token, in ms.
    """

    access_token: str
    refresh_token: str
    expires_at: float


class SessionFile:
    """The tokens of a login session, in a file; the session stays valid for weeks while it is used.

    Only the owner of the file can read it (0600). Each exchange replaces the refresh token in it, so each
    app, and each process, needs a session and a file of its own. The file has the relay's answer to a
    sign-in; `sign_in` creates it.
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
        return f"SessionFile({str(self.path)!r})"

    async def sign_in(self, path: str, **proof: str) -> None:
        """Start the session: `path` is one of `/api/auth/…`, and `proof` its arguments.

        `sign_in("/api/auth/password", email=…, password=…)`, or `sign_in("/api/auth/invite", token=…)` with
        the token of a one-time link. Raises RelayUnreachable, RelayRefused, SettingsError or KeyStoreError.
        """
        async with self._one_at_a_time:
            await self._exchange(path, dict(proof))

    async def token(self) -> str:
        """Return a token that is valid for at least two more minutes."""
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
            _log.error("the app continues, but its session is lost after a restart: %s", error)
            return self._session.access_token

    async def _exchange(self, path: str, body: dict[str, Any]) -> str:
        """Get tokens and store them, shielded from cancellation: an exchange ends the earlier ones."""
        with trio.move_on_after(2 * _REFRESH_S, shield=True):
            answer = await post_json(
                self._url, path, body, ssl_context=self._ssl_context, timeout_s=_REFRESH_S
            )
            try:
                session = msgspec.convert(answer, _Session)
            except msgspec.ValidationError:
                raise RelayUnreachable(f"the server at {self._url} returned no tokens") from None
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
                raise KeyStoreError(f"{self.path} is not a session file; sign in again") from None
        return self._session


def token_source(token: Token) -> TokenSource:
    """Return a token source for any kind of token."""
    if isinstance(token, str):
        return StaticToken(token)
    return TokenFunction(token) if callable(token) else token

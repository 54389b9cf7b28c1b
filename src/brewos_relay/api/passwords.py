"""Setting and removing a password, and its check, with limits against guessing and against lockout."""

from collections.abc import Callable, Collection
from contextlib import AsyncExitStack
from dataclasses import dataclass
from typing import Final, TypeVar

import msgspec
import trio
from quart import Blueprint, Response, request
from sqlalchemy import Connection

from brewos_relay.api.account_rules import AccountRules
from brewos_relay.api.authentication import Authenticator, Requester, current_caller
from brewos_relay.api.fair_queue import FairQueue
from brewos_relay.api.hashing import hash_in_thread
from brewos_relay.api.openapi import described, make_blueprint
from brewos_relay.api.payloads import Refused, SecretStruct, ShortText, body_of, json_answer
from brewos_relay.api.request_limits import RequestLimits
from brewos_relay.auth.passwords import hash_password, password_matches
from brewos_relay.networks import network_of, networks_of
from brewos_relay.protocols import Registry
from brewos_relay.registry import accounts as registered
from brewos_relay.registry import known_networks, login_sessions
from brewos_relay.registry.authority import Authority
from brewos_relay.registry.emails import email_key
from brewos_relay.registry.records import User
from brewos_relay.vocabulary import now_ms

FRESH_S: Final = 15 * 60
"""How long after its start a session may set a password without the current one.

A one-time link thus helps users who forgot theirs. Only such a fresh session may set a first password: a
stolen token must not give lasting access to the account.
"""
_THREADS: Final = 2
_PLACES: Final = 32
"""Passwords that wait for a thread. Each takes as long as a few hundred other requests."""
_WAIT_S: Final = 10.0

T = TypeVar("T")


class NewPasswordBody(SecretStruct, rename="camel"):
    """The body of `PUT /api/me/password`."""

    password: ShortText
    current_password: ShortText | None = None


class RemovalBody(SecretStruct, rename="camel"):
    """The body of `POST /api/me/password/remove`."""

    current_password: ShortText | None = None


class PasswordIsSet(msgspec.Struct, rename="camel"):
    """How many other sessions were ended because the password changed or was removed."""

    ended_sessions: int


class PasswordCheck:
    """Checks passwords in worker threads, and limits the attempts.

    Attempts from one network at one account have a tight limit. All attempts at one account together have a
    limit too, as an attacker may have many addresses. To keep that from locking the owner out, it does not
    apply to networks with a recent sign-in to the account; these also have priority in the queue. The
    registry keeps a list of them for each account.
    """

    def __init__(self, *, store: Registry, request_limits: RequestLimits) -> None:
        self._store = store
        self._request_limits = request_limits
        self._queue = FairQueue(
            "passwords", at_once=_THREADS, places=_PLACES, wait_s=_WAIT_S, others_at_once=1
        )
        self._limiter = trio.CapacityLimiter(_THREADS)

    async def authenticate(self, *, email: str, password: str, network: str) -> tuple[User, str] | None:
        """Return the account with this e-mail address and password, and the hash of the password.

        Return None for a wrong password or address, after the same amount of work. `network` is the network
        of the caller. An attempt that ends with 503 is not counted. Raises Refused (429, 503), RegistryError.
        """
        account = _account_key(email)
        async with AsyncExitStack() as attempts:
            attempt = await attempts.enter_async_context(
                self._request_limits.passwords.attempt(network, about=account)
            )
            user_id, stored, seen_ms = await self._store.read(_read_account, email, network)
            known = known_networks.is_known(seen_ms, now_ms=now_ms())
            if not known:
                await attempts.enter_async_context(
                    self._request_limits.passwords_from_new_networks.attempt(account)
                )
            matches = await self.run(password_matches, password, stored, network=network, known=known)
            if not matches or user_id is None or stored is None:
                return None
            if known_networks.is_due(seen_ms, now_ms=now_ms()):
                await self._store.write_anonymous(
                    known_networks.record_network, user_id, network, now_ms=now_ms()
                )
            user = await self._store.read(registered.find_user, user_id)
            await attempt.give_back()
            return None if user is None else (user, stored)

    async def run(self, work: Callable[..., T], *args: object, network: str, known: bool = False) -> T:
        """Run work with a password in a thread. Raises Refused (503) if the queue is full.

        Networks take turns; `known` ones have priority, also for a processor.
        """
        async with self._queue.turn(networks_of(network), first=known):
            return await hash_in_thread(work, *args, known=known, limiter=self._limiter)


def _read_account(db: Connection, email: str, network: str) -> tuple[str | None, str | None, int | None]:
    """Read the id and password hash of an account, and the time of its last sign-in from a network."""
    user_id, stored = registered.password_hash_of(db, email) or (None, None)
    seen_ms = None if user_id is None else known_networks.seen_at(db, user_id, network)
    return user_id, stored, seen_ms


def _account_key(email: str) -> str:
    """Return the key that attempts at an account are counted by, equal for all spellings of its address."""
    try:
        return email_key(email)
    except ValueError:
        return ""  # not an address: all of these share one bucket


@dataclass(frozen=True, kw_only=True, eq=False)
class PasswordRoutes:
    """The routes that set and remove a password."""

    store: Registry
    accounts: AccountRules
    authenticator: Authenticator
    passwords: PasswordCheck
    request_limits: RequestLimits

    def blueprint(self) -> Blueprint:
        """Make the blueprint of these routes."""
        return make_blueprint(
            "passwords",
            {
                "PUT,POST /api/me/password": self.set_password,
                "POST /api/me/password/remove": self.remove_password,
            },
        )

    @described(
        "Set or change your password. A change ends your other sessions",
        body=NewPasswordBody,
        answer=PasswordIsSet,
        refusals=[403],
    )
    async def set_password(self) -> Response:
        requester = await self.authenticator.with_session(request)
        network = network_of(current_caller().address)
        async with self.request_limits.sign_ins.attempt(network):
            body = await body_of(request, NewPasswordBody)
            await self._check_may_set(requester, body.current_password, network)
            try:
                # The user is authenticated, so the work has priority.
                password_hash = await self.passwords.run(
                    hash_password, body.password, network=network, known=True
                )
            except ValueError as problem:
                raise Refused(f"This password is not possible: {problem}.", status=400) from None
        ended = await self.store.write_as(
            Authority(requester.principal),
            _set_password,
            requester.user_id,
            password_hash,
            keep=requester.session_id,
            now_ms=now_ms(),
        )
        await self.store.catch_up(ends_only=True)
        return json_answer(PasswordIsSet(ended))

    @described(
        "Remove your password, if you can sign in with an identity provider. It ends your other sessions",
        body=RemovalBody,
        answer=PasswordIsSet,
        refusals=[403, 409],
    )
    async def remove_password(self) -> Response:
        requester = await self.authenticator.with_session(request)
        network = network_of(current_caller().address)
        async with self.request_limits.sign_ins.attempt(network):
            body = await body_of(request, RemovalBody)
            await self._check_may_set(requester, body.current_password, network)
        ended = await self.store.write_as(
            Authority(requester.principal),
            _remove_password,
            requester.user_id,
            issuers=self.accounts.issuers,
            keep=requester.session_id,
            now_ms=now_ms(),
        )
        if ended is None:
            raise Refused(
                "You could not sign in without a password. Sign in with another service first.", status=409
            )
        await self.store.catch_up(ends_only=True)
        return json_answer(PasswordIsSet(ended))

    async def _check_may_set(self, requester: Requester, current_password: str | None, network: str) -> None:
        session = (
            await self.store.find_session(requester.session_id) if requester.session_id is not None else None
        )
        user = await self.store.read(registered.find_user, requester.user_id)
        if session is None or user is None:
            raise Refused("This token belongs to no account. Sign in first.", status=403)
        if now_ms() - session.created_at_ms < FRESH_S * 1000:
            return
        if not user.has_password:
            raise Refused("This session is too old to set a first password. Sign in again.", status=403)
        if current_password is None:
            raise Refused("Enter your current password to set a new one.", status=403)
        if not await self.passwords.authenticate(
            email=user.email, password=current_password, network=network
        ):
            raise Refused("The current password is wrong.", status=403)


def _set_password(db: Connection, user_id: str, password_hash: str, *, keep: str | None, now_ms: int) -> int:
    """Set a password. If it replaces one, end all sessions except `keep`, and return how many."""
    user = registered.find_user(db, user_id)
    registered.set_password_hash(db, user_id, password_hash)
    if user is None or not user.has_password:
        return 0
    return _end_others(db, user_id, keep=keep, now_ms=now_ms)


def _remove_password(
    db: Connection, user_id: str, *, issuers: Collection[str], keep: str | None, now_ms: int
) -> int | None:
    """Remove a password, end all sessions except `keep`, and return how many. None without another way in."""
    if not registered.has_identity(db, user_id, issuers=issuers):
        return None
    registered.set_password_hash(db, user_id, None)
    return _end_others(db, user_id, keep=keep, now_ms=now_ms)


def _end_others(db: Connection, user_id: str, *, keep: str | None, now_ms: int) -> int:
    others = [
        session.id for session in login_sessions.sessions_of(db, user_id, now_ms=now_ms) if session.id != keep
    ]
    return sum(login_sessions.end_session(db, one, user_id=user_id, now_ms=now_ms) for one in others)

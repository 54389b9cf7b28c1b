"""POST /api/auth/google, oidc, facebook, invite and password: the ways to sign in."""

from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from typing import Annotated, Final

import msgspec
from quart import Blueprint, Response, request

from brewos_relay.api.account_rules import AccountRules
from brewos_relay.api.authentication import current_caller
from brewos_relay.api.identity_calls import ProviderCalls, admit, not_set_up
from brewos_relay.api.login_sessions import LoginSessions, SessionTokens
from brewos_relay.api.openapi import described, make_blueprint
from brewos_relay.api.passwords import PasswordCheck
from brewos_relay.api.payloads import LongText, Refused, SecretStruct, ShortText, body_of
from brewos_relay.api.request_limits import Attempt, RequestLimits
from brewos_relay.auth.secrets import hash_secret
from brewos_relay.networks import network_of
from brewos_relay.protocols import Registry
from brewos_relay.registry.invites import redeem_invite
from brewos_relay.registry.records import User
from brewos_relay.vocabulary import now_ms

_NAMES: Final = {"google": "Google", "facebook": "Facebook", "oidc": "OpenID Connect"}

Nonce = Annotated[str, msgspec.Meta(min_length=22, max_length=128)]
"""At least 128 random bits in base64, generated and kept by a browser."""


class CredentialBody(SecretStruct):
    """An ID token: the body of `POST /api/auth/google` and `POST /api/auth/oidc`."""

    credential: LongText


class FacebookBody(SecretStruct, rename="camel"):
    """The body of `POST /api/auth/facebook`."""

    access_token: LongText


class InviteBody(SecretStruct):
    """The body of `POST /api/auth/invite`: `token` is the part of a one-time link after `#invite=`.

    With a random `nonce`, a browser can repeat the same request for a minute.
    """

    token: ShortText
    nonce: Nonce | None = None


class PasswordBody(SecretStruct):
    """The body of `POST /api/auth/password`."""

    email: ShortText
    password: ShortText


@dataclass(kw_only=True, eq=False)
class SignInRoutes:
    """The routes that sign users in."""

    store: Registry
    accounts: AccountRules
    login_sessions: LoginSessions
    passwords: PasswordCheck
    request_limits: RequestLimits
    providers: ProviderCalls
    reusable_links: bool = False
    """Whether a link works more than once, as in a demo."""

    def blueprint(self) -> Blueprint:
        """Make the blueprint of these routes."""
        return make_blueprint(
            "sign_in",
            {
                "POST /api/auth/google": self.google,
                "POST /api/auth/oidc": self.oidc,
                "POST /api/auth/facebook": self.facebook,
                "POST /api/auth/invite": self.invite,
                "POST /api/auth/password": self.password,
            },
        )

    async def _sign_in_by_proof(self, kind: str, proof: str) -> Response:
        verifier = self.accounts.verifiers.get(kind)
        if verifier is None:
            raise not_set_up(_NAMES[kind])
        proven = await self.providers.call(_NAMES[kind], verifier.verify, proof)
        return await self._start_session(await admit(self.store, self.accounts, proven))

    async def _start_session(self, user: User, *, password_hash: str | None = None) -> Response:
        started = await self.login_sessions.start(user, request, password_hash=password_hash)
        return self.login_sessions.answer(started)

    def _attempt(self) -> AbstractAsyncContextManager[Attempt]:
        """Count an attempt to sign in, unless it ends with a 503."""
        return self.request_limits.sign_ins.attempt(network_of(current_caller().address))

    @described(
        "Sign in with an ID token of Google",
        body=CredentialBody,
        answer=SessionTokens,
        refusals=[401, 403, 404],
        needs_token=False,
    )
    async def google(self) -> Response:
        async with self._attempt():
            body = await body_of(request, CredentialBody)
            return await self._sign_in_by_proof("google", body.credential)

    @described(
        "Sign in with an ID token of the configured OpenID Connect issuer",
        body=CredentialBody,
        answer=SessionTokens,
        refusals=[401, 403, 404],
        needs_token=False,
    )
    async def oidc(self) -> Response:
        async with self._attempt():
            body = await body_of(request, CredentialBody)
            return await self._sign_in_by_proof("oidc", body.credential)

    @described(
        "Sign in with an access token of Facebook",
        body=FacebookBody,
        answer=SessionTokens,
        refusals=[401, 403, 404],
        needs_token=False,
    )
    async def facebook(self) -> Response:
        async with self._attempt():
            body = await body_of(request, FacebookBody)
            return await self._sign_in_by_proof("facebook", body.access_token)

    @described(
        "Sign in with a one-time link",
        body=InviteBody,
        answer=SessionTokens,
        refusals=[401],
        needs_token=False,
    )
    async def invite(self) -> Response:
        async with self._attempt():
            body = await body_of(request, InviteBody)
            user = await self.store.write_anonymous(
                redeem_invite,
                hash_secret(body.token),
                nonce_hash=None if body.nonce is None else hash_secret(body.nonce),
                is_reusable=self.reusable_links,
                now_ms=now_ms(),
            )
            if user is None:
                raise Refused(
                    "This link was used already, or it has expired. Ask for a new one.",
                    status=401,
                )
            return await self._start_session(user)

    @described(
        "Sign in with a password",
        body=PasswordBody,
        answer=SessionTokens,
        refusals=[401],
        needs_token=False,
    )
    async def password(self) -> Response:
        async with self._attempt():
            body = await body_of(request, PasswordBody)
            proven = await self.passwords.authenticate(
                email=body.email, password=body.password, network=network_of(current_caller().address)
            )
            if proven is None:
                raise Refused("The e-mail address or the password is wrong.", status=401)
            user, password_hash = proven
            return await self._start_session(user, password_hash=password_hash)

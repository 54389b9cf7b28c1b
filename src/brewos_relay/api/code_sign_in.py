"""POST /api/auth/code/start and finish: sign in on the page of an identity provider.

The sign-in page navigates by script. A service worker of the built web app answers page loads, and takes a
redirect for a failure.
"""

from dataclasses import dataclass
from typing import Annotated
from urllib.parse import urlsplit

import msgspec
from quart import Blueprint, Response, request

from brewos_relay.api.account_rules import AccountRules
from brewos_relay.api.authentication import current_caller
from brewos_relay.api.identity_calls import ProviderCalls, admit, not_set_up
from brewos_relay.api.login_sessions import LoginSessions, SessionTokens
from brewos_relay.api.openapi import described, make_blueprint
from brewos_relay.api.payloads import (
    LongText,
    Refused,
    SecretStruct,
    ShortText,
    body_of,
    json_answer,
)
from brewos_relay.api.request_limits import RequestLimits
from brewos_relay.auth.code_flow import (
    ATTEMPT_S,
    COOKIE,
    PATH,
    CodeFlow,
    new_attempt,
    read_attempt,
    sign_attempt,
)
from brewos_relay.auth.tokens import KeyRing
from brewos_relay.errors import TokenRejected
from brewos_relay.networks import network_of
from brewos_relay.protocols import Registry


class StartBody(msgspec.Struct):
    """The body of `POST /api/auth/code/start`: a `kind` of the `byCode` in `/api/info`."""

    kind: Annotated[str, msgspec.Meta(max_length=32)]


class Started(msgspec.Struct):
    """The page of the identity provider to open."""

    url: str


class FinishBody(SecretStruct):
    """The body of `POST /api/auth/code/finish`: the parameters that the provider added to the URL."""

    code: LongText
    state: ShortText
    iss: ShortText | None = None


@dataclass(frozen=True, kw_only=True, eq=False)
class CodeSignInRoutes:
    """The routes of the authorization code flow."""

    store: Registry
    keys: KeyRing
    accounts: AccountRules
    login_sessions: LoginSessions
    request_limits: RequestLimits
    providers: ProviderCalls

    def blueprint(self) -> Blueprint:
        """Make the blueprint of these routes."""
        return make_blueprint(
            "code_sign_in",
            {
                f"POST {PATH}/start": self.start,
                f"POST {PATH}/finish": self.finish,
            },
        )

    @described(
        "Begin to sign in on the page of an identity provider. The answer has a cookie for the attempt",
        body=StartBody,
        answer=Started,
        refusals=[400, 404],
        needs_token=False,
    )
    async def start(self) -> Response:
        self.request_limits.sign_ins.check(network_of(current_caller().address))
        body = await body_of(request, StartBody)
        flow = self._flow_of(body.kind)
        if urlsplit(flow.redirect_uri).netloc != current_caller().host:
            # The provider sends the browser to that address, where it would not send the cookie.
            raise Refused(
                f"Signing in with {flow.name} works at {flow.redirect_uri.removesuffix('/callback')} only."
                " Open that page.",
                status=400,
            )
        attempt = new_attempt(body.kind)
        url = await self.providers.call(flow.name, flow.authorization_url, attempt)
        response = json_answer(Started(url))
        return _set_cookie(response, sign_attempt(self.keys, attempt), max_age_s=ATTEMPT_S)

    @described(
        "Complete to sign in, with the code of an identity provider and the cookie of the attempt",
        body=FinishBody,
        answer=SessionTokens,
        refusals=[400, 401, 403, 404],
        needs_token=False,
    )
    async def finish(self) -> Response:
        async with self.request_limits.sign_ins.attempt(network_of(current_caller().address)):
            body = await body_of(request, FinishBody)
            try:
                attempt = read_attempt(self.keys, request.cookies.get(COOKIE), state=body.state)
            except TokenRejected:
                raise Refused(
                    "This browser has not begun to sign in, or too long ago. Sign in again.", status=400
                ) from None
            flow = self._flow_of(attempt.kind)
            proven = await self.providers.call(flow.name, flow.redeem, attempt, body.code, issuer=body.iss)
            user = await admit(self.store, self.accounts, proven)
            started = await self.login_sessions.start(user, request)
            return _set_cookie(self.login_sessions.answer(started), "", max_age_s=0)

    def _flow_of(self, kind: str) -> CodeFlow:
        flow = self.accounts.code_flows.get(kind)
        if flow is None:
            raise not_set_up("this service")
        return flow


def _set_cookie(response: Response, value: str, *, max_age_s: int) -> Response:
    response.set_cookie(
        COOKIE,
        value,
        max_age=max_age_s,
        path=PATH,
        secure=current_caller().scheme == "https",
        httponly=True,
        samesite="Lax",
    )
    return response

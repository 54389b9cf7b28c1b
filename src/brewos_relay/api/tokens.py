"""/api/admin/tokens: the tokens without a session, for administrators."""

from typing import Literal

import msgspec
from quart import Blueprint, Response, request

from brewos_relay.api.admin import administrator
from brewos_relay.api.authentication import SignedIn
from brewos_relay.api.openapi import Done, described
from brewos_relay.api.payloads import Marked, Refused, json_answer, mark_of, query_of
from brewos_relay.protocols import Registry
from brewos_relay.registry.authority import Authority
from brewos_relay.registry.records import StoredToken
from brewos_relay.registry.tokens import all_tokens, revoke_token
from brewos_relay.vocabulary import Role, iso_time, now_ms


class TokenAnswer(msgspec.Struct, rename="camel", kw_only=True):
    """A token that was made on the command line; `devices` are ids, or "*" for all devices."""

    id: str
    name: str | None
    user_id: str
    role: Role
    devices: list[str] | Literal["*"]
    created_at: str
    expires_at: str
    revoked_at: str | None


class Tokens(msgspec.Struct):
    """Tokens that have not expired, the newest first; `next` is the `after` of the next page, or null."""

    tokens: list[TokenAnswer]
    next: str | None


def tokens_blueprint(*, store: Registry, signed_in: SignedIn) -> Blueprint:
    """Make the blueprint; what it refuses and what fails is left to the app to answer."""
    blueprint = Blueprint("tokens", __name__)

    @blueprint.get("/api/admin/tokens")
    @described(
        "The tokens made on the command line, for an administrator",
        answer=Tokens,
        query=Marked,
        refusals=[403],
    )
    async def list_tokens() -> Response:
        await administrator(signed_in, request)
        page = query_of(request, Marked)
        found = await store.read(all_tokens, after=page.mark(), limit=page.limit, now_ms=now_ms())
        return json_answer(
            Tokens(
                tokens=[_describe(token) for token in found],
                next=mark_of(found[-1].created_at_ms, found[-1].id) if len(found) == page.limit else None,
            )
        )

    @blueprint.delete("/api/admin/tokens/<token_id>")
    @described("Revoke a token: its connections close", answer=Done, refusals=[403])
    async def end_token(token_id: str) -> Response:
        who = await administrator(signed_in, request)
        authority = Authority(who.principal, is_admin=True)
        if not await store.write_as(authority, revoke_token, token_id, now_ms=now_ms()):
            raise Refused("There is no such token: it may be revoked already.", status=404)
        await store.catch_up(ends_only=True)
        return json_answer(Done())

    return blueprint


def _describe(token: StoredToken) -> TokenAnswer:
    return TokenAnswer(
        id=token.id,
        name=token.name,
        user_id=token.user_id,
        role=token.role,
        devices=token.devices if token.devices == "*" else sorted(token.devices),
        created_at=iso_time(token.created_at_ms),
        expires_at=iso_time(token.expires_at_ms),
        revoked_at=iso_time(token.revoked_at_ms),
    )

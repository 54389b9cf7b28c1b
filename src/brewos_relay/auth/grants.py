"""From the claims of a token and from a role, to what the relay enforces."""

import math
from dataclasses import replace

from brewos_relay.auth.tokens import TokenClaims
from brewos_relay.core.grant import Credential, Grant, Principal, Rights
from brewos_relay.vocabulary import Role, role_includes


def principal_of(claims: TokenClaims) -> Principal:
    """Take the principal and the limits of the token out of the claims of a token."""
    return Principal(
        user_id=claims.user_id,
        session_id=claims.session_id,
        token_id=claims.token_id,
        role=claims.role,
        devices=claims.devices,
    )


def grant_of(
    role: Role,
    *,
    until_ms: int | None = None,
    user_id: str | None = None,
    session_id: str | None = None,
    by_token: bool = False,
) -> Grant:
    """Say what a role allows: a viewer looks on, a member commands, an owner commands everything.

    `until_ms` is when it ends, in ms since the epoch; None is never. `by_token` is for a device that a token
    names itself, so that the registry has no say in it.
    """
    return Grant(
        user_id=user_id,
        session_id=session_id,
        may_command=role_includes(role, "member"),
        may_manage=role == "owner",
        until_s=math.inf if until_ms is None else until_ms / 1000,
        by_token=by_token,
    )


def grant_to(principal: Principal, rights: Rights) -> Grant:
    """Say what a principal may do with a device to which it has these rights."""
    grant = grant_of(rights.role, until_ms=rights.until_ms, by_token=rights.by_token)
    return replace(
        grant,
        user_id=principal.user_id,
        session_id=principal.session_id,
        highest_role=principal.role,
        credential=None if principal.session_id is not None else Credential(principal.token_id),
    )

"""From token claims and roles to the grants that the relay enforces."""

import math

from brewos_relay.auth.tokens import TokenClaims
from brewos_relay.core.grant import Credential, Grant, Principal, Rights
from brewos_relay.vocabulary import Role, role_includes


def principal_of(claims: TokenClaims) -> Principal:
    """Return the principal that token claims name, with the limits of the token."""
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
    highest_role: Role = "owner",
    credential: Credential | None = None,
) -> Grant:
    """Return the grant of a role. Viewers watch, members send commands, owners send all commands.

    `until_ms` is the end of the grant in Unix ms; None is never. `by_token` is true if the token itself names
    the device, so that the registry does not limit it. `highest_role` and `credential` are those of the
    token.
    """
    return Grant(
        user_id=user_id,
        session_id=session_id,
        may_command=role_includes(role, "member"),
        may_manage=role == "owner",
        until_s=math.inf if until_ms is None else until_ms / 1000,
        by_token=by_token,
        highest_role=highest_role,
        credential=credential,
    )


def grant_to(principal: Principal, rights: Rights) -> Grant:
    """Return the grant of a principal that has these rights to a device."""
    by_session = principal.session_id is not None
    return grant_of(
        rights.role,
        until_ms=rights.until_ms,
        user_id=principal.user_id,
        session_id=principal.session_id,
        by_token=rights.by_token,
        highest_role=principal.role,
        credential=None if by_session else Credential(principal.token_id),
    )

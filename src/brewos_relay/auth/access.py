"""Who may do what with a device: from roles, and from what a token says, to what the relay enforces."""

import math

from brewos_relay.auth.tokens import Claims, Role
from brewos_relay.core.grant import Grant


def claims_name_device(claims: Claims, device_id: str) -> bool:
    """Tell whether a token names this device (an id in upper case) or all devices.

    If it does not, its user may still have the device: that is for the registry to say.
    """
    return claims.devices == "*" or device_id in claims.devices


def grant_of(
    role: Role,
    *,
    until_ms: int | None = None,
    user_id: str | None = None,
    session_id: str | None = None,
    by_token: bool = False,
) -> Grant:
    """Say what a role allows: a viewer looks on, a member commands, an owner commands everything.

    `until_ms` is when it ends, in ms since the epoch; None is never. `by_token` is for what a token says by
    itself, in which nobody else has a say.
    """
    return Grant(
        user_id=user_id,
        session_id=session_id,
        may_command=role in ("owner", "member"),
        may_manage=role == "owner",
        until_s=math.inf if until_ms is None else until_ms / 1000,
        by_token=by_token,
    )


def grant_of_claims(claims: Claims, device_id: str) -> Grant | None:
    """Say what a token by itself allows with a device (an id in upper case); None if it does not name it.

    The grant has no end of its own: the token has one.
    """
    if not claims_name_device(claims, device_id):
        return None
    return grant_of(claims.role, user_id=claims.user_id, session_id=claims.session_id, by_token=True)

"""Authority: the rights that a write depends on, verified inside its transaction.

A request waits for its body, for a thread and for other writers, and its session may end meanwhile. So each
write first verifies the session, user, token, role and device, and locks their rows until the commit.

All code locks rows in the same order, so that writers do not deadlock: administrators, the principal's
account, its session, its token, other accounts, devices.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final

from sqlalchemy import Connection, bindparam, select

from brewos_relay.core.grant import Principal, rights_of
from brewos_relay.errors import DeviceUnknown, NotAnAdministrator, RoleTooLow, TokenRejected
from brewos_relay.registry.access import access_of, lock_account
from brewos_relay.registry.accounts import lock_admins
from brewos_relay.registry.device_keys import add_next_key, drop_next_key
from brewos_relay.registry.devices import lock_device
from brewos_relay.registry.invites import redeem_invite
from brewos_relay.registry.issued_tokens import lock_token
from brewos_relay.registry.known_networks import record_network
from brewos_relay.registry.login_sessions import end_session, open_session, refresh
from brewos_relay.registry.pairing import register_pairing
from brewos_relay.registry.schema import sessions, users
from brewos_relay.registry.sign_in import sign_in
from brewos_relay.vocabulary import Role, role_includes

# FOR NO KEY UPDATE: other writers can still add rows that refer to the account or the session.
_USER: Final = (
    select(users.c.id)
    .where(users.c.id == bindparam("of_user"))
    .where(users.c.removed_at_ms.is_(None))
    .with_for_update(key_share=True)
)
_SESSION: Final = (
    select(sessions.c.id)
    .where(sessions.c.id == bindparam("of_session"))
    .where(sessions.c.user_id == bindparam("of_user"))
    .where(sessions.c.expires_at_ms > bindparam("now_ms"))
    .with_for_update(key_share=True)
)


@dataclass(frozen=True, slots=True)
class Authority:
    """A principal and the rights that it must have at the time of the write.

    `device_id` and `at_least` require this role for the device. `is_admin` requires an administrator.
    `about_user_id` is another user whom the write concerns; that account is kept until the commit.
    """

    principal: Principal
    device_id: str | None = None
    at_least: Role = "viewer"
    is_admin: bool = False
    about_user_id: str | None = None


def verify(db: Connection, authority: Authority, *, now_ms: int) -> None:
    """Verify an authority, and keep it valid until the transaction ends.

    Raises TokenRejected if the session or account has ended or the token was revoked, NotAnAdministrator,
    DeviceUnknown if the principal has no access to the device, and RoleTooLow.
    """
    principal = authority.principal
    if authority.is_admin and (principal.session_id is None or principal.user_id not in lock_admins(db)):
        raise NotAnAdministrator
    if principal.session_id is not None:
        _verify_session(db, principal.user_id, principal.session_id, now_ms=now_ms)
    if principal.token_id is not None and not lock_token(db, principal.token_id):
        raise TokenRejected("the token has been revoked")
    if authority.about_user_id is not None:
        lock_account(db, authority.about_user_id)
    if authority.device_id is not None:
        _verify_device(db, principal, authority.device_id, authority.at_least, now_ms=now_ms)


def _verify_session(db: Connection, user_id: str, session_id: str, *, now_ms: int) -> None:
    user = db.scalar(_USER, {"of_user": user_id})
    session = db.scalar(_SESSION, {"of_session": session_id, "of_user": user_id, "now_ms": now_ms})
    if user is None or session is None:
        raise TokenRejected("the session has ended: sign in again")


def _verify_device(
    db: Connection, principal: Principal, device_id: str, at_least: Role, *, now_ms: int
) -> None:
    lock_device(db, device_id)
    pair = (principal.user_id, device_id)
    rights = rights_of(principal, device_id, access_of(db, [pair], now_ms=now_ms).get(pair))
    if rights is None:
        raise DeviceUnknown(device_id)
    if not role_includes(rights.role, at_least):
        raise RoleTooLow(device_id, at_least)


ANONYMOUS_WRITES: Final[Mapping[Callable[..., Any], str]] = {
    sign_in: "the issuer proves the identity; the transaction looks the account up",
    redeem_invite: "the invite's token is the authority; the transaction uses it up",
    open_session: "the sign-in was just proved; the transaction checks account and password again",
    record_network: "the password was just checked; the transaction locks the account if it still exists",
    refresh: "the refresh token is the authority; the transaction checks and replaces it",
    end_session: "a signed token names the session; ending it grants nothing, and may be repeated",
    register_pairing: "a machine has no account; the transaction checks the key that it sends",
    add_next_key: "requested on the command line; only administrators write these changes",
    drop_next_key: "undoes the add_next_key of the same request, whose key was never sent",
}
"""The writes of the HTTP API that need no session, token or role, each with the reason."""

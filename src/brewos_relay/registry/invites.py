"""Invites: links that sign a user in once, by e-mail address, and make the account if there is none."""

from typing import Final

from sqlalchemy import Connection, bindparam, delete, exists, insert, select

from brewos_relay.registry.accounts import (
    find_user,
    find_user_by_email,
    has_administrator,
    make_user,
    set_admin,
)
from brewos_relay.registry.emails import email_key, is_same_mailbox, normal_email
from brewos_relay.registry.records import User
from brewos_relay.registry.schema import invites, redeemed_invites

REDEEMED_MS: Final = 60_000
"""For how long the browser that redeemed an invite may redeem it again."""

_INVITED: Final = (
    select(invites.c.email)
    .where(invites.c.email_key == bindparam("key"))
    .where(invites.c.expires_at_ms > bindparam("now_ms"))
)

_REDEEMED_BY: Final = (
    select(redeemed_invites.c.user_id)
    .where(redeemed_invites.c.token_hash == bindparam("token"))
    .where(redeemed_invites.c.nonce_hash == bindparam("nonce"))
    .where(redeemed_invites.c.expires_at_ms > bindparam("now_ms"))
)

_ANY_ADMIN_INVITE: Final = select(
    exists(
        select(invites.c.token_hash)
        .where(invites.c.is_admin)
        .where(invites.c.expires_at_ms > bindparam("now_ms"))
        .where(invites.c.email_key != bindparam("key"))
    )
)

_OPEN_ADMIN_INVITE: Final = (
    select(invites.c.email, invites.c.expires_at_ms)
    .where(invites.c.is_admin)
    .where(invites.c.expires_at_ms > bindparam("now_ms"))
    .order_by(invites.c.expires_at_ms.desc(), invites.c.email)
    .limit(1)
)


def open_admin_invite(db: Connection, *, now_ms: int) -> tuple[str, int] | None:
    """Return the address and the end of an administrator invite that was not used yet, the longest valid."""
    invite = db.execute(_OPEN_ADMIN_INVITE, {"now_ms": now_ms}).one_or_none()
    return None if invite is None else (invite.email, invite.expires_at_ms)


def is_first_administrator(db: Connection, email: str, *, now_ms: int) -> bool:
    """Tell whether an invite for this address would make the first administrator.

    It would if no account is an administrator and no administrator invite is open for another address.
    """
    open_for_another = {"now_ms": now_ms, "key": email_key(email)}
    return not (has_administrator(db) or db.scalar(_ANY_ADMIN_INVITE, open_for_another))


def add_invite(
    db: Connection,
    *,
    email: str,
    token_hash: bytes,
    is_admin: bool,
    expires_at_ms: int,
    now_ms: int,
    created_by: str | None = None,
) -> None:
    """Let the holder of a token sign in once, as the user with this address.

    `created_by` is the administrator who invites; None is the command line. Raises ValueError if `email` is
    invalid, or equal to the address of an account by `email_key` but not the same mailbox.
    """
    email = normal_email(email)
    user = find_user_by_email(db, email)
    if user is not None and not is_same_mailbox(user.email, email):
        raise ValueError(
            f"{email} is too similar to {user.email}, the address of an account; write it like that"
        )
    row = {
        "token_hash": token_hash,
        "email": email,
        "is_admin": is_admin,
        "created_at_ms": now_ms,
        "expires_at_ms": expires_at_ms,
        "email_key": email_key(email),
        "created_by": created_by,
    }
    db.execute(insert(invites), row)


def redeem_invite(
    db: Connection,
    token_hash: bytes,
    *,
    nonce_hash: bytes | None = None,
    is_reusable: bool = False,
    now_ms: int,
) -> User | None:
    """Use an invite up and return its account, which is created if missing. None if the invite is invalid.

    An `is_reusable` invite stays, as in a demo.

    The account becomes an administrator if the invite says so. A browser that sends the same nonce again
    within `REDEEMED_MS` gets the account again: it may not have received the first answer.
    """
    # One statement, so that only one of two requests with the same token deletes the row.
    is_it = (invites.c.token_hash == token_hash, invites.c.expires_at_ms > now_ms)
    columns = (invites.c.email, invites.c.is_admin)
    used = (
        select(*columns).where(*is_it) if is_reusable else delete(invites).where(*is_it).returning(*columns)
    )
    invite = db.execute(used).one_or_none()
    if invite is None:
        again = {"token": token_hash, "nonce": nonce_hash, "now_ms": now_ms}
        user_id = None if nonce_hash is None else db.scalar(_REDEEMED_BY, again)
        return None if user_id is None else find_user(db, user_id)
    user = find_user_by_email(db, invite.email)
    if user is None:
        user = make_user(db, invite.email, name=None, is_admin=invite.is_admin, now_ms=now_ms)
    elif not is_same_mailbox(user.email, invite.email):
        return None  # the account was created after the invite
    elif invite.is_admin:
        set_admin(db, user.id, True)
    if nonce_hash is not None and not is_reusable:
        row = {"token_hash": token_hash, "nonce_hash": nonce_hash, "user_id": user.id}
        db.execute(insert(redeemed_invites), {**row, "expires_at_ms": now_ms + REDEEMED_MS})
    return find_user(db, user.id)


def forget_invites(db: Connection, user: User) -> None:
    """End the open invites for an account's mailbox, and all invites created by the account."""
    for invited in invites_of(db, user.email):
        db.execute(delete(invites).where(invites.c.email == invited))
    db.execute(delete(invites).where(invites.c.created_by == user.id))


def invites_of(db: Connection, email: str, *, now_ms: int = 0) -> set[str]:
    """Return the stored addresses of open invites for this mailbox."""
    found = db.scalars(_INVITED, {"key": email_key(email), "now_ms": now_ms})
    return {invited for invited in found if is_same_mailbox(invited, email)}

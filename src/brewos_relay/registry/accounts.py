"""Accounts: people, how they prove who they are, and whom an administrator has invited.

A person's subject at an issuer never changes. Their e-mail address may change, and may become another
person's. So an address leads to an account once, when the issuer vouches for exactly this mailbox, and never
past another account of the same issuer.

Accounts and invites are found by `emails.email_key`, and no two accounts have the same key. Two accounts from
before there were keys may: the younger one's key has its id behind it, and both are found by the address that
they have.

Signing in never makes an administrator. An invite does if it says so, and `set_admin`.
"""

import uuid
from collections.abc import Sequence
from typing import Any, Final

from sqlalchemy import Connection, bindparam, delete, exists, func, insert, or_, select, update

from brewos_relay.errors import SignInRefused, UserExists
from brewos_relay.registry.devices import IDS_AT_ONCE, chunks
from brewos_relay.registry.emails import email_key, fold, is_same_mailbox, normal_email
from brewos_relay.registry.records import Identity, User
from brewos_relay.registry.schema import identities, invites, redeemed_invites, users
from brewos_relay.texts import clean_name

REDEEMED_MS: Final = 60_000
"""For how long the browser that redeemed an invite may do so again."""

_NAME_CHARS: Final = 100
_PICTURE_URL_CHARS: Final = 2000

_THERE: Final = users.c.removed_at_ms.is_(None)
_USERS: Final = select(
    users.c.id,
    users.c.email,
    users.c.name,
    users.c.picture_url,
    users.c.is_admin,
    users.c.password_hash.is_not(None),
    users.c.created_at_ms,
).where(_THERE)
_BY_ID: Final = _USERS.where(users.c.id == bindparam("of_user"))
_BY_IDS: Final = _USERS.where(users.c.id.in_(bindparam("of_users", expanding=True)))
# Of two that are the same by the key, the one that has just this address.
_HAS_ADDRESS: Final = or_(users.c.email_key == bindparam("key"), users.c.email == bindparam("wanted"))
_THIS_FIRST: Final = (users.c.email == bindparam("wanted")).desc()
_BY_EMAIL: Final = _USERS.where(_HAS_ADDRESS).order_by(_THIS_FIRST).limit(1)
_ALL: Final = _USERS.order_by(users.c.email)
_ADMINS: Final = select(users.c.id).where(users.c.is_admin).order_by(users.c.id).with_for_update()
_TO_REMOVE: Final = select(users.c.id).where(users.c.id == bindparam("of_user")).with_for_update()
_PASSWORD: Final = (
    select(users.c.id, users.c.password_hash).where(_HAS_ADDRESS).order_by(_THIS_FIRST).limit(1)
)
_USER_OF: Final = (
    select(identities.c.user_id)
    .where(identities.c.issuer == bindparam("issuer"))
    .where(identities.c.subject == bindparam("subject"))
)
_SUBJECT_AT: Final = (
    select(identities.c.subject)
    .where(identities.c.issuer == bindparam("issuer"))
    .where(identities.c.user_id == bindparam("of_user"))
)
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
_COLLIDING: Final = (
    select(users.c.email).where(users.c.email_key.contains(" "), _THERE).order_by(users.c.email)
)
_ANY: Final = select(exists(select(users.c.id).where(_THERE)))
_ANY_ADMIN: Final = select(exists(select(users.c.id).where(users.c.is_admin)))
_ANY_ADMIN_INVITE: Final = select(
    exists(
        select(invites.c.token_hash)
        .where(invites.c.is_admin)
        .where(invites.c.expires_at_ms > bindparam("now_ms"))
        .where(invites.c.email_key != bindparam("key"))
    )
)


def find_user(db: Connection, user_id: str) -> User | None:
    """Find an account by its id."""
    return _one(db, _BY_ID, of_user=user_id)


def find_users(db: Connection, ids: Sequence[str]) -> dict[str, User]:
    """Find those of these accounts that there are, by their ids."""
    found = [
        _user(row) for chunk in chunks(ids, IDS_AT_ONCE) for row in db.execute(_BY_IDS, {"of_users": chunk})
    ]
    return {user.id: user for user in found}


def find_user_by_email(db: Connection, email: str) -> User | None:
    """Find the account with the same e-mail address as this one, by `email_key`."""
    try:
        return _one(db, _BY_EMAIL, wanted=normal_email(email), key=email_key(email))
    except ValueError:
        return None


def all_users(db: Connection) -> list[User]:
    """List every account, in the order of their e-mail addresses."""
    return [_user(row) for row in db.execute(_ALL)]


def some_users(db: Connection, *, find: str = "", after: str = "", limit: int) -> list[User]:
    """List accounts in the order of their e-mail addresses: at most `limit`, behind the address `after`.

    With `find`, only those that have it in their address or name, in any case.
    """
    query = _ALL.where(users.c.email > after).limit(limit)
    if find:
        wanted = ((users.c.email, find.lower()), (users.c.email_key, fold(find)))
        name = (func.lower(users.c.name), find.lower())
        query = query.where(
            or_(*(column.contains(part, autoescape=True) for column, part in (*wanted, name)))
        )
    return [_user(row) for row in db.execute(query)]


def lock_admins(db: Connection) -> list[str]:
    """Give the ids of all administrators, whom nobody else changes until the transaction ends."""
    return list(db.scalars(_ADMINS))


def colliding_addresses(db: Connection) -> list[str]:
    """List the addresses of accounts that are the same as an older account's, by `email_key`."""
    return list(db.scalars(_COLLIDING))


def has_accounts(db: Connection) -> bool:
    """Tell whether there is any account."""
    return bool(db.scalar(_ANY))


def has_administrator(db: Connection) -> bool:
    """Tell whether any account is an administrator's."""
    return bool(db.scalar(_ANY_ADMIN))


def is_first_administrator(db: Connection, email: str, *, now_ms: int) -> bool:
    """Tell whether an invite for this address is the first administrator's.

    It is if no account is an administrator's, and no invite to become one is open for another address.
    """
    open_for_another = {"now_ms": now_ms, "key": email_key(email)}
    return not (has_administrator(db) or db.scalar(_ANY_ADMIN_INVITE, open_for_another))


def add_user(db: Connection, *, email: str, name: str | None, now_ms: int) -> User:
    """Make an ordinary account. Raises UserExists, and ValueError if `email` is no e-mail address."""
    email = normal_email(email)
    if find_user_by_email(db, email) is not None:
        raise UserExists(email)
    return _make(db, email, name=name, picture_url=None, is_admin=False, now_ms=now_ms)


def sign_in(db: Connection, ident: Identity, *, open_to_all: bool, now_ms: int) -> User:
    """Find or make the account of a person whom an issuer has identified; raises SignInRefused.

    An ordinary account is made if sign-up is open to all, or for an invited mailbox. That uses up its
    invites, except those to become an administrator: only their links do that. Name and picture become what
    the issuer says.
    """
    user_id = db.scalar(_USER_OF, {"issuer": ident.issuer, "subject": ident.subject})
    if user_id is None:
        user_id = _admit(db, ident, open_to_all=open_to_all, now_ms=now_ms)
        row = {"issuer": ident.issuer, "subject": ident.subject, "user_id": user_id}
        db.execute(insert(identities), row)
    said = {"name": _clean_name(ident.name), "picture_url": _clean_url(ident.picture_url)}
    values = {column: text for column, text in said.items() if text is not None}
    if values:
        db.execute(update(users).where(users.c.id == user_id).values(**values))
    return _user(db.execute(_BY_ID, {"of_user": user_id}).one())


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

    `created_by` is the administrator who invites; None is the command line. ValueError if `email` is no
    address, or differs from an account's address only in what `email_key` does not regard.
    """
    email = normal_email(email)
    user = find_user_by_email(db, email)
    if user is not None and not is_same_mailbox(user.email, email):
        raise ValueError(
            f"{email} is too much like the address of an account, {user.email}; write it like that"
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
    db: Connection, token_hash: bytes, *, nonce_hash: bytes | None = None, now_ms: int
) -> User | None:
    """Use an invite up, and give its account, made if there is none; None if the invite is not valid.

    It makes an administrator if it says so. A browser that sends the same nonce again within `REDEEMED_MS`
    gets the same account again, since it may not have received the first answer.
    """
    # One statement: of two requests with the same token, one finds nothing to delete.
    used = delete(invites).where(invites.c.token_hash == token_hash, invites.c.expires_at_ms > now_ms)
    invite = db.execute(used.returning(invites.c.email, invites.c.is_admin)).one_or_none()
    if invite is None:
        again = {"token": token_hash, "nonce": nonce_hash, "now_ms": now_ms}
        user_id = None if nonce_hash is None else db.scalar(_REDEEMED_BY, again)
        return None if user_id is None else find_user(db, user_id)
    user = find_user_by_email(db, invite.email)
    if user is None:
        user = _make(db, invite.email, name=None, picture_url=None, is_admin=invite.is_admin, now_ms=now_ms)
    elif not is_same_mailbox(user.email, invite.email):
        return None  # an account that came after the invite
    elif invite.is_admin:
        set_admin(db, user.id, True)
    if nonce_hash is not None:
        row = {"token_hash": token_hash, "nonce_hash": nonce_hash, "user_id": user.id}
        db.execute(insert(redeemed_invites), {**row, "expires_at_ms": now_ms + REDEEMED_MS})
    return find_user(db, user.id)


def set_password_hash(db: Connection, user_id: str, password_hash: str | None) -> bool:
    """Keep the hash of a user's password, or none; False if there is no such account."""
    changed = update(users).where(users.c.id == user_id, _THERE).values(password_hash=password_hash)
    return db.execute(changed).rowcount > 0


def password_hash_of(db: Connection, email: str) -> tuple[str, str] | None:
    """Find the id and the password's hash of the account with an e-mail address; None if it has none."""
    try:
        wanted = {"wanted": normal_email(email), "key": email_key(email)}
    except ValueError:
        return None
    row = db.execute(_PASSWORD, wanted).one_or_none()
    return None if row is None or row[1] is None else (row[0], row[1])


def set_admin(db: Connection, user_id: str, is_admin: bool) -> bool:
    """Make a user an administrator or an ordinary one; False if there is no such account.

    The open invites of a former administrator end.
    """
    if not is_admin:
        db.execute(delete(invites).where(invites.c.created_by == user_id))
    changed = update(users).where(users.c.id == user_id, _THERE).values(is_admin=is_admin)
    return db.execute(changed).rowcount > 0


def forget_invites(db: Connection, user: User) -> None:
    """End the open invites for an account's mailbox, and those that the account has made."""
    for invited in _invites_of(db, user.email):
        db.execute(delete(invites).where(invites.c.email == invited))
    db.execute(delete(invites).where(invites.c.created_by == user.id))


def _admit(db: Connection, ident: Identity, *, open_to_all: bool, now_ms: int) -> str:
    """Find the account that somebody new to us may have, or make it; give its id."""
    email = _vouched_email(ident)
    user = find_user_by_email(db, email)
    if user is not None:
        if not is_same_mailbox(user.email, email):
            raise SignInRefused(
                f"{email} is too much like the address of another account;"
                " if that is yours, sign in with a password, or with the address that the account has"
            )
        # Another person may have the address by now.
        if db.scalar(_SUBJECT_AT, {"issuer": ident.issuer, "of_user": user.id}) is not None:
            raise SignInRefused(
                f"{email} belongs to an account that another person has signed in to with this address;"
                " an administrator can invite you to it"
            )
        return user.id
    invited = _invites_of(db, email, now_ms=now_ms)
    if not (open_to_all or invited):
        raise SignInRefused(f"{email} has no account here: ask an administrator for an invite")
    # Otherwise the link would go on signing in its holder. An administrator's stays: it gives more than this
    # does.
    for each in invited:
        db.execute(delete(invites).where(invites.c.email == each, ~invites.c.is_admin))
    return _make(
        db,
        email,
        name=_clean_name(ident.name),
        picture_url=_clean_url(ident.picture_url),
        is_admin=False,
        now_ms=now_ms,
    ).id


def _invites_of(db: Connection, email: str, *, now_ms: int = 0) -> set[str]:
    """Give the addresses of open invites, as they are kept, that name this mailbox."""
    found = db.scalars(_INVITED, {"key": email_key(email), "now_ms": now_ms})
    return {invited for invited in found if is_same_mailbox(invited, email)}


def _vouched_email(ident: Identity) -> str:
    # An account with an unverified address would wait for the address's owner to sign in to it.
    try:
        if ident.email_verified and ident.email is not None:
            return normal_email(ident.email)
    except ValueError:
        pass
    raise SignInRefused(
        "the service that you signed in with does not confirm your e-mail address:"
        " confirm it there, or sign in another way"
    )


def _make(
    db: Connection, email: str, *, name: str | None, picture_url: str | None, is_admin: bool, now_ms: int
) -> User:
    user = User(
        id=uuid.uuid4().hex,
        email=email,
        name=_clean_name(name),
        picture_url=picture_url,
        is_admin=is_admin,
        has_password=False,
        created_at_ms=now_ms,
    )
    db.execute(
        insert(users),
        {
            "id": user.id,
            "email": user.email,
            "name": user.name,
            "picture_url": user.picture_url,
            "is_admin": user.is_admin,
            "created_at_ms": user.created_at_ms,
            "email_key": email_key(user.email),
        },
    )
    return user


def _clean_name(text: str | None) -> str | None:
    return clean_name(text or "", longest_chars=_NAME_CHARS)


def _clean_url(text: str | None) -> str | None:
    if text is None or not text.startswith("https://") or not text.isprintable():
        return None
    return text if len(text) <= _PICTURE_URL_CHARS else None


def _one(db: Connection, query: Any, **values: str) -> User | None:
    row = db.execute(query, values).one_or_none()
    return None if row is None else _user(row)


def _user(row: Sequence[Any]) -> User:
    id_, email, name, picture_url, is_admin, has_password, created_at_ms = row
    return User(
        id=id_,
        email=email,
        name=name,
        picture_url=picture_url,
        is_admin=bool(is_admin),
        has_password=bool(has_password),
        created_at_ms=created_at_ms,
    )

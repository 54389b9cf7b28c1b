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

from brewos_relay.errors import UserExists
from brewos_relay.registry.devices import IDS_AT_ONCE, chunks
from brewos_relay.registry.emails import email_key, fold, normal_email
from brewos_relay.registry.records import User
from brewos_relay.registry.schema import invites, users
from brewos_relay.texts import clean_name

_NAME_CHARS: Final = 100

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
_COLLIDING: Final = (
    select(users.c.email).where(users.c.email_key.contains(" "), _THERE).order_by(users.c.email)
)
_ANY: Final = select(exists(select(users.c.id).where(_THERE)))
_ANY_ADMIN: Final = select(exists(select(users.c.id).where(users.c.is_admin)))


def find_user(db: Connection, user_id: str) -> User | None:
    """Find an account by its id."""
    return _one(db, _BY_ID, of_user=user_id)


def existing_user(db: Connection, user_id: str) -> User:
    """Find an account that must exist, by its id. The database raises an error if it does not."""
    return _user(db.execute(_BY_ID, {"of_user": user_id}).one())


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


def add_user(db: Connection, *, email: str, name: str | None, now_ms: int) -> User:
    """Make an ordinary account. Raises UserExists, and ValueError if `email` is no e-mail address."""
    email = normal_email(email)
    if find_user_by_email(db, email) is not None:
        raise UserExists(email)
    return make_user(db, email, name=name, picture_url=None, is_admin=False, now_ms=now_ms)


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


def make_user(
    db: Connection, email: str, *, name: str | None, picture_url: str | None, is_admin: bool, now_ms: int
) -> User:
    user = User(
        id=uuid.uuid4().hex,
        email=email,
        name=clean_user_name(name),
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


def clean_user_name(text: str | None) -> str | None:
    return clean_name(text or "", longest_chars=_NAME_CHARS)


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

"""Accounts: users, their e-mail addresses, passwords and administrator rights.

Accounts are found by `emails.email_key`, and no two new accounts have the same key. Two accounts from before
there were keys may: the key of the younger one ends with a space and its id, and both are found by their
addresses.

Signing in never makes an administrator. `set_admin` does, and an invite that says so.
"""

import uuid
from collections.abc import Collection, Mapping, Sequence
from typing import Any, Final, Literal, TypeAlias

from sqlalchemy import ColumnElement, Connection, bindparam, delete, exists, func, insert, or_, select, update

from brewos_relay.errors import UserExists
from brewos_relay.registry.devices import IDS_AT_ONCE, chunks
from brewos_relay.registry.emails import email_key, fold, normal_email
from brewos_relay.registry.ordering import ordered
from brewos_relay.registry.records import User
from brewos_relay.registry.schema import identities, invites, users
from brewos_relay.texts import NAME_CHARS, clean_name

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
# Of two accounts with the same key, the one with exactly this address.
_HAS_ADDRESS: Final = or_(users.c.email_key == bindparam("key"), users.c.email == bindparam("wanted"))
_THIS_FIRST: Final = (users.c.email == bindparam("wanted")).desc()
_BY_EMAIL: Final = _USERS.where(_HAS_ADDRESS).order_by(_THIS_FIRST).limit(1)
UserSort: TypeAlias = Literal["email", "name", "createdAt"]
UserFilter: TypeAlias = Literal["all", "administrators"]

_SORTS: Final[Mapping[str, ColumnElement[Any]]] = {
    "email": users.c.email,
    "name": func.lower(func.coalesce(users.c.name, "")),
    "createdAt": users.c.created_at_ms,
}
_ALL: Final = _USERS.order_by(users.c.email)
_ADMINS: Final = select(users.c.id).where(users.c.is_admin).order_by(users.c.id).with_for_update()
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
    """Read an account that must exist. The database raises an error if it does not."""
    return _user(db.execute(_BY_ID, {"of_user": user_id}).one())


def find_users(db: Connection, ids: Sequence[str]) -> dict[str, User]:
    """Find accounts by their ids. Missing ones are left out."""
    found = [
        _user(row) for chunk in chunks(ids, IDS_AT_ONCE) for row in db.execute(_BY_IDS, {"of_users": chunk})
    ]
    return {user.id: user for user in found}


def find_user_by_email(db: Connection, email: str) -> User | None:
    """Find an account by e-mail address; addresses with the same `email_key` are equal."""
    try:
        return _one(db, _BY_EMAIL, wanted=normal_email(email), key=email_key(email))
    except ValueError:
        return None


def all_users(db: Connection) -> list[User]:
    """List all accounts, ordered by e-mail address."""
    return [_user(row) for row in db.execute(_ALL)]


def some_users(
    db: Connection,
    *,
    find: str = "",
    only: UserFilter = "all",
    sort: UserSort = "email",
    descending: bool = False,
    after: str = "",
    limit: int,
) -> list[User]:
    """List accounts, sorted by a column and then by address: at most `limit`, after the address `after`.

    `find` limits the list to accounts with this text in their address or name, in any case.
    """
    column = _SORTS[sort]
    if column is users.c.email and (find or only != "all"):
        # Few accounts may match. By the index, SQLite takes four times as long to read all of them.
        column = func.lower(column)
    query = ordered(_USERS.limit(limit), column, users.c.email, descending=descending, after=after)
    if only == "administrators":
        query = query.where(users.c.is_admin)
    if find:
        wanted = ((users.c.email, find.lower()), (users.c.email_key, fold(find)))
        name = (func.lower(users.c.name), find.lower())
        query = query.where(
            or_(*(column.contains(part, autoescape=True) for column, part in (*wanted, name)))
        )
    return [_user(row) for row in db.execute(query)]


def lock_admins(db: Connection) -> list[str]:
    """Return the ids of all administrators, and lock them until the transaction ends."""
    return list(db.scalars(_ADMINS))


def colliding_addresses(db: Connection) -> list[str]:
    """List the addresses of accounts that have the same `email_key` as an older account."""
    return list(db.scalars(_COLLIDING))


def has_accounts(db: Connection) -> bool:
    """Tell whether there is any account."""
    return bool(db.scalar(_ANY))


def has_administrator(db: Connection) -> bool:
    """Tell whether any account is an administrator."""
    return bool(db.scalar(_ANY_ADMIN))


def add_user(db: Connection, *, email: str, name: str | None, now_ms: int) -> User:
    """Create an ordinary account. Raises UserExists, and ValueError for an invalid address."""
    email = normal_email(email)
    if find_user_by_email(db, email) is not None:
        raise UserExists(email)
    return make_user(db, email, name=name, is_admin=False, now_ms=now_ms)


def set_password_hash(db: Connection, user_id: str, password_hash: str | None) -> bool:
    """Store the hash of a user's password, or remove it. False if there is no such account."""
    changed = update(users).where(users.c.id == user_id, _THERE).values(password_hash=password_hash)
    return db.execute(changed).rowcount > 0


def has_identity(db: Connection, user_id: str, *, issuers: Collection[str]) -> bool:
    """Tell whether a user can sign in with one of these issuers."""
    found = select(identities.c.issuer).where(identities.c.user_id == user_id)
    return not frozenset(issuers).isdisjoint(db.scalars(found))


def password_hash_of(db: Connection, email: str) -> tuple[str, str] | None:
    """Return the id and password hash of the account with an address. None without account or password."""
    try:
        wanted = {"wanted": normal_email(email), "key": email_key(email)}
    except ValueError:
        return None
    row = db.execute(_PASSWORD, wanted).one_or_none()
    return None if row is None or row[1] is None else (row[0], row[1])


def set_admin(db: Connection, user_id: str, is_admin: bool) -> bool:
    """Make a user an administrator or an ordinary user. False if there is no such account.

    The open invites of a former administrator end.
    """
    if not is_admin:
        db.execute(delete(invites).where(invites.c.created_by == user_id))
    changed = update(users).where(users.c.id == user_id, _THERE).values(is_admin=is_admin)
    return db.execute(changed).rowcount > 0


def make_user(db: Connection, email: str, *, name: str | None, is_admin: bool, now_ms: int) -> User:
    """Create an account, whose address is valid and free."""
    user = User(
        id=uuid.uuid4().hex,
        email=email,
        name=clean_user_name(name),
        picture_url=None,
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
            "is_admin": user.is_admin,
            "created_at_ms": user.created_at_ms,
            "email_key": email_key(user.email),
        },
    )
    return user


def clean_user_name(text: str | None) -> str | None:
    """Make a valid name of foreign text. None if nothing is left."""
    return clean_name(text or "", longest_chars=NAME_CHARS)


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

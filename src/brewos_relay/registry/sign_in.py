"""Signing in with an identity that an issuer, such as Google, has confirmed.

A person's subject at an issuer never changes. Their e-mail address may change, and may become another
person's. So an address leads to an account once, when the issuer confirms exactly this mailbox, and never
past another account of the same issuer.
"""

from typing import Final

from sqlalchemy import Connection, bindparam, delete, insert, select, update

from brewos_relay.errors import SignInRefused
from brewos_relay.registry.accounts import clean_user_name, existing_user, find_user_by_email, make_user
from brewos_relay.registry.emails import is_same_mailbox, normal_email
from brewos_relay.registry.invites import invites_of
from brewos_relay.registry.records import Identity, User
from brewos_relay.registry.schema import identities, invites, users

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

_PICTURE_URL_CHARS: Final = 2000


def sign_in(db: Connection, ident: Identity, *, open_to_all: bool, now_ms: int) -> User:
    """Find or create the account of an identity. Raises SignInRefused.

    An ordinary account is created if sign-up is open to all, or for an invited mailbox. That uses up its
    invites, except administrator invites: only their links make administrators. The account takes on the name
    and picture of the identity.
    """
    user_id = db.scalar(_USER_OF, {"issuer": ident.issuer, "subject": ident.subject})
    if user_id is None:
        user_id = _admit(db, ident, open_to_all=open_to_all, now_ms=now_ms)
        row = {"issuer": ident.issuer, "subject": ident.subject, "user_id": user_id}
        db.execute(insert(identities), row)
    said = {"name": clean_user_name(ident.name), "picture_url": _clean_url(ident.picture_url)}
    values = {column: text for column, text in said.items() if text is not None}
    if values:
        db.execute(update(users).where(users.c.id == user_id).values(**values))
    return existing_user(db, user_id)


def _admit(db: Connection, ident: Identity, *, open_to_all: bool, now_ms: int) -> str:
    """Find or create the account for an identity that signs in for the first time. Returns its id."""
    email = _vouched_email(ident)
    user = find_user_by_email(db, email)
    if user is not None:
        if not is_same_mailbox(user.email, email):
            raise SignInRefused(
                f"{email} is too similar to the address of another account;"
                " if that is yours, sign in with a password, or with the address of the account"
            )
        # The address may belong to another person by now.
        if db.scalar(_SUBJECT_AT, {"issuer": ident.issuer, "of_user": user.id}) is not None:
            raise SignInRefused(
                f"another person has signed in with {email}, which belongs to an account;"
                " an administrator can invite you to it"
            )
        return user.id
    invited = invites_of(db, email, now_ms=now_ms)
    if not (open_to_all or invited):
        raise SignInRefused(f"{email} has no account here: ask an administrator for an invite")
    # The links of other invites would go on signing in their holders. An administrator invite stays: it gives
    # more than this sign-in does.
    for each in invited:
        db.execute(delete(invites).where(invites.c.email == each, ~invites.c.is_admin))
    return make_user(db, email, name=None, is_admin=False, now_ms=now_ms).id


def _vouched_email(ident: Identity) -> str:
    # Otherwise a stranger could prepare an account with an address, and its owner would sign in to it later.
    try:
        if ident.email_verified and ident.email is not None:
            return normal_email(ident.email)
    except ValueError:
        pass
    raise SignInRefused(
        "the service that you signed in with does not confirm your e-mail address:"
        " confirm it there, or sign in another way"
    )


def _clean_url(text: str | None) -> str | None:
    if text is None or not text.startswith("https://") or not text.isprintable():
        return None
    return text if len(text) <= _PICTURE_URL_CHARS else None

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
    said = {"name": clean_user_name(ident.name), "picture_url": _clean_url(ident.picture_url)}
    values = {column: text for column, text in said.items() if text is not None}
    if values:
        db.execute(update(users).where(users.c.id == user_id).values(**values))
    return existing_user(db, user_id)


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
    invited = invites_of(db, email, now_ms=now_ms)
    if not (open_to_all or invited):
        raise SignInRefused(f"{email} has no account here: ask an administrator for an invite")
    # Otherwise the link would go on signing in its holder. An administrator's stays: it gives more than this
    # does.
    for each in invited:
        db.execute(delete(invites).where(invites.c.email == each, ~invites.c.is_admin))
    return make_user(
        db,
        email,
        name=clean_user_name(ident.name),
        picture_url=_clean_url(ident.picture_url),
        is_admin=False,
        now_ms=now_ms,
    ).id


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


def _clean_url(text: str | None) -> str | None:
    if text is None or not text.startswith("https://") or not text.isprintable():
        return None
    return text if len(text) <= _PICTURE_URL_CHARS else None

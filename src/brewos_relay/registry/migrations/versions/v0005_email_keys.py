"""Comparison keys of e-mail addresses, which must differ between accounts, and the creators of invites.

Accounts whose addresses have the same key all stay. The oldest has the key; the keys of the others end with a
space and the account's id, which no address contains. They are found by their own addresses, and `doctor`
lists them.
"""

import sqlalchemy as sa
from alembic import op

from brewos_relay.registry.emails import email_key

revision = "0005"
down_revision = "0004"

_users = sa.table(
    "users", sa.column("id"), sa.column("email"), sa.column("created_at_ms"), sa.column("email_key")
)
_invites = sa.table("invites", sa.column("token_hash"), sa.column("email"), sa.column("email_key"))


def upgrade() -> None:
    """Add the columns and fill them."""
    for table in ("users", "invites"):
        op.add_column(
            table, sa.Column("email_key", sa.String(360), nullable=False, server_default=sa.text("''"))
        )
    op.add_column("invites", sa.Column("created_by", sa.String(32)))
    db = op.get_bind()
    _fill_users(db)
    for token_hash, email in db.execute(sa.select(_invites.c.token_hash, _invites.c.email)).all():
        same = _invites.c.token_hash == token_hash
        db.execute(sa.update(_invites).where(same).values(email_key=_key(email) or email))
    op.create_index("users_by_email_key", "users", ["email_key"], unique=True)
    op.create_index("invites_by_email_key", "invites", ["email_key"])


def _fill_users(db: sa.Connection) -> None:
    taken: set[str] = set()
    oldest_first = sa.select(_users.c.id, _users.c.email).order_by(_users.c.created_at_ms, _users.c.id)
    for id_, email in db.execute(oldest_first).all():
        key = _key(email)
        if key is None or key in taken:
            key = f"{key or ''} {id_}"
        taken.add(key)
        db.execute(sa.update(_users).where(_users.c.id == id_).values(email_key=key))


def _key(email: str) -> str | None:
    """Return the key of a stored address. None if today's rules do not accept the address."""
    try:
        return email_key(email)
    except ValueError:
        return None

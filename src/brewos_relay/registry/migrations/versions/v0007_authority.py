"""Access that ends with its account, and tokens that can be revoked one by one."""

import logging
import re
import time

import sqlalchemy as sa
from alembic import op

revision = "0007"
down_revision = "0006"

# As ids of accounts are made. Other user ids are those of tokens, which need no account.
_ACCOUNT_ID = re.compile("[0-9a-f]{12}4[0-9a-f]{3}[89ab][0-9a-f]{15}")
_IDS_AT_ONCE = 500

logger = logging.getLogger(__name__)


def upgrade() -> None:
    """Add the reference to the account, delete access without an account, and create the tokens."""
    _add_account_id()
    _delete_orphans(op.get_bind())
    op.execute("UPDATE device_users SET account_id = user_id WHERE user_id IN (SELECT id FROM users)")
    op.create_index("device_users_by_account", "device_users", ["account_id"])
    op.create_table(
        "tokens",
        sa.Column("id", sa.String(32), primary_key=True),
        sa.Column("name", sa.String(100)),
        sa.Column("user_id", sa.String(256), nullable=False),
        sa.Column("role", sa.String(8), nullable=False),
        sa.Column("devices", sa.Text, nullable=False),
        sa.Column("created_at_ms", sa.BigInteger, nullable=False),
        sa.Column("expires_at_ms", sa.BigInteger, nullable=False),
        sa.Column("revoked_at_ms", sa.BigInteger),
        sqlite_with_rowid=False,
    )
    op.create_index("tokens_by_end", "tokens", ["expires_at_ms"])
    op.add_column("changes", sa.Column("token_id", sa.String(32)))


def _add_account_id() -> None:
    if op.get_bind().dialect.name != "sqlite":
        op.add_column(
            "device_users",
            sa.Column("account_id", sa.String(32), sa.ForeignKey("users.id", ondelete="CASCADE")),
        )
        return
    # SQLite adds no constraint to a table: the rows move to a new one. No other table refers to this one.
    op.create_table(
        "device_users_new",
        sa.Column("user_id", sa.String(256), primary_key=True),
        sa.Column(
            "device_id", sa.String(12), sa.ForeignKey("devices.id", ondelete="CASCADE"), primary_key=True
        ),
        sa.Column("role", sa.String(8), nullable=False, server_default="owner"),
        sa.Column("until_ms", sa.BigInteger),
        sa.Column("claimed_at_ms", sa.BigInteger),
        sa.Column("account_id", sa.String(32), sa.ForeignKey("users.id", ondelete="CASCADE")),
        sqlite_with_rowid=False,
    )
    columns = "user_id, device_id, role, until_ms, claimed_at_ms"
    op.execute(f"INSERT INTO device_users_new ({columns}) SELECT {columns} FROM device_users")  # noqa: S608
    op.drop_table("device_users")
    op.rename_table("device_users_new", "device_users")
    op.create_index("device_users_by_device", "device_users", ["device_id"])


def _delete_orphans(db: sa.Connection) -> None:
    """Delete the access of removed accounts, and release the devices that have no users then.

    A concurrent pairing could give a device to an account that was being removed. No user could pair that
    device again.
    """
    rows = db.execute(
        sa.text("SELECT DISTINCT user_id FROM device_users WHERE user_id NOT IN (SELECT id FROM users)")
    )
    gone = [user_id for (user_id,) in rows if _ACCOUNT_ID.fullmatch(user_id)]
    freed: set[str] = set()
    for start in range(0, len(gone), _IDS_AT_ONCE):
        ids = {"ids": gone[start : start + _IDS_AT_ONCE]}
        freed |= set(db.scalars(_many("SELECT device_id FROM device_users WHERE user_id IN :ids"), ids))
        db.execute(_many("DELETE FROM device_users WHERE user_id IN :ids"), ids)
    for device_id in sorted(freed):
        one = {"id": device_id, "now_ms": time.time_ns() // 1_000_000}
        if db.scalar(sa.text("SELECT count(*) FROM device_users WHERE device_id = :id"), one):
            continue
        for statement in (
            "DELETE FROM shares WHERE device_id = :id",
            "UPDATE claims SET used_by = '' WHERE device_id = :id",
            "UPDATE devices SET name = NULL, key_pending_since_ms = NULL WHERE id = :id",
            "DELETE FROM activity WHERE device_id = :id",
        ):
            db.execute(sa.text(statement), one)
    if freed:
        logger.warning("%d devices had users whose accounts are removed; that access was deleted", len(freed))


def _many(statement: str) -> sa.TextClause:
    return sa.text(statement).bindparams(sa.bindparam("ids", expanding=True))

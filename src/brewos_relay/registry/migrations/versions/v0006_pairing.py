"""Pairing: unproven keys, limits on new ids, the pairing window, and notices."""

import sqlalchemy as sa
from alembic import op

revision = "0006"
down_revision = "0005"

_COUNT = sa.BigInteger().with_variant(sa.Integer, "sqlite")


def upgrade() -> None:
    """Add columns that are NULL in existing rows, so that the new rules do not apply to them."""
    op.add_column("devices", sa.Column("unproven_since_ms", sa.BigInteger))
    op.add_column("devices", sa.Column("former_key_hash", sa.LargeBinary(32)))
    op.add_column("devices", sa.Column("former_user_id", sa.String(256)))
    op.add_column("devices", sa.Column("former_until_ms", sa.BigInteger))
    op.add_column("claims", sa.Column("network", sa.String(64)))
    op.add_column("claims", sa.Column("seen_at_ms", sa.BigInteger))
    op.create_table(
        "new_ids",
        sa.Column("network", sa.String(64), primary_key=True),
        sa.Column("since_ms", sa.BigInteger, nullable=False),
        sa.Column("count", sa.Integer, nullable=False),
        sqlite_with_rowid=False,
    )
    op.create_table(
        "pairing_window",
        sa.Column("id", sa.Integer, primary_key=True, autoincrement=False),
        sa.Column("open_until_ms", sa.BigInteger, nullable=False),
        sqlite_with_rowid=False,
    )
    op.create_table(
        "notices",
        sa.Column("id", _COUNT, primary_key=True, autoincrement=True),
        sa.Column(
            "user_id",
            sa.String(32),
            sa.ForeignKey("users.id", ondelete="CASCADE"),
            nullable=False,
        ),
        sa.Column("at_ms", sa.BigInteger, nullable=False),
        sa.Column("kind", sa.String(32), nullable=False),
        sa.Column("device_id", sa.String(12), nullable=False),
        sqlite_autoincrement=True,
    )
    op.create_index("notices_by_user", "notices", ["user_id", "id"])

"""Devices, and who has them."""

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None


def upgrade() -> None:
    """Create the first two tables."""
    op.create_table(
        "devices",
        sa.Column("id", sa.String(12), primary_key=True),
        sa.Column("key_hash", sa.LargeBinary(32), nullable=False),
        sa.Column("name", sa.String(100)),
        sa.Column("created_at_ms", sa.BigInteger, nullable=False),
        sa.Column("last_seen_ms", sa.BigInteger),
        sqlite_with_rowid=False,
    )
    op.create_table(
        "device_users",
        sa.Column("user_id", sa.String(256), primary_key=True),
        sa.Column(
            "device_id", sa.String(12), sa.ForeignKey("devices.id", ondelete="CASCADE"), primary_key=True
        ),
        sqlite_with_rowid=False,
    )
    op.create_index("device_users_by_device", "device_users", ["device_id"])

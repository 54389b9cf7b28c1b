"""Successors of refresh tokens, and recently redeemed invites."""

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"


def upgrade() -> None:
    """Add columns to the refresh tokens, keeping their rows, and create a table."""
    op.add_column("refresh_tokens", sa.Column("successor_hash", sa.LargeBinary(32)))
    op.add_column("refresh_tokens", sa.Column("successor_salt", sa.LargeBinary(32)))
    op.create_table(
        "redeemed_invites",
        sa.Column("token_hash", sa.LargeBinary(32), primary_key=True),
        sa.Column("nonce_hash", sa.LargeBinary(32), nullable=False),
        sa.Column("user_id", sa.String(32), sa.ForeignKey("users.id", ondelete="CASCADE"), nullable=False),
        sa.Column("expires_at_ms", sa.BigInteger, nullable=False),
        sqlite_with_rowid=False,
    )
    op.create_index("ix_redeemed_invites_user_id", "redeemed_invites", ["user_id"])

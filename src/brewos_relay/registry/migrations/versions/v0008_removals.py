"""Accounts that are closed while their devices are given up in steps."""

import sqlalchemy as sa
from alembic import op

revision = "0008"
down_revision = "0007"


def upgrade() -> None:
    """Add the column."""
    op.add_column("users", sa.Column("removed_at_ms", sa.BigInteger))

"""Known networks: each account's networks of recent sign-ins."""

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"


def upgrade() -> None:
    """Create the table, empty: networks are recorded from the next sign-in on."""
    op.create_table(
        "known_networks",
        sa.Column("user_id", sa.String(32), sa.ForeignKey("users.id", ondelete="CASCADE"), primary_key=True),
        sa.Column("network", sa.String(64), primary_key=True),
        sa.Column("seen_at_ms", sa.BigInteger, nullable=False),
        sqlite_with_rowid=False,
    )
    op.create_index("known_networks_by_time", "known_networks", ["seen_at_ms"])

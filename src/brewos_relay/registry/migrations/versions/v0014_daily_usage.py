"""The usage of each device by days."""

import sqlalchemy as sa
from alembic import op

revision = "0014"
down_revision = "0013"


def upgrade() -> None:
    """Create the table. It fills as machines report."""
    op.create_table(
        "daily_usage",
        sa.Column(
            "device_id", sa.String(12), sa.ForeignKey("devices.id", ondelete="CASCADE"), primary_key=True
        ),
        sa.Column("day", sa.Integer, primary_key=True, autoincrement=False),
        sa.Column("energy_mwh", sa.BigInteger, nullable=False),
        sa.Column("on_s", sa.Integer, nullable=False),
        sa.Column("steam_cycles", sa.Integer, nullable=False),
        sa.Column("counter_mwh", sa.BigInteger),
        sa.Column("at_ms", sa.BigInteger, nullable=False),
        sqlite_with_rowid=False,
    )

"""The last state of each device."""

import sqlalchemy as sa
from alembic import op

revision = "0009"
down_revision = "0008"


def upgrade() -> None:
    """Create the table. It fills as devices report."""
    op.create_table(
        "device_states",
        sa.Column(
            "device_id", sa.String(12), sa.ForeignKey("devices.id", ondelete="CASCADE"), primary_key=True
        ),
        sa.Column("payload", sa.LargeBinary, nullable=False),
        sa.Column("is_text", sa.Boolean, nullable=False),
        sa.Column("at_ms", sa.BigInteger, nullable=False),
    )
    op.create_index("device_states_by_time", "device_states", ["at_ms"])

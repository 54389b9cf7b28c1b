"""The order of the connections whose states are stored."""

import sqlalchemy as sa
from alembic import op

revision = "0010"
down_revision = "0009"


def upgrade() -> None:
    """Add the column. Every connection is later than the stored states."""
    op.add_column(
        "device_states", sa.Column("since_us", sa.BigInteger, nullable=False, server_default=sa.text("0"))
    )

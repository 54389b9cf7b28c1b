"""The shots of each device, and the device that a session attached to last."""

import sqlalchemy as sa
from alembic import op

revision = "0012"
down_revision = "0011"


def upgrade() -> None:
    """Create the table and the column. They fill as machines brew and apps attach."""
    op.create_table(
        "shots",
        sa.Column(
            "id",
            sa.BigInteger().with_variant(sa.Integer, "sqlite"),
            primary_key=True,
            autoincrement=True,
        ),
        sa.Column(
            "device_id", sa.String(12), sa.ForeignKey("devices.id", ondelete="CASCADE"), nullable=False
        ),
        sa.Column("began_at_ms", sa.BigInteger, nullable=False),
        sa.Column("duration_ms", sa.Integer, nullable=False),
        sa.Column("is_complete", sa.Boolean, nullable=False),
        sa.Column("summary", sa.Text, nullable=False),
        sa.Column("profile", sa.LargeBinary, nullable=False),
        sqlite_autoincrement=True,
    )
    op.create_index("shots_by_device", "shots", ["device_id", "id"])
    op.add_column("sessions", sa.Column("last_device_id", sa.String(12)))

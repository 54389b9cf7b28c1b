"""An index that tells which devices have an owner: a list of the others reads no rows of users."""

from alembic import op

revision = "0015"
down_revision = "0014"


def upgrade() -> None:
    """Replace the index by device."""
    op.create_index("device_users_by_device_and_role", "device_users", ["device_id", "role"])
    op.drop_index("device_users_by_device", "device_users")

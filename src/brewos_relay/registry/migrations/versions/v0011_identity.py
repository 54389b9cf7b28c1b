"""An identity of the registry, by which instances notice that they do not share one."""

import secrets

import sqlalchemy as sa
from alembic import op

revision = "0011"
down_revision = "0010"


def upgrade() -> None:
    """Create the table, with its only row."""
    table = op.create_table(
        "registry_identity",
        sa.Column("id", sa.Integer, primary_key=True),
        sa.Column("identity", sa.String(32), nullable=False),
    )
    op.bulk_insert(table, [{"id": 1, "identity": secrets.token_hex(16)}])

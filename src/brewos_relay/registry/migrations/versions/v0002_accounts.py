"""Accounts and sessions, roles, pairing and shares, activity, and the change feed."""

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"

_COUNT = sa.BigInteger().with_variant(sa.Integer, "sqlite")


def upgrade() -> None:
    """Add columns to the first two tables, keeping their rows, and create the other tables."""
    op.add_column("devices", sa.Column("next_key_hashes", sa.LargeBinary))
    op.add_column("devices", sa.Column("key_pending_since_ms", sa.BigInteger))
    op.add_column("devices", sa.Column("firmware_version", sa.String(50)))
    op.add_column("devices", sa.Column("machine_type", sa.String(50)))
    op.add_column(
        "devices",
        sa.Column("registered_itself", sa.Boolean, nullable=False, server_default=sa.false()),
    )
    op.add_column("device_users", sa.Column("role", sa.String(8), nullable=False, server_default="owner"))
    op.add_column("device_users", sa.Column("until_ms", sa.BigInteger))
    op.add_column("device_users", sa.Column("claimed_at_ms", sa.BigInteger))
    _make_pairing()
    _make_accounts()
    _make_logs()


def _make_pairing() -> None:
    op.create_table(
        "claims",
        _device_id(primary_key=True),
        sa.Column("token_hash", sa.LargeBinary(32), primary_key=True),
        sa.Column("key_hash", sa.LargeBinary(32), nullable=False),
        sa.Column("expires_at_ms", sa.BigInteger, nullable=False),
        sa.Column("used_by", sa.String(256)),
        sqlite_with_rowid=False,
    )
    op.create_index("claims_by_end", "claims", ["expires_at_ms"])
    op.create_table(
        "shares",
        sa.Column("id", sa.String(32), primary_key=True),
        _device_id(),
        sa.Column("token_hash", sa.LargeBinary(32), nullable=False, unique=True),
        sa.Column("code_hash", sa.LargeBinary(32), nullable=False, unique=True),
        sa.Column("role", sa.String(8), nullable=False),
        sa.Column("until_ms", sa.BigInteger),
        sa.Column("created_by", sa.String(256), nullable=False),
        sa.Column("created_at_ms", sa.BigInteger, nullable=False),
        sa.Column("expires_at_ms", sa.BigInteger, nullable=False),
        sa.Column("uses_left", sa.Integer),
        sqlite_with_rowid=False,
    )
    op.create_index("shares_by_device", "shares", ["device_id"])


def _make_accounts() -> None:
    op.create_table(
        "users",
        sa.Column("id", sa.String(32), primary_key=True),
        sa.Column("email", sa.String(320), nullable=False, unique=True),
        sa.Column("name", sa.String(100)),
        sa.Column("picture_url", sa.String(2000)),
        sa.Column("password_hash", sa.String(200)),
        sa.Column("is_admin", sa.Boolean, nullable=False),
        sa.Column("created_at_ms", sa.BigInteger, nullable=False),
        sqlite_with_rowid=False,
    )
    op.create_table(
        "identities",
        sa.Column("issuer", sa.String(255), primary_key=True),
        sa.Column("subject", sa.String(255), primary_key=True),
        _user_id(),
        sqlite_with_rowid=False,
    )
    op.create_index("ix_identities_user_id", "identities", ["user_id"])
    op.create_table(
        "invites",
        sa.Column("token_hash", sa.LargeBinary(32), primary_key=True),
        sa.Column("email", sa.String(320), nullable=False),
        sa.Column("is_admin", sa.Boolean, nullable=False),
        sa.Column("created_at_ms", sa.BigInteger, nullable=False),
        sa.Column("expires_at_ms", sa.BigInteger, nullable=False),
        sqlite_with_rowid=False,
    )
    op.create_table(
        "sessions",
        sa.Column("id", sa.String(32), primary_key=True),
        _user_id(),
        sa.Column("created_at_ms", sa.BigInteger, nullable=False),
        sa.Column("used_at_ms", sa.BigInteger, nullable=False),
        sa.Column("expires_at_ms", sa.BigInteger, nullable=False),
        sa.Column("user_agent", sa.String(300)),
        sa.Column("address", sa.String(64)),
        sqlite_with_rowid=False,
    )
    op.create_index("ix_sessions_user_id", "sessions", ["user_id"])
    op.create_table(
        "refresh_tokens",
        sa.Column("token_hash", sa.LargeBinary(32), primary_key=True),
        sa.Column(
            "session_id", sa.String(32), sa.ForeignKey("sessions.id", ondelete="CASCADE"), nullable=False
        ),
        sa.Column("expires_at_ms", sa.BigInteger, nullable=False),
        sa.Column("replaced_at_ms", sa.BigInteger),
        sqlite_with_rowid=False,
    )
    op.create_index("ix_refresh_tokens_session_id", "refresh_tokens", ["session_id"])
    op.create_index("refresh_tokens_by_end", "refresh_tokens", ["expires_at_ms"])


def _make_logs() -> None:
    op.create_table(
        "activity",
        sa.Column("id", _COUNT, primary_key=True, autoincrement=True),
        sa.Column("device_id", sa.String(12), nullable=False),
        sa.Column("at_ms", sa.BigInteger, nullable=False),
        sa.Column("kind", sa.String(32), nullable=False),
        sa.Column("user_id", sa.String(256)),
        sa.Column("detail", sa.Text, nullable=False),
        sqlite_autoincrement=True,
    )
    op.create_index("activity_by_device", "activity", ["device_id", "id"])
    op.create_index("activity_by_time", "activity", ["at_ms"])
    op.create_table(
        "changes",
        sa.Column("id", _COUNT, primary_key=True, autoincrement=True),
        sa.Column("at_ms", sa.BigInteger, nullable=False),
        sa.Column("kind", sa.String(32), nullable=False),
        sa.Column("device_id", sa.String(12)),
        sa.Column("user_id", sa.String(256)),
        sa.Column("session_id", sa.String(32)),
        sqlite_autoincrement=True,
    )


def _device_id(*, primary_key: bool = False) -> sa.Column[str]:
    devices = sa.ForeignKey("devices.id", ondelete="CASCADE")
    return sa.Column("device_id", sa.String(12), devices, primary_key=primary_key, nullable=False)


def _user_id() -> sa.Column[str]:
    return sa.Column("user_id", sa.String(32), sa.ForeignKey("users.id", ondelete="CASCADE"), nullable=False)

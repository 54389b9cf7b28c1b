"""Tables of the registry, in SQLAlchemy Core."""

from sqlalchemy import BigInteger, Column, ForeignKey, Index, LargeBinary, MetaData, String, Table

metadata = MetaData()

# Without a row id, SQLite finds a device in one tree instead of two.
devices = Table(
    "devices",
    metadata,
    Column("id", String(12), primary_key=True),
    Column("key_hash", LargeBinary(32), nullable=False),
    Column("name", String(100)),
    Column("created_at_ms", BigInteger, nullable=False),
    Column("last_seen_ms", BigInteger),
    sqlite_with_rowid=False,
)

device_users = Table(
    "device_users",
    metadata,
    Column("user_id", String(256), primary_key=True),
    Column("device_id", String(12), ForeignKey("devices.id", ondelete="CASCADE"), primary_key=True),
    Index("device_users_by_device", "device_id"),
    sqlite_with_rowid=False,
)

"""Tables of the registry, in SQLAlchemy Core. A change here needs a migration in `migrations/versions`."""

from sqlalchemy import (
    BigInteger,
    Boolean,
    Column,
    ForeignKey,
    Index,
    Integer,
    LargeBinary,
    MetaData,
    String,
    Table,
    Text,
    false,
    text,
)

metadata = MetaData()

_COUNT = BigInteger().with_variant(Integer, "sqlite")  # SQLite counts up by itself in INTEGER only

# Without a row id, SQLite finds a device in one tree instead of two.
devices = Table(
    "devices",
    metadata,
    Column("id", String(12), primary_key=True),
    Column("key_hash", LargeBinary(32), nullable=False),
    Column("name", String(100)),
    Column("created_at_ms", BigInteger, nullable=False),
    Column("last_seen_ms", BigInteger),
    # SHA-256 of keys that were sent to the machine and not used yet, 32 bytes each, the newest last.
    Column("next_key_hashes", LargeBinary),
    # When a different key was registered for a device that somebody has; it waits for an owner's claim.
    Column("key_pending_since_ms", BigInteger),
    Column("firmware_version", String(50)),
    Column("machine_type", String(50)),
    # Whether it is here because a machine, or somebody who says so, registered it, and nobody else did.
    Column("registered_itself", Boolean, nullable=False, server_default=false()),
    # Since when the key is that of a machine that registered itself and has not connected with it yet. NULL
    # once it has, for keys from the command line, and for those that are older than this column.
    Column("unproven_since_ms", BigInteger),
    # The claim that a machine that connected took precedence over: its key, its owner, and until when it
    # comes back if its own machine connects after all.
    Column("former_key_hash", LargeBinary(32)),
    Column("former_user_id", String(256)),
    Column("former_until_ms", BigInteger),
    sqlite_with_rowid=False,
)

# A user id need not be that of an account: tokens can be made for any id. `account_id` is the user id if it
# is that of an account, so that no row outlives its account.
device_users = Table(
    "device_users",
    metadata,
    Column("user_id", String(256), primary_key=True),
    Column("device_id", String(12), ForeignKey("devices.id", ondelete="CASCADE"), primary_key=True),
    Column("role", String(8), nullable=False, server_default="owner"),
    Column("until_ms", BigInteger),
    Column("claimed_at_ms", BigInteger),
    Column("account_id", String(32), ForeignKey("users.id", ondelete="CASCADE")),
    Index("device_users_by_device", "device_id"),
    Index("device_users_by_account", "account_id"),
    sqlite_with_rowid=False,
)

# What a machine shows on its screen, and the key that it said it has when it registered that.
claims = Table(
    "claims",
    metadata,
    Column("device_id", String(12), ForeignKey("devices.id", ondelete="CASCADE"), primary_key=True),
    Column("token_hash", LargeBinary(32), primary_key=True),
    Column("key_hash", LargeBinary(32), nullable=False),
    Column("expires_at_ms", BigInteger, nullable=False),
    Column("used_by", String(256)),
    # Where it was registered: the networks of others cannot take its place.
    Column("network", String(64)),
    # When a machine came to the WebSocket with this key, which is not the device's.
    Column("seen_at_ms", BigInteger),
    Index("claims_by_end", "expires_at_ms"),
    sqlite_with_rowid=False,
)

shares = Table(
    "shares",
    metadata,
    Column("id", String(32), primary_key=True),
    Column("device_id", String(12), ForeignKey("devices.id", ondelete="CASCADE"), nullable=False),
    Column("token_hash", LargeBinary(32), nullable=False, unique=True),
    Column("code_hash", LargeBinary(32), nullable=False, unique=True),
    Column("role", String(8), nullable=False),
    # For how long those who take it have access; None for ever.
    Column("until_ms", BigInteger),
    Column("created_by", String(256), nullable=False),
    Column("created_at_ms", BigInteger, nullable=False),
    Column("expires_at_ms", BigInteger, nullable=False),
    # How many more may take it; None for any number.
    Column("uses_left", Integer),
    Index("shares_by_device", "device_id"),
    sqlite_with_rowid=False,
)

# How many unknown ids a network has registered since a time; for a day.
new_ids = Table(
    "new_ids",
    metadata,
    Column("network", String(64), primary_key=True),
    Column("since_ms", BigInteger, nullable=False),
    Column("count", Integer, nullable=False),
    sqlite_with_rowid=False,
)

# One row: until when machines that are unknown may register.
pairing_window = Table(
    "pairing_window",
    metadata,
    Column("id", Integer, primary_key=True, autoincrement=False),
    Column("open_until_ms", BigInteger, nullable=False),
    sqlite_with_rowid=False,
)

users = Table(
    "users",
    metadata,
    Column("id", String(32), primary_key=True),
    Column("email", String(320), nullable=False, unique=True),
    Column("name", String(100)),
    Column("picture_url", String(2000)),
    Column("password_hash", String(200)),
    Column("is_admin", Boolean, nullable=False),
    Column("created_at_ms", BigInteger, nullable=False),
    # What addresses are compared by. Behind a space is the account's id, if an older account has the same.
    Column("email_key", String(360), nullable=False, server_default=text("''")),
    # When the account was closed. Its row stays until what it had is given up.
    Column("removed_at_ms", BigInteger),
    Index("users_by_email_key", "email_key", unique=True),
    sqlite_with_rowid=False,
)

identities = Table(
    "identities",
    metadata,
    Column("issuer", String(255), primary_key=True),
    Column("subject", String(255), primary_key=True),
    Column("user_id", String(32), ForeignKey("users.id", ondelete="CASCADE"), nullable=False, index=True),
    sqlite_with_rowid=False,
)

# The networks from which the owner of an account signed in to it lately, as `networks.network_of` says.
known_networks = Table(
    "known_networks",
    metadata,
    Column("user_id", String(32), ForeignKey("users.id", ondelete="CASCADE"), primary_key=True),
    Column("network", String(64), primary_key=True),
    Column("seen_at_ms", BigInteger, nullable=False),
    Index("known_networks_by_time", "seen_at_ms"),
    sqlite_with_rowid=False,
)

invites = Table(
    "invites",
    metadata,
    Column("token_hash", LargeBinary(32), primary_key=True),
    Column("email", String(320), nullable=False),
    Column("is_admin", Boolean, nullable=False),
    Column("created_at_ms", BigInteger, nullable=False),
    Column("expires_at_ms", BigInteger, nullable=False),
    Column("email_key", String(360), nullable=False, server_default=text("''")),
    # The administrator who invites; NULL is the command line.
    Column("created_by", String(32)),
    Index("invites_by_email_key", "email_key"),
    sqlite_with_rowid=False,
)

# Invites that a browser has just redeemed: it may ask again if the answer was lost.
redeemed_invites = Table(
    "redeemed_invites",
    metadata,
    Column("token_hash", LargeBinary(32), primary_key=True),
    # SHA-256 of a random text that the browser sent along.
    Column("nonce_hash", LargeBinary(32), nullable=False),
    Column("user_id", String(32), ForeignKey("users.id", ondelete="CASCADE"), nullable=False, index=True),
    Column("expires_at_ms", BigInteger, nullable=False),
    sqlite_with_rowid=False,
)

sessions = Table(
    "sessions",
    metadata,
    Column("id", String(32), primary_key=True),
    Column("user_id", String(32), ForeignKey("users.id", ondelete="CASCADE"), nullable=False, index=True),
    Column("created_at_ms", BigInteger, nullable=False),
    Column("used_at_ms", BigInteger, nullable=False),
    Column("expires_at_ms", BigInteger, nullable=False),
    Column("user_agent", String(300)),
    Column("address", String(64)),
    sqlite_with_rowid=False,
)

# A token that was exchanged stays until it expires, so that its use after its successor's is detected.
refresh_tokens = Table(
    "refresh_tokens",
    metadata,
    Column("token_hash", LargeBinary(32), primary_key=True),
    Column(
        "session_id", String(32), ForeignKey("sessions.id", ondelete="CASCADE"), nullable=False, index=True
    ),
    # Its own: a session goes on with others, and one that nobody uses must not stay good for as long.
    Column("expires_at_ms", BigInteger, nullable=False),
    # When it was exchanged, and what its successor is derived with. The successor itself is not stored.
    Column("replaced_at_ms", BigInteger),
    Column("successor_hash", LargeBinary(32)),
    Column("successor_salt", LargeBinary(32)),
    Index("refresh_tokens_by_end", "expires_at_ms"),
    sqlite_with_rowid=False,
)

# Tokens without a session that the command line has made: never the token itself. One that is revoked stays
# until it would have expired, so that it is refused.
tokens = Table(
    "tokens",
    metadata,
    Column("id", String(32), primary_key=True),
    Column("name", String(100)),
    Column("user_id", String(256), nullable=False),
    Column("role", String(8), nullable=False),
    Column("devices", Text, nullable=False),  # ids with spaces between them, or "*"
    Column("created_at_ms", BigInteger, nullable=False),
    Column("expires_at_ms", BigInteger, nullable=False),
    Column("revoked_at_ms", BigInteger),
    Index("tokens_by_end", "expires_at_ms"),
    sqlite_with_rowid=False,
)

# The last `status` of a machine with all that it said after it, as it encodes it. With a row id: the rows are
# large, and SQLite finds small things faster in a tree without them.
device_states = Table(
    "device_states",
    metadata,
    Column("device_id", String(12), ForeignKey("devices.id", ondelete="CASCADE"), primary_key=True),
    Column("payload", LargeBinary, nullable=False),
    Column("is_text", Boolean, nullable=False),
    # When this was known to hold.
    Column("at_ms", BigInteger, nullable=False),
    Index("device_states_by_time", "at_ms"),
)

activity = Table(
    "activity",
    metadata,
    Column("id", _COUNT, primary_key=True, autoincrement=True),
    Column("device_id", String(12), nullable=False),
    Column("at_ms", BigInteger, nullable=False),
    Column("kind", String(32), nullable=False),
    Column("user_id", String(256)),
    Column("detail", Text, nullable=False),  # a JSON object
    Index("activity_by_device", "device_id", "id"),
    Index("activity_by_time", "at_ms"),
    sqlite_autoincrement=True,
)

# What an account is told of a machine that it may not have any more.
notices = Table(
    "notices",
    metadata,
    Column("id", _COUNT, primary_key=True, autoincrement=True),
    Column("user_id", String(32), ForeignKey("users.id", ondelete="CASCADE"), nullable=False),
    Column("at_ms", BigInteger, nullable=False),
    Column("kind", String(32), nullable=False),
    Column("device_id", String(12), nullable=False),
    Index("notices_by_user", "user_id", "id"),
    sqlite_autoincrement=True,
)

# What running servers have to act on, whoever made the change: a command line has no other way to tell them.
changes = Table(
    "changes",
    metadata,
    Column("id", _COUNT, primary_key=True, autoincrement=True),
    Column("at_ms", BigInteger, nullable=False),
    Column("kind", String(32), nullable=False),
    Column("device_id", String(12)),
    Column("user_id", String(256)),
    Column("session_id", String(32)),
    Column("token_id", String(32)),
    sqlite_autoincrement=True,
)

"""Tables of the registry, in SQLAlchemy Core. Each change needs a migration in `migrations/versions`."""

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

from brewos_relay.texts import EMAIL_CHARS, NAME_CHARS, USER_ID_CHARS

metadata = MetaData()

_COUNT = BigInteger().with_variant(Integer, "sqlite")  # SQLite has AUTOINCREMENT for INTEGER only

# Without a row id, SQLite looks a device up in one B-tree instead of two.
devices = Table(
    "devices",
    metadata,
    Column("id", String(12), primary_key=True),
    Column("key_hash", LargeBinary(32), nullable=False),
    Column("name", String(NAME_CHARS)),
    Column("created_at_ms", BigInteger, nullable=False),
    Column("last_seen_ms", BigInteger),
    # SHA-256 of the keys that were sent to the device and not used yet, 32 bytes each, the newest last.
    Column("next_key_hashes", LargeBinary),
    # When another key was registered for a device with users. It waits for an owner to pair it.
    Column("key_pending_since_ms", BigInteger),
    Column("firmware_version", String(50)),
    Column("machine_type", String(50)),
    # True if only a machine, or a client that claims to be one, has registered the device.
    Column("registered_itself", Boolean, nullable=False, server_default=false()),
    # When a machine registered the key, if it has not connected with it yet. NULL once it has, for keys from
    # the command line, and for keys from before this column.
    Column("unproven_since_ms", BigInteger),
    # The former pairing, which gave way to a machine that connected: its key, its owner, and until when it is
    # restored if its own machine connects.
    Column("former_key_hash", LargeBinary(32)),
    Column("former_user_id", String(USER_ID_CHARS)),
    Column("former_until_ms", BigInteger),
    sqlite_with_rowid=False,
)

# A user id need not belong to an account: tokens can name any id. `account_id` is the user id if there is
# such an account, so that the row is deleted with the account.
device_users = Table(
    "device_users",
    metadata,
    Column("user_id", String(USER_ID_CHARS), primary_key=True),
    Column("device_id", String(12), ForeignKey("devices.id", ondelete="CASCADE"), primary_key=True),
    Column("role", String(8), nullable=False, server_default="owner"),
    Column("until_ms", BigInteger),
    Column("claimed_at_ms", BigInteger),
    Column("account_id", String(32), ForeignKey("users.id", ondelete="CASCADE")),
    Index("device_users_by_device_and_role", "device_id", "role"),
    Index("device_users_by_account", "account_id"),
    sqlite_with_rowid=False,
)

# Pairing tokens: the token that a machine shows on its screen, and the key that it registered with it.
claims = Table(
    "claims",
    metadata,
    Column("device_id", String(12), ForeignKey("devices.id", ondelete="CASCADE"), primary_key=True),
    Column("token_hash", LargeBinary(32), primary_key=True),
    Column("key_hash", LargeBinary(32), nullable=False),
    Column("expires_at_ms", BigInteger, nullable=False),
    Column("used_by", String(USER_ID_CHARS)),
    # The network that registered it. Other networks cannot use its slot.
    Column("network", String(64)),
    # When a machine connected to the WebSocket with this key, which is not the device's.
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
    # The end of the access that it gives; NULL is for ever.
    Column("until_ms", BigInteger),
    Column("created_by", String(USER_ID_CHARS), nullable=False),
    Column("created_at_ms", BigInteger, nullable=False),
    Column("expires_at_ms", BigInteger, nullable=False),
    # How many more users may accept it; NULL is any number.
    Column("uses_left", Integer),
    Index("shares_by_device", "device_id"),
    sqlite_with_rowid=False,
)

# How many unknown ids a network has registered since a time. Rows are kept for a day.
new_ids = Table(
    "new_ids",
    metadata,
    Column("network", String(64), primary_key=True),
    Column("since_ms", BigInteger, nullable=False),
    Column("count", Integer, nullable=False),
    sqlite_with_rowid=False,
)

# One row: until when unknown machines may register.
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
    Column("email", String(EMAIL_CHARS), nullable=False, unique=True),
    Column("name", String(NAME_CHARS)),
    Column("picture_url", String(2000)),
    Column("password_hash", String(200)),
    Column("is_admin", Boolean, nullable=False),
    Column("created_at_ms", BigInteger, nullable=False),
    # The comparison key of the address. If an older account has the same, a space and the account's id
    # follow.
    Column("email_key", String(360), nullable=False, server_default=text("''")),
    # When the account was closed. Its row stays until its devices are given up.
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

# Networks of recent sign-ins to an account, as returned by `networks.network_of`.
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
    Column("email", String(EMAIL_CHARS), nullable=False),
    Column("is_admin", Boolean, nullable=False),
    Column("created_at_ms", BigInteger, nullable=False),
    Column("expires_at_ms", BigInteger, nullable=False),
    Column("email_key", String(360), nullable=False, server_default=text("''")),
    # The administrator who invites; NULL is the command line.
    Column("created_by", String(32)),
    Index("invites_by_email_key", "email_key"),
    sqlite_with_rowid=False,
)

# Invites that a browser has just redeemed. It may retry if the answer was lost.
redeemed_invites = Table(
    "redeemed_invites",
    metadata,
    Column("token_hash", LargeBinary(32), primary_key=True),
    # SHA-256 of a random text that the browser sent.
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
    # The device that an app with this session attached to last.
    Column("last_device_id", String(12)),
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
    # Separate from the session's: the session continues with newer tokens, and an unused token must not stay
    # valid for as long.
    Column("expires_at_ms", BigInteger, nullable=False),
    # The time of its exchange, and the salt for deriving its successor. The successor is not stored.
    Column("replaced_at_ms", BigInteger),
    Column("successor_hash", LargeBinary(32)),
    Column("successor_salt", LargeBinary(32)),
    Index("refresh_tokens_by_end", "expires_at_ms"),
    sqlite_with_rowid=False,
)

# Tokens without a session, issued by the command line. The token itself is not stored. A revoked token stays
# until it would have expired, so that it is rejected.
tokens = Table(
    "tokens",
    metadata,
    Column("id", String(32), primary_key=True),
    Column("name", String(NAME_CHARS)),
    Column("user_id", String(USER_ID_CHARS), nullable=False),
    Column("role", String(8), nullable=False),
    Column("devices", Text, nullable=False),  # ids with spaces between them, or "*"
    Column("created_at_ms", BigInteger, nullable=False),
    Column("expires_at_ms", BigInteger, nullable=False),
    Column("revoked_at_ms", BigInteger),
    Index("tokens_by_end", "expires_at_ms"),
    sqlite_with_rowid=False,
)

# The last state of each device: its last `status` merged with later changes, in the device's encoding. With a
# row id: rows are large, and SQLite searches a B-tree without them faster.
device_states = Table(
    "device_states",
    metadata,
    Column("device_id", String(12), ForeignKey("devices.id", ondelete="CASCADE"), primary_key=True),
    Column("payload", LargeBinary, nullable=False),
    Column("is_text", Boolean, nullable=False),
    # When the state was current.
    Column("at_ms", BigInteger, nullable=False),
    # When the connection that sent it began to stand for the device: a state with a lesser value is of an
    # earlier connection and does not replace it. 0 for states from before this column.
    Column("since_us", BigInteger, nullable=False, server_default=text("0")),
    Index("device_states_by_time", "at_ms"),
)

# What devices were seen to do: a shot is the time in which an espresso machine brews.
shots = Table(
    "shots",
    metadata,
    Column("id", _COUNT, primary_key=True, autoincrement=True),
    Column("device_id", String(12), ForeignKey("devices.id", ondelete="CASCADE"), nullable=False),
    Column("began_at_ms", BigInteger, nullable=False),
    Column("duration_ms", Integer, nullable=False),
    # False if its start or its end was missed.
    Column("is_complete", Boolean, nullable=False),
    Column("summary", Text, nullable=False),  # a JSON object of numbers
    Column("profile", LargeBinary, nullable=False),  # its measurements: JSON, compressed with zlib
    Index("shots_by_device", "device_id", "id"),
    sqlite_autoincrement=True,
)

# The usage of devices in a day of their clock; `day` counts days since the epoch. `counter_mwh` is the last
# value of the device's own counter of the energy since midnight, and `at_ms` is when it was read.
daily_usage = Table(
    "daily_usage",
    metadata,
    Column("device_id", String(12), ForeignKey("devices.id", ondelete="CASCADE"), primary_key=True),
    Column("day", Integer, primary_key=True, autoincrement=False),
    Column("energy_mwh", BigInteger, nullable=False),
    Column("on_s", Integer, nullable=False),
    Column("steam_cycles", Integer, nullable=False),
    Column("counter_mwh", BigInteger),
    Column("at_ms", BigInteger, nullable=False),
    sqlite_with_rowid=False,
)

# One row: the private key by which push services recognize the servers. All instances need the same.
push_keys = Table(
    "push_keys",
    metadata,
    Column("id", Integer, primary_key=True, autoincrement=False),
    Column("private_key", LargeBinary(32), nullable=False),
)

# Browsers that get notifications. A subscription ends with the login session in which it was made. The id is
# SHA-256 of the endpoint. With row ids: rows are large.
push_subscriptions = Table(
    "push_subscriptions",
    metadata,
    Column("id", LargeBinary(32), primary_key=True),
    Column(
        "session_id", String(32), ForeignKey("sessions.id", ondelete="CASCADE"), nullable=False, index=True
    ),
    Column("user_id", String(32), nullable=False),
    Column("endpoint", Text, nullable=False),
    Column("p256dh", LargeBinary(65), nullable=False),
    Column("auth", LargeBinary(16), nullable=False),
    Column("created_at_ms", BigInteger, nullable=False),
    # How often the push service failed in a row, and until when it is not asked again.
    Column("failures", Integer, nullable=False, server_default=text("0")),
    Column("retry_at_ms", BigInteger, nullable=False, server_default=text("0")),
    Index("push_subscriptions_by_user", "user_id"),
)

# The devices that a subscription is for; access is checked when a notification is sent.
push_devices = Table(
    "push_devices",
    metadata,
    Column(
        "subscription_id",
        LargeBinary(32),
        ForeignKey("push_subscriptions.id", ondelete="CASCADE"),
        primary_key=True,
    ),
    Column("device_id", String(12), primary_key=True),
    Index("push_devices_by_device", "device_id"),
)

# The preferences that users have set.
push_preferences = Table(
    "push_preferences",
    metadata,
    Column("user_id", String(32), ForeignKey("users.id", ondelete="CASCADE"), primary_key=True),
    Column("kind", String(32), primary_key=True),
    Column("wanted", Boolean, nullable=False),
)

# When the last notification of a kind was sent about a device, so that it is sent once.
push_sent = Table(
    "push_sent",
    metadata,
    Column("device_id", String(12), ForeignKey("devices.id", ondelete="CASCADE"), primary_key=True),
    Column("kind", String(32), primary_key=True),
    Column("at_ms", BigInteger, nullable=False),
)

activity = Table(
    "activity",
    metadata,
    Column("id", _COUNT, primary_key=True, autoincrement=True),
    Column("device_id", String(12), nullable=False),
    Column("at_ms", BigInteger, nullable=False),
    Column("kind", String(32), nullable=False),
    Column("user_id", String(USER_ID_CHARS)),
    Column("detail", Text, nullable=False),  # a JSON object
    Index("activity_by_device", "device_id", "id"),
    Index("activity_by_time", "at_ms"),
    sqlite_autoincrement=True,
)

# Notices to accounts about devices that they gained or lost.
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

# The change feed: changes that running servers act on. Commands have no other way to notify them.
changes = Table(
    "changes",
    metadata,
    Column("id", _COUNT, primary_key=True, autoincrement=True),
    Column("at_ms", BigInteger, nullable=False),
    Column("kind", String(32), nullable=False),
    Column("device_id", String(12)),
    Column("user_id", String(USER_ID_CHARS)),
    Column("session_id", String(32)),
    Column("token_id", String(32)),
    sqlite_autoincrement=True,
)

# One row, written by the migration that creates the table.
registry_identity = Table(
    "registry_identity",
    metadata,
    Column("id", Integer, primary_key=True),
    Column("identity", String(32), nullable=False),
)

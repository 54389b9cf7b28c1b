"""What the registry keeps, as plain values; importing this costs no database.

Times are Unix times in milliseconds.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final, Literal

from brewos_relay.core.grant import NamedDevices
from brewos_relay.texts import is_identifier, is_name
from brewos_relay.vocabulary import ROLES as ROLES
from brewos_relay.vocabulary import GuestRole
from brewos_relay.vocabulary import Role as Role

ChangeKind = Literal[
    "session_ended",
    "token_revoked",
    "access_changed",
    "device_removed",
    "user_removed",
    "key_changed",
    "key_pending",
    "owner_changed",
    "rotate_key",
]

ActivityKind = Literal[
    "claimed",
    "owner_changed",
    "shared",
    "share_claimed",
    "share_revoked",
    "user_removed",
    "role_changed",
    "renamed",
    "key_pending",
    "key_changed",
    "key_sent",
    "online",
    "offline",
    "client_came",
    "client_went",
    "command",
    "throttled",
    "throttle_ended",
    "token_copied",
]

NoticeKind = Literal["lost_to_machine", "won_by_machine", "claim_expired", "released"]
"""What an account is told about a machine.

`lost_to_machine`: a machine with another key connected, and its owner has the device now. `won_by_machine`:
the user has it now, and another user had claimed it. `claim_expired`: no machine connected for a day.
`released`: an administrator took the device from everybody.
"""

_NAME_CHARS: Final = 100
_USER_ID_CHARS: Final = 256


@dataclass(frozen=True, slots=True, kw_only=True)
class Device:
    """A registered device.

    `next_key_hashes` are those of keys that were sent to it and not used yet, the newest last.
    `key_pending_since_ms` is when another key was registered for it, which waits for an owner's claim.
    An `anonymous` one has registered itself, and no user has it, as far as the lookup asked for that.
    `unproven_since_ms` is when a machine registered the key, if none has connected with it since.
    `former_key_hash` is the key of an earlier claim that comes back if its machine connects by
    `former_until_ms`.
    """

    id: str
    key_hash: bytes
    name: str | None
    created_at_ms: int
    last_seen_ms: int | None
    next_key_hashes: tuple[bytes, ...] = ()
    key_pending_since_ms: int | None = None
    firmware_version: str | None = None
    machine_type: str | None = None
    anonymous: bool = False
    unproven_since_ms: int | None = None
    former_key_hash: bytes | None = None
    former_user_id: str | None = None
    former_until_ms: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredState:
    """The last state of a device: a `status` message, and when it was known to hold."""

    device_id: str
    payload: bytes
    is_text: bool
    at_ms: int


@dataclass(frozen=True, slots=True, kw_only=True)
class NewDevice:
    """A device to register; ValueError for a name or a user that cannot be kept.

    `id` is in upper case, `key_hash` has 32 bytes; whoever makes one has seen to that. Everybody who gets
    the device has the same role.
    """

    id: str
    key_hash: bytes
    name: str | None = None
    user_id: str | None = None
    more_user_ids: tuple[str, ...] = ()
    role: Role = "owner"

    def __post_init__(self) -> None:
        if self.name is not None:
            check_name(self.name)
        for user_id in self.user_ids:
            if not is_identifier(user_id, longest_chars=_USER_ID_CHARS):
                raise ValueError(f"a user id must have 1 to {_USER_ID_CHARS} printable characters")

    @property
    def user_ids(self) -> tuple[str, ...]:
        """Everybody who gets the device, each once."""
        first = () if self.user_id is None else (self.user_id,)
        return tuple(dict.fromkeys(first + self.more_user_ids))


@dataclass(frozen=True, slots=True, kw_only=True)
class Access:
    """What a user may do with a device, and until when; None for ever.

    `claimed_at_ms` is when they got it; None if that was before it was written down.
    """

    user_id: str
    device_id: str
    role: Role = "owner"
    until_ms: int | None = None
    claimed_at_ms: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class DeviceUser(Access):
    """A user of a device; `email`, `name` and `picture_url` are those of the account with that id, if any."""

    email: str | None = None
    name: str | None = None
    picture_url: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class OwnedDevice:
    """A device that a user has: their access to it, and how many have access, they included."""

    device: Device
    access: Access
    user_count: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Activity:
    """Something that was done with a device; `user_id` is who did it, if that is known."""

    device_id: str
    at_ms: int
    kind: ActivityKind
    user_id: str | None = None
    detail: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredActivity(Activity):
    """An Activity as it was read; ids grow with time."""

    id: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Notice:
    """What an account is told about a machine; ids grow with time."""

    id: int
    at_ms: int
    kind: NoticeKind
    device_id: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Change:
    """Something that running servers act on; ids grow, more or less with time."""

    id: int
    at_ms: int
    kind: ChangeKind
    device_id: str | None = None
    user_id: str | None = None
    session_id: str | None = None
    token_id: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredToken:
    """A token without a session that was made here; the token itself is not kept.

    `devices` are the ids that it names, or "*" for all devices.
    """

    id: str
    name: str | None
    user_id: str
    role: Role
    devices: NamedDevices
    created_at_ms: int
    expires_at_ms: int
    revoked_at_ms: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class User:
    """An account."""

    id: str
    email: str
    name: str | None
    picture_url: str | None
    is_admin: bool
    has_password: bool
    created_at_ms: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Identity:
    """Who somebody is, as an issuer says: `subject` is theirs there for ever, while `email` may change."""

    issuer: str
    subject: str
    email: str | None
    email_verified: bool
    name: str | None = None
    picture_url: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class LoginSession:
    """Where somebody is signed in, and who they are."""

    id: str
    user_id: str
    created_at_ms: int
    used_at_ms: int
    expires_at_ms: int
    user_agent: str | None
    address: str | None
    email: str
    name: str | None
    picture_url: str | None
    is_admin: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Share:
    """An offer of access to a device: a link and a code, good until `expires_at_ms`.

    Whoever takes it has access until `until_ms`, None for ever. `uses_left` is how many more may take it,
    None for any number.
    """

    id: str
    device_id: str
    role: GuestRole
    until_ms: int | None
    uses_left: int | None
    created_by: str
    created_at_ms: int
    expires_at_ms: int


@dataclass(frozen=True, slots=True, kw_only=True)
class PairingResult:
    """What came of a claim: the device, and what its user may do with it now."""

    device_id: str
    device_name: str | None
    role: Role
    until_ms: int | None = None
    key_changed: bool = False


def check_name(name: str) -> None:
    """Raise ValueError if a device cannot have this name."""
    if not is_name(name, longest_chars=_NAME_CHARS):
        raise ValueError(f"a name must have 1 to {_NAME_CHARS} printable characters")

"""Records of the registry, as plain values. Importing this module loads no database library.

Times are Unix times in milliseconds.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from brewos_relay.core.grant import NamedDevices
from brewos_relay.texts import NAME_CHARS, USER_ID_CHARS, is_identifier, is_name
from brewos_relay.vocabulary import Detail, GuestRole, Role

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
"""What a notice says.

`lost_to_machine`: a machine with another key connected, and its owner has the device now. `won_by_machine`:
the user has the device now, which another user had paired. `claim_expired`: no machine connected for a day.
`released`: an administrator took the device from all users.
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Device:
    """A registered device.

    `next_key_hashes` are hashes of keys that were sent to the device and not used yet, the newest last.
    `key_pending_since_ms` is when another key was registered, which waits for an owner to pair it.
    `anonymous` devices registered themselves and have no users, as far as the lookup checked.
    `unproven_since_ms` is when a machine registered the key, if none has connected with it since.
    `former_key_hash` is the key of a former pairing, which is restored if its machine connects by
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
    """The last state of a device: a `status` message, and the time at which it was current.

    `since_us` is when the connection that sent it began to stand for the device, in µs since the epoch: a
    state of an earlier connection does not replace it.
    """

    device_id: str
    payload: bytes
    is_text: bool
    at_ms: int
    since_us: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Shot:
    """A shot of a machine. `summary` has numbers by name. `profile` is its measurements, encoded.

    Its id is 0 before it is stored. `is_complete` is False if its start or its end was missed.
    """

    device_id: str
    began_at_ms: int
    duration_ms: int
    is_complete: bool
    summary: Mapping[str, float]
    profile: bytes
    id: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Usage:
    """The usage of a device in a part of a day, by the clock of the device. `day` is days since the epoch.

    `counter_mwh` is the energy since midnight that the device has counted. Without such a counter,
    `energy_mwh` counts, which is an estimate.
    """

    device_id: str
    day: int
    began_at_ms: int
    at_ms: int
    on_s: int
    steam_cycles: int
    energy_mwh: int
    counter_mwh: int | None


@dataclass(frozen=True, slots=True, kw_only=True)
class DayUsage:
    """The usage of a device in a day; see `Usage`."""

    day: int
    energy_mwh: int
    on_s: int
    steam_cycles: int


@dataclass(frozen=True, slots=True, kw_only=True)
class NewDevice:
    """A device to register. Raises ValueError for an invalid name or user id.

    The caller has validated `id`, in upper case, and `key_hash`, 32 bytes. All users get the same role.
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
            if not is_identifier(user_id, longest_chars=USER_ID_CHARS):
                raise ValueError(f"a user id must have 1 to {USER_ID_CHARS} printable characters")

    @property
    def user_ids(self) -> tuple[str, ...]:
        """The users who get the device, each once."""
        first = () if self.user_id is None else (self.user_id,)
        return tuple(dict.fromkeys(first + self.more_user_ids))


@dataclass(frozen=True, slots=True, kw_only=True)
class Access:
    """The role of a user for a device, and its end; None is never.

    `claimed_at_ms` is when the user got access; None if that was not recorded yet.
    """

    user_id: str
    device_id: str
    role: Role = "owner"
    until_ms: int | None = None
    claimed_at_ms: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class DeviceUser(Access):
    """A user of a device.

    `email`, `name` and `picture_url` are those of the user's account, if there is one.
    """

    email: str | None = None
    name: str | None = None
    picture_url: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class OwnedDevice:
    """A device of a user, with the user's access and the number of all its users."""

    device: Device
    access: Access
    user_count: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Activity:
    """An event of a device. `user_id` is the user who caused it, if known."""

    device_id: str
    at_ms: int
    kind: ActivityKind
    user_id: str | None = None
    detail: Detail = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredActivity(Activity):
    """A stored Activity. Ids grow with time."""

    id: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Notice:
    """A notice to an account about a device. Ids grow with time."""

    id: int
    at_ms: int
    kind: NoticeKind
    device_id: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Change:
    """A change that running servers act on. Ids grow roughly with time."""

    id: int
    at_ms: int
    kind: ChangeKind
    device_id: str | None = None
    user_id: str | None = None
    session_id: str | None = None
    token_id: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredToken:
    """An issued token without a session. The token itself is not stored.

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
    """An identity that an issuer confirmed. `subject` never changes; `email` may."""

    issuer: str
    subject: str
    email: str | None
    email_verified: bool
    name: str | None = None
    picture_url: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class LoginSession:
    """A login session of a user, and the user."""

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
    """An offer of access to a device, by link and code, until `expires_at_ms`.

    Users who accept it have access until `until_ms`; None is for ever. `uses_left` is how many more users may
    accept it; None is any number.
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
    """The result of pairing or accepting a share: the device, and the user's access to it."""

    device_id: str
    device_name: str | None
    role: Role
    until_ms: int | None = None
    key_changed: bool = False


def check_name(name: str) -> None:
    """Raise ValueError if a device cannot have this name."""
    if not is_name(name, longest_chars=NAME_CHARS):
        raise ValueError(f"a name must have 1 to {NAME_CHARS} printable characters")

"""The exceptions of the relay, and its close codes.

RelayError
├── RelayClosing            the relay accepts no more peers
├── PeerGone                the connection to the peer has ended
├── TokenRejected           a JWT is malformed, forged, expired or incomplete
├── IdentityRejected        an identity provider's proof was rejected
├── IdentityUnavailable     an identity provider could not be asked
├── OutboundFailed          a request to another server failed, or was refused here
├── RegistryError           the registry refused a change
│   ├── RegistryBusy        a write did not get its turn in time
│   ├── DeviceExists        the id is registered already
│   ├── DeviceUnknown       the device is not registered
│   ├── LastOwner           the device would have no owner
│   ├── NotAnOwner          the action is for owners of the device
│   ├── RoleTooLow          the action needs a higher role for the device
│   ├── NotAnAdministrator  the action needs an administrator
│   ├── TooManyKeys         the machine was sent several keys and used none of them
│   ├── QuotaReached        the user would have too many machines
│   ├── TooManyUnproven     the user would have too many machines that never connected
│   ├── PairingClosed       an unknown machine registers while pairing is closed
│   ├── TooManyNewDevices   the network registers too many new ids
│   ├── SignInRefused       the user may not sign in
│   ├── UserExists          the e-mail address has an account
│   └── DeviceFileError     a line of a device file is invalid
└── SettingsError           a setting is missing or invalid
"""

from collections.abc import Iterable
from enum import IntEnum
from typing import ClassVar


class CloseCode(IntEnum):
    """WebSocket close codes (RFC 6455 §7.4.1, IANA registry, and the BrewOS range above 4000)."""

    NORMAL = 1000
    GOING_AWAY = 1001
    PROTOCOL_ERROR = 1002
    INVALID_DATA = 1007
    POLICY_VIOLATION = 1008
    MESSAGE_TOO_BIG = 1009
    INTERNAL_ERROR = 1011
    SERVICE_RESTART = 1012
    TRY_AGAIN_LATER = 1013
    #: To a device: a newer connection replaced it. To a client: its token was rejected, or it is a page
    #: without access to the device. An app that receives it does not connect again by itself.
    REPLACED = 4002
    TOKEN_REJECTED = 4002
    # To a client: the access of its user to the device has ended. To a device: its key is no longer valid.
    ACCESS_ENDED = 4003

    @property
    def may_reconnect(self) -> bool:
        """Whether a peer that was closed with this code may connect again with the same credentials."""
        return self in _RECONNECTABLE


_RECONNECTABLE = frozenset(
    {
        CloseCode.GOING_AWAY,
        CloseCode.POLICY_VIOLATION,  # usually because of silence
        CloseCode.INTERNAL_ERROR,
        CloseCode.SERVICE_RESTART,
        CloseCode.TRY_AGAIN_LATER,
    }
)


class RelayError(Exception):
    """Base of all errors of the relay.

    `code` is stable and machine-readable; `retry` says whether the same attempt can succeed later.
    """

    code: ClassVar[str] = "relay_error"
    retry: ClassVar[bool] = False


class RelayClosing(RelayError):
    """The relay is draining or closed, and accepts no more peers."""

    code = "relay_closing"
    retry = True


class PeerGone(RelayError):
    """The connection to the peer has ended."""

    code = "peer_gone"
    retry = True


class TokenRejected(RelayError):
    """A JWT was rejected; the text says why, without the token."""

    code = "token_rejected"


class IdentityRejected(RelayError):
    """An identity provider's proof was rejected; the text says why, without the proof."""

    code = "identity_rejected"


class IdentityUnavailable(RelayError):
    """An identity provider could not be asked, or did not answer as it should."""

    code = "identity_unavailable"
    retry = True


class OutboundFailed(RelayError):
    """A request to another server failed, or was refused here. The text names the host only."""

    code = "outbound_failed"
    retry = True


class RegistryError(RelayError):
    """The registry refused a change; nothing was stored."""

    code = "registry_error"


class RegistryBusy(RegistryError):
    """A write did not get its turn in time. `undone` is False if it may have been committed all the same."""

    code = "registry_busy"
    retry = True

    def __init__(self, problem: str, *, undone: bool = True) -> None:
        self.undone = undone
        super().__init__(problem)


class DeviceExists(RegistryError):
    """One or more device ids are registered already."""

    code = "device_exists"

    def __init__(self, device_ids: Iterable[str]) -> None:
        self.device_ids = tuple(device_ids)
        super().__init__(f"already registered: {', '.join(self.device_ids)}")


class DeviceUnknown(RegistryError):
    """A device is not registered."""

    code = "device_unknown"

    def __init__(self, device_id: str) -> None:
        self.device_id = device_id
        super().__init__(
            f"{device_id} is not registered; `brewos-relay device list` lists the registered devices"
        )


class LastOwner(RegistryError):
    """The change would leave a device without an owner."""

    code = "last_owner"

    def __init__(self, device_id: str) -> None:
        self.device_id = device_id
        super().__init__(f"{device_id} would have no owner: make another user an owner first")


class NotAnOwner(RegistryError):
    """The action is for owners of the device only."""

    code = "not_an_owner"

    def __init__(self, device_id: str) -> None:
        self.device_id = device_id
        super().__init__(f"only an owner of {device_id} may do this")


class RoleTooLow(RegistryError):
    """A principal has access to a device, with a role that does not allow the action."""

    code = "role_too_low"

    def __init__(self, device_id: str, at_least: str) -> None:
        self.device_id = device_id
        self.at_least = at_least
        super().__init__(f"this needs the role {at_least} for {device_id}")


class NotAnAdministrator(RegistryError):
    """A principal is not an administrator of this server, or no longer."""

    code = "not_an_administrator"

    def __init__(self) -> None:
        super().__init__("only an administrator of this server may do this")


class TooManyKeys(RegistryError):
    """A machine was sent several keys and used none of them; each may be the one that it stored."""

    code = "too_many_keys"

    def __init__(self, device_id: str, keys: int) -> None:
        self.device_id = device_id
        super().__init__(
            f"{device_id} ignored the earlier rotations: it was sent {keys} new keys, has used none of them,"
            " and gets no more; its key stays. Its firmware may not know how to change its key: reset the"
            " machine to its factory settings, which gives it another key, and pair it again"
        )


class QuotaReached(RegistryError):
    """A user would have more machines than an account may have."""

    code = "quota_reached"

    def __init__(self, limit: int) -> None:
        self.limit = limit
        super().__init__(
            f"an account may have {limit} machines: leave one first, or ask the server's administrator for a"
            " larger BREWOS_RELAY_MACHINES_PER_ACCOUNT"
        )


class TooManyUnproven(RegistryError):
    """A user would own more machines that never connected than an account may own."""

    code = "too_many_unproven"

    def __init__(self, limit: int) -> None:
        self.limit = limit
        super().__init__(
            f"{limit} of your machines have never connected: switch them on, or leave them, and try again"
        )


class PairingClosed(RegistryError):
    """An unknown machine wants to register while pairing is closed."""

    code = "pairing_closed"

    def __init__(self) -> None:
        super().__init__("pairing is closed: an administrator can open it with `brewos-relay pairing open`")


class TooManyNewDevices(RegistryError):
    """A network has registered as many new ids as it may in a day."""

    code = "too_many_new_devices"

    def __init__(self, *, retry_s: int) -> None:
        self.retry_s = retry_s
        # Without the number: a machine takes "200 " anywhere in an answer for success.
        super().__init__("too many new machines were registered from this network within a day")


class SignInRefused(RegistryError):
    """A user proved their identity and may not sign in; the text is for that user."""

    code = "sign_in_refused"


class UserExists(RegistryError):
    """An account with this e-mail address exists."""

    code = "user_exists"

    def __init__(self, email: str) -> None:
        self.email = email
        super().__init__(f"{email} has an account already")


class DeviceFileError(RegistryError):
    """A line of a device file is invalid; `line` counts from 1."""

    code = "device_file"

    def __init__(self, line: int, problem: str) -> None:
        self.line = line
        super().__init__(f"line {line}: {problem}")


class SettingsError(RelayError):
    """A setting is missing or invalid; the text names it and says what to do."""

    code = "settings"

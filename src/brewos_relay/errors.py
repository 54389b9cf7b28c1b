"""One exception tree, and the close codes the relay uses.

RelayError
├── RelayClosing         the relay is leaving and takes nobody on
├── PeerGone             what the peer stood for has ended
├── TokenRejected        a JWT that is malformed, forged, expired or incomplete
├── IdentityRejected     what somebody else says about who signs in is not good enough
├── IdentityUnavailable  whoever would have to say it cannot be asked now
├── RegistryError
│   ├── RegistryBusy     a write that did not get its turn in time
│   ├── DeviceExists     registering an id that is registered already
│   ├── DeviceUnknown    what can only be done to a device that is registered
│   ├── LastOwner        what would leave a device to people who do not own it
│   ├── NotAnOwner       sharing a device that somebody else owns
│   ├── RoleTooLow       a write that takes a higher role for the device
│   ├── NotAnAdministrator   a write that takes an administrator
│   ├── TooManyKeys      sending a machine yet another key that it will not use
│   ├── QuotaReached     giving a user more machines than an account may have
│   ├── TooManyUnproven  claiming yet another machine while so many others never connected
│   ├── PairingClosed    registering a machine that is unknown while pairing is closed
│   ├── TooManyNewDevices registering yet another id from a network
│   ├── SignInRefused    somebody whom nobody let in, or whose e-mail address nobody vouches for
│   ├── UserExists       making an account with an e-mail address that has one
│   └── DeviceFileError  a device file with a line that cannot be taken
└── SettingsError        a setting that is missing or does not make sense
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
    #: To a device: a newer connection took its place. To a client: its token is rejected, or it is
    #: a page without access to the device. An app that receives it does not come back on its own.
    REPLACED = 4002
    TOKEN_REJECTED = 4002
    #: To a client: its user has no access to the device any more. To a device: its key is none any more.
    ACCESS_ENDED = 4003

    @property
    def come_back(self) -> bool:
        """Whether a peer that is closed with this code may connect again as it is."""
        return self in _COME_BACK


_COME_BACK = frozenset(
    {
        CloseCode.GOING_AWAY,
        CloseCode.POLICY_VIOLATION,  # of silence, mostly
        CloseCode.INTERNAL_ERROR,
        CloseCode.SERVICE_RESTART,
        CloseCode.TRY_AGAIN_LATER,
    }
)


class RelayError(Exception):
    """Base of everything that the relay raises on purpose.

    `code` is stable and machine-readable; `retry` says whether trying again later can help.
    """

    code: ClassVar[str] = "relay_error"
    retry: ClassVar[bool] = False


class RelayClosing(RelayError):
    """The relay is draining or closed: nothing can be attached any more."""

    code = "relay_closing"
    retry = True


class PeerGone(RelayError):
    """The peer has ended; whoever waited for it need not wait any longer."""

    code = "peer_gone"
    retry = True


class TokenRejected(RelayError):
    """A JWT was not accepted; the text says why, without repeating the token."""

    code = "token_rejected"


class IdentityRejected(RelayError):
    """Another party's proof of who somebody is was not accepted; the text says why, without repeating it."""

    code = "identity_rejected"


class IdentityUnavailable(RelayError):
    """Another party had to be asked who somebody is, and did not answer, or not as it should."""

    code = "identity_unavailable"
    retry = True


class RegistryError(RelayError):
    """The registry refused a change; nothing of it was stored."""

    code = "registry_error"


class RegistryBusy(RegistryError):
    """A write did not get its turn in time. `undone` is false if it may have been committed all the same."""

    code = "registry_busy"
    retry = True

    def __init__(self, problem: str, *, undone: bool = True) -> None:
        self.undone = undone
        super().__init__(problem)


class DeviceExists(RegistryError):
    """Device ids are registered already."""

    code = "device_exists"

    def __init__(self, device_ids: Iterable[str]) -> None:
        self.device_ids = tuple(device_ids)
        super().__init__(f"already registered: {', '.join(self.device_ids)}")


class DeviceUnknown(RegistryError):
    """A device is not registered."""

    code = "device_unknown"

    def __init__(self, device_id: str) -> None:
        self.device_id = device_id
        super().__init__(f"{device_id} is not registered; `brewos-relay device list` shows what is")


class LastOwner(RegistryError):
    """A device would be left to people who do not own it."""

    code = "last_owner"

    def __init__(self, device_id: str) -> None:
        self.device_id = device_id
        super().__init__(f"{device_id} would have no owner left: make somebody else an owner first")


class NotAnOwner(RegistryError):
    """A user wants to do with a device what only its owners may."""

    code = "not_an_owner"

    def __init__(self, device_id: str) -> None:
        self.device_id = device_id
        super().__init__(f"only an owner of {device_id} may do this")


class RoleTooLow(RegistryError):
    """A principal reaches a device, with a role that does not allow this."""

    code = "role_too_low"

    def __init__(self, device_id: str, at_least: str) -> None:
        self.device_id = device_id
        self.at_least = at_least
        super().__init__(f"this takes the role {at_least} for {device_id}")


class NotAnAdministrator(RegistryError):
    """A principal is no administrator of this server, or is none any more."""

    code = "not_an_administrator"

    def __init__(self) -> None:
        super().__init__("only an administrator of this server may do this")


class TooManyKeys(RegistryError):
    """A machine was sent key after key and used none of them; any one may still be the one that it kept."""

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
    """A user would own more machines that never connected than an account may."""

    code = "too_many_unproven"

    def __init__(self, limit: int) -> None:
        self.limit = limit
        super().__init__(
            f"{limit} of your machines have never connected: switch them on, or leave them, and try again"
        )


class PairingClosed(RegistryError):
    """A machine that is unknown wants to register while pairing is closed."""

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
    """Somebody proved who they are, and is not let in; the text is for them to read."""

    code = "sign_in_refused"


class UserExists(RegistryError):
    """There is an account with this e-mail address."""

    code = "user_exists"

    def __init__(self, email: str) -> None:
        self.email = email
        super().__init__(f"{email} has an account already")


class DeviceFileError(RegistryError):
    """A line of a device file cannot be taken; `line` counts from 1."""

    code = "device_file"

    def __init__(self, line: int, problem: str) -> None:
        self.line = line
        super().__init__(f"line {line}: {problem}")


class SettingsError(RelayError):
    """A setting is missing or does not make sense; the text names it and says what to do."""

    code = "settings"

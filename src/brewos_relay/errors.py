"""One exception tree, and the close codes the relay uses.

RelayError
├── RelayClosing          the relay is leaving and takes nobody on
├── PeerGone              what the peer stood for has ended
├── TokenRejected         a JWT that is malformed, forged, expired or incomplete
├── RegistryError
│   ├── DeviceExists      registering an id that is registered already
│   └── DeviceFileError   a device file with a line that cannot be taken
└── SettingsError         a setting that is missing or does not make sense
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
    #: To a device: a newer connection took its place. To a client: its token is no good. Either way an
    #: app that receives it does not come back on its own.
    REPLACED = 4002
    TOKEN_REJECTED = 4002

    @property
    def come_back(self) -> bool:
        """Whether a peer that is closed with this code may connect again as it is."""
        return self in _COME_BACK


_COME_BACK = frozenset(
    {CloseCode.GOING_AWAY, CloseCode.INTERNAL_ERROR, CloseCode.SERVICE_RESTART, CloseCode.TRY_AGAIN_LATER}
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


class RegistryError(RelayError):
    """The registry refused a change; nothing of it was stored."""

    code = "registry_error"


class DeviceExists(RegistryError):
    """Device ids are registered already."""

    code = "device_exists"

    def __init__(self, device_ids: Iterable[str]) -> None:
        self.device_ids = tuple(device_ids)
        super().__init__(f"already registered: {', '.join(self.device_ids)}")


class DeviceFileError(RegistryError):
    """A line of a device file cannot be taken; `line` counts from 1."""

    code = "device_file"

    def __init__(self, line: int, problem: str) -> None:
        self.line = line
        super().__init__(f"line {line}: {problem}")


class SettingsError(RelayError):
    """A setting is missing or does not make sense; the text names it and says what to do."""

    code = "settings"

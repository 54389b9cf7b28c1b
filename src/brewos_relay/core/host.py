"""Host: what a session asks of the relay that it is part of."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Literal, Protocol, TypeAlias

from brewos_relay.core.attachment import Attachment
from brewos_relay.core.counters import Counters
from brewos_relay.core.crowds import Crowds
from brewos_relay.core.limits import Limits
from brewos_relay.core.line_limits import LineLimits
from brewos_relay.dialect import Policy

if TYPE_CHECKING:
    from brewos_relay.core.session import DeviceSession

Happening: TypeAlias = Literal[
    "online", "offline", "client_came", "client_went", "command", "throttled", "throttle_ended"
]
"""What somebody may want to look up later."""


class Host(Protocol):
    """What a session asks of the relay that it is part of."""

    limits: Limits
    policy: Policy
    """What each message of a client needs, and which commands may wait."""
    counters: Counters
    attached: set[Attachment]
    """Every peer whose goodbye is not said yet."""
    crowds: Crowds
    """How many clients each user has."""
    lines: LineLimits
    """Which lines about peers that come and go are logged."""
    logs_messages: bool
    """Whether each pass of messages is logged."""

    def session_emptied(self, session: "DeviceSession") -> None:
        """Learn that nobody is attached any more; the session takes nobody on from here."""

    def device_seen(self, device_id: str, at_ms: int) -> None:
        """Learn that a device came or went."""

    def note(self, device_id: str, kind: Happening, user_id: str | None, detail: Mapping[str, str]) -> None:
        """Learn that something happened that somebody may want to look up."""

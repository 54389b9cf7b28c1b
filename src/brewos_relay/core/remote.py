"""Remote: devices and clients on other instances, as the core sees them.

The core knows no network between instances. It tells a `RemotePresence` which devices it has and which ones
have clients. A device of another instance is a `RemotePeer` that stands for the device in its session. All
clients of a device on other instances are one `RemoteAudience`.
"""

from collections.abc import Callable
from typing import Final, Literal, Protocol, TypeAlias

from brewos_relay.core.peer import Peer
from brewos_relay.delivery import Delivery
from brewos_relay.messages import Message

RemoteOutcome: TypeAlias = Literal[
    "delivered", "busy", "device_offline", "expired", "unknown", "bus_unavailable"
]
"""What became of a command for a device of another instance.

`unknown` means that it may have reached the device. With `busy`, `device_offline`, `expired` and
`bus_unavailable` it has not.
"""

TakeOutcome: TypeAlias = Callable[[RemoteOutcome], None]


class RemotePresence(Protocol):
    """Takes note of the devices that this relay has and wants. The methods never block."""

    def device_came(self, device_id: str, connected_at: float) -> None:
        """Note that a connection of this relay, made at `connected_at` (trio time), stands for the device."""

    def device_went(self, device_id: str) -> None:
        """Note that no connection of this relay stands for the device any more."""

    def device_wanted(self, device_id: str) -> None:
        """Note that the device has clients here."""

    def device_unwanted(self, device_id: str) -> None:
        """Note that the device has no clients here any more."""


class _SingleInstance:
    """The remote presence of a relay without other instances."""

    def device_came(self, device_id: str, connected_at: float) -> None:
        """Do nothing."""

    def device_went(self, device_id: str) -> None:
        """Do nothing."""

    def device_wanted(self, device_id: str) -> None:
        """Do nothing."""

    def device_unwanted(self, device_id: str) -> None:
        """Do nothing."""


SINGLE_INSTANCE: Final[RemotePresence] = _SingleInstance()


class RemotePeer(Peer, Protocol):
    """The connection of a device on another instance. Its outcomes come later."""

    def send_command(self, message: Message, take_outcome: TakeOutcome | None, not_after_ms: float) -> None:
        """Send a message to the device, unless the time `not_after_ms` is over when it would be delivered.

        `take_outcome` is called exactly once, also before this returns. None if the outcome does not matter.
        """


class RemoteAudience(Protocol):
    """The clients of one device on other instances."""

    def deliver(self, delivery: Delivery) -> None:
        """Send messages of the device; never blocks and never raises."""

    def renew_state(self) -> None:
        """Send all of the device's state again, since it changed in a way that no message tells."""

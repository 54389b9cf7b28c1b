"""What the HTTP API needs of the live relay, as a narrow protocol: anything of this shape will do."""

from typing import Any, Protocol

from brewos_relay.core.counters import Counters
from brewos_relay.core.grant import Grant
from brewos_relay.core.snapshot import DeviceInfo
from brewos_relay.messages import Message


class RelayView(Protocol):
    """The live side: who is connected now."""

    @property
    def closing(self) -> bool:
        """Whether the relay takes nobody on any more."""
        ...

    @property
    def device_count(self) -> int:
        """How many devices are connected."""
        ...

    @property
    def client_count(self) -> int:
        """How many clients are connected."""
        ...

    @property
    def counters(self) -> Counters:
        """What the relay has done since it was opened."""
        ...

    def grants_of(self, device_id: str) -> list[Grant]:
        """Give the grant of every client of a device."""
        ...

    def is_online(self, device_id: str) -> bool:
        """Whether this device is connected now."""
        ...

    def state_of(self, device_id: str) -> dict[str, Any] | None:
        """Give what is known of a device's state: `snapshotAgeMs`, and `messages` by type."""
        ...

    def info_of(self, device_id: str) -> DeviceInfo:
        """Read what a device says that it is; cheaper than its state."""
        ...

    def send_to_device(self, device_id: str, message: Message) -> bool:
        """Send a message to a device; False if it is not connected."""
        ...

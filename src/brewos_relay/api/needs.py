"""What the HTTP API needs of the rest, as narrow protocols: anything of this shape will do."""

from collections.abc import Iterable, Sequence
from typing import Any, Literal, Protocol


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

    def is_online(self, device_id: str) -> bool:
        """Whether this device is connected now."""
        ...

    def state_of(self, device_id: str) -> dict[str, Any] | None:
        """Give what is known of a device's state: `snapshotAgeMs`, and `messages` by type."""
        ...


class DeviceRecord(Protocol):
    """A registered device; times are in ms since the epoch."""

    @property
    def id(self) -> str: ...
    @property
    def name(self) -> str | None: ...
    @property
    def created_at_ms(self) -> int: ...
    @property
    def last_seen_ms(self) -> int | None: ...


class DeviceStore(Protocol):
    """The registry, as far as it is read here. Every method raises RegistryError when it cannot answer."""

    async def all_devices(self) -> Sequence[DeviceRecord]:
        """Read every registered device."""
        ...

    async def find_devices(self, ids: Iterable[str], /) -> Sequence[DeviceRecord]:
        """Read those of the named devices that are registered."""
        ...

    async def devices_of(self, user_id: str, /) -> Sequence[DeviceRecord]:
        """Read the devices that a user has."""
        ...


class TokenClaims(Protocol):
    """What a valid token says; `devices` are ids, or "*" for all."""

    @property
    def user_id(self) -> str: ...
    @property
    def devices(self) -> frozenset[str] | Literal["*"]: ...


class TokenVerifier(Protocol):
    """Whoever can tell a good token from a bad one."""

    def verify(self, token: str, /) -> TokenClaims:
        """Read a token. Raises TokenRejected."""
        ...

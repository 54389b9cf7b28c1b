"""What the HTTP API needs of the live relay and of the registry, as narrow protocols."""

from collections.abc import Callable, Sequence
from typing import Any, Concatenate, ParamSpec, Protocol, TypeVar

from sqlalchemy import Connection

from brewos_relay.core.counters import Counters
from brewos_relay.core.grant import Grant
from brewos_relay.core.snapshot import DeviceInfo
from brewos_relay.messages import Message
from brewos_relay.registry.authority import Authority
from brewos_relay.registry.pairing import HeldPairing
from brewos_relay.registry.records import Access, Device, LoginSession, StoredState

P = ParamSpec("P")
T = TypeVar("T")


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
        """Give what is known of a device's state: how old it is, what is stale, and `messages` by type."""
        ...

    def info_of(self, device_id: str) -> DeviceInfo:
        """Read what a device says that it is; cheaper than its state."""
        ...

    def send_to_device(self, device_id: str, message: Message) -> bool:
        """Send a message to a device; False if it is not connected."""
        ...


class Registry(Protocol):
    """The registry, with no write that has neither an authority nor a listed reason. A Store is one."""

    async def read(
        self, function: Callable[Concatenate[Connection, P], T], *args: P.args, **kwargs: P.kwargs
    ) -> T:
        """Call a function that reads."""
        ...

    async def write_as(
        self,
        authority: Authority,
        function: Callable[Concatenate[Connection, P], T],
        *args: P.args,
        **kwargs: P.kwargs,
    ) -> T:
        """Verify an authority and call a function that writes, in one transaction."""
        ...

    async def write_anonymous(
        self, function: Callable[Concatenate[Connection, P], T], *args: P.args, **kwargs: P.kwargs
    ) -> T:
        """Call a function that `authority.ANONYMOUS_WRITES` lists, in a transaction."""
        ...

    async def find_device(self, device_id: str) -> Device | None:
        """Find a device by its id."""
        ...

    async def find_state(self, device_id: str) -> StoredState | None:
        """Find the last state of a device."""
        ...

    async def access_of(self, user_id: str, device_id: str) -> Access | None:
        """Find the access of a user to a device."""
        ...

    async def find_session(self, session_id: str) -> LoginSession | None:
        """Find a session that has neither ended nor expired."""
        ...

    async def is_revoked(self, token_id: str) -> bool:
        """Tell whether a token was revoked."""
        ...

    def hold_pairing(self, pairing: HeldPairing) -> None:
        """Hold the token of a device with a working key until it can be stored."""
        ...

    def held_pairings(self, device_id: str) -> Sequence[HeldPairing]:
        """Give the tokens of a device that wait to be stored."""
        ...

    async def finish_removals(self, *, within_s: float) -> None:
        """Remove what closed accounts had; what is left then is for the housekeeping."""
        ...

    async def catch_up(self, *, ends_only: bool = False) -> None:
        """Wait until every change that is committed by now was applied; or only every end of a session."""
        ...

"""Protocols of the live relay and of the registry, as the HTTP API calls them."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Concatenate, ParamSpec, Protocol, TypeVar

from sqlalchemy import Connection

from brewos_relay.core.counters import Counters
from brewos_relay.core.remote import RemoteOutcome
from brewos_relay.instances import Bucket, BucketsTaken
from brewos_relay.live_devices import DeviceHistory, LiveDevice, LogAction, LogView, PeerCounts
from brewos_relay.messages import Message
from brewos_relay.registry.authority import Authority
from brewos_relay.registry.pairing import HeldPairing
from brewos_relay.registry.records import Access, Device, LoginSession, StoredState

P = ParamSpec("P")
T = TypeVar("T")


class RelayView(Protocol):
    """The live relay, of one instance or of many: connected devices and clients."""

    @property
    def closing(self) -> bool:
        """Whether the relay accepts no new connections."""
        ...

    @property
    def counters(self) -> Counters:
        """The running totals of this instance since the relay was opened."""
        ...

    async def count_peers(self) -> PeerCounts:
        """Count the connected devices and clients."""
        ...

    async def find_live(self, device_ids: Sequence[str]) -> Mapping[str, LiveDevice]:
        """Return what is known of the connections of devices. The result has each of the ids."""
        ...

    async def state_of(self, device_id: str) -> dict[str, Any] | None:
        """Return the last known state of a device: its age, its stale groups, and `messages` by type."""
        ...

    async def log_of(self, device_id: str, action: LogAction) -> LogView | None:
        """Return the log of a device; None if the device has not sent its log settings."""
        ...

    async def history_of(self, device_id: str, *, seconds: float) -> DeviceHistory | None:
        """Return the measurements of a device's last seconds; None if there are none."""
        ...

    async def send_to_device(self, device_id: str, message: Message) -> RemoteOutcome:
        """Send a message to a device and return the outcome, which is `unknown` if it may have arrived."""
        ...


class SharedBudgets(Protocol):
    """Rate limits that count on all instances together. Each call takes a bounded time."""

    async def take(self, buckets: Sequence[Bucket]) -> BucketsTaken:
        """Take a token from each bucket, or from none if one is empty.

        Buckets of which the instances cannot know are missing in the result.
        """
        ...

    async def give_back(self, buckets: Sequence[Bucket]) -> None:
        """Return a token to each bucket."""
        ...


class Notifier(Protocol):
    """Sends notifications to the users of devices."""

    async def public_key(self) -> str:
        """Return the public key by which push services recognize this server. Raises RegistryError."""
        ...

    def notify(self, device_id: str, kind: str, *, message: str = "") -> None:
        """Notify the users of a device soon, if they want this kind and were not told recently."""
        ...

    def watch(self, device_ids: Sequence[str]) -> None:
        """Watch devices that have a subscription now."""
        ...


class Registry(Protocol):
    """The registry. Each write has an authority, or is listed in `authority.ANONYMOUS_WRITES`."""

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
        """Find a login session that has neither ended nor expired."""
        ...

    async def is_revoked(self, token_id: str) -> bool:
        """Tell whether a token was revoked."""
        ...

    def hold_pairing(self, pairing: HeldPairing) -> None:
        """Hold the pairing token of a device with a working key until it can be stored."""
        ...

    def held_pairings(self, device_id: str) -> Sequence[HeldPairing]:
        """Return the pairing tokens of a device that wait to be stored."""
        ...

    async def finish_removals(self, *, within_s: float) -> None:
        """Remove the access of closed accounts. The housekeeping removes the rest after `within_s`."""
        ...

    async def catch_up(self, *, ends_only: bool = False) -> None:
        """Wait until all changes committed so far are applied; with `ends_only`, only ended sessions."""
        ...

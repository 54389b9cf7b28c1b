"""Broker: the service that joins the instances of a cluster, as this package uses it.

A broker keeps a lease for each instance, and the owner of each device. It carries messages to the mailbox of
an instance, and announcements of a device's owner to the instances that subscribed to the device.
"""

from collections.abc import Callable, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from typing import Final, Protocol

LEASE_S: Final = 15.0
"""How long an instance counts as alive after its last renewal."""
RENEW_EVERY_S: Final = 4.0
"""How often an instance renews its lease."""
SWAPS_WITHIN_S: Final = 300.0
SWAPS: Final = 3
"""This many live connections of a device, replaced on another instance within this time, mean that two
devices use the same id."""


class BrokerError(Exception):
    """The broker cannot be reached, or the connection to it was lost."""


@dataclass(frozen=True, slots=True, order=True)
class Since:
    """When a connection of a device was made: the fencing token of its ownership.

    The greater value wins, in any order of the claims. `at_us` is in µs by the broker's clock. Equal times
    are ordered by the names of the instances.
    """

    at_us: int
    instance: str


@dataclass(frozen=True, slots=True)
class Claim:
    """A claim of this instance to a device.

    `at_us` is the time at which the connection was made, by the broker's clock. Each claim of a connection
    has the same time, also after the broker has lost its data.
    """

    device_id: str
    at_us: int


@dataclass(frozen=True, slots=True)
class ClaimResult:
    """The result of a claim: its own `since`, and the owner from now on, which may be another instance."""

    since: Since
    owner: Since

    @property
    def won(self) -> bool:
        """Whether this claim owns the device now."""
        return self.owner == self.since


@dataclass(frozen=True, slots=True)
class Located:
    """The state of a device in the cluster: its owner, if that is alive, and whether two devices use the id,
    so that another connection has to be refused."""

    owner: Since | None
    contested: bool = False


@dataclass(frozen=True, slots=True)
class OwnerChanged:
    """A device has a new owner, or none any more: `owner` is then None, and `since` is the one that ended."""

    device_id: str
    since: Since
    owner: Since | None


@dataclass(frozen=True, slots=True)
class Mail:
    """A message to this instance."""

    payload: bytes


Receive = Callable[[Mail | OwnerChanged], None]
"""Takes what other instances send, in order; never blocks.

`OwnerChanged` comes for each device that this instance subscribed to, and for each device that it owned until
another instance claimed it.
"""


class BrokerConnection(Protocol):
    """The connection of one instance to the broker.

    While it lives, everything arrives once and in order. When it is lost, each call raises BrokerError, and
    `wait_lost` returns; the instance then connects again and announces everything again. Calls may be
    cancelled.
    """

    @property
    def instance(self) -> str:
        """The name of this instance."""
        ...

    async def wait_lost(self) -> str:
        """Wait until the connection is lost; return why."""
        ...

    async def now_us(self) -> int:
        """Return the broker's time, in µs since the epoch."""
        ...

    async def renew(self, info: bytes) -> bool:
        """Renew the lease of this instance for `LEASE_S`, and publish its description.

        Return whether the lease was still valid. If not, it expired or the broker lost its data, and the
        instance has to claim its devices again. The first renewal of an instance returns False as well.
        """
        ...

    async def resign(self) -> None:
        """End the lease of this instance at once: none of its devices is owned any more."""
        ...

    async def instances(self) -> dict[str, bytes]:
        """Return the description of each live instance."""
        ...

    async def count_mailboxes(self, instances: Sequence[str]) -> list[bool]:
        """Tell for each instance whether it is connected to the broker now."""
        ...

    async def claim(self, claims: Sequence[Claim]) -> list[ClaimResult]:
        """Claim devices. For each one that is won, subscribers and the owner until now get `OwnerChanged`.

        The owner until now is told as well if its lease has expired: it may live. The change of a device to
        its next owner may be received before this call returns: compare the values of `since`.
        """
        ...

    async def release(self, device_id: str, since: Since) -> None:
        """Give up a device. Does nothing if its owner has another `since`; otherwise subscribers are told."""
        ...

    async def locate(self, device_ids: Sequence[str]) -> list[Located]:
        """Find the owners of devices."""
        ...

    async def note_swap(self, device_id: str) -> None:
        """Count that a live connection of a device was replaced by one on another instance."""
        ...

    async def subscribe(self, device_id: str) -> Located:
        """Follow the owner of a device from now on, and find its present owner."""
        ...

    async def unsubscribe(self, device_id: str) -> None:
        """Follow a device no longer."""
        ...

    def send(self, instance: str, payload: bytes) -> bool:
        """Send a message to an instance, without waiting; False if too much waits, or the connection is lost.

        A True does not mean that it arrives: the connection may be lost, or the instance may be gone.
        """
        ...

    async def take_budget(self, key: str, *, amount: float, per_s: float, burst: float) -> bool:
        """Take from a token bucket that all instances share; False if it has less than `amount`."""
        ...

    async def refund_budget(self, key: str, *, amount: float, burst: float) -> None:
        """Give back what was taken from a shared bucket."""
        ...


class Broker(Protocol):
    """Connects an instance to the broker."""

    def connect(self, instance: str, receive: Receive) -> AbstractAsyncContextManager[BrokerConnection]:
        """Connect, and receive the instance's mail. Raises BrokerError if that is not possible in time.

        Leaving the block closes the connection. It owns a nursery; losing the connection raises nothing.
        """
        ...

"""Counters: running totals of a relay since it was opened."""

from bisect import bisect_left
from collections.abc import Sequence
from typing import Final

from brewos_relay.core.peer import PeerEnd

LATENCY_BOUNDS_S: Final[tuple[float, ...]] = (
    0.000025, 0.00005, 0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 1.0,
)  # fmt: skip


class Histogram:
    """Counts values by size: `counts` has a number for each bound, and one for larger values."""

    __slots__ = ("bounds", "counts", "total")

    def __init__(self, bounds: Sequence[float]) -> None:
        self.bounds = tuple(bounds)
        self.counts = [0] * (len(self.bounds) + 1)
        self.total = 0.0
        """The sum of all values."""

    def observe(self, value: float, times: int = 1) -> None:
        """Count a value `times` times."""
        self.counts[bisect_left(self.bounds, value)] += times
        self.total += value * times


class Counters:
    """Running totals. They count messages unless their description says otherwise."""

    __slots__ = (
        "bytes_from_clients",
        "bytes_from_devices",
        "bytes_to_clients",
        "bytes_to_devices",
        "clients_attached",
        "commands",
        "conflicts",
        "devices_attached",
        "ended",
        "invalid",
        "lagged",
        "latency",
        "left_out",
        "merged",
        "over_rate",
        "oversized",
        "received_from_clients",
        "received_from_devices",
        "sent_to_clients",
        "sent_to_devices",
        "throttled",
        "too_big",
        "undeliverable",
        "zombies",
    )

    def __init__(self) -> None:
        self.received_from_devices = 0
        self.received_from_clients = 0
        self.bytes_from_devices = 0
        """Bytes of payloads, like all bytes here."""
        self.bytes_from_clients = 0
        self.sent_to_clients = 0
        """A message of a device counts once for each client that gets it. Messages of the relay do not
        count."""
        self.sent_to_devices = 0
        self.bytes_to_clients = 0
        self.bytes_to_devices = 0
        self.invalid = 0
        """Dropped: not an object (or map) with a text `type`."""
        self.oversized = 0
        """From devices: skipped because they were too large."""
        self.too_big = 0
        """From clients: dropped because they were too large for a machine."""
        self.left_out = 0
        """Not delivered to a client because it was too far behind."""
        self.throttled = 0
        """How often a device began to exceed its rate."""
        self.merged = 0
        """From devices that exceeded their rate: delivered as part of a later message."""
        self.over_rate = 0
        """From devices that exceeded their rate: dropped."""
        self.undeliverable = 0
        """From clients: for a device that was absent or did not accept them."""
        self.lagged = 0
        """Clients that began to lag."""
        self.devices_attached = 0
        """Connections of devices. Some never stood for their device."""
        self.clients_attached = 0
        self.zombies = 0
        """Connections of devices that were closed because they never sent anything."""
        self.conflicts = 0
        """Connections of devices that were refused because another device with the same id was present."""
        self.commands: dict[str, int] = {}
        """Commands by outcome."""
        self.ended: dict[tuple[str, str, str], int] = {}
        """Connections that ended, by kind (`device` or `client`), who ended it, and close code."""
        self.latency = Histogram(LATENCY_BOUNDS_S)
        """How long a pass of the poller took to deliver its messages, in s. Only some passes are timed."""

    def count_end(self, peer: str, end: PeerEnd) -> None:
        """Count a connection that has ended."""
        key = (peer, end.by, end.label)
        self.ended[key] = self.ended.get(key, 0) + 1

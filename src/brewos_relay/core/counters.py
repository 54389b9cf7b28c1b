"""What a relay has done since it was opened: plain numbers, for whoever wants to look."""

from bisect import bisect_left
from collections.abc import Sequence
from typing import Final

from brewos_relay.core.peer import End

LATENCY_BOUNDS_S: Final = (
    0.000025, 0.00005, 0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 1.0,
)  # fmt: skip


class Histogram:
    """Counts values by size: `counts` has an entry for each bound (values up to it), and one for more."""

    __slots__ = ("bounds", "counts", "total")

    def __init__(self, bounds: Sequence[float]) -> None:
        self.bounds = tuple(bounds)
        self.counts = [0] * (len(self.bounds) + 1)
        self.total = 0.0
        """The sum of all values."""

    def observe(self, value: float, times: int = 1) -> None:
        """Count a value, as often as it was met."""
        self.counts[bisect_left(self.bounds, value)] += times
        self.total += value * times


class Counters:
    """Running totals, of messages if nothing else is said."""

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
        """Of payloads, as all bytes here."""
        self.bytes_from_clients = 0
        self.sent_to_clients = 0
        """What a device says counts once for each client that it goes to, what the relay says not at all."""
        self.sent_to_devices = 0
        self.bytes_to_clients = 0
        self.bytes_to_devices = 0
        self.invalid = 0
        """Dropped since they were no object (or map) with a text `type`."""
        self.oversized = 0
        """From devices, read past since they were too large."""
        self.too_big = 0
        """From clients, dropped since no machine reads a message of that size."""
        self.left_out = 0
        """Not delivered to a client since it was too far behind."""
        self.throttled = 0
        """How often devices began to exceed their rate."""
        self.merged = 0
        """From devices that exceeded their rate, passed on as a part of a later message."""
        self.over_rate = 0
        """From devices that exceeded their rate, dropped."""
        self.undeliverable = 0
        """From clients, for a device that was absent or did not take them."""
        self.lagged = 0
        """Clients that fell behind."""
        self.devices_attached = 0
        """Connections of devices, whether they ever stood for their device or not."""
        self.clients_attached = 0
        self.zombies = 0
        """Connections of devices that never sent anything, and were dropped."""
        self.conflicts = 0
        """Connections of devices that were refused since another machine with the same id was there."""
        self.commands: dict[str, int] = {}
        """Commands by what became of them."""
        self.ended: dict[tuple[str, str, str], int] = {}
        """Connections that ended, by (`device` or `client`, who ended it, close code)."""
        self.latency = Histogram(LATENCY_BOUNDS_S)
        """From waking up for what a peer sent to having passed it on, in s; of a few messages only."""

    def note_end(self, peer: str, end: End) -> None:
        """Count a connection that has ended."""
        key = (peer, end.by, end.label)
        self.ended[key] = self.ended.get(key, 0) + 1

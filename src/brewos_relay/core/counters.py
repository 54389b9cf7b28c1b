"""What a relay has done since it was opened."""


class Counters:
    """Running totals, of messages if nothing else is said."""

    __slots__ = (
        "conflicts",
        "invalid",
        "left_out",
        "oversized",
        "received_from_clients",
        "received_from_devices",
        "undeliverable",
        "zombies",
    )

    def __init__(self) -> None:
        self.received_from_devices = 0
        self.received_from_clients = 0
        self.invalid = 0
        """Dropped since they were no object (or map) with a text `type`."""
        self.oversized = 0
        """From devices, read past since they were too large."""
        self.left_out = 0
        """Not delivered to a client since it was too far behind."""
        self.undeliverable = 0
        """From clients, for a device that was absent or did not take them."""
        self.zombies = 0
        """Connections of devices that never sent anything, and were dropped."""
        self.conflicts = 0
        """Connections of devices that were refused since another machine with the same id was there."""

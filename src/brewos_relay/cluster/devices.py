"""DeviceTable: which devices this instance has and wants, and what the broker knows of that."""

from dataclasses import dataclass

import trio

from brewos_relay.cluster.broker import Since
from brewos_relay.cluster.remote_clients import RemoteClients
from brewos_relay.cluster.remote_device import RemoteDevice
from brewos_relay.core.attachment import RemoteDeviceAttachment


@dataclass(slots=True, eq=False)
class DeviceRecord:
    """One device that is connected here or followed from here."""

    device_id: str

    # What the relay has
    connected_at: float | None = None
    """When the connection was made that stands for the device here (trio time); None if there is none."""
    clients: RemoteClients | None = None
    """Its clients on other instances."""
    has_clients: bool = False
    """Whether the device has clients here."""
    held_until: float = 0.0
    """Until when the device is followed for a client that is about to come (trio time)."""

    # What the broker knows of the connection here
    must_claim: bool = False
    """Whether the connection has to be claimed, for the first time or again."""
    at_us: int | None = None
    """The `since` of the connection, from its first claim on."""
    claimed: Since | None = None
    """The last claim that was won. It has to be released when the device has gone."""
    is_unsure: bool = False
    """Whether the broker may have another claim of this instance, whose result did not arrive."""

    # What the broker knows of the device
    subscribed: bool = False
    located: bool = False
    """Whether `owner` is known."""
    owner: Since | None = None
    changes: int = 0
    """How many changes of the owner were announced. An answer of the broker that one has overtaken is old."""

    # What is followed
    remote: RemoteDevice | None = None
    attachment: RemoteDeviceAttachment | None = None
    settled: trio.Event | None = None
    """Set once the state of the device is known, or that it is absent."""

    @property
    def is_local(self) -> bool:
        """Whether the device is connected here."""
        return self.connected_at is not None

    def is_wanted(self, now: float) -> bool:
        """Whether the device is followed if it is on another instance."""
        return self.has_clients or self.held_until > now

    def is_needless(self, now: float) -> bool:
        """Whether the record can be forgotten."""
        is_told = self.claimed is None and not self.is_unsure and not self.subscribed
        return is_told and not self.is_local and self.remote is None and not self.is_wanted(now)

    def settle(self) -> None:
        """Wake the tasks that wait until the device is found."""
        if self.settled is not None:
            self.settled.set()
            self.settled = None

    def come(self, connected_at: float) -> None:
        """Note that a connection here stands for the device."""
        self.connected_at = connected_at
        self.must_claim = True
        self.at_us = None
        self.remote = self.attachment = None  # the relay has closed it
        self.settle()

    def go(self) -> None:
        """Note that no connection here stands for the device any more."""
        self.connected_at = self.at_us = self.clients = None
        self.must_claim = False

    def unfollow(self) -> None:
        """End the remote device, and tell the clients that it went."""
        attachment, self.remote, self.attachment = self.attachment, None, None
        if attachment is not None:
            attachment.go()


class DeviceTable:
    """The devices of a relay that is one of many instances; a `RemotePresence`.

    Each change marks a device, for the task that tells the broker.
    """

    def __init__(self) -> None:
        self.records: dict[str, DeviceRecord] = {}
        self._marked: dict[str, None] = {}
        self._wake = trio.Event()

    def device_came(self, device_id: str, connected_at: float) -> None:
        """Note a connection of a device; see `RemotePresence`."""
        self.record(device_id).come(connected_at)
        self.mark(device_id)

    def device_went(self, device_id: str) -> None:
        """Note that a device went; see `RemotePresence`."""
        if (record := self.records.get(device_id)) is not None:
            record.go()
            self.mark(device_id)

    def device_wanted(self, device_id: str) -> None:
        """Note that a device has clients; see `RemotePresence`."""
        self.record(device_id).has_clients = True
        self.mark(device_id)

    def device_unwanted(self, device_id: str) -> None:
        """Note that a device has no clients any more; see `RemotePresence`."""
        if (record := self.records.get(device_id)) is not None:
            record.has_clients = False
            self.mark(device_id)

    def record(self, device_id: str) -> DeviceRecord:
        """Return the record of a device, which may be new."""
        if (record := self.records.get(device_id)) is None:
            record = self.records[device_id] = DeviceRecord(device_id)
        return record

    def forget_if_needless(self, record: DeviceRecord, now: float) -> None:
        """Forget a record that is not needed any more."""
        if record.is_needless(now) and self.records.get(record.device_id) is record:
            del self.records[record.device_id]

    def mark(self, device_id: str) -> None:
        """Have the device compared with what the broker knows."""
        self._marked[device_id] = None
        self._wake.set()

    async def next_marked(self, most: int) -> list[DeviceRecord]:
        """Wait for marked devices, and return up to `most` of them."""
        await self._wake.wait()
        marked = [device_id for device_id, _ in zip(self._marked, range(most), strict=False)]
        for device_id in marked:
            del self._marked[device_id]
        if not self._marked:
            self._wake = trio.Event()
        return [record for device_id in marked if (record := self.records.get(device_id)) is not None]

"""Live devices: what the API shows of connections, and the view of a relay of one instance."""

from collections.abc import Mapping, Sequence
from typing import Any, Literal, TypeAlias

import msgspec
import trio

from brewos_relay.core.counters import Counters
from brewos_relay.core.device_log import LogConfig
from brewos_relay.core.history import Samples
from brewos_relay.core.relay import Relay
from brewos_relay.core.remote import RemoteOutcome
from brewos_relay.messages import DeviceInfo, Message
from brewos_relay.vocabulary import now_ms


class PeerCounts(msgspec.Struct, frozen=True):
    """How many devices and clients are connected."""

    devices: int
    clients: int


class LiveDevice(msgspec.Struct, frozen=True):
    """The connections of one device, and what it reported about itself."""

    is_online: bool = False
    info: DeviceInfo = msgspec.field(default_factory=DeviceInfo)
    user_ids: Sequence[str | None] = ()
    """The user of each client."""


class DeviceHistory(msgspec.Struct, frozen=True, rename="camel"):
    """The measurements of a device; see `core.history.Samples`. Times are in ms since the epoch."""

    at_ms: int
    """When it was read."""
    times_ms: Sequence[int] = ()
    at_work: Sequence[bool] = ()
    online: Sequence[bool] = ()
    values: Mapping[str, Sequence[float | None]] = {}


def device_history(samples: Samples | None) -> DeviceHistory | None:
    """Convert measurements to the clock of the wall. None if there are none."""
    if samples is None:
        return None
    at_ms, now = now_ms(), trio.current_time()
    return DeviceHistory(
        at_ms,
        [at_ms - round((now - at) * 1000) for at in samples.times_s],
        samples.at_work,
        samples.online,
        samples.values,
    )


def live_device(relay: Relay, device_id: str) -> LiveDevice:
    """Return what an instance knows of a device."""
    return LiveDevice(
        relay.has_device(device_id),
        relay.info_of(device_id),
        [grant.user_id for grant in relay.grants_of(device_id)],
    )


LogAction: TypeAlias = Literal["look", "read", "clear"]
"""What to do with the log of a device: look at its settings and size, read its lines too, or clear it."""


class LogView(msgspec.Struct, frozen=True):
    """The log of a device, as far as the relay has it.

    `config` is what the device said last about its logging, and `age_s` how long ago. `lines` are there if
    they were asked for.
    """

    config: LogConfig
    age_s: float
    size_bytes: int
    lines: list[str] = []


def view_log(relay: Relay, device_id: str, action: LogAction) -> LogView | None:
    """Return what an instance has of a device's log; None if the device has not sent its log settings."""
    log = relay.log_of(device_id)
    if log is None:
        return None
    if action == "clear":
        log.clear()
    lines = log.lines() if action == "read" else []
    return LogView(log.config, trio.current_time() - log.config_at, log.size_bytes, lines)


class LocalView:
    """The devices and clients of one instance; a `protocols.RelayView`."""

    def __init__(self, relay: Relay) -> None:
        self._relay = relay

    @property
    def closing(self) -> bool:
        """Whether the relay accepts no new connections."""
        return self._relay.closing

    @property
    def counters(self) -> Counters:
        """The running totals since the relay was opened."""
        return self._relay.counters

    async def count_peers(self) -> PeerCounts:
        """Count the connected devices and clients."""
        await trio.lowlevel.checkpoint()
        return PeerCounts(self._relay.device_count, self._relay.client_count)

    async def find_live(self, device_ids: Sequence[str]) -> Mapping[str, LiveDevice]:
        """Return what is known of the connections of devices."""
        await trio.lowlevel.checkpoint()
        return {device_id: live_device(self._relay, device_id) for device_id in device_ids}

    async def state_of(self, device_id: str) -> dict[str, Any] | None:
        """Return the last known state of a device; see `Relay.state_of`."""
        await trio.lowlevel.checkpoint()
        return self._relay.state_of(device_id)

    async def log_of(self, device_id: str, action: LogAction) -> LogView | None:
        """Return the log of a device; see `view_log`."""
        await trio.lowlevel.checkpoint()
        return view_log(self._relay, device_id, action)

    async def history_of(self, device_id: str, *, seconds: float) -> DeviceHistory | None:
        """Return the measurements of a device's last seconds; None if there are none."""
        return device_history(await self._relay.history_of(device_id, seconds=seconds))

    async def send_to_device(self, device_id: str, message: Message) -> RemoteOutcome:
        """Send a message to a device."""
        await trio.lowlevel.checkpoint()
        if not self._relay.has_device(device_id):
            return "device_offline"
        return "delivered" if self._relay.send_to_device(device_id, message) else "busy"

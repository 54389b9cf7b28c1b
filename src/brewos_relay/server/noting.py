"""ActivityRecorder: what happens on the live relay, handed to the registry."""

from collections.abc import Callable, Mapping
from typing import Final

import trio

from brewos_relay.core.relay import Relay
from brewos_relay.core.session import Happening
from brewos_relay.core.snapshot import DeviceInfo
from brewos_relay.registry.records import Activity
from brewos_relay.registry.store import Store
from brewos_relay.texts import is_showable
from brewos_relay.vocabulary import now_ms

_WINDOW_S: Final = 240.0
_NOTES_IN_WINDOW: Final = 120
_SEEN_EVERY: Final = 15
SEEN_EVERY_S: Final = _SEEN_EVERY * _WINDOW_S
"""How often the registry is told which devices are online, so that it knows after a crash as well."""


class ActivityRecorder:
    """Tells the registry who came, went and did what, and what a machine that goes has said of itself.

    The registry keeps a bounded number of entries for each device. No user can push out those of others: of
    what one user does with one device, 120 entries are kept in each window of four minutes. Nothing is kept
    of an anonymous device that comes and goes: anyone can have thousands of these.
    """

    def __init__(self, store: Store) -> None:
        self._store = store
        self._counts: dict[int, int] = {}  # by a hash of device and user, as there can be very many
        self.info_of: Callable[[str], DeviceInfo] = lambda _device_id: DeviceInfo()
        """Gives what a device says that it is; the relay's, once there is one."""
        self.is_anonymous: Callable[[str], bool] = lambda _device_id: False
        """Tells whether a device registered itself and has no user; likewise."""

    def note_seen(self, device_id: str, at_ms: int) -> None:
        """Note that a device came or went."""
        self._store.note_seen(device_id, at_ms)

    async def run(self, relay: Relay) -> None:
        """Begin a window every four minutes, and note once an hour which devices are online."""
        while True:
            for _ in range(_SEEN_EVERY):
                await trio.sleep(_WINDOW_S)
                self._counts = {}
            at_ms = now_ms()
            for device_id in {attachment.session.device_id for attachment in relay.attached}:
                if relay.is_online(device_id):
                    self.note_seen(device_id, at_ms)

    def note_activity(
        self, device_id: str, kind: Happening, user_id: str | None, detail: Mapping[str, str]
    ) -> None:
        """Note what happened to a device, and who did it."""
        if kind == "offline":
            self._note_info(device_id)
        if user_id is None and self.is_anonymous(device_id):
            return
        key = hash((device_id, user_id))
        count = self._counts.get(key, 0)
        if count < _NOTES_IN_WINDOW:
            self._counts[key] = count + 1
            entry = Activity(
                device_id=device_id, at_ms=now_ms(), kind=kind, user_id=user_id, detail=dict(detail)
            )
            self._store.note_activity(entry)

    def _note_info(self, device_id: str) -> None:
        info = self.info_of(device_id)
        firmware_version, machine_type = _text(info.firmware_version), _text(info.machine_type)
        if firmware_version is not None or machine_type is not None:
            self._store.note_info(device_id, firmware_version=firmware_version, machine_type=machine_type)


def _text(value: object) -> str | None:
    return value if isinstance(value, str) and is_showable(value) else None

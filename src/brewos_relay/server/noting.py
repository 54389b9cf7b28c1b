"""Noting: what happens on the live relay, handed to the registry."""

from collections import OrderedDict
from collections.abc import Callable, Mapping
from typing import Final

import trio

from brewos_relay.core.clock import now_ms
from brewos_relay.core.host import Happening
from brewos_relay.core.pace import TokenBucket
from brewos_relay.core.snapshot import DeviceInfo
from brewos_relay.registry.records import Activity
from brewos_relay.registry.store import Store

_NOTES_PER_S: Final = 0.5
_NOTES_AT_ONCE: Final = 120
_USERS_AT_MOST: Final = 10_000


class Noting:
    """Tells the registry who came, went and did what, and what a machine that goes has said of itself.

    The registry keeps a bounded number of entries for each device. Nobody can push out what others did: what
    one user does with one device beyond 120 entries at once and one every 2 s is not noted.
    """

    def __init__(self, store: Store) -> None:
        self._store = store
        self._paces: OrderedDict[tuple[str, str | None], TokenBucket] = OrderedDict()
        self.info_of: Callable[[str], DeviceInfo] = lambda _device_id: DeviceInfo()
        """Gives what a device says that it is; the relay's, once there is one."""

    def note_seen(self, device_id: str, at_ms: int) -> None:
        """Note that a device came or went."""
        self._store.note_seen(device_id, at_ms)

    def note_activity(
        self, device_id: str, kind: Happening, user_id: str | None, detail: Mapping[str, str]
    ) -> None:
        """Note what happened to a device, and who did it."""
        if kind == "offline":
            self._note_info(device_id)
        if not self._pace(device_id, user_id).admit(trio.current_time()):
            return
        self._store.note_activity(
            Activity(device_id=device_id, at_ms=now_ms(), kind=kind, user_id=user_id, detail=dict(detail))
        )

    def _pace(self, device_id: str, user_id: str | None) -> TokenBucket:
        pace = self._paces.pop((device_id, user_id), None) or TokenBucket(
            rate_per_s=_NOTES_PER_S, burst=_NOTES_AT_ONCE, now=trio.current_time()
        )
        self._paces[device_id, user_id] = pace
        if len(self._paces) > _USERS_AT_MOST:
            self._paces.popitem(last=False)
        return pace

    def _note_info(self, device_id: str) -> None:
        info = self.info_of(device_id)
        firmware_version, machine_type = _text(info.firmware_version), _text(info.machine_type)
        if firmware_version is not None or machine_type is not None:
            self._store.note_info(device_id, firmware_version=firmware_version, machine_type=machine_type)


def _text(value: object) -> str | None:
    return value if isinstance(value, str) and value.isprintable() else None

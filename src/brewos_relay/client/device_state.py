"""The state of a device as an app receives it: on attaching, and by later messages. No I/O."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any, Final

#: Message kinds that are part of the state; the last message of each kind counts.
STATE_KINDS: Final = frozenset(
    {"status", "device_info", "esp_status", "pico_status", "power_meter_status", "bbw_settings"}
)
_MAIN_KINDS: Final = ("status", "pico_status", "esp_status")


@dataclass(frozen=True, slots=True)
class DeviceState:
    """The known state of a device.

    `online` tells whether it is connected to the relay. `messages` are the last message of each kind by its
    `type`, the status with all later changes merged into it.
    """

    online: bool = False
    messages: Mapping[str, Mapping[str, Any]] = field(default_factory=lambda: MappingProxyType({}))

    @property
    def status(self) -> Mapping[str, Any]:
        """The last status with all later changes; empty if unknown."""
        for kind in _MAIN_KINDS:
            if kind in self.messages:
                return self.messages[kind]
        return {}

    @property
    def info(self) -> Mapping[str, Any]:
        """The identity and the settings of the device, as it last reported them; empty if unknown."""
        return self.messages.get("device_info", {})

    def after(self, content: Mapping[str, Any]) -> "DeviceState":
        """Return the state after a message."""
        kind = content.get("type")
        if kind == "connected":
            return DeviceState(content.get("deviceOnline") is True)
        if kind == "device_status":
            return DeviceState(content.get("online") is True, self.messages)
        if kind in ("device_online", "device_offline"):
            return DeviceState(kind == "device_online", self.messages)
        if kind == "status_delta" and "status" in self.messages:
            return self._with("status", _merged(self.messages["status"], content))
        return self._with(kind, content) if kind in STATE_KINDS else self

    def _with(self, kind: Any, content: Mapping[str, Any]) -> "DeviceState":
        # Messages of a device arrive only while it is online.
        return DeviceState(self.online, MappingProxyType({**self.messages, kind: content}))


def _merged(status: Mapping[str, Any], delta: Mapping[str, Any]) -> dict[str, Any]:
    """Merge a delta into a status: within a group it replaces its own fields, and leaves the others."""
    merged = dict(status)
    for group, value in delta.items():
        if group != "type":
            old = merged.get(group)
            both = isinstance(old, dict) and isinstance(value, dict)
            merged[group] = {**old, **value} if both else value  # type: ignore[dict-item]
    return merged

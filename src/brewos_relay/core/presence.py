"""Presence: which connection stands for the device, if any.

A connection stands for its device from its first frame on. One that never sends any is a leftover of a broken
one. One that takes the place of another may be the same machine that came back, or a second one with the same
id; two of those would take turns for ever.
"""

from collections import deque
from typing import Final

from brewos_relay.core.attachment import DeviceAttachment
from brewos_relay.core.counters import Counters
from brewos_relay.core.limits import Limits
from brewos_relay.errors import CloseCode

_LIVELY_S: Final = 20.0
"""A machine pings every 15 s: one that was heard since has not lost its connection."""
_SWAPS: Final = 3
_SWAPS_WITHIN_S: Final = 300.0
"""So many lively connections replaced within so short a time are a fight."""


class Presence:
    """The connections of one device: the one that stands for it, and at most one that has yet to speak."""

    __slots__ = ("_limits", "_swapped_at", "arriving", "present")

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self._swapped_at: deque[float] | None = None
        self.present: DeviceAttachment | None = None
        self.arriving: DeviceAttachment | None = None

    def arrive(self, device: DeviceAttachment) -> DeviceAttachment | None:
        """Let a connection wait for its first frame; return one that waited before it and is to be closed."""
        earlier, self.arriving = self.arriving, device
        return earlier

    def may_replace(self, now: float) -> bool:
        """Whether the connection that stands for the device may be ended for a newer one."""
        device = self.present
        return device is None or now >= self._limits.safe_to_end_at(
            opened_at=device.attached_at, spoke_at=device.spoke_at
        )

    def replace(self, now: float) -> DeviceAttachment | None:
        """Let the arriving connection stand for the device; return the one that did before."""
        replaced, self.present, self.arriving = self.present, self.arriving, None
        if replaced is not None and replaced.silent_s(now) < _LIVELY_S:
            if self._swapped_at is None:
                self._swapped_at = deque(maxlen=_SWAPS)
            self._swapped_at.append(now)
        return replaced

    def is_contested(self, now: float) -> bool:
        """Whether two machines fight for this id, so that the one that is here had better stay."""
        swaps = self._swapped_at
        return (
            swaps is not None
            and len(swaps) == _SWAPS
            and now - swaps[0] < _SWAPS_WITHIN_S
            and self.present is not None
            and self.present.silent_s(now) < _LIVELY_S
        )

    def leave(self, device: DeviceAttachment) -> bool:
        """Forget a connection that has ended; True if it stood for the device."""
        if device is self.arriving:
            self.arriving = None
        if device is not self.present:
            return False
        self.present = None
        return True

    def resume(self, now: float) -> None:
        """Start every silence timer again after a pause; see `core.pauses`.

        What was replaced before it is no sign of a fight: machines lose their connections in a pause.
        """
        self._swapped_at = None
        for device in (self.present, self.arriving):
            if device is not None:
                device.restart_silence(now)

    def run_checks(self, now: float, counters: Counters) -> bool:
        """Close what is silent for too long; True if the arriving connection may stand for the device now."""
        limits, device, arriving = self._limits, self.present, self.arriving
        comes = False
        if arriving is not None:
            if arriving.silent_s(now) >= limits.device_first_frame_s:
                counters.zombies += 1
                arriving.close(CloseCode.POLICY_VIOLATION, "nothing was sent")
            else:
                comes = arriving.spoke_at is not None and self.may_replace(now)
        if device is not None:
            silent_s = device.silent_s(now)
            if silent_s >= limits.device_silence_s:
                device.close(CloseCode.POLICY_VIOLATION, "nothing was sent for too long")
            elif silent_s >= limits.device_ping_s <= now - device.pinged_at:
                device.pinged_at = now
                device.ping()  # a machine pings by itself; others may only listen, and answer this
        return comes

"""Presence: which connection stands for the device, if any.

A connection stands for its device from its first frame on. One that never sends any is a leftover of a broken
one. One that takes the place of another may be the same machine that came back, or a second one with the same
id; two of those would take turns for ever.
"""

from collections import deque
from typing import Final

from brewos_relay.core.attachment import DeviceAttachment
from brewos_relay.core.limits import Limits

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
        return self.present is None or now - self.present.attached_at >= self._limits.device_min_age_s

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

"""Presence: the connection that stands for a device, and the state that its clients are told.

A connection stands for its device from its first frame on. One that never sends a frame is left over from a
broken connection. A connection that replaces another one belongs to the same device after a reconnect, or to
a second device with the same id; two such devices would replace each other without end.
"""

import math
from collections import deque
from typing import Final

import trio

from brewos_relay import messages
from brewos_relay.core.attachment import DeviceAttachment
from brewos_relay.core.counters import Counters
from brewos_relay.core.histories import Histories
from brewos_relay.core.limits import Limits
from brewos_relay.core.merging import without_seq
from brewos_relay.core.snapshot import SmallSnapshot, Snapshot, SnapshotState
from brewos_relay.dialect import Dialect
from brewos_relay.errors import CloseCode
from brewos_relay.messages import Message
from brewos_relay.vocabulary import LONG_AGO, iso_time

_LIVELY_S: Final = 20.0
"""A device that sent something this recently still has its connection: machines ping every 15 s."""
_SWAPS: Final = 3
_SWAPS_WITHIN_S: Final = 300.0
"""This many replaced live connections within this time mean that two devices use the same id."""


class Presence:
    """One device in its session: its connections, its last known state, and when it was last seen."""

    __slots__ = (
        "_dialect",
        "_forgets_remote",
        "_histories",
        "_limits",
        "_show_at",
        "_swapped_at",
        "anonymous",
        "arriving",
        "device_id",
        "gone_at",
        "last_seen_ms",
        "present",
        "snapshot",
        "state_is_remote",
    )

    def __init__(
        self,
        device_id: str,
        *,
        limits: Limits,
        dialect: Dialect,
        snapshot: Snapshot | None = None,
        gone_at: float = LONG_AGO,
        histories: Histories | None = None,
    ) -> None:
        self._histories = histories
        self._limits = limits
        self._dialect = dialect
        self._swapped_at: deque[float] | None = None
        self._show_at = math.inf  # when a restored state is sent to clients (trio time)
        self._forgets_remote = False  # whether the state of the remote device ends with its connection
        self.device_id = device_id
        self.present: DeviceAttachment | None = None
        """The connection that stands for the device."""
        self.arriving: DeviceAttachment | None = None
        """A connection that has not sent its first frame, or may not replace the present one yet."""
        self.snapshot = snapshot if snapshot is not None else Snapshot(dialect, device_id)
        self.anonymous = False
        """Whether the device registered itself and has no user. The relay then keeps little of its state, and
        none after it has gone."""
        self.state_is_remote = False
        """Whether the device was last connected to another instance, which keeps its state."""
        self.gone_at = gone_at
        """When the device went offline (trio time)."""
        self.last_seen_ms: int | None = None
        """When the device last came or went, in ms since the epoch."""

    # Connections

    def arrive(self, device: DeviceAttachment) -> DeviceAttachment | None:
        """Let a connection wait for its first frame; return an earlier one that has to be closed for it."""
        earlier, self.arriving = self.arriving, device
        return earlier

    def may_replace(self, now: float) -> bool:
        """Whether the connection that stands for the device may be ended for a newer one."""
        device = self.present
        return (
            device is None
            or device.remote is not None
            or now >= self._limits.safe_to_end_at(opened_at=device.attached_at, spoke_at=device.spoke_at)
        )

    def replace(self, now: float) -> DeviceAttachment | None:
        """Let the arriving connection stand for the device; return the one that did before."""
        replaced, self.present, self.arriving = self.present, self.arriving, None
        self.state_is_remote = False
        self._end_remote_state()
        assert self.present is not None
        self.snapshot.since_us = max(self.present.since_us, self.snapshot.since_us + 1)
        self._keep_history()
        if replaced is not None and replaced.remote is None and replaced.silent_s(now) < _LIVELY_S:
            if self._swapped_at is None:
                self._swapped_at = deque(maxlen=_SWAPS)
            self._swapped_at.append(now)
        return replaced

    def set_since(self, since_us: int) -> None:
        """Set when the connection that stands for the device came, by a clock that all instances share.

        It stays later than that of an earlier connection, whatever the clock says.
        """
        if self.present is not None:
            self.snapshot.since_us = max(since_us, self.present.after_us + 1)

    def yield_to(self, device: DeviceAttachment | None) -> DeviceAttachment | None:
        """Let a connection on another instance stand for the device; return the one that did before.

        `device` is None if nothing here follows that connection.
        """
        self.snapshot.end_history(trio.current_time())
        yielded, self.present = self.present, device
        self.state_is_remote = True
        self._show_at = math.inf
        self._end_remote_state()
        return yielded

    def is_lively(self, now: float) -> bool:
        """Whether a connection of this instance stands for the device and has sent something recently."""
        device = self.present
        return device is not None and device.remote is None and device.silent_s(now) < _LIVELY_S

    def is_contested(self, now: float) -> bool:
        """Whether two devices use this id, so that the present connection stays and others are refused."""
        swaps = self._swapped_at
        return (
            swaps is not None
            and len(swaps) == _SWAPS
            and now - swaps[0] < _SWAPS_WITHIN_S
            and self.is_lively(now)
        )

    def leave(self, device: DeviceAttachment) -> bool:
        """Forget a connection that has ended; True if it stood for the device."""
        if device is self.arriving:
            self.arriving = None
        if device is not self.present:
            return False
        self.present = None
        self._end_remote_state()
        return True

    def mark_gone(self, now: float) -> None:
        """Mark the device as offline from now on. Called after its last messages were passed on."""
        self._show_at = math.inf
        self.gone_at = now
        self.snapshot.age_s(now)  # stamps the last messages: the next check may be far away
        self.snapshot.end_history(now)

    def resume(self, now: float, unseen_s: float) -> None:
        """Start every silence timer again after a pause; see `core.pauses`.

        Connections that were replaced before the pause do not count: devices lose connections in a pause.
        """
        self._swapped_at = None
        for device in (self.present, self.arriving):
            if device is not None:
                device.restart_silence(now)
        self.snapshot.count_pause(unseen_s)
        self.gone_at -= unseen_s

    def run_checks(self, now: float, counters: Counters) -> bool:
        """Close silent connections; True if the arriving one may stand for the device from now on."""
        limits, device, arriving = self._limits, self.present, self.arriving
        comes = False
        if arriving is not None:
            if arriving.silent_s(now) >= limits.device_first_frame_s:
                counters.zombies += 1
                arriving.close(CloseCode.POLICY_VIOLATION, "nothing was sent")
            else:
                comes = arriving.spoke_at is not None and self.may_replace(now)
        if device is not None and device.remote is None:
            silent_s = device.silent_s(now)
            if silent_s >= limits.device_silence_s:
                device.close(CloseCode.POLICY_VIOLATION, "nothing was sent for too long")
            elif silent_s >= limits.device_ping_s <= now - device.pinged_at:
                device.pinged_at = now
                device.ping()  # machines ping by themselves; other devices may only answer pings
        return comes

    # State

    def take_state(self, state: SnapshotState) -> None:
        """Take the state that another instance knows of the device."""
        self.snapshot.take(state, trio.current_time())

    def set_anonymous(self, anonymous: bool) -> None:
        """Set whether the device is anonymous, which decides how much of its state is kept."""
        if anonymous != self.anonymous:
            self.anonymous = anonymous
            since_us = self.snapshot.since_us
            self.snapshot.end_history(trio.current_time())
            self.snapshot = self._new_snapshot() if anonymous else self.snapshot.to_full_size()
            self.snapshot.since_us = since_us
            self._keep_history()

    def restore(self, known_before: tuple[Message, float] | None, now: float) -> None:
        """Continue from the state before the device's absence; `known_before` is used if none is known here.

        A machine sends its whole state after a boot and after a change, otherwise every few minutes. Clients
        are told the earlier state after the time that a machine needs to send all of it.
        """
        if (known := self.snapshot.known(now) or known_before) is None:
            return
        message, held_at = known
        if self.snapshot.restore(message, at=held_at):
            self._show_later(held_at, now)

    def continue_remote(self, known_before: tuple[Message, float] | None, now: float) -> None:
        """Continue from the state of the device on another instance, which a connection here has replaced.

        That instance may not have sent a state yet, or not the one from before an absence.
        """
        if (known := self.snapshot.known(now)) is None:
            self.restore(known_before, now)
        else:
            self._show_later(known[1], now)

    def _show_later(self, held_at: float, now: float) -> None:
        is_recent = 0 <= now - held_at < self._limits.restored_state_s
        self._show_at = now + self._dialect.says_state_within_s if is_recent else math.inf

    def take_restored_state(self, now: float) -> list[Message]:
        """Return messages with the restored state once, when it is time to send it to clients; else []."""
        if now < self._show_at:
            return []
        self._show_at = math.inf
        return [without_seq(message) for message in self.state()] if self.snapshot.show() else []

    def check_state(self, now: float) -> None:
        """Update the age of the known state, and forget it `snapshot_s` after the device went offline."""
        self.snapshot.age_s(now)
        if self.present is None and now - self.gone_at >= self._limits.snapshot_s:
            self._clear()

    def forget_state(self, *, key_ended: bool = False) -> None:
        """Forget the state of an absent device, for example because it has another user now.

        The kept log lines go in any case: they are of the past, which a new user must not see.
        With `key_ended`, also that of a device on another instance when its connection ends: that instance
        decides whether it has the key.
        """
        if self.snapshot.log is not None:
            self.snapshot.log.clear()
        if self.present is None:
            self._clear()
            if key_ended and self._histories is not None:
                self._histories.forget(self.device_id)
        elif key_ended and self.present.remote is not None:
            self._forgets_remote = True
        else:
            return
        if self.arriving is not None:
            self.arriving.known_before = None

    def _end_remote_state(self) -> None:
        if self._forgets_remote:
            self._forgets_remote = False
            self._clear()

    def _clear(self) -> None:
        self.snapshot = self._new_snapshot()

    def _new_snapshot(self) -> Snapshot:
        return (SmallSnapshot if self.anonymous else Snapshot)(self._dialect, self.device_id)

    def _keep_history(self) -> None:
        """Keep a history while the device is connected here, unless it is anonymous."""
        is_here = self.present is not None and self.present.remote is None
        self.snapshot.histories = self._histories if is_here and not self.anonymous else None

    def state(self) -> list[Message]:
        """Return messages for a client: the status of the device, and its last known state."""
        return [self.status(), *self.snapshot.messages()]

    def status(self) -> Message:
        """Return a `device_status`: whether the device is online, and how old its known state is."""
        age_s = self.snapshot.age_s(trio.current_time())
        return messages.device_status(
            self.device_id,
            online=self.present is not None,
            last_seen=iso_time(self.last_seen_ms),
            snapshotAgeMs=round(age_s * 1000) if math.isfinite(age_s) else None,
            **({"staleGroups": stale} if (stale := self.snapshot.stale_groups()) else {}),
        )

"""Limits: every limit of the relay core."""

from dataclasses import dataclass
from typing import Final

_SPARE_S: Final = 1.0
"""How much longer a drain may take than the times that it waits for."""
_HEARD_HOLD: Final = 5.5 / 8
_UNHEARD_HOLD: Final = 10.5 / 8
"""How long a device is held after its first frame, and after its upgrade if it has sent none, for each second
of `device_min_age_s`: 5.5 s and 10.5 s for the 8 s that machines need."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """Limits on what peers may use, and for how long; each is a setting, `BREWOS_RELAY_<FIELD>`."""

    # Sizes
    device_message_bytes: int = 16 * 1024
    """A larger message from a device is skipped and counted; the connection continues."""
    client_message_bytes: int = 4 * 1024
    """A larger message from a client ends its connection with 1009."""
    lag_bytes: int = 64 * 1024
    """A client lags while more than this waits for it: until it has caught up, it gets only messages that no
    later message repeats."""
    outbox_bytes: int = 256 * 1024
    """The most that waits for one peer, besides what the operating system buffers."""

    # Rates; 0 switches one off
    client_rate: float = 20.0
    """Messages a second from one client, on average. The relay pauses reading from a faster one. 0 switches
    this off."""
    client_burst: float = 60.0
    """Messages that a client may send at once after a pause."""
    device_rate: float = 50.0
    """Messages a second from one device, on average. The relay merges those of a faster one. 0 switches this
    off."""
    device_burst: float = 200.0
    """Messages that a device may send at once after a pause."""
    admit_rate: float = 500.0
    """WebSocket requests a second that are processed, and as many at once after a pause; the others are
    refused with 503. 0 switches this off."""

    # Numbers of clients
    clients_per_device: int = 1000
    """Clients that one device may have at a time; more are refused with 429."""
    clients_per_user: int = 200
    """Clients that one user may have at a time, on all their devices; more are refused with 429. Clients
    whose token itself names the device, or all devices, count for the device only."""

    # Times of connections
    admission_s: float = 4.0
    """From the end of a WebSocket's request head to its answer; 503 after that. A machine waits 5 s. Other
    writes to the registry have the same time, including the wait in the queue."""
    message_s: float = 30.0
    """From the first byte of a message to its last; 1008 after that."""
    stall_s: float = 10.0
    """How long a peer may read nothing while data waits for it; 1013 after that."""
    close_s: float = 1.0
    """How long a peer has to answer a close frame."""

    # Times of devices
    device_min_age_s: float = 8.0
    """No device is closed earlier after its upgrade: a machine takes an earlier loss of its connection for a
    rejected key. Nor is it closed earlier than 5.5 s after its first frame, or 10.5 s after its upgrade if it
    has sent none; another value scales these two."""
    device_first_frame_s: float = 10.5
    """A device that sends nothing for this long after its upgrade is closed. It never counts as online."""
    device_ping_s: float = 30.0
    """A device that sends nothing for this long gets a ping."""
    device_silence_s: float = 45.0
    """A device that sends nothing for this long is closed with 1008. Machines ping every 15 s."""
    drain_s: float = 20.0
    """The time over which a draining relay closes its peers, evenly."""

    # Times of clients
    keepalive_s: float = 7.0
    """No client waits longer than this for a message; more than 2. Apps give up after 10 s."""
    client_ping_s: float = 15.0
    """How often a client that sends nothing gets a ping."""
    client_silence_s: float = 35.0
    """A client that has given no sign of life for this long is closed with 1008."""
    token_warning_s: float = 300.0
    """How long before its token expires a client is told."""

    # State and pending commands
    snapshot_s: float = 60.0
    """How long the last known state of an absent device stays in memory."""
    restored_state_s: float = 900.0
    """A device that comes back may send its whole state only after 5 min. Its clients get the earlier state
    if it is not older than this, without the volatile parts; 0 switches this off."""
    state_save_s: float = 180.0
    """How often the state of a device that sends only changes is written to the registry. A whole state is
    written within 10 s, and the state of a device that went offline within 5 s."""
    state_retention_s: float = 604_800.0
    """How long the registry keeps the last state of a device; 0 keeps none."""
    history_s: float = 600.0
    """How long the measurements of a device stay in memory; 0 keeps none, and records no shots."""
    history_bytes: int = 64 * 1024
    """The most memory for the measurements of one device. With less, they are further apart."""
    history_total_bytes: int = 64 * 1024 * 1024
    """The same for all devices together, which have equal parts of it."""
    state_request_s: float = 2.0
    """Requests of clients for the state of a device within this time are combined into one."""
    pending_commands: int = 50
    """Commands that may wait for one absent device."""
    pending_s: float = 10.0
    """How long commands wait."""
    never_wait: tuple[str, ...] = ()
    """Further commands that never wait, as patterns of `cmd` or `cmd:mode`, separated by commas. The list
    cannot allow a command to wait."""
    owner_commands: tuple[str, ...] = ()
    """Further commands for owners only, as patterns of the same form. The list cannot allow members a
    command."""

    @property
    def longest_drain_s(self) -> float:
        """The longest time that a drain takes. A supervisor of the process has to wait longer than this."""
        return self.drain_s + self.longest_hold_s + self.close_s + _SPARE_S

    @property
    def longest_hold_s(self) -> float:
        """The longest time that a device is held after its upgrade, with a late first frame."""
        return self.device_min_age_s * (_UNHEARD_HOLD + _HEARD_HOLD)

    def safe_to_end_at(self, *, opened_at: float, spoke_at: float | None) -> float:
        """Return when a device's connection may end without costing the machine its key.

        A machine loses its key within 5 s of reading its 101, which the network may have delayed. Its first
        frame proves that it has read the 101; a connection that sends no frame in 10 s belongs to no machine.
        `opened_at` is when the 101 was sent, and `spoke_at` when the first frame was read, None before that.
        Every end of a device's connection waits for this time.
        """
        if spoke_at is None:
            held_until = opened_at + self.device_min_age_s * _UNHEARD_HOLD
        else:
            held_until = spoke_at + self.device_min_age_s * _HEARD_HOLD
        return max(held_until, opened_at + self.device_min_age_s)

"""Every bound of the relay, in one place."""

from dataclasses import dataclass
from typing import Final

_SPARE_S: Final = 1.0
"""What a drain may take beyond the times that it has to wait for."""
_HEARD_HOLD: Final = 5.5 / 8
_UNHEARD_HOLD: Final = 10.5 / 8
"""How long a device is held after its first frame, and after its upgrade if it has sent none, for each second
of `device_min_age_s`: 5.5 s and 10.5 s for the 8 s that machines need."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """What a peer may ask of the relay, and for how long. Each field is a setting, `BREWOS_RELAY_<FIELD>`."""

    # Sizes
    device_message_bytes: int = 16 * 1024
    """A larger message from a device is read past and counted; the connection goes on."""
    client_message_bytes: int = 4 * 1024
    """A larger message from a client ends its connection with 1009."""
    lag_bytes: int = 64 * 1024
    """A client for which more than this waits is lagging: it gets only what must not be lost, until it has
    caught up."""
    outbox_bytes: int = 256 * 1024
    """The most that waits for one peer, beyond what the operating system holds."""

    # Rates; 0 switches one off
    client_rate: float = 20.0
    """Messages a second from one client, on average; a faster one is read more slowly; 0 switches this
    off."""
    client_burst: float = 60.0
    """Messages that a client may send at once after a quiet time."""
    device_rate: float = 50.0
    """Messages a second from one device, on average; those of a faster one are merged; 0 switches this
    off."""
    device_burst: float = 200.0
    """Messages that a device may send at once after a quiet time."""
    admit_rate: float = 500.0
    """WebSockets a second that are looked at, and as many at once after a quiet time; the rest are refused
    with 503; 0 switches this off."""

    # Numbers of clients
    clients_per_device: int = 1000
    """Clients that one device may have at a time; more are refused with 429."""
    clients_per_user: int = 200
    """Clients that one user may have at a time, of all their devices; more are refused with 429. Clients
    whose token itself names the device, or all devices, count for the device only."""

    # Times of connections
    admission_s: float = 4.0
    """From the end of a WebSocket's request head to its answer; 503 after that. A machine waits 5 s. Every
    other write to the registry has as long, with the wait for its turn."""
    message_s: float = 30.0
    """From the first byte of a message to its last; 1008 after that."""
    stall_s: float = 10.0
    """How long a peer may take nothing of what waits for it; 1013 after that."""
    close_s: float = 1.0
    """What a peer is given to answer a close frame."""

    # Times of devices
    device_min_age_s: float = 8.0
    """No device is closed earlier after its upgrade: a younger one takes the loss for bad credentials. Nor
    earlier than 5.5 s after its first frame, or 10.5 s after its upgrade if it has sent none; another value
    scales these two."""
    device_first_frame_s: float = 10.5
    """A device that has sent nothing for so long after its upgrade is dropped; it never counted as online."""
    device_ping_s: float = 30.0
    """A device that has sent nothing for so long is asked for a sign of life."""
    device_silence_s: float = 45.0
    """A device that has sent nothing for so long is gone; 1008. Machines ping every 15 s."""
    drain_s: float = 20.0
    """Over which time the peers are sent away, evenly, when the relay leaves."""

    # Times of clients
    keepalive_s: float = 7.0
    """No client waits longer than this for a message; more than 2. Apps give up after 10 s."""
    client_ping_s: float = 15.0
    """How often a client that says nothing is asked for a sign of life."""
    client_silence_s: float = 35.0
    """A client that has given no sign of life for so long is gone; 1008."""
    token_warning_s: float = 300.0
    """How long before the end of its token a client is told."""

    # What is kept
    snapshot_s: float = 60.0
    """How long the last known state of a device that has gone is kept."""
    restored_state_s: float = 900.0
    """A device that comes back says its whole state only after up to 5 min. Its clients get what it said
    before if that is not older than this, without the volatile parts; 0 switches this off."""
    state_save_s: float = 180.0
    """How often the state of a device is written to the registry if it has changed by deltas. A full status
    is written within 10 s, and the state of a device that has gone within 5 s."""
    state_retention_s: float = 604_800.0
    """How long the registry keeps the last state of a device; 0 keeps none."""
    state_request_s: float = 2.0
    """Requests of clients for the device's state become one within this time."""
    pending_commands: int = 50
    """Commands that may wait for one absent device."""
    pending_s: float = 10.0
    """How long they wait."""
    never_wait: tuple[str, ...] = ()
    """More commands that never wait, as patterns of `cmd` or `cmd:mode` with a comma between them. The list
    cannot let a command wait."""
    owner_commands: tuple[str, ...] = ()
    """More commands for owners only, as patterns of the same kind. The list cannot allow members a
    command."""

    @property
    def longest_drain_s(self) -> float:
        """How long a drain takes at most: what runs the relay has to wait longer than this."""
        return self.drain_s + self.longest_hold_s + self.close_s + _SPARE_S

    @property
    def longest_hold_s(self) -> float:
        """How long after its upgrade a device is held at most, with a first frame at the last moment."""
        return self.device_min_age_s * (_UNHEARD_HOLD + _HEARD_HOLD)

    def safe_to_end_at(self, *, opened_at: float, spoke_at: float | None) -> float:
        """Give the time from which a device's connection may end without costing the machine its key.

        A machine loses its key within 5 s of reading its 101, which the network may have delayed. Its first
        frame proves that it has read it; a connection that sends none in 10 s belongs to no machine. So
        `spoke_at` is when the first frame was read, None before that, and `opened_at` when the 101 was sent.
        Every end of a device's connection waits for this time, whatever its reason.
        """
        if spoke_at is None:
            held_until = opened_at + self.device_min_age_s * _UNHEARD_HOLD
        else:
            held_until = spoke_at + self.device_min_age_s * _HEARD_HOLD
        return max(held_until, opened_at + self.device_min_age_s)

"""Every bound of the relay, in one place."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """What a peer may ask of the relay, and for how long. Each field is a setting, `BREWOS_RELAY_<FIELD>`."""

    # Sizes
    request_head_bytes: int = 8 * 1024
    """Request line and headers, together."""
    device_message_bytes: int = 16 * 1024
    """A larger message from a device is read past and counted."""
    client_message_bytes: int = 4 * 1024
    """A larger message from a client ends its connection (1009). Machines take no more than 15 KiB."""
    outbox_bytes: int = 256 * 1024
    """What waits for one peer beyond what the operating system holds; when full, the peer is left out."""

    http_body_bytes: int = 64 * 1024
    """Body of a request to the HTTP API (413)."""

    # Times
    request_head_s: float = 10.0
    """From accepting a connection to the end of its request head."""
    admission_s: float = 4.0
    """From the end of a WebSocket's request head to its answer; a machine waits 5 s for it."""
    message_s: float = 30.0
    """From the first byte of a message to its last."""
    stall_s: float = 10.0
    """How long a peer may take nothing of what waits for it before it is closed (1013)."""
    close_s: float = 1.0
    """What a peer is given to answer a close frame."""
    device_min_age_s: float = 8.0
    """No device is closed earlier after its 101: a younger one takes the loss for bad credentials."""
    drain_s: float = 15.0
    """The longest that leaving may take, once it was asked for."""
    http_request_s: float = 60.0
    """From the end of an HTTP request's head to the first byte of its answer, and between pieces of it."""
    http_idle_s: float = 30.0
    """How long an HTTP connection may wait for its next request."""

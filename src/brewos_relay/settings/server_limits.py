"""The limits of a server: those of the relay core, and those of HTTP requests."""

from dataclasses import dataclass

from brewos_relay.core.limits import Limits


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerLimits(Limits):
    """The limits of the core and of HTTP requests. Each field is a setting, `BREWOS_RELAY_<FIELD>`."""

    # HTTP requests
    request_head_bytes: int = 8 * 1024
    """Size of the request line and headers. Larger ones are refused with 431."""
    http_body_bytes: int = 64 * 1024
    """Size of an HTTP request body. Larger ones are refused with 413."""
    request_head_s: float = 10.0
    """Time from accepting a connection to the end of its request head. 408 after that."""
    http_request_s: float = 60.0
    """Time from the end of a request head to the first byte of the response, and between parts of it."""
    http_idle_s: float = 30.0
    """How long an HTTP connection may wait for its next request."""

    # Shots
    shots_per_device: int = 1000
    """Shots that the registry keeps of one device, the newest; 0 keeps none."""

"""The two ways in which a simulated machine keeps its connection."""

from dataclasses import dataclass
from typing import Final


@dataclass(frozen=True, slots=True, kw_only=True)
class ConnectionPolicy:
    """How a machine treats its relay. Times in s.

    `faithful`: as the firmware does it, with its fixed pauses, and a key that is gone when a connection
    ends too early. Otherwise as this package's own device does it: it backs off, takes hints, and keeps its
    key.
    """

    faithful: bool
    # Before the first connection
    grace_s: float
    after_register_s: float
    # Between connections; None backs off
    reconnect_s: float | None
    refused_s: float | None
    unreachable_s: float | None
    register_s: float | None
    # On a connection
    tick_s: float = 0.5
    first_info_s: float = 3.0
    ping_s: float = 15.0
    pong_s: float = 8.0
    reboot_s: float = 3.0


FAITHFUL: Final = ConnectionPolicy(
    faithful=True,
    grace_s=10.25,
    after_register_s=2.0,
    reconnect_s=30.25,
    refused_s=30.3,
    unreachable_s=10.0,
    register_s=30.0,
)

RICH: Final = ConnectionPolicy(
    faithful=False,
    grace_s=0.0,
    after_register_s=0.0,
    reconnect_s=None,
    refused_s=None,
    unreachable_s=None,
    register_s=None,
)

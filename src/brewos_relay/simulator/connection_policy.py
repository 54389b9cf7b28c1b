"""How a simulated machine connects and reconnects."""

from dataclasses import dataclass
from typing import Final


@dataclass(frozen=True, slots=True, kw_only=True)
class ConnectionPolicy:
    """The connection behaviour of a machine. Times are in s.

    `faithful` machines behave as firmware does: their pauses are fixed, and a connection that ends too early
    costs them their key. Others behave as the SDK's device does: they back off, follow the relay's hints, and
    keep their key.
    """

    faithful: bool
    # Before the first connection
    grace_s: float
    after_register_s: float
    # Between connections; None uses the backoff
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

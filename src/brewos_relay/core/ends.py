"""How a peer ended: who ended it, with which close code and why, as it is kept and logged."""

from dataclasses import dataclass
from typing import Final, Literal

from brewos_relay.errors import CloseCode
from brewos_relay.texts import showable

By = Literal["peer", "relay"]

_REASON_CHARS: Final = 120
_PEERS_OWN: Final = range(1000, 1016)
"""What the close codes of a peer mean is known here, and of the relay's own all; of others there are many."""


@dataclass(frozen=True, slots=True)
class End:
    """How a peer ended; `code` is None if no close frame said so, as when a line is cut.

    `round_trip_s` is the shortest that a ping of the relay took to be answered, if one was.
    """

    by: By
    code: int | None
    reason: str = ""
    round_trip_s: float | None = None

    @property
    def label(self) -> str:
        """The close code as a metric has it: one of a few, whatever peers think of."""
        if self.code is None:
            return "none"
        known = self.code in _PEERS_OWN or self.code in CloseCode.__members__.values()
        return str(self.code) if known else "other"

    def __str__(self) -> str:
        """Say it in a few words; what a peer gave as its reason is made fit for a line."""
        how = "without a goodbye" if self.code is None else f"with {self.code}"
        reason = shown(self.reason)
        return f"the {self.by} ended it {how}{reason and ': ' + reason}"


LEAVING: Final = End("relay", CloseCode.GOING_AWAY, "the relay is leaving")
"""Of a peer that is there when everything ends."""


def detail_of(end: End, *, connected_s: float, received: int) -> dict[str, str]:
    """Give what is kept of an end: texts, as activity has them."""
    detail = {"by": end.by, "connectedS": f"{connected_s:.1f}", "messages": str(received)}
    if end.code is not None:
        detail["code"] = str(int(end.code))
    if reason := shown(end.reason):
        detail["reason"] = reason
    if end.round_trip_s is not None:
        detail["roundTripMs"] = f"{end.round_trip_s * 1000:.1f}"
    return detail


def shown(text: str) -> str:
    """Make a text of somebody else's fit to be kept: printable, on one line, not long."""
    return showable(text[:_REASON_CHARS], instead=" ").strip()

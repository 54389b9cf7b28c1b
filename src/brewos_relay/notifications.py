"""The kinds of notifications about a machine: their names, words, and how often they may come."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

_MINUTE_S: Final = 60
_HOUR_S: Final = 3600
_DAY_S: Final = 24 * 3600


@dataclass(frozen=True, slots=True, kw_only=True)
class Kind:
    """A kind of notification.

    `name` is the user's preference for it, as the BrewOS app names it. `firmware` is its name in requests of
    the firmware. `title` and `text` are what the user reads.
    """

    name: str
    firmware: str | None
    title: str
    text: str
    repeats_after_s: int
    """The shortest time between two of them for one machine."""
    ttl_s: int
    """For how long a push service keeps it for a browser that is off."""
    urgency: str = "normal"
    by_default: bool = True
    """Whether users get it unless they choose otherwise."""


KINDS: Final[Mapping[str, Kind]] = {
    kind.name: kind
    for kind in (
        Kind(
            name="machineReady",
            firmware="MACHINE_READY",
            title="Ready to brew",
            text="The machine is at its temperature.",
            repeats_after_s=10 * _MINUTE_S,
            ttl_s=30 * _MINUTE_S,
            urgency="high",
        ),
        Kind(
            name="waterEmpty",
            firmware="WATER_EMPTY",
            title="Water is low",
            text="Refill the water tank.",
            repeats_after_s=_HOUR_S,
            ttl_s=6 * _HOUR_S,
            urgency="high",
        ),
        Kind(
            name="machineError",
            firmware="MACHINE_ERROR",
            title="Machine error",
            text="The machine reports a fault and has stopped heating.",
            repeats_after_s=30 * _MINUTE_S,
            ttl_s=_DAY_S,
            urgency="high",
        ),
        Kind(
            name="picoOffline",
            firmware="PICO_OFFLINE",
            title="Control board offline",
            text="The control board of the machine does not answer.",
            repeats_after_s=_HOUR_S,
            ttl_s=_DAY_S,
            urgency="high",
        ),
        Kind(
            name="brewComplete",
            firmware="BREW_COMPLETE",
            title="Shot finished",
            text="Your coffee is ready.",
            repeats_after_s=15,
            ttl_s=10 * _MINUTE_S,
            urgency="high",
            by_default=False,
        ),
        Kind(
            name="descaleDue",
            firmware="DESCALE_DUE",
            title="Descaling is due",
            text="Descale the machine soon.",
            repeats_after_s=_DAY_S,
            ttl_s=_DAY_S,
        ),
        Kind(
            name="serviceDue",
            firmware="SERVICE_DUE",
            title="Service is due",
            text="The machine needs maintenance.",
            repeats_after_s=_DAY_S,
            ttl_s=_DAY_S,
        ),
        Kind(
            name="backflushDue",
            firmware="BACKFLUSH_DUE",
            title="Cleaning is due",
            text="Backflush the machine soon.",
            repeats_after_s=_DAY_S,
            ttl_s=_DAY_S,
        ),
        Kind(
            name="scheduleTriggered",
            firmware="SCHEDULE_TRIGGERED",
            title="Schedule started",
            text="A schedule has switched the machine.",
            repeats_after_s=_MINUTE_S,
            ttl_s=_HOUR_S,
        ),
        Kind(
            name="machineOffline",
            firmware=None,
            title="Machine offline",
            text="The machine has not been connected for a long time.",
            repeats_after_s=_HOUR_S,
            ttl_s=_DAY_S,
        ),
    )
}
"""All kinds by name. The first nine are those of the BrewOS app."""

FOLLOWS: Final[Mapping[str, str]] = {"machineOffline": "picoOffline"}
"""Preferences that are like another one until the user sets them: the app has no switch for them."""

BY_FIRMWARE: Final[Mapping[str, Kind]] = {
    kind.firmware: kind for kind in KINDS.values() if kind.firmware is not None
}


def is_wanted(kind: str, chosen: Mapping[str, bool]) -> bool:
    """Whether a user with these preferences wants notifications of a kind."""
    if kind in chosen:
        return chosen[kind]
    if (like := FOLLOWS.get(kind)) is not None:
        return is_wanted(like, chosen)
    return KINDS[kind].by_default

"""Schedules: at which minutes of the week a machine switches itself on or off."""

from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from typing import Any, Final, Literal

MOST_SCHEDULES: Final = 10
NAME_CHARS: Final = 23
EVERY_DAY: Final = 0b1111111


@dataclass(slots=True, kw_only=True)
class Schedule:
    """One entry; `days` has a bit for each day of the week, Sunday being bit 0."""

    id: int
    enabled: bool = True
    days: int = EVERY_DAY
    hour: int = 7
    minute: int = 0
    action: Literal["on", "off"] = "on"
    strategy: int = 2
    name: str = ""

    def due_at(self, minute: int) -> bool:
        """Whether this is to happen in a minute, counted since 1970 in local time."""
        moment = datetime.fromtimestamp(minute * 60, UTC)
        return (
            self.enabled
            and (self.hour, self.minute) == (moment.hour, moment.minute)
            and bool(self.days >> moment.isoweekday() % 7 & 1)
        )

    def as_dict(self) -> dict[str, Any]:
        """Write it as `device_info` has it."""
        return asdict(self)

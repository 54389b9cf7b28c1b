"""What came of a command."""

from dataclasses import dataclass
from typing import Any, Literal

#: What a machine does to its connection afterwards: it starts anew, is off the net for a moment, or for good.
Effect = Literal["restart", "reconnect", "leave"]


@dataclass(frozen=True, slots=True)
class Outcome:
    """What the machine says of a command; `settings_changed` if its `device_info` is another now.

    `answers` are messages that follow, `rich_answers` those that only a rich machine sends; for `busy_s` it
    neither reads nor writes.
    """

    level: Literal["info", "warn"]
    text: str
    settings_changed: bool = False
    answers: tuple[dict[str, Any], ...] = ()
    rich_answers: tuple[dict[str, Any], ...] = ()
    effect: Effect | None = None
    busy_s: float = 0.0

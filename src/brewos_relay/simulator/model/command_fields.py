"""The fields of a command, which are read strictly, and the result of a command."""

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Final, Literal

from brewos_relay.texts import showable

_TEXT_CHARS: Final = 127
_MISSING: Final = object()


class CommandRejected(Exception):
    """A command cannot be carried out; its text says why."""


#: What a machine does to its connection afterwards: it starts anew, is off the net for a moment, or for good.
Effect = Literal["restart", "reconnect", "leave"]


@dataclass(frozen=True, slots=True)
class CommandResult:
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


def number(
    command: Mapping[str, Any], *names: str, low: float, high: float, default: float | None = None
) -> float:
    """Read a number from `low` to `high` under the first of `names` that is there."""
    value = _find(command, names, default)
    if isinstance(value, bool) or not isinstance(value, int | float) or not low <= value <= high:
        raise CommandRejected(f"{names[0]} must be a number from {low:g} to {high:g}, not {shown(value)}")
    return float(value)


def whole(command: Mapping[str, Any], *names: str, low: int, high: int, default: int | None = None) -> int:
    """Read a whole number."""
    value = number(command, *names, low=low, high=high, default=default)
    if not value.is_integer():
        raise CommandRejected(f"{names[0]} must be a whole number, not {value:g}")
    return int(value)


def flag(command: Mapping[str, Any], *names: str, default: bool | None = None) -> bool:
    """Read true or false."""
    value = _find(command, names, default)
    if not isinstance(value, bool):
        raise CommandRejected(f"{names[0]} must be true or false, not {shown(value)}")
    return value


def text(
    command: Mapping[str, Any], *names: str, longest: int = _TEXT_CHARS, default: str | None = None
) -> str:
    """Read a text, cut to the length that a machine keeps."""
    value = _find(command, names, default)
    if not isinstance(value, str):
        raise CommandRejected(f"{names[0]} must be a text, not {shown(value)}")
    return showable(value)[:longest]


def choice(command: Mapping[str, Any], name: str, choices: Iterable[str], default: str | None = None) -> str:
    """Read one of some words."""
    value = _find(command, (name,), default)
    known = tuple(choices)
    if not isinstance(value, str) or value not in known:
        raise CommandRejected(f"unknown {name} {shown(value)}, known are {', '.join(known)}")
    return value


def shown(value: Any) -> str:
    """Show a value that somebody sent, whatever it is, in a few characters."""
    if isinstance(value, float) and not math.isfinite(value):
        return "a number without end"
    plain = value is None or isinstance(value, str | float) or (isinstance(value, int) and abs(value) < 1e9)
    return repr(value)[:40] if plain else f"a value of type {type(value).__name__}"


def _find(command: Mapping[str, Any], names: tuple[str, ...], default: Any) -> Any:
    for name in names:
        value = command.get(name, _MISSING)
        if value is not _MISSING:
            return value
    return default

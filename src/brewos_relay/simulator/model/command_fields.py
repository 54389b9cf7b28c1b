"""The fields of a command, which are read strictly, and the result of a command."""

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Final, Literal

from brewos_relay.texts import showable

_TEXT_CHARS: Final = 127
_MISSING: Final = object()


class CommandRejected(Exception):
    """A command cannot be carried out; the text has the reason."""


#: The effect of a command on the connection: restart, a short interruption, or offline for good.
Effect = Literal["restart", "reconnect", "leave"]


@dataclass(frozen=True, slots=True)
class CommandResult:
    """The result of a command. `settings_changed` means that the `device_info` has changed.

    `answers` are messages to send; only a rich machine also sends `rich_answers`. The machine neither reads
    nor writes for `busy_s`.
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
    """Read a number from `low` to `high` from the first of `names` in the command."""
    value = _find(command, names, default)
    if isinstance(value, bool) or not isinstance(value, int | float) or not low <= value <= high:
        raise CommandRejected(f"{names[0]} must be a number from {low:g} to {high:g}, not {shown(value)}")
    return float(value)


def whole(command: Mapping[str, Any], *names: str, low: int, high: int, default: int | None = None) -> int:
    """Read an integer."""
    value = number(command, *names, low=low, high=high, default=default)
    if not value.is_integer():
        raise CommandRejected(f"{names[0]} must be a whole number, not {value:g}")
    return int(value)


def flag(command: Mapping[str, Any], *names: str, default: bool | None = None) -> bool:
    """Read a boolean."""
    value = _find(command, names, default)
    if not isinstance(value, bool):
        raise CommandRejected(f"{names[0]} must be true or false, not {shown(value)}")
    return value


def text(
    command: Mapping[str, Any], *names: str, longest: int = _TEXT_CHARS, default: str | None = None
) -> str:
    """Read a text, cut to the length that a machine stores."""
    value = _find(command, names, default)
    if not isinstance(value, str):
        raise CommandRejected(f"{names[0]} must be a text, not {shown(value)}")
    return showable(value)[:longest]


def choice(command: Mapping[str, Any], name: str, choices: Iterable[str], default: str | None = None) -> str:
    """Read one of several words."""
    value = _find(command, (name,), default)
    known = tuple(choices)
    if not isinstance(value, str) or value not in known:
        raise CommandRejected(f"unknown {name} {shown(value)}, known are {', '.join(known)}")
    return value


def shown(value: Any) -> str:
    """Show a received value in a few characters."""
    if isinstance(value, float) and not math.isfinite(value):
        return "an infinite number"
    plain = value is None or isinstance(value, str | float) or (isinstance(value, int) and abs(value) < 1e9)
    return repr(value)[:40] if plain else f"a value of type {type(value).__name__}"


def _find(command: Mapping[str, Any], names: tuple[str, ...], default: Any) -> Any:
    for name in names:
        value = command.get(name, _MISSING)
        if value is not _MISSING:
            return value
    return default

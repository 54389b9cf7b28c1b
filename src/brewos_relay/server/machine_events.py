"""What users are told about a machine, from two of its states."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

import msgspec

TYPES: Final = ("pico_status", "status")
"""The messages with the state: of old firmware, and of today's."""
NAMES: Final = frozenset({"machine", "water", "pico", "cleaning", "state", "isBrewing", "waterLevel"})
"""The fields that matter: groups of `status`, and single fields of `pico_status`."""

SHOT_S: Final = 8.0
"""A shorter flow of water is no shot."""

_FAULTS: Final = frozenset({"fault", "safe", "error"})
_LOW: Final = ("low", "empty")


@dataclass(frozen=True, slots=True)
class MachineState:
    """The parts of a state that matter. None is unknown."""

    state: str | None = None
    brewing: bool | None = None
    water: str | None = None
    board: bool | None = None
    """Whether the control board answers."""
    cleaning_due: bool | None = None


def read_state(fields: Mapping[str, bytes]) -> MachineState:
    """Read the raw fields of a state. Fields of other types are unknown."""
    decoded = {name: _decode(value) for name, value in fields.items()}
    machine, water, board, cleaning = (
        value if isinstance(value := decoded.get(name), dict) else {}
        for name in ("machine", "water", "pico", "cleaning")
    )
    return MachineState(
        state=_text(machine.get("state", decoded.get("state"))),
        brewing=_flag(machine.get("isBrewing", decoded.get("isBrewing"))),
        water=_text(water.get("tankLevel", decoded.get("waterLevel"))),
        board=_flag(board.get("connected")),
        cleaning_due=_flag(cleaning.get("reminderDue")),
    )


def find_events(before: MachineState, after: MachineState, *, brewed_s: float) -> list[str]:
    """Return the kinds of notifications that a change calls for.

    Nothing follows from an unknown state before. `brewed_s` is how long water has flowed.
    """
    events = []
    if after.state == "ready" and before.state not in (None, "ready", "brewing"):
        events.append("machineReady")
    if after.state in _FAULTS and before.state is not None and before.state not in _FAULTS:
        events.append("machineError")
    if after.water in _LOW and before.water is not None and before.water not in _LOW:
        events.append("waterEmpty")
    if before.board is True and after.board is False:
        events.append("picoOffline")
    if before.cleaning_due is False and after.cleaning_due is True:
        events.append("backflushDue")
    if before.brewing is True and after.brewing is False and brewed_s >= SHOT_S:
        events.append("brewComplete")
    return events


def _decode(value: bytes) -> Any:
    """Decode a field in JSON or MessagePack. The first byte tells them apart for maps, texts and flags."""
    decode = msgspec.json.decode if value[:1] in (b"{", b'"', b"t", b"f", b" ") else msgspec.msgpack.decode
    try:
        return decode(value)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError, ValueError):
        return None


def _text(value: object) -> str | None:
    return value if isinstance(value, str) else None


def _flag(value: object) -> bool | None:
    return value if isinstance(value, bool) else None

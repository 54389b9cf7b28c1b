"""UsageMeter: what a machine used, from its states one after the other."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

import msgspec

from brewos_relay.registry.records import Usage

TYPES: Final = ("pico_status", "status")
"""The messages with the state: of old firmware, and of today's."""
NAMES: Final = frozenset({"machine", "power", "temps", "mode", "state"})
"""The fields that matter: groups of `status`, and single fields of `pico_status`."""
LONGEST_S: Final = 45.0
"""A state holds at most this long. Three looks in a row fit into it."""

RENEWED_S: Final = 330.0
"""Machines send their whole state, with the counter of energy, every 5 min. A value from before an absence is
older than this only if it still holds."""

_ON: Final = frozenset({"on", "eco"})
_AT_TARGET_C: Final = 1.5
"""The steam boiler is this close to its target while it is hot."""
_DRAWN_C: Final = 5.0
"""Steam is drawn if its temperature falls by this much. A thermostat keeps it closer."""
_MOST_WATTS: Final = 10_000.0
_MOST_KWH: Final = 100.0


@dataclass(frozen=True, slots=True)
class Reading:
    """The parts of a state that matter. None is unknown."""

    is_on: bool = False
    is_brewing: bool = False
    watts: float | None = None
    today_kwh: float | None = None
    steam_c: float | None = None
    steam_target_c: float | None = None


def read_usage(fields: Mapping[str, bytes]) -> Reading:
    """Read the raw fields of a state. Fields of other types, and impossible values, are unknown."""
    decoded = {name: decode_field(value) for name, value in fields.items()}
    machine, power, temps = (_group(decoded.get(name)) for name in ("machine", "power", "temps"))
    steam = _group(temps.get("steam"))
    state = machine.get("state", decoded.get("state"))
    mode = machine.get("mode", decoded.get("mode"))
    return Reading(
        is_on=isinstance(mode, str) and mode in _ON,
        is_brewing=state == "brewing" or machine.get("isBrewing") is True,
        watts=_number(power.get("current", decoded.get("power")), _MOST_WATTS),
        today_kwh=_number(power.get("todayKwh"), _MOST_KWH),
        steam_c=_number(steam.get("current"), 500.0),
        steam_target_c=_number(steam.get("setpoint"), 500.0),
    )


class UsageMeter:
    """Sums up the readings of one machine until they are taken."""

    __slots__ = (
        "_at",
        "_began_at_ms",
        "_counter_kwh",
        "_cycles",
        "_first_at",
        "_first_kwh",
        "_is_drawn",
        "_is_hot",
        "_is_renewed",
        "_kwh_before",
        "_on_s",
        "_reading",
        "_watt_s",
        "day",
        "offset_s",
        "taken_at",
    )

    def __init__(self, now: float, *, now_ms: int, day: int, offset_s: int) -> None:
        self.day = day
        self.offset_s = offset_s
        """How far the machine's clock is ahead of UTC, in s."""
        self.taken_at = now
        """When the usage was last taken (trio time)."""
        self._began_at_ms = now_ms
        self._at = now
        self._reading = Reading()
        self._counter_kwh: float | None = None
        self._first_kwh: float | None = None
        self._first_at = now
        self._is_renewed = False  # whether the counter is from this connection for certain
        self._kwh_before: float | None = None  # when the usage was last taken
        self._on_s = self._watt_s = 0.0
        self._cycles = 0
        self._is_hot = self._is_drawn = False

    @property
    def seen_at(self) -> float:
        """When the last reading came (trio time)."""
        return self._at

    def add(self, reading: Reading, now: float) -> None:
        """Add a reading. The one before held until now, or for 45 s at most."""
        before, held_s = self._reading, min(max(0.0, now - self._at), LONGEST_S)
        if before.is_on:
            self._on_s += held_s
        if before.watts is not None:
            self._watt_s += before.watts * held_s
        self._follow_steam(before, reading)
        if reading.today_kwh is not None:
            if self._first_kwh is None:
                self._first_kwh, self._first_at = reading.today_kwh, now
            is_other = reading.today_kwh != self._first_kwh
            self._is_renewed = self._is_renewed or is_other or now - self._first_at >= RENEWED_S
            self._counter_kwh = reading.today_kwh
        self._reading, self._at = reading, now

    def _follow_steam(self, before: Reading, reading: Reading) -> None:
        """Count a cycle when the temperature of a hot steam boiler falls, until it is hot again."""
        now_c, target_c = reading.steam_c, reading.steam_target_c
        if not reading.is_on or now_c is None or target_c is None or target_c != before.steam_target_c:
            self._is_hot = self._is_drawn = False
        elif now_c >= target_c - _AT_TARGET_C:
            self._is_hot, self._is_drawn = True, False
        elif reading.is_brewing:
            self._is_hot = False  # machines with one boiler brew with the same water
        elif self._is_hot and not self._is_drawn and now_c <= target_c - _DRAWN_C:
            self._cycles += 1
            self._is_drawn = True

    def take(self, device_id: str, *, now_ms: int, is_last: bool = False) -> Usage | None:
        """Return the usage since the last time, and begin at 0. None if there is nothing worth a row.

        `is_last` takes small parts too.
        """
        watt_s = self._watt_s if self._counter_kwh is None else 0.0
        counter_kwh = self._counter_kwh if self._is_renewed else None
        counted = counter_kwh is not None and (
            self._kwh_before is None or abs(counter_kwh - self._kwh_before) >= (0.0005 if is_last else 0.01)
        )
        usage = None
        if self._on_s >= 1.0 or self._cycles or counted or watt_s >= (360.0 if is_last else 36_000.0):
            usage = Usage(
                device_id=device_id,
                day=self.day,
                began_at_ms=self._began_at_ms,
                at_ms=now_ms,
                on_s=round(self._on_s),
                steam_cycles=self._cycles,
                energy_mwh=round(watt_s / 3.6),
                counter_mwh=None if counter_kwh is None else round(counter_kwh * 1_000_000),
            )
            self._kwh_before = counter_kwh
            self._on_s = self._watt_s = 0.0
            self._cycles = 0
        self._began_at_ms = now_ms
        return usage


def decode_field(value: bytes) -> Any:
    """Decode a group in JSON or MessagePack, or a text or a number in JSON; None for anything else.

    Only the old, flat states have texts and numbers, in JSON.
    """
    is_json = value[:1] in (b"{", b'"', b" ") or value[:1].isdigit()
    try:
        return (msgspec.json.decode if is_json else msgspec.msgpack.decode)(value)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError, ValueError):
        return None


def _group(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, dict) else {}


def _number(value: object, most: float) -> float | None:
    if type(value) is not float and type(value) is not int:
        return None
    return float(value) if math.isfinite(value) and 0 <= value <= most else None

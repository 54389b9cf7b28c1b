"""Which part of a changing state to send: all of it, the changes, or nothing. No I/O."""

import math
from collections.abc import Collection, Mapping
from types import MappingProxyType
from typing import Any, Final

import msgspec

FULL_EVERY_S: Final = 300.0
KEEPALIVE_S: Final = 30.0

#: The smallest change of a number that causes a message, by its path in the state and in its unit. Every
#: change of another number, and of any other value, causes a message.
THRESHOLDS: Final[Mapping[str, float]] = MappingProxyType(
    {
        "temps.brew.current": 0.5,  # °C
        "temps.steam.current": 0.5,
        "temps.group": 0.5,
        "pressure": 0.1,  # bar
        "power.current": 10.0,  # W
        "power.voltage": math.inf,  # is sent with the power
        "scale.weight": 0.5,  # g
        "scale.flowRate": 0.1,  # ml/s
        "wifi.rssi": 10.0,  # dB
    }
)

#: Groups, and fields of groups, that only a full status contains.
FULL_ONLY: Final = frozenset(
    {
        "esp32",
        "mqtt",
        "pico",
        "power.maxCurrent",
        "power.meter",
        "power.todayKwh",
        "power.totalKwh",
        "scale.bbw",
        "stats",
    }
)

#: Fields whose change causes a full status.
FULL_WHEN_CHANGED: Final = ("machine.state",)

_ROUNDING: Final = 1e-9  # 9.1 - 9.0 is slightly less than 0.1


class Deltas:
    """Decides which message to send for the current state, by comparison with the sent state.

    Small changes accumulate until they exceed their threshold. A changed group is sent as a whole, without
    the fields that only a full status has. `seq` counts the sent messages of all connections.

    `thresholds` and `full_only` replace the default ones: `{**THRESHOLDS, "tank.level_ml": 50.0}` adds one. A
    threshold of infinity is for a field that never causes a message.

    `bytes_sent` is the size of all messages, packed as MessagePack, and `bytes_saved` the difference to
    sending a full status each time; it uses the size of the last full status.
    """

    def __init__(
        self,
        *,
        thresholds: Mapping[str, float] = THRESHOLDS,
        full_only: Collection[str] = FULL_ONLY,
        full_when_changed: Collection[str] = FULL_WHEN_CHANGED,
        # Times
        full_every_s: float = FULL_EVERY_S,
        keepalive_s: float = KEEPALIVE_S,
    ) -> None:
        self.seq = 0
        self.bytes_sent = 0
        self.bytes_saved = 0
        self._thresholds = thresholds
        self._full_only = frozenset(full_only)
        self._full_when_changed = tuple(full_when_changed)
        self._full_every_s = full_every_s
        self._keepalive_s = keepalive_s
        self._sent: dict[str, Any] | None = None
        self._sent_at_s = 0.0
        self._full_at_s = 0.0
        self._full_bytes = 0

    def begin(self) -> None:
        """Make the next message a full one, as for a new connection or a request for the state."""
        self._sent = None

    def next(
        self,
        state: Mapping[str, Any],
        *,
        now_s: float,
        occasional: Mapping[str, Any] | None = None,
    ) -> dict[str, Any] | None:
        """Return the message to send now, if any: a `status`, a `status_delta`, or a `keepalive`.

        `occasional` are groups for the full status that is due every 5 min (statistics, for example). `now_s`
        is the time of any monotonic clock.
        """
        before = self._sent
        content: dict[str, Any]
        if before is None or self._needs_full(before, state):
            content = {"type": "status", "seq": self.seq + 1, **state}
        elif now_s - self._full_at_s >= self._full_every_s:
            content = {"type": "status", "seq": self.seq + 1, **state, **(occasional or {})}
        elif changed := self.changed_groups(before, state):
            content = {"type": "status_delta", "seq": self.seq + 1, **changed}
        elif now_s - self._sent_at_s >= self._keepalive_s:
            content = {"type": "keepalive", "seq": self.seq + 1}
        else:
            self.bytes_saved += self._full_bytes
            return None
        size_bytes = len(msgspec.msgpack.encode(content))
        if content["type"] == "status":
            self._sent, self._full_at_s, self._full_bytes = _copied(state), now_s, size_bytes
        elif content["type"] == "status_delta":
            # Compare with the sent values only.
            self._sent = (before or {}) | {
                group: _copied(state[group]) for group in content if group in state
            }
        self.bytes_sent += size_bytes
        self.bytes_saved += self._full_bytes - size_bytes
        self._sent_at_s = now_s
        self.seq += 1
        return content

    def changed_groups(self, before: Mapping[str, Any], after: Mapping[str, Any]) -> dict[str, Any]:
        """Return the groups that have changed enough to be sent, as a `status_delta` contains them."""
        changed: dict[str, Any] = {}
        for group, new in after.items():
            old = before.get(group, _NOTHING)
            if old != new and group not in self._full_only and self._has_changed(group, old, new):
                changed[group] = self._for_a_delta(group, new)
        return changed

    def _for_a_delta(self, group: str, value: Any) -> Any:
        if not isinstance(value, Mapping):
            return value
        return {key: item for key, item in value.items() if f"{group}.{key}" not in self._full_only}

    def _has_changed(self, path: str, old: Any, new: Any) -> bool:
        """Tell whether the value at `path` has changed enough to be sent."""
        if path in self._full_only:
            return False
        if isinstance(old, Mapping) and isinstance(new, Mapping):
            return any(
                self._has_changed(f"{path}.{key}", old.get(key, _NOTHING), value)
                for key, value in new.items()
            )
        if _is_number(old) and _is_number(new) and (least := self._thresholds.get(path)) is not None:
            return bool(abs(new - old) >= least * (1 - _ROUNDING))
        return bool(old != new)

    def _needs_full(self, before: Mapping[str, Any], after: Mapping[str, Any]) -> bool:
        """Tell whether a change needs a full status."""
        if before == after:  # the usual case
            return False
        if any(_look_up(before, path) != _look_up(after, path) for path in self._full_when_changed):
            return True
        return self._has_lost("", before, after)

    def _has_lost(self, path: str, before: Mapping[str, Any], after: Mapping[str, Any]) -> bool:
        """Tell whether a field is missing: a delta can only add and replace fields."""
        for key, old in before.items():
            new = after.get(key, _NOTHING)
            if old == new or (here := f"{path}{key}") in self._full_only:
                continue
            if new is _NOTHING:
                return True
            if isinstance(old, Mapping) and isinstance(new, Mapping) and self._has_lost(f"{here}.", old, new):
                return True
        return False


_NOTHING: Final = object()


def _look_up(state: Mapping[str, Any], path: str) -> Any:
    found: Any = state
    for key in path.split("."):
        if not isinstance(found, Mapping) or key not in found:
            return _NOTHING
        found = found[key]
    return found


def _copied(value: Any) -> Any:
    """Copy mutable values: the caller may change them later."""
    if isinstance(value, Mapping):
        return {key: _copied(item) for key, item in value.items()}
    return [_copied(item) for item in value] if isinstance(value, list) else value


def _is_number(value: Any) -> bool:
    """Tell whether a threshold applies to a value. NaN is a number here: it never exceeds a threshold."""
    return isinstance(value, int | float) and not isinstance(value, bool)

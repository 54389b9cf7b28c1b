"""What is worth sending of a state that keeps changing: everything, what changed, or nothing. No I/O."""

import math
from collections.abc import Collection, Mapping
from types import MappingProxyType
from typing import Any, Final

import msgspec

FULL_EVERY_S: Final = 300.0
KEEPALIVE_S: Final = 30.0

#: The least change of a number that is worth a message, by its path in the state, in the unit that it has
#: there. Of a number that is not listed, and of everything that is no number, every change is.
THRESHOLDS: Final[Mapping[str, float]] = MappingProxyType(
    {
        "temps.brew.current": 0.5,  # °C
        "temps.steam.current": 0.5,
        "temps.group": 0.5,
        "pressure": 0.1,  # bar
        "power.current": 10.0,  # W
        "power.voltage": math.inf,  # goes along with the power
        "scale.weight": 0.5,  # g
        "scale.flowRate": 0.1,  # ml/s
        "wifi.rssi": 10.0,  # dB
    }
)

#: Groups, and fields of groups, that only a full status has.
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

#: What decides that a full status is due as soon as it changes.
FULL_WHEN_CHANGED: Final = ("machine.state",)

_ROUNDING: Final = 1e-9  # 9.1 - 9.0 is a little less than 0.1


class Deltas:
    """Decides, each time that it is given the whole state, what is worth sending, against what was sent last.

    Small changes add up until they are worth a message. A group that has changed enough goes as a whole, but
    for what only a full status has. `seq` counts what was sent, over all connections.

    `thresholds` and `full_only` replace the usual ones: `{**THRESHOLDS, "tank.level_ml": 50.0}` adds one,
    and a threshold of infinity is for what is never worth a message of its own.

    `bytes_sent` is the size of all that was worth sending, packed as MessagePack, and `bytes_saved` what was
    saved compared with sending everything every time; it goes by the size of the last full status.
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
        """Begin anew, as on a new connection or when somebody asks for everything: the next one is full."""
        self._sent = None

    def next(
        self,
        state: Mapping[str, Any],
        *,
        now_s: float,
        occasional: Mapping[str, Any] | None = None,
    ) -> dict[str, Any] | None:
        """Give the message to send now, if any: a `status`, a `status_delta`, or a `keepalive`.

        `occasional` are groups for the full status that is due every 5 min (statistics, say). `now_s` is any
        clock that only goes forward.
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
            # Only what was sent counts.
            self._sent = (before or {}) | {
                group: _copied(state[group]) for group in content if group in state
            }
        self.bytes_sent += size_bytes
        self.bytes_saved += self._full_bytes - size_bytes
        self._sent_at_s = now_s
        self.seq += 1
        return content

    def changed_groups(self, before: Mapping[str, Any], after: Mapping[str, Any]) -> dict[str, Any]:
        """Give the groups that have changed enough to be sent, each as it goes into a `status_delta`."""
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
        """Say whether what is at `path` has changed enough to be sent."""
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
        """Say whether something changed that a delta cannot tell, or that goes with all the rest."""
        if before == after:  # most of the time
            return False
        if any(_look_up(before, path) != _look_up(after, path) for path in self._full_when_changed):
            return True
        return self._has_lost("", before, after)

    def _has_lost(self, path: str, before: Mapping[str, Any], after: Mapping[str, Any]) -> bool:
        """Say whether something is not there any more: a delta can only add and replace."""
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
    """Copy what may be changed in its place: whoever calls may go on using it."""
    if isinstance(value, Mapping):
        return {key: _copied(item) for key, item in value.items()}
    return [_copied(item) for item in value] if isinstance(value, list) else value


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)

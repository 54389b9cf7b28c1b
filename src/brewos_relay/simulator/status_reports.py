"""Which part of its state firmware sends, and when: full, the changes, or a keepalive. No I/O."""

from typing import Any, Final

FULL_EVERY_S: Final = 300.0
KEEPALIVE_S: Final = 30.0

_ROUNDING: Final = 1e-9  # 9.1 - 9.0 is slightly less than 0.1
_TEMP_C: Final = 0.5 - _ROUNDING
_PRESSURE_BAR: Final = 0.1 - _ROUNDING
_POWER_W: Final = 10.0
_WEIGHT_G: Final = 0.5 - _ROUNDING
_FLOW_G_PER_S: Final = 0.1 - _ROUNDING
_RSSI_DB: Final = 10


class StatusReports:
    """Decides at each tick which message to send, by comparison with the sent state.

    One object covers all connections of a boot: only the first report after booting is forced to be full.
    `seq` counts the sent messages.
    """

    __slots__ = ("_full_at_s", "_sent", "_sent_at_s", "seq")

    def __init__(self) -> None:
        self.seq = 0
        self._sent: dict[str, Any] | None = None
        self._sent_at_s = 0.0
        self._full_at_s = 0.0

    def begin(self) -> None:
        """Make the next report a full one. Firmware does this only when it boots."""
        self._sent = None

    @property
    def due_s(self) -> float:
        """When a report is due without a change, on the clock of `next`."""
        if self._sent is None:
            return 0.0
        return min(self._sent_at_s + KEEPALIVE_S, self._full_at_s + FULL_EVERY_S)

    def next(
        self, status: dict[str, Any], stats: dict[str, Any], *, now_s: float, uptime_s: float
    ) -> dict[str, Any] | None:
        """Return the message to send now, if any; `now_s` is the time of any monotonic clock."""
        before = self._sent
        content: dict[str, Any]
        if before is None or before["machine"]["state"] != status["machine"]["state"]:
            content = {"type": "status", **status}
        elif now_s - self._full_at_s >= FULL_EVERY_S:
            content = {"type": "status", **status, "stats": stats}
        elif changed := changed_groups(before, status):
            content = {"type": "status_delta", **changed}
        elif now_s - self._sent_at_s >= KEEPALIVE_S:
            content = {"type": "keepalive", "uptime": int(uptime_s * 1000) % 2**31}
        else:
            return None
        if content["type"] == "status":
            self._sent, self._full_at_s = status, now_s
        else:
            # Compare with the sent values only: small changes accumulate.
            self._sent = (before or {}) | {group: status[group] for group in content if group in status}
        self._sent_at_s = now_s
        self.seq += 1
        return {"type": content.pop("type"), "seq": self.seq, **content}


def changed_groups(before: dict[str, Any], after: dict[str, Any]) -> dict[str, Any]:
    """Return the groups of a status that have changed enough to be sent, as a delta contains them."""
    changed: dict[str, Any] = {}
    if before["machine"] != after["machine"]:
        changed["machine"] = after["machine"]
    if _temps_changed(before["temps"], after["temps"]):
        changed["temps"] = after["temps"]
    if abs(before["pressure"] - after["pressure"]) >= _PRESSURE_BAR:
        changed["pressure"] = after["pressure"]
    if abs(before["power"]["current"] - after["power"]["current"]) >= _POWER_W:
        changed["power"] = {key: after["power"][key] for key in ("current", "voltage")}
    for group in ("cleaning", "water"):
        if before[group] != after[group]:
            changed[group] = after[group]
    if _scale_changed(before["scale"], after["scale"]):
        changed["scale"] = {key: after["scale"][key] for key in ("connected", "weight", "flowRate")}
    if before["connections"] != after["connections"]:
        changed["connections"] = after["connections"]
    old, new = before["wifi"], after["wifi"]
    if abs(old["rssi"] - new["rssi"]) >= _RSSI_DB or old["ip"] != new["ip"]:
        changed["wifi"] = new
    if "shot" in after and (after["shot"]["active"] or before["shot"]["active"]):
        changed["shot"] = after["shot"]
    return changed


def _temps_changed(old: dict[str, Any], new: dict[str, Any]) -> bool:
    return (
        any(
            abs(old[boiler]["current"] - new[boiler]["current"]) >= _TEMP_C
            or old[boiler]["setpoint"] != new[boiler]["setpoint"]
            for boiler in ("brew", "steam")
        )
        or abs(old["group"] - new["group"]) >= _TEMP_C
    )


def _scale_changed(old: dict[str, Any], new: dict[str, Any]) -> bool:
    return bool(
        old["connected"] != new["connected"]
        or abs(old["weight"] - new["weight"]) >= _WEIGHT_G
        or abs(old["flowRate"] - new["flowRate"]) >= _FLOW_G_PER_S
    )

"""Messages as lines of text or JSON. No I/O."""

from datetime import datetime
from typing import Any, Final

import msgspec

from brewos_relay.client.codec import decode, is_number
from brewos_relay.messages import Message
from brewos_relay.texts import one_line

_REST_CHARS: Final = 120  # the longest text of a message of unknown type


def format_line(message: Message, at: datetime) -> str:
    """Format a message as a line with the time."""
    content = decode(message)
    return f"{at:%H:%M:%S}  {describe(content) if content is not None else repr(message)}"


def format_json(message: Message) -> str:
    """Format a message as one line of JSON."""
    content = decode(message)
    if content is None:
        content = {"undecodable": True, "bytes": len(message.payload)}
    # `str` for MessagePack values without a JSON form, such as a map with keys of several types.
    return msgspec.json.encode(content, enc_hook=str).decode()


def describe(content: dict[str, Any]) -> str:
    """Describe a message in one line: its type and its main values."""
    kind = content.get("type")
    if kind == "connected":
        text = f"attached to {content.get('deviceId')}; the device is {_online(content.get('deviceOnline'))}"
    elif kind == "device_online":
        text = "the device has connected"
    elif kind == "device_offline":
        text = "the device has disconnected"
    elif kind == "device_status":
        text = (
            f"the device is {_online(content.get('online'))}, last seen {content.get('lastSeen') or 'never'}"
        )
    elif kind in ("status", "status_delta"):
        text = _state(content)
    elif kind == "keepalive":
        uptime_ms = content.get("uptime")
        text = f"up {uptime_ms / 1000:.0f} s" if is_number(uptime_ms) else ""
    elif kind == "log":
        text = f"{content.get('level')}: {content.get('message')}"
    elif kind == "error":
        text = f"{content.get('error') or 'error'}: {content.get('message') or ''}"
    elif kind == "device_info":
        text = "  ".join(
            f"{label} {content[key]}"
            for key, label in (
                ("deviceName", "name"),
                ("machineBrand", "brand"),
                ("machineModel", "model"),
                ("firmwareVersion", "firmware"),
                ("brewSetpoint", "brew"),
                ("steamSetpoint", "steam"),
            )
            if key in content
        )
    else:
        text = _rest({key: value for key, value in content.items() if key != "type"})
    return one_line(f"{one_line(str(kind)):<13} {text}")


def _online(value: Any) -> str:
    return "online" if value is True else "offline"


def _state(content: dict[str, Any]) -> str:
    """Pick the state, temperatures, pressure, power and weight from a status or a delta."""
    parts: list[str] = []
    machine = _group(content, "machine")
    if "state" in machine:
        parts.append(f"{machine['state']!s:<7}")
    temps = _group(content, "temps")
    for boiler in ("brew", "steam"):
        group = _group(temps, boiler)
        if is_number(current := group.get("current")):
            setpoint = group.get("setpoint")
            target = f"/{setpoint:.1f}" if is_number(setpoint) else ""
            parts.append(f"{boiler} {current:.1f}{target} °C")
    if is_number(group_c := temps.get("group")):
        parts.append(f"group {group_c:.1f} °C")
    if is_number(pressure := content.get("pressure")):
        parts.append(f"{pressure:.1f} bar")
    if is_number(power := _group(content, "power").get("current")):
        parts.append(f"{power:.0f} W")
    if is_number(weight := _group(content, "scale").get("weight")):
        parts.append(f"{weight:.1f} g")
    return "  ".join(parts) or _rest({key: value for key, value in content.items() if key != "type"})


def _group(content: dict[str, Any], key: str) -> dict[str, Any]:
    value = content.get(key)
    return value if isinstance(value, dict) else {}


def _rest(content: dict[str, Any]) -> str:
    try:
        text = msgspec.json.encode(content).decode()
    except (TypeError, msgspec.MsgspecError, RecursionError):
        text = "(no JSON form)"
    return text if len(text) <= _REST_CHARS else text[:_REST_CHARS] + "…"

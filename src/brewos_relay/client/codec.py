"""Messages as plain values, and plain values as machines send them. No I/O."""

import math
import struct
from contextlib import suppress
from typing import Any, Final, TypeGuard

import msgspec

from brewos_relay.fields import MALFORMED, split
from brewos_relay.messages import Message

_INT32_MAX: Final = 2**31 - 1
_ENDLESS: Final = 1e300


def decode(message: Message) -> dict[str, Any] | None:
    """Decode a message, JSON or MessagePack; None if it is no object (or map).

    The relay passes on what a machine says if its type is readable. A field that has no text as its key, or
    whose value cannot be decoded, is left out.
    """
    codec = msgspec.json if message.is_text else msgspec.msgpack
    try:
        content = codec.decode(message.payload, type=dict[str, Any])
        return {key: _shortened(value) for key, value in content.items()}
    except MALFORMED:
        return _decode_fields(message)


def _decode_fields(message: Message) -> dict[str, Any] | None:
    """Decode a message field by field; None if its type is not among those that can be decoded."""
    codec = msgspec.json if message.is_text else msgspec.msgpack
    content: dict[str, Any] = {}
    with suppress(*MALFORMED):
        for key, raw in split(message.payload, is_text=message.is_text).items():
            with suppress(*MALFORMED):
                if isinstance(key, str):
                    key.encode()  # half a surrogate pair has no form in UTF-8
                    content[key] = _shortened(codec.decode(raw))
    return content if "type" in content else None


def encode_binary(content: dict[str, Any]) -> Message:
    """Encode as machines do: one MessagePack map, its measured values in single precision."""
    return Message(msgspec.msgpack.encode(_packed(content)), is_text=False)


def is_number(value: Any) -> TypeGuard[float]:
    """Say whether this is a number to reckon with."""
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < _ENDLESS


def _shortened(value: Any) -> Any:
    """Give back numbers as the machine meant them: 93.2, not the 93.19999694824219 of its float32."""
    if isinstance(value, float) and abs(value) < 1e7 and math.isfinite(value):
        (single,) = struct.unpack("f", struct.pack("f", value))
        return float(f"{value:.7g}") if single == value else value
    if isinstance(value, dict):
        return {key: _shortened(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_shortened(item) for item in value]
    return value


def _packed(value: Any) -> Any:
    if isinstance(value, float):
        return msgspec.Raw(b"\xca" + struct.pack(">f", value))
    if isinstance(value, dict):
        return {key: _packed(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_packed(item) for item in value]
    if isinstance(value, int) and value > _INT32_MAX:
        return float(value)  # times of day, which machines send in double precision
    return value

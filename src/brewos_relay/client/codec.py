"""Decode messages into plain values, and encode values as firmware does. No I/O."""

import math
import struct
from contextlib import suppress
from typing import Any, Final, TypeGuard

import msgspec

from brewos_relay.messages import Message
from brewos_relay.raw_fields import MALFORMED, split

_INT32_MAX: Final = 2**31 - 1
_ENDLESS: Final = 1e300


def decode(message: Message) -> dict[str, Any] | None:
    """Decode a message, JSON or MessagePack; return None if it is not an object or a map.

    Invalid fields are left out: those with an undecodable value, or with a key that is not a text. Such a
    message is None too if it has no valid `type`.
    """
    codec = msgspec.json if message.is_text else msgspec.msgpack
    try:
        content = codec.decode(message.payload, type=dict[str, Any])
        return {key: _shortened(value) for key, value in content.items()}
    except MALFORMED:
        return _decode_fields(message)


def _decode_fields(message: Message) -> dict[str, Any] | None:
    """Decode each field on its own, and leave the invalid ones out; None if `type` is not left."""
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
    """Encode as firmware does: one MessagePack map, with numbers in single precision."""
    return Message(msgspec.msgpack.encode(_packed(content)), is_text=False)


def is_number(value: Any) -> TypeGuard[float]:
    """Tell whether a value is a finite number, and not a bool."""
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < _ENDLESS


def _shortened(value: Any) -> Any:
    """Round a float32 to the digits that the device meant: 93.2, not 93.19999694824219."""
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
        return float(value)  # times, which firmware sends in double precision
    return value

"""MessagePack as firmware writes it.

Integers are signed with up to 32 bits; larger ones (times) are 64-bit floats. Other numbers are 32-bit
floats. None is left out. Keys keep their order.
"""

import struct
from collections.abc import Callable
from typing import Any, Final

_INT32_MAX: Final = 2**31 - 1
_pack_float: Final = struct.Struct(">Bf").pack
_pack_double: Final = struct.Struct(">Bd").pack
_pack_8: Final = struct.Struct(">Bb").pack
_pack_16: Final = struct.Struct(">Bh").pack
_pack_32: Final = struct.Struct(">Bi").pack


def pack(value: dict[str, Any]) -> bytes:
    """Encode a message."""
    return _map(value)


def _map(value: dict[str, Any]) -> bytes:
    parts = [b""]
    for key, item in value.items():
        if item is not None:
            parts.append(_KEYS.get(key) or _key(key))
            parts.append(_PACKERS[type(item)](item))
    count = len(parts) // 2
    parts[0] = bytes((0x80 | count,)) if count < 16 else b"\xde" + count.to_bytes(2, "big")
    return b"".join(parts)


def _list(value: list[Any]) -> bytes:
    count = len(value)
    head = bytes((0x90 | count,)) if count < 16 else b"\xdc" + count.to_bytes(2, "big")
    return head + b"".join([_PACKERS[type(item)](item) for item in value])


def _int(value: int) -> bytes:
    if -32 <= value < 128:
        return bytes((value & 0xFF,))
    if -128 <= value < 128:
        return _pack_8(0xD0, value)
    if -0x8000 <= value < 0x8000:
        return _pack_16(0xD1, value)
    if -_INT32_MAX <= value <= _INT32_MAX:
        return _pack_32(0xD2, value)
    return _pack_double(0xCB, value)


def _float(value: float) -> bytes:
    return _pack_float(0xCA, value)


def _text(value: str) -> bytes:
    payload = value.encode()
    length = len(payload)
    if length < 32:
        return bytes((0xA0 | length,)) + payload
    return (b"\xd9" + bytes((length,)) if length < 256 else b"\xda" + length.to_bytes(2, "big")) + payload


def _bool(value: bool) -> bytes:
    return b"\xc3" if value else b"\xc2"


def _none(_: None) -> bytes:
    return b"\xc0"


def _key(key: str) -> bytes:
    """Encode a key, and cache it: the same few keys are used all the time."""
    packed = _KEYS[key] = _text(key)
    return packed


_KEYS: Final[dict[str, bytes]] = {}
_PACKERS: Final[dict[type, Callable[[Any], bytes]]] = {
    dict: _map,
    list: _list,
    int: _int,
    float: _float,
    str: _text,
    bool: _bool,
    type(None): _none,
}

"""The bytes of the firmware: its request, its masks, and its MessagePack."""

import random
import struct
from typing import Any, Final

from support.wire_client import NO_MASK, frame

_UNMASKED_FROM_BYTES: Final = 1400
_SIGNED: Final = ((0xD0, ">b", 1 << 7), (0xD1, ">h", 1 << 15), (0xD2, ">i", 1 << 31))


def upgrade_request(device_id: str, key: str, *, port: int, websocket_key: str) -> bytes:
    """Build the request of the firmware, byte for byte."""
    lines = [
        f"GET /ws/device?id={device_id}&key={key} HTTP/1.1",
        f"Host: cloud.example:{port}",
        "Connection: Upgrade",
        "Upgrade: websocket",
        "Sec-WebSocket-Version: 13",
        f"Sec-WebSocket-Key: {websocket_key}",
        "Sec-WebSocket-Protocol: arduino",
        "Origin: file://",
        "User-Agent: arduino-WebSocket-Client",
    ]
    return "\r\n".join([*lines, "", ""]).encode()


def device_frame(opcode: int, payload: bytes, chance: random.Random) -> bytes:
    """Build a frame with the mask of the firmware, which is zero for empty and large payloads."""
    empty_or_large = not payload or len(payload) >= _UNMASKED_FROM_BYTES
    return frame(opcode, payload, mask=NO_MASK if empty_or_large else chance.randbytes(4))


def pack(value: Any) -> bytes:
    """Pack a value: whole numbers as signed ones, fractions in 32 bits; whole numbers beyond 32
    bits (times in ms) become fractions of 64 bits.
    """
    if value is None:
        return b"\xc0"
    if isinstance(value, bool):
        return b"\xc3" if value else b"\xc2"
    if isinstance(value, int):
        return _pack_int(value)
    if isinstance(value, float):
        return b"\xca" + struct.pack(">f", value)
    if isinstance(value, str):
        encoded = value.encode()
        return _head(len(encoded), fix=0xA0, fix_below=32, sizes=((0xD9, ">B"), (0xDA, ">H"))) + encoded
    if isinstance(value, list):
        packed = b"".join(map(pack, value))
        return _head(len(value), fix=0x90, fix_below=16, sizes=((0xDC, ">H"),)) + packed
    assert isinstance(value, dict)
    known = {key: content for key, content in value.items() if content is not None}
    packed = b"".join(pack(key) + pack(content) for key, content in known.items())
    return _head(len(known), fix=0x80, fix_below=16, sizes=((0xDE, ">H"),)) + packed


def _pack_int(value: int) -> bytes:
    if -32 <= value < 128:
        return struct.pack(">b", value)
    for first, form, beyond in _SIGNED:
        if -beyond <= value < beyond:
            return bytes((first,)) + struct.pack(form, value)
    return b"\xcb" + struct.pack(">d", value)


def _head(length: int, *, fix: int, fix_below: int, sizes: tuple[tuple[int, str], ...]) -> bytes:
    if length < fix_below:
        return bytes((fix | length,))
    for first, form in sizes:
        if length < 1 << 8 * struct.calcsize(form):
            return bytes((first,)) + struct.pack(form, length)
    raise ValueError(f"too long for a machine: {length}")

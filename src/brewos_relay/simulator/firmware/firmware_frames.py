"""Frames as machines build and read them (RFC 6455 §5.2). No I/O.

Nothing is ever fragmented, and what is fragmented is not understood. The mask is a random one, but for empty
and for large frames it is zero: the key costs memory where payloads are large.
"""

import random
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

TEXT, BINARY, CLOSE, PING, PONG = 0x1, 0x2, 0x8, 0x9, 0xA

#: The largest message that a machine reads; a larger one makes it close the connection (1009).
MOST_BYTES: Final = 15_360
#: What it sends itself, at most; it drops what is larger.
TEXT_BYTES: Final = 2047
BINARY_BYTES: Final = 2042
#: From here on, header and payload are two writes, and the mask is zero.
LARGE_BYTES: Final = 1400

_FIN: Final = 0x80
_KNOWN: Final = frozenset({0x0, TEXT, BINARY, CLOSE, PING, PONG})
_MASKED: Final = 0x80
_NO_MASK: Final = b"\0\0\0\0"


class UnreadableFrame(Exception):
    """What came ends the connection; `code` is what a machine closes it with."""

    def __init__(self, code: int) -> None:
        self.code = code
        super().__init__(f"closed by the machine with code {code}")


@dataclass(frozen=True, slots=True)
class Frame:
    """A frame as it came; `whole` is false for a fragment."""

    opcode: int
    payload: bytes
    whole: bool = True


def build(opcode: int, payload: bytes, *, chance: random.Random, always_masked: bool = False) -> list[bytes]:
    """Build a frame, as the writes in which it leaves.

    `always_masked` gives large frames a random mask too, and one write, as other libraries do.
    """
    length = len(payload)
    large = length >= LARGE_BYTES and not always_masked
    mask = chance.randbytes(4) if payload and not large else _NO_MASK
    if length <= 125:
        head = bytes((_FIN | opcode, _MASKED | length)) + mask
    else:
        head = bytes((_FIN | opcode, _MASKED | 126)) + length.to_bytes(2, "big") + mask
    if large:
        return [head, payload]
    if not payload:
        return [head]
    key = int.from_bytes((mask * (length // 4 + 1))[:length], "big")
    return [head + (int.from_bytes(payload, "big") ^ key).to_bytes(length, "big")]


def close_payload(code: int) -> bytes:
    """Give the payload of a close frame: machines give no reason."""
    return code.to_bytes(2, "big")


class FrameReader:
    """Takes bytes as they come, and gives the frames that are complete."""

    __slots__ = ("_data",)

    def __init__(self) -> None:
        self._data = bytearray()

    @property
    def waiting(self) -> bool:
        """Whether a frame has begun to arrive."""
        return bool(self._data)

    def feed(self, data: bytes | bytearray, take: Callable[[Frame], None]) -> None:
        """Hand on every frame that is complete now; raises Unreadable at the first that is too much."""
        received = self._data
        received += data
        at = 0
        try:
            while len(received) - at >= 2:
                first, second = received[at], received[at + 1]
                start = at + 2
                length = second & 0x7F
                if length >= 126:
                    size = 2 if length == 126 else 8
                    if len(received) < start + size:
                        break
                    length = int.from_bytes(received[start : start + size], "big")
                    start += size
                if first & 0x0F not in _KNOWN:
                    raise UnreadableFrame(1002)
                if length > MOST_BYTES:
                    raise UnreadableFrame(1009)
                mask = b""
                if second & _MASKED:
                    mask = bytes(received[start : start + 4])
                    start += 4
                if len(received) < start + length:
                    break
                payload = bytes(received[start : start + length])
                if mask:
                    payload = bytes(byte ^ mask[i & 3] for i, byte in enumerate(payload))
                at = start + length
                opcode = first & 0x0F
                take(Frame(opcode, payload, whole=bool(first & _FIN) and opcode != 0))
        finally:
            del received[:at]

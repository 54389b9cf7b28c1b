"""WebSocket frames as firmware builds and reads them (RFC 6455 §5.2). No I/O.

Firmware neither sends nor understands fragments. Its masks are random, but zero for empty and for large
frames, to save memory.
"""

import random
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

TEXT, BINARY, CLOSE, PING, PONG = 0x1, 0x2, 0x8, 0x9, 0xA

#: The largest message that firmware reads; it closes the connection at a larger one (1009).
MOST_BYTES: Final = 15_360
#: The largest messages that it sends; it drops larger ones.
TEXT_BYTES: Final = 2047
BINARY_BYTES: Final = 2042
#: From this length on, header and payload are two writes, and the mask is zero.
LARGE_BYTES: Final = 1400

_FIN: Final = 0x80
_KNOWN: Final = frozenset({0x0, TEXT, BINARY, CLOSE, PING, PONG})
_MASKED: Final = 0x80
_NO_MASK: Final = b"\0\0\0\0"


class UnreadableFrame(Exception):
    """A frame that ends the connection; `code` is the close code of the firmware."""

    def __init__(self, code: int) -> None:
        self.code = code
        super().__init__(f"closed by the machine with code {code}")


@dataclass(frozen=True, slots=True)
class Frame:
    """A received frame; `whole` is false for a fragment."""

    opcode: int
    payload: bytes
    whole: bool = True


def build(opcode: int, payload: bytes, *, rng: random.Random, always_masked: bool = False) -> list[bytes]:
    """Build a frame, as a list of writes.

    `always_masked` gives large frames a random mask too, in one write, as other libraries do.
    """
    length = len(payload)
    large = length >= LARGE_BYTES and not always_masked
    mask = rng.randbytes(4) if payload and not large else _NO_MASK
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
    """Return the payload of a close frame; firmware gives no reason."""
    return code.to_bytes(2, "big")


class FrameReader:
    """Splits received bytes into frames."""

    __slots__ = ("_data",)

    def __init__(self) -> None:
        self._data = bytearray()

    @property
    def waiting(self) -> bool:
        """Whether an incomplete frame has arrived."""
        return bool(self._data)

    def feed(self, data: bytes | bytearray, take: Callable[[Frame], None]) -> None:
        """Add received bytes, and call `take` with each frame that they complete.

        An incomplete frame waits for the next call. Raises UnreadableFrame at the first frame that firmware
        cannot read, after the frames before it.
        """
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

"""Frames as a client sends them, right or wrong, and a strict reader for those of a server."""

import struct
from typing import NamedTuple

from brewos_relay.messages import Message
from brewos_relay.wire.frames import FrameParser, Parsed, StreamEnd

CONTINUATION, TEXT, BINARY, CLOSE, PING, PONG = 0x0, 0x1, 0x2, 0x8, 0x9, 0xA

MASK = b"\x5a\xa5\x0f\xf1"


class ServerFrame(NamedTuple):
    opcode: int
    payload: bytes


def masked(payload: bytes, mask: bytes) -> bytes:
    """Apply a mask, octet by octet, as RFC 6455 §5.3 says it."""
    return bytes(octet ^ mask[i % 4] for i, octet in enumerate(payload))


def client_frame(
    opcode: int,
    payload: bytes = b"",
    *,
    fin: bool = True,
    reserved: int = 0,
    mask: bytes | None = MASK,
    length_form: int | None = None,
) -> bytes:
    """Build a frame; `length_form` (7, 16 or 64 bits) is the shortest that does, unless given."""
    length = len(payload)
    if length_form is None:
        length_form = 7 if length <= 125 else 16 if length <= 0xFFFF else 64
    first = (0x80 if fin else 0) | reserved << 4 | opcode
    mask_bit = 0x80 if mask is not None else 0
    if length_form == 7:
        head = bytes((first, mask_bit | length))
    elif length_form == 16:
        head = struct.pack(">BBH", first, mask_bit | 126, length)
    else:
        head = struct.pack(">BBQ", first, mask_bit | 127, length)
    return head + (payload if mask is None else mask + masked(payload, mask))


def close_frame(code: int, reason: bytes = b"") -> bytes:
    """Build a client's close frame; the code may be any number of 16 bits."""
    return client_frame(CLOSE, code.to_bytes(2, "big") + reason)


def read_server_frames(data: bytes) -> list[ServerFrame]:
    """Take a server's bytes apart; fail unless they are whole, final, unmasked frames of minimal length."""
    frames = []
    start = 0
    while start < len(data):
        first, length = data[start], data[start + 1]
        assert first & 0xF0 == 0x80, f"neither fragmented nor with reserved bits, got {first:#x}"
        start += 2
        if length == 126:
            (length,) = struct.unpack_from(">H", data, start)
            start += 2
            assert length > 125, "length of two octets for a short payload"
        elif length == 127:
            (length,) = struct.unpack_from(">Q", data, start)
            start += 8
            assert length > 0xFFFF, "length of eight octets for a short payload"
        assert length < 1 << 63, "a server must not mask"
        payload = data[start : start + length]
        assert len(payload) == length, f"a frame of {length} bytes ends after {len(payload)}"
        start += length
        frames.append(ServerFrame(first & 0x0F, payload))
    return frames


def read_close(frame: ServerFrame) -> tuple[int | None, str]:
    """Give the code (None if there is none) and the reason of a close frame."""
    assert frame.opcode == CLOSE, f"not a close frame: {frame}"
    if not frame.payload:
        return None, ""
    return int.from_bytes(frame.payload[:2], "big"), frame.payload[2:].decode()


class CollectingParser:
    """A FrameParser that collects its results."""

    def __init__(self, *, max_message_bytes: int, skip_oversize: bool = False) -> None:
        self.parser = FrameParser(max_message_bytes=max_message_bytes, skip_oversize=skip_oversize)
        self.pings: list[bytes] = []
        self.has_pong = False
        self.oversized = 0
        self.incomplete = False
        self.ending: StreamEnd | None = None

    def feed(self, data: bytes) -> list[Message]:
        """Feed the parser; return the messages that are complete now."""
        parsed = self.parser.feed(data)
        if not isinstance(parsed, Parsed):
            return parsed
        self.pings += parsed.pings
        self.has_pong |= parsed.has_pong
        self.oversized += parsed.oversized
        self.incomplete = parsed.incomplete
        assert self.ending is None or parsed.ending is None, "a stream ends once"
        self.ending = self.ending or parsed.ending
        return parsed.messages

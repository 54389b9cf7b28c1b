"""RFC 6455 frames of a server: bytes to messages, and messages to bytes. No I/O.

The parser takes every complete frame of a read in one pass. It unmasks payloads, joins fragments and checks
that text is UTF-8. It never holds more than one message of the allowed size.
"""

import codecs
import struct
from collections.abc import Callable, Iterable
from typing import Final, final

from brewos_relay.delivery import Delivery
from brewos_relay.errors import CloseCode
from brewos_relay.messages import Message

CONTINUATION: Final = 0x0
TEXT: Final = 0x1
BINARY: Final = 0x2
CLOSE: Final = 0x8
PING: Final = 0x9
PONG: Final = 0xA

_FIN: Final = 0x80
_RSV: Final = 0x70
_MASKED: Final = 0x80
_MAX_CONTROL_BYTES: Final = 125
_MAX_REASON_BYTES: Final = _MAX_CONTROL_BYTES - 2
_SMALL_FRAGMENT_BYTES: Final = 64

_NewUtf8Decoder = codecs.getincrementaldecoder("utf-8")
# A compiled module reads a constant faster than another variable or an imported class.
_int_from_bytes: Final = int.from_bytes
_medium_header: Final = struct.Struct(">BBH").pack
_large_header: Final = struct.Struct(">BBQ").pack
_new_message: Final[Callable[..., Message]] = Message


class StreamEnd:
    """Why a stream of frames ended: the peer's close frame, or a violation of the protocol.

    `code` is None for a close frame without a code.
    """

    __slots__ = ("by_peer", "code", "reason")

    def __init__(self, code: int | None, reason: str, *, by_peer: bool) -> None:
        self.code = code
        self.reason = reason
        self.by_peer = by_peer

    def __repr__(self) -> str:
        return f"StreamEnd({self.code}, {self.reason!r}, by_peer={self.by_peer})"


@final
class Parsed:
    """The result of a read that brought more than whole messages."""

    __slots__ = (
        "ending",
        "has_control",
        "has_pong",
        "incomplete",
        "messages",
        "oversized",
        "pings",
        "skipped_bytes",
        "small",
    )

    def __init__(self, messages: list[Message]) -> None:
        self.messages = messages
        """The messages that are complete, in order."""
        self.pings: list[bytes] = []
        """Payloads of pings, which have to be answered."""
        self.has_pong = False
        self.has_control = False
        """Whether a control frame has come, which is a sign of life."""
        self.small = 0
        """How many control frames and small fragments have come. They cost much for their size."""
        self.oversized = 0
        """How many messages were too large, and are skipped."""
        self.skipped_bytes = 0
        """How many bytes of such messages were skipped."""
        self.incomplete = False
        """Whether a message has begun that is not complete."""
        self.ending: StreamEnd | None = None
        """Why the stream is over, if this read ended it."""


class FrameParser:
    """Parses the frames of one client.

    With `skip_oversize`, a message of more than `max_message_bytes` is skipped; without it, the message ends
    the stream with 1009.
    """

    __slots__ = (
        "_discarding",
        "_ended",
        "_fragments",
        "_fragments_are_text",
        "_fragments_bytes",
        "_is_midway",
        "_max_message_bytes",
        "_need_bytes",
        "_partial",
        "_skip_bytes",
        "_skip_oversize",
        "_utf8",
    )

    def __init__(self, *, max_message_bytes: int, skip_oversize: bool = False) -> None:
        self._max_message_bytes = max_message_bytes
        self._skip_oversize = skip_oversize
        self._is_midway = False  # the last read ended inside a message, or ended the stream
        self._ended = False
        self._partial: bytearray | None = None  # the first bytes of a frame
        self._need_bytes = 0  # how many bytes of it have to be there before it is parsed again
        self._skip_bytes = 0  # how many bytes are still to be skipped
        self._fragments: bytearray | None = None  # of a message that has begun
        self._fragments_bytes = 0
        self._fragments_are_text = False
        self._discarding = False  # the message that has begun is too large, and is skipped
        self._utf8: codecs.IncrementalDecoder | None = None

    def feed(self, data: bytes) -> list[Message] | Parsed:
        """Take bytes from the wire.

        Return the list of messages if the bytes are whole messages only, otherwise a `Parsed`. After the end
        of the stream, all bytes are ignored.
        """
        messages: list[Message] = []
        parsed: Parsed | None = None
        if self._is_midway:
            parsed = Parsed(messages)
            data = self._resume(data, parsed)
        start, end = 0, len(data)
        while start < end:
            # A whole text or binary message in one frame, as nearly all are.
            if end - start >= 8 and self._fragments is None:
                first, second = data[start], data[start + 1]
                if (first == 0x82 or first == 0x81) and 0x80 <= second <= 0xFE:
                    if second < 0xFE:
                        length = second - 0x80
                        body = start + 6
                    else:
                        length = data[start + 2] << 8 | data[start + 3]
                        body = start + 8
                    stop = body + length
                    if stop <= end and length <= self._max_message_bytes and (length > 125 or second < 0xFE):
                        payload = unmask(data[body:stop], data[body - 4 : body])
                        if first == 0x82:
                            messages.append(_new_message(payload, False))
                            start = stop
                            continue
                        if payload.isascii() or _is_utf8(payload):
                            messages.append(_new_message(payload))
                            start = stop
                            continue
            if parsed is None:
                parsed = Parsed(messages)
            start = self._take_frame(data, start, parsed)
        if parsed is None:
            return messages
        parsed.incomplete = not self._ended and (
            self._partial is not None or self._skip_bytes > 0 or self._fragments is not None
        )
        self._is_midway = parsed.incomplete or self._ended
        return parsed

    def _resume(self, data: bytes, parsed: Parsed) -> bytes:
        """Prepend the bytes of earlier reads; return the bytes to parse."""
        if self._ended:
            return b""
        if self._skip_bytes:
            parsed.skipped_bytes += min(self._skip_bytes, len(data))
            data, self._skip_bytes = data[self._skip_bytes :], max(0, self._skip_bytes - len(data))
        if self._partial is not None:
            self._partial += data
            if len(self._partial) < self._need_bytes:
                return b""
            data = bytes(self._partial)
            self._partial = None
        return data

    def _take_frame(self, data: bytes, start: int, parsed: Parsed) -> int:
        """Take any frame, whole or not, that begins at `start`; return where the next one begins."""
        end = len(data)
        available = end - start
        if available < 2:
            return self._wait_for(2, data, start)
        first, second = data[start], data[start + 1]
        problem = self._problem_with(first, second)
        if problem is not None:
            return self._fail(parsed, CloseCode.PROTOCOL_ERROR, problem, end)
        length = second & 0x7F
        body = start + 6
        if length > _MAX_CONTROL_BYTES:
            extended = 2 if length == 126 else 8
            if available < 2 + extended:
                return self._wait_for(2 + extended, data, start)
            length = _int_from_bytes(data[start + 2 : start + 2 + extended], "big")
            body += extended
            if length >> 63 or length <= (_MAX_CONTROL_BYTES if extended == 2 else 0xFFFF):
                return self._fail(parsed, CloseCode.PROTOCOL_ERROR, "frame length not well encoded", end)
        stop = body + length
        is_control = first & 0x08 != 0
        if not is_control and self._fragments_bytes + length > self._max_message_bytes:
            if not self._skip_oversize:
                return self._fail(parsed, CloseCode.MESSAGE_TOO_BIG, "message too big", end)
            self._skip_message(first, parsed)
            parsed.skipped_bytes += min(stop, end) - start
            self._skip_bytes = max(0, stop - end)
        elif stop > end:
            return self._wait_for(stop - start, data, start)
        elif is_control:
            self._take_control(first, unmask(data[body:stop], data[body - 4 : body]), parsed)
        else:
            self._take_fragment(first, unmask(data[body:stop], data[body - 4 : body]), parsed)
        return end if self._ended else stop

    def _wait_for(self, need_bytes: int, data: bytes, start: int) -> int:
        self._need_bytes = need_bytes
        self._partial = bytearray(data[start:])
        return len(data)

    def _fail(self, parsed: Parsed, code: CloseCode, reason: str, end: int) -> int:
        """End the stream; return `end`, which stops the parsing."""
        self._end(parsed, StreamEnd(code, reason, by_peer=False))
        return end

    def _end(self, parsed: Parsed, ending: StreamEnd) -> None:
        parsed.ending = ending
        self._ended = True
        self._partial = self._fragments = self._utf8 = None

    def _problem_with(self, first: int, second: int) -> str | None:
        """Check the first two bytes of a frame; return the fault, or None."""
        opcode = first & 0x0F
        if first & _RSV:
            return "reserved bit set, no extension agreed on"
        if opcode not in _OPCODES:
            return f"reserved opcode {opcode:#x}"
        if second & _MASKED == 0:
            return "frame not masked"
        if opcode >= CLOSE:
            if first & _FIN == 0:
                return "control frame fragmented"
            if second & 0x7F > _MAX_CONTROL_BYTES:
                return "control frame longer than 125 bytes"
        elif (opcode == CONTINUATION) == (self._fragments is None):
            return "continuation of nothing" if opcode == CONTINUATION else "message inside a message"
        return None

    def _skip_message(self, first: int, parsed: Parsed) -> None:
        """Skip the frame that begins with `first`, and its message, which is too large."""
        if not self._discarding:
            parsed.oversized += 1
        self._discarding = first & _FIN == 0
        self._fragments = bytearray() if self._discarding else None
        self._fragments_bytes = self._max_message_bytes if self._discarding else 0
        self._utf8 = None

    def _take_control(self, first: int, payload: bytes, parsed: Parsed) -> None:
        parsed.has_control = True
        parsed.small += 1
        if first == _FIN | PING:
            parsed.pings.append(payload)
        elif first == _FIN | CLOSE:
            self._end(parsed, _read_close(payload))
        else:
            parsed.has_pong = True

    def _take_fragment(self, first: int, payload: bytes, parsed: Parsed) -> None:
        if self._fragments is None:
            self._fragments = bytearray()
            self._fragments_bytes = 0
            self._fragments_are_text = first & 0x0F == TEXT
            self._utf8 = _NewUtf8Decoder() if self._fragments_are_text else None
        final = first & _FIN != 0
        parsed.small += len(payload) < _SMALL_FRAGMENT_BYTES
        if self._utf8 is not None:
            try:
                self._utf8.decode(payload, final)
            except UnicodeDecodeError:
                self._fail(parsed, CloseCode.INVALID_DATA, "text is not UTF-8", 0)
                return
        self._fragments += payload
        self._fragments_bytes += len(payload)
        if final:
            if not self._discarding:
                parsed.messages.append(Message(bytes(self._fragments), self._fragments_are_text))
            self._discarding = False
            self._fragments = self._utf8 = None
            self._fragments_bytes = 0


_OPCODES: Final = frozenset({CONTINUATION, TEXT, BINARY, CLOSE, PING, PONG})


def unmask_without_c(payload: bytes, mask: bytes) -> bytes:
    """Apply a mask of 4 bytes to a payload, which masks or unmasks it."""
    length = len(payload)
    words = (length + 3) >> 2
    keys = _int_from_bytes(mask * words, "little")
    return (_int_from_bytes(payload, "little") ^ keys).to_bytes(words << 2, "little")[:length]


def _find_unmask() -> Callable[[bytes, bytes], bytes]:
    try:
        from websockets.speedups import apply_mask
    except ImportError:  # websockets has no C extension where it could not be built
        return unmask_without_c
    return apply_mask


unmask: Final = _find_unmask()


def _is_utf8(payload: bytes) -> bool:
    try:
        payload.decode()
    except UnicodeDecodeError:
        return False
    return True


def _read_close(payload: bytes) -> StreamEnd:
    """Read the payload of a close frame (RFC 6455 §5.5.1, §7.4)."""
    if not payload:
        return StreamEnd(None, "", by_peer=True)
    code = _int_from_bytes(payload[:2], "big")
    if len(payload) == 1 or not is_close_code(code):
        return StreamEnd(CloseCode.PROTOCOL_ERROR, "close code not valid", by_peer=False)
    if not _is_utf8(payload[2:]):
        return StreamEnd(CloseCode.INVALID_DATA, "close reason is not UTF-8", by_peer=False)
    return StreamEnd(code, payload[2:].decode(), by_peer=True)


def is_close_code(code: int) -> bool:
    """Whether a close frame may carry this code (RFC 6455 §7.4 and the IANA registry)."""
    return 3000 <= code <= 4999 or (1000 <= code <= 1014 and code not in (1004, 1005, 1006))


def encode_frame(opcode: int, payload: bytes) -> bytes:
    """Build one final, unmasked frame."""
    length = len(payload)
    if length <= _MAX_CONTROL_BYTES:
        return bytes((_FIN | opcode, length)) + payload
    if length <= 0xFFFF:
        return _medium_header(_FIN | opcode, 126, length) + payload
    return _large_header(_FIN | opcode, 127, length) + payload


PING_FRAME: Final = bytes((_FIN | PING, 0))


def encode_close(code: int | None, reason: str = "") -> bytes:
    """Build a close frame; a reason that is too long is cut."""
    if code is None:
        return encode_frame(CLOSE, b"")
    text = reason.encode()[:_MAX_REASON_BYTES].decode(errors="ignore").encode()
    return encode_frame(CLOSE, code.to_bytes(2, "big") + text)


def encode_pongs(payloads: Iterable[bytes]) -> bytes:
    """Build the answers to pings."""
    return b"".join([encode_frame(PONG, payload) for payload in payloads])


def encode_delivery(delivery: Delivery) -> bytes:
    """Return the frames of a delivery, one for each message; the first call builds them."""
    encoded = delivery.encoded
    if encoded is None:
        messages = delivery.messages
        if len(messages) == 1:  # as nearly all deliveries
            message = messages[0]
            payload = message.payload
            length = len(payload)
            first = _FIN | TEXT if message.is_text else _FIN | BINARY
            if _MAX_CONTROL_BYTES < length <= 0xFFFF:  # as nearly all messages of devices
                encoded = _medium_header(first, 126, length) + payload
            else:
                encoded = encode_frame(first & 0x0F, payload)
        else:
            encoded = b"".join([encode_frame(TEXT if m.is_text else BINARY, m.payload) for m in messages])
        delivery.encoded = encoded
    return encoded

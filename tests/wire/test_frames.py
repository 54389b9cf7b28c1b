"""The frame codec, alone and against two other implementations of RFC 6455."""

import importlib.util
import itertools
import random
import subprocess
import sys
import tracemalloc
from collections.abc import Iterator, Sequence
from types import ModuleType
from typing import NamedTuple

import pytest
import websockets.frames
import wsproto
import wsproto.connection
import wsproto.events
from hypothesis import given, settings
from hypothesis import strategies as st
from websockets.exceptions import PayloadTooBig, ProtocolError
from websockets.protocol import OPEN
from websockets.server import ServerProtocol

from brewos_relay.delivery import Delivery
from brewos_relay.errors import CloseCode
from brewos_relay.messages import Message
from brewos_relay.wire import frames
from brewos_relay.wire.frames import (
    FrameParser,
    Parsed,
    StreamEnd,
    encode_close,
    encode_delivery,
    encode_frame,
    encode_pongs,
    is_close_code,
    unmask,
    unmask_without_c,
)
from support.frames import (
    BINARY,
    CLOSE,
    CONTINUATION,
    PING,
    PONG,
    TEXT,
    CollectingParser,
    client_frame,
    close_frame,
    read_server_frames,
)

LIMIT = 1000
UNLIMITED = 1 << 20


class Outcome(NamedTuple):
    """The result of a stream. The verdict is None while it goes on."""

    messages: list[Message]
    pings: list[bytes]
    verdict: tuple[bool, int | None] | None  # (ended by the peer, close code)


def parse(
    stream: bytes, *, limit: int = UNLIMITED, skip_oversize: bool = False, cuts: Sequence[int] = ()
) -> tuple[Outcome, CollectingParser]:
    """Feed a parser with a stream that is cut at these places."""
    parser = CollectingParser(max_message_bytes=limit, skip_oversize=skip_oversize)
    messages: list[Message] = []
    places = [0, *sorted(cut for cut in cuts if cut <= len(stream)), len(stream)]
    for start, stop in itertools.pairwise(places):
        messages += parser.feed(stream[start:stop])
    ending = parser.ending
    return Outcome(messages, parser.pings, None if ending is None else (ending.by_peer, ending.code)), parser


def text(*parts: str | bytes) -> bytes:
    """Build a text message of one frame for each part."""
    return _fragments(TEXT, [part.encode() if isinstance(part, str) else part for part in parts])


def binary(*parts: bytes) -> bytes:
    """Build a binary message of one frame for each part."""
    return _fragments(BINARY, parts)


def _fragments(opcode: int, parts: Sequence[bytes]) -> bytes:
    last = len(parts) - 1
    return b"".join(
        client_frame(CONTINUATION if i else opcode, part, fin=i == last) for i, part in enumerate(parts)
    )


# -- Messages ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("length", [0, 1, 2, 125, 126, 127, 999, 1000, 0xFFFF, 0x10000, 0x10001])
@pytest.mark.parametrize("opcode", [TEXT, BINARY])
def test_a_message_comes_out_as_it_went_in(opcode: int, length: int) -> None:
    payload = bytes(i % 128 for i in range(length))
    parsed, parser = parse(client_frame(opcode, payload))
    assert parsed == ([Message(payload, opcode == TEXT)], [], None)
    assert not parser.incomplete


@pytest.mark.parametrize("mask", [b"\0\0\0\0", b"\xff\xff\xff\xff", b"\0\0\0\1", b"\x80\0\0\0"])
def test_any_mask_will_do(mask: bytes) -> None:
    parsed, _ = parse(client_frame(TEXT, b"espresso", mask=mask) + client_frame(BINARY, b"", mask=mask))
    assert parsed.messages == [Message(b"espresso"), Message(b"", False)]


def test_all_messages_of_one_feed_come_out_in_order() -> None:
    payloads = [b"%d" % i for i in range(200)]
    parsed, _ = parse(b"".join(client_frame(TEXT, payload) for payload in payloads))
    assert [message.payload for message in parsed.messages] == payloads


def test_fragments_are_joined_with_control_frames_between_them() -> None:
    stream = (
        client_frame(TEXT, b"one, ", fin=False)
        + client_frame(PING, b"there?")
        + client_frame(CONTINUATION, b"", fin=False)
        + client_frame(PONG, b"unasked")
        + client_frame(CONTINUATION, b"two", fin=True)
        + binary(b"\xff", b"\xfe")
    )
    parsed, parser = parse(stream)
    assert parsed == ([Message(b"one, two"), Message(b"\xff\xfe", False)], [b"there?"], None)
    assert not parser.incomplete


def test_a_message_of_empty_fragments_is_an_empty_message() -> None:
    parsed, _ = parse(text("", "", ""))
    assert parsed.messages == [Message(b"")]


def test_a_character_may_be_cut_between_fragments() -> None:
    parts = [bytes((octet,)) for octet in "aé€😀".encode()]
    parsed, _ = parse(text(*parts))
    assert parsed.messages == [Message("aé€😀".encode())]


def test_incomplete_says_whether_a_message_has_begun() -> None:
    parser = CollectingParser(max_message_bytes=LIMIT, skip_oversize=True)
    frame = client_frame(TEXT, b"abc")
    too_large = client_frame(BINARY, bytes(LIMIT + 1))
    steps = [
        (b"", False),
        *((bytes((octet,)), True) for octet in frame[:-1]),
        (frame[-1:], False),
        (client_frame(TEXT, b"abc", fin=False), True),
        (client_frame(PING), True),
        (client_frame(CONTINUATION), False),
        (too_large[:-1], True),
        (too_large[-1:], False),
    ]
    for data, incomplete in steps:
        parser.feed(data)
        assert parser.incomplete == incomplete


# -- Control frames ---------------------------------------------------------------------------------------


def test_pings_come_out_in_order() -> None:
    parsed, parser = parse(
        client_frame(PING, b"1") + client_frame(PONG, b"-") + client_frame(PING, bytes(125))
    )
    assert parsed.pings == [b"1", bytes(125)]
    assert parser.has_pong
    parser.feed(client_frame(PING) + client_frame(PING, b"2"))
    assert parser.pings == [b"1", bytes(125), b"", b"2"]


@pytest.mark.parametrize(
    "code", [1000, 1001, 1002, 1003, 1007, 1009, 1010, 1011, 1014, 3000, 3999, 4000, 4999]
)
def test_a_close_frame_ends_the_stream_with_its_code(code: int) -> None:
    parsed, parser = parse(close_frame(code, "so wär's".encode()))
    assert parsed.verdict == (True, code)
    assert parser.ending is not None
    assert parser.ending.reason == "so wär's"


def test_a_close_frame_may_be_empty() -> None:
    assert parse(client_frame(CLOSE))[0].verdict == (True, None)


@pytest.mark.parametrize("code", [0, 999, 1004, 1005, 1006, 1015, 1016, 1100, 2000, 2999, 5000, 65535])
def test_a_close_frame_with_a_code_that_must_not_be_sent_is_an_error(code: int) -> None:
    assert parse(close_frame(code))[0].verdict == (False, CloseCode.PROTOCOL_ERROR)


def test_a_close_frame_of_one_byte_is_an_error() -> None:
    assert parse(client_frame(CLOSE, b"\x03"))[0].verdict == (False, CloseCode.PROTOCOL_ERROR)


def test_a_close_reason_has_to_be_utf8() -> None:
    assert parse(close_frame(1000, b"\xff"))[0].verdict == (False, CloseCode.INVALID_DATA)


def test_a_close_frame_ends_a_message_that_has_begun() -> None:
    # RFC 6455 §5.4 lets any control frame come between fragments, and §5.5.1 makes no exception.
    assert parse(client_frame(TEXT, b"a", fin=False) + close_frame(1001))[0].verdict == (True, 1001)


def test_close_codes_match_the_iana_registry() -> None:
    external = websockets.frames.EXTERNAL_CLOSE_CODES
    for code in range(0x10000):
        assert is_close_code(code) == (code in external or 3000 <= code <= 4999)


def test_bytes_after_the_end_are_ignored() -> None:
    parsed, parser = parse(close_frame(1000) + text("late") + client_frame(PING))
    assert parsed == ([], [], (True, 1000))
    assert parser.feed(text("later")) == []
    assert parser.feed(b"\xff" * 100) == []
    assert repr(parser.ending) == "StreamEnd(1000, '', by_peer=True)"


def test_messages_before_an_error_still_come_out() -> None:
    parsed, parser = parse(text("a") + client_frame(PING, b"p") + text(b"\xff") + text("b"))
    assert parsed == ([Message(b"a")], [b"p"], (False, CloseCode.INVALID_DATA))
    assert not parser.incomplete


# -- Breaking the rules -----------------------------------------------------------------------------------

FAULTS = {
    "not masked": client_frame(TEXT, b"a", mask=None),
    "control frame not masked": client_frame(PING, mask=None),
    "reserved bit 1": client_frame(TEXT, b"a", reserved=4),
    "reserved bit 2": client_frame(BINARY, b"a", reserved=2),
    "reserved bit 3": client_frame(PING, b"a", reserved=1),
    "ping fragmented": client_frame(PING, b"a", fin=False),
    "close fragmented": client_frame(CLOSE, b"", fin=False),
    "ping of 126 bytes": client_frame(PING, bytes(126)),
    "ping with a length of 64 bits": client_frame(PING, b"", length_form=64),
    "continuation of nothing": client_frame(CONTINUATION, b"a"),
    "continuation after the end of a message": text("a", "b") + client_frame(CONTINUATION, b"c"),
    "text inside of a message": client_frame(TEXT, b"a", fin=False) + client_frame(TEXT, b"b"),
    "binary inside of a message": client_frame(TEXT, b"a", fin=False) + client_frame(BINARY, b"b", fin=False),
    "125 bytes with a length of 16 bits": client_frame(BINARY, bytes(125), length_form=16),
    "nothing with a length of 16 bits": client_frame(TEXT, b"", length_form=16),
    "125 bytes with a length of 64 bits": client_frame(BINARY, bytes(125), length_form=64),
    "65535 bytes with a length of 64 bits": client_frame(BINARY, bytes(0xFFFF), length_form=64),
    "highest bit of the length": b"\x82\xff\x80" + bytes(7) + bytes(4),
    **{f"opcode {opcode:#x}": client_frame(opcode, b"a") for opcode in (3, 4, 5, 6, 7, 11, 12, 13, 14, 15)},
}


@pytest.mark.parametrize("skip_oversize", [False, True])
@pytest.mark.parametrize("stream", FAULTS.values(), ids=FAULTS.keys())
def test_a_fault_ends_the_stream_with_1002(stream: bytes, skip_oversize: bool) -> None:
    parsed, parser = parse(stream + text("never read"), skip_oversize=skip_oversize)
    assert parsed.verdict == (False, CloseCode.PROTOCOL_ERROR)
    assert all(message.payload != b"never read" for message in parsed.messages)
    assert parser.ending is not None
    assert parser.ending.reason
    assert parse(stream, cuts=range(len(stream)), skip_oversize=skip_oversize)[0].verdict == parsed.verdict


@pytest.mark.parametrize("stream", FAULTS.values(), ids=FAULTS.keys())
def test_a_fault_in_a_header_shows_before_the_payload_has_come(stream: bytes) -> None:
    # A parser does not wait for the rest of garbage: its "length" can be anything.
    header_only = {0xFE: 4, 0xFF: 10}.get(stream[1], 2)
    if stream in (FAULTS["ping of 126 bytes"], FAULTS["ping with a length of 64 bits"]):
        header_only = 2
    if "inside" in _name_of(stream) or "after the end" in _name_of(stream):
        header_only = len(stream) - 7 + 2  # of the last frame, which has one byte of payload
    assert parse(stream[:header_only])[0].verdict == (False, CloseCode.PROTOCOL_ERROR)


def _name_of(stream: bytes) -> str:
    return next(name for name, fault in FAULTS.items() if fault == stream)


BAD_UTF8 = {
    "lone continuation": b"\x80",
    "overlong slash": b"\xc0\xaf",
    "overlong nul": b"\xe0\x80\x80",
    "surrogate": b"\xed\xa0\x80",
    "above U+10FFFF": b"\xf4\x90\x80\x80",
    "five bytes": b"\xf8\x88\x80\x80\x80",
    "never a byte": b"\xff",
    "cut short": b"\xe2\x82",
}


@pytest.mark.parametrize("payload", BAD_UTF8.values(), ids=BAD_UTF8.keys())
def test_text_has_to_be_utf8(payload: bytes) -> None:
    failed = (False, CloseCode.INVALID_DATA)
    assert parse(text(payload))[0].verdict == failed
    assert parse(text(b"before " + payload + b" after"))[0].verdict == failed
    assert parse(text(bytes(200) + payload))[0].verdict == failed
    assert parse(text("", payload, ""))[0].verdict == failed
    assert parse(text(*[payload[i : i + 1] for i in range(len(payload))]))[0].verdict == failed
    assert parse(binary(payload))[0].messages == [Message(payload, False)]


@pytest.mark.parametrize("payload", [p for n, p in BAD_UTF8.items() if n != "cut short"])
def test_text_that_is_not_utf8_fails_at_the_earliest_fragment(payload: bytes) -> None:
    # A fragment may end within a character as long as the character can still become valid. Python's decoder
    # waits for the third byte of a surrogate, though the second one decides; RFC 6455 §8.1 does not say how
    # early a fault has to show.
    late = {b"\xe0\x80\x80": 2, b"\xed\xa0\x80": 3, b"\xf4\x90\x80\x80": 2}
    earliest = late.get(payload, 1)
    parser = CollectingParser(max_message_bytes=LIMIT)
    parser.feed(client_frame(TEXT, "κόσμε".encode(), fin=False))
    for i in range(earliest):
        assert parser.ending is None
        parser.feed(client_frame(CONTINUATION, payload[i : i + 1], fin=False))
    assert parser.ending is not None
    assert parser.ending.code == CloseCode.INVALID_DATA


# -- Messages that are too large --------------------------------------------------------------------------

TOO_LARGE = {
    "one frame": binary(bytes(LIMIT + 1)),
    "one frame with a length of 64 bits": binary(bytes(0x10000)),
    "last fragment": binary(bytes(LIMIT), b"\0"),
    "first fragment": binary(bytes(LIMIT + 1), b"", b"\0"),
    "middle fragment": binary(bytes(LIMIT // 2), bytes(LIMIT), bytes(LIMIT), b""),
    "every fragment": binary(bytes(LIMIT + 1), bytes(LIMIT + 1), bytes(LIMIT + 1)),
    "text": text("ä" * LIMIT),
    "with a ping within": client_frame(BINARY, bytes(LIMIT), fin=False)
    + client_frame(PING, bytes(125))
    + client_frame(CONTINUATION, b"\0", fin=False)
    + client_frame(PONG, bytes(125))
    + client_frame(CONTINUATION, b""),
}


@pytest.mark.parametrize("stream", TOO_LARGE.values(), ids=TOO_LARGE.keys())
def test_a_message_that_is_too_large_ends_the_stream_with_1009(stream: bytes) -> None:
    parsed, parser = parse(text("a") + stream + text("b"), limit=LIMIT)
    assert parsed.messages == [Message(b"a")]
    assert parsed.verdict == (False, CloseCode.MESSAGE_TOO_BIG)
    assert not parser.incomplete
    assert parser.oversized == 0


@pytest.mark.parametrize("cut_everywhere", [False, True])
@pytest.mark.parametrize("stream", TOO_LARGE.values(), ids=TOO_LARGE.keys())
def test_a_message_that_is_too_large_can_be_read_past(stream: bytes, cut_everywhere: bool) -> None:
    whole = text("a") + stream + text("b", "c") + stream + binary(bytes(LIMIT))
    cuts = range(len(whole)) if cut_everywhere else ()
    parsed, parser = parse(whole, limit=LIMIT, skip_oversize=True, cuts=cuts)
    assert parsed.messages == [Message(b"a"), Message(b"bc"), Message(bytes(LIMIT), False)]
    assert parsed.verdict is None
    assert parser.oversized == 2
    assert not parser.incomplete
    pings = 2 if stream is TOO_LARGE["with a ping within"] else 0
    assert parsed.pings == [bytes(125)] * pings


def test_a_message_that_is_too_large_shows_in_its_header() -> None:
    header = binary(bytes(LIMIT + 1))[:4]
    assert parse(header, limit=LIMIT)[0].verdict == (False, CloseCode.MESSAGE_TOO_BIG)
    _, parser = parse(header, limit=LIMIT, skip_oversize=True)
    assert parser.oversized == 1
    assert parser.incomplete


def test_skipped_messages_must_follow_the_framing_rules() -> None:
    began = client_frame(BINARY, bytes(LIMIT + 1), fin=False)
    parsed, _ = parse(began + text("inside"), limit=LIMIT, skip_oversize=True)
    assert parsed == ([], [], (False, CloseCode.PROTOCOL_ERROR))


def test_a_limit_of_nothing_allows_empty_messages() -> None:
    stream = text("") + text("a") + text("", "b", "", "c") + text("", "")
    parsed, parser = parse(stream, limit=0, skip_oversize=True)
    assert parsed == ([Message(b""), Message(b"")], [], None)
    assert parser.oversized == 2


# -- Memory -----------------------------------------------------------------------------------------------

_HEADER_BYTES = 14
_SLACK_BYTES = 4096  # a few small objects, and what a growing buffer holds in reserve


def held_bytes(limit: int, pieces: Sequence[bytes]) -> int:
    """Return how much more memory is held after feeding these pieces than before."""
    parser = FrameParser(max_message_bytes=limit, skip_oversize=True)
    last: object = None
    tracemalloc.start()
    try:
        before, _ = tracemalloc.get_traced_memory()
        for piece in pieces:
            last = parser.feed(piece)
        is_midway = isinstance(last, Parsed) and last.incomplete
        last = None
        after, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert is_midway
    return after - before


def test_control_frames_leave_nothing_behind() -> None:
    pings = [client_frame(PING, bytes(125)) * 20] * 20
    assert held_bytes(LIMIT, [*pings, client_frame(TEXT, b"a", fin=False)]) < _SLACK_BYTES


def test_endless_empty_fragments_are_not_kept() -> None:
    many = client_frame(CONTINUATION, fin=False) * 1000
    pieces = [client_frame(TEXT, b"a", fin=False), *[many] * 20]
    assert held_bytes(LIMIT, pieces) < LIMIT + _HEADER_BYTES + _SLACK_BYTES


@pytest.mark.parametrize("step", [1, 1000, 65536])
def test_a_frame_that_never_ends_is_kept_to_its_length_at_most(step: int) -> None:
    limit = 64 * 1024
    stream = client_frame(BINARY, bytes(limit))[:-1]
    pieces = [stream[start : start + step] for start in range(0, len(stream), step)]
    assert held_bytes(limit, pieces) < limit * 9 // 8 + _HEADER_BYTES + _SLACK_BYTES


def test_a_message_that_is_read_past_is_not_kept() -> None:
    fragment = client_frame(CONTINUATION, bytes(0x10000), fin=False)
    pieces = [client_frame(BINARY, bytes(LIMIT), fin=False), *[fragment] * 20]
    assert held_bytes(LIMIT, pieces) < LIMIT + _HEADER_BYTES + _SLACK_BYTES


def test_tiny_fragments_take_no_more_memory_than_large_ones() -> None:
    limit = 16 * 1024
    fragment = client_frame(CONTINUATION, b"\x01", fin=False)
    pieces = [client_frame(BINARY, fin=False), *[fragment] * limit]
    assert held_bytes(limit, pieces) < limit * 9 // 8 + _HEADER_BYTES + _SLACK_BYTES


# -- Masks ------------------------------------------------------------------------------------------------


@given(st.binary(max_size=300), st.binary(min_size=4, max_size=4))
def test_unmasking_is_the_same_without_c(payload: bytes, mask: bytes) -> None:
    expected = bytes(octet ^ mask[i % 4] for i, octet in enumerate(payload))
    assert unmask_without_c(payload, mask) == expected
    assert bytes(unmask(payload, mask)) == expected


@pytest.mark.interpreted(
    reason="a compiled module cannot be loaded twice; the test below needs a new process"
)
def test_unmasking_falls_back_to_python(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "websockets.speedups", None)
    copy = load_copy_of(frames)
    assert copy.unmask is copy.unmask_without_c
    parser = copy.FrameParser(max_message_bytes=LIMIT)
    assert parser.feed(text("crème")) == [Message("crème".encode())]


def test_unmasking_falls_back_to_python_in_a_new_process() -> None:
    code = f"""
import subprocess
import sys
sys.modules["websockets.speedups"] = None
from brewos_relay.wire import frames
assert frames.unmask is frames.unmask_without_c
parser = frames.FrameParser(max_message_bytes=100)
assert parser.feed({text("crème")!r})[0].payload.decode() == "crème"
"""
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


def load_copy_of(module: ModuleType) -> ModuleType:
    assert module.__file__ is not None
    spec = importlib.util.spec_from_file_location(f"{module.__name__}_copy", module.__file__)
    assert spec is not None
    assert spec.loader is not None
    copy = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(copy)
    return copy


# -- Against websockets and wsproto -----------------------------------------------------------------------


def split(stream: bytes) -> Iterator[bytes]:
    """Cut a stream into its whole frames, valid or not; an incomplete rest is left out."""
    start = 0
    while len(stream) - start >= 2:
        second = stream[start + 1]
        extended = {126: 2, 127: 8}.get(second & 0x7F, 0)
        body = start + 2 + extended + (4 if second & 0x80 else 0)
        if body > len(stream):
            return
        length = (
            int.from_bytes(stream[start + 2 : start + 2 + extended], "big") if extended else second & 0x7F
        )
        if body + length > len(stream):
            return
        yield stream[start : body + length]
        start = body + length


def length_is_well_encoded(frame: bytes) -> bool:
    form = frame[1] & 0x7F
    length = int.from_bytes(frame[2 : {126: 4, 127: 10}.get(form, 2)], "big")
    return (form < 126) or (form == 126 and length > 125) or (form == 127 and 0xFFFF < length < 1 << 63)


def by_websockets(whole_frames: list[bytes], *, limit: int | None = None) -> Outcome:
    """Parse with `websockets`, and put its frames together as RFC 6455 says.

    Its sans-I/O layer leaves joining fragments and checking text to the layer above. Where it parts from
    the RFC, what the RFC says is put in its place:

    * Lengths that are not in their shortest form are let through, while §5.2 says that "the minimal number
      of bytes MUST be used" and that the highest bit must be 0.
    * A close frame between fragments is an error for it; §5.4 allows control frames there.
    * A close frame with a bad code and a bad reason is called bad UTF-8 (1007). The RFC leaves the order
      open; the code comes first on the wire, and wsproto looks at it first, too.
    """
    protocol = ServerProtocol(state=OPEN, max_size=limit)
    messages: list[Message] = []
    pings: list[bytes] = []
    parts: list[bytes] = []
    is_text = False
    for raw in whole_frames:
        if not length_is_well_encoded(raw):
            verdict = (False, 1002)
            # Every other fault of that frame is a protocol error, too.
            return Outcome(messages, pings, verdict)
        protocol.receive_data(raw)
        for frame in protocol.events_received():
            assert isinstance(frame, websockets.frames.Frame)
            payload = bytes(frame.data)
            if frame.opcode == PING:
                pings.append(payload)
            elif frame.opcode == CLOSE:
                return Outcome(messages, pings, (True, _code_of(payload)))
            elif frame.opcode != PONG:
                if frame.opcode != CONTINUATION:
                    is_text = frame.opcode == TEXT
                parts.append(payload)
                if is_text and not _can_become_utf8(b"".join(parts), complete=frame.fin):
                    return Outcome(messages, pings, (False, 1007))
                if frame.fin:
                    messages.append(Message(b"".join(parts), is_text))
                    parts = []
        problem = protocol.parser_exc
        if problem is None:
            continue
        if protocol.close_rcvd is not None:
            assert "incomplete fragmented message" in str(problem)
            return Outcome(messages, pings, (True, _code_of(_payload_of(raw))))
        if isinstance(problem, PayloadTooBig):
            return Outcome(messages, pings, (False, 1009))
        if isinstance(problem, UnicodeDecodeError):
            bad_code = not is_close_code(int.from_bytes(_payload_of(raw)[:2], "big"))
            return Outcome(messages, pings, (False, 1002 if bad_code else 1007))
        assert isinstance(problem, ProtocolError)
        return Outcome(messages, pings, (False, 1002))
    return Outcome(messages, pings, None)


def by_wsproto(stream: bytes) -> Outcome:
    """Parse with wsproto, which has no limit for messages.

    It does not know close code 1014, which IANA registered later ("Bad Gateway"); here it is taken as valid.
    """
    connection = wsproto.connection.Connection(wsproto.ConnectionType.SERVER)
    connection.receive_data(stream)
    messages: list[Message] = []
    pings: list[bytes] = []
    parts: list[bytes] = []
    for event in connection.events():
        if isinstance(event, wsproto.events.Message):
            is_text = isinstance(event, wsproto.events.TextMessage)
            parts.append(event.data.encode() if isinstance(event.data, str) else bytes(event.data))
            if event.message_finished:
                messages.append(Message(b"".join(parts), is_text))
                parts = []
        elif isinstance(event, wsproto.events.Ping):
            pings.append(bytes(event.payload))
        elif isinstance(event, wsproto.events.CloseConnection):
            if connection.state is not wsproto.connection.ConnectionState.OPEN:
                code = None if event.code == 1005 else int(event.code)
                return Outcome(messages, pings, (True, code))
            if event.reason == "CLOSE with unknown reserved code":
                payload = next(_payload_of(raw) for raw in split(stream) if raw[0] == 0x88)
                if _code_of(payload) == 1014:
                    is_utf8 = _can_become_utf8(payload[2:], complete=True)
                    return Outcome(messages, pings, (True, 1014) if is_utf8 else (False, 1007))
            return Outcome(messages, pings, (False, int(event.code)))
    return Outcome(messages, pings, None)


def _payload_of(raw: bytes) -> bytes:
    """Return the payload of a whole control frame."""
    return bytes(octet ^ raw[2 + i % 4] for i, octet in enumerate(raw[6:]))


def _code_of(payload: bytes) -> int | None:
    return int.from_bytes(payload[:2], "big") if payload else None


def _can_become_utf8(data: bytes, *, complete: bool) -> bool:
    """Whether this is UTF-8, or can be the beginning of it. See above for surrogates."""
    try:
        data.decode()
    except UnicodeDecodeError as exc:
        half_a_surrogate = len(data) - exc.start == 2 and data[exc.start] == 0xED and 0xA0 <= data[-1] < 0xC0
        return not complete and (exc.reason == "unexpected end of data" or half_a_surrogate)
    return True


masks = st.one_of(st.just(b"\0\0\0\0"), st.binary(min_size=4, max_size=4))
payloads = st.one_of(
    st.binary(max_size=12),
    st.text(max_size=12).map(str.encode),
    st.sampled_from([*BAD_UTF8.values(), bytes(125), bytes(126), b"x" * 200, "é".encode() * 100]),
    st.integers(120, 130).map(bytes),
    st.just(b"\x01" * 0x10000),
)
control_payloads = st.one_of(st.binary(max_size=8), st.just(bytes(125)))
pings_and_pongs = st.builds(client_frame, st.sampled_from([PING, PONG]), control_payloads, mask=masks)


@st.composite
def valid_messages(draw: st.DrawFn) -> bytes:
    """Text or binary, often in fragments with control frames between them. Text is not always UTF-8."""
    opcode = draw(st.sampled_from([TEXT, BINARY]))
    payload = draw(payloads)
    places = sorted(draw(st.lists(st.integers(0, len(payload)), max_size=4)))
    stream = b""
    for i, (start, stop) in enumerate(zip([0, *places], [*places, len(payload)], strict=True)):
        frame = client_frame(
            CONTINUATION if i else opcode, payload[start:stop], fin=i == len(places), mask=draw(masks)
        )
        stream += frame + draw(st.one_of(st.just(b""), pings_and_pongs))
    return stream


close_frames = st.one_of(
    st.just(client_frame(CLOSE)),
    st.builds(
        close_frame,
        st.one_of(
            st.sampled_from([1000, 1004, 1005, 1006, 1011, 1014, 1015, 2999, 3000]), st.integers(0, 0xFFFF)
        ),
        st.one_of(st.just(b""), st.text(max_size=10).map(str.encode), st.just(b"\xff")),
    ),
    st.just(client_frame(CLOSE, b"\x03")),
)


@st.composite
def any_frames(draw: st.DrawFn) -> bytes:
    """One frame that may be wrong in several ways."""
    payload = draw(payloads)
    fits = [form for form, most in ((7, 125), (16, 0xFFFF), (64, 1 << 62)) if len(payload) <= most]
    return client_frame(
        draw(st.integers(0, 15)),
        payload,
        fin=draw(st.booleans()),
        reserved=draw(st.sampled_from([0, 0, 0, 0, 1, 2, 4, 7])),
        mask=draw(st.one_of(masks, st.none())),
        length_form=draw(st.sampled_from(fits)),
    )


messages_and_controls = st.one_of(valid_messages(), valid_messages(), pings_and_pongs)
well_formed = st.lists(messages_and_controls, max_size=6).map(b"".join)
faulty = st.lists(st.one_of(valid_messages(), pings_and_pongs, close_frames, any_frames()), max_size=8).map(
    b"".join
)


@st.composite
def mutated(draw: st.DrawFn) -> bytes:
    """A stream with some bytes changed, added or removed."""
    stream = bytearray(draw(faulty))
    for _ in range(draw(st.integers(1, 4))):
        place = draw(st.integers(0, min(len(stream), 400)))
        how = draw(st.sampled_from(["flip", "insert", "delete"]))
        if how == "insert":
            stream[place:place] = draw(st.binary(min_size=1, max_size=4))
        elif how == "delete":
            del stream[place : place + draw(st.integers(1, 4))]
        elif place < len(stream):
            stream[place] ^= 1 << draw(st.integers(0, 7))
    return bytes(stream)


# Cases that random streams rarely reach.
RARE = [
    close_frame(1014),
    close_frame(1014, b"\x80"),
    close_frame(1016, b"\x80"),
    client_frame(TEXT, b"a", fin=False) + close_frame(1016, b"\x80"),
    client_frame(TEXT, b"\xed\xa0", fin=False) + close_frame(1000),
    client_frame(TEXT, b"\xed\xa0", fin=False) + client_frame(CONTINUATION),
]
streams = st.one_of(st.sampled_from(RARE), well_formed, faulty, mutated(), st.binary(max_size=60))


@settings(max_examples=400)
@given(streams)
def test_agrees_with_websockets_and_wsproto(stream: bytes) -> None:
    # The others check frames that are incomplete, or check headers later. RFC 6455 does not say how early a
    # fault has to be found. So all three get whole frames.
    whole_frames = list(split(stream))
    whole = b"".join(whole_frames)
    parsed, _ = parse(whole)
    assert parsed == by_wsproto(whole)
    assert parsed == by_websockets(whole_frames)


@settings(max_examples=200)
@given(st.lists(valid_messages(), max_size=6).map(b"".join), st.integers(125, 260))
def test_agrees_with_websockets_on_messages_that_are_too_large(stream: bytes, limit: int) -> None:
    # Pings are left out: websockets counts them into the message that they interrupt, which RFC 6455 §5.4
    # gives no ground for ("control frames MAY be injected in the middle of a fragmented message").
    data_frames = [raw for raw in split(stream) if raw[0] & 0x08 == 0]
    parsed, _ = parse(b"".join(data_frames), limit=limit)
    assert parsed == by_websockets(data_frames, limit=limit)


@settings(max_examples=300)
@given(streams, st.integers(0, 300), st.booleans(), st.lists(st.integers(0, 500), max_size=12))
def test_the_result_does_not_depend_on_where_the_stream_is_cut(
    stream: bytes, limit: int, skip_oversize: bool, cuts: list[int]
) -> None:
    parsed, parser = parse(stream, limit=limit, skip_oversize=skip_oversize)
    again, other = parse(stream, limit=limit, skip_oversize=skip_oversize, cuts=cuts)
    assert again == parsed
    assert other.oversized == parser.oversized
    assert other.incomplete == parser.incomplete
    assert repr(other.ending) == repr(parser.ending)


@settings(max_examples=100)
@given(st.lists(st.one_of(well_formed, faulty), max_size=3).map(b"".join), st.integers(0, 300))
def test_the_result_is_the_same_byte_by_byte(stream: bytes, limit: int) -> None:
    stream = stream[:3000]
    parsed, parser = parse(stream, limit=limit, skip_oversize=True)
    again, other = parse(stream, limit=limit, skip_oversize=True, cuts=range(len(stream)))
    assert again == parsed
    assert other.oversized == parser.oversized


@settings(max_examples=150)
@given(
    st.lists(
        st.tuples(st.booleans(), st.text(max_size=40), st.lists(st.integers(0, 60), max_size=4)), max_size=8
    ),
    st.integers(0, 50),
)
def test_skips_exactly_the_messages_that_are_too_large(
    contents: list[tuple[bool, str, list[int]]], limit: int
) -> None:
    stream = b""
    expected = []
    for is_text, content, cuts in contents:
        payload = content.encode()
        places = sorted(min(cut, len(payload)) for cut in cuts)
        parts = [payload[a:b] for a, b in zip([0, *places], [*places, len(payload)], strict=True)]
        stream += _fragments(TEXT if is_text else BINARY, parts)
        if len(payload) <= limit:
            expected.append(Message(payload, is_text))
    parsed, parser = parse(stream, limit=limit, skip_oversize=True)
    assert parsed == (expected, [], None)
    assert parser.oversized == len(contents) - len(expected)
    assert not parser.incomplete


def test_agrees_on_long_random_streams() -> None:
    """Many valid messages of all sizes at once, cut at random, as on a busy connection."""
    dice = random.Random(20240229)
    whole_frames = []
    for _ in range(500):
        payload = dice.randbytes(dice.choice((0, 5, 60, 125, 126, 600, 2000)))
        whole_frames.append(client_frame(BINARY, payload, mask=dice.randbytes(4)))
    stream = b"".join(whole_frames)
    expected = by_websockets(whole_frames)
    assert len(expected.messages) == 500
    for _ in range(20):
        assert parse(stream, cuts=dice.sample(range(len(stream)), 40))[0] == expected


# -- Building frames --------------------------------------------------------------------------------------


@pytest.mark.parametrize("length", [0, 1, 125, 126, 127, 0xFFFF, 0x10000, 100_000])
@pytest.mark.parametrize("is_text", [True, False])
def test_a_delivery_is_read_back_by_the_others(length: int, is_text: bool) -> None:
    message = Message(b"x" * length, is_text)
    encoded = encode_delivery(Delivery([message]))
    assert read_server_frames(encoded) == [(TEXT if is_text else BINARY, message.payload)]
    client = wsproto.connection.Connection(wsproto.ConnectionType.CLIENT)
    client.receive_data(encoded)
    (event,) = client.events()
    assert isinstance(event, wsproto.events.Message)
    assert event.message_finished
    assert event.data == ("x" * length if is_text else b"x" * length)
    frame = websockets.frames.Frame(websockets.frames.Opcode(TEXT if is_text else BINARY), message.payload)
    assert frame.serialize(mask=False) == encoded


def test_a_delivery_is_encoded_once() -> None:
    delivery = Delivery([Message(b"a"), Message(b"\xff", False), Message(b"c" * 126)])
    encoded = encode_delivery(delivery)
    assert read_server_frames(encoded) == [(TEXT, b"a"), (BINARY, b"\xff"), (TEXT, b"c" * 126)]
    assert encode_delivery(delivery) is encoded
    assert delivery.encoded is encoded


def test_pongs_answer_every_ping_in_order() -> None:
    assert encode_pongs([]) == b""
    pongs = read_server_frames(encode_pongs([b"1", b"", bytes(125)]))
    assert pongs == [(PONG, b"1"), (PONG, b""), (PONG, bytes(125))]


def test_a_single_frame_can_be_built() -> None:
    assert encode_frame(PING, b"\0") == b"\x89\x01\0"


@pytest.mark.parametrize("code", [1000, 1009, 4002, CloseCode.TRY_AGAIN_LATER])
def test_a_close_frame_is_read_back_by_the_others(code: int) -> None:
    encoded = encode_close(code, "bis später")
    client = wsproto.connection.Connection(wsproto.ConnectionType.CLIENT)
    client.receive_data(encoded)
    (event,) = client.events()
    assert isinstance(event, wsproto.events.CloseConnection)
    assert (event.code, event.reason) == (code, "bis später")
    (frame,) = read_server_frames(encoded)
    assert websockets.frames.Close.parse(frame.payload) == websockets.frames.Close(int(code), "bis später")


def test_a_close_frame_without_a_code_is_empty() -> None:
    assert read_server_frames(encode_close(None)) == [(CLOSE, b"")]


@given(st.text(max_size=200))
def test_a_long_reason_loses_whole_characters_at_its_end(reason: str) -> None:
    (frame,) = read_server_frames(encode_close(1000, reason))
    assert len(frame.payload) <= 125
    sent = frame.payload[2:].decode()
    assert reason.startswith(sent)
    rest = reason[len(sent) :]
    assert not rest or len(frame.payload) + len(rest[0].encode()) > 125


def test_an_ending_of_ours_is_told_from_one_of_the_peer() -> None:
    ending = StreamEnd(1002, "why", by_peer=False)
    assert (ending.code, ending.reason, ending.by_peer) == (1002, "why", False)

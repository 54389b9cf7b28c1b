"""Fuzz targets without a server: each one takes an input and checks properties that hold for every input."""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final

import h11
import msgspec

from brewos_relay.core.audience import must_reach
from brewos_relay.core.merging import without_seq
from brewos_relay.core.snapshot import Snapshot
from brewos_relay.dialect import BREWOS
from brewos_relay.messages import Message
from brewos_relay.texts import is_showable
from brewos_relay.wire.frames import encode_close, is_close_code
from brewos_relay.wire.handshake import HEAD_END, Refusal, accept_upgrade, parse_head
from brewos_relay.wire.proxy_protocol import MOST_HEADER_BYTES, ProxyProtocolError, parse_proxy_header
from fuzz import corpus
from fuzz.mutation import Mutator
from support.frames import CollectingParser
from support.meaning import check_meaning

MOST_MESSAGE_BYTES: Final = 2048
MOST_STATE_BYTES: Final = 64 * 1024


def fuzz_frames(data: bytes, mutator: Mutator) -> None:
    """The parsed messages do not depend on how the bytes are split, and keep the limits."""
    skip = mutator.chance.random() < 0.5
    whole, pieces = (
        CollectingParser(max_message_bytes=MOST_MESSAGE_BYTES, skip_oversize=skip) for _ in range(2)
    )
    at_once = whole.feed(data)
    in_pieces = [message for piece in mutator.split(data) for message in pieces.feed(piece)]
    assert at_once == in_pieces
    assert whole.pings == pieces.pings
    assert repr(whole.ending) == repr(pieces.ending)
    assert whole.oversized == pieces.oversized
    assert whole.incomplete == pieces.incomplete or whole.ending is not None
    for message in at_once:
        assert len(message.payload) <= MOST_MESSAGE_BYTES
        if message.is_text:
            message.payload.decode()
    for payload in whole.pings:
        assert len(payload) <= 125
    if whole.ending is not None:
        assert whole.ending.code is None or is_close_code(whole.ending.code)
        assert len(encode_close(whole.ending.code, whole.ending.reason)) <= 127
        assert whole.feed(data) == []


def fuzz_handshake(data: bytes, _: Mutator) -> None:
    """A request is read or refused. Every response is HTTP, and no line of it comes from the request."""
    head = data.partition(HEAD_END)[0]
    answer = b""
    try:
        request = parse_head(head)
        for name, value in request.headers.items():
            assert name == name.lower()
            assert "\r" not in value
            assert "\n" not in value
        assert request.path.startswith("/") or (request.method, request.path) == ("OPTIONS", "*")
        request.parameters()
        answer = accept_upgrade(request)
    except Refusal as refusal:
        answer = refusal.encode()
        read_response(answer, upgraded=False)
    else:
        read_response(answer, upgraded=True)


def read_response(answer: bytes, *, upgraded: bool) -> None:
    """Read an answer as a strict client does."""
    client = h11.Connection(h11.CLIENT)
    headers = [("Host", "a"), ("Upgrade", "websocket"), ("Connection", "Upgrade")]
    client.send(h11.Request(method="GET", target="/", headers=headers))
    client.send(h11.EndOfMessage())
    client.receive_data(answer)
    response = client.next_event()
    assert isinstance(response, h11.InformationalResponse if upgraded else h11.Response)
    names = [name for name, _ in response.headers]
    assert len(set(names)) == len(names)
    if upgraded:
        assert response.status_code == 101
        assert set(names) <= {b"upgrade", b"connection", b"sec-websocket-accept", b"sec-websocket-protocol"}
        assert answer.endswith(HEAD_END)
        return
    assert 400 <= response.status_code < 600
    body = client.next_event()
    assert isinstance(body, h11.Data)
    assert isinstance(json.loads(bytes(body.data)), dict)
    assert isinstance(client.next_event(), h11.EndOfMessage)


def fuzz_proxy(data: bytes, mutator: Mutator) -> None:
    """The end of a header does not depend on the data after it. Without its last byte, it is incomplete."""
    try:
        found = parse_proxy_header(data)
    except ProxyProtocolError:
        return
    if found is None:
        assert len(data) < MOST_HEADER_BYTES
        return
    header, end = found
    assert 0 < end <= min(len(data), MOST_HEADER_BYTES)
    assert 0 <= header.port <= 0xFFFF
    assert parse_proxy_header(data[:end]) == found
    assert parse_proxy_header(data[:end] + mutator.chance.randbytes(20)) == found
    assert parse_proxy_header(data[: mutator.chance.randrange(end)]) is None


def fuzz_messages(data: bytes, mutator: Mutator) -> None:
    """A peeked type equals the type in the decoded message, in either encoding."""
    for is_text in (True, False):
        if is_text and not is_utf8(data):
            continue
        message = Message(data, is_text)
        head = message.peek()
        assert message.peek_type() == (None if head is None else head.type)
        must_reach(message, BREWOS)
        repr(message)
        if head is None:
            continue
        text = message.as_text()
        if text is not None:
            assert text.is_text
            content = json.loads(text.payload.decode())
            assert isinstance(content, dict)
            assert content["type"] == head.type
        if is_text:
            command = message.peek_command()
            if command is not None:
                assert is_showable(command.name)
                assert len(command.name) <= 64
                assert command.wants_status in (True, False)


def fuzz_commands(data: bytes, mutator: Mutator) -> None:
    """All parsers read the same in a client's message that the relay accepts."""
    if is_utf8(data):
        check_meaning(data)
    text = Message(data, is_text=False).as_command()
    if text is not None:
        check_meaning(text.payload)


def is_utf8(data: bytes) -> bool:
    try:
        data.decode()
    except UnicodeDecodeError:
        return False
    return True


def fuzz_snapshot(data: bytes, mutator: Mutator) -> None:
    """A snapshot stays bounded and can be sent to apps and the API, for any messages of the machine."""
    snapshot = Snapshot(BREWOS)
    said = [data, *(mutator.mutated(MESSAGES) for _ in range(mutator.chance.choice((1, 3, 120))))]
    if mutator.chance.random() < 0.8:  # without a status, most deltas change nothing
        said.insert(0, mutator.chance.choice((corpus.JSON[0], corpus.PACKED[0])))
    for payload in said:
        is_text = is_utf8(payload) and not payload[:1] >= b"\x7f"
        message = Message(payload, is_text)
        head = message.peek()
        if head is not None:
            snapshot.update(message, head.type, head.seq)
    told = snapshot.messages()
    for message in told:
        assert message.peek() is not None, message.payload
        assert len(message.payload) <= max(MOST_STATE_BYTES, *map(len, said))
        assert len(without_seq(message).payload) <= len(message.payload)
    assert snapshot.empty == (not told)
    assert snapshot.messages() == told
    content = snapshot.as_dict()
    assert msgspec.json.decode(msgspec.json.encode(content)) is not None
    assert len(content) <= len(told)


MESSAGES: Final = (*corpus.JSON, *corpus.PACKED)


@dataclass(frozen=True, slots=True)
class Target:
    """A fuzz target; `check` raises for each finding."""

    name: str
    corpus: Sequence[bytes]
    check: Callable[[bytes, Mutator], None]


TARGETS: Final = (
    Target("frames", corpus.FRAMES, fuzz_frames),
    Target("handshake", corpus.HEADS, fuzz_handshake),
    Target("proxy", corpus.PROXY_HEADERS, fuzz_proxy),
    Target("messages", MESSAGES, fuzz_messages),
    Target("commands", corpus.COMMANDS, fuzz_commands),
    Target("snapshot", MESSAGES, fuzz_snapshot),
)

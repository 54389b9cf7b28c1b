from collections import Counter

import h11
import pytest

from brewos_relay.server.request_gate import RequestGate


def make_gate() -> RequestGate:
    return RequestGate(head_bytes=200, body_bytes=10)


def refusal_of(gate: RequestGate, data: bytes) -> int:
    gate.receive_data(data)
    with pytest.raises(h11.RemoteProtocolError) as raised:
        gate.next_event()
    return raised.value.error_status_hint


def test_a_plain_request_passes() -> None:
    gate = make_gate()
    gate.receive_data(b"POST / HTTP/1.1\r\nHost: relay\r\nContent-Length: 10\r\n\r\n0123456789")
    assert isinstance(gate.next_event(), h11.Request)
    assert isinstance(gate.next_event(), h11.Data)
    assert isinstance(gate.next_event(), h11.EndOfMessage)


@pytest.mark.parametrize("padding_bytes", range(150, 180))
def test_the_head_is_measured_as_it_was_sent(padding_bytes: int) -> None:
    head = b"GET / HTTP/1.1\r\nHost: relay\r\nX: " + b"x" * padding_bytes + b"\r\n"
    gate = make_gate()
    if len(head) > 200:
        assert refusal_of(gate, head + b"\r\n") == 431
    else:
        gate.receive_data(head + b"\r\n")
        assert isinstance(gate.next_event(), h11.Request)


def test_a_refusal_can_be_answered_and_nothing_else_can_be_read() -> None:
    gate = make_gate()
    assert refusal_of(gate, b"GET / HTTP/1.1\r\nHost: relay\r\nUpgrade: websocket\r\n\r\n") == 400
    assert gate.their_state is h11.ERROR
    answer = gate.send(h11.Response(status_code=400, headers=[("content-length", "0")]))
    assert answer.startswith(b"HTTP/1.1 400")


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"\x00\x01\r\n\r\n", "malformed"),
        (b"GET / HTTP/1.1\r\nHost: relay\r\nUpgrade: websocket\r\n\r\n", "malformed"),
        (b"GET / HTTP/1.1\r\nHost: relay\r\nX: " + b"x" * 300 + b"\r\n\r\n", "head_too_large"),
        (b"POST / HTTP/1.1\r\nHost: relay\r\nContent-Length: 11\r\n\r\n", "body_too_large"),
        (b"CONNECT relay:1 HTTP/1.1\r\nHost: relay\r\n\r\n", "other_protocol"),
    ],
)
def test_refusals_are_counted_by_reason(data: bytes, reason: str) -> None:
    refused: Counter[str] = Counter()
    refusal_of(RequestGate(head_bytes=200, body_bytes=10, refused=refused), data)
    assert refused == {reason: 1}


def test_the_body_of_each_request_is_measured_on_its_own() -> None:
    gate = make_gate()
    for _ in range(3):
        gate.receive_data(b"POST / HTTP/1.1\r\nHost: relay\r\nContent-Length: 6\r\n\r\nabcdef")
        while not isinstance(gate.next_event(), h11.EndOfMessage):
            pass
        gate.send(h11.Response(status_code=200, headers=[("content-length", "0")]))
        gate.send(h11.EndOfMessage())
        gate.start_next_cycle()


def test_what_follows_the_last_request_is_neither_kept_nor_an_error() -> None:
    gate = make_gate()
    gate.receive_data(b"GET / HTTP/1.1\r\nHost: relay\r\nConnection: close\r\n\r\nmore")
    assert isinstance(gate.next_event(), h11.Request)
    assert isinstance(gate.next_event(), h11.EndOfMessage)
    for _ in range(3):
        gate.receive_data(b"x" * 1000)
        assert gate.next_event() is h11.NEED_DATA
    assert gate.trailing_data == (b"more", False)

from collections import Counter

import h11
import pytest

from brewos_relay.server.request_gate import RequestGate, WebSocketWanted


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


def request_of(gate: RequestGate, data: bytes) -> h11.Request:
    gate.receive_data(data)
    event = gate.next_event()
    assert isinstance(event, h11.Request)
    return event


@pytest.mark.parametrize(
    ("target", "path", "host"),
    [
        (b"http://relay.example/a?b", b"/a?b", b"relay.example"),
        (b"wss://relay.example.:443", b"/", b"relay.example.:443"),
        (b"/a", b"/a", b"other"),
    ],
)
@pytest.mark.parametrize("version", [b"1.0", b"1.1"])
def test_an_absolute_target_becomes_a_path_and_a_host(
    target: bytes, path: bytes, host: bytes, version: bytes
) -> None:
    request = request_of(make_gate(), b"GET %s HTTP/%s\r\nX: y\r\nHost: other\r\n\r\n" % (target, version))
    assert (request.target, dict(request.headers)) == (path, {b"host": host, b"x": b"y"})
    assert request.http_version == version


@pytest.mark.parametrize(
    "head",
    [
        b"GET http://a@b/ HTTP/1.1\r\nHost: b",
        b"GET http:/// HTTP/1.1\r\nHost: b",
        b"GET ftp://b/ HTTP/1.1\r\nHost: b",
        b"GET http://b..c/ HTTP/1.1\r\nHost: b",
        b"GET * HTTP/1.1\r\nHost: b",
        b"GET relay HTTP/1.1\r\nHost: b",
        b"GET / HTTP/1.1\r\nHost: b..c",
    ],
)
def test_a_target_or_host_that_cannot_be_is_refused(head: bytes) -> None:
    assert refusal_of(make_gate(), head + b"\r\n\r\n") == 400


def test_options_may_be_about_the_server() -> None:
    assert request_of(make_gate(), b"OPTIONS * HTTP/1.1\r\nHost: a\r\n\r\n").target == b"*"
    assert request_of(make_gate(), b"OPTIONS http://a HTTP/1.1\r\nHost: a\r\n\r\n").target == b"*"


@pytest.mark.parametrize("upgrade", [b"h2c", b"TLS/1.0, h2c", b"\xff", b"", b"websocket2"])
def test_another_protocol_is_ignored_and_its_request_is_the_last(upgrade: bytes) -> None:
    gate = make_gate()
    head = b"POST / HTTP/1.1\r\nHost: relay\r\nContent-Length: 2\r\nConnection: Upgrade, HTTP2-Settings\r\n"
    head += b"Upgrade: %s\r\nHTTP2-Settings: AAMAAABk\r\n\r\n" % upgrade
    request = request_of(gate, head + b"ab" + b"GET / HTTP/1.1\r\nHost: relay\r\n\r\n")
    assert {b"upgrade", b"http2-settings"}.isdisjoint(dict(request.headers))
    assert isinstance(gate.next_event(), h11.Data)
    assert isinstance(gate.next_event(), h11.EndOfMessage)
    assert gate.next_event() is h11.NEED_DATA
    answer = gate.send(h11.Response(status_code=200, headers=[("content-length", "0")]))
    assert answer is not None
    assert b"\r\nConnection: close\r\n" in answer
    gate.send(h11.EndOfMessage())
    assert gate.our_state is h11.MUST_CLOSE


@pytest.mark.parametrize("upgrade", [b"websocket", b"h2c, WebSocket", b"h2c\r\nUpgrade: websocket"])
def test_a_websocket_is_refused(upgrade: bytes) -> None:
    assert refusal_of(make_gate(), b"GET / HTTP/1.1\r\nHost: relay\r\nUpgrade: %s\r\n\r\n" % upgrade) == 400
    request_of(make_gate(), b"GET / HTTP/1.0\r\nUpgrade: %s\r\n\r\n" % upgrade)


@pytest.mark.parametrize("target", [b"/ws?a=b", b"wss://relay/ws", b"/elsewhere"])
def test_a_websocket_is_given_back_as_it_came(target: bytes) -> None:
    gate = RequestGate(head_bytes=200, body_bytes=10, gives_back=True)
    head = b"GET %s HTTP/1.1\r\nHost: relay\r\nUPGRADE: h2c, WebSocket\r\nX: y\r\nx: z" % target
    gate.receive_data(head + b"\r\n\r\n" + b"\x81\0")
    with pytest.raises(WebSocketWanted) as caught:
        gate.next_event()
    assert (caught.value.head, caught.value.rest) == (head, b"\x81\0")
    for other in (
        b"GET / HTTP/1.1\r\nHost: relay\r\nUpgrade: h2c\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: a\r\n\r\n",
    ):
        request_of(RequestGate(head_bytes=200, body_bytes=10, gives_back=True), other)


@pytest.mark.parametrize("line", [b"GET relay HTTP/1.1", b"GET / HTTP/1.1\r\nHost: b c"])
def test_a_malformed_websocket_request_is_refused_at_the_gate(line: bytes) -> None:
    gate = RequestGate(head_bytes=200, body_bytes=10, gives_back=True)
    assert refusal_of(gate, line + b"\r\nHost: a\r\nUpgrade: websocket\r\n\r\n") == 400


POST = b"POST / HTTP/1.1\r\nHost: relay\r\nContent-Length: 1\r\n\r\nx"


@pytest.mark.parametrize("piece", [1, 2, 3, 1000])
@pytest.mark.parametrize("line", [b"\r\n", b"\n", b""])
def test_an_empty_line_before_a_request_is_skipped(line: bytes, piece: int) -> None:
    gate, read = make_gate(), 0
    sent = (line + POST) * 3 + line
    for start in range(0, len(sent), piece):
        gate.receive_data(sent[start : start + piece])
        while (event := gate.next_event()) not in (h11.NEED_DATA, h11.PAUSED):
            if isinstance(event, h11.EndOfMessage):
                read += 1
                gate.send(h11.Response(status_code=200, headers=[("content-length", "0")]))
                gate.send(h11.EndOfMessage())
                gate.start_next_cycle()
    assert read == 3


@pytest.mark.parametrize("lines", [b"\r\n\r\n", b"\n\n", b"\r\n\n", b"\rG", b"\r\n "])
def test_a_second_empty_line_is_refused(lines: bytes) -> None:
    assert refusal_of(make_gate(), lines + POST) == 400


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


def test_data_after_the_last_request_is_dropped_without_an_error() -> None:
    gate = make_gate()
    gate.receive_data(b"GET / HTTP/1.1\r\nHost: relay\r\nConnection: close\r\n\r\nmore")
    assert isinstance(gate.next_event(), h11.Request)
    assert isinstance(gate.next_event(), h11.EndOfMessage)
    for _ in range(3):
        gate.receive_data(b"x" * 1000)
        assert gate.next_event() is h11.NEED_DATA
    assert gate.trailing_data == (b"more", False)

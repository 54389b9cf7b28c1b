"""Request heads and upgrades, from devices, browsers and attackers."""

import base64
import json
import time
from urllib.parse import parse_qsl

import h11
import pytest
import wsproto
import wsproto.events
from hypothesis import example, given
from hypothesis import strategies as st
from websockets.client import ClientProtocol
from websockets.uri import parse_uri

from brewos_relay.wire.handshake import (
    HEAD_END,
    Refusal,
    Request,
    accept_upgrade,
    begins_like_http,
    encode_response,
    is_head_only,
    parse_head,
    skip_empty_line,
    split_target,
)

KEY = "dGhlIHNhbXBsZSBub25jZQ=="  # the example of RFC 6455 §1.3
ACCEPT = "s3pPLMBiTxaQ9kYGzzhZRbK+xOo="

DEVICE = (
    "GET /ws/device?id=BRW-12345678&key=0123456789abcdefghijklmnopqrstuvwxyzABCDEFG HTTP/1.1\r\n"
    "Host: cloud.example:443\r\n"
    "Connection: Upgrade\r\n"
    "Upgrade: websocket\r\n"
    "Sec-WebSocket-Version: 13\r\n"
    f"Sec-WebSocket-Key: {KEY}\r\n"
    "Sec-WebSocket-Protocol: arduino\r\n"
    "Origin: file://\r\n"
    "User-Agent: arduino-WebSocket-Client"
).encode()

CHROMIUM = (
    "GET /ws/client?token=a.b.c&device=BRW-12345678 HTTP/1.1\r\n"
    "Host: localhost:3001\r\n"
    "Connection: Upgrade\r\n"
    "Pragma: no-cache\r\n"
    "Cache-Control: no-cache\r\n"
    "User-Agent: Mozilla/5.0 (X11; Linux x86_64) AppleWebKit/537.36 (KHTML, like Gecko) Chrome/131.0.0.0"
    " Safari/537.36\r\n"
    "Upgrade: websocket\r\n"
    "Origin: http://localhost:3001\r\n"
    "Sec-WebSocket-Version: 13\r\n"
    "Accept-Encoding: gzip, deflate, br, zstd\r\n"
    "Accept-Language: en-US,en;q=0.9\r\n"
    "Cookie: theme=dark; other=1\r\n"
    f"Sec-WebSocket-Key: {KEY}\r\n"
    "Sec-WebSocket-Extensions: permessage-deflate; client_max_window_bits"
).encode()


def upgrade_head(**changes: str | None) -> bytes:
    """Build an upgrade request; headers (`_` for `-`) are changed or added, or left out if they are None."""
    headers: dict[str, str | None] = {
        "host": "relay.example",
        "connection": "Upgrade",
        "upgrade": "websocket",
        "sec-websocket-version": "13",
        "sec-websocket-key": KEY,
    }
    headers.update({name.replace("_", "-"): value for name, value in changes.items()})
    lines = [f"{name}: {value}" for name, value in headers.items() if value is not None]
    return "\r\n".join(["GET /ws HTTP/1.1", *lines]).encode("latin-1")


def accept(head: bytes) -> dict[str, str]:
    """Answer an upgrade request; return the headers of the 101."""
    answer = accept_upgrade(parse_head(head))
    assert answer.endswith(HEAD_END)
    first, *lines = answer.removesuffix(HEAD_END).decode().split("\r\n")
    assert first == "HTTP/1.1 101 Switching Protocols"
    headers = {line.partition(": ")[0]: line.partition(": ")[2] for line in lines}
    assert len(headers) == len(lines)
    return headers


def refuse(head: bytes) -> Refusal:
    """Expect a head, or the upgrade that it asks for, to be refused."""
    with pytest.raises(Refusal) as caught:
        accept_upgrade(parse_head(head))
    return caught.value


# -- Heads ------------------------------------------------------------------------------------------------


def test_a_device_s_request_is_read() -> None:
    request = parse_head(DEVICE)
    assert request.method == "GET"
    assert request.path == "/ws/device"
    assert request.parameters() == {
        "id": "BRW-12345678",
        "key": "0123456789abcdefghijklmnopqrstuvwxyzABCDEFG",
    }
    assert request.headers["host"] == "cloud.example:443"
    assert request.headers["origin"] == "file://"
    assert request.minor_version == 1
    assert request.wants_websocket


def test_a_plain_request_is_read() -> None:
    request = parse_head(b"POST /api/x HTTP/1.0\r\nContent-Length: 3\r\nX-Empty:\r\nX-Tabs:\t a \t b\t ")
    assert (request.method, request.path, request.query) == ("POST", "/api/x", "")
    assert request.headers == {"content-length": "3", "x-empty": "", "x-tabs": "a \t b"}
    assert request.minor_version == 0
    assert not request.wants_websocket


@pytest.mark.parametrize(
    ("version", "upgrade", "wanted"),
    [
        ("1.1", "websocket", True),
        ("1.1", "h2c, WebSocket", True),
        ("1.1", "h2c", False),
        ("1.1", "websocket2", False),
        ("1.1", "", False),
        ("1.0", "websocket", False),  # it has no upgrades
    ],
)
def test_a_request_may_want_a_websocket(version: str, upgrade: str, wanted: bool) -> None:
    head = f"GET / HTTP/{version}\r\nHost: a\r\nUpgrade: {upgrade}".encode()
    assert parse_head(head).wants_websocket is wanted


@pytest.mark.parametrize(
    ("target", "path", "query", "host"),
    [
        ("http://relay.example/ws?a=b", "/ws", "a=b", "relay.example"),
        ("https://relay.example:8443/ws", "/ws", "", "relay.example:8443"),
        ("ws://relay.example/ws/client?token=x", "/ws/client", "token=x", "relay.example"),
        ("WSS://Relay.Example//a//b", "//a//b", "", "Relay.Example"),
        ("http://[2001:db8::7]:80/", "/", "", "[2001:db8::7]:80"),
        ("http://relay.example", "/", "", "relay.example"),
        ("http://relay.example?a=b/c", "/", "a=b/c", "relay.example"),
        ("http://relay.example./a", "/a", "", "relay.example."),
    ],
)
def test_the_authority_of_a_whole_address_replaces_the_host(
    target: str, path: str, query: str, host: str
) -> None:
    request = parse_head(f"GET {target} HTTP/1.1\r\nHost: other.example".encode())
    assert (request.path, request.query, request.headers["host"]) == (path, query, host)


def test_a_whole_address_takes_no_host_header_away() -> None:
    assert refuse(b"GET http://relay.example/ HTTP/1.1\r\nX: y").status == 400
    assert refuse(b"GET http://relay.example/ HTTP/1.1\r\nHost: a b").status == 400
    assert parse_head(b"GET http://relay.example/ HTTP/1.0").headers == {"host": "relay.example"}


@pytest.mark.parametrize(
    "target",
    [
        "ftp://relay.example/",
        "file:///etc/passwd",
        "javascript:alert(1)",
        "http:///path",
        "http://",
        "http:relay.example",
        "http:/relay.example/",
        "relay.example/",
        "http://ada@relay.example/",
        "http://ada:secret@relay.example/",
        "http://relay.example:port/",
        "http://relay.example#x",
        "http://[::1/",
        "http://a\\b/",
        "*x",
    ],
)
def test_another_target_is_refused(target: str) -> None:
    assert refuse(f"GET {target} HTTP/1.1\r\nHost: a".encode()).status == 400


@pytest.mark.parametrize("target", ["*", "http://relay.example"])
def test_options_may_be_about_the_server(target: str) -> None:
    assert parse_head(f"OPTIONS {target} HTTP/1.1\r\nHost: a".encode()).path == "*"
    assert split_target("OPTIONS", "http://relay.example/") == ("/", "relay.example")
    assert refuse(b"GET * HTTP/1.1\r\nHost: a").status == 400


def test_headers_that_come_again_are_joined() -> None:
    request = parse_head(b"GET / HTTP/1.1\r\nHost: a\r\nAccept: x\r\nACCEPT: y\r\naccept:")
    assert request.headers["accept"] == "x, y, "


def test_any_other_byte_of_a_header_value_is_latin_1() -> None:
    request = parse_head(b"GET / HTTP/1.1\r\nHost: a\r\nX: \xe9\xff")
    assert request.headers["x"] == "éÿ"


@pytest.mark.parametrize(
    "host",
    [
        "relay.example",
        "relay.example:",
        "relay.example:3001",
        "127.0.0.1:1",
        "[::1]",
        "[fe80::1]:3001",
        "a_b",
    ],
)
def test_hosts_of_all_kinds_are_fine(host: str) -> None:
    assert parse_head(f"GET / HTTP/1.1\r\nHost: {host}".encode()).headers["host"] == host


def test_an_old_client_need_not_say_the_host() -> None:
    assert parse_head(b"GET / HTTP/1.0").headers == {}
    assert parse_head(b"GET / HTTP/1.1\r\nHost:").headers == {"host": ""}


@pytest.mark.parametrize(
    "host",
    [
        "a b",
        "a/b",
        "a@b",
        "http://a",
        "a:b",
        "a:123456",
        "::1",
        "[::1",
        "[::1]x",
        "[]",
        "a,\tb",
        "a\\b",
        "é",
        "a?",
        "a#",
    ],
)
def test_a_bad_host_is_refused(host: str) -> None:
    assert refuse(f"GET / HTTP/1.1\r\nHost: {host}".encode("latin-1")).status == 400


BAD_HEADS = {
    "nothing": b"",
    "an empty line": b"\r\nGET / HTTP/1.1\r\nHost: a",
    "TLS": b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
    "HTTP/0.9": b"GET /",
    "HTTP/2": b"PRI * HTTP/2.0",
    "HTTP/1.2": b"GET / HTTP/1.2\r\nHost: a",
    "HTTP/1.10": b"GET / HTTP/1.10\r\nHost: a",
    "small letters": b"get / HTTP/1.1\r\nHost: a",
    "two spaces": b"GET  / HTTP/1.1\r\nHost: a",
    "a space in the target": b"GET /a b HTTP/1.1\r\nHost: a",
    "a space after the version": b"GET / HTTP/1.1 \r\nHost: a",
    "no target": b"GET HTTP/1.1\r\nHost: a",
    "a target with a byte above ASCII": b"GET /\xe9 HTTP/1.1\r\nHost: a",
    "a target without a slash": b"GET ws HTTP/1.1\r\nHost: a",
    "a target for CONNECT": b"CONNECT relay.example:443 HTTP/1.1\r\nHost: a",
    "a very long method": b"G" * 21 + b" / HTTP/1.1\r\nHost: a",
    "a NUL in the target": b"GET /\0 HTTP/1.1\r\nHost: a",
    "a NUL in a header": b"GET / HTTP/1.1\r\nHost: a\r\nX: \0",
    "a NUL in a name": b"GET / HTTP/1.1\r\nHost: a\r\nX\0: y",
    "line feeds alone": b"GET / HTTP/1.1\nHost: a",
    "one line feed alone": b"GET / HTTP/1.1\r\nHost: a\nX: y",
    "a carriage return alone": b"GET / HTTP/1.1\r\nHost: a\rX: y",
    "a carriage return at the end": b"GET / HTTP/1.1\r\nHost: a\r",
    "a line feed at the end": b"GET / HTTP/1.1\r\nHost: a\n",
    "a folded header": b"GET / HTTP/1.1\r\nHost: a\r\nX: y\r\n z",
    "a folded first header": b"GET / HTTP/1.1\r\n Host: a",
    "no colon": b"GET / HTTP/1.1\r\nHost: a\r\nX",
    "no name": b"GET / HTTP/1.1\r\nHost: a\r\n: x",
    "a space before the colon": b"GET / HTTP/1.1\r\nHost : a",
    "a name with a parenthesis": b"GET / HTTP/1.1\r\nHost: a\r\n(X): y",
    "an empty header line": b"GET / HTTP/1.1\r\nHost: a\r\n\r\nX: y",
    "no host": b"GET / HTTP/1.1\r\nX: y",
    "the same host twice": b"GET / HTTP/1.1\r\nHost: a\r\nHost: a",
    "two hosts": b"GET / HTTP/1.1\r\nHost: a\r\nhost: b",
    "an empty host and another": b"GET / HTTP/1.1\r\nHost:\r\nHost: b",
    "two empty hosts": b"GET / HTTP/1.1\r\nHost:\r\nHost:",
    "a bad host in HTTP/1.0": b"GET / HTTP/1.0\r\nHost: a b",
}


@pytest.mark.parametrize("head", BAD_HEADS.values(), ids=BAD_HEADS.keys())
def test_a_bad_head_is_refused(head: bytes) -> None:
    with pytest.raises(Refusal) as caught:
        parse_head(head)
    assert caught.value.status == 400


@pytest.mark.parametrize(
    "lines",
    [b"A: 1\r\nno colon", b"no colon\r\nA: 1", b"A: 1\r\n folded", b"A: 1\x00\r\nB: 2", b"A: 1\nB: 2"],
)
def test_one_malformed_line_among_others_is_refused(lines: bytes) -> None:
    with pytest.raises(Refusal, match="a header line is malformed"):
        parse_head(b"GET / HTTP/1.1\r\nHost: a\r\n" + lines)


@pytest.mark.parametrize("line", [b"X:" + b" " * 8000 + b"\0", b"X:" + b"\t" * 8000 + b"\x7f"])
def test_a_bad_head_costs_little_time(line: bytes) -> None:
    costs_s = []
    for _ in range(3):  # a collection of garbage may fall into one
        began_s = time.thread_time()
        refuse(b"GET / HTTP/1.1\r\nHost: a\r\n" + line)
        costs_s.append(time.thread_time() - began_s)
    assert min(costs_s) < 0.02


@pytest.mark.parametrize(
    ("data", "rest"),
    [
        (b"", b""),
        (b"GET", b"GET"),
        (b"\r\nGET", b"GET"),
        (b"\nGET", b"GET"),
        (b"\r", b""),  # it may be the beginning of an empty line
        (b"\r\n", b""),
        (b"\rGET", b"\rGET"),
        (b"\r\n\r\nGET", b"\r\nGET"),
        (b"\n\nGET", b"\nGET"),
        (b" \r\nGET", b" \r\nGET"),
    ],
)
def test_one_empty_line_before_a_request_is_skipped(data: bytes, rest: bytes) -> None:
    assert skip_empty_line(data) == rest


@pytest.mark.parametrize(
    ("data", "head_only"),
    [
        (b"HEAD / HTTP/1.1", True),
        (b"HEA", True),  # the part that was received
        (b"HEADER / HTTP/1.1", False),
        (b"GET /", False),
        (b"", False),
    ],
)
def test_a_request_for_a_head_is_recognised(data: bytes, head_only: bool) -> None:
    assert is_head_only(data) is head_only


@pytest.mark.parametrize("first", [b"GET / HTTP/1.1", b"P", b"Z"])
def test_a_request_begins_with_a_capital_letter(first: bytes) -> None:
    assert begins_like_http(first)


@pytest.mark.parametrize("first", [b"", b"\x16\x03\x01", b"get", b"\r\nGET", b"@", b"[", b"\xff", b"\0"])
def test_anything_else_is_not_a_request(first: bytes) -> None:
    assert not begins_like_http(first)


# -- Query strings ----------------------------------------------------------------------------------------


def parameters(query: str) -> dict[str, str]:
    return parse_head(f"GET /ws?{query} HTTP/1.1\r\nHost: a".encode()).parameters()


def test_parameters_are_decoded() -> None:
    assert parameters("a=1&b=%C3%A9+x&c=&d&e=f=g?h") == {"a": "1", "b": "é x", "c": "", "d": "", "e": "f=g?h"}
    assert parameters("") == {}


@given(st.text(alphabet="ab=&;%+4é?/.", max_size=30))
def test_queries_without_anything_to_decode_are_read_like_others(query: str) -> None:
    target = f"/ws?{query}".encode("ascii", "ignore").decode()
    expected = dict(parse_qsl(target[4:], keep_blank_values=True, errors="replace"))
    assert parameters(target[4:]) == expected


def test_the_last_of_several_parameters_counts() -> None:
    assert parameters("token=old&device=d&token=new") == {"token": "new", "device": "d"}


@pytest.mark.parametrize("query", ["a=%ff&b=2", "%c3=1&b=2", "a=%E2%82&b=2"])
def test_invalid_utf_8_in_a_query_affects_no_other_parameter(query: str) -> None:
    assert parameters(query)["b"] == "2"
    assert "\ufffd" in "".join([*parameters(query), *parameters(query).values()])


@pytest.mark.parametrize("query", ["&".join(f"p{i}=1" for i in range(51)), "&" * 60])
def test_a_query_that_cannot_be_read_is_refused(query: str) -> None:
    with pytest.raises(Refusal) as caught:
        parameters(query)
    assert caught.value.status == 400
    assert query not in str(caught.value)
    assert caught.value.__cause__ is None  # it would put the query into a log
    assert caught.value.__suppress_context__


# -- The upgrade ------------------------------------------------------------------------------------------


def test_a_device_is_accepted() -> None:
    answer = accept_upgrade(parse_head(DEVICE))
    assert b"\r\nConnection: Upgrade\r\n" in answer  # the only spelling that devices understand
    assert accept(DEVICE) == {
        "Upgrade": "websocket",
        "Connection": "Upgrade",
        "Sec-WebSocket-Accept": ACCEPT,
        "Sec-WebSocket-Protocol": "arduino",
    }


def test_a_browser_is_accepted_without_the_extension_that_it_offers() -> None:
    assert accept(CHROMIUM) == {
        "Upgrade": "websocket",
        "Connection": "Upgrade",
        "Sec-WebSocket-Accept": ACCEPT,
    }


def test_values_may_be_spelt_in_other_ways() -> None:
    assert accept(upgrade_head(connection="keep-alive, upgrade", upgrade="h2c, WebSocket"))
    assert accept(upgrade_head(connection="UPGRADE,close"))


@pytest.mark.parametrize("offer", ["chat", "chat, superchat", "chat,superchat", " chat ,x"])
def test_the_first_subprotocol_is_agreed_on(offer: str) -> None:
    assert accept(upgrade_head(sec_websocket_protocol=offer))["Sec-WebSocket-Protocol"] == "chat"


@pytest.mark.parametrize("offer", ["", ",", ", chat", "a b", "é", "a;b", '"chat"', "a\tb"])
def test_a_bad_subprotocol_is_refused(offer: str) -> None:
    assert refuse(upgrade_head(sec_websocket_protocol=offer)).status == 400


@pytest.mark.parametrize("upgrade", [None, "", "h2c", "websocket2", "web socket"])
def test_another_protocol_is_refused_with_the_name_of_this_one(upgrade: str | None) -> None:
    refusal = refuse(upgrade_head(upgrade=upgrade))
    assert refusal.status == 426
    assert refusal.headers["Upgrade"] == "websocket"
    assert b"\r\nConnection: Upgrade, close\r\n" in refusal.encode()


@pytest.mark.parametrize("version", [None, "", "8", "12", "14", "13, 8", "13, 13", "013", "xiii"])
def test_another_version_is_refused_with_the_number_of_this_one(version: str | None) -> None:
    refusal = refuse(upgrade_head(sec_websocket_version=version))
    assert refusal.status == 426
    assert refusal.headers["Sec-WebSocket-Version"] == "13"
    assert b"\r\nConnection: Upgrade, close\r\n" in refusal.encode()


@pytest.mark.parametrize("connection", [None, "", "keep-alive", "close", "upgraded"])
def test_a_connection_that_is_not_to_be_upgraded_is_refused(connection: str | None) -> None:
    assert refuse(upgrade_head(connection=connection)).status == 400


@pytest.mark.parametrize(
    "key",
    [
        None,
        "",
        "x",
        "====",
        base64.b64encode(bytes(15)).decode(),
        base64.b64encode(bytes(17)).decode(),
        KEY[:-1],
        KEY[:-2],
        KEY + "=",
        f"{KEY}, {KEY}",
        "dGhlIHNhbXBs ZSBub25jZQ==",
        "dGhlIHNhbXBsZSBub25jZ\xe9==",
        "dGhl-HNhbXBsZSBub25jZQ==",
    ],
)
def test_a_bad_key_is_refused(key: str | None) -> None:
    assert refuse(upgrade_head(sec_websocket_key=key)).status == 400


@pytest.mark.parametrize("length", ["0", "00"])
def test_empty_body_is_accepted(length: str) -> None:
    assert accept(upgrade_head(content_length=length))


@pytest.mark.parametrize("length", ["5", "x", "", "-0", "+0", "0, 5", "0x0", "0" * 30])
def test_a_body_is_refused(length: str) -> None:
    assert refuse(upgrade_head(content_length=length)).status == 400
    assert refuse(upgrade_head(transfer_encoding="chunked")).status == 400


@pytest.mark.parametrize("method", ["POST", "HEAD", "OPTIONS"])
def test_another_method_is_refused(method: str) -> None:
    assert refuse(upgrade_head().replace(b"GET", method.encode())).status == 400


def test_http_1_0_is_refused() -> None:
    assert refuse(upgrade_head().replace(b"HTTP/1.1", b"HTTP/1.0")).status == 400


def test_wsproto_takes_the_answer() -> None:
    client = wsproto.WSConnection(wsproto.ConnectionType.CLIENT)
    head = client.send(
        wsproto.events.Request(host="relay.example:3001", target="/ws?a=b", subprotocols=["chat"])
    )
    client.receive_data(accept_upgrade(parse_head(head.removesuffix(HEAD_END))))
    (event,) = client.events()
    assert isinstance(event, wsproto.events.AcceptConnection)
    assert event.subprotocol == "chat"
    assert event.extensions == []


def test_websockets_takes_the_answer() -> None:
    client = ClientProtocol(parse_uri("ws://relay.example/ws?token=x"))
    client.send_request(client.connect())
    (head,) = client.data_to_send()
    client.receive_data(accept_upgrade(parse_head(head.removesuffix(HEAD_END))))
    assert client.handshake_exc is None
    assert client.subprotocol is None
    assert client.extensions == []


# -- Refusals ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("status", [400, 401, 403, 404, 408, 426, 429, 431, 503])
def test_a_refusal_is_an_http_response_that_ends_the_connection(status: int) -> None:
    refusal = Refusal(status, 'not with "this"', headers={"Retry-After": "30"})
    assert str(refusal) == f'{status} not with "this"'
    client = h11.Connection(h11.CLIENT)
    client.send(h11.Request(method="GET", target="/", headers=[("Host", "a")]))
    client.send(h11.EndOfMessage())
    client.receive_data(refusal.encode())
    response = client.next_event()
    assert isinstance(response, h11.Response)
    assert response.status_code == status
    assert response.reason
    headers = dict(response.headers)
    assert headers[b"connection"] == b"close"
    assert headers[b"retry-after"] == b"30"
    assert headers[b"content-type"] == b"application/json"
    data = client.next_event()
    assert isinstance(data, h11.Data)
    assert json.loads(bytes(data.data)) == {"error": 'not with "this"'}
    assert isinstance(client.next_event(), h11.EndOfMessage)
    assert client.their_state is h11.MUST_CLOSE


def test_the_answer_to_head_has_every_header_and_no_body() -> None:
    refusal = Refusal(404, "nothing here", headers={"Retry-After": "30"})
    head, end, body = refusal.encode().partition(HEAD_END)
    assert body
    assert refusal.encode(head_only=True) == head + end
    assert encode_response(200, {"X": "y"}, b"abc", head_only=True).endswith(HEAD_END)
    assert b"\r\nContent-Length: 3\r\n" in encode_response(200, {}, b"abc", head_only=True)


def test_a_refusal_needs_no_headers() -> None:
    assert Refusal(404, "nothing here").headers == {}


# -- Anything at all --------------------------------------------------------------------------------------


def read_everything(head: bytes) -> Request | None:
    """Do everything that is done with a head; None if it was refused on the way."""
    try:
        request = parse_head(head)
        request.parameters()
        accept_upgrade(request)
    except Refusal as refusal:
        refusal.encode()
        return None
    return request


@given(st.binary(max_size=300))
@example(b"")
def test_no_bytes_end_in_anything_but_a_refusal(head: bytes) -> None:
    read_everything(head)


@given(
    st.lists(
        st.tuples(
            st.integers(0, 1000), st.sampled_from(["replace", "insert", "delete"]), st.binary(max_size=5)
        )
    ),
    st.sampled_from([DEVICE, CHROMIUM, upgrade_head()]),
)
def test_no_changed_request_ends_in_anything_but_a_refusal(
    changes: list[tuple[int, str, bytes]], head: bytes
) -> None:
    changed = bytearray(head)
    for place, how, data in changes:
        place = place % (len(changed) + 1)
        if how == "delete":
            del changed[place : place + len(data)]
        else:
            changed[place : place + (len(data) if how == "replace" else 0)] = data
    read_everything(bytes(changed))


@given(
    st.lists(st.tuples(st.binary(max_size=20), st.binary(max_size=40)), max_size=8), st.binary(max_size=60)
)
def test_no_headers_end_in_anything_but_a_refusal(headers: list[tuple[bytes, bytes]], query: bytes) -> None:
    lines = [b"GET /ws?%s HTTP/1.1" % query, b"Host: a", *(b"%s: %s" % header for header in headers)]
    read_everything(b"\r\n".join(lines))


@given(st.binary(min_size=16, max_size=16))
def test_every_key_is_answered(nonce: bytes) -> None:
    assert accept(upgrade_head(sec_websocket_key=base64.b64encode(nonce).decode()))


def test_the_query_is_parsed_once() -> None:
    request = parse_head(b"GET /ws?a=1 HTTP/1.1\r\nHost: a")
    assert request.parameters() is request.parameters()

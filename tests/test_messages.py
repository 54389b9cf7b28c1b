from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from brewos_relay import messages
from brewos_relay.delivery import Delivery
from brewos_relay.messages import Head, Message, encode

JSON_SCALARS = st.none() | st.booleans() | st.integers(-(2**63), 2**64 - 1) | st.text(max_size=20)
NUMBERS = st.floats(allow_nan=False, allow_infinity=False)
CONTENTS = st.dictionaries(
    st.text(max_size=8),
    st.recursive(
        JSON_SCALARS | NUMBERS,
        lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
        max_leaves=12,
    ),
    max_size=5,
)


def _binary(content: Any) -> Message:
    return Message(msgspec.msgpack.encode(content), is_text=False)


def _decoded(message: Message) -> Any:
    assert message.is_text
    return msgspec.json.decode(message.payload)


@given(content=CONTENTS, message_type=st.text(max_size=20))
def test_type_is_read_from_json_and_messagepack(content: dict[str, Any], message_type: str) -> None:
    content["type"] = message_type
    assert encode(content).peek_type() == message_type
    assert _binary(content).peek_type() == message_type


@pytest.mark.parametrize(
    "payload",
    [
        b"",
        b"null",
        b"[]",
        b'"type"',
        b"{}",
        b'{"type":1}',
        b'{"type":null}',
        b'{"type":["status"]}',
        b'{"Type":"status"}',
        b'{"inner":{"type":"status"}}',
        b'{"type":"status"',
        b'{"type":"status"}{"type":"status"}',
        b'{"type":"status"} x',
        b'{"type":"\\ud800"}',
        b'{"type":"status","deep":' + b"[" * 100_000,
    ],
)
def test_text_message_without_a_text_type_has_no_type(payload: bytes) -> None:
    assert Message(payload).peek_type() is None


@pytest.mark.parametrize(
    "payload",
    [
        b"",
        b"\xc0",
        b"\x90",
        b"\x80",
        b"\x81\xa4type\x01",
        b"\x81\xa4type\xc0",
        b"\x81\xa4type\xc4\x01x",
        b"\x81\xc4\x04type\xa1x",
        b"\x82\xa4type\xa1x",
        b"\x81\xa4type\xa1x\xc0",
        b"\x81\xa4type\xa9x",
        b"\x82\xa4type\xa1x\xa4deep" + b"\x91" * 100_000,
    ],
)
def test_binary_message_without_a_text_type_has_no_type(payload: bytes) -> None:
    assert Message(payload, is_text=False).peek_type() is None


@pytest.mark.parametrize(
    "more",
    [
        rb'"ssid":"\ud800"',
        rb'"\udfff":1',
        rb'"groups":{"\ud800":[1]}',
        b'"n":' + b"1" * 5000,
        b'"n":1e999,"n":2',
    ],
)
def test_type_of_any_object_is_read(more: bytes) -> None:
    message = Message(b'{"type":"status",%b,"seq":7,"level":"error"}' % more)
    assert message.peek() == Head("status", 7, "error")
    assert message.why_invalid() == ""


@pytest.mark.parametrize(
    "more",
    [
        b"\x01\x02",
        b"\xc4\x01a\x02",
        b"\xc0\x02",
        b"\xca\x00\x00\x00\x00\x02",
        b"\xc3\x02",
        b"\x91\x01\x02",
        b"\xd4\x05\x01\x02",
        b"\xa1\xff\x02",
        b"\xa1n\xa1\xff",
        b"\xa1n\xd6\xff\x00\x00\x00\x00",
        b"\xa1n\x81\x01\x02",
    ],
)
def test_type_of_any_map_is_read(more: bytes) -> None:
    payload = b"\x84\xa4type\xa6status%b\xa3seq\x07\xa5level\xa5error" % more
    assert Message(payload, is_text=False).peek() == Head("status", 7, "error")


@pytest.mark.parametrize(
    "message",
    [
        Message(rb'{"type":"log","seq":"\ud800","level":"error"}'),
        Message(b'{"type":"log","seq":1e999,"level":"error"}'),
        Message(b"\x83\xa4type\xa3log\xa3seq\xa1\xff\xa5level\xa5error", is_text=False),
    ],
)
def test_unreadable_number_is_none(message: Message) -> None:
    assert message.peek() == Head("log", None, "error")


@pytest.mark.parametrize(
    ("message", "why"),
    [
        (Message(b"{}"), "it has no 'type'"),
        (Message(b'{"type":1}'), "its 'type' is not a text"),
        (Message(rb'{"type":"\ud800"}'), "its 'type' is not a text"),
        (Message(b'{"type":"x","a":NaN}'), "JSON has no NaN"),
        (Message(b'{"type":"x"'), "'}' should be at character 11"),
        (Message(b'{"type":"x","a":' + b"[" * 100_000), "it is nested too deeply"),
        (Message(b'{"type":"\xff"}'), "a text is not UTF-8"),
        (Message(b"\x80", is_text=False), "it has no 'type'"),
        (Message(b"\x90", is_text=False), "it is not a map"),
        (Message(b"\x81\xa4type\xa1\xff", is_text=False), "its 'type' is not a text"),
    ],
)
def test_an_unreadable_message_says_why_without_its_content(message: Message, why: str) -> None:
    assert message.peek() is None
    assert message.why_invalid() == why


def test_text_stays_as_it_came() -> None:
    message = Message(b'{ "type" : "command",\n "n": 1.50 }')
    assert message.as_text() is message


@given(content=CONTENTS)
def test_messagepack_becomes_json_of_the_same_content(content: dict[str, Any]) -> None:
    text = _binary(content).as_text()
    assert text is not None
    assert _decoded(text) == content


def test_values_unknown_to_json_are_converted() -> None:
    text = _binary({"type": "command", "raw": b"\x00\xff", "bad": float("nan"), 1: 2}).as_text()
    assert text is not None
    assert _decoded(text) == {"type": "command", "raw": "AP8=", "bad": None, "1": 2}


@pytest.mark.parametrize(
    "payload",
    [
        b"",
        b"\x81",
        b"\xc1",
        b"\x81\xa4type\xa1x\xc0",
        b"\x81\xa1x\xc7\x01\x05x",  # an extension has no JSON form
        b"\x81\xa1x" + b"\x91" * 100_000,
    ],
)
def test_messagepack_that_cannot_be_json_has_no_text(payload: bytes) -> None:
    assert Message(payload, is_text=False).as_text() is None


NOT_UTF_8 = [b"\x81\xa4type\xa1\xff", b"\x82\xa4type\xa1x\xa1n\xa1\xff", b"\x82\xa4type\xa1x\xa1\xff\x01"]


def test_messagepack_type_that_is_not_utf_8_is_none() -> None:
    assert Message(NOT_UTF_8[0], is_text=False).peek_type() is None


@pytest.mark.parametrize("payload", NOT_UTF_8)
def test_messagepack_text_that_is_not_utf_8_has_no_text(payload: bytes) -> None:
    assert Message(payload, is_text=False).as_text() is None


@st.composite
def _damaged(draw: st.DrawFn) -> bytes:
    """A message with a few bytes changed, removed or added."""
    content = draw(CONTENTS) | {"type": "status"}
    encoder = draw(st.sampled_from([msgspec.json.encode, msgspec.msgpack.encode]))
    payload = bytearray(encoder(content))
    for _ in range(draw(st.integers(1, 4))):
        at = draw(st.integers(0, len(payload)))
        payload[at : at + draw(st.integers(0, 2))] = draw(st.binary(max_size=2))
    return bytes(payload)


@given(payload=_damaged() | st.binary(max_size=60))
def test_no_binary_payload_raises(payload: bytes) -> None:
    message = Message(payload, is_text=False)
    assert isinstance(message.peek_type(), str | None)
    assert isinstance(message.as_text(), Message | None)


@given(payload=_damaged() | st.binary(max_size=60))
def test_no_text_payload_raises(payload: bytes) -> None:
    message = Message(payload.decode(errors="replace").encode())
    assert isinstance(message.peek_type(), str | None)
    assert message.as_text() is message


@pytest.mark.parametrize(
    ("message", "shown"),
    [
        (Message(b'{"type":"x","password":"secret"}'), "<Message text, 32 bytes>"),
        (Message(b"\x80", is_text=False), "<Message binary, 1 bytes>"),
    ],
)
def test_repr_keeps_the_content_to_itself(message: Message, shown: str) -> None:
    assert repr(message) == shown


def test_message_is_a_value() -> None:
    assert Message(b"x") == Message(b"x", is_text=True)
    assert Message(b"x") != Message(b"x", is_text=False)
    with pytest.raises(AttributeError):
        Message(b"x").payload = b"y"  # type: ignore[misc]


def test_delivery_starts_without_an_encoding() -> None:
    delivery = Delivery((messages.DEVICE_ONLINE,))
    assert delivery.encoded is None
    delivery.encoded = b"frame"
    assert delivery.encoded == b"frame"


def test_messages_of_the_relay() -> None:
    assert messages.DEVICE_ONLINE.payload == b'{"type":"device_online"}'
    assert messages.DEVICE_OFFLINE.payload == b'{"type":"device_offline"}'
    assert messages.connected_device(1_700_000_000_123).payload == (
        b'{"type":"connected","timestamp":1700000000123}'
    )
    assert messages.connected_client(
        "s1", "BRW-00000001", device_online=True, timestamp_ms=1_700_000_000_123
    ).payload == (
        b'{"type":"connected","sessionId":"s1","deviceId":"BRW-00000001","deviceOnline":true,'
        b'"timestamp":1700000000123}'
    )


def test_answers_for_an_absent_device() -> None:
    offline = _decoded(messages.device_offline_error("BRW-00000001"))
    assert offline.pop("message")
    assert offline == {"type": "error", "error": "device_offline", "deviceId": "BRW-00000001"}
    assert messages.device_status("BRW-00000001", online=False, last_seen=None).payload == (
        b'{"type":"device_status","deviceId":"BRW-00000001","online":false,"lastSeen":null}'
    )
    seen = messages.device_status("X", online=True, last_seen="2023-11-14T22:13:20.123Z", snapshotAgeMs=7)
    assert _decoded(seen) == {
        "type": "device_status",
        "deviceId": "X",
        "online": True,
        "lastSeen": "2023-11-14T22:13:20.123Z",
        "snapshotAgeMs": 7,
    }


@pytest.mark.parametrize(
    ("message", "payload"),
    [
        (messages.state_request("request_state", 17), b'{"type":"request_state","timestamp":17}'),
        (messages.keepalive(17), b'{"type":"keepalive","timestamp":17}'),
        (messages.pong(17, 16.5), b'{"type":"pong","timestamp":17,"clientTimestamp":16.5}'),
        (
            messages.metrics(17, session_id="s1", clients=2, device_online=True, queued_messages=3),
            (
                b'{"type":"metrics","timestamp":17,"connection":{"sessionId":"s1","clients":2},'
                b'"deviceOnline":true,"queuedMessages":3}'
            ),
        ),
        (
            messages.queued_message_sent("command", 17),
            b'{"type":"queued_message_sent","originalTimestamp":17,"messageType":"command"}',
        ),
        (
            messages.command_status("r1", "queued", 17),
            b'{"type":"command_status","requestId":"r1","status":"queued","timestamp":17}',
        ),
        (
            messages.token_expiring("2023-11-14T22:13:20.123Z", 300),
            (
                b'{"type":"token_expiring","expiresAt":"2023-11-14T22:13:20.123Z","expiresIn":300,'
                b'"refreshRequired":true}'
            ),
        ),
        (
            messages.auth_refreshed("2023-11-14T22:13:20.123Z"),
            b'{"type":"auth_refreshed","success":true,"tokenExpiresAt":"2023-11-14T22:13:20.123Z"}',
        ),
        (
            messages.auth_refreshed(None, error="too old"),
            b'{"type":"auth_refreshed","success":false,"error":"too old"}',
        ),
        (messages.key_rotate("k" * 43), b'{"type":"key_rotate","key":"' + b"k" * 43 + b'"}'),
        (messages.restarting(20_000), b'{"type":"restarting","reconnectInMs":20000}'),
    ],
    ids=lambda value: value.peek_type() if isinstance(value, Message) else "",
)
def test_messages_to_apps_have_the_fields_that_apps_know(message: Message, payload: bytes) -> None:
    assert message.payload == payload


def test_head_of_a_device_message() -> None:
    content = {"type": "log", "seq": 7, "level": "error", "message": "x"}
    for message in (encode(content), _binary(content)):
        head = message.peek()
        assert head is not None
        assert (head.type, head.seq, head.level) == ("log", 7, "error")
    for message in (encode({"type": "x"}), _binary({"type": "x", "seq": None})):
        head = message.peek()
        assert head is not None
        assert (head.type, head.seq, head.level) == ("x", None, None)


@pytest.mark.parametrize("odd", [None, "x", 1.5, [1], {"a": 1}, True])
def test_only_the_type_has_to_be_of_a_kind(odd: Any) -> None:
    head = encode({"type": "x", "seq": odd, "level": odd}).peek()
    assert head is not None
    assert (head.seq, head.level) == (odd, odd)
    command = encode(
        {"type": "x", "cmd": odd, "notAfter": odd, "requestId": odd, "token": odd}
    ).peek_command()
    assert command is not None
    assert (command.cmd, command.not_after, command.request_id, command.token) == (odd, odd, odd, odd)


def test_head_of_a_command() -> None:
    command = encode(
        {
            "type": "command",
            "cmd": "set_mode",
            "mode": "on",
            "requestId": "r1",
            "notAfter": 1_700_000_000_123,
            "timestamp": 5,
            "token": "t",
            "deviceId": "BRW-00000001",
        }
    ).peek_command()
    assert command is not None
    assert (command.type, command.cmd, command.mode) == ("command", "set_mode", "on")
    assert (command.request_id, command.not_after) == ("r1", 1_700_000_000_123)
    assert (command.timestamp, command.token) == (5, "t")
    bare = encode({"type": "command"}).peek_command()
    assert bare is not None
    assert (bare.cmd, bare.mode, bare.request_id, bare.not_after) == (None, None, None, None)


@pytest.mark.parametrize("payload", [b"", b"[]", b"{}", b'{"type":1}', b"on", b'{"cmd":"tare"}'])
def test_a_command_without_a_type_is_none(payload: bytes) -> None:
    assert Message(payload).peek_command() is None


@pytest.mark.parametrize(
    ("message", "error"),
    [
        (messages.INVALID_MESSAGE, "invalid_message"),
        (messages.MESSAGE_TOO_BIG, "message_too_big"),
        (messages.DEVICE_BUSY, "device_busy"),
    ],
)
def test_errors_for_a_client_have_a_code_and_a_text(message: Message, error: str) -> None:
    content = _decoded(message)
    assert content["type"] == "error"
    assert content["error"] == error
    assert content["message"].startswith("The message was dropped: ")


@pytest.mark.parametrize(
    ("message", "error", "begin"),
    [
        (messages.OUTCOME_UNKNOWN, "outcome_unknown", "The server did not learn in time whether"),
        (messages.BUS_UNAVAILABLE, "bus_unavailable", "The command was not delivered: "),
    ],
)
def test_errors_between_instances_have_a_code_and_a_text(message: Message, error: str, begin: str) -> None:
    content = _decoded(message)
    assert (content["type"], content["error"]) == ("error", error)
    assert content["message"].startswith(begin)


def test_owners_get_a_log_line_about_a_new_key() -> None:
    content = _decoded(messages.key_pending(17))
    assert "another key" in content.pop("message")
    assert content == {"type": "log", "level": "warn", "source": "relay", "timestamp": 17}


def test_owners_are_told_of_a_device_that_another_machine_has() -> None:
    content = _decoded(messages.owner_changed(17))
    assert "owns the device now" in content.pop("message")
    assert content == {"type": "log", "level": "warn", "source": "relay", "timestamp": 17}


def test_forbidden_command_names_whom_to_ask() -> None:
    content = _decoded(messages.forbidden("BRW-00000001"))
    assert "owner" in content.pop("message")
    assert content == {"type": "error", "error": "forbidden", "deviceId": "BRW-00000001"}


@pytest.mark.parametrize(
    ("content", "wants"),
    [
        ({}, False),
        ({"requestId": None, "notAfter": None}, False),
        ({"requestId": "r"}, True),
        ({"requestId": 0}, True),
        ({"requestId": False}, True),
        ({"notAfter": 0}, True),
    ],
)
def test_senders_that_get_an_outcome(content: dict[str, Any], wants: bool) -> None:
    head = encode({"type": "command", **content}).peek_command()
    assert head is not None
    assert head.wants_status is wants


@pytest.mark.parametrize(
    ("content", "name"),
    [
        ({"type": "command", "cmd": "tare"}, "tare"),
        ({"type": "command", "cmd": "x" * 100}, "x" * 64),
        ({"type": "command", "cmd": 7}, "command"),
        ({"type": "command"}, "command"),
        ({"type": "setLogLevel", "cmd": "tare"}, "setLogLevel"),
        ({"type": "y" * 100}, "y" * 64),
        ({"type": "command", "cmd": "Größe 1"}, "Größe 1"),
        ({"type": "command", "cmd": "a\x1b[2J\nb\u202ec"}, "a?[2J?b?c"),
    ],
)
def test_a_command_has_a_name_that_can_be_shown_anywhere(content: dict[str, Any], name: str) -> None:
    head = encode(content).peek_command()
    assert head is not None
    assert head.name == name


def test_a_nul_as_it_is_makes_a_text_malformed() -> None:
    assert Message(b'{"type":"command","cmd":"tare\x00"}').peek_command() is None


def test_an_id_that_is_nested_too_deeply_to_be_repeated_is_left_out() -> None:
    deep: list[Any] = []
    for _ in range(100_000):
        deep = [deep]
    answer = _decoded(messages.command_status(deep, "delivered", 5))
    assert answer == {"type": "command_status", "requestId": None, "status": "delivered", "timestamp": 5}

import json
import math
import struct
from typing import Any

import msgspec
import pytest

from brewos_relay.core.merging import (
    HeldState,
    decode,
    fields_of,
    group_names,
    overlay,
    readable,
    readable_content,
    without_seq,
    without_volatile,
)
from brewos_relay.dialect import BREWOS, Volatile
from brewos_relay.messages import Message, encode
from support.state_messages import binary, float32, snapshot_of, status_of, update


def test_numbers_of_32_bits_have_7_digits_only_where_they_become_text() -> None:
    value = float32(93.2)
    assert value != 93.2
    snapshot = snapshot_of(
        binary({"type": "status", "seq": 1, "temps": {"group": value}}),
        binary({"type": "status_delta", "seq": 2, "temps": {"brew": value}}),
    )
    (message,) = snapshot.messages()
    assert not message.is_text
    assert message.payload.count(b"\xca" + struct.pack(">f", 93.2)) == 2
    assert snapshot.as_dict()["status"]["temps"] == {"group": 93.2, "brew": 93.2}

    snapshot = snapshot_of(
        Message(b'{"type":"status","temps":{"group":93.20}}'),
        binary({"type": "status_delta", "temps": {"brew": value}}),
    )
    assert snapshot.messages() == [Message(b'{"type":"status","temps":{"group":93.20,"brew":93.2}}')]


def test_a_change_that_cannot_be_recoded_changes_nothing() -> None:
    bad = Message(b"\x82\xa4type\xacstatus_delta\xa1x\xa1\xff", is_text=False)
    status = encode({"type": "status", "seq": 1, "x": "ok"})
    assert status_of(snapshot_of(status, bad)) == {"type": "status", "seq": 1, "x": "ok"}
    bad = Message(b'{"type":"status_delta","seq":2,"x":"\\ud800"}')
    if bad.peek() is not None:
        assert status_of(snapshot_of(binary({"type": "status", "x": "ok"}), bad))["x"] == "ok"


def test_text_that_is_not_utf_8_is_passed_on_and_left_out_of_json() -> None:
    bad = Message(b"\x82\xa4type\xa6status\xa4wifi\x81\xa4ssid\xa1\xff", is_text=False)
    snapshot = snapshot_of(bad, encode({"type": "device_info", "n": 1}))
    assert snapshot.messages()[0] == bad
    assert snapshot.as_dict() == {
        "status": {"type": "status"},
        "device_info": {"type": "device_info", "n": 1},
    }
    update(snapshot, binary({"type": "status_delta", "seq": 2, "pressure": 9}))
    assert snapshot.as_dict()["status"] == {"type": "status", "seq": 2, "pressure": 9}
    assert b"\xa4ssid\xa1\xff" in snapshot.messages()[0].payload, "the change is merged"


@pytest.mark.parametrize(
    "message",
    [
        Message(b'{"type":"device_info","n":1e999}'),
        Message(rb'{"type":"device_info","n":"\ud800"}'),
        Message(rb'{"type":"device_info","\udfff":1}'),
        Message(b"\x82\xa4type\xabdevice_info\xa1x\xc7\x01\x05x", is_text=False),
        Message(b"\x82\xa4type\xabdevice_info\xa1x\xa1\xff", is_text=False),
        Message(b"\x82\xa4type\xabdevice_info\xa1\xff\x01", is_text=False),
    ],
)
def test_values_that_json_cannot_hold_are_left_out(message: Message) -> None:
    snapshot = snapshot_of(message)
    assert snapshot.messages() == [message]
    assert snapshot.as_dict() == {"device_info": {"type": "device_info"}}


def test_status_that_cannot_be_split_is_replaced() -> None:
    status = Message(b'{"type":"status","x":' + b"[" * 700 + b"]" * 700 + b"}")
    snapshot = snapshot_of(status, encode({"type": "status_delta", "seq": 2, "a": 1}))
    assert status_of(snapshot)["a"] == 1


def test_malformed_message_has_no_fields() -> None:
    assert fields_of(Message(b"[]")) == {}
    assert fields_of(Message(b"\x81\x01", is_text=False)) == {}


def test_groups_with_keys_of_any_type_are_merged_and_carried() -> None:
    status = b"\x84\xa4type\xa6status\x05\x06\xc4\x01k\x07\xa1g\x82\x01\x02\x03\x04"
    change = b"\x84\xa4type\xacstatus_delta\xa3seq\x09\xa1g\x81\x03\x08\xa1\xff\x01"
    snapshot = snapshot_of(Message(status, is_text=False), Message(change, is_text=False))
    merged = snapshot.messages()[0].payload
    assert merged == (
        b"\x86\xa4type\xa6status\x05\x06\xc4\x01k\x07\xa1g\x82\x01\x02\x03\x08\xa3seq\x09\xa1\xff\x01"
    )
    without = without_seq(snapshot.messages()[0]).payload
    assert without == merged.replace(b"\xa3seq\x09", b"").replace(b"\x86", b"\x85", 1)


def test_groups_with_half_a_surrogate_pair_are_merged_and_carried() -> None:
    status = Message(rb'{"type":"status","\udfff":0,"wifi":{"ssid":"\ud800","rssi":-1}}')
    change = Message(rb'{"type":"status_delta","seq":2,"wifi":{"rssi":-2},"name":"\udc00"}')
    told = snapshot_of(status, change).messages()[0]
    assert json.loads(told.payload) == {
        "type": "status",
        "seq": 2,
        "\udfff": 0,
        "wifi": {"ssid": "\ud800", "rssi": -2},
        "name": "\udc00",
    }


def test_change_in_the_other_encoding_loses_only_unrepresentable_fields() -> None:
    change = Message(rb'{"type":"status_delta","seq":2,"x":"\ud800","\ud800":1,"y":1}')
    assert status_of(snapshot_of(binary({"type": "status", "x": "ok"}), change)) == {
        "type": "status",
        "seq": 2,
        "x": "ok",
        "y": 1,
    }
    packed = b"\x84\xa4type\xacstatus_delta\x01\x02\xa1x\xa1\xff\xa1y\x01"
    status = snapshot_of(encode({"type": "status", "x": "ok"}), Message(packed, is_text=False))
    assert status_of(status) == {"type": "status", "x": "ok", "y": 1}


@pytest.mark.parametrize("value", [93.2, 0.1, -12.34567, 1e-20, 1234567.5])
def test_32_bit_floats_are_written_with_7_digits(value: float) -> None:
    assert readable(float(float32(value))) == float(f"{value:.7g}")


@pytest.mark.parametrize(
    "value", [0.1, 1.0000000001, 1e300, 1_700_000_000_123.0, 16_777_217.0, -2.0, math.inf, 5, None, "x", True]
)
def test_64_bit_floats_and_integers_do_not_change(value: Any) -> None:
    assert readable(value) == value
    assert math.isnan(readable(math.nan))


def test_numbers_are_found_wherever_they_are() -> None:
    raw = float(float32(93.2))
    assert readable({"a": [raw, {"b": raw}], "c": "x"}) == {"a": [93.2, {"b": 93.2}], "c": "x"}


@pytest.mark.parametrize("is_text", [True, False])
def test_a_status_can_be_given_without_its_number(is_text: bool) -> None:
    coder = msgspec.json if is_text else msgspec.msgpack
    numbered = Message(coder.encode({"type": "status", "seq": 7, "pressure": 9.1}), is_text)
    without = without_seq(numbered)
    assert decode(without) == {"type": "status", "pressure": 9.1}
    assert without.is_text == is_text
    assert without_seq(without) is without


def test_message_without_readable_content_is_none() -> None:
    assert readable_content(encode({"a": 1})) == {"a": 1}
    assert readable_content(Message(b"{")) is None
    assert readable_content(Message(b"\xc1", is_text=False)) is None


@pytest.mark.parametrize("form", [encode, binary])
def test_volatile_groups_and_fields_are_left_out_with_the_number(form: Any) -> None:
    volatile = (Volatile("shot"), Volatile("machine", "state", "brewing"), Volatile("temps", "brew"))
    content = {"type": "status", "seq": 5, "shot": {"a": 1}, "machine": {"state": "brewing", "mode": "on"}}
    told = without_volatile(form(content), volatile)
    assert told is not None
    assert decode(told) == {"type": "status", "machine": {"mode": "on"}}
    other = {"type": "status", "machine": {"state": "ready"}, "temps": 5}
    told = without_volatile(form(other), volatile)
    assert told is not None
    assert decode(told) == other
    assert without_volatile(Message(b"[]"), volatile) is None


@pytest.mark.parametrize("form", [encode, binary])
def test_a_status_is_put_over_an_earlier_one(form: Any) -> None:
    earlier = form({"type": "status", "temps": {"brew": 1, "group": 2}, "pressure": 9, "mode": "on"})
    later = form({"type": "status", "temps": {"brew": 3}, "pressure": {"bar": 8}})
    merged = overlay(earlier, later)
    assert decode(merged) == {
        "type": "status",
        "temps": {"brew": 3, "group": 2},
        "pressure": {"bar": 8},
        "mode": "on",
    }
    assert group_names(merged) == ["temps", "pressure", "mode"]


# Held messages


def packed(content: Any) -> Message:
    return Message(msgspec.msgpack.encode(content), is_text=False)


def decoded(message: Message) -> Any:
    return (msgspec.json if message.is_text else msgspec.msgpack).decode(message.payload)


def merged(*messages: Message) -> Message:
    state = HeldState(BREWOS, is_text=messages[0].is_text)
    for message in messages:
        head = message.peek()
        assert head is not None
        state.add(message, head)
        assert state.size_bytes > 0
    return state.message()


def test_a_single_message_passes_unchanged() -> None:
    message = Message(b'{ "type": "status_delta",  "seq": 7 }')
    assert merged(message) is message


@pytest.mark.parametrize("make", [encode, packed])
def test_deltas_become_one_with_the_last_number(make: Any) -> None:
    found = merged(
        make({"type": "status_delta", "seq": 3, "temps": {"group": 1.5, "brew": {"current": 90}}}),
        make({"type": "status_delta", "seq": 4, "power": {"current": 10}, "pressure": 1}),
        make({"type": "status_delta", "seq": 6, "temps": {"group": 2.5}, "pressure": 9}),
        make({"type": "status_delta", "seq": 7, "temps": {"steam": 1}}),
    )
    assert decoded(found) == {
        "type": "status_delta",
        "seq": 7,
        "temps": {"group": 2.5, "brew": {"current": 90}, "steam": 1},
        "power": {"current": 10},
        "pressure": 9,
    }


def test_numbers_keep_their_encoding() -> None:
    body = b"\x83\xa4type\xacstatus_delta\xa3seq\x01\xa1t\xca\x42\xba\x66\x66"
    found = merged(Message(body, is_text=False), packed({"type": "status_delta", "seq": 2, "p": 1}))
    assert b"\xa1t\xca\x42\xba\x66\x66" in found.payload, "a 32-bit float stays one"


def test_status_replaces_earlier_groups_that_it_names() -> None:
    found = merged(
        encode({"type": "status", "seq": 1, "machine": {"state": "idle", "on": 1}, "stats": {"shots": 3}}),
        encode({"type": "status_delta", "seq": 2, "machine": {"state": "ready"}}),
        encode({"type": "status", "seq": 3, "machine": {"state": "idle"}}),
        encode({"type": "status_delta", "seq": 4, "power": {"current": 5}}),
    )
    assert decoded(found) == {
        "type": "status",
        "seq": 4,
        "machine": {"state": "idle"},
        "stats": {"shots": 3},
        "power": {"current": 5},
    }


def test_invalid_seq_is_left_out() -> None:
    found = merged(encode({"type": "status_delta", "a": 1}), encode({"type": "status_delta", "seq": "x"}))
    assert decoded(found) == {"type": "status_delta", "a": 1, "seq": "x"}


def test_group_that_is_not_a_map_is_replaced() -> None:
    found = merged(
        encode({"type": "status_delta", "a": {"x": 1}, "b": 2}),
        encode({"type": "status_delta", "a": None, "b": {"y": 3}}),
    )
    assert decoded(found) == {"type": "status_delta", "a": None, "b": {"y": 3}}


def test_the_first_message_decides_the_encoding() -> None:
    found = merged(packed({"type": "status", "a": 1}), encode({"type": "status_delta", "seq": 2, "b": 93.2}))
    assert (found.is_text, decoded(found)) == (False, {"type": "status", "seq": 2, "a": 1, "b": 93.2})


def test_messages_that_only_a_liberal_reader_reads_are_merged() -> None:
    found = merged(
        packed({"type": "status_delta", "seq": 1, 5: 1, "a": {b"x": 1, "y": 2}}),
        packed({"type": "status_delta", "seq": 2, 5: 3, "a": {b"x": 4}}),
    )
    assert msgspec.msgpack.decode(found.payload, strict=False) == {
        "type": "status_delta", "seq": 2, 5: 3, "a": {b"x": 4, "y": 2},
    }  # fmt: skip
    surrogate = rb'{"type":"status_delta","name":"\ud83d"}'
    text = merged(Message(surrogate), encode({"type": "status_delta", "seq": 2, "b": 1}))
    assert (
        text.payload
        == rb'{"type": "status_delta","name":"\ud83d"}'.replace(b" ", b"")[:-1] + b',"seq":2,"b":1}'
    )

from typing import Any

import msgspec
import pytest

from brewos_relay.core.throttle import HeldState, Throttle
from brewos_relay.dialect import BREWOS
from brewos_relay.messages import Message, encode


def packed(content: Any) -> Message:
    return Message(msgspec.msgpack.encode(content), is_text=False)


def decoded(message: Message) -> Any:
    return (msgspec.json if message.is_text else msgspec.msgpack).decode(message.payload)


def open_throttle(**changed: Any) -> Throttle:
    settings: dict[str, Any] = {
        "rate_per_s": 50.0, "burst": 200.0, "allowed": 0.0, "anonymous": False, "now": 0.0, **changed,
    }  # fmt: skip
    return Throttle(BREWOS, **settings)


def hold(throttle: Throttle, *contents: dict[str, Any] | Message) -> None:
    messages = [content if isinstance(content, Message) else encode(content) for content in contents]
    throttle.hold([(message, head) for message in messages if (head := message.peek()) is not None])


def merged(*messages: Message) -> Message:
    state = HeldState(BREWOS, is_text=messages[0].is_text)
    for message in messages:
        head = message.peek()
        assert head is not None
        state.add(message, head)
        assert state.size_bytes > 0
    return state.message()


def log(number: int, level: str = "info") -> dict[str, Any]:
    return {"type": "log", "level": level, "message": f"line {number}"}


# Merging


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
    assert b"\xa1t\xca\x42\xba\x66\x66" in found.payload, "a float of 32 bits stays one"


def test_a_status_takes_the_place_of_what_was_before_but_for_groups_that_it_lacks() -> None:
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


def test_a_number_that_is_none_is_left_out() -> None:
    found = merged(encode({"type": "status_delta", "a": 1}), encode({"type": "status_delta", "seq": "x"}))
    assert decoded(found) == {"type": "status_delta", "a": 1, "seq": "x"}


def test_a_group_that_is_no_map_any_more_is_replaced() -> None:
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


# Holding


def test_what_the_next_message_replaces_is_replaced_in_its_place() -> None:
    throttle = open_throttle()
    meters = [{"type": "power_meter_status", "n": n} for n in range(3)]
    infos = [{"type": "device_info", "n": n} for n in range(3)]
    hold(throttle, meters[0], log(1), infos[0], meters[1], {"type": "event", "event": "alert"}, infos[1])
    found = [decoded(message) for message in throttle.release_all()]
    assert found == [meters[1], log(1), infos[1], {"type": "event", "event": "alert"}]
    assert (throttle.merged, throttle.dropped, len(throttle), throttle.size_bytes) == (2, 0, 0, 0)


def test_messages_leave_at_the_rate_and_in_order() -> None:
    throttle = open_throttle(allowed=2.5)
    hold(throttle, *[log(n) for n in range(60)])
    assert [decoded(message) for message in throttle.release(0.0)] == [log(0), log(1)]
    assert throttle.release(0.0) == []
    assert [decoded(message) for message in throttle.release(0.1)] == [log(n) for n in range(2, 7)]
    assert len(throttle.release(5.0)) == 53
    assert throttle.release(5.0) == []


def test_log_lines_go_first_when_there_are_too_many_messages() -> None:
    throttle = open_throttle(rate_per_s=5.0)  # ten of them
    events = [{"type": "event", "n": n} for n in range(6)]
    hold(throttle, log(0), *events[:3], log(1), log(2, "error"), *events[3:], log(3), log(4), log(5))
    found = [decoded(message) for message in throttle.release_all()]
    assert found == [*events[:3], log(2, "error"), *events[3:], log(3), log(4), log(5)]
    assert throttle.dropped == 2


def test_then_the_oldest_go_and_the_state_stays() -> None:
    throttle = open_throttle(rate_per_s=1.0)
    hold(throttle, {"type": "status", "seq": 1}, *[{"type": "event", "n": n} for n in range(5)])
    found = [decoded(message) for message in throttle.release_all()]
    assert found == [{"type": "status", "seq": 1}, {"type": "event", "n": 3}, {"type": "event", "n": 4}]
    assert throttle.dropped == 3


def test_a_log_line_that_has_left_is_not_dropped_again() -> None:
    throttle = open_throttle(rate_per_s=1.0, allowed=1.0)
    hold(throttle, log(0), log(1))
    assert [decoded(message) for message in throttle.release(0.0)] == [log(0)]
    hold(throttle, log(2), {"type": "event"})
    assert [decoded(message) for message in throttle.release_all()] == [log(2), {"type": "event"}]


@pytest.mark.parametrize(("anonymous", "most_bytes"), [(False, 64 * 1024), (True, 8 * 1024)])
def test_what_is_held_is_bounded(anonymous: bool, most_bytes: int) -> None:
    throttle = open_throttle(anonymous=anonymous)
    for n in range(200):
        hold(
            throttle,
            {"type": "status_delta", "seq": n, f"group{n}": {"x": "x" * 1000}},
            {"type": "stats", "x": "x" * 3000, "n": n},
            {"type": "event", "x": "x" * 1000},
            log(n),
        )
        assert throttle.size_bytes <= most_bytes
    released = throttle.release_all()
    assert sum(len(message.payload) for message in released) <= most_bytes
    assert throttle.size_bytes == 0


def test_a_state_that_only_seems_to_be_large_is_kept() -> None:
    throttle = open_throttle(anonymous=True)
    for n in range(100):
        hold(throttle, {"type": "status_delta", "seq": n, "group": "x" * 1000})
    assert [decoded(message)["seq"] for message in throttle.release_all()] == [99]
    assert throttle.dropped == 0


def test_all_can_be_dropped() -> None:
    throttle = open_throttle()
    hold(throttle, log(1), {"type": "status"})
    throttle.drop_all()
    assert (throttle.release_all(), throttle.dropped) == ([], 2)
    assert throttle.summary(12.34) == {"throttledS": "12.3", "merged": "0", "dropped": "2"}


# Reading


def test_reading_pauses_beyond_1000_messages_a_second_or_1_mib() -> None:
    throttle = open_throttle()
    assert throttle.count_read(1000, 1000, 0.0) == 0.0
    assert throttle.count_read(400, 1000, 0.0) == pytest.approx(0.4)
    assert throttle.count_read(9000, 1000, 0.0) == 1.0, "at a time"
    other = open_throttle()
    assert other.count_read(1, 1024 * 1024, 0.0) == 0.0
    assert other.count_read(1, 512 * 1024, 0.0) == pytest.approx(0.5)


def test_a_larger_rate_has_a_larger_bound() -> None:
    assert open_throttle(rate_per_s=5000.0).count_read(10_000, 0, 0.0) == 0.0

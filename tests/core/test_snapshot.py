import json
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import msgspec
import pytest
import trio
from hypothesis import example, given
from hypothesis import strategies as st
from trio.testing import MockClock

from brewos_relay.core import merging
from brewos_relay.core.audience import must_reach
from brewos_relay.core.histories import Histories
from brewos_relay.core.limits import Limits
from brewos_relay.core.merging import (
    decode,
)
from brewos_relay.core.snapshot import (
    SmallSnapshot,
    Snapshot,
)
from brewos_relay.dialect import BREWOS, NEUTRAL, Volatile
from brewos_relay.messages import DeviceInfo, Message, encode
from support.state_messages import Float32, binary, float32, snapshot_of, status_of, update

# The known state


def test_nothing_is_known_at_first() -> None:
    snapshot = Snapshot(BREWOS)
    assert snapshot.empty
    assert snapshot.messages() == []
    assert snapshot.as_dict() == {}
    assert snapshot.age_s(100.0) == math.inf


def test_a_status_alone_is_given_as_it_came() -> None:
    text = Message(b'{ "type" : "status", "seq":  7, "temps":{"group": 1.50} }')
    assert snapshot_of(text).messages() == [text]
    packed = binary({"type": "status", "seq": 7, "temps": {"group": float32(93.2)}})
    assert snapshot_of(packed).messages() == [packed]


def test_the_last_of_each_kind_is_kept_as_it_came() -> None:
    kinds = ("device_info", "esp_status", "pico_status", "power_meter_status", "bbw_settings")
    old = [encode({"type": kind, "n": 1}) for kind in kinds]
    new = [Message(b'{"type": "%s" ,"n":2}' % kind.encode()) for kind in kinds]
    snapshot = snapshot_of(*old, *reversed(new))
    assert not snapshot.empty
    assert snapshot.messages() == new, "in the order of their first messages"
    status = encode({"type": "status"})
    update(snapshot, status)
    assert snapshot.messages() == [status, *new], "the status goes first"


def test_messages_without_state_are_not_kept() -> None:
    kinds = ("log", "event", "error", "scan_result", "diagnostics_result", "time_status", "ota_progress")
    snapshot = snapshot_of(*(encode({"type": kind}) for kind in kinds))
    assert snapshot.empty
    assert snapshot.age_s(5.0) == math.inf


def test_a_change_of_something_unknown_is_not_kept() -> None:
    snapshot = snapshot_of(encode({"type": "status_delta", "seq": 3, "pressure": 9}))
    assert snapshot.empty
    assert snapshot.messages() == []


def test_status_replaces_everything_before_it() -> None:
    snapshot = snapshot_of(
        encode({"type": "status", "seq": 1, "pressure": 1, "mqtt": {"enabled": True}}),
        encode({"type": "status_delta", "seq": 2, "pressure": 2}),
    )
    last = encode({"type": "status", "seq": 3, "pressure": 3})
    update(snapshot, last)
    assert snapshot.messages() == [last]


def test_change_replaces_named_fields_of_a_group() -> None:
    snapshot = snapshot_of(
        binary({"type": "status", "seq": 1, "power": {"current": 5, "maxCurrent": 15}, "machine": {"a": 1}}),
        binary({"type": "status_delta", "seq": 2, "power": {"current": 1500}, "machine": {}}),
        binary({"type": "status_delta", "seq": 3, "shot": {"active": True}, "pressure": float32(9.1)}),
    )
    assert status_of(snapshot) == {
        "type": "status",
        "seq": 3,
        "power": {"current": 1500, "maxCurrent": 15},
        "machine": {"a": 1},
        "shot": {"active": True},
        "pressure": float32(9.1),
    }


@pytest.mark.parametrize(
    ("old", "new"), [({"a": 1}, 5), (5, {"a": 1}), ({"a": 1}, None), (None, {"a": 1}), (1, 2)]
)
@pytest.mark.parametrize("write", [encode, binary])
def test_group_that_is_no_map_is_replaced(old: Any, new: Any, write: Any) -> None:
    snapshot = snapshot_of(write({"type": "status", "x": old}), write({"type": "status_delta", "x": new}))
    assert status_of(snapshot) == {"type": "status", "x": new}


# The sequence number


def test_the_status_has_the_number_after_which_the_device_goes_on() -> None:
    snapshot = snapshot_of(
        binary({"type": "status", "seq": 1, "a": 1}), binary({"type": "keepalive", "seq": 9})
    )
    assert status_of(snapshot)["seq"] == 9, "what the client hears next is 10"
    update(snapshot, binary({"type": "status_delta", "seq": 10, "a": 2}))
    assert status_of(snapshot) == {"type": "status", "seq": 10, "a": 2}
    assert snapshot.seq == 10


def test_state_without_seq_gets_none() -> None:
    snapshot = snapshot_of(encode({"type": "status", "a": 1}), encode({"type": "status_delta", "a": 2}))
    assert status_of(snapshot) == {"type": "status", "a": 2}


@pytest.mark.parametrize(
    "seq",
    [b'"x"', b"[[[]]]", b"1" * 40, b"-" + b"1" * 40, b"null"],
    ids=["text", "list", "huge", "-huge", "null"],
)
@pytest.mark.parametrize("is_text", [True, False])
def test_invalid_seq_is_harmless(seq: bytes, is_text: bool) -> None:
    snapshot = snapshot_of(
        (encode if is_text else binary)({"type": "status", "seq": 1, "a": 2}),
        Message(b'{"type":"status_delta","seq":' + seq + b',"a":2}'),
        Message(b'{"type":"keepalive","seq":' + seq + b"}"),
    )
    assert status_of(snapshot)["a"] == snapshot.as_dict()["status"]["a"] == 2


def test_a_number_that_no_message_can_hold_is_left_alone() -> None:
    snapshot = snapshot_of(
        binary({"type": "status", "seq": 1}), Message(b'{"type":"keepalive","seq":' + b"9" * 40 + b"}")
    )
    assert status_of(snapshot) == {"type": "status", "seq": 1}


# Age


def test_age_counts_from_the_check_after_the_last_message() -> None:
    snapshot = snapshot_of(encode({"type": "status"}))
    assert snapshot.age_s(100.0) == 0
    assert snapshot.age_s(107.5) == 7.5
    update(snapshot, encode({"type": "log"}))
    assert snapshot.age_s(108.0) == 8
    for kind in ("keepalive", "status_delta", "device_info"):
        update(snapshot, encode({"type": kind}))
        assert snapshot.age_s(110.0) == 0
        assert snapshot.age_s(112.0) == 2


# The merge against a model


LEAVES = (
    st.none()
    | st.booleans()
    | st.integers(-(2**31), 2**31)
    | st.floats(-1000, 1000, width=32).map(Float32)
    | st.text("abcß", max_size=3)
)
VALUES = LEAVES | st.dictionaries(st.sampled_from("abc"), LEAVES | st.just({"deep": 1}), max_size=3)
GROUPS = st.dictionaries(
    st.sampled_from(["temps", "power", "machine", "pressure", "wifi"]), VALUES, max_size=4
)
SAID = st.lists(
    st.tuples(
        st.sampled_from(["status", "status_delta", "status_delta", "status_delta", "keepalive", "ask"]),
        st.integers(1, 3),
        GROUPS,
    ),
    max_size=25,
)


@dataclass
class Model:
    """The status of an app that merges every message at once."""

    status: dict[str, Any] | None = None

    def update(self, kind: str, seq: int, groups: dict[str, Any]) -> None:
        if kind == "status":
            self.status = {"type": "status", "seq": seq, **groups}
        elif self.status is not None:
            self.status["seq"] = seq
            if kind == "status_delta":
                for name, value in groups.items():
                    old = self.status.get(name)
                    both = isinstance(old, dict) and isinstance(value, dict)
                    self.status[name] = {**old, **value} if both else value  # type: ignore[dict-item]


def compact(content: Any) -> Message:
    """Write a text that the relay would write differently: numbers end in zeros."""
    if isinstance(content, dict):
        inner = ",".join(f'"{name}":{compact(value).payload.decode()}' for name, value in content.items())
        return Message(f"{{{inner}}}".encode())
    if isinstance(content, float):
        shortest = repr(float(content))
        return Message((shortest if "e" in shortest else f"{shortest}00").encode())
    return Message(json.dumps(content, ensure_ascii=False).encode())


@pytest.mark.parametrize("write", [compact, binary])
@given(said=SAID)
def test_a_lazy_merge_is_the_same_as_an_eager_one_to_the_byte(
    write: Any, said: Sequence[tuple[str, int, dict[str, Any]]]
) -> None:
    snapshot, model = Snapshot(BREWOS), Model()
    seq = 0
    for kind, step, groups in said:
        if kind == "ask":
            assert_same(snapshot, model, write)
            continue
        seq += step
        model.update(kind, seq, groups)
        update(snapshot, write({"type": kind, "seq": seq, **groups}))
    assert_same(snapshot, model, write)


def assert_same(snapshot: Snapshot, model: Model, write: Any) -> None:
    expected = [] if model.status is None else [write(model.status)]
    assert snapshot.messages() == expected, "values do not change, floats keep 32 bits"
    assert snapshot.messages() == expected, "reading changes nothing"
    if model.status is not None and write is binary:
        assert snapshot.as_dict() == {"status": rounded(model.status)}


def rounded(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: rounded(inner) for name, inner in value.items()}
    return float(f"{value:.7g}") if isinstance(value, float) and not value.is_integer() else value


@given(said=SAID, texts=st.lists(st.booleans(), min_size=25, max_size=25))
def test_text_and_binary_may_be_mixed(
    said: Sequence[tuple[str, int, dict[str, Any]]], texts: list[bool]
) -> None:
    snapshot, model = Snapshot(BREWOS), Model()
    is_text = True
    for seq, ((kind, _, groups), as_text) in enumerate(zip(said, texts, strict=False)):
        if kind == "ask":
            continue
        if kind == "status":
            is_text = as_text
        model.update(kind, seq, groups)
        update(snapshot, (compact if as_text else binary)({"type": kind, "seq": seq, **groups}))
    if model.status is not None:
        (message,) = snapshot.messages()
        assert message.is_text == is_text, "in the encoding of the status"
        assert rounded(decode(message)) == rounded(model.status)
        assert snapshot.as_dict() == {"status": rounded(model.status)}


# Cost


class Counting:
    """Counts the calls of a decoder."""

    def __init__(self, decoder: Any) -> None:
        self.calls = 0
        self._decoder = decoder

    def __call__(self, *args: Any) -> Any:
        self.calls += 1
        return self._decoder(*args)


@pytest.fixture
def decoders(monkeypatch: pytest.MonkeyPatch) -> list[Counting]:
    counting = [Counting(getattr(merging, name)) for name in ("_decode_json", "_decode_msgpack", "decode")]
    for name, decoder in zip(("_decode_json", "_decode_msgpack", "decode"), counting, strict=True):
        monkeypatch.setattr(merging, name, decoder)
    return counting


def calls(decoders: Iterable[Counting]) -> int:
    return sum(decoder.calls for decoder in decoders)


@pytest.mark.parametrize("write", [encode, binary])
def test_messages_are_not_decoded_without_clients(decoders: list[Counting], write: Any) -> None:
    snapshot = Snapshot(BREWOS)
    for _ in range(50):
        update(snapshot, write({"type": "status", "seq": 1}), write({"type": "device_info", "x": {"y": 1}}))
        for seq in range(99):
            update(snapshot, write({"type": "status_delta", "seq": seq, "power": {"current": seq}}))
    assert calls(decoders) == 0
    assert status_of(snapshot)["power"] == {"current": 98}
    merged = calls(decoders)
    assert merged > 0
    snapshot.messages()
    assert calls(decoders) == merged, "merged once"


def test_no_more_than_a_hundred_changes_are_kept_unmerged(decoders: list[Counting]) -> None:
    snapshot = snapshot_of(binary({"type": "status", "seq": 0, "pressure": 0}))
    for seq in range(1, 1000):
        update(snapshot, binary({"type": "status_delta", "seq": seq, "pressure": seq}))
        assert len(snapshot._changes) < 100
    assert calls(decoders) > 0
    assert status_of(snapshot) == {"type": "status", "seq": 999, "pressure": 999}


# Messages for every client


@pytest.mark.parametrize(
    ("content", "must"),
    [
        ({"type": "status"}, False),
        ({"type": "status_delta"}, False),
        ({"type": "keepalive"}, False),
        ({"type": "scale_status"}, False),
        ({"type": "power_meter_status"}, False),
        ({"type": "device_info"}, True),
        ({"type": "log"}, False),
        ({"type": "log", "level": "info"}, False),
        ({"type": "log", "level": "error"}, True),
        ({"type": "event"}, True),
        ({"type": "error"}, True),
        ({"type": "time_status"}, True),
        ({"type": "something_new"}, True),
        ({"no": "type"}, False),
    ],
)
@pytest.mark.parametrize("write", [encode, binary])
def test_messages_that_are_not_repeated_must_reach_every_client(
    content: dict[str, Any], must: bool, write: Any
) -> None:
    assert must_reach(write(content), BREWOS) == must


def test_changes_are_merged_before_they_take_much_room() -> None:
    snapshot = Snapshot(BREWOS)
    snapshot.update(encode({"type": "status", "seq": 0}), "status", 0)
    for seq in range(1, 50):
        change = encode({"type": "status_delta", "seq": seq, "pad": "x" * 15_000})
        snapshot.update(change, "status_delta", seq)
        assert sum(len(kept.payload) for kept in snapshot._changes) <= 64 * 1024 + 16_000
    assert len(snapshot.messages()[0].payload) < 16_000


def test_a_state_without_measure_is_forgotten() -> None:
    snapshot = Snapshot(BREWOS)
    snapshot.update(encode({"type": "status", "seq": 0}), "status", 0)
    for seq in range(1, 10):
        change = encode({"type": "status_delta", "seq": seq, f"pad{seq}": "x" * 15_000})
        snapshot.update(change, "status_delta", seq)
    assert snapshot.messages() == []
    assert snapshot.empty


@pytest.mark.parametrize("is_text", [True, False])
def test_info_is_read_without_decoding_the_rest(is_text: bool) -> None:
    snapshot = Snapshot(BREWOS)
    assert snapshot.info() == DeviceInfo()
    content = {"type": "device_info", "firmwareVersion": "1.2", "machineType": 5, "more": [1.5]}
    payload = (msgspec.json if is_text else msgspec.msgpack).encode(content)
    snapshot.update(Message(payload, is_text), "device_info", None)
    assert snapshot.info() == DeviceInfo(firmware_version="1.2", machine_type=5)
    malformed = Message(b'{"type":"device_info","firmwareVersion":')
    snapshot.update(malformed, "device_info", None)
    assert snapshot.info() == DeviceInfo()


def test_uncounted_pause_adds_to_the_age() -> None:
    snapshot = Snapshot(BREWOS)
    snapshot.update(encode({"type": "status"}), "status", None)
    assert snapshot.age_s(100.0) == 0
    snapshot.count_pause(50.0)
    assert snapshot.age_s(101.0) == 51


# Anonymous devices


def size_of(snapshot: Snapshot) -> int:
    """Count the bytes of all kept messages."""
    kept = [*snapshot._others.values(), *snapshot._changes, snapshot._status]
    return sum(len(message.payload) for message in kept if message is not None)


def large(message_type: str, size_bytes: int, name: str = "x") -> Message:
    return encode({"type": message_type, name: "y" * size_bytes})


def test_a_small_snapshot_has_the_state_of_a_real_machine() -> None:
    snapshot = SmallSnapshot(BREWOS)
    update(
        snapshot,
        encode({"type": "device_info", "firmwareVersion": "0.8.62", "machineType": "dual_boiler"}),
        encode({"type": "status", "seq": 1, "temps": {"brew": 20.0}, "rest": "y" * 1900}),
        *[encode({"type": "status_delta", "seq": seq, "temps": {"brew": 1.0 * seq}}) for seq in range(2, 40)],
    )
    assert snapshot.info().machine_type == "dual_boiler"
    told = status_of(snapshot)
    assert (told["seq"], told["temps"]) == (39, {"brew": 39.0})


def test_small_snapshot_is_bounded() -> None:
    snapshot = SmallSnapshot(BREWOS)
    most = 0
    for size_bytes in (100, 4000, 16_000):
        for name in "abcdefgh":
            for message_type in ("status", *["status_delta"] * 30, *BREWOS.kept):
                update(snapshot, large(message_type, size_bytes, name))
                most = max(most, size_of(snapshot))
                assert len(snapshot._changes) < 10
    assert most < 14_000
    usual = snapshot_of(large("status", 16_000), *[large(kind, 16_000) for kind in BREWOS.kept])
    assert size_of(usual) > 90_000


def test_a_small_snapshot_that_grows_knows_as_much() -> None:
    small = SmallSnapshot(BREWOS)
    update(
        small,
        encode({"type": "status", "seq": 1, "a": 1}),
        encode({"type": "status_delta", "seq": 2, "a": 2}),
    )
    usual = small.to_full_size()
    assert type(usual) is Snapshot
    assert status_of(usual) == {"type": "status", "seq": 2, "a": 2}
    update(usual, encode({"type": "pico_status", "b": 3}))
    assert len(usual.messages()) == 2


def test_a_status_that_grows_beyond_measure_is_forgotten_by_a_small_snapshot() -> None:
    snapshot = SmallSnapshot(BREWOS)
    update(snapshot, encode({"type": "status"}))
    update(snapshot, *[large("status_delta", 900, name) for name in "abcdefghij"])
    assert snapshot.empty


@pytest.mark.parametrize(
    ("kind", "superseded"),
    [("status", True), ("device_info", True), ("stats", True), ("log", False), ("event", False)],
)
def test_the_next_message_of_some_types_replaces_the_one_before(kind: str, superseded: bool) -> None:
    assert BREWOS.is_superseded(kind) == superseded


# Absences

WHOLE: dict[str, Any] = {
    "type": "status",
    "seq": 41,
    "machine": {"state": "ready", "mode": "on", "isBrewing": False},
    "temps": {"brew": 93.0, "group": 88.0},
    "pressure": 0.1,
    "power": {"current": 1400, "todayKwh": 1.5},
    "water": {"tankLevel": "ok"},
}
FORMS = [pytest.param(encode, id="json"), pytest.param(binary, id="msgpack")]


def restored(whole: Message, *, shown: bool = True) -> Snapshot:
    snapshot = Snapshot(BREWOS)
    assert snapshot.restore(whole, at=100.0)
    if shown:
        assert snapshot.show()
    return snapshot


def told(snapshot: Snapshot) -> list[Any]:
    return [decode(message) for message in snapshot.messages()]


@pytest.mark.parametrize("form", FORMS)
def test_a_restored_state_is_told_without_volatile_parts_and_number(form: Any) -> None:
    snapshot = restored(form(WHOLE), shown=False)
    assert snapshot.has_status
    assert snapshot.messages() == []
    assert snapshot.show()
    assert told(snapshot) == [
        {
            "type": "status",
            "machine": {"state": "ready", "mode": "on"},
            "temps": {"brew": 93.0, "group": 88.0},
            "water": {"tankLevel": "ok"},
        }
    ]
    assert snapshot.as_dict() == {"status": WHOLE}
    assert snapshot.age_s(160.0) == 60.0
    assert snapshot.known(160.0) == (snapshot.whole_status(), 100.0)


@pytest.mark.parametrize("form", FORMS)
def test_a_machine_that_was_brewing_may_do_anything_now(form: Any) -> None:
    machine = {"state": "brewing", "mode": "on", "isBrewing": True}
    (status,) = told(restored(form(WHOLE | {"machine": machine})))
    assert status["machine"] == {"mode": "on"}


@pytest.mark.parametrize("form", FORMS)
def test_groups_sent_after_an_absence_are_merged_and_not_stale(form: Any) -> None:
    snapshot = restored(form(WHOLE))
    assert snapshot.stale_groups() == ["machine", "temps", "pressure", "power", "water"]
    update(snapshot, form({"type": "status_delta", "seq": 90, "power": {"current": 50}, "machine": {}}))
    update(snapshot, form({"type": "status_delta", "seq": 91, "temps": {"brew": 90.5}}))
    assert snapshot.stale_groups() == ["machine", "pressure", "water"]
    assert told(snapshot) == [
        {
            "type": "status",
            "seq": 91,
            "machine": {"state": "ready", "mode": "on"},
            "temps": {"brew": 90.5, "group": 88.0},
            "water": {"tankLevel": "ok"},
            "power": {"current": 50},
        }
    ]
    known = {"temps": {"brew": 90.5, "group": 88.0}, "power": {"current": 50, "todayKwh": 1.5}}
    assert snapshot.as_dict() == {"status": WHOLE | known | {"seq": 91}}
    assert snapshot.groups() == ["machine", "temps", "pressure", "power", "water"]


def test_whole_status_ends_a_restored_state() -> None:
    snapshot = restored(encode(WHOLE), shown=False)
    update(snapshot, encode({"type": "status", "seq": 1, "pressure": 9.0}))
    assert not snapshot.show()
    assert told(snapshot) == [{"type": "status", "seq": 1, "pressure": 9.0}]
    assert snapshot.stale_groups() == []
    snapshot.age_s(200.0)
    assert snapshot.age_s(203.0) == 3.0


def test_a_restored_state_ages_in_pauses_too() -> None:
    snapshot = restored(encode(WHOLE))
    snapshot.count_pause(40.0)
    assert snapshot.age_s(160.0) == 100.0


@pytest.mark.parametrize("message", [Message(b"[]"), Message(b"{}"), Message(b"\xc1", is_text=False)])
def test_message_without_fields_is_not_restored(message: Message) -> None:
    snapshot = Snapshot(BREWOS)
    assert not snapshot.restore(message, at=0.0)
    assert snapshot.empty
    assert not snapshot.show()
    assert (snapshot.known(0.0), snapshot.groups()) == (None, [])


def test_groups_of_another_form_stay_as_they_are() -> None:
    volatile = (Volatile("machine", "state", "brewing"), Volatile("temps", "brew"), Volatile("none"))
    status = {"type": "status", "machine": 5, "temps": {"group": 1}}
    snapshot = Snapshot(replace(BREWOS, volatile=volatile))
    assert snapshot.restore(encode(status), at=0.0)
    assert snapshot.show()
    assert told(snapshot) == [status]


def test_a_restored_state_that_grows_beyond_measure_is_given_up() -> None:
    snapshot = restored(encode(WHOLE))
    update(snapshot, encode({"type": "status_delta", "seq": 2, "x": "y" * 65_536}))
    assert (snapshot.whole_status(), snapshot.known(1.0)) == (None, None)


# Saving


def due(snapshot: Snapshot, now: float, every_s: float = 180.0) -> bool:
    return snapshot.is_due_for_saving(now, every_s=every_s)


def test_a_whole_status_is_saved_at_once_and_deltas_now_and_then() -> None:
    snapshot = Snapshot(BREWOS)
    assert not due(snapshot, 0.0)
    update(snapshot, encode({"type": "device_info"}))
    assert not due(snapshot, 1.0)
    update(snapshot, encode(WHOLE))
    assert due(snapshot, 2.0)
    snapshot.mark_saved(2.0)
    assert not due(snapshot, 500.0)
    update(snapshot, encode({"type": "status_delta", "seq": 42, "pressure": 1.0}))
    snapshot.messages()  # merged meanwhile
    assert not due(snapshot, 100.0)
    assert due(snapshot, 182.0)
    assert due(snapshot, 100.0, every_s=0.0)
    update(snapshot, encode(WHOLE))
    assert not due(snapshot, 6.0)
    assert due(snapshot, 7.0)
    snapshot.mark_saved(17.0)
    assert not due(snapshot, 18.0, every_s=0.0)
    snapshot.mark_unsaved()
    assert due(snapshot, 18.0)


def test_whole_states_in_quick_succession_are_saved_ever_more_rarely() -> None:
    snapshot = Snapshot(BREWOS)
    saved_at = []
    for now in range(300):
        update(snapshot, encode(WHOLE))
        if due(snapshot, now):
            saved_at.append(now)
            snapshot.mark_saved(now)
    assert saved_at == [0, 5, 15, 35, 75, 135, 195, 255]
    update(snapshot, encode(WHOLE))
    snapshot.mark_saved(500)
    update(snapshot, encode(WHOLE))
    assert due(snapshot, 505), "after a rest, soon again"


def test_a_restored_state_is_saved_once_the_machine_has_spoken() -> None:
    snapshot = restored(encode(WHOLE))
    assert not due(snapshot, 1000.0, every_s=0.0)
    update(snapshot, encode({"type": "keepalive", "seq": 99}))
    assert due(snapshot, 1000.0)


def test_unsaved_state_is_saved_after_an_absence() -> None:
    snapshot = snapshot_of(encode(WHOLE))
    known = snapshot.known(5.0)
    assert known is not None
    assert snapshot.restore(known[0], at=known[1])
    assert due(snapshot, 6.0)


# The same snapshot on another instance

OTHERS = st.sampled_from(["device_info", "esp_status", "power_meter_status", "log"])
HEARD = st.lists(
    st.tuples(
        st.sampled_from(["status", "status_delta", "status_delta", "status_delta", "keepalive", "other"]),
        OTHERS,
        st.one_of(st.integers(1, 9), st.none(), st.just("x"), st.just(2**63)),
        GROUPS,
        st.booleans(),
        st.floats(0, 100, width=32),
    ),
    max_size=15,
)
ABSENCES = st.one_of(
    st.none(),
    st.tuples(GROUPS, st.booleans(), st.floats(0, 1000, width=32), st.booleans()),
)


def hear(now: float, heard: Sequence[tuple[Any, ...]], *snapshots: Snapshot) -> float:
    """Update snapshots with the same messages, with a check after each; return the time after them."""
    for kind, other, seq, groups, is_text, pause_s in heard:
        content = {"type": other if kind == "other" else kind, **groups}
        if seq is not None:
            content["seq"] = seq
        for snapshot in snapshots:
            update(snapshot, compact(content) if is_text else binary(content))
            snapshot.age_s(now)
        now += pause_s
    return now


def everything(snapshot: Snapshot, now: float) -> dict[str, Any]:
    """Return all that clients, the API and the registry get from a snapshot."""
    known = snapshot.known(now)
    return {
        "messages": snapshot.messages(),
        "stale": snapshot.stale_groups(),
        "groups": snapshot.groups(),
        "known": known and (known[0], round(known[1], 3)),
        "age": round(snapshot.age_s(now), 3) if math.isfinite(snapshot.age_s(now)) else None,
        "content": snapshot.as_dict(),
        "info": snapshot.info(),
        "has_status": (snapshot.has_status, snapshot.empty),
    }


@given(absence=ABSENCES, before=HEARD, after=HEARD, replaced=HEARD, late=st.booleans())
@example(absence=({"temps": {"a": 1}}, True, 5.0, False), before=[], after=[], replaced=[], late=True)
def test_snapshot_of_another_instance_stays_the_same_from_any_moment_on(
    absence: tuple[dict[str, Any], bool, float, bool] | None,
    before: Sequence[tuple[Any, ...]],
    after: Sequence[tuple[Any, ...]],
    replaced: Sequence[tuple[Any, ...]],
    late: bool,
) -> None:
    owner, other, now = Snapshot(BREWOS), Snapshot(BREWOS), 1000.0
    hear(now - 500, replaced, other)
    if absence is not None:
        groups, is_text, age_s, shown = absence
        whole = {"type": "status", "seq": 3, **groups}
        assert owner.restore(compact(whole) if is_text else binary(whole), at=now - age_s)
        if shown:
            owner.show()
    now = hear(now, before, owner)
    other.take(owner.export(now), now)
    assert everything(other, now) == everything(owner, now)
    now = hear(now, after, owner, other)
    if late:
        assert owner.show() == other.show()
    assert everything(other, now) == everything(owner, now)


def test_clock_of_another_instance_does_not_matter() -> None:
    owner, other = Snapshot(BREWOS), Snapshot(BREWOS)
    assert owner.restore(encode(WHOLE), at=1000.0)
    other.take(owner.export(1060.0), 5.0)
    assert other.age_s(7.0) == 62.0
    update(owner, encode(WHOLE))
    assert owner.age_s(1070.0) == 0
    other.take(owner.export(1071.0), 20.0)
    assert other.age_s(22.0) == 3.0
    assert (owner.age_s(1071.0), other.stale_groups()) == (1.0, [])


def test_taking_nothing_forgets_what_was_known() -> None:
    snapshot = snapshot_of(encode(WHOLE), encode({"type": "device_info"}))
    snapshot.take(Snapshot(BREWOS).export(5.0), 5.0)
    assert snapshot.empty
    assert snapshot.age_s(6.0) == math.inf
    update(snapshot, encode({"type": "status_delta", "temps": {}}))
    assert snapshot.messages() == []


def test_taken_state_is_not_due_for_saving() -> None:
    snapshot = Snapshot(BREWOS)
    snapshot.take(snapshot_of(encode(WHOLE)).export(5.0), 5.0)
    assert not due(snapshot, 1000.0, every_s=0.0)
    update(snapshot, encode({"type": "status_delta", "temps": {}}))
    assert due(snapshot, 1000.0, every_s=0.0)


def test_restored_state_is_shown_once() -> None:
    snapshot = restored(encode(WHOLE), shown=False)
    assert snapshot.show()
    assert not snapshot.show()
    assert snapshot.messages() != []


LOG_ON, LOG_OFF = (encode({"type": "log_config", "enabled": on}) for on in (True, False))
LOG_LINE = encode({"type": "log", "level": "info", "source": "esp32", "message": "Pump on"})


async def test_snapshot_keeps_log_lines_beside_the_state() -> None:
    snapshot = Snapshot(BREWOS)
    snapshot.update(LOG_LINE, "log", None)
    snapshot.update(LOG_ON, "log_config", None)
    snapshot.update(LOG_LINE, "log", None)
    log = snapshot.log
    assert log is not None
    assert len(log.lines()) == 1
    snapshot.update(LOG_OFF, "log_config", None)
    assert not log.config.enabled
    # They are no part of the state.
    assert snapshot.empty
    assert snapshot.messages() == []
    assert not snapshot.is_due_for_saving(1e9, every_s=0)


@pytest.mark.parametrize("snapshot", [SmallSnapshot(BREWOS), Snapshot(NEUTRAL)])
async def test_no_log_is_kept_of_anonymous_and_unknown_devices(snapshot: Snapshot) -> None:
    snapshot.update(LOG_ON, "log_config", None)
    snapshot.update(LOG_LINE, "log", None)
    assert snapshot.log is None


# History


async def test_history_takes_over_merged_and_replaced_changes_unchanged(autojump_clock: MockClock) -> None:
    histories = Histories(Limits(), BREWOS)
    snapshot = Snapshot(BREWOS, "BRW-00000001")
    snapshot.histories = histories
    snapshot.hand_over()
    assert len(histories) == 0, "no memory before the first change"
    update(snapshot, encode({"type": "status", "pressure": 1}))
    for bar in (2, 3):
        await trio.sleep(1)
        update(snapshot, encode({"type": "status_delta", "pressure": bar}))
        snapshot.age_s(trio.current_time())
    assert decode(snapshot.messages()[0])["pressure"] == 3
    await trio.sleep(1)
    update(snapshot, encode({"type": "status_delta", "pressure": 4}))
    await trio.sleep(1)
    update(snapshot, encode({"type": "status", "pressure": 5}))
    found = await histories.read("BRW-00000001", seconds=60.0)
    assert found is not None
    assert found.values["pressure"] == [1, 2, 3, 4, 5]
    assert found.times_s == pytest.approx([0, 1, 2, 4, 4], abs=1)
    update(snapshot, encode({"type": "keepalive", "seq": 9}))
    assert decode(snapshot.messages()[0])["seq"] == 9
    update(snapshot, encode({"type": "status_delta", "pressure": 6}))
    snapshot.end_history(trio.current_time())
    update(snapshot, encode({"type": "status", "pressure": 7}))
    snapshot.end_history(trio.current_time())
    found = await histories.read("BRW-00000001", seconds=60.0)
    assert found is not None
    assert found.values["pressure"][-2:] == [6, None]


def test_fields_of_several_messages_are_read_without_decoding_them() -> None:
    snapshot = Snapshot(BREWOS)
    names = {"machine", "state", "water"}
    assert snapshot.known_fields(("pico_status", "status"), names) == {}
    update(snapshot, encode({"type": "pico_status", "state": "idle", "water": 1}))
    update(
        snapshot, Message(b'{"type":"status","seq":1,"machine":{ "state":"on" },"temps":{}}', is_text=True)
    )
    update(snapshot, Message(b'{"type":"status_delta","seq":2,"water":{"tankLevel":"low"}}', is_text=True))
    assert snapshot.known_fields(("pico_status", "status"), names) == {
        "state": b'"idle"',
        "machine": b'{ "state":"on" }',
        "water": b'{"tankLevel":"low"}',
    }
    assert snapshot.known_fields(("pico_status",), names) == {"state": b'"idle"', "water": b"1"}
    neutral = Snapshot(NEUTRAL)
    assert neutral.known_fields(("status",), names) == {}


async def test_history_takes_over_the_last_whole_state_of_each_check(autojump_clock: MockClock) -> None:
    """A device that sends whole states all the time costs no more than one without a history."""
    histories = Histories(Limits(), BREWOS)
    snapshot = Snapshot(BREWOS, "BRW-00000001")
    snapshot.histories = histories
    found = None
    for second in range(2):
        size_bytes = histories.size_bytes
        for bar in range(100):
            update(snapshot, encode({"type": "status", "pressure": second + bar / 100}))
        assert histories.size_bytes == size_bytes, "nothing before the check"
        snapshot.age_s(trio.current_time())
        found = await histories.read("BRW-00000001", seconds=60.0)
        assert found is not None
        assert found.values["pressure"][-1] == second + 0.99
        await trio.sleep(1)
    assert found is not None
    assert len(found.times_s) == 2
    update(snapshot, encode({"type": "status", "pressure": 3}))
    await trio.sleep(0.5)
    update(snapshot, encode({"type": "status_delta", "pressure": 4}))
    snapshot.hand_over()
    found = await histories.read("BRW-00000001", seconds=60.0)
    assert found is not None
    assert found.values["pressure"][-2:] == [3, 4]
    update(snapshot, encode({"type": "status", "pressure": 5}))
    snapshot.end_history(trio.current_time())
    found = await histories.read("BRW-00000001", seconds=60.0)
    assert found is not None
    assert found.values["pressure"][-2:] == [5, None]

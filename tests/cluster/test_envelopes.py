"""Envelopes: what is read is what was written, and everything else is dropped."""

import math

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from brewos_relay.cluster.envelopes import (
    Command,
    Confirmed,
    DeviceMessages,
    DeviceState,
    Envelope,
    HistoryAnswer,
    HistoryRequest,
    LogAnswer,
    LogRequest,
    NotHere,
    Outcome,
    StateAnswer,
    StateRequest,
    Unwatch,
    Watch,
    pack,
    pack_messages,
    pack_state,
    state_in,
    unpack,
)
from brewos_relay.core.device_log import LogConfig
from brewos_relay.core.snapshot import RestoredState, SnapshotState
from brewos_relay.live_devices import DeviceHistory, LogView
from brewos_relay.messages import Message

ID = "BRW-00000001"
TEXT, BINARY = Message(b'{"type":"status"}'), Message(b"\x80", is_text=False)


@pytest.mark.parametrize(
    "envelope",
    [
        Watch("a", ID, True, False),
        Confirmed("a", ID),
        Unwatch("a", ID),
        NotHere("a", ID),
        Command("a", ID, 1, 2, math.inf, b"{}"),
        Outcome(1, "delivered"),
        StateRequest("a", ID, 1),
        StateAnswer(1, b"{}"),
        StateAnswer(1, None),
        HistoryRequest("a", ID, 1, 600.0),
        HistoryAnswer(1, None),
        HistoryAnswer(1, DeviceHistory(7, [5, 6], [True, False], [True, True], {"pressure": [9.0, None]})),
        LogRequest("a", ID, 1, "read"),
        LogAnswer(1, LogView(LogConfig(enabled=True), 0.5, 7, ["a line"])),
        LogAnswer(1, None),
    ],
    ids=lambda envelope: type(envelope).__name__,
)
def test_envelope_is_read_as_it_was_written(envelope: Envelope) -> None:
    assert unpack(pack(envelope)) == envelope


def test_messages_keep_their_bytes_and_kinds() -> None:
    assert unpack(pack_messages("a", ID, [TEXT, BINARY])) == DeviceMessages(
        "a", ID, [(TEXT.payload, True), (BINARY.payload, False)]
    )


@pytest.mark.parametrize(
    "state",
    [
        SnapshotState(None, [], None, math.inf, None),
        SnapshotState(TEXT, [BINARY], 7, 1.5, RestoredState(BINARY, 3.0, ["temps", b"x"], True)),
    ],
    ids=["nothing", "everything"],
)
def test_state_is_read_as_it_was_written(state: SnapshotState) -> None:
    envelope = unpack(pack_state("a", ID, state, 5))
    assert isinstance(envelope, DeviceState)
    assert envelope.last_seen_ms == 5
    assert state_in(envelope) == state


def test_names_of_groups_of_another_type_are_dropped() -> None:
    envelope = unpack(pack_state("a", ID, SnapshotState(TEXT, [], 7, 1.0, None), None))
    assert isinstance(envelope, DeviceState)
    renewed = msgspec.structs.replace(envelope, restored=(b"{}", True), renewed=["temps", 7, None])
    restored = state_in(renewed).restored
    assert restored is not None
    assert restored.renewed == ["temps"]


@pytest.mark.parametrize(
    "content",
    [
        [99, "a", ID],
        [1, "a"],
        [1, "", ID],
        [1, "a b", ID],
        [1, "a\n", ID],
        [1, "a" * 201, ID],
        [1, "a", ""],
        [1, "a", "B" * 201],
        [1, 5, ID],
        [6, "a", ID, "1", 2, 3.0, b""],
        [7, 1, "eaten"],
        {"sender": "a"},
        "a",
        None,
    ],
    ids=repr,
)
def test_foreign_envelope_is_dropped(content: object) -> None:
    assert unpack(msgspec.msgpack.encode(content)) is None


def test_fields_of_a_later_version_are_ignored() -> None:
    assert unpack(msgspec.msgpack.encode([2, "a", ID, "new"])) == Unwatch("a", ID)


def test_fields_that_an_earlier_version_did_not_send_have_defaults() -> None:
    assert unpack(msgspec.msgpack.encode([1, "a", ID])) == Watch("a", ID, False, False)


def test_deep_nesting_is_dropped() -> None:
    assert unpack(b"\x91" * 100_000) is None


@given(st.binary(max_size=200))
def test_any_bytes_are_read_or_dropped(payload: bytes) -> None:
    unpack(payload)

import pytest

from brewos_relay.doctor.device_timeline import (
    TimelineEvent,
    end_reason,
    format_duration,
    summarize,
    timeline_of,
)
from brewos_relay.registry.records import ActivityKind, StoredActivity

LOST = {"by": "peer", "connectedS": "5.0", "messages": "7", "roundTripMs": "40.0"}
SILENT = {"by": "relay", "code": "1008", "reason": "nothing was sent for too long", "roundTripMs": "80.0"}


def entry(number: int, kind: ActivityKind, at_ms: int, **detail: str) -> StoredActivity:
    return StoredActivity(id=number, device_id="BRW-12AB34CD", at_ms=at_ms, kind=kind, detail=detail)


def test_timeline_is_in_order_of_time() -> None:
    events = timeline_of(
        [
            entry(5, "offline", 9000, **SILENT),
            entry(4, "online", 8000),
            entry(3, "online", 7000),
            entry(2, "command", 6500),
            entry(1, "offline", 6000, **LOST),
        ]
    )
    assert [(event.at_ms, event.online, event.since_ms) for event in events] == [
        (6000, False, None),
        (7000, True, 1000),
        (8000, True, None),
        (9000, False, 1000),
    ]
    summary = summarize(events)
    assert (summary.connections, list(summary.away_ms)) == (2, [1000])
    assert summary.median_round_trip_ms == 60.0
    assert sum(summary.reasons.values()) == 2


def test_a_throttled_machine_stays_connected() -> None:
    held = {"throttledS": "5.0", "merged": "9", "dropped": "0"}
    events = timeline_of(
        [
            entry(4, "offline", 9000, **LOST),
            entry(3, "throttle_ended", 7000, **held),
            entry(2, "throttled", 2000),
            entry(1, "online", 1000),
        ]
    )
    assert [(event.kind, event.online, event.since_ms) for event in events] == [
        ("online", True, None),
        ("throttled", True, None),
        ("throttle_ended", True, None),
        ("offline", False, 8000),
    ]
    assert events[2].detail == held
    summary = summarize(events)
    assert (summary.connections, summary.away_ms, sum(summary.reasons.values())) == (1, [], 1)


def test_summary_of_no_events() -> None:
    assert summarize([]).median_round_trip_ms is None


@pytest.mark.parametrize(
    ("detail", "reason"),
    [
        ({}, "not recorded"),
        ({"by": "peer"}, "the device disconnected without a close frame"),
        ({"by": "relay"}, "the relay ended it"),
        ({"by": "peer", "code": "1000", "roundTripMs": "x"}, "the device closed with 1000"),
        (SILENT, "the relay closed with 1008: nothing was sent for too long"),
    ],
)
def test_end_reason_of_each_kind_of_end(detail: dict[str, str], reason: str) -> None:
    event = TimelineEvent(at_ms=0, kind="offline", since_ms=None, detail=detail)
    assert end_reason(event) == reason
    summarize([event])


@pytest.mark.parametrize(
    ("length_ms", "text"),
    [
        (-5, "0.0 s"),
        (1234, "1.2 s"),
        (12_345, "12 s"),
        (61_000, "1 min 1 s"),
        (3_700_000, "1 h 1 min"),
        (90_000_000, "1 d 1 h"),
    ],
)
def test_durations_have_their_two_largest_units(length_ms: float, text: str) -> None:
    assert format_duration(length_ms) == text

"""When a device was connected, how long it was away, and why its connections ended."""

import statistics
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from brewos_relay.registry.records import ActivityKind, StoredActivity
from brewos_relay.vocabulary import Detail

_TURNS: Final = frozenset({"online", "offline"})
_THROTTLES: Final = frozenset({"throttled", "throttle_ended"})


@dataclass(frozen=True, slots=True, kw_only=True)
class TimelineEvent:
    """An event of a device: it connected or disconnected, or its throttling began or ended.

    `since_ms` is how long the previous state lasted: for `online`, the time without a connection; for
    `offline`, the length of the connection. It is None if unknown, and for throttling.

    `detail` has the recorded fields of the event: for `offline`, `by`, `code`, `reason`, `messages` and
    `roundTripMs`; for `throttle_ended`, `throttledS`, `merged` and `dropped`.
    """

    at_ms: int
    kind: ActivityKind
    since_ms: int | None
    detail: Detail

    @property
    def online(self) -> bool:
        """Whether the device was connected after this event."""
        return self.kind != "offline"


@dataclass(frozen=True, slots=True, kw_only=True)
class Summary:
    """A summary of many events. Times are in ms; `reasons` counts the ends of connections by reason."""

    connections: int
    away_ms: Sequence[int]
    reasons: Mapping[str, int]
    round_trips_ms: Sequence[float]

    @property
    def median_round_trip_ms(self) -> float | None:
        """The median of the round-trip times."""
        return statistics.median(self.round_trips_ms) if self.round_trips_ms else None


def timeline_of(entries: Iterable[StoredActivity]) -> list[TimelineEvent]:
    """Return the events among the entries of one device, oldest first."""
    events: list[TimelineEvent] = []
    last: TimelineEvent | None = None
    for entry in sorted(entries, key=lambda entry: entry.id):
        since_ms = None
        if entry.kind in _TURNS:
            # A server that was killed recorded no end: the duration of that connection is unknown.
            if last is not None and last.kind != entry.kind:
                since_ms = entry.at_ms - last.at_ms
        elif entry.kind not in _THROTTLES:
            continue
        event = TimelineEvent(
            at_ms=entry.at_ms, kind=entry.kind, since_ms=since_ms, detail=dict(entry.detail)
        )
        events.append(event)
        if entry.kind in _TURNS:
            last = event
    return events


def summarize(events: Sequence[TimelineEvent]) -> Summary:
    """Summarize events."""
    trips = [_number(event.detail.get("roundTripMs")) for event in events if not event.online]
    return Summary(
        connections=sum(event.kind == "online" for event in events),
        away_ms=[event.since_ms for event in events if event.online and event.since_ms is not None],
        reasons=dict(Counter(end_reason(event) for event in events if not event.online).most_common()),
        round_trips_ms=[trip for trip in trips if trip is not None],
    )


def end_reason(event: TimelineEvent) -> str:
    """Say in a few words why a connection ended."""
    detail = event.detail
    if "by" not in detail:
        return "not recorded"
    who = "the device" if detail["by"] == "peer" else "the relay"
    if "code" not in detail:
        return f"{who} disconnected without a close frame" if detail["by"] == "peer" else f"{who} ended it"
    return f"{who} closed with {detail['code']}" + (f": {detail['reason']}" if "reason" in detail else "")


def format_duration(length_ms: float) -> str:
    """Format a duration with its two largest units."""
    left_s = round(length_ms / 1000)
    if left_s < 60:
        return f"{max(0.0, length_ms / 1000):.1f} s" if length_ms < 9_950 else f"{left_s} s"
    for unit, size_s, smaller, smaller_s in (("d", 86_400, "h", 3600), ("h", 3600, "min", 60)):
        if left_s >= size_s:
            return f"{left_s // size_s} {unit} {left_s % size_s // smaller_s} {smaller}"
    return f"{left_s // 60} min {left_s % 60} s"


def _number(text: str | float | None) -> float | None:
    try:
        return None if text is None else float(text)
    except ValueError:
        return None

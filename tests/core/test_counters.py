import pytest

from brewos_relay.core.counters import Counters, Histogram
from brewos_relay.core.peer import PeerEnd


def test_everything_is_counted_from_nothing() -> None:
    counters = Counters()
    assert counters.latency.total == sum(counters.latency.counts) == 0
    others = (getattr(counters, name) for name in dir(counters) if not name.startswith("_"))
    assert not any(value for value in others if not callable(value) and value is not counters.latency)


def test_each_relay_counts_for_itself() -> None:
    one, other = Counters(), Counters()
    one.invalid += 1
    one.commands["queued"] = 1
    assert (one.invalid, other.invalid) == (1, 0)
    assert (one.commands, other.commands) == ({"queued": 1}, {})


def test_ends_are_counted_by_peer_and_code() -> None:
    counters = Counters()
    for code in (1000, 1000, None, 3333, 4002, 4999):
        counters.count_end("device", PeerEnd("peer", code))
    assert counters.ended == {
        ("device", "peer", "1000"): 2,
        ("device", "peer", "none"): 1,
        ("device", "peer", "other"): 2,
        ("device", "peer", "4002"): 1,
    }


@pytest.mark.parametrize(("value", "place"), [(0.0, 0), (1.0, 0), (1.1, 1), (5.0, 1), (6.0, 2)])
def test_a_value_is_counted_at_its_bound(value: float, place: int) -> None:
    histogram = Histogram((1.0, 5.0))
    histogram.observe(value)
    assert [number for number, count in enumerate(histogram.counts) if count] == [place]
    assert histogram.total == value

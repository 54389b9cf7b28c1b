from brewos_relay.core.counters import Counters


def test_everything_is_counted_from_nothing() -> None:
    counters = Counters()
    assert {name: getattr(counters, name) for name in Counters.__slots__} == dict.fromkeys(
        Counters.__slots__, 0
    )


def test_each_relay_counts_for_itself() -> None:
    one, other = Counters(), Counters()
    one.invalid += 1
    assert (one.invalid, other.invalid) == (1, 0)

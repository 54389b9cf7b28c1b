import pytest
import trio
import trio.testing
from hypothesis import given
from hypothesis import strategies as st

from brewos_relay.core.rate_limits import (
    REPORT_EVERY_S,
    LogLineLimits,
    RecentRates,
    TokenBucket,
    TokenBuckets,
    open_bucket,
)


def bucket(*, rate_per_s: float = 20.0, burst: float = 60.0, now: float = 100.0) -> TokenBucket:
    return TokenBucket(rate_per_s=rate_per_s, burst=burst, now=now)


def test_a_burst_is_taken_at_once_and_no_more() -> None:
    client = bucket()
    assert [client.take(1, 100.0) for _ in range(60)] == [0.0] * 60
    assert client.take(1, 100.0) == pytest.approx(1 / 20)


def test_the_pause_is_as_long_as_the_messages_were_early() -> None:
    client = bucket()
    assert client.take(100, 100.0) == pytest.approx(2.0), "40 too many at 20 a second"
    assert client.take(0, 101.0) == pytest.approx(1.0)
    assert client.take(0, 102.0) == 0.0
    assert client.take(1, 102.0) == pytest.approx(1 / 20)


def test_a_quiet_time_gives_a_burst_and_no_more() -> None:
    client = bucket()
    client.take(60, 100.0)
    assert client.take(60, 10_000.0) == 0.0
    assert client.take(1, 10_000.0) > 0.0


def test_peer_within_its_rate_never_waits() -> None:
    client = bucket(burst=1)
    assert [client.take(1, 100 + number / 16) for number in range(200)] == [0.0] * 200


def test_without_a_burst_every_message_has_to_wait() -> None:
    assert bucket(burst=0).take(1, 100.0) == pytest.approx(1 / 20)


@given(
    passes=st.lists(st.tuples(st.floats(0, 5), st.integers(0, 300)), max_size=40),
    rate_per_s=st.floats(0.5, 100),
    burst=st.floats(1, 200),
)
def test_pauses_keep_a_peer_at_its_rate(
    passes: list[tuple[float, int]], rate_per_s: float, burst: float
) -> None:
    one = bucket(rate_per_s=rate_per_s, burst=burst, now=0.0)
    now, taken = 0.0, 0
    for quiet_s, count in passes:
        now += quiet_s
        assert taken <= burst + now * rate_per_s + 1e-6 * taken + 1e-6, "the debt is paid first"
        pause_s = one.take(count, now)
        while pause_s > 1e-9:
            assert pause_s <= 5, "pings of the peer have to be answered in between"
            now += pause_s
            pause_s = one.take(0, now)
        taken += count


def test_rest_of_a_long_pause_is_kept_as_debt() -> None:
    client = bucket()
    assert client.take(360, 100.0) == 5.0, "the debt is 15 s"
    assert client.take(0, 105.0) == 5.0
    assert client.take(0, 114.0) == pytest.approx(1.0)


def test_admission_takes_the_tokens_that_are_left() -> None:
    door = bucket(rate_per_s=2.0, burst=3.0)
    assert [door.admit(100.0) for _ in range(5)] == [True, True, True, False, False]
    assert not door.admit(100.4)
    assert door.admit(100.5), "refused requests cost nothing"
    assert not door.admit(100.5)
    assert [door.admit(200.0) for _ in range(4)] == [True, True, True, False]


def test_no_more_are_admitted_in_a_second_than_the_rate() -> None:
    door = bucket(rate_per_s=200.0, burst=200.0, now=0.0)
    admitted = [sum(door.admit(second + number / 1000) for number in range(1000)) for second in range(5)]
    assert admitted[0] <= 400
    assert all(198 <= count <= 201 for count in admitted[1:])


def test_how_long_there_is_nothing_to_take() -> None:
    door = bucket(rate_per_s=0.5, burst=1.0)
    assert door.admit(100.0)
    assert not door.admit(100.0)
    assert door.empty_s == pytest.approx(2.0)
    assert not door.admit(101.5)
    assert door.empty_s == pytest.approx(0.5)
    assert door.admit(102.0)
    door.give_back()
    assert door.empty_s == 0.0


def test_returned_tokens_never_exceed_the_burst() -> None:
    door = bucket(rate_per_s=1.0, burst=2.0)
    for _ in range(5):
        assert door.admit(100.0)
        door.give_back()
    door.give_back()
    assert [door.admit(100.0) for _ in range(3)] == [True, True, False]


def test_each_key_has_a_bucket_of_its_own() -> None:
    doors = TokenBuckets(rate_per_s=1.0, burst=1.0, kept=9)
    assert doors.find("a") is None
    assert not doors
    assert doors.use("a", 100.0).admit(100.0)
    assert not doors.use("a", 100.0).admit(100.0)
    assert doors.use("b", 100.0).admit(100.0)
    assert doors.find("a") is doors.use("a", 100.0)
    assert len(doors) == 2


def test_the_bucket_that_was_used_least_recently_is_forgotten() -> None:
    doors = TokenBuckets(rate_per_s=1.0, burst=1.0, kept=2)
    for key in ("a", "b", "a", "c"):
        doors.use(key, 100.0)
    assert doors.find("b") is None
    assert doors.find("a")
    assert doors.find("c")
    assert len(doors) == 2


async def test_a_rate_of_0_lets_everything_through() -> None:
    assert open_bucket(0, burst=9) is None
    full = open_bucket(1, burst=2)
    assert full is not None
    assert full.take(2, trio.current_time()) == 0.0


def test_a_reserve_is_left_for_others() -> None:
    one = bucket(burst=10)
    assert [one.admit(100.0, reserve=7.0) for _ in range(4)] == [True, True, True, False]
    assert one.level(100.0) == 7
    assert one.admit(100.0, reserve=6.0)
    assert one.admit(100.0)


def test_a_recent_rate_is_an_average_that_fades() -> None:
    rates = RecentRates(over_s=10.0, kept=3)
    assert rates.of("a", 100.0) == 0
    now = 100.0
    for _ in range(1000):
        now += 0.1
        rates.count("a", now)
    assert rates.of("a", now) == pytest.approx(10, rel=0.02)
    assert rates.of("a", now + 10) == pytest.approx(10 / 2.718, rel=0.02)
    assert rates.of("b", now) == 0


def test_only_so_many_rates_are_kept_and_the_last_used_stay() -> None:
    rates = RecentRates(over_s=10.0, kept=3)
    for number in range(20):
        rates.count("watched", 100.0)
        rates.count(f"stranger {number}", 100.0)
    assert len(rates) == 3
    assert rates.of("watched", 100.0) == pytest.approx(2)


def test_the_debt_of_a_peer_that_is_read_on_is_one_burst_at_most() -> None:
    one = bucket(rate_per_s=10.0, burst=20.0, now=0.0)
    one.owe(1000, 0.0)
    assert one.level(0.0) == -20
    assert not one.is_full(3.9)
    assert one.is_full(4.0)


def limits(*, rate_per_s: float = 5.0, burst: float = 100.0, each_at_once: float = 10.0) -> LogLineLimits:
    return LogLineLimits("connections", rate_per_s=rate_per_s, burst=burst, each_at_once=each_at_once)


def admitted(lines: LogLineLimits, count: int, cause: str = "came", network: str = "192.0.2.1") -> int:
    return sum(lines.admit(cause, network) for _ in range(count))


async def test_each_cause_and_network_has_lines_of_its_own(autojump_clock: trio.testing.MockClock) -> None:
    lines = limits()
    assert admitted(lines, 500) == 10
    assert admitted(lines, 500, network="192.0.2.2") == 10
    assert admitted(lines, 500, cause="went") == 10
    await trio.sleep(15)
    assert admitted(lines, 500) == 3


async def test_all_together_have_a_bound(autojump_clock: trio.testing.MockClock) -> None:
    lines = limits()
    assert sum(admitted(lines, 10, network=str(number)) for number in range(50)) == 100
    await trio.sleep(1)
    assert sum(admitted(lines, 10, network=str(number)) for number in range(50)) == 5


async def test_suppressed_lines_are_reported_once_a_minute_even_without_new_lines(
    autojump_clock: trio.testing.MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    lines = limits()
    admitted(lines, 15)
    admitted(lines, 30, network="")
    lines.report_if_due(trio.current_time())
    assert caplog.messages == []
    await trio.sleep(REPORT_EVERY_S)
    for _ in range(3):
        lines.report_if_due(trio.current_time())
    assert caplog.messages == [
        "20 more log lines about connections from this process were suppressed: came",
        "5 more log lines about connections from 192.0.2.1 were suppressed: came",
    ]
    fields = caplog.records[1].__dict__
    assert (fields["suppressed"], fields["reason"], fields["network"]) == (5, "came", "192.0.2.1")
    await trio.sleep(REPORT_EVERY_S)
    lines.report_if_due(trio.current_time())
    assert len(caplog.messages) == 2, "every line was reported"


async def test_a_report_has_few_lines_however_many_networks_there_are(
    autojump_clock: trio.testing.MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    lines = limits(burst=1000.0)
    for number in range(50):
        admitted(lines, 12, network=f"network {number}")
    lines.report()
    assert len(caplog.messages) == 21
    assert caplog.messages[-1] == "60 more log lines about connections from other networks were suppressed"


async def test_memory_is_bounded_and_nothing_is_lost_from_the_counts(
    autojump_clock: trio.testing.MockClock,
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level("INFO")
    lines = limits(burst=30.0)
    told = sum(admitted(lines, 3, network=f"network {number}") for number in range(1040))
    assert told == 30
    assert len(lines._causes) == 1024
    await trio.sleep(1)
    assert [lines.admit("came", "no place") for _ in range(6)] == [True] * 5 + [False]
    lines.report()
    counts = [record.__dict__["suppressed"] for record in caplog.records]
    assert sum(counts) == 3121 - told
    # Quiet causes make room for others.
    await trio.sleep(60)
    assert admitted(lines, 1, network="a new one") == 1
    assert len(lines._causes) == 1

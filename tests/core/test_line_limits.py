import pytest
import trio
import trio.testing

from brewos_relay.core import line_limits
from brewos_relay.core.line_limits import REPORT_EVERY_S, LineLimits


def limits(*, rate_per_s: float = 5.0, burst: float = 100.0, each_at_once: float = 10.0) -> LineLimits:
    return LineLimits("connections", rate_per_s=rate_per_s, burst=burst, each_at_once=each_at_once)


def admitted(lines: LineLimits, count: int, cause: str = "came", network: str = "192.0.2.1") -> int:
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


async def test_what_was_suppressed_is_reported_once_a_minute_also_when_it_is_quiet(
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
    assert len(caplog.messages) == 2, "there is nothing more to report"


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
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(line_limits, "_KEPT", 10)
    caplog.set_level("INFO")
    lines = limits(burst=30.0)
    told = sum(admitted(lines, 3, network=f"network {number}") for number in range(100))
    assert told == 30
    assert len(lines._causes) == 10
    lines.report()
    counts = [record.__dict__["suppressed"] for record in caplog.records]
    assert sum(counts) == 300 - told
    await trio.sleep(1)
    assert [lines.admit("came", "no place") for _ in range(6)] == [True] * 5 + [False]
    # What has become quiet makes room for others.
    await trio.sleep(60)
    assert admitted(lines, 1, network="a new one") == 1
    assert len(lines._causes) == 1

import pytest
import trio
from trio.testing import MockClock

from brewos_relay.telemetry.measurements import LOOK_EVERY_S, LoopLag, RequestCounters, method_label


@pytest.mark.parametrize(
    ("method", "label"), [("GET", "GET"), ("DELETE", "DELETE"), ("BREW", "other"), ("get", "other")]
)
def test_unknown_methods_share_one_label(method: str, label: str) -> None:
    assert method_label(method) == label


def test_requests_are_counted_and_timed_by_route() -> None:
    counters = RequestCounters()
    counters.count_answer("GET", "/api/devices", "200", 0.02)
    counters.count_answer("GET", "/api/devices", "200", 3.0)
    counters.count_answer("POST", "none", "404", 0.0)
    assert counters.answered == {("GET", "/api/devices", "200"): 2, ("POST", "none", "404"): 1}
    assert counters.took["/api/devices"].total == 3.02
    assert sum(counters.took["/api/devices"].counts) == 2
    assert sum(counters.took["none"].counts) == 1


async def test_lateness_of_the_event_loop_is_measured(mock_clock: MockClock) -> None:
    lag = LoopLag()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(lag.run)
        await trio.testing.wait_all_tasks_blocked()
        mock_clock.jump(LOOK_EVERY_S)
        await trio.testing.wait_all_tasks_blocked()
        mock_clock.jump(LOOK_EVERY_S + 0.3)
        await trio.testing.wait_all_tasks_blocked()
        nursery.cancel_scope.cancel()
    assert sum(lag.late.counts) == 2
    assert abs(lag.late.total - 0.3) < 1e-6
    assert lag.late.counts[0] == 1

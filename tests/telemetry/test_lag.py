import trio
from trio.testing import MockClock

from brewos_relay.telemetry.lag import LOOK_EVERY_S, LoopLag


async def test_how_late_it_woke_is_noted(mock_clock: MockClock) -> None:
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

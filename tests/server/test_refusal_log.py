import pytest
import trio
import trio.testing

from brewos_relay.core.rate_limits import REPORT_EVERY_S
from brewos_relay.server.refusal_log import LINES_AT_ONCE, LINES_AT_ONCE_OF_EACH, RefusalLog


def tell(refusals: RefusalLog, count: int, *, network: str, cause: str = "wrong_key") -> None:
    for number in range(count):
        refusals.log("refused %s: %d", network, number, cause=cause, network=network, extra={"status": 401})


async def test_a_network_that_is_refused_often_is_logged_in_few_lines_with_a_count(
    autojump_clock: trio.testing.MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    refusals = RefusalLog()
    tell(refusals, 700, network="192.0.2.1")
    at_once = int(LINES_AT_ONCE_OF_EACH)
    assert caplog.messages == [f"refused 192.0.2.1: {number}" for number in range(at_once)]
    assert caplog.records[0].__dict__["status"] == 401
    tell(refusals, 1, network="192.0.2.2")
    assert caplog.messages[-1] == "refused 192.0.2.2: 0", "others are logged"
    caplog.clear()
    await trio.sleep(REPORT_EVERY_S)
    refusals.lines.report_if_due(trio.current_time())
    assert caplog.messages == [
        f"{700 - at_once} more log lines about refused connections from 192.0.2.1 were suppressed: wrong_key"
    ]


async def test_many_networks_have_a_bound_together(
    autojump_clock: trio.testing.MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    refusals = RefusalLog()
    for number in range(200):
        tell(refusals, 5, network=f"192.0.2.{number}")
    assert len(caplog.messages) == LINES_AT_ONCE

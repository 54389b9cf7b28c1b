import pytest
import trio
import trio.testing

from brewos_relay.server.refusal_log import LINES_AT_ONCE, LINES_PER_S, RefusalLog


async def test_a_crowd_is_told_of_in_few_lines(
    autojump_clock: trio.testing.MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    refusals = RefusalLog()

    def turn_away(count: int) -> list[str]:
        caplog.clear()
        for number in range(count):
            refusals.tell("refused %s: %d", "192.0.2.1", number, extra={"status": 401})
        return [record.getMessage() for record in caplog.records]

    at_once = int(LINES_AT_ONCE)
    assert turn_away(at_once) == [f"refused 192.0.2.1: {number}" for number in range(at_once)]
    assert caplog.records[0].__dict__["status"] == 401
    assert turn_away(700) == []
    await trio.sleep(1)
    told = turn_away(100)
    assert told[0] == "refused 192.0.2.1: 0 (before that, 700 more were turned away)"
    assert told[1:] == [f"refused 192.0.2.1: {number}" for number in range(1, int(LINES_PER_S))]

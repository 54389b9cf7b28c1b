"""The histories of all devices of a relay."""

from functools import partial

import pytest
import trio
from trio.testing import MockClock

from brewos_relay.core.histories import MOST_WAITING, Histories
from brewos_relay.core.history import Samples
from brewos_relay.core.limits import Limits
from brewos_relay.dialect import BREWOS, NEUTRAL
from brewos_relay.messages import encode
from support.measurements import ONE, TWO, Kept, delta, status
from support.waiting import count_turns


async def test_history_of_a_silent_device_is_trimmed(autojump_clock: MockClock) -> None:
    kept = Kept(history_s=60.0)
    for _ in range(60):
        kept.hand_over(status(pressure=1.0))
        await trio.sleep(1)
    await kept.histories.compact_due()
    before_bytes = kept.histories.size_bytes
    for _ in range(40):
        await trio.sleep(3)
        await kept.histories.compact_due()
    assert kept.histories.size_bytes < before_bytes / 10


async def test_history_that_grows_keeps_its_limit(autojump_clock: MockClock) -> None:
    kept = Kept(history_bytes=4000)
    for _ in range(200):
        kept.hand_over(status(pressure=1.0))
        await trio.sleep(1)
        await kept.histories.compact_due()
        assert kept.histories.size_bytes <= 2000


async def test_checks_of_many_histories_leave_time_for_others(autojump_clock: MockClock) -> None:
    kept = Kept()
    for number in range(200):
        kept.device_id = f"BRW-{number:08X}"
        kept.hand_over(status())
    await kept.histories.compact_due()
    assert 8 <= await count_turns(kept.histories.compact_due) < 50


async def test_histories_of_devices_that_have_gone_are_deleted(autojump_clock: MockClock) -> None:
    kept = Kept(history_s=60.0)
    kept.histories.end(TWO, trio.current_time())  # unknown
    kept.hand_over(status())
    kept.histories.end(ONE, trio.current_time())
    await kept.histories.compact_due()
    assert len(kept.histories) == 1
    await trio.sleep(61)
    await kept.histories.compact_due()
    assert len(kept.histories) == 0


async def test_forgotten_history_is_gone(autojump_clock: MockClock) -> None:
    kept = Kept()
    kept.hand_over(status())
    kept.histories.forget(ONE)
    kept.histories.forget(TWO)
    assert await kept.histories.read(ONE, seconds=60.0) is None


async def test_forgetting_during_a_pass_is_no_failure(autojump_clock: MockClock) -> None:
    kept = Kept()
    devices = [f"BRW-{number:08X}" for number in range(200)]
    for kept.device_id in devices:
        kept.hand_over(status())
    waiting_bytes = kept.histories.size_bytes
    async with trio.open_nursery() as nursery:
        nursery.start_soon(kept.histories.compact_due)
        while kept.histories.size_bytes == waiting_bytes:
            await trio.lowlevel.checkpoint()
        for device_id in devices:
            kept.histories.forget(device_id)
    assert len(kept.histories) == 0


async def test_devices_share_the_whole_memory_equally(autojump_clock: MockClock) -> None:
    kept = Kept(history_total_bytes=40_000, history_bytes=20_000)
    for number in range(30):
        kept.device_id = f"BRW-{number:08X}"
        for _ in range(5):
            kept.hand_over(status(junk="x" * 300))
    assert len(kept.histories) == 19, "there is no room for more"
    for device in range(19):
        await kept.histories.read(f"BRW-{device:08X}", seconds=600.0)
    assert kept.histories.size_bytes <= 40_000


async def test_memory_of_forgotten_devices_is_divided_again(autojump_clock: MockClock) -> None:
    kept = Kept(history_total_bytes=40_000, history_bytes=20_000)
    for device_id in (TWO, ONE):
        kept.device_id = device_id
        for number in range(8):
            await trio.sleep(1)
            kept.hand_over(status(junk="x" * 1000, pressure=float(number)))
    assert len((await kept.samples()).times_s) == 8
    for number in range(3, 19):
        kept.device_id = f"BRW-{number:08X}"
        kept.hand_over(status())
    kept.device_id = ONE
    for number in range(3, 19):
        kept.histories.forget(f"BRW-{number:08X}")
    for _ in range(8):
        await trio.sleep(1)
        kept.hand_over(status(junk="x" * 1000))
    assert len((await kept.samples()).times_s) == 16, "no message was dropped"


async def test_runs_that_nothing_stores_are_bounded(autojump_clock: MockClock) -> None:
    kept = Kept()
    devices = [f"BRW-{number:08X}" for number in range(MOST_WAITING // 40 + 1)]
    for kept.device_id in devices:
        kept.hand_over(status())
    for number in range(40):
        for brewing in (True, False):
            for kept.device_id in devices:
                kept.hand_over(status(brewing=brewing))
            await trio.sleep(3 + number)
        await kept.histories.compact_due()
    dropped = kept.histories.runs_dropped
    assert dropped == 40 * len(devices) - MOST_WAITING
    taken = kept.histories.take_runs(2 * MOST_WAITING)
    assert len(taken) == MOST_WAITING
    assert round(taken[0][1].ended_at - taken[0][1].began_at) == 3 + dropped // len(devices), "the oldest go"
    kept.histories.put_back(taken)
    assert kept.histories.take_runs(1) == taken[:1]
    kept.histories.put_back(taken[:1])
    assert kept.histories.take_runs(5) == taken[:5]


async def test_pause_makes_the_measurements_of_all_devices_older(autojump_clock: MockClock) -> None:
    kept = Kept()
    for kept.device_id in (ONE, TWO):
        kept.hand_over(status())
        await kept.samples()
    kept.histories.count_pause(100.0)
    for kept.device_id in (ONE, TWO):
        assert (await kept.samples()).times_s[0] == trio.current_time() - 100


def test_switched_off_without_time_or_measures() -> None:
    assert Histories(Limits(), BREWOS).is_on
    assert not Histories(Limits(history_s=0.0), BREWOS).is_on
    assert not Histories(Limits(), NEUTRAL).is_on


async def test_other_tasks_run_while_messages_are_decoded(autojump_clock: MockClock) -> None:
    kept = Kept(history_bytes=10**6)
    for _ in range(1000):
        kept.hand_over(status())
    assert await count_turns(kept.histories.compact_due) >= 45


async def test_questions_are_answered_as_they_come(autojump_clock: MockClock) -> None:
    kept = Kept()
    kept.hand_over(status(pressure=9.0))
    answers: list[Samples | None] = []
    async with trio.open_nursery() as nursery:
        nursery.start_soon(partial(kept.histories.answer, within_s=3.0))
        await trio.sleep(1)
        for device_id in (ONE, TWO):
            kept.histories.ask(device_id, 60.0, answers.append)
        await trio.sleep(1)
        assert len(answers) == 2
    assert answers[0] is not None
    assert answers[1] is None
    assert answers[0].values["pressure"] == [9.0]


async def test_too_many_questions_are_answered_with_nothing() -> None:
    kept = Kept()
    answers: list[Samples | None] = []
    for _ in range(101):
        kept.histories.ask(ONE, 60.0, answers.append)
    assert answers == [None]


async def test_messages_are_taken_over_at_a_given_time(autojump_clock: MockClock) -> None:
    kept = Kept()
    start = trio.current_time()
    await trio.sleep(10)
    kept.histories.take(ONE, (), status(pressure=1.0), changes_bytes=0, now=start + 9)
    kept.histories.take(ONE, (), status(pressure=2.0), changes_bytes=0)
    times = (await kept.samples()).times_s
    assert [pytest.approx(at - start, abs=0.002) for at in times] == [9, 10]


async def test_flat_states_are_taken_over_once(autojump_clock: MockClock) -> None:
    kept = Kept()
    kept.histories.mark(ONE, [], {"device_info": encode({"type": "device_info"})}, 0.0)
    kept.histories.mark(TWO, [], {}, 0.0)
    assert len(kept.histories) == 0
    others = {"pico_status": encode({"type": "pico_status", "pressure": 9.0})}
    for _ in range(3):
        kept.histories.mark(ONE, [], others, trio.current_time())
        await trio.sleep(1)
    found = await kept.samples()
    assert found.values["pressure"] == [9.0]


async def test_device_without_room_has_no_history(autojump_clock: MockClock) -> None:
    kept = Kept(history_total_bytes=3000)
    for kept.device_id in (ONE, TWO):
        kept.send(delta(pressure=9.0))
        kept.hand_over()
    assert len(kept.histories) == 1
    assert await kept.histories.read(TWO, seconds=60.0) is None

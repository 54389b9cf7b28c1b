"""The history of a device."""

import itertools
import json
import math
from collections.abc import Sequence
from typing import Any

import msgspec
import pytest
import trio
from hypothesis import given, settings
from hypothesis import strategies as st
from trio.testing import MockClock

from brewos_relay.dialect import BREWOS
from brewos_relay.messages import Message, encode
from support.measurements import ONE, Kept, delta, pressure, status


async def test_values_hold_until_the_next_change_of_their_group(autojump_clock: MockClock) -> None:
    kept = Kept()
    kept.hand_over(status(pressure=0.5, temps={"brew": {"current": 93.25}, "group": 88}))
    await trio.sleep(1)
    kept.send(pressure(9.01), delta(machine={}))
    kept.hand_over()
    found = await kept.samples()
    assert found.values["pressure"] == [0.5, 9.01, 9.01]
    assert found.values["brewTemp"] == [93.25] * 3
    assert found.values["groupTemp"] == [88.0] * 3
    assert found.values["steamTemp"] == [None] * 3
    assert found.online == [True] * 3
    assert found.at_work == [False] * 3


async def test_messages_between_two_checks_are_spread_over_that_time(autojump_clock: MockClock) -> None:
    kept = Kept()
    start = trio.current_time()
    kept.hand_over(status())
    await trio.sleep(30)  # one check each second, without anything new
    kept.send(pressure(1), pressure(2))
    kept.histories.mark(ONE, kept.changes, {}, trio.current_time())  # marked twice
    await trio.sleep(1)
    kept.send(pressure(3))
    await trio.sleep(0.5)
    kept.changes.append(pressure(4))
    kept.hand_over()
    times = (await kept.samples()).times_s
    assert [pytest.approx(at - start, abs=0.002) for at in times] == [0, 29.5, 30, 31, 31.5]


async def test_compaction_waits_until_messages_are_old_or_the_whole_state_came(
    autojump_clock: MockClock,
) -> None:
    kept = Kept()
    kept.send(pressure(1))
    kept.hand_over()
    await kept.histories.compact_due()
    raw_bytes = kept.histories.size_bytes
    assert raw_bytes > len(pressure(1).payload)
    await trio.sleep(31)
    await kept.histories.compact_due()
    assert kept.histories.size_bytes < raw_bytes
    kept.hand_over(status())
    await kept.histories.compact_due()
    assert kept.histories.size_bytes < raw_bytes


async def test_many_messages_are_decoded_soon(autojump_clock: MockClock) -> None:
    kept = Kept()
    for _ in range(20):
        kept.send(*[pressure(1)] * 200)  # far more than a machine sends
        kept.hand_over()
        await trio.sleep(3)
        await kept.histories.compact_due()
        assert kept.histories.size_bytes < 10_000


async def test_rows_leave_after_the_set_time_but_for_the_value_that_still_holds(
    autojump_clock: MockClock,
) -> None:
    kept = Kept(history_s=60.0)
    for bar in range(10):
        kept.hand_over(status(pressure=float(bar)))
        await trio.sleep(10)
    await trio.sleep(1)
    await kept.histories.compact_due()
    await kept.histories.compact_due()
    assert (await kept.samples()).values["pressure"] == [4.0, 5.0, 6.0, 7.0, 8.0, 9.0]
    assert (await kept.samples(15.0)).values["pressure"] == [8.0, 9.0]
    await trio.sleep(1000)
    await kept.histories.compact_due()
    assert (await kept.samples()).values["pressure"] == [9.0], "the machine is still there"


async def test_history_without_any_measurement_ends_as_well(autojump_clock: MockClock) -> None:
    kept = Kept(history_s=60.0)
    kept.send(pressure(1))
    await kept.histories.compact_due()
    kept.histories.take(ONE, [Message(b"no JSON"), Message(b"[]")], changes_bytes=9)
    await trio.sleep(61)
    await kept.histories.compact_due()
    assert len(kept.histories) == 1
    await kept.histories.compact_due()
    assert len(kept.histories) == 0


@pytest.mark.parametrize(
    "value", [math.nan, math.inf, -math.inf, 10**400, 327.68, -400, "9", True, None, [9], {"x": 9}], ids=repr
)
async def test_values_that_are_no_measurements_are_unknown(value: Any, autojump_clock: MockClock) -> None:
    kept = Kept()
    kept.hand_over(status(pressure=1.0))
    await trio.sleep(1)
    text = '{"type":"status","pressure":%s,"scale":9,"temps":[1],"machine":{"isBrewing":1}}'
    kept.hand_over(Message((text % json.dumps(value)).encode()))
    found = await kept.samples()
    if isinstance(value, float) and not math.isfinite(value):  # then it is no JSON
        assert found.values["pressure"] == [1.0]
        await trio.sleep(1)
        kept.hand_over(status(pressure=value))
        found = await kept.samples()
    assert found.values["pressure"][-1] is None
    assert found.at_work[-1] is False


async def test_a_shot_is_a_run_with_its_measurements(autojump_clock: MockClock) -> None:
    kept = Kept()
    kept.hand_over(status())
    await trio.sleep(20)
    began_at = trio.current_time()
    await kept.brew(28)
    (run,) = await kept.runs()
    assert run.complete
    assert run.began_at == began_at
    assert run.ended_at - run.began_at == pytest.approx(28)
    assert run.samples.values["weight"][-1] is None, "the last status had no scale"
    assert run.samples.values["weight"][-2] == pytest.approx(40.5)
    assert len(run.samples.times_s) == 30
    assert run.samples.at_work == [True] * 29 + [False]
    assert await kept.runs() == []


async def test_drops_after_the_end_belong_to_the_run(autojump_clock: MockClock) -> None:
    kept = Kept()
    kept.hand_over(status())
    await kept.brew(20, rest=2.0)
    kept.send(delta(scale={"weight": 36.0}))
    await trio.sleep(10)
    kept.send(delta(scale={"weight": 0.0}))
    kept.hand_over()
    await trio.sleep(31)
    (run,) = await kept.runs()
    assert run.samples.values["weight"][-1] == 36.0


async def test_next_run_ends_the_tail_of_the_one_before(autojump_clock: MockClock) -> None:
    kept = Kept()
    kept.hand_over(status())
    await kept.brew(10, rest=1.0)
    await kept.brew(5)
    first, second = await kept.runs()
    assert first.ended_at < second.began_at
    assert first.samples.times_s[-1] < second.began_at
    assert first.complete
    assert second.complete


async def test_run_whose_start_or_end_was_not_seen_is_incomplete(autojump_clock: MockClock) -> None:
    kept = Kept()
    await kept.brew(20)  # the relay started during it
    (run,) = await kept.runs()
    assert not run.complete
    kept.hand_over(status(brewing=True))
    await trio.sleep(7)
    kept.histories.end(ONE, trio.current_time())
    (run,) = await kept.runs()
    assert not run.complete
    assert run.ended_at - run.began_at == pytest.approx(7)
    kept.hand_over(status())
    await kept.brew(20, rest=1.0)
    kept.histories.end(ONE, trio.current_time())
    (run,) = await kept.runs()
    assert run.complete, "only its tail is missing"
    kept.hand_over(status(brewing=True))
    await trio.sleep(1)
    kept.histories.end(ONE, trio.current_time())
    assert await kept.runs() == [], "too short"


async def test_run_without_end_is_cut(autojump_clock: MockClock) -> None:
    kept = Kept()
    kept.hand_over(status())
    kept.hand_over(status(brewing=True))
    for _ in range(100):
        await trio.sleep(10)
        kept.hand_over(status(brewing=True))
    (run,) = await kept.runs()
    assert not run.complete
    assert run.ended_at - run.began_at == 300.0
    kept.hand_over(status())
    await kept.brew(20)
    (run,) = await kept.runs()
    assert run.complete, "the next one counts again"


async def test_short_runs_are_not_recorded(autojump_clock: MockClock) -> None:
    kept = Kept()
    kept.hand_over(status())
    await kept.brew(1)
    assert await kept.runs() == []


async def test_number_of_runs_is_limited(autojump_clock: MockClock) -> None:
    kept = Kept()
    kept.hand_over(status())
    runs = []
    for _ in range(300):
        await kept.brew(2, rest=1.0)
        runs += await kept.runs()
    assert 40 <= len(runs) <= 75


async def test_flat_state_without_measurements_keeps_those_of_other_messages(
    autojump_clock: MockClock,
) -> None:
    kept = Kept()
    kept.hand_over(status(pressure=9.0, temps={"brew": {"current": 93.0}}))
    await trio.sleep(1)
    flat = {
        "pico_status": encode({"type": "pico_status", "state": "ready", "waterLevel": "ok", "brewTemp": 92.0})
    }
    kept.histories.mark(ONE, [], flat, trio.current_time())
    samples = await kept.samples()
    assert samples.values["pressure"] == [9.0, 9.0]
    assert samples.values["brewTemp"] == [93.0, 92.0]


NUMBERS = st.one_of(
    st.floats(),
    st.integers(),
    st.sampled_from([math.nan, math.inf, -math.inf, 10**400, -(2**63), 1e308, 327.67, 327.68]),
)
VALUES = st.recursive(
    st.none() | st.booleans() | NUMBERS | st.text(max_size=3),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.text(max_size=3), inner, max_size=2),
    max_leaves=4,
)
GROUPS = st.dictionaries(
    st.sampled_from(["pressure", "scale", "temps", "power", "machine", "shot"]),
    VALUES
    | st.dictionaries(
        st.sampled_from(["weight", "flowRate", "brew", "current", "isBrewing", "active", "state"]),
        VALUES | st.fixed_dictionaries({"current": VALUES}),
        max_size=3,
    ),
    max_size=3,
)


def encoded(kind: str, groups: dict[str, Any]) -> Message:
    try:
        return Message(msgspec.msgpack.encode({"type": kind, **groups}), is_text=False)
    except (OverflowError, ValueError):
        return Message(b'{"type":"status","pressure":1e999}')


ACTIONS = st.lists(
    st.one_of(
        st.tuples(st.just("change"), GROUPS),
        st.tuples(st.just("whole"), GROUPS),
        st.tuples(st.just("flat"), GROUPS),
        st.tuples(st.just("wait"), st.sampled_from([0.0, 0.1, 1.0, 3.0, 31.0, 400.0])),
        st.tuples(st.sampled_from(["merge", "end", "compact", "pause", "forget"]), st.none()),
    ),
    max_size=40,
)


@given(actions=ACTIONS, most_bytes=st.sampled_from([1, 300, 2000, 65536]))
@settings(max_examples=150, deadline=None)
def test_history_stays_bounded_and_in_order_for_any_device(
    actions: Sequence[tuple[str, Any]], most_bytes: int
) -> None:
    async def run() -> None:
        kept = Kept(history_bytes=most_bytes)
        for action, value in actions:
            match action:
                case "change":
                    kept.send(encoded("status_delta", value))
                case "whole":
                    kept.hand_over(encoded("status", value))
                case "flat":
                    others = {"pico_status": encoded("pico_status", value)}
                    kept.histories.mark(ONE, kept.changes, others, trio.current_time())
                case "wait":
                    await trio.sleep(value)
                case "merge":
                    kept.hand_over()
                case "end":
                    kept.histories.end(ONE, trio.current_time())
                case "compact":
                    await kept.histories.compact_due()
                case "pause":
                    kept.histories.count_pause(5.0)
                case _:
                    kept.histories.forget(ONE)
            # One segment, and one row, may exceed the limit.
            assert kept.histories.size_bytes <= most_bytes + 64 * 1024 + 100
        found = await kept.histories.read(ONE, seconds=600.0)
        if found is None:
            return
        assert list(found.times_s) == sorted(found.times_s)
        row_bytes = 9 + 2 * len(BREWOS.measures)
        assert len(found.times_s) * row_bytes <= max(most_bytes / 2, row_bytes)
        for column in found.values.values():
            assert len(column) == len(found.times_s)
            assert all(value is None or abs(value) <= 32767 for value in column)
        for _, each in kept.histories.take_runs(100):
            assert 2.0 <= each.ended_at - each.began_at <= 300.0 + 5.0
            assert len(each.samples.times_s) * row_bytes <= most_bytes / 2 + row_bytes

    trio.run(run, clock=MockClock(autojump_threshold=0))


async def test_a_chatty_device_gets_rows_that_are_apart(autojump_clock: MockClock) -> None:
    kept = Kept()
    for _ in range(60):
        await trio.sleep(1)
        kept.send(*(pressure(number / 10) for number in range(50)))
        kept.hand_over()
    found = await kept.samples()
    assert len(found.times_s) <= 60 * 4 + 2
    assert found.values["pressure"][-1] == 4.9, "the last value counts"


async def test_last_values_stay_with_memory_for_one_row(autojump_clock: MockClock) -> None:
    kept = Kept(history_bytes=60)
    for bar in (1.0, 2.0, 3.0):
        kept.hand_over(status(pressure=bar))
        await kept.histories.compact_due()
        assert (await kept.samples()).values["pressure"] == [bar]
        await trio.sleep(1)


async def test_with_less_memory_old_rows_are_further_apart(autojump_clock: MockClock) -> None:
    kept = Kept(history_bytes=4000)
    for number in range(600):
        await trio.sleep(1)
        kept.send(pressure(number / 100))
        if number % 20 == 0:
            kept.hand_over()
            await kept.samples()
    times = (await kept.samples()).times_s
    assert len(times) * 23 <= 2000
    assert times[-1] - times[0] > 550, "ten minutes nonetheless"
    apart = [later - earlier for earlier, later in itertools.pairwise(times)]
    assert apart[0] > 10 > 1.1 > apart[-1]


async def test_messages_beyond_the_limit_are_dropped_undecoded(autojump_clock: MockClock) -> None:
    kept = Kept(history_bytes=20_000)
    for _ in range(100):
        kept.send(*[delta(pressure=1.0, junk="x" * 1000)] * 5)
        kept.hand_over()
        assert kept.histories.size_bytes <= 10_000


async def test_pause_makes_measurements_of_an_idle_device_older_as_well(autojump_clock: MockClock) -> None:
    kept = Kept()
    kept.hand_over(status())
    at = (await kept.samples()).times_s[0]
    kept.histories.count_pause(10.0)
    assert (await kept.samples()).times_s[0] == pytest.approx(at - 10.0)
    assert await kept.runs() == []


async def test_old_firmware_is_sampled_from_its_flat_state(autojump_clock: MockClock) -> None:
    kept = Kept()

    def tell(**fields: Any) -> None:
        others = {"pico_status": encode({"type": "pico_status", **fields})}
        for _ in range(2):  # the second check finds the same message
            kept.histories.mark(ONE, [], others, trio.current_time())

    tell(state="ready", isBrewing=False, brewTemp=93.0, pressure=0)
    for _ in range(10):
        await trio.sleep(2)
        tell(state="brewing", isBrewing=True, brewTemp=92.0, pressure=9.0)
    tell(state="ready", isBrewing=False, brewTemp=93.0, pressure=0)
    await trio.sleep(6)
    (run,) = await kept.runs()
    assert set(run.samples.values["pressure"][:-1]) == {9.0}
    assert run.ended_at - run.began_at == pytest.approx(18)
    kept.histories.mark(ONE, [], {"device_info": encode({"type": "device_info"})}, trio.current_time())


async def test_history_ends_after_its_device_has_gone(autojump_clock: MockClock) -> None:
    kept = Kept(history_s=60.0)
    kept.histories.end(ONE, trio.current_time())  # unknown
    kept.hand_over(status(pressure=9.0))
    kept.histories.end(ONE, trio.current_time())
    found = await kept.samples()
    assert found.online == [True, False]
    assert found.values["pressure"] == [9.0, None]
    await trio.sleep(59)
    await kept.histories.compact_due()
    assert len(kept.histories) == 1
    await trio.sleep(2)
    await kept.histories.compact_due()
    assert len(kept.histories) == 0
    assert await kept.histories.read(ONE, seconds=60.0) is None


async def test_pause_of_the_process_makes_measurements_older(autojump_clock: MockClock) -> None:
    kept = Kept()
    kept.hand_over(status())
    kept.hand_over(status(brewing=True))
    at = (await kept.samples()).times_s[0]
    kept.histories.count_pause(10.0)
    assert (await kept.samples()).times_s[0] == pytest.approx(at - 10.0)
    kept.hand_over(status())
    await kept.samples()
    kept.histories.count_pause(10.0)
    (run,) = await kept.runs()
    assert run.ended_at - run.began_at == pytest.approx(10.0)

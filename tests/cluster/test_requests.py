"""Requests: questions to other instances."""

import trio
from trio.testing import MockClock, wait_all_tasks_blocked

from brewos_relay.cluster.envelopes import (
    Envelope,
    HistoryAnswer,
    HistoryRequest,
    LiveAnswer,
    LiveRequest,
    LogAnswer,
    LogRequest,
    StateAnswer,
    StateRequest,
    unpack,
)
from brewos_relay.cluster.requests import Requests
from brewos_relay.core.device_log import LogConfig
from brewos_relay.live_devices import DeviceHistory, LiveDevice, LogView

ID = "BRW-00000001"


class Asking:
    """Requests, and what they send."""

    def __init__(self) -> None:
        self.takes = True
        self.sent: list[Envelope | None] = []
        self.requests = Requests("a", self._send)
        self.answers: list[object] = []

    def _send(self, instance: str, payload: bytes) -> bool:
        self.sent.append(unpack(payload))
        return self.takes

    async def ask_state(self) -> None:
        self.answers.append(await self.requests.ask_state("b", ID))

    async def ask_live(self) -> None:
        self.answers.append(await self.requests.ask_live("b", [ID]))


async def test_answers_reach_their_questions(autojump_clock: MockClock) -> None:
    asking = Asking()
    live = LiveDevice(is_online=True)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(asking.ask_state)
        await wait_all_tasks_blocked()
        nursery.start_soon(asking.ask_live)
        await wait_all_tasks_blocked()
        assert asking.sent == [StateRequest("a", ID, 1), LiveRequest("a", 2, [ID])]
        asking.requests.take(StateAnswer(9, b"none asked"))
        asking.requests.take(LiveAnswer(2, {ID: live}))
        await wait_all_tasks_blocked()
        asking.requests.take(StateAnswer(1, b"{}"))
    assert asking.answers == [{ID: live}, b"{}"]


async def test_log_is_asked_for(autojump_clock: MockClock) -> None:
    asking, log = Asking(), LogView(LogConfig(), 0.0, 9, ["00:00:01 Pump on"])

    async def ask() -> None:
        asking.answers.append(await asking.requests.ask_log("b", ID, "read"))

    async with trio.open_nursery() as nursery:
        for number, answer in ((1, LogAnswer(1, log)), (2, StateAnswer(2, b"{}"))):
            nursery.start_soon(ask)
            await wait_all_tasks_blocked()
            assert asking.sent[-1] == LogRequest("a", ID, number, "read")
            asking.requests.take(answer)
            await wait_all_tasks_blocked()
    assert asking.answers == [log, None]


async def test_history_is_asked_for(autojump_clock: MockClock) -> None:
    asking, history = Asking(), DeviceHistory(7, [5])

    async def ask() -> None:
        asking.answers.append(await asking.requests.ask_history("b", ID, 60.0))

    async with trio.open_nursery() as nursery:
        for number, answer in ((1, HistoryAnswer(1, history)), (2, StateAnswer(2, b"{}"))):
            nursery.start_soon(ask)
            await wait_all_tasks_blocked()
            assert asking.sent[-1] == HistoryRequest("a", ID, number, 60.0)
            asking.requests.take(answer)
            await wait_all_tasks_blocked()
    assert asking.answers == [history, None]


async def test_answer_of_another_kind_is_none(autojump_clock: MockClock) -> None:
    asking = Asking()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(asking.ask_state)
        await wait_all_tasks_blocked()
        nursery.start_soon(asking.ask_live)
        await wait_all_tasks_blocked()
        asking.requests.take(LiveAnswer(1, {}))
        asking.requests.take(StateAnswer(2, None))
    assert sorted(asking.answers, key=str) == [None, {}]


async def test_no_answer_comes_over_a_connection_that_is_lost(autojump_clock: MockClock) -> None:
    asking = Asking()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(asking.ask_state)
        await wait_all_tasks_blocked()
        asking.requests.lose()
    asking.takes = False
    await asking.ask_live()
    assert asking.answers == [None, {}]


async def test_instance_answers_or_the_connection_is_lost(autojump_clock: MockClock) -> None:
    asking = Asking()

    async def ask() -> None:
        asking.answers.append(await asking.requests.answers("b"))

    async with trio.open_nursery() as nursery:
        nursery.start_soon(ask)
        await wait_all_tasks_blocked()
        asking.requests.take(LiveAnswer(1, {}))
        await wait_all_tasks_blocked()
        nursery.start_soon(ask)
        await wait_all_tasks_blocked()
        asking.requests.lose()
    assert asking.answers == [True, False]

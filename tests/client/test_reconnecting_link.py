"""Tests of client.reconnecting_link: reconnects after each kind of end, and the status."""

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Any

import pytest
import trio
import trio.testing
from trio.testing import MockClock

from brewos_relay.client import reconnecting_link as link_module
from brewos_relay.client.backoff import Backoff
from brewos_relay.client.endpoint import RelayUnreachable
from brewos_relay.client.reconnecting_link import (
    KICKED_PONG_S,
    LONG_PAUSE_S,
    STABLE_S,
    LinkState,
    LinkStatus,
    LinkStopped,
    ReconnectingLink,
    RetryDecision,
)
from brewos_relay.client.websocket import ConnectionEnded, RelayRefused
from brewos_relay.errors import RelayError, SettingsError
from brewos_relay.messages import Message


class Line:
    """A connection whose other side is the test."""

    def __init__(self) -> None:
        self.sent: list[bytes] = []
        self.ended: ConnectionEnded | None = None
        self.answers_pings = True
        self.closed_by_us = False
        self._end = trio.Event()

    def cut(self, close_code: int | None = None, reason: str = "") -> None:
        self.ended = ConnectionEnded(close_code, reason)
        self._end.set()

    async def send(self, message: Message) -> None:
        await trio.lowlevel.checkpoint()
        if self.ended is not None:
            raise self.ended
        self.sent.append(message.payload)

    async def receive(self) -> Message:
        await self._end.wait()
        assert self.ended is not None
        raise self.ended

    async def ping(self, *, timeout_s: float) -> None:
        await trio.lowlevel.checkpoint()
        if not self.answers_pings:
            await trio.sleep(timeout_s)
            raise ConnectionEnded(None, "no pong")


class Network:
    """The `dial` of a link; the next attempts raise `fails`, one each."""

    def __init__(self) -> None:
        self.attempts_at: list[float] = []
        self.lines: list[Line] = []
        self.fails: list[Exception] = []
        self.dial_s = 0.0
        self.decision = RetryDecision.BACK_OFF
        self.told: list[LinkStatus] = []

    def link(self, **options: Any) -> ReconnectingLink:
        return ReconnectingLink(
            dial=self.dial,
            parts=(self.read,),
            decide_retry=lambda _: self.decision,
            on_status=self.told.append,
            backoff=Backoff(chance=lambda: 0.0),
            **options,
        )

    async def dial(self) -> AbstractAsyncContextManager[Any]:
        await trio.sleep(self.dial_s)
        self.attempts_at.append(round(trio.current_time(), 3))
        if self.fails:
            raise self.fails.pop(0)
        return self._line()

    @asynccontextmanager
    async def _line(self) -> AsyncIterator[Line]:
        line = Line()
        self.lines.append(line)
        try:
            yield line
        finally:
            line.closed_by_us = line.ended is None

    async def read(self, websocket: Any) -> None:
        await websocket.receive()

    @property
    def pauses(self) -> list[float]:
        return [
            later - earlier for earlier, later in zip(self.attempts_at, self.attempts_at[1:], strict=False)
        ]


Test = Callable[[Network, ReconnectingLink], Awaitable[None]]


@asynccontextmanager
async def running(network: Network, **options: Any) -> AsyncIterator[ReconnectingLink]:
    link = network.link(**options)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(link.run)
        yield link
        nursery.cancel_scope.cancel()


def unreachable() -> RelayUnreachable:
    return RelayUnreachable("nobody there")


async def test_retries_after_5_s_doubling_to_60_s(autojump_clock: MockClock) -> None:
    network = Network()
    network.fails = [unreachable() for _ in range(7)]
    async with running(network) as link:
        await link.wait_for_state(LinkState.CONNECTED)
    assert network.pauses == pytest.approx([5, 10, 20, 40, 60, 60, 60])


async def test_status_has_state_and_reason(autojump_clock: MockClock) -> None:
    network = Network()
    network.fails = [RelayRefused(401, "unknown device")]
    async with running(network) as link:
        assert link.status.state is LinkState.CONNECTING
        waiting = await link.wait_for_state(LinkState.WAITING, LinkState.STOPPED)
        assert (waiting.http_status, waiting.close_code) == (401, None)
        assert "unknown device" in waiting.reason
        assert waiting.next_attempt_at_s == pytest.approx(trio.current_time() + 5)
        connected = await link.wait_for_state(LinkState.CONNECTED)
        assert connected == LinkStatus(LinkState.CONNECTED)
        assert link.connections == 1
        network.lines[0].cut(1012, "restarting")
        waiting = await link.wait_for_state(LinkState.WAITING)
        assert (waiting.close_code, waiting.http_status) == (1012, None)
        assert waiting.reason == "the connection was closed with code 1012: restarting"
    assert [status.state for status in network.told] == [
        *(LinkState.CONNECTING, LinkState.WAITING),
        *(LinkState.CONNECTING, LinkState.CONNECTED, LinkState.WAITING),
    ]
    assert "unknown device" in network.told[2].reason  # still, while it tries again


async def test_statuses_yields_each_status(autojump_clock: MockClock) -> None:
    network = Network()
    network.fails = [unreachable()]
    network.dial_s = 1.0
    seen: list[LinkState] = []
    async with running(network) as link:
        async for status in link.statuses():
            seen.append(status.state)
            if status.state is LinkState.CONNECTED:
                break
        network.lines[0].cut()
        await link.wait_for_state(LinkState.WAITING)
        assert (await anext(link.statuses())).state is LinkState.WAITING
    assert seen == [LinkState.CONNECTING, LinkState.WAITING, LinkState.CONNECTING, LinkState.CONNECTED]


@pytest.mark.parametrize(("lived_s", "pause_s"), [(0.0, 40.0), (STABLE_S - 1, 40.0), (STABLE_S, 5.0)])
async def test_only_a_long_connection_shortens_pauses_again(
    autojump_clock: MockClock, lived_s: float, pause_s: float
) -> None:
    network = Network()
    network.fails = [unreachable() for _ in range(3)]
    async with running(network) as link:
        await link.wait_for_state(LinkState.CONNECTED)
        await trio.sleep(lived_s)
        network.lines[0].cut()
        waiting = await link.wait_for_state(LinkState.WAITING)
        assert waiting.next_attempt_at_s == pytest.approx(trio.current_time() + pause_s)


async def test_reconnects_when_the_relay_asks(autojump_clock: MockClock) -> None:
    network = Network()
    async with running(network) as link:
        await link.wait_for_state(LinkState.CONNECTED)
        link.handle_restarting({"reconnectInMs": 31_000})
        link.handle_restarting({"reconnectInMs": "soon"})
        await trio.sleep(11)
        network.lines[0].cut(1012)
        waiting = await link.wait_for_state(LinkState.WAITING)
        assert waiting.next_attempt_at_s == pytest.approx(trio.current_time() + 20)
        await link.wait_for_state(LinkState.CONNECTED)
        network.lines[1].cut(1012)
        waiting = await link.wait_for_state(LinkState.WAITING)
        assert waiting.next_attempt_at_s == pytest.approx(trio.current_time() + 10)  # that was once


async def test_honours_retry_after(autojump_clock: MockClock) -> None:
    network = Network()
    network.fails = [RelayRefused(503, retry_after_s=90), RelayRefused(503)]
    async with running(network) as link:
        await link.wait_for_state(LinkState.CONNECTED)
    assert network.pauses == pytest.approx([90, 10])


async def test_kick_ends_a_wait_and_shortens_the_next_ones(autojump_clock: MockClock) -> None:
    network = Network()
    network.fails = [unreachable() for _ in range(4)]
    async with running(network) as link:
        await link.wait_for_state(LinkState.WAITING)
        await trio.sleep(1)
        link.kick()
        await trio.sleep(0.1)
        assert network.pauses == pytest.approx([1])
        waiting = await link.wait_for_state(LinkState.WAITING)
        assert waiting.next_attempt_at_s == pytest.approx(trio.current_time() + 4.9)


async def test_kick_during_an_attempt_counts(autojump_clock: MockClock) -> None:
    network = Network()
    network.fails = [unreachable()]
    network.dial_s = 3.0
    async with running(network) as link:
        await trio.sleep(1)
        link.kick()
        await link.wait_for_state(LinkState.CONNECTED)
        assert network.attempts_at == pytest.approx([3, 6])


async def test_kick_checks_a_connection(autojump_clock: MockClock) -> None:
    network = Network()
    async with running(network) as link:
        await link.wait_for_state(LinkState.CONNECTED)
        await trio.sleep(2)
        link.kick()
        await trio.sleep(10)
        assert link.status.state is LinkState.CONNECTED
        network.lines[0].answers_pings = False
        kicked_at_s = trio.current_time()
        link.kick()
        waiting = await link.wait_for_state(LinkState.WAITING)
        assert trio.current_time() - kicked_at_s == pytest.approx(KICKED_PONG_S)
        assert "no pong" in waiting.reason


async def test_dead_connection_is_detected(autojump_clock: MockClock) -> None:
    network = Network()
    async with running(network) as link:
        await link.wait_for_state(LinkState.CONNECTED)
        network.lines[0].answers_pings = False
        with trio.fail_after(link_module.PING_S + link_module.PONG_S + 0.1):
            await link.wait_for_state(LinkState.WAITING)


async def test_pause_closes_and_lasts_until_resume(autojump_clock: MockClock) -> None:
    network = Network()
    async with running(network) as link:
        await link.wait_for_state(LinkState.CONNECTED)
        link.pause()
        link.pause()
        paused = await link.wait_for_state(LinkState.PAUSED)
        assert paused.reason == "the link is paused"
        assert network.lines[0].closed_by_us
        await trio.sleep(1000)
        link.kick()
        await trio.sleep(1000)
        assert len(network.attempts_at) == 1
        resumed_at_s = trio.current_time()
        link.resume()
        link.resume()
        await link.wait_for_state(LinkState.CONNECTED)
        assert trio.current_time() == pytest.approx(resumed_at_s)
        assert link.connections == 2


async def test_pause_ends_a_wait_for_the_next_attempt(autojump_clock: MockClock) -> None:
    network = Network()
    network.fails = [unreachable()]
    async with running(network) as link:
        await link.wait_for_state(LinkState.WAITING)
        link.pause()
        await link.wait_for_state(LinkState.PAUSED)
        await trio.sleep(60)
        assert len(network.attempts_at) == 1


async def test_disabled_link_does_not_connect(autojump_clock: MockClock) -> None:
    network = Network()
    async with running(network, enabled=False) as link:
        assert not link.enabled
        assert link.status.state is LinkState.DISABLED
        await trio.sleep(1000)
        assert network.attempts_at == []
        link.enabled = True
        await link.wait_for_state(LinkState.CONNECTED)
        link.enabled = True  # that changes nothing
        await trio.sleep(1)
        assert link.connections == 1
        link.pause()
        link.enabled = False
        await link.wait_for_state(LinkState.DISABLED)
        link.enabled = True
        await link.wait_for_state(LinkState.PAUSED)  # a pause is a thing of its own
        assert link.connections == 1


async def test_stopped_link_starts_again_only_when_kicked(autojump_clock: MockClock) -> None:
    network = Network()
    async with running(network) as link:
        await link.wait_for_state(LinkState.CONNECTED)
        network.decision = RetryDecision.STOP
        network.lines[0].cut(4002, "replaced")
        stopped = await link.wait_for_state(LinkState.STOPPED)
        assert (stopped.close_code, "replaced" in stopped.reason) == (4002, True)
        assert stopped.next_attempt_at_s is None
        await trio.sleep(10_000)
        assert link.connections == 1
        assert not await link.send(Message(b"x"), wait=False)
        with pytest.raises(LinkStopped, match="replaced") as caught:
            await link.send(Message(b"x"), wait=True)
        assert caught.value.status == stopped
        link.kick()
        await link.wait_for_state(LinkState.CONNECTED)


@pytest.mark.parametrize(
    ("decision", "shortest_s", "longest_s"),
    [(RetryDecision.AT_ONCE, 0.0, 1.0), (RetryDecision.SLOWLY, LONG_PAUSE_S, LONG_PAUSE_S * 1.2)],
)
async def test_verdict_decides_how_to_continue(
    autojump_clock: MockClock, decision: RetryDecision, shortest_s: float, longest_s: float
) -> None:
    network = Network()
    network.decision = decision
    network.fails = [RelayRefused(403, retry_after_s=7)]
    async with running(network) as link:
        await link.wait_for_state(LinkState.CONNECTED)
    assert shortest_s <= network.pauses[0] <= longest_s


async def test_send_while_offline_drops_or_waits(autojump_clock: MockClock) -> None:
    network = Network()
    network.fails = [unreachable()]
    async with running(network) as link:
        await link.wait_for_state(LinkState.WAITING)
        assert not await link.send(Message(b"dropped"), wait=False)
        assert await link.send(Message(b"waited"), wait=True)
        assert link.connections == 1
        assert await link.send(Message(b"now"), wait=False)
        assert network.lines[0].sent == [b"waited", b"now"]


async def test_interrupted_send_is_repeated_only_with_wait(autojump_clock: MockClock) -> None:
    network = Network()
    async with running(network) as link:
        await link.wait_for_state(LinkState.CONNECTED)
        network.lines[0].cut()
        assert not await link.send(Message(b"lost"), wait=False)
        await link.wait_for_state(LinkState.WAITING, LinkState.CONNECTED)
        assert await link.send(Message(b"kept"), wait=True)
        assert network.lines[-1].sent == [b"kept"]


@pytest.mark.parametrize("error", [SettingsError("no URL"), ValueError("a mistake")])
async def test_other_exceptions_leave_run(autojump_clock: MockClock, error: Exception) -> None:
    def decide_retry(error: RelayError) -> RetryDecision:
        raise error

    network = Network()
    network.fails = [error]
    link = network.link()
    link._decide_retry = decide_retry
    with pytest.raises(type(error)):
        await link.run()

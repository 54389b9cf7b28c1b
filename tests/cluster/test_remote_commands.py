"""RemoteCommands: one outcome for each command, and no act after an unknown one."""

import pytest
import trio
from trio.testing import MockClock

from brewos_relay.cluster import remote_commands
from brewos_relay.cluster.broker_clock import BrokerClock
from brewos_relay.cluster.envelopes import Command, Outcome, unpack
from brewos_relay.cluster.remote_commands import ANSWER_S, DEADLINE_S, RemoteCommands
from brewos_relay.messages import Message

TARE = Message(b'{"type":"command","cmd":"tare"}')


class Sender:
    """Commands, what they send, and the outcomes."""

    def __init__(self, *, is_measured: bool = True) -> None:
        self.clock = BrokerClock(trio.current_time)
        if is_measured:
            self.clock.end(self.clock.begin(), 0)
        self.takes = True
        self.sent: list[Command] = []
        self.outcomes: list[str] = []
        self.commands = RemoteCommands("a", self.clock, self._take)

    def _take(self, instance: str, payload: bytes) -> bool:
        if self.takes:
            envelope = unpack(payload)
            assert isinstance(envelope, Command)
            self.sent.append(envelope)
        return self.takes

    def send(self) -> None:
        self.commands.send("b", "BRW-00000001", TARE, self.outcomes.append, 9.0)


async def test_outcome_is_told_once(autojump_clock: MockClock) -> None:
    sender = Sender()
    sender.send()
    sender.send()
    [first, second] = sender.sent
    sender.commands.take(Outcome(second.number, "busy"))
    sender.commands.take(Outcome(second.number, "delivered"))
    sender.commands.take(Outcome(first.number, "delivered"))
    sender.commands.take(Outcome(99, "delivered"))
    assert sender.outcomes == ["busy", "delivered"]
    assert len(sender.commands) == 0


async def test_outcome_is_unknown_after_two_seconds(autojump_clock: MockClock) -> None:
    sender = Sender()
    sender.send()
    await trio.sleep(1)
    sender.send()
    sender.commands.expire(trio.current_time() + ANSWER_S - 1.01)
    assert sender.outcomes == []
    sender.commands.expire(trio.current_time() + ANSWER_S - 1)
    assert sender.outcomes == ["unknown"]
    sender.commands.take(Outcome(sender.sent[0].number, "delivered"))
    assert sender.outcomes == ["unknown"]
    sender.commands.expire(trio.current_time() + ANSWER_S)
    assert sender.outcomes == ["unknown", "unknown"]


async def test_deadline_is_early_enough_with_an_inexact_clock(autojump_clock: MockClock) -> None:
    sender = Sender(is_measured=False)
    began_at = sender.clock.begin()
    await trio.sleep(1.5)  # the answer took all of this time
    sender.clock.end(began_at, 0)
    sender.send()
    assert sender.sent[0].deadline_us == pytest.approx(DEADLINE_S * 1e6, abs=10)
    assert sender.sent[0].not_after_ms == 9.0


async def test_command_that_was_not_sent_has_a_certain_outcome(autojump_clock: MockClock) -> None:
    sender = Sender()
    sender.takes = False
    sender.send()
    unmeasured = Sender(is_measured=False)
    unmeasured.send()
    assert sender.outcomes == unmeasured.outcomes == ["bus_unavailable"]
    assert unmeasured.sent == []


async def test_number_of_waiting_commands_is_limited(
    autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(remote_commands, "_MOST", 2)
    sender = Sender()
    for _ in range(3):
        sender.send()
    assert sender.outcomes == ["bus_unavailable"]
    assert len(sender.sent) == 2


async def test_command_of_the_relay_asks_for_no_outcome(autojump_clock: MockClock) -> None:
    sender = Sender()
    sender.commands.send("b", "BRW-00000001", TARE, None, 9.0)
    assert sender.sent[0].number == 0
    assert len(sender.commands) == 0


async def test_client_that_cannot_be_told_does_not_keep_others_waiting(
    autojump_clock: MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    sender = Sender()

    def fail(outcome: str) -> None:
        raise ValueError(outcome)

    sender.commands.send("b", "BRW-00000001", TARE, fail, 9.0)
    sender.send()
    sender.commands.expire(trio.current_time() + 9)
    assert sender.outcomes == ["unknown"]
    assert "the outcome of a command cannot be told" in caplog.text

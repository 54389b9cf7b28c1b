"""RemoteCommands: commands of clients here for devices of other instances, until their outcome is known."""

import logging
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

import trio

from brewos_relay.cluster.broker_clock import BrokerClock
from brewos_relay.cluster.envelopes import Command, Outcome, pack
from brewos_relay.core.remote import RemoteOutcome, TakeOutcome
from brewos_relay.messages import Message

log = logging.getLogger(__name__)

ANSWER_S: Final = 2.0
"""After this time without an answer, the outcome of a command is unknown."""
DEADLINE_S: Final = 1.7
"""The device's instance delivers no command later than this. The rest of `ANSWER_S` is for its answer."""
_MOST: Final = 10_000
"""This many commands may wait for their outcome."""


@dataclass(frozen=True, slots=True)
class _Waiting:
    take_outcome: TakeOutcome
    expires_at: float  # trio time


class RemoteCommands:
    """Sends each command once, and tells its outcome once.

    A command whose outcome was told as unknown never acts later. So one that was sent before the connection
    to the broker was lost keeps waiting: it may still act, and its answer may come over the next connection.

    `send` sends an envelope to an instance; False if that is not possible.
    """

    def __init__(self, sender: str, clock: BrokerClock, send: Callable[[str, bytes], bool]) -> None:
        self._sender = sender
        self._clock = clock
        self._send = send
        self._number = 0
        self._waiting: dict[int, _Waiting] = {}  # the oldest first

    def __len__(self) -> int:
        return len(self._waiting)

    def send(
        self,
        instance: str,
        device_id: str,
        message: Message,
        take_outcome: TakeOutcome | None,
        not_after_ms: float,
    ) -> None:
        """Send a command to the instance of its device; see `RemotePeer.send_command`."""
        number, now_us, sent = 0, self._clock.earliest_us(), False
        if take_outcome is not None:
            self._number += 1
            number = self._number
        if now_us is not None and len(self._waiting) < _MOST:
            deadline_us = now_us + round(DEADLINE_S * 1e6)
            envelope = Command(self._sender, device_id, number, deadline_us, not_after_ms, message.payload)
            sent = self._send(instance, pack(envelope))
        if take_outcome is None:
            return
        if not sent:
            take_outcome("bus_unavailable")
            return
        self._waiting[number] = _Waiting(take_outcome, trio.current_time() + ANSWER_S)

    def take(self, envelope: Outcome) -> None:
        """Take an outcome. One that comes too late is dropped."""
        self._end(envelope.number, envelope.outcome)

    def expire(self, now: float) -> None:
        """Tell `unknown` to commands without an answer in time."""
        for number, waiting in list(self._waiting.items()):
            if waiting.expires_at > now:
                return
            self._end(number, "unknown")

    def _end(self, number: int, outcome: RemoteOutcome) -> None:
        if (waiting := self._waiting.pop(number, None)) is not None:
            try:
                waiting.take_outcome(outcome)
            except Exception:
                log.exception("the outcome of a command cannot be told")

"""Requests: questions to other instances, and their answers."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TypeAlias

import trio

from brewos_relay.cluster.envelopes import (
    HistoryAnswer,
    HistoryRequest,
    LiveAnswer,
    LiveRequest,
    LogAnswer,
    LogRequest,
    StateAnswer,
    StateRequest,
    pack,
)
from brewos_relay.live_devices import DeviceHistory, LiveDevice, LogAction, LogView

Question: TypeAlias = StateRequest | LiveRequest | LogRequest | HistoryRequest
Answer: TypeAlias = StateAnswer | LiveAnswer | LogAnswer | HistoryAnswer


@dataclass(slots=True)
class _Waiting:
    answered: trio.Event = field(default_factory=trio.Event)
    answer: Answer | None = None


class Requests:
    """Asks other instances. `send` sends an envelope to an instance."""

    def __init__(self, sender: str, send: Callable[[str, bytes], bool]) -> None:
        self._sender = sender
        self._send = send
        self._number = 0
        self._waiting: dict[int, _Waiting] = {}

    async def ask_state(self, instance: str, device_id: str) -> bytes | None:
        """Return the state that an instance knows of a device, as JSON; None if it knows none."""
        answer = await self._ask(instance, lambda number: StateRequest(self._sender, device_id, number))
        return answer.content if isinstance(answer, StateAnswer) else None

    async def ask_log(self, instance: str, device_id: str, action: LogAction) -> LogView | None:
        """Return the log that an instance has of a device; None if it has none."""
        answer = await self._ask(instance, lambda number: LogRequest(self._sender, device_id, number, action))
        return answer.log if isinstance(answer, LogAnswer) else None

    async def ask_history(self, instance: str, device_id: str, seconds: float) -> DeviceHistory | None:
        """Return the measurements that an instance has of a device; None if it has none."""
        answer = await self._ask(
            instance, lambda number: HistoryRequest(self._sender, device_id, number, seconds)
        )
        return answer.history if isinstance(answer, HistoryAnswer) else None

    async def ask_live(self, instance: str, device_ids: Sequence[str]) -> dict[str, LiveDevice]:
        """Return what an instance knows of the connections of devices."""
        answer = await self._ask(instance, lambda number: LiveRequest(self._sender, number, device_ids))
        return answer.devices if isinstance(answer, LiveAnswer) else {}

    async def answers(self, instance: str) -> bool:
        """Wait until an instance answers; False if the connection is lost."""
        return await self._ask(instance, lambda number: LiveRequest(self._sender, number, ())) is not None

    async def _ask(self, instance: str, question: Callable[[int], Question]) -> Answer | None:
        """Ask, and wait for the answer; None if the connection is lost."""
        self._number += 1
        number, waiting = self._number, _Waiting()
        self._waiting[number] = waiting
        try:
            if self._send(instance, pack(question(number))):
                await waiting.answered.wait()
        finally:
            del self._waiting[number]
        return waiting.answer

    def take(self, answer: Answer) -> None:
        """Take an answer."""
        if (waiting := self._waiting.get(answer.number)) is not None:
            waiting.answer = answer
            waiting.answered.set()

    def lose(self) -> None:
        """End all requests: no answer comes."""
        for waiting in self._waiting.values():
            waiting.answered.set()

"""StateRequests: requests for the states of devices on other instances."""

from collections.abc import Callable
from dataclasses import dataclass, field

import trio

from brewos_relay.cluster.envelopes import StateAnswer, StateRequest, pack


@dataclass(slots=True)
class _Waiting:
    answered: trio.Event = field(default_factory=trio.Event)
    content: bytes | None = None


class StateRequests:
    """Asks other instances for states as the API shows them. `send` sends an envelope to an instance."""

    def __init__(self, sender: str, send: Callable[[str, bytes], bool]) -> None:
        self._sender = sender
        self._send = send
        self._number = 0
        self._waiting: dict[int, _Waiting] = {}

    async def ask(self, instance: str, device_id: str) -> bytes | None:
        """Ask an instance; return its answer as JSON, None if it knows nothing or the connection is lost."""
        self._number += 1
        number, waiting = self._number, _Waiting()
        self._waiting[number] = waiting
        try:
            if self._send(instance, pack(StateRequest(self._sender, device_id, number))):
                await waiting.answered.wait()
        finally:
            del self._waiting[number]
        return waiting.content

    def take(self, answer: StateAnswer) -> None:
        """Take an answer."""
        if (waiting := self._waiting.get(answer.number)) is not None:
            waiting.content = answer.content
            waiting.answered.set()

    def lose(self) -> None:
        """End all requests: no answer comes."""
        for waiting in self._waiting.values():
            waiting.answered.set()

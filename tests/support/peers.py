"""A peer that follows a script: tests say what it sends, takes and breaks, and see what was asked of it."""

from typing import Any

import msgspec
import trio

from brewos_relay.core.peer import Receive, Tasks
from brewos_relay.messages import Delivery, Message, encode


class ScriptedPeer:
    """A `Peer` without any other end. `run` lasts until `leave`, `fail` or `close`.

    A test may change at any time: `refuses` (deliver answers False), `deliver_error`, `close_error` and
    `aclose_error` (raised by the method of that name), `goodbye_s` (how long `aclose` takes, even cancelled).
    """

    def __init__(self, *, goodbye_s: float = 0.0, refuses: bool = False) -> None:
        self.goodbye_s = goodbye_s
        self.refuses = refuses
        self.deliver_error: Exception | None = None
        self.close_error: Exception | None = None
        self.aclose_error: Exception | None = None
        self.deliveries: list[Delivery] = []
        """What was taken, one entry for each call of `deliver`."""
        self.closes: list[tuple[int, str]] = []
        """Every call of `close`."""
        self.runs = 0
        self.acloses_begun = 0
        self.acloses = 0
        self.tasks: Tasks | None = None
        self._receive: Receive | None = None
        self._said_early: list[list[Message]] = []
        self._leaving = trio.Event()
        self._error: Exception | None = None

    # What a test does

    def say(self, *contents: dict[str, Any] | Message) -> None:
        """Send messages to the relay, all in one pass; they wait if `run` was not called yet."""
        passed = [content if isinstance(content, Message) else encode(content) for content in contents]
        if self._receive is None:
            self._said_early.append(passed)
        else:
            self._receive(passed)

    def leave(self) -> None:
        """Let `run` return."""
        self._leaving.set()

    def fail(self, error: Exception) -> None:
        """Let `run` raise."""
        self._error = error
        self._leaving.set()

    @property
    def messages(self) -> list[Message]:
        """Everything that was delivered, in order."""
        return [message for delivery in self.deliveries for message in delivery.messages]

    @property
    def received(self) -> list[Any]:
        """Everything that was delivered, decoded."""
        return [_decode(message) for message in self.messages]

    @property
    def types(self) -> list[str | None]:
        """The `type` of everything that was delivered."""
        return [message.peek_type() for message in self.messages]

    @property
    def close_code(self) -> int | None:
        """The code that counts: that of the first `close`."""
        return self.closes[0][0] if self.closes else None

    def forget(self) -> None:
        """Forget what was delivered so far."""
        self.deliveries.clear()

    # Peer

    async def run(self, tasks: Tasks, receive: Receive) -> None:
        self.runs += 1
        self.tasks = tasks
        self._receive = receive
        for passed in self._said_early:
            receive(passed)
        await self._leaving.wait()
        if self._error is not None:
            raise self._error

    def deliver(self, delivery: Delivery) -> bool:
        if self.deliver_error is not None:
            raise self.deliver_error
        if self.refuses:
            return False
        self.deliveries.append(delivery)
        return True

    def close(self, code: int, reason: str) -> None:
        self.closes.append((code, reason))
        self._leaving.set()
        if self.close_error is not None:
            raise self.close_error

    async def aclose(self) -> None:
        self.acloses_begun += 1
        with trio.move_on_after(self.goodbye_s, shield=True):
            await trio.sleep_forever()
        self.acloses += 1
        if self.aclose_error is not None:
            raise self.aclose_error


def _decode(message: Message) -> Any:
    return (msgspec.json if message.is_text else msgspec.msgpack).decode(message.payload)

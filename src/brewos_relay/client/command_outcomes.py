"""The outcomes of commands, and the commands that wait for theirs."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Final, Literal, TypeAlias, cast, get_args

import trio

Fate: TypeAlias = Literal["delivered", "expired", "device_offline", "forbidden", "not_sent", "unknown"]
_TOLD: Final = frozenset(get_args(Fate)) - {"not_sent", "unknown"}
_BETWEEN_INSTANCES: Final[dict[str, tuple[Fate, str]]] = {
    "unknown": ("unknown", "the relay did not learn in time whether the device received it"),
    "bus_unavailable": ("not_sent", "the relay's instances cannot reach each other"),
}
"""Outcomes of commands for a device on another instance of the relay."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """The outcome of a command: its `fate`, and whether it `waited` at the relay for the device.

    | `fate` | Meaning |
    |---|---|
    | `delivered` | sent to the device; its reports show whether it obeyed |
    | `expired` | the command's time ended before it could be delivered |
    | `device_offline` | the device is offline and the command may not wait, or the device did not accept it |
    | `forbidden` | the role of the token does not allow the command |
    | `not_sent` | there was no connection to the relay in time, or none between its instances |
    | `unknown` | sent, but the connection broke or no answer came; it is not delivered later |
    """

    fate: Fate
    reason: str = ""
    waited: bool = False

    @property
    def delivered(self) -> bool:
        """Whether the command was sent to the device."""
        return self.fate == "delivered"


class PendingCommand:
    """A command without an outcome yet."""

    def __init__(self) -> None:
        self.outcome = Outcome("unknown", "no answer arrived")
        self._decided = trio.Event()
        self._waited = False

    async def wait(self) -> Outcome:
        """Wait for the outcome."""
        await self._decided.wait()
        return self.outcome

    def handle_status(self, status: Any) -> None:
        """Handle the `status` of a `command_status`."""
        if status == "queued":
            self._waited = True
            self.outcome = Outcome("unknown", "the command waits at the relay", waited=True)
        elif status in _TOLD:
            self.set_outcome(Outcome(cast(Fate, status), waited=self._waited))
        elif isinstance(status, str) and status in _BETWEEN_INSTANCES:
            self.set_outcome(Outcome(*_BETWEEN_INSTANCES[status], waited=self._waited))

    def set_outcome(self, outcome: Outcome) -> None:
        """Set the outcome; later calls have no effect."""
        if not self._decided.is_set():
            self.outcome = outcome
            self._decided.set()


class PendingCommands:
    """The pending commands of one connection, by request id."""

    def __init__(self) -> None:
        self._awaited: dict[str, PendingCommand] = {}

    @contextmanager
    def awaiting(self, request_id: str) -> Iterator[PendingCommand]:
        """Register a pending command while the block runs."""
        awaited = self._awaited[request_id] = PendingCommand()
        try:
            yield awaited
        finally:
            del self._awaited[request_id]

    def handle_status(self, content: dict[str, Any]) -> bool:
        """Handle a `command_status`; return False if it belongs to no pending command."""
        request_id = content.get("requestId")
        awaited = self._awaited.get(request_id) if isinstance(request_id, str) else None
        if awaited is None:
            return False
        awaited.handle_status(content.get("status"))
        return True

    def fail_all(self, reason: str) -> None:
        """Set the outcome of all pending commands, as their connection has ended."""
        for awaited in self._awaited.values():
            awaited.set_outcome(Outcome("unknown", reason))

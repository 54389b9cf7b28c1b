"""What became of a command."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Final, Literal, TypeAlias, cast, get_args

import trio

Fate: TypeAlias = Literal["delivered", "expired", "device_offline", "forbidden", "not_sent", "unknown"]
_TOLD: Final = frozenset(get_args(Fate)) - {"not_sent", "unknown"}


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of a command: its `fate`, and whether it `waited` at the relay for the machine.

    | `fate` | Meaning |
    |---|---|
    | `delivered` | it was handed to the machine's connection; whether it obeyed shows in what it reports |
    | `expired` | its time was over before it could be delivered |
    | `device_offline` | the machine is not there, and this command may not wait; or it did not take it |
    | `forbidden` | whoever the token stands for may not do this |
    | `not_sent` | there was no connection to the relay in time |
    | `unknown` | it was sent, and the connection broke, or nothing came back; it is not delivered late |
    """

    fate: Fate
    reason: str = ""
    waited: bool = False

    @property
    def delivered(self) -> bool:
        """Whether the command was handed to the machine's connection."""
        return self.fate == "delivered"


class PendingCommand:
    """A command whose fate is awaited."""

    def __init__(self) -> None:
        self.outcome = Outcome("unknown", "nothing came back for it")
        self._decided = trio.Event()
        self._waited = False

    async def wait(self) -> Outcome:
        """Wait until it is decided."""
        await self._decided.wait()
        return self.outcome

    def hear(self, status: Any) -> None:
        """Take what a `command_status` says."""
        if status == "queued":
            self._waited = True
            self.outcome = Outcome("unknown", "it waits at the relay", waited=True)
        elif status in _TOLD:
            self.decide(Outcome(cast(Fate, status), waited=self._waited))

    def decide(self, outcome: Outcome) -> None:
        """Settle it, once."""
        if not self._decided.is_set():
            self.outcome = outcome
            self._decided.set()


class PendingCommands:
    """The commands that are on their way over one connection, by their request id."""

    def __init__(self) -> None:
        self._awaited: dict[str, PendingCommand] = {}

    @contextmanager
    def awaiting(self, request_id: str) -> Iterator[PendingCommand]:
        """Await the fate of a command as long as the block lasts."""
        awaited = self._awaited[request_id] = PendingCommand()
        try:
            yield awaited
        finally:
            del self._awaited[request_id]

    def hear(self, content: dict[str, Any]) -> bool:
        """Take a `command_status`; False if it is for none of these."""
        request_id = content.get("requestId")
        awaited = self._awaited.get(request_id) if isinstance(request_id, str) else None
        if awaited is None:
            return False
        awaited.hear(content.get("status"))
        return True

    def lose(self, reason: str) -> None:
        """Settle them all, as the connection has ended: nothing comes back any more."""
        for awaited in self._awaited.values():
            awaited.decide(Outcome("unknown", reason))

"""Commands that wait for an absent device: few, and not for long."""

import math
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Generic, TypeVar

from brewos_relay.messages import CommandHead, Message

Sender = TypeVar("Sender")


@dataclass(frozen=True, slots=True, kw_only=True)
class PendingCommand(Generic[Sender]):
    """A message that waits for a device, and what its sender has to be told in the end."""

    message: Message
    head: CommandHead
    sender: Sender
    queued_at_ms: int
    expires_at: float
    """When it is no longer to be delivered (trio time)."""
    expires_at_ms: float = math.inf
    """The same by the wall clock, which also counts while the process does not run."""


class PendingCommands(Generic[Sender]):
    """What waits for one device, oldest first; at most `most`."""

    __slots__ = ("_commands", "_most")

    def __init__(self, most: int) -> None:
        self._most = most
        self._commands: deque[PendingCommand[Sender]] = deque()

    def __len__(self) -> int:
        return len(self._commands)

    def __iter__(self) -> Iterator[PendingCommand[Sender]]:
        return iter(self._commands)

    def add(self, command: PendingCommand[Sender]) -> bool:
        """Let a command wait; False if too many do already."""
        if len(self._commands) >= self._most:
            return False
        self._commands.append(command)
        return True

    def take_expired(self, now: float, now_ms: int) -> list[PendingCommand[Sender]]:
        """Take out the commands that have expired by either clock."""
        expired: list[PendingCommand[Sender]] = []
        waiting: deque[PendingCommand[Sender]] = deque()
        for command in self._commands:
            is_over = command.expires_at <= now or command.expires_at_ms <= now_ms
            (expired if is_over else waiting).append(command)
        self._commands = waiting
        return expired

    def take_all(self) -> list[PendingCommand[Sender]]:
        """Take out everything."""
        taken = list(self._commands)
        self._commands.clear()
        return taken

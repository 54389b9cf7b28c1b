"""Commands that wait for an absent device: few, and not for long."""

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

    def take_expired(self, now: float) -> list[PendingCommand[Sender]]:
        """Take out what is not to be delivered any more."""
        expired = [command for command in self._commands if command.expires_at <= now]
        if expired:
            self._commands = deque(command for command in self._commands if command.expires_at > now)
        return expired

    def take_all(self) -> list[PendingCommand[Sender]]:
        """Take out everything."""
        taken = list(self._commands)
        self._commands.clear()
        return taken

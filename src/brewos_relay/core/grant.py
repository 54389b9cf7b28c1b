"""Grant: what a client may do with its device. Whoever let it in decided that."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Final

from brewos_relay.core.rights import Role
from brewos_relay.messages import CommandHead


@dataclass(frozen=True, slots=True, kw_only=True)
class Grant:
    """What a client may do, and on whose behalf. Everybody who has one hears all that the machine says."""

    user_id: str | None = None
    session_id: str | None = None
    highest_role: Role = "owner"
    """The highest role that the token lends, whatever the registry says later."""
    may_command: bool = True
    """Whether what it says reaches the machine."""
    may_manage: bool = True
    """Whether that goes for `limits.owner_commands` as well."""
    until_s: float = math.inf
    """When it ends, in s since the epoch."""
    by_token: bool = False
    """Whether the token itself names the device, so that nobody else has a say in it."""

    def allows(self, head: CommandHead, owner_commands: Sequence[str]) -> bool:
        """Whether a message of the client may go to the machine."""
        if head.type != "command" and _as_read(head.type) in _RELAYS_OWN:
            return False
        return self.may_command and (self.may_manage or not is_named(head, owner_commands))


FULL: Final = Grant()

_RELAYS_OWN: Final = frozenset({"key_rotate"})
"""What a machine believes because the relay says it: nobody else may, whatever they may do besides."""


def is_named(head: CommandHead, patterns: Sequence[str]) -> bool:
    """Whether patterns name a message.

    A pattern names a `cmd`, or a `cmd` and its `mode` as `cmd:mode`; `*` stands for anything. A message that
    is no command is taken by its `type`, and a command that does not tell its `cmd` is named by any pattern,
    as one without a `mode` is by any with its `cmd`.
    """
    kind = _as_read(head.type)
    if kind != "command":
        return any(fnmatchcase(kind, pattern) for pattern in patterns)
    if not isinstance(head.cmd, str):
        return True
    name = _as_read(head.cmd)
    if not isinstance(head.mode, str):
        return any(fnmatchcase(name, pattern.partition(":")[0]) for pattern in patterns)
    names = (name, f"{name}:{_as_read(head.mode)}")
    return any(fnmatchcase(one, pattern) for one in names for pattern in patterns)


def _as_read(text: str) -> str:
    """Give a name as a machine may read it, at most: one that ends texts at a NUL must find no way around."""
    return text.partition("\0")[0].strip().lower()

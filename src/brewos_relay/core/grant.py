"""Grant: what a client may do with its device, and how many clients each user has."""

import math
from dataclasses import dataclass, field
from typing import Final

from brewos_relay.dialect import CommandClass
from brewos_relay.vocabulary import Role


@dataclass(slots=True)
class Credential:
    """The token that a client uses now: the id by which it can be revoked, if it has one."""

    token_id: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Grant:
    """What a client may do, and on whose behalf. Every client hears everything that its machine says."""

    user_id: str | None = None
    session_id: str | None = None
    highest_role: Role = "owner"
    """The highest role that the token lends, whatever the registry says later."""
    credential: Credential | None = field(default=None, compare=False)
    """None for a session: that ends with all its tokens."""
    may_command: bool = True
    """Whether its messages reach the machine."""
    may_manage: bool = True
    """Whether that includes the messages of owners."""
    until_s: float = math.inf
    """When it ends, in s since the epoch."""
    by_token: bool = False
    """Whether the token itself names the device, so that the registry cannot change the grant."""

    def allows(self, needed: CommandClass) -> bool:
        """Whether a message of this class may go to the machine."""
        if not self.may_command or needed is CommandClass.RESERVED:
            return False
        if self.may_manage or needed is CommandClass.USE:
            return True
        return needed is CommandClass.HOUSEHOLD and self.until_s == math.inf


FULL: Final = Grant()


class ClientCounts:
    """Counts the clients of each user.

    Those whose token itself names the device are not counted: whoever made it knows for how many it is.
    """

    __slots__ = ("_counts",)

    def __init__(self) -> None:
        self._counts: dict[str, int] = {}

    def __len__(self) -> int:
        return len(self._counts)

    def add(self, grant: Grant) -> None:
        """Count a client that has come."""
        self._count(grant, 1)

    def remove(self, grant: Grant) -> None:
        """Count a client that has gone."""
        self._count(grant, -1)

    def of(self, grant: Grant) -> int:
        """Give the number of clients of the user whose grant this is; 0 if they are not counted."""
        user_id = _counted(grant)
        return 0 if user_id is None else self._counts.get(user_id, 0)

    def _count(self, grant: Grant, change: int) -> None:
        user_id = _counted(grant)
        if user_id is None:
            return
        count = self._counts.get(user_id, 0) + change
        if count:
            self._counts[user_id] = count
        else:
            del self._counts[user_id]


def _counted(grant: Grant) -> str | None:
    return None if grant.by_token else grant.user_id

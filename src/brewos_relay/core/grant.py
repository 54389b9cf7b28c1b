"""Grant: what a client may do with its device."""

import math
from dataclasses import dataclass, field
from typing import Final

from brewos_relay.core.rights import Role
from brewos_relay.dialect import CommandClass


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

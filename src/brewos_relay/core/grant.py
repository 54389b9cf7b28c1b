"""Access to a device: the rights of a principal, the grant of a client, and how many clients a user has.

HTTP, WebSockets and each write use the same rights. A token limits its bearer. A device that the token names
is reached with the role of the token. Any other device is reached with the role that the registry has for the
user, but never with a higher role than that of the token.
"""

import math
from dataclasses import dataclass, field
from typing import Final, Literal, Protocol, TypeAlias

from brewos_relay.dialect import CommandClass
from brewos_relay.vocabulary import Role, lower_role

NamedDevices: TypeAlias = frozenset[str] | Literal["*"]
"""Device ids in upper case, or "*" for all of them."""


class RegisteredAccess(Protocol):
    """A user's access to a device, from the registry."""

    @property
    def role(self) -> Role:
        """The user's role."""
        ...

    @property
    def until_ms(self) -> int | None:
        """When the access ends, in Unix ms; None means never."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Principal:
    """A user and the limits of their token.

    `token_id` is set if the token can be revoked by itself. `role` is the highest role that the token gives.
    `devices` are the devices that the token names.
    """

    user_id: str
    session_id: str | None = None
    token_id: str | None = None
    role: Role = "owner"
    devices: NamedDevices = frozenset()

    def names(self, device_id: str) -> bool:
        """Whether the token names this device (an id in upper case), or all devices."""
        return self.devices == "*" or device_id in self.devices


@dataclass(frozen=True, slots=True)
class Rights:
    """A role for one device, and when it ends in Unix ms; None means never.

    `by_token` is True if the token itself names the device. The registry then cannot change the role.
    """

    role: Role
    until_ms: int | None = None
    by_token: bool = False


def rights_of(principal: Principal, device_id: str, held: RegisteredAccess | None) -> Rights | None:
    """Return the rights of a principal to a device; None if there are none.

    `held` is the access of its user to the device (an id in upper case) in the registry.
    """
    if principal.names(device_id):
        return Rights(principal.role, by_token=True)
    if held is None:
        return None
    return Rights(lower_role(principal.role, held.role), held.until_ms)


@dataclass(slots=True)
class Credential:
    """The id of the current token of a client, for its revocation; None if the token has no id."""

    token_id: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Grant:
    """The permissions of a client, and its user. Every client gets all messages of its device."""

    user_id: str | None = None
    session_id: str | None = None
    highest_role: Role = "owner"
    """The highest role that the token gives. A change in the registry cannot raise it."""
    credential: Credential | None = field(default=None, compare=False)
    """None for a token of a login session: it ends with the session."""
    may_command: bool = True
    """Whether its messages reach the device."""
    may_manage: bool = True
    """Whether it may send the commands of owners."""
    until_s: float = math.inf
    """When the access ends, in s since the epoch."""
    by_token: bool = False
    """Whether the token itself names the device, so that the registry cannot change the grant."""

    def allows(self, needed: CommandClass) -> bool:
        """Whether a message of this class may go to the device."""
        if not self.may_command or needed is _RESERVED:
            return False
        if self.may_manage or needed is _USE:
            return True
        return needed is _HOUSEHOLD and self.until_s == math.inf


# Python 3.11 looks members up slowly.
_USE: Final = CommandClass.USE
_HOUSEHOLD: Final = CommandClass.HOUSEHOLD
_RESERVED: Final = CommandClass.RESERVED

FULL: Final = Grant()


class ClientCounts:
    """Counts the clients of each user.

    Clients whose token itself names the device are not counted: the issuer of the token decides how many they
    are.
    """

    __slots__ = ("_counts",)

    def __init__(self) -> None:
        self._counts: dict[str, int] = {}

    def __len__(self) -> int:
        return len(self._counts)

    def add(self, grant: Grant) -> None:
        """Count a client that was attached."""
        self._count(grant, 1)

    def remove(self, grant: Grant) -> None:
        """Count a client that has ended."""
        self._count(grant, -1)

    def of(self, grant: Grant) -> int:
        """Return how many clients the user of this grant has; 0 if they are not counted."""
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

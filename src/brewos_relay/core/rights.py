"""What a principal may do with a device: one answer for HTTP, for WebSockets and inside each write.

A token limits its bearer. A device that the token names is reached with the role of the token. Any other
device is reached with the role that the registry has for the user, and never with a higher role than that of
the token.
"""

from dataclasses import dataclass
from typing import Literal, Protocol, TypeAlias

from brewos_relay.vocabulary import Role, lower_role

NamedDevices: TypeAlias = frozenset[str] | Literal["*"]
"""Device ids in upper case, or "*" for all of them."""


class Held(Protocol):
    """Access of a user to a device, as the registry has it."""

    @property
    def role(self) -> Role:
        """The user's role."""
        ...

    @property
    def until_ms(self) -> int | None:
        """When the access ends, in Unix ms; None is never."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Principal:
    """A user, as a token names them, and the limits of that token.

    `token_id` is the id of a token that can be revoked by itself. `role` is the highest role that the token
    lends. `devices` are the devices that the token names.
    """

    user_id: str
    session_id: str | None = None
    token_id: str | None = None
    role: Role = "owner"
    devices: NamedDevices = frozenset()

    def names(self, device_id: str) -> bool:
        """Tell whether the token names this device (an id in upper case), or all devices."""
        return self.devices == "*" or device_id in self.devices


@dataclass(frozen=True, slots=True)
class Rights:
    """A role for one device, and when it ends in Unix ms; None is never.

    `by_token` tells that the token itself names the device, so that the registry has no say in it.
    """

    role: Role
    until_ms: int | None = None
    by_token: bool = False


def rights_of(principal: Principal, device_id: str, held: Held | None) -> Rights | None:
    """Give the rights of a principal to a device; None without any.

    `held` is what the registry says of its user and the device (an id in upper case).
    """
    if principal.names(device_id):
        return Rights(principal.role, by_token=True)
    if held is None:
        return None
    return Rights(lower_role(principal.role, held.role), held.until_ms)

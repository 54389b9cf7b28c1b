"""What somebody is to a device: by their token, by the registry, or by both."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Concatenate, Final, ParamSpec, TypeVar

from sqlalchemy import Connection
from werkzeug.routing import BaseConverter

from brewos_relay.api.answers import Refused
from brewos_relay.api.bearer import Who
from brewos_relay.auth.access import claims_name_device
from brewos_relay.auth.keys import DEVICE_ID, parse_device_id
from brewos_relay.core.clock import now_ms
from brewos_relay.registry.access import access_of
from brewos_relay.registry.devices import lock_device
from brewos_relay.registry.records import ROLES, Access, Device, Role
from brewos_relay.registry.store import Store

P = ParamSpec("P")
T = TypeVar("T")

_NO_DEVICE: Final = "There is no such device, or you have no access to it."
_TOO_LITTLE: Final[dict[Role, str]] = {
    "member": "You may only watch this device; its owner can change that.",
    "owner": "Only an owner of the device may do this.",
}


class DeviceIdPart(BaseConverter):
    """Match a device id, in any case, as a part of a path: beside devices, other things stand there."""

    regex = DEVICE_ID.pattern


@dataclass(frozen=True, slots=True, kw_only=True)
class Reach:
    """A device that somebody reaches, and as what.

    `device` is None if their token names one that is not registered; `access` if it is their token alone
    that lets them reach it. `until_ms` is None for ever.
    """

    device_id: str
    device: Device | None
    access: Access | None
    role: Role
    until_ms: int | None


async def reach(who: Who, device_id: str, *, store: Store, at_least: Role = "viewer") -> Reach:
    """Find a device, by an id in any case, that somebody reaches with this role or a higher one.

    Raises Refused: 404 if they do not reach it at all, whether it exists or not, 403 if their role is lower;
    RegistryError.
    """
    try:
        device_id = parse_device_id(device_id)
    except ValueError:
        raise no_device() from None
    # Always both, so that a device of somebody else takes as long as none.
    device = await store.find_device(device_id)
    access = await store.access_of(who.user_id, device_id)
    named = claims_name_device(who.claims, device_id)
    if device is None and (who.claims.devices == "*" or at_least != "viewer"):
        raise no_device()
    if access is None and not named:
        raise no_device()
    role, until_ms = combined(access, who.claims.role if named else None)
    if not role_is(role, at_least):
        raise not_allowed(at_least)
    return Reach(device_id=device_id, device=device, access=access, role=role, until_ms=until_ms)


async def write_as_owner(
    store: Store,
    who: Who,
    device_id: str,
    function: Callable[Concatenate[Connection, P], T],
    *args: P.args,
    **kwargs: P.kwargs,
) -> T:
    """Write what only an owner of a device may, as somebody who was one when they asked.

    That is looked at again in the same transaction: another owner may be about to end it. Raises Refused, and
    what the function raises.
    """

    def write(db: Connection) -> T:
        _check_owner(db, who, device_id)
        return function(db, *args, **kwargs)

    return await store.write(write)


def _check_owner(db: Connection, who: Who, device_id: str) -> None:
    lock_device(db, device_id)
    pair = (who.user_id, device_id)
    access = access_of(db, [pair], now_ms=now_ms()).get(pair)
    named = claims_name_device(who.claims, device_id)
    if access is None and not named:
        raise no_device()
    if combined(access, who.claims.role if named else None)[0] != "owner":
        raise not_allowed("owner")


def combined(access: Access | None, named_as: Role | None) -> tuple[Role, int | None]:
    """Give the role that counts, and its end, of what the registry and what a token say.

    That of a token that names the device goes first, as for WebSockets: it may have been made to do less than
    its user may. It has an end of its own. One of the two says something.
    """
    if named_as is not None:
        return named_as, None
    assert access is not None
    return access.role, access.until_ms


def role_is(role: Role, at_least: Role) -> bool:
    """Tell whether a role may do all that another one may."""
    return ROLES.index(role) >= ROLES.index(at_least)


def no_device() -> Refused:
    """Refuse (404) in the same words, whether there is no such device or it is somebody else's."""
    return Refused(_NO_DEVICE, status=404)


def not_allowed(at_least: Role) -> Refused:
    """Refuse (403) what only this role and higher ones may do."""
    return Refused(_TOO_LITTLE[at_least], status=403)

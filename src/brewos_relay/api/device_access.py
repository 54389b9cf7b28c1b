"""The access of a requester to a device: by token, by the registry, or by both."""

from dataclasses import dataclass
from typing import Final

from werkzeug.routing import BaseConverter

from brewos_relay.api.authentication import Who
from brewos_relay.api.payloads import Refused
from brewos_relay.core.rights import rights_of
from brewos_relay.protocols import Registry
from brewos_relay.registry.records import Access, Device
from brewos_relay.vocabulary import DEVICE_ID, Role, parse_device_id, role_includes

_NO_DEVICE: Final = "There is no such device, or you have no access to it."
_TOO_LITTLE: Final[dict[str, str]] = {
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


async def reach(who: Who, device_id: str, *, store: Registry, at_least: Role = "viewer") -> Reach:
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
    rights = rights_of(who.principal, device_id, access)
    if rights is None or (device is None and (who.claims.devices == "*" or at_least != "viewer")):
        raise no_device()
    if not role_includes(rights.role, at_least):
        raise not_allowed(at_least)
    return Reach(
        device_id=device_id, device=device, access=access, role=rights.role, until_ms=rights.until_ms
    )


def no_device() -> Refused:
    """Refuse (404) in the same words, whether there is no such device or it is somebody else's."""
    return Refused(_NO_DEVICE, status=404)


def not_allowed(at_least: str) -> Refused:
    """Refuse (403) what only this role and higher ones may do."""
    return Refused(_TOO_LITTLE[at_least], status=403)

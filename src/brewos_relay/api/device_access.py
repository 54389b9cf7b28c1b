"""The access of a requester to a device: by token, by the registry, or by both."""

from dataclasses import dataclass
from typing import Final

from werkzeug.routing import BaseConverter

from brewos_relay.api.authentication import Requester
from brewos_relay.api.payloads import Refused
from brewos_relay.core.grant import rights_of
from brewos_relay.protocols import Registry
from brewos_relay.registry.records import Access, Device
from brewos_relay.vocabulary import DEVICE_ID, Role, parse_device_id, role_includes

_NO_DEVICE: Final = "There is no such device, or you have no access to it."
_TOO_LITTLE: Final[dict[str, str]] = {
    "member": "You may only watch this device; its owner can change that.",
    "owner": "Only an owner of the device may do this.",
}


class DeviceIdConverter(BaseConverter):
    """Match a device id, in any case, as a part of a path: beside devices, other things stand there."""

    regex = DEVICE_ID.pattern


@dataclass(frozen=True, slots=True, kw_only=True)
class DeviceAccess:
    """The access of a requester to a device.

    `device` is None if the device is not registered and only a token names it. `from_registry` is None if
    only a token gives access. `until_ms` is None for access without end.
    """

    device_id: str
    device: Device | None
    from_registry: Access | None
    role: Role
    until_ms: int | None


async def require_access(
    requester: Requester, device_id: str, *, store: Registry, at_least: Role = "viewer"
) -> DeviceAccess:
    """Find a device, by an id in any case, that somebody reaches with this role or a higher one.

    Raises Refused: 404 if they do not reach it at all, whether it exists or not, 403 if their role is lower;
    RegistryError.
    """
    try:
        device_id = parse_device_id(device_id)
    except ValueError:
        raise device_not_found() from None
    # Always both, so that a device of somebody else takes as long as none.
    device = await store.find_device(device_id)
    access = await store.access_of(requester.user_id, device_id)
    rights = rights_of(requester.principal, device_id, access)
    if rights is None or (device is None and (requester.claims.devices == "*" or at_least != "viewer")):
        raise device_not_found()
    if not role_includes(rights.role, at_least):
        raise role_too_low(at_least)
    return DeviceAccess(
        device_id=device_id, device=device, from_registry=access, role=rights.role, until_ms=rights.until_ms
    )


def device_not_found() -> Refused:
    """Refuse (404) in the same words, whether there is no such device or it is somebody else's."""
    return Refused(_NO_DEVICE, status=404)


def role_too_low(at_least: str) -> Refused:
    """Refuse (403) what only this role and higher ones may do."""
    return Refused(_TOO_LITTLE[at_least], status=403)

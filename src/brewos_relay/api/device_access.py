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
_ROLE_TOO_LOW: Final[dict[str, str]] = {
    "member": "You may only watch this device. An owner of the device can change that.",
    "owner": "Only an owner of the device may do this.",
}


class DeviceIdConverter(BaseConverter):
    """Match a device id in a path, in any case. Other segments, like `claim`, do not match."""

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
    """Check that a requester has at least this role for a device. The id may be in any case.

    Raises Refused: 404 without access, whether or not the device exists, 403 for a lower role; RegistryError.
    """
    try:
        device_id = parse_device_id(device_id)
    except ValueError:
        raise device_not_found() from None
    # Always read both: the time must not tell whether the device exists.
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
    """Make the refusal (404) for an unknown device and for a device of other users, in the same words."""
    return Refused(_NO_DEVICE, status=404)


def role_too_low(at_least: str) -> Refused:
    """Make the refusal (403) for a requester below this role."""
    return Refused(_ROLE_TOO_LOW[at_least], status=403)

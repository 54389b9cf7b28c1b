"""/api/devices: the devices of the requester, with their state, names and keys."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Final

import msgspec
import trio
from quart import Blueprint, Response, request
from sqlalchemy import Connection

from brewos_relay.api.authentication import Authenticator, Requester
from brewos_relay.api.device_access import device_not_found, require_access, role_too_low
from brewos_relay.api.openapi import Done, described, make_blueprint
from brewos_relay.api.payloads import Refused, ShortText, body_of, checked_name, json_answer, query_of
from brewos_relay.core.grant import Rights, rights_of
from brewos_relay.core.merging import readable_content
from brewos_relay.key_rotation import RotationOutcome, send_new_key
from brewos_relay.live_devices import LiveDevice
from brewos_relay.messages import Message
from brewos_relay.protocols import Registry, RelayView
from brewos_relay.registry.access import devices_of, leave, release
from brewos_relay.registry.authority import Authority
from brewos_relay.registry.device_keys import NEXT_KEYS_AT_MOST
from brewos_relay.registry.devices import chunks, find_devices, set_name, some_devices
from brewos_relay.registry.records import Access, Device, OwnedDevice, StoredState
from brewos_relay.texts import NAME_CHARS
from brewos_relay.vocabulary import Role, iso_time, now_ms, role_includes

LISTED_AT_MOST: Final = 500

DESCRIBED_AT_ONCE: Final = 50
"""How many devices are described before other tasks may run."""

_SHOWN_CHARS = 50
_REFUSALS: Final[dict[RotationOutcome, str]] = {
    "offline": "The machine is offline. Switch it on, and try again once it is connected.",
    "too_many": (
        f"The machine ignored the last {NEXT_KEYS_AT_MOST} new keys and keeps its old one. Its firmware may"
        " not support key rotation. To give it another key, reset the machine to its factory settings and"
        " pair it again."
    ),
}
_WHAT_NEXT: Final = (
    "A new key was sent to the machine. Both keys work until the machine connects with the new one; then the"
    " old key ends. A machine that ignores the new key keeps its old one."
)


class DeviceAnswer(msgspec.Struct, rename="camel", kw_only=True):
    """A device, with the access of the requester. `until` is null for access without end."""

    id: str
    name: str
    is_online: bool
    last_seen: str | None
    firmware_version: str | None
    machine_type: str | None
    claimed_at: str | None
    user_count: int | msgspec.UnsetType = msgspec.UNSET
    role: Role
    until: str | None
    key_pending: bool


class OneDevice(msgspec.Struct):
    """One device."""

    device: DeviceAnswer


class DevicePage(msgspec.Struct):
    """A page of devices: at most `limit`, after the id `after`."""

    after: Annotated[str, msgspec.Meta(max_length=12)] = ""
    limit: Annotated[int, msgspec.Meta(ge=1, le=500)] | None = None


class Devices(msgspec.Struct):
    """Devices, sorted by id. `next` is the `after` of the next page, or null."""

    devices: list[DeviceAnswer]
    next: str | None


class StateAnswer(msgspec.Struct, rename="camel", kw_only=True):
    """The last known state of a device."""

    device_id: str
    is_online: bool
    last_seen: str | None
    snapshot_age_ms: int | None
    last_known: bool
    stale_groups: list[str]
    messages: dict[str, Any]


class NewName(msgspec.Struct):
    """A new name for a device."""

    name: ShortText


class Leaving(msgspec.Struct):
    """Whether to remove the device for all of its users."""

    everyone: bool = False


class RotationAnswer(msgspec.Struct):
    """The status of a key rotation. The key itself is sent only to the device."""

    status: str
    message: str


@dataclass(frozen=True, slots=True)
class _Listed:
    """A device with the rights of the requester. `device` is None if it is not registered."""

    device_id: str
    device: Device | None
    access: Access | None
    rights: Rights
    user_count: int | None = None


@dataclass(frozen=True, kw_only=True, eq=False)
class DeviceRoutes:
    """The routes of devices. A list without a `limit` has at most `listed_at_most` devices."""

    relay: RelayView
    store: Registry
    authenticator: Authenticator
    listed_at_most: int = LISTED_AT_MOST

    def blueprint(self) -> Blueprint:
        """Make the blueprint of these routes."""
        return make_blueprint(
            "devices",
            {
                "GET /api/devices": self.devices,
                "GET /api/devices/<device:device_id>": self.device,
                "PATCH /api/devices/<device:device_id>": self.rename,
                "DELETE /api/devices/<device:device_id>": self.leave_device,
                "GET /api/devices/<device:device_id>/state": self.state,
                "POST /api/devices/<device:device_id>/rotate-key": self.rotate_key,
            },
        )

    @described("List the devices that you have access to", answer=Devices, query=DevicePage)
    async def devices(self) -> Response:
        requester = await self.authenticator(request)
        page = query_of(request, DevicePage)
        limit = page.limit or self.listed_at_most
        found = await self.store.read(
            _reachable, requester, after=page.after.upper(), limit=limit, now_ms=now_ms()
        )
        answers = []
        for some in chunks(found, DESCRIBED_AT_ONCE):
            live = await self.relay.find_live([listed.device_id for listed in some])
            answers += [self._describe(listed, live[listed.device_id]) for listed in some]
            await trio.lowlevel.checkpoint()
        return json_answer(Devices(answers, found[-1].device_id if len(found) == limit else None))

    @described("Read a device that you have access to", answer=OneDevice)
    async def device(self, device_id: str) -> Response:
        requester = await self.authenticator(request)
        access = await require_access(requester, device_id, store=self.store)
        return json_answer(OneDevice(device=await self._describe_one(requester, access.device_id)))

    @described("Rename a device, as an owner", answer=OneDevice, body=NewName, refusals=[403])
    async def rename(self, device_id: str) -> Response:
        requester = await self.authenticator(request)
        body = await body_of(request, NewName)
        name = checked_name(body.name, what="A name", longest_chars=NAME_CHARS)
        access = await require_access(requester, device_id, store=self.store, at_least="owner")
        await self.store.write_as(
            Authority(requester.principal, access.device_id, "owner"),
            set_name,
            access.device_id,
            name,
            by_user_id=requester.user_id,
            now_ms=now_ms(),
        )
        return json_answer(OneDevice(device=await self._describe_one(requester, access.device_id)))

    @described(
        "Leave a device. If the last owner leaves, or an owner asks with `everyone`, all users lose it",
        answer=Done,
        query=Leaving,
        refusals=[403, 409],
    )
    async def leave_device(self, device_id: str) -> Response:
        requester = await self.authenticator(request)
        everyone = query_of(request, Leaving).everyone
        access = await require_access(
            requester, device_id, store=self.store, at_least="owner" if everyone else "viewer"
        )
        if everyone:
            authority = Authority(requester.principal, access.device_id, "owner")
            await self.store.write_as(authority, release, access.device_id, now_ms=now_ms())
        elif access.from_registry is not None:
            # A token with a lower role than its user must not give up the user's access.
            if not role_includes(access.role, access.from_registry.role):
                raise role_too_low(access.from_registry.role)
            authority = Authority(requester.principal, access.device_id, access.from_registry.role)
            await self.store.write_as(authority, leave, access.device_id, requester.user_id, now_ms=now_ms())
        else:
            raise Refused(
                "Only your token gives you access to this device, so you cannot leave it.", status=409
            )
        await self.store.catch_up()
        return json_answer(Done())

    @described(
        "Read the last known state of a device: the last message of each kind, its age, and the groups of the"
        " status that may be stale",
        answer=StateAnswer,
    )
    async def state(self, device_id: str) -> Response:
        access = await require_access(await self.authenticator(request), device_id, store=self.store)
        device_id, device = access.device_id, access.device
        known = await self.relay.state_of(device_id) or {"messages": {}}
        if "status" not in known["messages"]:
            found = await self.store.find_state(device_id)
            if found is not None:
                known = {**known, **_last_known(found, known["messages"])}
        live = (await self.relay.find_live([device_id]))[device_id]
        return json_answer(
            StateAnswer(
                device_id=device_id,
                is_online=live.is_online,
                last_seen=iso_time(device.last_seen_ms) if device is not None else None,
                snapshot_age_ms=known.get("snapshotAgeMs"),
                last_known=known.get("lastKnown", False),
                stale_groups=known.get("staleGroups", []),
                messages=known["messages"],
            )
        )

    @described("Send a device a new key, as an owner", answer=RotationAnswer, status=202, refusals=[403, 409])
    async def rotate_key(self, device_id: str) -> Response:
        requester = await self.authenticator(request)
        device_id = (await require_access(requester, device_id, store=self.store, at_least="owner")).device_id
        authority = Authority(requester.principal, device_id, "owner")
        outcome = await send_new_key(
            device_id, relay=self.relay, store=self.store, user_id=requester.user_id, authority=authority
        )
        if outcome != "sent":
            raise Refused(_REFUSALS[outcome], status=409)
        return json_answer(RotationAnswer(status="sent", message=_WHAT_NEXT), status=202)

    def _describe(self, listed: _Listed, live: LiveDevice) -> DeviceAnswer:
        device, device_id, info = listed.device, listed.device_id, live.info
        claimed_at_ms = listed.access.claimed_at_ms if listed.access is not None else None
        if claimed_at_ms is None and device is not None:
            claimed_at_ms = device.created_at_ms
        return DeviceAnswer(
            id=device_id,
            name=(device.name if device is not None else None) or device_id,
            is_online=live.is_online,
            last_seen=iso_time(device.last_seen_ms) if device is not None else None,
            firmware_version=_text(info.firmware_version) or (device.firmware_version if device else None),
            machine_type=_text(info.machine_type) or (device.machine_type if device else None),
            claimed_at=iso_time(claimed_at_ms),
            user_count=msgspec.UNSET if listed.user_count is None else listed.user_count,
            role=listed.rights.role,
            until=iso_time(listed.rights.until_ms),
            key_pending=device is not None and device.key_pending_since_ms is not None,
        )

    async def _describe_one(self, requester: Requester, device_id: str) -> DeviceAnswer:
        found = await self.store.read(_read_one, requester, device_id, now_ms=now_ms())
        if found is None:
            raise device_not_found()
        live = await self.relay.find_live([found.device_id])
        return self._describe(found, live[found.device_id])


def _reachable(db: Connection, requester: Requester, *, after: str, limit: int, now_ms: int) -> list[_Listed]:
    """Find the devices that the token names or its user has: at most `limit`, after the id `after`.

    Reads at most twice the limit, however many devices are registered.
    """
    named = requester.principal.devices
    if named == "*":
        there = some_devices(db, after=after, limit=limit)
        ids = [device.id for device in there]
        owned = devices_of(db, requester.user_id, only=ids, now_ms=now_ms)
    else:
        owned = devices_of(db, requester.user_id, after=after, limit=limit, now_ms=now_ms)
        has = {one.device.id for one in owned}
        ids = sorted(has | {id_ for id_ in named if id_ > after})[:limit]
        there = find_devices(db, [id_ for id_ in ids if id_ not in has])
    return _listed(requester, ids, there, owned)


def _read_one(db: Connection, requester: Requester, device_id: str, *, now_ms: int) -> _Listed | None:
    owned = devices_of(db, requester.user_id, only=[device_id], now_ms=now_ms)
    listed = _listed(requester, [device_id], find_devices(db, [device_id]), owned)
    return listed[0] if listed else None


def _listed(
    requester: Requester, ids: Sequence[str], there: Sequence[Device], owned: Sequence[OwnedDevice]
) -> list[_Listed]:
    """Join devices with access and rights. Leaves out devices without access."""
    devices = {device.id: device for device in (*there, *(one.device for one in owned))}
    own = {one.device.id: one for one in owned}
    listed = []
    for device_id in ids:
        has = own.get(device_id)
        access = has.access if has is not None else None
        rights = rights_of(requester.principal, device_id, access)
        if rights is not None:
            count = has.user_count if has is not None else None
            listed.append(_Listed(device_id, devices.get(device_id), access, rights, count))
    return listed


def _last_known(found: StoredState, others: dict[str, Any]) -> dict[str, Any]:
    """Describe a state from the registry, together with the other known messages of the device."""
    status = readable_content(Message(found.payload, found.is_text))
    if not isinstance(status, dict):
        return {}
    return {
        "snapshotAgeMs": max(0, now_ms() - found.at_ms),
        "lastKnown": True,
        "staleGroups": [name for name in status if name not in ("type", "seq")],
        "messages": {**others, "status": status},
    }


def _text(told: object) -> str | None:
    """Return a value that a device reported, if it is a short text."""
    return told if isinstance(told, str) and len(told) <= _SHOWN_CHARS else None

"""/api/admin/devices, pairing and stats: the devices and figures of a server, for its administrators."""

from dataclasses import dataclass
from typing import Annotated, Final

import msgspec
from quart import Blueprint, Response, request

from brewos_relay.api.admin_accounts import Listing
from brewos_relay.api.authentication import Authenticator
from brewos_relay.api.openapi import Done, described, make_blueprint
from brewos_relay.api.payloads import Refused, ShortText, body_of, json_answer, query_of
from brewos_relay.live_devices import LiveDevice
from brewos_relay.protocols import Registry, RelayView
from brewos_relay.registry.authority import Authority
from brewos_relay.registry.device_overview import (
    DeviceFilter,
    DeviceOverview,
    DeviceSort,
    list_device_overviews,
    totals,
)
from brewos_relay.registry.pairing_limits import (
    NewDeviceRules,
    PairingMode,
    close_window,
    open_window,
    window_open_until,
)
from brewos_relay.registry.pairing_proof import release_device
from brewos_relay.vocabulary import iso_time, now_ms

_MINUTES_AT_MOST: Final = 24 * 60

_CLOSED: Final = "This server accepts no new machines: BREWOS_RELAY_PAIRING is 'closed'."


class DeviceListing(Listing):
    """A page of devices. `owner` is the id or address of an owner; `only` limits the list further."""

    owner: ShortText = ""
    only: DeviceFilter = "all"
    sort: DeviceSort = "id"


class AdminDevice(msgspec.Struct, rename="camel", kw_only=True):
    """A device. `owners` are e-mail addresses, or the ids of users without an account."""

    id: str
    name: str | None
    is_online: bool
    clients: int
    last_seen: str | None
    firmware_version: str | None
    machine_type: str | None
    key_pending: bool
    owners: list[str]


class AdminDevices(msgspec.Struct):
    """Devices. `next` is the `after` of the next page, or null."""

    devices: list[AdminDevice]
    next: str | None


class PairingState(msgspec.Struct, rename="camel", kw_only=True):
    """Whether unknown devices may register: the setting, and the end of an open pairing window."""

    mode: PairingMode
    is_open: bool
    open_until: str | None


class Opening(msgspec.Struct, rename="camel"):
    """How long to open pairing."""

    minutes: Annotated[int, msgspec.Meta(ge=1, le=_MINUTES_AT_MOST)] = 10


class Registered(msgspec.Struct):
    """How many devices and accounts are in the registry."""

    devices: int
    users: int


class RelayTotals(msgspec.Struct, rename="camel", kw_only=True):
    """Counters since the start of the server. The last two count connections, the others messages."""

    received_from_devices: int
    received_from_clients: int
    sent_to_devices: int
    sent_to_clients: int
    invalid: int
    left_out: int
    undeliverable: int
    zombies: int
    conflicts: int


class Stats(msgspec.Struct, rename="camel", kw_only=True):
    """Connected and registered devices and clients, and running totals."""

    timestamp: int
    devices: int
    clients: int
    registered: Registered
    totals: RelayTotals


@dataclass(frozen=True, kw_only=True, eq=False)
class AdminDeviceRoutes:
    """The routes of devices, pairing and figures, for administrators."""

    relay: RelayView
    store: Registry
    authenticator: Authenticator
    rules: NewDeviceRules

    def blueprint(self) -> Blueprint:
        """Make the blueprint of these routes."""
        return make_blueprint(
            "admin_devices",
            {
                "GET /api/admin/devices": self.all_devices,
                "POST /api/admin/devices/<device:device_id>/release": self.release,
                "GET /api/admin/pairing": self.pairing_state,
                "POST /api/admin/pairing": self.open_pairing,
                "DELETE /api/admin/pairing": self.close_pairing,
                "GET /api/admin/stats": self.server_stats,
            },
        )

    @described(
        "List the devices of this server, as an administrator",
        answer=AdminDevices,
        query=DeviceListing,
        refusals=[403],
    )
    async def all_devices(self) -> Response:
        await self.authenticator.administrator(request)
        page = query_of(request, DeviceListing)
        found = await self.store.read(
            list_device_overviews,
            find=page.find,
            owner=page.owner,
            only=page.only,
            sort=page.sort,
            descending=page.order == "desc",
            after=page.after,
            limit=page.limit,
        )
        live = await self.relay.find_live([one.device.id for one in found])
        return json_answer(
            AdminDevices(
                devices=[_device_answer(one, live[one.device.id]) for one in found],
                next=found[-1].device.id if len(found) == page.limit else None,
            )
        )

    @described(
        "Remove all users of a device, so that it can be paired again", answer=Done, refusals=[403, 404]
    )
    async def release(self, device_id: str) -> Response:
        authority = await self._administrator()
        await self.store.write_as(authority, release_device, device_id.upper(), now_ms=now_ms())
        await self.store.catch_up()
        return json_answer(Done())

    @described(
        "Tell whether unknown devices may register, as an administrator", answer=PairingState, refusals=[403]
    )
    async def pairing_state(self) -> Response:
        await self._administrator()
        return self._pairing_answer(await self.store.read(window_open_until, now_ms=now_ms()))

    @described(
        "Open the pairing window for some minutes", answer=PairingState, body=Opening, refusals=[403, 409]
    )
    async def open_pairing(self) -> Response:
        authority = await self._administrator()
        body = await body_of(request, Opening)
        if self.rules.mode == "closed":
            raise Refused(_CLOSED, status=409)
        return self._pairing_answer(
            await self.store.write_as(authority, open_window, now_ms=now_ms(), for_ms=body.minutes * 60_000)
        )

    @described("Close the pairing window", answer=PairingState, refusals=[403])
    async def close_pairing(self) -> Response:
        authority = await self._administrator()
        await self.store.write_as(authority, close_window)
        return self._pairing_answer(None)

    @described("Read the figures of this server, as an administrator", answer=Stats, refusals=[403])
    async def server_stats(self) -> Response:
        await self.authenticator.administrator(request)
        registered = await self.store.read(totals)
        counts = await self.relay.count_peers()
        return json_answer(
            Stats(
                timestamp=now_ms(),
                devices=counts.devices,
                clients=counts.clients,
                registered=Registered(devices=registered.devices, users=registered.users),
                totals=msgspec.convert(self.relay.counters, RelayTotals, from_attributes=True),
            )
        )

    async def _administrator(self) -> Authority:
        requester = await self.authenticator.administrator(request)
        return Authority(requester.principal, is_admin=True)

    def _pairing_answer(self, until_ms: int | None) -> Response:
        is_open = self.rules.mode == "open" or (self.rules.mode == "window" and until_ms is not None)
        return json_answer(PairingState(mode=self.rules.mode, is_open=is_open, open_until=iso_time(until_ms)))


def _device_answer(one: DeviceOverview, live: LiveDevice) -> AdminDevice:
    device = one.device
    return AdminDevice(
        id=device.id,
        name=device.name,
        is_online=live.is_online,
        clients=len(live.user_ids),
        last_seen=iso_time(device.last_seen_ms),
        firmware_version=device.firmware_version,
        machine_type=device.machine_type,
        key_pending=device.key_pending_since_ms is not None,
        owners=list(one.owners),
    )

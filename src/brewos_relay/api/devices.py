"""GET /api/devices: the machines that somebody may reach."""

from typing import Any

from quart import Blueprint, Response, request

from brewos_relay.api.answers import iso_utc, json_answer
from brewos_relay.api.bearer import bearer_claims
from brewos_relay.api.needs import DeviceRecord, DeviceStore, RelayView, TokenClaims, TokenVerifier


def devices_blueprint(*, relay: RelayView, store: DeviceStore, tokens: TokenVerifier) -> Blueprint:
    """Make the blueprint; errors.TokenRejected and errors.RegistryError are left to the app to answer."""
    blueprint = Blueprint("devices", __name__)

    @blueprint.get("/api/devices")
    async def devices() -> Response:
        claims = bearer_claims(request, tokens=tokens)
        records = await _reachable(claims, store)
        return json_answer(
            {
                "devices": [
                    _describe(device_id, record, online=relay.is_online(device_id))
                    for device_id, record in sorted(records.items())
                ]
            }
        )

    return blueprint


async def _reachable(claims: TokenClaims, store: DeviceStore) -> dict[str, DeviceRecord | None]:
    """Find the devices that the claims name or that their user has; None for one that is not registered."""
    if claims.devices == "*":
        return {record.id: record for record in await store.all_devices()}
    records: dict[str, DeviceRecord | None] = dict.fromkeys(claims.devices)
    for record in await store.devices_of(claims.user_id):
        records[record.id] = record
    unread = [device_id for device_id, known in records.items() if known is None]
    if unread:
        for record in await store.find_devices(unread):
            records[record.id] = record
    return records


def _describe(device_id: str, record: DeviceRecord | None, *, online: bool) -> dict[str, Any]:
    return {
        "id": device_id,
        "name": (record.name if record is not None else None) or device_id,
        "isOnline": online,
        "lastSeen": iso_utc(record.last_seen_ms) if record is not None else None,
        "firmwareVersion": None,
        "machineType": None,
        "claimedAt": iso_utc(record.created_at_ms) if record is not None else None,
    }

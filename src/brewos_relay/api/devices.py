"""GET /api/devices and /api/devices/ID/state: the machines that somebody may reach, and how they are."""

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

    @blueprint.get("/api/devices/<device_id>/state")
    async def state(device_id: str) -> Response:
        claims = bearer_claims(request, tokens=tokens)
        records = await _reachable(claims, store)
        device_id = device_id.upper()
        if device_id not in records:
            return json_answer({"error": "no such device, or no access to it"}, status=404)
        record = records[device_id]
        known = relay.state_of(device_id) or {"snapshotAgeMs": None, "messages": {}}
        return json_answer(
            {
                "deviceId": device_id,
                "isOnline": relay.is_online(device_id),
                "lastSeen": iso_utc(record.last_seen_ms) if record is not None else None,
                **known,
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

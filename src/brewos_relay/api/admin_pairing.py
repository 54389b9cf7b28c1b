"""/api/admin/pairing and /api/admin/devices/…/release: pairing, as administrators control it."""

from typing import Annotated, Final

import msgspec
from quart import Blueprint, Response, request

from brewos_relay.api.admin import administrator as administrator_of
from brewos_relay.api.authentication import SignedIn
from brewos_relay.api.openapi import Done, described
from brewos_relay.api.payloads import Refused, body_of, json_answer
from brewos_relay.protocols import Registry
from brewos_relay.registry.authority import Authority
from brewos_relay.registry.pairing_window import (
    NewDeviceRules,
    PairingMode,
    close_window,
    open_window,
    window_open_until,
)
from brewos_relay.registry.proof import release_device
from brewos_relay.vocabulary import iso_time, now_ms

_MINUTES_AT_MOST: Final = 24 * 60
_CLOSED: Final = "BREWOS_RELAY_PAIRING is closed on this server: it takes no new machines."


class PairingState(msgspec.Struct, rename="camel", kw_only=True):
    """Whether unknown machines may register: by the setting, and until when the window is open."""

    mode: PairingMode
    is_open: bool
    open_until: str | None


class Opening(msgspec.Struct, rename="camel"):
    """For how long to open pairing."""

    minutes: Annotated[int, msgspec.Meta(ge=1, le=_MINUTES_AT_MOST)] = 10


def admin_pairing_blueprint(*, store: Registry, signed_in: SignedIn, rules: NewDeviceRules) -> Blueprint:
    """Make the blueprint; what it refuses and what fails is left to the app to answer."""
    blueprint = Blueprint("admin_pairing", __name__)

    async def administrator() -> Authority:
        who = await administrator_of(signed_in, request)
        return Authority(who.principal, is_admin=True)

    def answer(until_ms: int | None) -> Response:
        is_open = rules.mode == "open" or (rules.mode == "window" and until_ms is not None)
        return json_answer(PairingState(mode=rules.mode, is_open=is_open, open_until=iso_time(until_ms)))

    @blueprint.get("/api/admin/pairing")
    @described(
        "Whether unknown machines may register, for an administrator", answer=PairingState, refusals=[403]
    )
    async def pairing_state() -> Response:
        await administrator()
        return answer(await store.read(window_open_until, now_ms=now_ms()))

    @blueprint.post("/api/admin/pairing")
    @described("Open pairing for some minutes", answer=PairingState, body=Opening, refusals=[403, 409])
    async def open_pairing() -> Response:
        authority = await administrator()
        body = await body_of(request, Opening)
        if rules.mode == "closed":
            raise Refused(_CLOSED, status=409)
        return answer(
            await store.write_as(authority, open_window, now_ms=now_ms(), for_ms=body.minutes * 60_000)
        )

    @blueprint.delete("/api/admin/pairing")
    @described("Close pairing", answer=PairingState, refusals=[403])
    async def close_pairing() -> Response:
        authority = await administrator()
        await store.write_as(authority, close_window)
        return answer(None)

    @blueprint.post("/api/admin/devices/<device:device_id>/release")
    @described(
        "Take a device from everybody, so that it can be paired again", answer=Done, refusals=[403, 404]
    )
    async def release(device_id: str) -> Response:
        authority = await administrator()
        await store.write_as(authority, release_device, device_id.upper(), now_ms=now_ms())
        await store.catch_up()
        return json_answer(Done())

    return blueprint

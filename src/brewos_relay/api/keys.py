"""Giving a machine a new key."""

from typing import Final

import msgspec
from quart import Blueprint, Response, request

from brewos_relay.api.answers import Refused, json_answer
from brewos_relay.api.bearer import SignedIn
from brewos_relay.api.openapi import described
from brewos_relay.api.reach import reach
from brewos_relay.key_rotation import RotationOutcome, send_new_key
from brewos_relay.protocols import Registry, RelayView
from brewos_relay.registry.authority import Authority
from brewos_relay.registry.keys import NEXT_KEYS_AT_MOST

_REFUSALS: Final[dict[RotationOutcome, str]] = {
    "offline": "The machine is offline: switch it on, and try again once it is connected.",
    "too_many": (
        f"The machine ignored the earlier rotations: it was sent {NEXT_KEYS_AT_MOST} new keys and has used"
        " none of them. Its key stays. Its firmware may not know how to change its key: reset the machine to"
        " its factory settings, which gives it another key, and pair it again."
    ),
}
_WHAT_NEXT: Final = (
    "A new key is on its way to the machine. Both keys work until the machine connects with the new one;"
    " the old one ends then. A machine that ignores the new key keeps its old one."
)


class RotationAnswer(msgspec.Struct):
    """What happens next; the key itself is for the machine alone."""

    status: str
    message: str


def keys_blueprint(*, relay: RelayView, store: Registry, signed_in: SignedIn) -> Blueprint:
    """Make the blueprint; what it refuses and what fails is left to the app to answer."""
    blueprint = Blueprint("keys", __name__)

    @blueprint.post("/api/devices/<device:device_id>/rotate-key")
    @described(
        "Send a machine a new key, as an owner of it", answer=RotationAnswer, status=202, refusals=[403, 409]
    )
    async def rotate_key(device_id: str) -> Response:
        who = await signed_in(request)
        device_id = (await reach(who, device_id, store=store, at_least="owner")).device_id
        authority = Authority(who.principal, device_id, "owner")
        outcome = await send_new_key(
            device_id, relay=relay, store=store, user_id=who.user_id, authority=authority
        )
        if outcome != "sent":
            raise Refused(_REFUSALS[outcome], status=409)
        return json_answer(RotationAnswer(status="sent", message=_WHAT_NEXT), status=202)

    return blueprint

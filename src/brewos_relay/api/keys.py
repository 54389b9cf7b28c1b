"""Giving a machine a new key."""

from typing import Final, Literal

import msgspec
from quart import Blueprint, Response, request

from brewos_relay.api.answers import Refused, json_answer
from brewos_relay.api.bearer import SignedIn
from brewos_relay.api.needs import Registry, RelayView
from brewos_relay.api.openapi import described
from brewos_relay.api.reach import reach
from brewos_relay.auth.keys import generate_key, hash_key
from brewos_relay.core.clock import now_ms
from brewos_relay.errors import TooManyKeys
from brewos_relay.messages import key_rotate
from brewos_relay.registry.authority import Authority
from brewos_relay.registry.keys import NEXT_KEYS_AT_MOST, add_next_key, drop_next_key, gets_no_more_keys

Outcome = Literal["sent", "offline", "too_many"]

_REFUSALS: Final[dict[Outcome, str]] = {
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


async def send_new_key(
    device_id: str,
    *,
    relay: RelayView,
    store: Registry,
    user_id: str | None,
    authority: Authority | None = None,
) -> Outcome:
    """Send a machine a new key, on behalf of a user, and tell what came of it.

    `authority` is that of a request; None for a change that the command line made.
    Raises DeviceUnknown, and RegistryError if the key could not be kept; it was not sent then.
    """
    device = await store.find_device(device_id)
    if device is not None and gets_no_more_keys(device):
        return "too_many"  # first: switching the machine on would not help
    if not relay.is_online(device_id):
        return "offline"
    key = generate_key()
    try:
        # Kept before it is sent: a machine must never have a key that nobody else knows.
        if authority is None:
            await store.write_anonymous(
                add_next_key, device_id, hash_key(key), user_id=user_id, now_ms=now_ms()
            )
        else:
            await store.write_as(
                authority, add_next_key, device_id, hash_key(key), user_id=user_id, now_ms=now_ms()
            )
    except TooManyKeys:
        return "too_many"
    if relay.send_to_device(device_id, key_rotate(key)):
        return "sent"
    await store.write_anonymous(drop_next_key, device_id, hash_key(key))
    return "offline"

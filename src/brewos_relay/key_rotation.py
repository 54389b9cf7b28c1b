"""Key rotation: a new key for a device, sent over its own connection."""

from typing import Literal

from brewos_relay.auth.secrets import hash_secret
from brewos_relay.errors import TooManyKeys
from brewos_relay.messages import key_rotate
from brewos_relay.protocols import Registry, RelayView
from brewos_relay.registry.authority import Authority
from brewos_relay.registry.device_keys import add_next_key, drop_next_key, gets_no_more_keys
from brewos_relay.vocabulary import generate_key, now_ms

RotationOutcome = Literal["sent", "offline", "too_many"]


async def send_new_key(
    device_id: str,
    *,
    relay: RelayView,
    store: Registry,
    user_id: str | None,
    authority: Authority | None = None,
) -> RotationOutcome:
    """Store a new key for a device and send it. Return the outcome.

    `authority` is the authority of an HTTP request; None for a change by the command line. Raises
    DeviceUnknown, and RegistryError if the key could not be stored; then it was not sent.
    """
    device = await store.find_device(device_id)
    if device is not None and gets_no_more_keys(device):
        return "too_many"  # checked first, as switching the device on would not help
    if not (await relay.find_live([device_id]))[device_id].is_online:
        return "offline"
    key = generate_key()
    try:
        # Store it before sending it: a device must never have a key that the registry does not know.
        if authority is None:
            await store.write_anonymous(
                add_next_key, device_id, hash_secret(key), user_id=user_id, now_ms=now_ms()
            )
        else:
            await store.write_as(
                authority, add_next_key, device_id, hash_secret(key), user_id=user_id, now_ms=now_ms()
            )
    except TooManyKeys:
        return "too_many"
    outcome = await relay.send_to_device(device_id, key_rotate(key))
    if outcome in ("delivered", "unknown"):  # the device may have the key: it must stay valid
        return "sent"
    await store.write_anonymous(drop_next_key, device_id, hash_secret(key))
    return "offline"

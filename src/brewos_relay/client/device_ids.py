"""The ids of devices. No I/O."""

import re
import secrets
from typing import Final

from brewos_relay.errors import SettingsError

_DEVICE_ID: Final = re.compile(r"BRW-[0-9A-F]{8}", re.ASCII | re.IGNORECASE)


def generate_device_id() -> str:
    """Make an id for a device that has none by birth. It is no secret, but it is to stay the same."""
    return f"BRW-{secrets.token_hex(4).upper()}"


def check_device_id(device_id: str) -> str:
    """Give a device id in the form in which relays keep it; raises SettingsError if it is none."""
    if _DEVICE_ID.fullmatch(device_id) is None:
        raise SettingsError(
            f"{device_id!r} is no device id: BRW- and 8 hexadecimal digits make one, as in BRW-12AB34CD"
        )
    return device_id.upper()

"""History: the measurements of a device in the last minutes, as an app reads them."""

from collections.abc import Mapping, Sequence
from typing import Any

import msgspec

from brewos_relay.client.endpoint import RelayUnreachable


class History(msgspec.Struct, frozen=True, rename="camel"):
    """Measurements of a device, oldest first. A value is None if it is unknown, and holds until the next."""

    device_id: str
    at_ms: int
    """When it was read, in ms since the epoch, as all times in here."""
    times_ms: Sequence[int]
    brewing: Sequence[bool]
    online: Sequence[bool]
    """False where the device went offline."""
    values: Mapping[str, Sequence[float | None]]
    """A list for each quantity, like `pressure` and `weight`."""


def read_history(content: dict[str, Any]) -> History:
    """Read an answer of the relay. Raises RelayUnreachable if it is none."""
    try:
        return msgspec.convert(content, History)
    except msgspec.ValidationError:
        raise RelayUnreachable("the relay did not answer with a history; it may be too old") from None

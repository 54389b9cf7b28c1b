"""UsageKeeper: sums up the usage of a relay's devices by days, and stores it in the registry.

It looks at the states that the relay keeps. No message costs more for it. The instance that has a device
counts its usage.
"""

import logging
from collections import deque
from functools import partial
from itertools import count
from typing import Final

import trio

from brewos_relay.api.statistics import day_of, offset_of
from brewos_relay.core.attachment import DeviceAttachment
from brewos_relay.core.relay import Relay
from brewos_relay.registry.daily_usage import USAGE_AT_ONCE
from brewos_relay.registry.records import Usage
from brewos_relay.registry.store import Store
from brewos_relay.server.batches import store_batch
from brewos_relay.server.usage_meter import LONGEST_S, NAMES, TYPES, UsageMeter, decode_field, read_usage
from brewos_relay.vocabulary import now_ms

log = logging.getLogger(__name__)

LOOK_EVERY_S: Final = 15.0
TAKE_EVERY_S: Final = 300.0
"""How often the usage of a device is stored. A killed server loses usage that is not stored yet."""
LAST_SAVE_S: Final = 5.0
"""How long a draining server may take to store usage."""
_PARTS: Final = 5
_DEVICES_PER_PASS: Final = 10
_MOST_WAITING: Final = 10_000
_INFO: Final = ("device_info",)


class UsageKeeper:
    """Counts the usage of the devices of this instance."""

    def __init__(self, relay: Relay, store: Store) -> None:
        self._relay = relay
        self._store = store
        self._meters: dict[str, UsageMeter] = {}
        self._waiting: deque[Usage] = deque()
        self._dropped = 0  # since it was last logged

    async def run(self) -> None:
        """Look at a fifth of the devices every 3 s, and store due usage every 15 s, until cancelled."""
        for turn in count():
            await trio.sleep(LOOK_EVERY_S / _PARTS)
            await self.look(turn % _PARTS)
            if turn % _PARTS == 0:
                await self._save()

    async def keep_all(self) -> None:
        """Store all usage before the server ends. Takes at most 5 s."""
        with trio.move_on_after(LAST_SAVE_S):
            for device_id, meter in self._meters.items():
                self._take(device_id, meter, now_ms(), is_last=True)
            self._meters.clear()
            await self._save()

    async def look(self, part: int | None = None) -> None:
        """Read the states of the devices of a part, or of all."""
        here = [
            attachment.session.device_id
            for attachment in self._relay.attached
            if isinstance(attachment, DeviceAttachment)
            and (part is None or hash(attachment.session.device_id) % _PARTS == part)
        ]
        for number, device_id in enumerate(here, start=1):
            if self._relay.has_device(device_id):
                self._look_at(device_id, trio.current_time())
            if number % _DEVICES_PER_PASS == 0:
                await trio.lowlevel.checkpoint()
        now = trio.current_time()
        for device_id in [each for each, meter in self._meters.items() if now - meter.seen_at > LONGEST_S]:
            self._take(device_id, self._meters.pop(device_id), now_ms(), is_last=True)

    def _look_at(self, device_id: str, now: float) -> None:
        at_ms = now_ms()
        meter = self._meters.get(device_id)
        if meter is None:
            offset_s = self._offset_of(device_id)
            meter = UsageMeter(now, now_ms=at_ms, day=day_of(at_ms, offset_s), offset_s=offset_s)
            self._meters[device_id] = meter
        reading = read_usage(self._relay.known_fields(device_id, TYPES, NAMES))
        if (day := day_of(at_ms, meter.offset_s)) != meter.day:
            self._take(device_id, meter, at_ms, is_last=True)
            meter.day = day
        meter.add(reading, now)
        if now - meter.taken_at >= TAKE_EVERY_S:
            meter.taken_at = now
            meter.offset_s = self._offset_of(device_id)
            self._take(device_id, meter, at_ms)

    def _offset_of(self, device_id: str) -> int:
        known = self._relay.known_fields(device_id, _INFO, ("time",))
        return offset_of({name: decode_field(value) for name, value in known.items()})

    def _take(self, device_id: str, meter: UsageMeter, at_ms: int, *, is_last: bool = False) -> None:
        usage = meter.take(device_id, now_ms=at_ms, is_last=is_last)
        if usage is not None:
            self._waiting.append(usage)
            if len(self._waiting) > _MOST_WAITING:
                self._waiting.popleft()
                self._dropped += 1

    async def _save(self) -> None:
        if self._dropped:
            text = "usage of %d devices lost; too much was waiting until the registry could store it"
            log.error(text, self._dropped)
            self._dropped = 0
        while self._waiting:
            some = [self._waiting.popleft() for _ in range(min(USAGE_AT_ONCE, len(self._waiting)))]
            if not await store_batch(
                partial(self._store.add_usage, some),
                what=f"the usage of {len(some)} devices",
                put_back=partial(self._waiting.extendleft, reversed(some)),
            ):
                return

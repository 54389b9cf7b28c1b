"""Watching machines for notifications: changes of their states, and long absences.

The watcher looks at the states that the relay keeps, for devices with a subscription. No message costs
more for it. The instance that has a device watches it.
"""

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import trio

from brewos_relay.core.relay import Relay
from brewos_relay.errors import RegistryError
from brewos_relay.protocols import RelayView
from brewos_relay.registry import push
from brewos_relay.registry.store import Store
from brewos_relay.server.machine_events import NAMES, TYPES, MachineState, find_events, read_state
from brewos_relay.server.push_sender import PushSender
from brewos_relay.vocabulary import now_ms

log = logging.getLogger(__name__)

LOOK_EVERY_S: Final = 2.0
DEVICES_EVERY_S: Final = 30.0
"""How often the registry is asked which devices have subscriptions."""
ABSENT_EVERY_S: Final = 60.0
FORGET_S: Final = 300.0
"""How long the state of a device that went is compared with its next one."""
SETTLE_S: Final = 600.0
"""How long devices have to come back after a start, before any counts as absent for long."""
LATE_MS: Final = 24 * 3600 * 1000
"""An absence that is older by this much is no news any more."""
_DEVICES_PER_PASS: Final = 20


@dataclass(slots=True)
class _Watched:
    """The last state of a device that was seen."""

    seen_at: float
    fields: dict[str, bytes]
    state: MachineState
    brewing_since: float | None = None


class PushWatcher:
    """Watches the devices of this instance. `offline_s` is a long absence; 0 means that none counts."""

    def __init__(
        self, relay: Relay, view: RelayView, store: Store, sender: PushSender, *, offline_s: float
    ) -> None:
        self._relay = relay
        self._view = view
        self._store = store
        self._sender = sender
        self._offline_s = offline_s
        self._devices: set[str] = set()
        self._watched: dict[str, _Watched] = {}
        sender.on_watch = self.watch

    def watch(self, device_ids: Sequence[str]) -> None:
        """Watch devices that have a subscription now."""
        self._devices.update(device_ids)

    async def run(self) -> None:
        """Watch until cancelled."""
        devices_at = trio.current_time()
        absent_at = trio.current_time() + min(SETTLE_S, self._offline_s)
        while True:
            now = trio.current_time()
            try:
                if now >= devices_at:
                    devices_at = now + DEVICES_EVERY_S
                    self._devices = await self._store.read(push.watched_devices)
                if self._offline_s > 0 and now >= absent_at:
                    absent_at = now + ABSENT_EVERY_S
                    await self._find_absent()
            except RegistryError as problem:
                log.warning("cannot read which devices have notifications: %s", problem)
            await self._look()
            await trio.sleep(LOOK_EVERY_S)

    async def _look(self) -> None:
        """Compare the state of each device with the one that was seen last."""
        here = [device_id for device_id in self._devices if self._relay.has_device(device_id)]
        for number, device_id in enumerate(here, start=1):
            self._compare(device_id, trio.current_time())
            if number % _DEVICES_PER_PASS == 0:
                await trio.lowlevel.checkpoint()
        forgotten = trio.current_time() - FORGET_S
        for device_id in [each for each, seen in self._watched.items() if seen.seen_at < forgotten]:
            del self._watched[device_id]

    def _compare(self, device_id: str, now: float) -> None:
        fields = self._relay.known_fields(device_id, TYPES, NAMES)
        before = self._watched.get(device_id)
        if before is not None and before.fields == fields:
            before.seen_at = now
            return
        state = read_state(fields)
        since = before.brewing_since if before is not None else None
        if before is not None:
            brewed_s = now - since if since is not None else 0.0
            for kind in find_events(before.state, state, brewed_s=brewed_s):
                self._sender.notify(device_id, kind)
        brewing_since = (since if since is not None else now) if state.brewing else None
        self._watched[device_id] = _Watched(now, fields, state, brewing_since)

    async def _find_absent(self) -> None:
        """Notify users of devices that have been absent for long, once for each absence."""
        seen_before_ms = now_ms() - round(self._offline_s * 1000)
        found = dict(
            await self._store.read(
                push.find_long_offline,
                kind="machineOffline",
                seen_before_ms=seen_before_ms,
                seen_after_ms=seen_before_ms - LATE_MS,
            )
        )
        if not found:
            return
        live = await self._view.find_live(list(found))
        for device_id, last_seen_ms in found.items():
            if not live[device_id].is_online:
                self._sender.notify(device_id, "machineOffline", unless_since_ms=last_seen_ms)

"""Write what happens on the live relay to the registry: activity, presence, and states of devices."""

import logging
from collections.abc import Sequence
from typing import Final

import trio

from brewos_relay.core.recording import ActivityEvent
from brewos_relay.core.relay import Relay
from brewos_relay.core.snapshot import KnownState
from brewos_relay.errors import RegistryError
from brewos_relay.messages import DeviceInfo, Message
from brewos_relay.registry.batched_lookup import Answer
from brewos_relay.registry.device_states import STATES_AT_ONCE
from brewos_relay.registry.records import Activity, StoredState
from brewos_relay.registry.store import Store
from brewos_relay.registry.write_behind import WriteBehind
from brewos_relay.server.batches import store_batch
from brewos_relay.texts import is_showable
from brewos_relay.vocabulary import now_ms

log = logging.getLogger(__name__)

SAVE_EVERY_S: Final = 5.0
"""How often changed states are stored."""
LAST_SAVE_S: Final = 5.0
"""How long a draining server may take to store states."""
FIND_S: Final = 1.0
"""How long admission waits for a stored state. A machine gives up after 5 s; the state is optional."""
_STATES_PER_PASS: Final = 10
"""How many states are merged before other tasks get their turn."""
_WINDOW_S: Final = 240.0
_ENTRIES_IN_WINDOW: Final = 120
_SEEN_EVERY: Final = 15
SEEN_EVERY_S: Final = _SEEN_EVERY * _WINDOW_S
"""How often online devices are recorded as seen, so that the registry has the time even after a crash."""


class StateKeeper:
    """Stores the states of a relay's devices in the registry, in batches, off the event loop."""

    def __init__(self, relay: Relay, store: Store) -> None:
        self._relay = relay
        self._store = store

    async def run(self) -> None:
        """Store due states every 5 s until cancelled."""
        while True:
            await trio.sleep(SAVE_EVERY_S)
            await self.save()

    async def save_all(self) -> None:
        """Store the states that are due before the server ends. Takes at most 5 s."""
        with trio.move_on_after(LAST_SAVE_S):
            await self.save()

    async def save(self) -> None:
        """Store the states that are due."""
        if self._relay.limits.state_retention_s <= 0:
            return
        due = self._relay.unsaved_states()
        for start in range(0, len(due), STATES_AT_ONCE):
            if not await self._save(due[start : start + STATES_AT_ONCE]):
                return

    async def _save(self, device_ids: Sequence[str]) -> bool:
        states: list[StoredState] = []

        async def save() -> None:
            for number, device_id in enumerate(device_ids, start=1):
                if (known := self._relay.state_to_save(device_id)) is not None:
                    message = known.message
                    stored = StoredState(
                        device_id=device_id,
                        payload=message.payload,
                        is_text=message.is_text,
                        at_ms=known.at_ms,
                        since_us=known.since_us,
                    )
                    states.append(stored)
                if number % _STATES_PER_PASS == 0:
                    await trio.lowlevel.checkpoint()
            if states:
                await self._store.save_states(states)

        def put_back() -> None:
            for state in states:
                self._relay.state_not_saved(state.device_id)

        return await store_batch(save, what=f"the states of {len(device_ids)} devices", put_back=put_back)


async def known_state(
    asked: Answer[str, StoredState], device_id: str, *, within_s: float
) -> KnownState | None:
    """Wait for the stored state of a connecting device.

    Return None if there is none, or the registry fails or is slow.
    """
    try:
        if asked.is_there:
            found = await asked.wait()
        else:
            found = None
            with trio.move_on_after(min(within_s, FIND_S)):
                found = await asked.wait()
    except RegistryError as problem:
        log.warning("cannot read the state of device %s: %s", device_id, problem)
        return None
    if found is None:
        return None
    return KnownState(Message(found.payload, found.is_text), found.at_ms, found.since_us)


class ActivityRecorder:
    """Records the activity and presence of devices, and what each reported about itself once it is offline.

    The registry keeps a bounded number of entries for each device. So that no user can displace the entries
    of others, at most 120 entries per user and device are recorded until `run` begins the next window, every
    four minutes. Nothing is recorded when an anonymous device connects or disconnects: anyone can register
    thousands of these.
    """

    def __init__(self, write_behind: WriteBehind) -> None:
        self._write_behind = write_behind
        self._counts: dict[int, int] = {}  # by a hash of device and user, to save memory

    def record_seen(self, device_id: str, at_ms: int) -> None:
        """Record that a device connected or disconnected."""
        self._write_behind.record_seen(device_id, at_ms)

    async def run(self, relay: Relay) -> None:
        """Begin a window every four minutes, and record once an hour which devices are online."""
        while True:
            for _ in range(_SEEN_EVERY):
                await trio.sleep(_WINDOW_S)
                self._counts = {}
            at_ms = now_ms()
            for device_id in {attachment.session.device_id for attachment in relay.attached}:
                if relay.is_online(device_id):
                    self.record_seen(device_id, at_ms)

    def wants_commands(self, device_id: str, user_id: str | None) -> bool:
        """Whether a command of a user would be recorded."""
        return self._counts.get(hash((device_id, user_id)), 0) < _ENTRIES_IN_WINDOW

    def record_activity(self, event: ActivityEvent) -> None:
        """Record an event."""
        if event.info is not None:
            self._record_info(event.device_id, event.info)
        if event.user_id is None and event.anonymous:
            return
        key = hash((event.device_id, event.user_id))
        count = self._counts.get(key, 0)
        if count < _ENTRIES_IN_WINDOW:
            self._counts[key] = count + 1
            entry = Activity(
                device_id=event.device_id,
                at_ms=now_ms(),
                kind=event.kind,
                user_id=event.user_id,
                detail=dict(event.detail),
            )
            self._write_behind.record_activity(entry)

    def _record_info(self, device_id: str, info: DeviceInfo) -> None:
        firmware_version, machine_type = _text(info.firmware_version), _text(info.machine_type)
        if firmware_version is not None or machine_type is not None:
            self._write_behind.record_info(
                device_id, firmware_version=firmware_version, machine_type=machine_type
            )


def _text(value: object) -> str | None:
    return value if isinstance(value, str) and is_showable(value) else None

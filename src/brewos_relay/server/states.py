"""The last state of each machine: stored while it is known, found when the relay does not know it."""

import logging
from collections.abc import Sequence
from typing import Final

import trio

from brewos_relay.core.relay import Relay
from brewos_relay.core.snapshot import KnownState
from brewos_relay.errors import RegistryError
from brewos_relay.messages import Message
from brewos_relay.registry.records import StoredState
from brewos_relay.registry.states import STATES_AT_ONCE
from brewos_relay.registry.store import Store

SAVE_EVERY_S: Final = 5.0
"""How often the relay is asked which states have changed enough."""
LAST_SAVE_S: Final = 5.0
"""How long a server that leaves takes to store states, at most."""
FIND_S: Final = 1.0
"""How long a machine waits for its state to be found. It gives up after 5 s, and can do without."""

log = logging.getLogger(__name__)


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
        """Store the states of devices that have gone, before the server ends. Takes 5 s at most."""
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
        states = [
            StoredState(
                device_id=device_id,
                payload=known.message.payload,
                is_text=known.message.is_text,
                at_ms=known.at_ms,
            )
            for device_id in device_ids
            if (known := self._relay.state_to_save(device_id)) is not None
        ]
        if not states:
            return True
        is_saved = False
        try:
            await self._store.save_states(states)
            is_saved = True
        except RegistryError as problem:
            log.warning("the states of %d devices are not stored: %s; trying again", len(states), problem)
        finally:
            if not is_saved:
                for state in states:
                    self._relay.state_not_saved(state.device_id)
        return is_saved


async def find_state(store: Store, device_id: str) -> KnownState | None:
    """Find the last state of a machine that connects; None also if the registry takes too long."""
    with trio.move_on_after(FIND_S):
        try:
            found = await store.find_state(device_id)
        except RegistryError as problem:
            log.warning("the state of device %s is not found: %s", device_id, problem)
            return None
        if found is not None:
            return KnownState(Message(found.payload, found.is_text), found.at_ms)
    return None

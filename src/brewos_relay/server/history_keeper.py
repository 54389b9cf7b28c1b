"""HistoryKeeper: compacts the history of a relay's devices, and stores their shots in the registry."""

import logging
from collections.abc import Sequence
from functools import partial
from typing import Any, Final

import trio

from brewos_relay.core.history import Run
from brewos_relay.core.relay import Relay
from brewos_relay.registry.records import Shot
from brewos_relay.registry.shots import SHOTS_AT_ONCE
from brewos_relay.registry.store import Store
from brewos_relay.server.batches import store_batch
from brewos_relay.shot_files import shot_of
from brewos_relay.vocabulary import now_ms

log = logging.getLogger(__name__)

COMPACT_EVERY_S: Final = 3.0
"""How often due messages are decoded. A shot is stored about this long after its last drops."""
LAST_SAVE_S: Final = 5.0
"""How long a draining server may take to store shots."""
_HEAVIEST_DOSE_G: Final = 100.0


class HistoryKeeper:
    """Decodes the messages of devices, outside of the data path, and stores the shots found in them."""

    def __init__(self, relay: Relay, store: Store, *, shots_per_device: int) -> None:
        self._relay = relay
        self._store = store
        self._shots_per_device = shots_per_device
        self._storing = trio.Lock()
        self._dropped_before = 0

    async def run(self) -> None:
        """Compact and store every 3 s until cancelled, and answer other instances in between."""
        while True:
            await self._relay.histories.answer(within_s=COMPACT_EVERY_S)
            await self.keep()

    async def keep_all(self) -> None:
        """Store the last shots before the server ends. Takes at most 5 s."""
        with trio.move_on_after(LAST_SAVE_S):
            await self.keep()

    async def keep(self) -> None:
        """Compact what is due, and store the shots that have ended."""
        histories = self._relay.histories
        await histories.compact_due()
        if (dropped := histories.runs_dropped) > self._dropped_before:
            count = dropped - self._dropped_before
            log.error("shots lost: %d; too many were waiting until the registry could store them", count)
            self._dropped_before = dropped
        async with self._storing:
            while runs := histories.take_runs(SHOTS_AT_ONCE):
                if not await store_batch(
                    partial(self._add, runs),
                    what=f"{len(runs)} shots",
                    put_back=partial(histories.put_back, runs),
                ):
                    return

    async def _add(self, runs: Sequence[tuple[str, Run]]) -> None:
        shots = [self._shot_of(device_id, run) for device_id, run in runs]
        if self._shots_per_device > 0:
            await self._store.add_shots(shots, kept=self._shots_per_device)

    def _shot_of(self, device_id: str, run: Run) -> Shot:
        began_at_ms = now_ms() - round((trio.current_time() - run.began_at) * 1000)
        dose_g = self._dose_of(device_id)
        return shot_of(device_id, run, began_at_ms=began_at_ms, dose_g=dose_g)

    def _dose_of(self, device_id: str) -> float | None:
        """Return the weight of coffee that brewing by weight is set to, in g; None if it is not known."""
        messages = (self._relay.state_of(device_id) or {}).get("messages", {})
        for path in (("status", "scale", "bbw", "doseWeight"), ("bbw_settings", "doseWeight")):
            found: Any = messages
            for key in path:
                found = found.get(key) if isinstance(found, dict) else None
            if type(found) in (int, float) and 0 < found <= _HEAVIEST_DOSE_G:
                return float(found)
        return None

"""Held writes: facts that devices proved with a working key while the registry could not be written.

A device needs an answer within seconds, even if the disk is full: without 200 it does not connect. The relay
verifies its key by reading, so the answer need not wait for the write. The write is held in memory, with a
limit, until it succeeds. It then checks the key again, and changes nothing if the key has ended.
"""

from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final, Literal, TypeAlias

from sqlalchemy import Connection

from brewos_relay.errors import DeviceUnknown
from brewos_relay.registry.device_keys import use_next_key, works
from brewos_relay.registry.devices import lock_device
from brewos_relay.registry.pairing import HeldPairing, register_held_pairings
from brewos_relay.registry.pairing_proof import confirm_key

DEVICES_AT_MOST: Final = 10_000
"""How many devices may have held writes.

Beyond that, the writes of the device that came first are dropped.
"""
TOKENS_PER_DEVICE: Final = 2
"""How many pairing tokens of one device are held, the newest. A device shows one at a time."""

KeyUse: TypeAlias = Literal["confirmed", "next"]
HeldWrite: TypeAlias = tuple[str, "HeldPairing | KeyUse", bytes]
"""A device id, the fact to write, and the hash of the key that the device proved."""


@dataclass(frozen=True, slots=True)
class _HeldOfDevice:
    pairings: dict[bytes, HeldPairing]
    uses: dict[bytes, KeyUse]


class HeldWrites:
    """The writes that wait for the registry. Used only in the event loop's thread."""

    def __init__(self, *, now_ms: Callable[[], int]) -> None:
        self._now_ms = now_ms
        self._devices: OrderedDict[str, _HeldOfDevice] = OrderedDict()

    def __bool__(self) -> bool:
        return bool(self._devices)

    def hold_pairing(self, pairing: HeldPairing) -> None:
        """Hold the pairing token of a device with a working key until it expires. Only its hash is kept."""
        pairings = self._of(pairing.device_id).pairings
        pairings.pop(pairing.token_hash, None)
        pairings[pairing.token_hash] = pairing
        if len(pairings) > TOKENS_PER_DEVICE:
            del pairings[next(iter(pairings))]

    def hold_use(self, device_id: str, key_hash: bytes, use: KeyUse) -> None:
        """Hold that a device connected with a working key, which was sent to it or is unproven."""
        uses = self._of(device_id).uses
        uses.pop(key_hash, None)
        uses[key_hash] = use  # at most one for each working key

    def pairings_of(self, device_id: str) -> Sequence[HeldPairing]:
        """Return the held pairing tokens of a device that have not expired."""
        held = self._devices.get(device_id)
        now_ms = self._now_ms()
        return (
            [pairing for pairing in held.pairings.values() if pairing.expires_at_ms > now_ms] if held else []
        )

    def all(self) -> Sequence[HeldWrite]:
        """Return all held writes, in the order of the device ids."""
        found: list[HeldWrite] = []
        for device_id in sorted(self._devices):
            held = self._devices[device_id]
            found += [(device_id, use, key_hash) for key_hash, use in held.uses.items()]
            found += [(device_id, pairing, pairing.key_hash) for pairing in held.pairings.values()]
        return found

    def forget(self, written: Sequence[HeldWrite]) -> None:
        """Forget writes that succeeded, unless they were held again since."""
        for device_id, what, key_hash in written:
            held = self._devices.get(device_id)
            if held is None:
                continue
            if isinstance(what, HeldPairing):
                if held.pairings.get(what.token_hash) is what:
                    del held.pairings[what.token_hash]
            else:
                held.uses.pop(key_hash, None)
            if not held.pairings and not held.uses:
                del self._devices[device_id]

    def _of(self, device_id: str) -> _HeldOfDevice:
        held = self._devices.get(device_id)
        if held is None:
            if len(self._devices) >= DEVICES_AT_MOST:
                self._devices.popitem(last=False)
            held = self._devices[device_id] = _HeldOfDevice({}, {})
        return held


def write_held(db: Connection, held: Sequence[HeldWrite], *, now_ms: int) -> None:
    """Write held facts whose keys still work. Doing so twice changes nothing."""
    for device_id, what, key_hash in held:
        if isinstance(what, HeldPairing):
            register_held_pairings(db, [what], now_ms=now_ms)
            continue
        try:
            if not works(lock_device(db, device_id), key_hash):
                continue
        except DeviceUnknown:
            continue
        if what == "next":
            use_next_key(db, device_id, key_hash, now_ms=now_ms)
        confirm_key(db, device_id, key_hash)

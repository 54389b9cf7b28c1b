"""Held writes: what machines with a working key proved while the registry could not be written.

A machine needs an answer in seconds, also with a full disk: without 200 it does not connect. What its key
proves is found by reading, so the answer need not wait for the write. The write is held in memory, bounded,
until it succeeds; it checks the key again, and changes nothing if the key has ended meanwhile.
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
"""For how many devices writes are held; those of the device that came first make room."""
CLAIMS_OF_EACH: Final = 2
"""How many tokens of one device are held, the newest: a machine shows one at a time."""

KeyUse: TypeAlias = Literal["confirmed", "next"]
Held: TypeAlias = tuple[str, "HeldPairing | KeyUse", bytes]
"""A device, what is to be written, and the hash of the key that the device has proved."""


@dataclass(frozen=True, slots=True)
class _OfDevice:
    claims: dict[bytes, HeldPairing]
    uses: dict[bytes, KeyUse]


class HeldWrites:
    """The writes that wait until the registry can be written; only the event loop's thread uses it."""

    def __init__(self, *, now_ms: Callable[[], int]) -> None:
        self._now_ms = now_ms
        self._devices: OrderedDict[str, _OfDevice] = OrderedDict()

    def __bool__(self) -> bool:
        return bool(self._devices)

    def hold_pairing(self, claim: HeldPairing) -> None:
        """Hold the token that a device with a working key shows; only its hash is kept, until it expires."""
        claims = self._of(claim.device_id).claims
        claims.pop(claim.token_hash, None)
        claims[claim.token_hash] = claim
        if len(claims) > CLAIMS_OF_EACH:
            del claims[next(iter(claims))]

    def hold_use(self, device_id: str, key_hash: bytes, use: KeyUse) -> None:
        """Hold that a device has connected with a working key, which is its next one or an unproven one."""
        uses = self._of(device_id).uses
        uses.pop(key_hash, None)
        uses[key_hash] = use  # no more than there are working keys

    def pairings_of(self, device_id: str) -> Sequence[HeldPairing]:
        """Give the tokens of a device that are held and have not expired."""
        held = self._devices.get(device_id)
        now_ms = self._now_ms()
        return [claim for claim in held.claims.values() if claim.expires_at_ms > now_ms] if held else []

    def all(self) -> Sequence[Held]:
        """Give everything that is held, device by device in the order of the ids."""
        found: list[Held] = []
        for device_id in sorted(self._devices):
            held = self._devices[device_id]
            found += [(device_id, use, key_hash) for key_hash, use in held.uses.items()]
            found += [(device_id, claim, claim.key_hash) for claim in held.claims.values()]
        return found

    def forget(self, written: Sequence[Held]) -> None:
        """Forget what was written; what was held again since then stays."""
        for device_id, what, key_hash in written:
            held = self._devices.get(device_id)
            if held is None:
                continue
            if isinstance(what, HeldPairing):
                if held.claims.get(what.token_hash) is what:
                    del held.claims[what.token_hash]
            else:
                held.uses.pop(key_hash, None)
            if not held.claims and not held.uses:
                del self._devices[device_id]

    def _of(self, device_id: str) -> _OfDevice:
        held = self._devices.get(device_id)
        if held is None:
            if len(self._devices) >= DEVICES_AT_MOST:
                self._devices.popitem(last=False)
            held = self._devices[device_id] = _OfDevice({}, {})
        return held


def write_held(db: Connection, held: Sequence[Held], *, now_ms: int) -> None:
    """Write what was held, as far as its keys still work; doing so twice changes nothing."""
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

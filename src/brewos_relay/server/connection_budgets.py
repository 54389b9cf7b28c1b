"""How often each device and user may connect, so that no flood keeps others out.

Connections that succeed cost the relay more than those that fail, and anyone can register devices that are
let in. Machines that behave are never refused by these budgets: a refusal costs a machine 30 s.
"""

from dataclasses import dataclass
from typing import Final

import trio

from brewos_relay.core.limits import Limits
from brewos_relay.core.rate_limits import TokenBucket, TokenBuckets, open_bucket

DEVICE_BURST: Final = 10.0
DEVICE_PER_MINUTE: Final = 10.0
"""Connections of one device. A machine comes back after 30 s; when its line breaks, also once at once."""
_SHARE_OF_REPEATS: Final = 0.1
"""How much of `admit_rate` all peers together may use that have used up their own budgets."""
_PEERS_KEPT: Final = 16_384


@dataclass(frozen=True, slots=True)
class Budget:
    """The budget of one peer, beyond which it takes from what is there for all such peers."""

    buckets: TokenBuckets
    key: str
    repeats: TokenBucket | None

    def admit(self) -> bool:
        """Tell whether the peer may connect; this counts only what is beyond its own budget."""
        if self.repeats is None:
            return True
        bucket, now = self.buckets.find(self.key), trio.current_time()
        return bucket is None or bucket.level(now) >= 1 or self.repeats.admit(now)

    def note(self) -> None:
        """Count a connection that was let in."""
        now = trio.current_time()
        self.buckets.use(self.key, now).admit(now)


class PeerBudgets:
    """How often each device and each user may connect, beyond which they share a tenth of `admit_rate`.

    Only connections that were let in are counted, so that no stranger uses up the budget of a device.
    """

    def __init__(self, limits: Limits) -> None:
        self._devices = TokenBuckets(rate_per_s=DEVICE_PER_MINUTE / 60, burst=DEVICE_BURST, kept=_PEERS_KEPT)
        # As many as may be connected at a time, once a minute.
        users, named = max(1.0, limits.clients_per_user), max(1.0, limits.clients_per_device)
        self._users = TokenBuckets(rate_per_s=users / 60, burst=users, kept=_PEERS_KEPT)
        self._named = TokenBuckets(rate_per_s=named / 60, burst=named, kept=_PEERS_KEPT)
        rate_per_s = limits.admit_rate * _SHARE_OF_REPEATS
        self._repeats = open_bucket(rate_per_s, burst=max(1.0, rate_per_s))

    def of_device(self, device_id: str) -> Budget:
        """Give the budget of a device (an id in upper case)."""
        return Budget(self._devices, device_id, self._repeats)

    def of_client(self, user_id: str | None, device_id: str, *, by_token: bool) -> Budget:
        """Give the budget of a user's clients, or of a device's if it is the token that names it."""
        if by_token or user_id is None:
            return Budget(self._named, device_id, self._repeats)
        return Budget(self._users, user_id, self._repeats)

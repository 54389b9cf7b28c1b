"""Rate limits for WebSocket requests, so that a flood from some peers does not keep others out.

Successful connections cost the relay more than failed ones, and anyone can register devices that are
admitted. The budgets never refuse a machine that behaves normally: a refusal costs it 30 s.
"""

from dataclasses import dataclass
from typing import Final

import trio

from brewos_relay.api.request_limits import NetworkShares
from brewos_relay.core.grant import Grant
from brewos_relay.core.limits import Limits
from brewos_relay.core.rate_limits import TokenBucket, TokenBuckets, open_bucket
from brewos_relay.core.relay import Relay
from brewos_relay.networks import networks_of, wider_networks
from brewos_relay.server.incoming import Denied

DEVICE_BURST: Final = 10.0
DEVICE_PER_MINUTE: Final = 10.0
"""Connections of one device. A machine reconnects after 30 s, and once at once after a broken line."""
_SHARE_OF_REPEATS: Final = 0.1
"""The share of `admit_rate` for all peers that have used up their own budgets."""
_PEERS_KEPT: Final = 16_384

_SHARE_OF_FAILURES: Final = 0.25
"""The share of `admit_rate` that one network may use for failed attempts."""
_FAILING_KEPT: Final = 12_288
_RESERVE_S: Final = 0.5
"""A network leaves to others as many connections as it recently made in this time."""


@dataclass(frozen=True, slots=True)
class Budget:
    """The budget of one peer. Beyond it, the peer uses the common budget of all such peers."""

    buckets: TokenBuckets
    key: str
    repeats: TokenBucket | None

    def admit(self) -> bool:
        """Whether the peer may connect. Only connections beyond its own budget are counted here."""
        if self.repeats is None:
            return True
        bucket, now = self.buckets.find(self.key), trio.current_time()
        return bucket is None or bucket.level(now) >= 1 or self.repeats.admit(now)

    def count(self) -> None:
        """Count an admitted connection, if the budget has a limit."""
        if self.repeats is None:
            return
        now = trio.current_time()
        self.buckets.use(self.key, now).admit(now)


class PeerBudgets:
    """The budgets of all devices and users. Peers beyond their budgets share a tenth of `admit_rate`.

    Only admitted connections are counted, so that a stranger cannot use up the budget of a device.
    """

    def __init__(self, limits: Limits) -> None:
        self._devices = TokenBuckets(rate_per_s=DEVICE_PER_MINUTE / 60, burst=DEVICE_BURST, kept=_PEERS_KEPT)
        # Per minute, as many connections as may exist at a time.
        users, named = max(1.0, limits.clients_per_user), max(1.0, limits.clients_per_device)
        self._users = TokenBuckets(rate_per_s=users / 60, burst=users, kept=_PEERS_KEPT)
        self._named = TokenBuckets(rate_per_s=named / 60, burst=named, kept=_PEERS_KEPT)
        rate_per_s = limits.admit_rate * _SHARE_OF_REPEATS
        self._repeats = open_bucket(rate_per_s, burst=max(1.0, rate_per_s))

    def of_device(self, device_id: str) -> Budget:
        """Return the budget of a device, by its id in upper case."""
        return Budget(self._devices, device_id, self._repeats)

    def of_client(self, user_id: str | None, device_id: str, *, by_token: bool) -> Budget:
        """Return the budget of a user's clients, or of the device if the token itself names it."""
        if by_token or user_id is None:
            return Budget(self._named, device_id, self._repeats)
        return Budget(self._users, user_id, self._repeats)


class ConnectionRates:
    """Limits how often WebSockets are requested: by one network, by one peer, and by all together.

    The `refuse_…` methods and `admit` raise Denied (503). The `count_…` methods count outcomes of attempts.
    """

    def __init__(self, relay: Relay) -> None:
        self._relay = relay
        self._peers = PeerBudgets(relay.limits)
        self._networks = NetworkShares(reserve_s=_RESERVE_S)
        rate_per_s = relay.limits.admit_rate * _SHARE_OF_FAILURES
        self._failing = TokenBuckets(rate_per_s=rate_per_s, burst=max(1.0, rate_per_s), kept=_FAILING_KEPT)

    @property
    def _has_limit(self) -> bool:
        return self._relay.limits.admit_rate > 0

    def refuse_failing(self, network: str) -> None:
        """Refuse a network with too many failed attempts, which would use up the rate of all others."""
        if not self._failing:
            return
        for name in networks_of(network):
            bucket = self._failing.find(name)
            if bucket is not None and bucket.level(trio.current_time()) < 0:
                raise Denied(
                    "too_many_failures",
                    503,
                    "too many failed connections from this network",
                    headers={"Retry-After": "5"},
                )

    def refuse_repeating_device(self, device_id: str) -> None:
        """Refuse a device that connects more often than its budget allows."""
        if self._has_limit:
            _refuse_repeating(self._peers.of_device(device_id))

    def refuse_repeating_client(self, user_id: str | None, device_id: str, *, by_token: bool) -> None:
        """Refuse a client that connects more often than the budget of its user or device allows."""
        if self._has_limit:
            _refuse_repeating(self._peers.of_client(user_id, device_id, by_token=by_token))

    def admit(self, network: str) -> None:
        """Take one connection from the rate of the whole relay."""
        if not self._has_limit:
            return
        if not self._relay.admits(reserve=self._networks.reserve(network)):
            raise Denied(
                "too_many_connections", 503, "too many connections at once", headers={"Retry-After": "5"}
            )
        self._networks.count(network)

    def count_failure(self, network: str) -> None:
        """Count a failed attempt of a network. Attempts of admitted peers are never counted."""
        if self._has_limit:
            now = trio.current_time()
            self._failing.use(network, now).take(1, now)
            for name, share in wider_networks(network):
                self._failing.use(name, now).take(1 / share, now)

    def count_device(self, device_id: str) -> None:
        """Count a device that was admitted."""
        if self._has_limit:
            self._peers.of_device(device_id).count()

    def count_client(self, device_id: str, grant: Grant) -> None:
        """Count a client that was admitted."""
        if self._has_limit:
            self._peers.of_client(grant.user_id, device_id, by_token=grant.by_token).count()


def _refuse_repeating(budget: Budget) -> None:
    """Refuse a peer that is beyond its own budget while the common one is used up as well."""
    if not budget.admit():
        message = "this peer connects too often"
        raise Denied("too_many_repeats", 503, message, headers={"Retry-After": "30"})

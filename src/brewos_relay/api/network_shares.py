"""Rates that networks share fairly: whoever comes rarely finds room, whatever others do."""

from typing import Final

import trio

from brewos_relay.api.answers import Refused
from brewos_relay.core.rate_limits import RecentRates, TokenBucket
from brewos_relay.networks import networks_of, wider_networks

_FAIR_OVER_S: Final = 30.0
_WIDEST_SHARE: Final = 4
"""So much may a wider network use compared with one address or /64 in it, whatever its other budgets are."""
_NETWORKS_KEPT: Final = 16_384


class NetworkShares:
    """Tells how much of a bucket's tokens each network must leave to others.

    That is what it took itself, on average, in `reserve_s`. So with the whole rate to itself it leaves a part
    of the burst, and a network that comes rarely always finds room. Networks that compete come to the same
    rate. The wider networks around each one count as well.
    """

    def __init__(self, *, reserve_s: float) -> None:
        self._reserve_s = reserve_s
        self._rates = RecentRates(over_s=_FAIR_OVER_S, kept=_NETWORKS_KEPT)

    def reserve(self, network: str) -> float:
        """Tell how many tokens a network must leave to others."""
        now, rate = trio.current_time(), self._rates.of
        wider = [rate(name, now) / min(share, _WIDEST_SHARE) for name, share in wider_networks(network)]
        return self._reserve_s * max(rate(network, now), *wider, 0.0)

    def note(self, network: str) -> None:
        """Count a token that a network took."""
        now = trio.current_time()
        for name in networks_of(network):
            self._rates.note(name, now)


class FairRate:
    """A rate of requests of one kind, of all networks together, which they share fairly."""

    def __init__(self, what: str, *, rate_per_s: float, burst: float, reserve_s: float) -> None:
        """Take what there is too much of ("registrations"), for the answer that says so."""
        self._what = what
        self._rate_per_s = rate_per_s
        self._burst = burst
        self._bucket: TokenBucket | None = None  # until the first request: there may be no clock before
        self._shares = NetworkShares(reserve_s=reserve_s)

    def admit(self, network: str) -> None:
        """Count a request from a network (as `network_of` gives it). Raises Refused (503)."""
        now = trio.current_time()
        if self._bucket is None:
            self._bucket = TokenBucket(rate_per_s=self._rate_per_s, burst=self._burst, now=now)
        if not self._bucket.admit(now, reserve=self._shares.reserve(network)):
            raise Refused(
                f"Too many {self._what} at once; try again soon.",
                status=503,
                headers={"Retry-After": "30"},
                reason=f"too_many_{self._what}_at_once",
            )
        self._shares.note(network)

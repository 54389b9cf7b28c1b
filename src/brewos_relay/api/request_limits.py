"""Rate limits by network, account or device. Times are on trio's clock."""

import math
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Final

import trio

from brewos_relay.api.payloads import Refused, is_api_path
from brewos_relay.core.rate_limits import RecentRates, TokenBucket, TokenBuckets
from brewos_relay.errors import RegistryBusy, RegistryError
from brewos_relay.instances import Bucket
from brewos_relay.networks import networks_of, wider_networks
from brewos_relay.protocols import SharedBudgets

_KEPT: Final = 4096
"""How many buckets a limit keeps."""
_UNAVAILABLE: Final = (RegistryError, RegistryBusy)
"""The registry errors that are answered with 503. The others are faults of the request."""


class Attempt:
    """A token that was taken from a limit, here and on the bus."""

    def __init__(self, limit: "RequestLimit", key: str, about: str, shared: Sequence[Bucket]) -> None:
        self._limit = limit
        self._key = key
        self._about = about
        self._shared = shared
        self._is_counted = True

    async def give_back(self) -> None:
        """Undo the attempt, which does not count. Only what was taken for certain is given back."""
        if self._is_counted:
            self._is_counted = False
            self._limit.give_back(self._key, about=self._about)
            if self._limit.shared is not None:
                await self._limit.shared.give_back(self._shared)


class RequestLimit:
    """Token buckets by key. A bucket holds `burst` tokens and gains `each_minute`; a request takes one.

    With `by_network`, keys are results of `network_of`, and the wider networks around them have budgets too:
    providers give one customer a /56 or /48 of IPv6, which holds hundreds or thousands of /64.

    After `share`, `take` and `attempt` count on all instances together. The buckets of this instance are
    asked first: a flood that they refuse costs the bus nothing, and they decide alone while the bus is away.
    """

    def __init__(
        self,
        what: str,
        *,
        burst: int,
        each_minute: float,
        by_network: bool = False,
        kept: int = _KEPT,
    ) -> None:
        """Create a limit. `what` names the requests in refusals, like "attempts to sign in"."""
        self.burst, self.each_minute = burst, each_minute
        self.shared: SharedBudgets | None = None
        self._what = what
        self._by_network = by_network
        self._kept = kept
        self._name = ""
        self._levels: dict[int, TokenBuckets] = {}

    def __len__(self) -> int:
        return len(self._level(1))

    def share(self, shared: SharedBudgets, *, name: str) -> None:
        """Count on all instances together. `name` distinguishes this limit from others."""
        self.shared, self._name = shared, name

    def _level(self, share: int) -> TokenBuckets:
        """Return the buckets of networks with `share` times the budget."""
        if share not in self._levels:
            self._levels[share] = TokenBuckets(
                rate_per_s=share * self.each_minute / 60, burst=share * self.burst, kept=self._kept
            )
        return self._levels[share]

    def _keys(self, key: str, about: str) -> list[tuple[int, str]]:
        """Return the names of the buckets that count a request, each with its multiple of the budget."""
        wider = wider_networks(key) if self._by_network else ()
        return [
            (share, f"{name} {about}" if about else name)
            for name, share in ((key, 1), *((name, share) for name, share in wider))
        ]

    def admit(self, key: str, *, about: str = "") -> None:
        """Take one token from the bucket of `key` on this instance alone.

        Raises Refused (429, with Retry-After) if it is empty. Keys with different `about` have buckets of
        their own.
        """
        now_s = trio.current_time()
        taken: list[TokenBucket] = []
        for share, name in self._keys(key, about):
            bucket = self._level(share).use(name, now_s)
            if not bucket.admit(now_s):
                for other in taken:
                    other.give_back()
                raise self._refusal(math.ceil(bucket.empty_s))
            taken.append(bucket)

    async def take(self, key: str, *, about: str = "") -> Attempt:
        """Take one token from the bucket of `key`, also on the bus. Raises Refused as `admit` does."""
        self.admit(key, about=about)
        if self.shared is None:
            return Attempt(self, key, about, ())
        taken = await self.shared.take(
            [
                Bucket(f"{self._name} {name}", share * self.each_minute / 60, share * self.burst)
                for share, name in self._keys(key, about)
            ]
        )
        if taken.empty is not None:
            self.give_back(key, about=about)
            raise self._refusal(math.ceil(1 / taken.empty.per_s))
        return Attempt(self, key, about, taken.buckets)

    def check(self, key: str) -> None:
        """Raise Refused as `admit` would, without taking a token."""
        now_s = trio.current_time()
        for share, name in self._keys(key, ""):
            bucket = self._level(share).find(name)
            if bucket is not None and bucket.level(now_s) < 1:
                raise self._refusal(math.ceil(bucket.empty_s))

    def give_back(self, key: str, *, about: str = "") -> None:
        """Undo an `admit`, for a request that does not count."""
        now_s = trio.current_time()
        for share, name in self._keys(key, about):
            self._level(share).use(name, now_s).give_back()

    @asynccontextmanager
    async def attempt(self, key: str, *, about: str = "") -> AsyncIterator[Attempt]:
        """Take a token for the block, and give it back if the block ends with a 503.

        A busy server must not count against the client.
        """
        attempt = await self.take(key, about=about)
        try:
            yield attempt
        except Refused as refusal:
            if refusal.status == 503:
                await attempt.give_back()
            raise
        except RegistryError as problem:
            if type(problem) in _UNAVAILABLE:
                await attempt.give_back()
            raise

    def _refusal(self, wait_s: int) -> Refused:
        return Refused(
            f"Too many {self._what}. Try again in {_in_words(wait_s)}.",
            status=429,
            headers={"Retry-After": str(wait_s)},
            reason=f"too_many_{self._what.replace(' ', '_')}",
        )


def _in_words(wait_s: int) -> str:
    if wait_s < 120:
        return "a second" if wait_s == 1 else f"{wait_s} seconds"
    return f"{math.ceil(wait_s / 60)} minutes"


_HEALTH: Final = frozenset({"/api/health", "/livez", "/readyz", "/metrics"})
_OWN: Final = frozenset({"requests", "pages", "health", "push_changes", "push_reports"})
"""Limits that are not shared between instances."""
_REGISTER: Final = "/api/devices/register-claim"
"""Registration of devices, which has its own limits."""
_SIGN_INS: Final = frozenset(
    f"/api/auth/{way}"
    for way in ("password", "invite", "google", "oidc", "facebook", "code/start", "code/finish")
)


class RequestLimits:
    """All rate limits of the API. Keys of addresses are results of `network_of`.

    A whole street may share one address, and reconnects at once after a power cut. A normal page reads its
    devices every 10 s, and everything when it loads.

    With many instances, limits on attempts are shared: signing in, refreshing, pairing, sharing, registering.
    Limits that only protect an instance from too much work are its own.
    """

    def __init__(self, shared: SharedBudgets | None = None) -> None:
        # All paths under /api except register-claim, by network.
        self.requests = RequestLimit("requests", burst=600, each_minute=1200, by_network=True)
        # Pages and their files. One visit to a large web app loads a few hundred of them, twice.
        self.pages = RequestLimit("requests for pages", burst=2000, each_minute=3000, by_network=True)
        # Health endpoints, with their own budget: a flood of page requests must not fail the health checks.
        self.health = RequestLimit("health checks", burst=300, each_minute=600, by_network=True)
        # By network.
        self.sign_ins = RequestLimit("attempts to sign in", burst=30, each_minute=20, by_network=True)
        # By account and network. The second: by account alone, from networks without a recent sign-in to it.
        self.passwords = RequestLimit("attempts with this password", burst=8, each_minute=4, by_network=True)
        self.passwords_from_new_networks = RequestLimit(
            "attempts with this password", burst=30, each_minute=6
        )
        # By network.
        self.refreshes = RequestLimit("new tokens", burst=120, each_minute=60, by_network=True)
        # Failed attempts only.
        self.pairings_by_user = RequestLimit("attempts to pair", burst=10, each_minute=6)
        self.pairings_by_address = RequestLimit("attempts to pair", burst=40, each_minute=20, by_network=True)
        self.shares_by_user = RequestLimit("invitations", burst=20, each_minute=6)
        # By user: subscriptions and preferences. By device and network: reports of machines.
        self.push_changes = RequestLimit("changes of notifications", burst=30, each_minute=10)
        self.push_reports = RequestLimit("reports of this machine", burst=10, each_minute=6, by_network=True)
        # By device and address first. So a client that keeps registering the id of another machine uses up
        # neither the budget of its neighbours nor, from another address, that of the machine.
        self.register_by_device = RequestLimit("registrations", burst=10, each_minute=6)
        self.register_by_address = RequestLimit("registrations", burst=500, each_minute=300, by_network=True)
        if shared is not None:
            for name, limit in vars(self).items():
                if name not in _OWN:
                    limit.share(shared, name=name)

    def admit_request(self, path: str, network: str) -> None:
        """Take a token for a request, by its path alone. Raises Refused (429)."""
        if path != _REGISTER:
            self._by_path(path).admit(network)

    def check_request(self, path: str, network: str) -> None:
        """Raise Refused (429) for a request that is over its limit, before any other work is done for it."""
        if path != _REGISTER:
            self._by_path(path).check(network)
        if path in _SIGN_INS:
            self.sign_ins.check(network)
        elif path == "/api/auth/refresh":
            self.refreshes.check(network)

    def _by_path(self, path: str) -> RequestLimit:
        if path in _HEALTH:
            return self.health
        return self.requests if is_api_path(path) else self.pages


_FAIR_OVER_S: Final = 30.0
_WIDEST_SHARE: Final = 4
"""How many times the rate of one address or /64 a wider network may use, even with a larger budget."""
_NETWORKS_KEPT: Final = 16_384


class NetworkShares:
    """Calculates how many tokens of a shared bucket each network must leave to others.

    The reserve is what the network itself took, on average, in `reserve_s`. So a network that uses the whole
    rate leaves a part of the burst, a rare one always finds tokens, and competing ones get equal rates. The
    wider networks around each one count as well.
    """

    def __init__(self, *, reserve_s: float) -> None:
        self._reserve_s = reserve_s
        self._rates = RecentRates(over_s=_FAIR_OVER_S, kept=_NETWORKS_KEPT)

    def reserve(self, network: str) -> float:
        """Return how many tokens a network must leave to others."""
        now, rate = trio.current_time(), self._rates.of
        wider = [rate(name, now) / min(share, _WIDEST_SHARE) for name, share in wider_networks(network)]
        return self._reserve_s * max(rate(network, now), *wider, 0.0)

    def count(self, network: str) -> None:
        """Count a token that a network took."""
        now = trio.current_time()
        for name in networks_of(network):
            self._rates.count(name, now)


class FairRate:
    """A rate limit for all requests of one kind, shared fairly between networks."""

    def __init__(self, what: str, *, rate_per_s: float, burst: float, reserve_s: float) -> None:
        """Create a rate limit. `what` names the requests in refusals, like "registrations"."""
        self._what = what
        self._rate_per_s = rate_per_s
        self._burst = burst
        self._bucket: TokenBucket | None = None  # created at the first request: before, trio may not run
        self._shares = NetworkShares(reserve_s=reserve_s)

    def admit(self, network: str) -> None:
        """Take a token for a request from a network (a key of `network_of`). Raises Refused (503)."""
        now = trio.current_time()
        if self._bucket is None:
            self._bucket = TokenBucket(rate_per_s=self._rate_per_s, burst=self._burst, now=now)
        if not self._bucket.admit(now, reserve=self._shares.reserve(network)):
            raise Refused(
                f"Too many {self._what} at once. Try again soon.",
                status=503,
                headers={"Retry-After": "30"},
                reason=f"too_many_{self._what}_at_once",
            )
        self._shares.count(network)

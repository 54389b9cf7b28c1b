"""How often somebody may ask. Times are on trio's clock."""

import ipaddress
import math
from typing import Final

import trio

from brewos_relay.api.answers import Refused
from brewos_relay.core.pace import TokenBuckets

_KEPT: Final = 4096
"""Buckets of one kind."""


class Throttle:
    """Token buckets by key. A bucket holds `burst` and gains `each_minute`; what asks takes 1 of it."""

    def __init__(self, what: str, *, burst: int, each_minute: float, kept: int = _KEPT) -> None:
        """Take what there is too much of ("attempts to sign in"), for the answer that says so."""
        self.burst, self.each_minute = burst, each_minute
        self._what = what
        self._buckets = TokenBuckets(rate_per_s=each_minute / 60, burst=burst, kept=kept)

    def __len__(self) -> int:
        return len(self._buckets)

    def admit(self, key: str) -> None:
        """Let pass who is named by `key`; raises Refused (429) that says when to come back."""
        now_s = trio.current_time()
        bucket = self._buckets.use(key, now_s)
        if not bucket.admit(now_s):
            wait_s = math.ceil(bucket.empty_s)
            raise Refused(
                f"Too many {self._what}; try again in {_in_words(wait_s)}.",
                status=429,
                headers={"Retry-After": str(wait_s)},
                reason=f"too_many_{self._what.replace(' ', '_')}",
            )

    def give_back(self, key: str) -> None:
        """Undo an `admit`, for what turned out to be nothing to count."""
        self._buckets.use(key, trio.current_time()).give_back()


def _in_words(wait_s: int) -> str:
    if wait_s < 120:
        return "a second" if wait_s == 1 else f"{wait_s} seconds"
    return f"{math.ceil(wait_s / 60)} minutes"


def network_of(address: str) -> str:
    """Give the key of an address: for IPv6 its /64, since whoever has one address there has all of them."""
    try:
        parsed = ipaddress.ip_address(address.partition("%")[0])
    except ValueError:
        return address
    if isinstance(parsed, ipaddress.IPv4Address):
        return str(parsed)
    if parsed.ipv4_mapped is not None:
        return str(parsed.ipv4_mapped)
    return str(ipaddress.IPv6Network((parsed, 64), strict=False).network_address)


class Throttles:
    """Every limit on how often somebody may ask; keys of addresses are made by `network_of`.

    A whole street can come from one address, after a power cut all at once; and a normal page asks for its
    devices every 10 s, and for everything anew when it is loaded.
    """

    def __init__(self) -> None:
        # Everything under /api but register-claim and health, by address.
        self.requests = Throttle("requests", burst=600, each_minute=1200)
        # By address.
        self.sign_ins = Throttle("attempts to sign in", burst=30, each_minute=20)
        # By account and address; and by account, from addresses from which nobody signed in to it lately.
        self.passwords = Throttle("attempts with this password", burst=8, each_minute=4)
        self.strange_passwords = Throttle("attempts with this password", burst=30, each_minute=6)
        # By address.
        self.refreshes = Throttle("new tokens", burst=120, each_minute=60)
        # Those that came to nothing.
        self.claims_by_user = Throttle("attempts to pair", burst=10, each_minute=6)
        self.claims_by_address = Throttle("attempts to pair", burst=40, each_minute=20)
        self.shares_by_user = Throttle("invitations", burst=20, each_minute=6)
        # By device and address first: whoever registers a foreign machine over and over takes nothing from
        # its street, nor, from elsewhere, from the machine itself.
        self.register_by_device = Throttle("registrations", burst=10, each_minute=6)
        self.register_by_address = Throttle("registrations", burst=500, each_minute=300)

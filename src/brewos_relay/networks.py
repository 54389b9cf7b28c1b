"""Networks around an address: the keys that rate limits and quotas count by."""

import functools
import ipaddress
from collections.abc import Sequence
from typing import Final

_CACHED: Final = 4096
_V6_SHARES: Final = {56: 2, 48: 3}
"""Budgets of an IPv6 /56 and /48, as multiples of the budget of a /64."""
_V4_SHARES: Final = {24: 16}
"""Budget of an IPv4 /24, as a multiple of the budget of an address. Neighbours are other households."""


@functools.lru_cache(maxsize=_CACHED)
def network_of(address: str) -> str:
    """Return the network of an address: an IPv4 address itself, or the /64 of an IPv6 address."""
    try:
        parsed = ipaddress.ip_address(address.partition("%")[0])
    except ValueError:
        return address
    if isinstance(parsed, ipaddress.IPv4Address):
        return str(parsed)
    if parsed.ipv4_mapped is not None:
        return str(parsed.ipv4_mapped)
    return str(ipaddress.IPv6Network((parsed, 64), strict=False).network_address)


def networks_of(network: str) -> Sequence[str]:
    """Return the networks around a result of `network_of`, widest first, ending with itself."""
    return (*[name for name, _share in reversed(wider_networks(network))], network)


@functools.lru_cache(maxsize=_CACHED)
def wider_networks(network: str) -> tuple[tuple[str, int], ...]:
    """Return the wider networks around a network, widest last, each with its multiple of the budget."""
    try:
        parsed = ipaddress.ip_address(network)
    except ValueError:
        return ()
    shares = _V4_SHARES if parsed.version == 4 else _V6_SHARES
    return tuple(
        (str(ipaddress.ip_network((parsed, bits), strict=False)), share) for bits, share in shares.items()
    )

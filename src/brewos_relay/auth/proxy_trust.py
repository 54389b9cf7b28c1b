"""The address of a caller, and the address it used for this server, behind trusted proxies."""

import functools
import ipaddress
import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final, TypeAlias

Network: TypeAlias = ipaddress.IPv4Network | ipaddress.IPv6Network
_Address: TypeAlias = ipaddress.IPv4Address | ipaddress.IPv6Address

# Only hosts that are safe in a link: a name, an IPv4 address, or an IPv6 address in brackets.
_HOST: Final = (
    r"(?P<name>[a-z0-9](?:[a-z0-9._-]{0,251}[a-z0-9])?|\[[0-9a-f:.]{2,45}\])"
    r"(?:(?<=[a-z0-9])\.)?"  # the root of the domain name system; the name means the same without it
    r"(?::(?P<port>[0-9]{1,5}))?"
)
_HOST_ALONE: Final = re.compile(_HOST, re.ASCII)
_ORIGIN: Final = re.compile(rf"(?P<scheme>https?|capacitor|ionic|tauri)://{_HOST}", re.ASCII)
_FORWARDED_V4: Final = re.compile(r"(?P<address>[0-9.]{7,15})(?::[0-9]{1,5})?", re.ASCII)
_FORWARDED_V6: Final = re.compile(
    r"(?P<address>[0-9A-Fa-f:.]{2,45})|\[(?P<inside>[0-9A-Fa-f:.]{2,45})\](?::[0-9]{1,5})?", re.ASCII
)

_LISTS: Final = ("x-forwarded-for", "x-forwarded-proto", "x-forwarded-host")
_DEFAULT_PORTS: Final = {"http": 80, "https": 443}
_SCHEMES: Final = {"http": "http", "https": "https", "ws": "http", "wss": "https"}
"""The names of schemes that proxies send. Some name the scheme of the WebSocket."""
_CACHED: Final = 4096
"""How many parsed addresses are kept. In a flood of connections, parsing took a sixth of the time."""
_MAPPED: Final = ipaddress.IPv6Network("::ffff:0:0/96")


@dataclass(frozen=True, slots=True)
class Caller:
    """The origin of a request: the caller's address, and the scheme and host that it used for this server.

    `address` is an IP address; an IPv4 address is never written as IPv6. `scheme` is "http" or "https".
    `host` is in lower case, without the default port of the scheme, and empty if no valid one was sent.
    """

    address: str
    scheme: str
    host: str


class ProxyTrust:
    """The proxies whose X-Forwarded-* headers count, and the public URL of this server."""

    def __init__(self, trusted_networks: Iterable[Network] = (), public_url: str | None = None) -> None:
        """Take the networks of trusted proxies, and the public URL without a trailing `/`."""
        self._trusted = tuple(map(_unmapped, trusted_networks))
        self._public_url = public_url

    def trusts(self, peer_address: str) -> bool:
        """Tell whether a peer's X-Forwarded-* headers count."""
        address = _parse_peer(peer_address)
        return address is not None and self._is_trusted(address)

    def address(self, peer_address: str, forwarded_for: str) -> str:
        """Return the address of the caller of a request, like `caller`.

        `forwarded_for` is the value of X-Forwarded-For; several such headers are joined with commas.
        """
        peer = _parse_peer(peer_address)
        if peer is None:
            return peer_address
        if self._is_trusted(peer):
            peer = self._walk_back(peer, _elements(forwarded_for))
        return _spell(peer)

    def caller(self, peer_address: str, secure: bool, headers: Iterable[tuple[str, str]]) -> Caller:
        """Return the caller of a request, from the connection's peer and the request's headers.

        X-Forwarded-* count only if the peer is a trusted proxy: any other peer can write anything there.
        """
        values = _gather(headers)
        scheme = "https" if secure else "http"
        hosts = values["host"][-1:]
        peer = _parse_peer(peer_address)
        if peer is None:
            return Caller(peer_address, scheme, _first_host(hosts, scheme))
        if self._is_trusted(peer):
            peer = self._walk_back(peer, values["x-forwarded-for"])
            # The trusted peer itself wrote the last value.
            claimed = values["x-forwarded-proto"][-1:]
            if claimed:
                scheme = _SCHEMES.get(claimed[0].lower(), scheme)
            hosts = values["x-forwarded-host"][-1:] + hosts
        return Caller(_spell(peer), scheme, _first_host(hosts, scheme))

    def base_url(self, caller: Caller) -> str:
        """Return the start of links to this server, without a trailing `/`."""
        return self._public_url or f"{caller.scheme}://{caller.host or 'localhost'}"

    def origin_allowed(self, origin: str | None, caller: Caller, allowed: Iterable[str] = ()) -> bool:
        """Tell whether a page of this origin (RFC 6454) may call: this server's own, or an allowed one.

        Programs other than browsers send no origin; None is allowed.
        """
        if origin is None:
            return True
        read = _read_origin(origin)
        if read is None:
            return False
        scheme, host = read
        # An unencrypted page may have been modified on its way, so it may not call an https server. An https
        # page may call over http: a proxy may terminate TLS without saying so.
        if host == caller.host and (scheme == "https" or scheme == caller.scheme == "http"):
            return True
        ours = () if self._public_url is None else (self._public_url,)
        return any(read == _read_origin(one) for one in (*ours, *allowed))

    def _is_trusted(self, address: _Address) -> bool:
        if not self._trusted:
            return False
        return any(address in network for network in self._trusted)

    def _walk_back(self, nearest: _Address, forwarded: list[str]) -> _Address:
        """Follow X-Forwarded-For from its trusted end to the first address that is not a trusted proxy."""
        for entry in reversed(forwarded):
            before = _parse_forwarded(entry)
            if before is None:
                break
            nearest = before
            if not self._is_trusted(nearest):
                break
        return nearest


def _gather(headers: Iterable[tuple[str, str]]) -> dict[str, list[str]]:
    """Collect the values of the headers that count, in their order.

    A header may occur several times.
    """
    values: dict[str, list[str]] = {name: [] for name in ("host", *_LISTS)}
    for name, value in headers:
        lower = name.lower()
        if lower in _LISTS:
            values[lower].extend(_elements(value))
        elif lower == "host":
            values[lower].append(value.strip())
    return values


def _elements(value: str) -> list[str]:
    """Split a header with a list; empty elements do not count (RFC 9110 §5.6.1)."""
    return [part for each in value.split(",") if (part := each.strip())]


def _unmapped(network: Network) -> Network:
    """Convert a network of IPv4 addresses in IPv6 form (::ffff:10.0.0.0/104) to IPv4."""
    if isinstance(network, ipaddress.IPv6Network) and network.subnet_of(_MAPPED):
        first = network.network_address.ipv4_mapped
        assert first is not None, "all of that network is mapped"
        return ipaddress.IPv4Network((first, network.prefixlen - _MAPPED.prefixlen))
    return network


def _parse_peer(text: str) -> _Address | None:
    return _parse_address(text.partition("%")[0])  # a link-local address ends in % and its interface


def _parse_forwarded(entry: str) -> _Address | None:
    if (v4 := _FORWARDED_V4.fullmatch(entry)) is not None:
        return _parse_address(v4["address"])
    if (v6 := _FORWARDED_V6.fullmatch(entry)) is not None:
        return _parse_address(v6["address"] or v6["inside"])
    return None


@functools.lru_cache(maxsize=_CACHED)
def _parse_address(text: str) -> _Address | None:
    try:
        address = ipaddress.ip_address(text)
    except ValueError:
        return None
    # A socket for both families shows an IPv4 peer as ::ffff:192.0.2.1.
    return getattr(address, "ipv4_mapped", None) or address


@functools.lru_cache(maxsize=_CACHED)
def _spell(address: _Address) -> str:
    return str(address)


def _first_host(candidates: Iterable[str], scheme: str) -> str:
    for text in candidates:
        found = _HOST_ALONE.fullmatch(text.lower())
        if found is not None and (host := _without_default_port(found, scheme)) is not None:
            return host
    return ""


def _read_origin(origin: str) -> tuple[str, str] | None:
    """Return the scheme and host of an origin.

    None for `null`, `file://` and other origins without a host.
    """
    found = _ORIGIN.fullmatch(origin.lower())
    if found is None or (host := _without_default_port(found, found["scheme"])) is None:
        return None
    return found["scheme"], host


def _without_default_port(found: re.Match[str], scheme: str) -> str | None:
    if found["port"] is None:
        return found["name"]
    port = int(found["port"])
    if not 0 < port < 65_536:
        return None
    return found["name"] if port == _DEFAULT_PORTS.get(scheme) else f"{found['name']}:{port}"

"""The address of a relay: its URL, and a stream to it."""

import os
import socket
import ssl
from dataclasses import dataclass
from ipaddress import ip_address
from typing import Final
from urllib.parse import urlsplit

import trio

from brewos_relay.errors import RelayError, SettingsError
from brewos_relay.vocabulary import parse_device_id

URL_FORMS: Final = "http://HOST[:PORT], https://HOST[:PORT], ws://HOST[:PORT] or wss://HOST[:PORT]"
_SCHEMES: Final = {"http": False, "ws": False, "https": True, "wss": True}


class RelayUnreachable(RelayError):
    """The relay could not be reached, or did not answer in HTTP."""

    code = "relay_unreachable"
    retry = True


@dataclass(frozen=True, slots=True)
class Endpoint:
    """The address of a relay."""

    host: str
    port: int
    tls: bool

    @property
    def is_here(self) -> bool:
        """Whether the relay is on this computer, so that the connection does not cross a network."""
        if self.dotless_host == "localhost":
            return True
        try:
            return ip_address(self.host).is_loopback
        except ValueError:
            return False

    @property
    def dotless_host(self) -> str:
        """The host as certificates have it, without the dot of the root domain."""
        return self.host.removesuffix(".")

    @property
    def host_header(self) -> str:
        """The `Host` header, always with the port, as firmware sends it."""
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


def parse_url(url: str) -> Endpoint:
    """Parse a relay's URL: scheme, host and an optional port.

    Raises SettingsError, without repeating a part that may contain a secret.
    """
    try:
        parts = urlsplit(url.strip())
        host, port = parts.hostname, parts.port
    except ValueError as error:
        raise SettingsError(f"the URL of the relay is invalid ({error}); it must be {URL_FORMS}") from None
    if parts.scheme not in _SCHEMES or not host:
        raise SettingsError(
            f"the URL of the relay has scheme {parts.scheme!r} and host {host or ''!r};"
            f" it must be {URL_FORMS}"
        )
    if parts.path not in ("", "/") or parts.query or parts.fragment or "@" in parts.netloc:
        raise SettingsError(f"the URL of the relay has more than an address; it must be {URL_FORMS}")
    tls = _SCHEMES[parts.scheme]
    return Endpoint(host, port or (443 if tls else 80), tls)


def check_device_id(device_id: str) -> str:
    """Return a device id in upper case. Raises SettingsError if it is invalid."""
    try:
        return parse_device_id(device_id)
    except ValueError as problem:
        raise SettingsError(str(problem)) from None


async def open_stream(endpoint: Endpoint, shown: str, ssl_context: ssl.SSLContext | None) -> trio.abc.Stream:
    """Connect, with TLS if the URL asks for it. Raises RelayUnreachable."""
    try:
        tcp = await trio.open_tcp_stream(endpoint.host, endpoint.port)
    except OSError as error:
        raise RelayUnreachable(f"cannot connect to {shown} ({reasons_of(error)})") from None
    if not endpoint.tls:
        return tcp
    context = ssl_context or ssl.create_default_context()
    tls = trio.SSLStream(tcp, context, server_hostname=endpoint.dotless_host, https_compatible=True)
    try:
        await tls.do_handshake()
    except BaseException as error:
        await trio.aclose_forcefully(tls)
        if isinstance(error, trio.BrokenResourceError):
            why = error.__cause__ or "the connection was lost"
            raise RelayUnreachable(f"no TLS with {shown}: {why}") from None
        raise
    return tls


def reasons_of(error: OSError) -> str:
    """Return why the connection failed, once for all addresses that were tried, without the addresses."""
    tried = error.__cause__.exceptions if isinstance(error.__cause__, ExceptionGroup) else (error,)
    reasons = {
        os.strerror(each.errno)
        if isinstance(each, OSError) and each.errno and not isinstance(each, socket.gaierror)
        else getattr(each, "strerror", None) or str(each): None
        for each in tried
    }
    return ", ".join(reasons)

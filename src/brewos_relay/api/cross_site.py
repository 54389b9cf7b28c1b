"""Requests of foreign pages that change something: refused, unless the page's origin is configured.

A browser sends such a request for any page that a visitor opens, although the page cannot read the answer.
Programs and machines send none of these headers.
"""

from collections.abc import Collection
from typing import Final

from quart import Request

from brewos_relay.api.answers import Refused
from brewos_relay.auth.caller import Caller, ProxyTrust

_READING: Final = frozenset({"GET", "HEAD", "OPTIONS"})
# A machine's call, which names its own key.
_EXEMPT: Final = frozenset({"/api/push/notify"})
# Of a page of this server, or of none, as with a bookmark.
_OWN: Final = frozenset({"same-origin", "none"})


class CrossSite:
    """Checks `Sec-Fetch-Site` and `Origin` (Fetch Metadata, RFC 6454)."""

    def __init__(self, *, proxy_trust: ProxyTrust, allowed_origins: Collection[str]) -> None:
        self._proxy_trust = proxy_trust
        self._allowed = allowed_origins

    def check(self, request: Request, caller: Caller) -> None:
        """Raise Refused (403) for a request of a foreign page."""
        if request.method in _READING or request.path in _EXEMPT:
            return
        site, origin = request.headers.get("Sec-Fetch-Site"), request.headers.get("Origin")
        # Browsers that name the site know it. Others send an origin alone, as do all of them without TLS.
        if site in _OWN or (site is None and origin is None):
            return
        if origin is None or not self._proxy_trust.origin_allowed(origin, caller, self._allowed):
            raise Refused(
                "This request comes from a page of another site. Add its origin to "
                "BREWOS_RELAY_ALLOWED_ORIGINS to allow that.",
                status=403,
                reason="origin",
            )

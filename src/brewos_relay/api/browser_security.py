"""Protection of browsers: security headers, and the check of cross-site requests."""

from collections.abc import Collection
from typing import Final

from quart import Request, Response

from brewos_relay.api.payloads import Refused
from brewos_relay.auth.proxy_trust import Caller, ProxyTrust

_HSTS: Final = f"max-age={180 * 24 * 3600}"
_FONT_STYLES: Final = "https://fonts.googleapis.com"
_FONT_FILES: Final = "https://fonts.gstatic.com"
_GOOGLE: Final = "https://accounts.google.com"
_GOOGLE_PICTURES: Final = "https://*.googleusercontent.com"
_FACEBOOK_SCRIPT: Final = "https://connect.facebook.net"
_FACEBOOK: Final = "https://*.facebook.com"
_FACEBOOK_PICTURES: Final = ("https://platform-lookaside.fbsbx.com", "https://*.fbcdn.net")

_NOTHING: Final = "default-src 'none'; frame-ancestors 'none'"

_OWN_PAGES: Final = "; ".join(
    [
        "default-src 'none'",
        "script-src 'self'",
        "style-src 'self'",
        "img-src 'self' data:",
        "connect-src 'self'",
        # Forms are sent by script; without it, nothing that was typed may end up in an address.
        "form-action 'none'",
        "base-uri 'none'",
        "frame-ancestors 'none'",
        "require-trusted-types-for 'script'",
    ]
)


class SecurityHeaders:
    """Completes the headers of every answer.

    `google` and `facebook` say whether people can sign in with those: only then is a built app let load what
    that needs. `hsts` lets browsers insist on TLS with a certificate that they know: they would keep people
    out whose certificate vouches for itself.
    """

    def __init__(self, *, google: bool, facebook: bool, hsts: bool = True) -> None:
        self._hsts = hsts
        self._app_policy = _app_policy(google=google, facebook=facebook)
        # A window that a sign-in opens has to tell the page that opened it.
        self._opener = "same-origin-allow-popups" if google or facebook else "same-origin"

    def complete(self, response: Response, *, part: str | None, secure: bool, is_api: bool) -> Response:
        """Add the headers; `part` is the name of the blueprint that answered, `secure` whether over TLS."""
        headers = response.headers
        headers["X-Content-Type-Options"] = "nosniff"
        headers["X-Frame-Options"] = "DENY"
        headers["Cross-Origin-Opener-Policy"] = self._opener
        headers["Permissions-Policy"] = "geolocation=(), microphone=(), payment=(), usb=()"
        # An address can have a claim token in it; but a sign-in wants to know the site that it is for.
        headers["Referrer-Policy"] = "strict-origin-when-cross-origin" if part == "web" else "no-referrer"
        headers["Content-Security-Policy"] = {"web": self._app_policy, "console": _OWN_PAGES}.get(
            part or "", _NOTHING
        )
        if secure and self._hsts:
            headers["Strict-Transport-Security"] = _HSTS
        if is_api:
            # A service worker that caches an answer in spite of no-store must not give it to somebody else.
            headers["Cache-Control"] = "no-store"
            headers["Vary"] = "Authorization"
        return response


def _app_policy(*, google: bool, facebook: bool) -> str:
    """Write the policy of a built web app.

    What it shows of other hosts is fetched by its service worker, and for that connect-src counts.
    """
    sign_in = [_GOOGLE] * google + [_FACEBOOK] * facebook
    scripts = [_GOOGLE] * google + [_FACEBOOK_SCRIPT] * facebook
    pictures = [_GOOGLE_PICTURES] * google + [*_FACEBOOK_PICTURES] * facebook
    rules = {
        "default-src": ["'self'"],
        "script-src": ["'self'", *scripts],
        "style-src": ["'self'", "'unsafe-inline'", _FONT_STYLES, *[_GOOGLE] * google],
        "font-src": ["'self'", "data:", _FONT_FILES],
        "img-src": ["'self'", "data:", "blob:", *pictures],
        "connect-src": ["'self'", "wss:", _FONT_STYLES, _FONT_FILES, *scripts, *sign_in, *pictures],
        "frame-src": sign_in or ["'none'"],
        "object-src": ["'none'"],
        "base-uri": ["'self'"],
        "form-action": ["'self'"],
        "frame-ancestors": ["'none'"],
    }
    return "; ".join(f"{name} {' '.join(dict.fromkeys(sources))}" for name, sources in rules.items())


_READING: Final = frozenset({"GET", "HEAD", "OPTIONS"})
# A machine's call, which names its own key.
_EXEMPT: Final = frozenset({"/api/push/notify"})
# Of a page of this server, or of none, as with a bookmark.
_OWN: Final = frozenset({"same-origin", "none"})


class CrossSiteCheck:
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

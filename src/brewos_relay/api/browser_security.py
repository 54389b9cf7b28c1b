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
        "manifest-src 'self'",
        # Scripts send the forms. If they fail, the browser must not put the input into a URL.
        "form-action 'none'",
        "base-uri 'none'",
        "frame-ancestors 'none'",
        "require-trusted-types-for 'script'",
    ]
)


class SecurityHeaders:
    """Completes the headers of every answer.

    With `google` or `facebook`, a built web app may load the scripts of that sign-in. `hsts` makes browsers
    insist on a trusted certificate. Leave it out with a self-signed one, or browsers lock users out.
    """

    def __init__(self, *, google: bool, facebook: bool, hsts: bool = True) -> None:
        self._hsts = hsts
        self._app_policy = _app_policy(google=google, facebook=facebook)
        # The popup of a sign-in reports to the page that opened it.
        self._opener = "same-origin-allow-popups" if google or facebook else "same-origin"

    def complete(self, response: Response, *, part: str | None, secure: bool, is_api: bool) -> Response:
        """Add the headers. `part` is the name of the blueprint that answered; `secure` is true over TLS."""
        headers = response.headers
        headers["X-Content-Type-Options"] = "nosniff"
        headers["X-Frame-Options"] = "DENY"
        headers["Cross-Origin-Opener-Policy"] = self._opener
        headers["Permissions-Policy"] = "geolocation=(), microphone=(), payment=(), usb=()"
        # A URL may contain a pairing token. Sign-in providers need the origin, though.
        headers["Referrer-Policy"] = "strict-origin-when-cross-origin" if part == "web" else "no-referrer"
        headers["Content-Security-Policy"] = {"web": self._app_policy, "console": _OWN_PAGES}.get(
            part or "", _NOTHING
        )
        if secure and self._hsts:
            headers["Strict-Transport-Security"] = _HSTS
        if is_api:
            # A service worker that caches in spite of no-store must not serve it to another user.
            headers["Cache-Control"] = "no-store"
            headers.setdefault("Vary", "Authorization")
        return response


def _app_policy(*, google: bool, facebook: bool) -> str:
    """Write the Content-Security-Policy of a built web app.

    Its service worker fetches pictures and fonts, so connect-src lists their hosts too.
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
# Machines call this with their own key.
_EXEMPT: Final = frozenset({"/api/push/notify"})
# From a page of this server, or from no page, like a bookmark.
_OWN: Final = frozenset({"same-origin", "none"})


class CrossSiteCheck:
    """Refuses requests from pages of other sites that change something, except from configured origins.

    Any page that a user opens can make the browser send such requests, although the page cannot read the
    answers. The check reads `Sec-Fetch-Site` and `Origin` (Fetch Metadata, RFC 6454); programs and machines
    send neither.
    """

    def __init__(self, *, proxy_trust: ProxyTrust, allowed_origins: Collection[str]) -> None:
        self._proxy_trust = proxy_trust
        self._allowed = allowed_origins

    def check(self, request: Request, caller: Caller) -> None:
        """Raise Refused (403) for a request from a page of another site."""
        if request.method in _READING or request.path in _EXEMPT:
            return
        site, origin = request.headers.get("Sec-Fetch-Site"), request.headers.get("Origin")
        # Old browsers send only Origin. Without TLS, all browsers do.
        if site in _OWN or (site is None and origin is None):
            return
        if origin is None or not self._proxy_trust.origin_allowed(origin, caller, self._allowed):
            raise Refused(
                "This request comes from a page of another site. Add its origin to "
                "BREWOS_RELAY_ALLOWED_ORIGINS to allow that.",
                status=403,
                reason="origin",
            )

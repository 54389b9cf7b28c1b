"""Headers that tell browsers what an answer may do, and what may be done with it."""

from typing import Final

from quart import Response

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


class HeaderRules:
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

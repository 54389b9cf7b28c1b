"""Redaction: removes secrets from log lines, just before they are written."""

import json
import re
from collections.abc import Iterable, Iterator
from typing import Final
from urllib.parse import quote, unquote

HIDDEN: Final = "[hidden]"

_MIN_SECRET_CHARS: Final = 6
"""Shorter secrets would match parts of words."""
# Each expression takes linear time for every text.
# Values after names like these: `key=…`, `"token": "…"`, `Authorization: Bearer …`.
_NAMES: Final = ("key", "token", "secret", "password", "passwd", "authorization", "credential", "code")
_NAMED: Final = re.compile(
    rf"(?ix) ({'|'.join(_NAMES)})"
    r"""(\\?["']?\s{0,3}[=:]\s{0,3}\\?["']?)
    # In JSON, only strings: secrets are strings, never numbers or other values.
    (?! (?:(?<=":)|(?<=":\ )) [\[{]* (?:["\]}]|(?:-?\d[\d.e+-]*|true|false|null)(?:[\s,\]}\\]|$)) )
    (?:(?:bearer|basic)\s{1,3})?
    (?!\d{1,5}\b)([^\s"'&,;<>\\]{6,})"""
)
_BEARER: Final = re.compile(r"(?i)\b(bearer|basic)\s{1,3}[A-Za-z0-9._~+/=-]{6,}")
_JWT: Final = re.compile(r"(?<![A-Za-z0-9_-])eyJ[A-Za-z0-9_-]+\.[A-Za-z0-9_-]*(?:\.[A-Za-z0-9_-]*)?")
_QUERY: Final = re.compile(r"""\?[^\s"'<>\\=?]*=[^\s"'<>\\]*""")
_URL_PASSWORD: Final = re.compile(r"(://[^\s:/@]*):[^\s/@]+@")
# Random keys and tokens of this relay: unlike words, they mix letters and digits.
_RANDOM: Final = re.compile(
    r"(?<![A-Za-z0-9_-])(?=[A-Za-z0-9_-]{32})(?=[a-z_-]*[A-Z0-9])(?=[^0-9]*[0-9])[A-Za-z0-9_-]+"
)


class Redaction:
    """Removes known secrets from texts, and everything in the form of a secret."""

    def __init__(self, secrets: Iterable[str] = ()) -> None:
        known = [secret for secret in secrets if len(secret) >= _MIN_SECRET_CHARS]
        forms = {form for secret in known for form in _forms(secret) if len(form) >= _MIN_SECRET_CHARS}
        self._known = sorted(forms, key=len, reverse=True)

    def __call__(self, text: str) -> str:
        """Replace secrets and query strings in a text by `[hidden]`."""
        for secret in self._known:
            text = text.replace(secret, HIDDEN)
        text = _QUERY.sub(f"?{HIDDEN}", text)
        text = _URL_PASSWORD.sub(rf"\1:{HIDDEN}@", text)
        if "eyJ" in text:
            text = _JWT.sub(HIDDEN, text)
        # Most lines contain none of these names. This check takes a tenth of the time of the expressions.
        folded = text.casefold()
        if "bearer" in folded or "basic" in folded:
            text = _BEARER.sub(rf"\1 {HIDDEN}", text)
        if any(name in folded for name in _NAMES):
            text = _NAMED.sub(rf"\1\2{HIDDEN}", text)
        return _RANDOM.sub(HIDDEN, text)


def _forms(secret: str) -> Iterator[str]:
    """List the forms that a secret may have in a log line: unchanged, escaped, URL-encoded or decoded."""
    plain = unquote(secret)
    for text in (secret, plain):
        yield text
        yield quote(text, safe="")
        yield repr(text)[1:-1]
        for all_ascii in (False, True):
            written = json.dumps(text, ensure_ascii=all_ascii)[1:-1]
            yield written
            # A string within a string, as in a traceback.
            yield json.dumps(written, ensure_ascii=all_ascii)[1:-1]
            yield json.dumps(repr(text)[1:-1], ensure_ascii=all_ascii)[1:-1]

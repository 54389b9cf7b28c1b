"""The last filter before anything is logged: what looks like a secret is taken out, whoever wrote it."""

import json
import re
from collections.abc import Iterable, Iterator
from typing import Final
from urllib.parse import quote, unquote

HIDDEN: Final = "[hidden]"

_MIN_SECRET_CHARS: Final = 6
"""Shorter texts would be found in words."""
# None of these looks at a text more than a few times, however it is made.
# What a name like this introduces: `key=…`, `"token": "…"`, `Authorization: Bearer …`.
_NAMES: Final = ("key", "token", "secret", "password", "passwd", "authorization", "credential", "code")
_NAMED: Final = re.compile(
    rf"(?ix) ({'|'.join(_NAMES)})"
    r"""(\\?["']?\s{0,3}[=:]\s{0,3}\\?["']?)
    # No number of JSON, nor any other value of it but a text: what is a secret is a text.
    (?! (?:(?<=":)|(?<=":\ )) [\[{]* (?:["\]}]|(?:-?\d[\d.e+-]*|true|false|null)(?:[\s,\]}\\]|$)) )
    (?:(?:bearer|basic)\s{1,3})?
    (?!\d{1,5}\b)([^\s"'&,;<>\\]{6,})"""
)
_BEARER: Final = re.compile(r"(?i)\b(bearer|basic)\s{1,3}[A-Za-z0-9._~+/=-]{6,}")
_JWT: Final = re.compile(r"(?<![A-Za-z0-9_-])eyJ[A-Za-z0-9_-]+\.[A-Za-z0-9_-]*(?:\.[A-Za-z0-9_-]*)?")
_QUERY: Final = re.compile(r"""\?[^\s"'<>\\=?]*=[^\s"'<>\\]*""")
_URL_PASSWORD: Final = re.compile(r"(://[^\s:/@]*):[^\s/@]+@")
# Keys and tokens of ours are random, in letters and digits: no word of a language is.
_RANDOM: Final = re.compile(
    r"(?<![A-Za-z0-9_-])(?=[A-Za-z0-9_-]{32})(?=[a-z_-]*[A-Z0-9])(?=[^0-9]*[0-9])[A-Za-z0-9_-]+"
)


class Redaction:
    """Takes secrets out of texts: those that are known, and whatever has the form of one."""

    def __init__(self, secrets: Iterable[str] = ()) -> None:
        known = [secret for secret in secrets if len(secret) >= _MIN_SECRET_CHARS]
        forms = {form for secret in known for form in _forms(secret) if len(form) >= _MIN_SECRET_CHARS}
        self._known = sorted(forms, key=len, reverse=True)

    def __call__(self, text: str) -> str:
        """Give the text with `[hidden]` in the place of secrets, and without query strings."""
        for secret in self._known:
            text = text.replace(secret, HIDDEN)
        text = _QUERY.sub(f"?{HIDDEN}", text)
        text = _URL_PASSWORD.sub(rf"\1:{HIDDEN}@", text)
        if "eyJ" in text:
            text = _JWT.sub(HIDDEN, text)
        # Most lines name nothing of that kind, and to see that takes a tenth of what the expressions do.
        folded = text.casefold()
        if "bearer" in folded or "basic" in folded:
            text = _BEARER.sub(rf"\1 {HIDDEN}", text)
        if any(name in folded for name in _NAMES):
            text = _NAMED.sub(rf"\1\2{HIDDEN}", text)
        return _RANDOM.sub(HIDDEN, text)


def _forms(secret: str) -> Iterator[str]:
    """Give all that a text may have become before it is logged: as it is, escaped, and in or out of a URL."""
    plain = unquote(secret)
    for text in (secret, plain):
        yield text
        yield quote(text, safe="")
        yield repr(text)[1:-1]
        for all_ascii in (False, True):
            written = json.dumps(text, ensure_ascii=all_ascii)[1:-1]
            yield written
            yield json.dumps(written, ensure_ascii=all_ascii)[1:-1]  # a text in a text, as in a traceback
            yield json.dumps(repr(text)[1:-1], ensure_ascii=all_ascii)[1:-1]

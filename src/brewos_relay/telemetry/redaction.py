"""The last filter before anything is logged: what looks like a secret is taken out, whoever wrote it."""

import re
from collections.abc import Iterable
from typing import Final

HIDDEN: Final = "[hidden]"

_MIN_SECRET_CHARS: Final = 6
"""Shorter texts would be found in words."""
# None of these looks at a text more than a few times, however it is made.
# What a name like this introduces: `key=…`, `"token": "…"`, `Authorization: Bearer …`.
_NAMED: Final = re.compile(
    r"""(?ix)
    (key|token|secret|password|passwd|authorization|credential|code)
    (\\?["']?\s{0,3}[=:]\s{0,3}\\?["']?)
    (?:(?:bearer|basic)\s{1,3})?
    (?!\d{1,5}\b)([^\s"'&,;<>\\]{6,})"""
)
_BEARER: Final = re.compile(r"(?i)\b(bearer|basic)\s{1,3}[A-Za-z0-9._~+/=-]{6,}")
_JWT: Final = re.compile(r"(?<![A-Za-z0-9_-])eyJ[A-Za-z0-9_-]+\.[A-Za-z0-9_-]*(?:\.[A-Za-z0-9_-]*)?")
_QUERY: Final = re.compile(r"""\?[^\s"'<>\\=?]*=[^\s"'<>\\]*""")
_URL_PASSWORD: Final = re.compile(r"(://[^\s:/@]*):[^\s/@]+@")
# Keys and tokens of ours are random, in letters and digits: no word of a language is.
_RANDOM: Final = re.compile(
    r"(?<![A-Za-z0-9_-])(?=[a-z_-]*[A-Z0-9])(?=[^0-9]*[0-9])[A-Za-z0-9_-]{32,}(?![A-Za-z0-9_-])"
)


class Redaction:
    """Takes secrets out of texts: those that are known, and whatever has the form of one."""

    def __init__(self, secrets: Iterable[str] = ()) -> None:
        known = sorted(
            {secret for secret in secrets if len(secret) >= _MIN_SECRET_CHARS}, key=len, reverse=True
        )
        self._known = re.compile("|".join(map(re.escape, known))) if known else None

    def __call__(self, text: str) -> str:
        """Give the text with `[hidden]` in the place of secrets, and without query strings."""
        if self._known is not None:
            text = self._known.sub(HIDDEN, text)
        text = _QUERY.sub(f"?{HIDDEN}", text)
        text = _URL_PASSWORD.sub(rf"\1:{HIDDEN}@", text)
        text = _JWT.sub(HIDDEN, text)
        text = _BEARER.sub(rf"\1 {HIDDEN}", text)
        text = _NAMED.sub(rf"\1\2{HIDDEN}", text)
        return _RANDOM.sub(HIDDEN, text)

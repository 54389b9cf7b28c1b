"""Texts from users and peers: which characters a name may have, and how a text is made printable.

A name may have every character that people write with: joiners in emoji and Persian, spaces of any kind, and
characters that are newer than Python's tables. So the rules list the refused characters.
"""

import re
from typing import Final
from unicodedata import category, east_asian_width

USER_ID_CHARS: Final = 256
EMAIL_CHARS: Final = 320
NAME_CHARS: Final = 100
"""The longest user id, e-mail address, and name of a user, device or token."""

_BREAKS: Final = "\t-\r\x1c-\x1f\x85\u2028\u2029"
"""Characters that end a line or count as a space."""

_REFUSED: Final = re.compile(
    "[\x00-\x1f\x7f-\x9f"  # control characters
    "\u2028\u2029"  # line and paragraph separators
    "\u202a-\u202e\u2066-\u2069"  # embeddings, overrides and isolates: they would reorder the text around
    "\ud800-\udfff"  # surrogates: UTF-8 has no form for them
    "\ufdd0-\ufdef"  # noncharacters, like those below
    + "".join(map(chr, (plane << 16 | last for plane in range(17) for last in (0xFFFE, 0xFFFF))))
    + "]"
)
_INVISIBLE: Final = re.compile(
    r"[\s\xad\u034f\u061c\u115f\u1160\u17b4\u17b5\u180b-\u180f\u200b-\u200f\u2060-\u206f\u2800\u3164"
    "\ufe00-\ufe0f\ufeff\uffa0\ufff0-\ufffb\U0001bca0-\U0001bca3\U0001d173-\U0001d17a\U000e0000-\U000e0fff]"
)
"""Spaces, the code points that Unicode calls default ignorable, and a Braille pattern without dots."""

_BREAK: Final = re.compile(f"[{_BREAKS}]")
_SPACES: Final = re.compile(r"\s{2,}")
_JOINER: Final = "\u200d"
# Code points that belong to the one before them: joiners, the skin tones of emoji, and the tags of a flag.
# The other ones are marks (category M).
_EXTENDS: Final = re.compile("[\u200c\u200d\U0001f3fb-\U0001f3ff\U000e0020-\U000e007f]")
_REGIONAL: Final = re.compile("[\U0001f1e6-\U0001f1ff]+$")
"""Two of these letters make a flag."""

_WIDE: Final = re.compile("[\U0001f300-\U0001faff]")


def is_showable(text: str) -> bool:
    """Whether a text can be stored, and shown on one line without changing the text around it."""
    return _REFUSED.search(text) is None


def is_name(text: str, *, longest_chars: int) -> bool:
    """Whether a text can be a name: printable, with a visible character, and not longer than this."""
    return len(text) <= longest_chars and is_showable(text) and bool(_INVISIBLE.sub("", text))


def is_identifier(text: str, *, longest_chars: int) -> bool:
    """Whether a text can be an id or an address: the rule is stricter, so that no two of them look alike."""
    return 0 < len(text) <= longest_chars and text.isprintable()


def showable(text: str, *, instead: str = "") -> str:
    """Replace each character that cannot be shown by `instead`."""
    return _REFUSED.sub(instead, text)


def one_line(text: str, *, longest_chars: int = 300) -> str:
    """Make a text from outside fit for one line of a terminal or log: without control characters, and cut."""
    return showable(text[:longest_chars], instead=" ").strip()


def clean_name(text: str, *, longest_chars: int) -> str | None:
    """Make a name from a text: one line, without refused characters, cut; None if nothing visible is left."""
    text = _SPACES.sub(" ", showable(_BREAK.sub(" ", text))).strip()
    text = _cut(text, longest_chars).strip()
    return text if is_name(text, longest_chars=longest_chars) else None


def _cut(text: str, longest_chars: int) -> str:
    """Cut a text between two visible characters, unless one of them is longer than the text may be."""
    if len(text) <= longest_chars:
        return text
    end = longest_chars
    while end > 0 and _is_inside(text, end):
        end -= 1
    return text[: end or longest_chars]


def _is_inside(text: str, at: int) -> bool:
    """Whether a position is inside a visible character."""
    after, before = text[at], text[at - 1]
    if before == _JOINER or _EXTENDS.match(after) or category(after).startswith("M"):
        return True
    letters = _REGIONAL.search(text, 0, at)
    return letters is not None and len(letters[0]) % 2 == 1 and _REGIONAL.match(after) is not None


def columns(text: str) -> int:
    """Return how many columns a text takes in a terminal."""
    count = 0
    before = ""
    for char in text:
        if before != _JOINER and not _EXTENDS.match(char) and category(char) not in ("Mn", "Me", "Cf"):
            count += 2 if east_asian_width(char) in "WF" or _WIDE.match(char) else 1
        before = char
    return count

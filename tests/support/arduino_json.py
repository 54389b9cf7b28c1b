"""A reading model of ArduinoJson 6 and 7, the parser of machines: more lenient than JSON, and with C's texts.

It takes single quotes and keys without quotes, takes control characters as they are, stops after the
first value, ends every text at a NUL, and gives up at the eleventh level and at numbers of 64
characters. Of a key that comes twice it takes the last value, or the first if it is asked to.
"""

import re
from typing import Any, Final

MOST_LEVELS: Final = 10
MOST_NUMBER_CHARS: Final = 63
_SPACE: Final = " \t\r\n"
_ESCAPES: Final = {"b": "\b", "f": "\f", "n": "\n", "r": "\r", "t": "\t"}
_BARE: Final = re.compile(r"[0-9A-Z_a-z`^]+")
_NUMBER: Final = re.compile(r"[0-9+\-.eE]+")
_LITERALS: Final = {"true": True, "false": False, "null": None}


class Unreadable(Exception):
    """A machine ignores this text."""


def read_message(payload: bytes, *, first_wins: bool = False) -> dict[str, Any] | None:
    """Read a message as a machine does; None if it ignores it."""
    reader = _Reader(payload.decode(), first_wins=first_wins)
    try:
        content = reader.value(0)
    except Unreadable:
        return None
    return content if isinstance(content, dict) else None


class _Reader:
    def __init__(self, text: str, *, first_wins: bool) -> None:
        self._text = text.partition("\0")[0]
        self._at = 0
        self._first_wins = first_wins

    def value(self, level: int) -> Any:
        match self._next():
            case "{" | "[" if level >= MOST_LEVELS:
                raise Unreadable
            case "{":
                return self._members(level + 1)
            case "[":
                return self._elements(level + 1)
            case '"' | "'":
                return self._quoted()
        for word, value in _LITERALS.items():
            if self._text.startswith(word, self._at):
                self._at += len(word)
                return value
        number = self._run(_NUMBER)
        if len(number) > MOST_NUMBER_CHARS:
            raise Unreadable
        try:
            return int(number) if re.fullmatch(r"[+-]?\d+", number) else float(number)
        except ValueError:
            raise Unreadable from None

    def _next(self) -> str:
        """Skip blanks and look at what follows; nothing at the end."""
        while self._at < len(self._text) and self._text[self._at] in _SPACE:
            self._at += 1
        return self._text[self._at : self._at + 1]

    def _take(self, *expected: str) -> str:
        found = self._next()
        if found not in expected:
            raise Unreadable
        self._at += 1
        return found

    def _run(self, pattern: re.Pattern[str]) -> str:
        found = pattern.match(self._text, self._at)
        if found is None:
            raise Unreadable
        self._at = found.end()
        return found[0]

    def _members(self, level: int) -> dict[str, Any]:
        content: dict[str, Any] = {}
        self._take("{")
        if self._next() == "}":
            self._take("}")
            return content
        while True:
            key = self._quoted() if self._next() in ('"', "'") else self._run(_BARE)
            self._take(":")
            value = self.value(level)
            if not (self._first_wins and key in content):
                content[key] = value
            if self._take(",", "}") == "}":
                return content

    def _elements(self, level: int) -> list[Any]:
        content: list[Any] = []
        self._take("[")
        if self._next() == "]":
            self._take("]")
            return content
        while True:
            content.append(self.value(level))
            if self._take(",", "]") == "]":
                return content

    def _quoted(self) -> str:
        quote = self._take('"', "'")
        units: list[str] = []
        while True:
            char = self._char()
            if char == quote:
                break
            if char == "\\":
                char = self._char()
                if char == "u":
                    char = chr(self._hex4())
                elif char in _ESCAPES:
                    char = _ESCAPES[char]
                elif char not in "\"'/\\":
                    raise Unreadable
            units.append(char)
        text = "".join(units).encode("utf-16", "surrogatepass").decode("utf-16", "replace")
        return text.partition("\0")[0]

    def _char(self) -> str:
        if self._at >= len(self._text):
            raise Unreadable
        self._at += 1
        return self._text[self._at - 1]

    def _hex4(self) -> int:
        digits = self._text[self._at : self._at + 4]
        if not re.fullmatch(r"[0-9A-Fa-f]{4}", digits):
            raise Unreadable
        self._at += 4
        return int(digits, 16)

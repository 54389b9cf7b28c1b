"""Changes to the text of a `.env` file, which keep all other lines."""

import re
from collections.abc import Mapping
from typing import Final

_PLAIN: Final = re.compile(r"[A-Za-z0-9_./:@,+%=-]*")
_HEAD: Final = "# Settings of brewos-relay. docs/reference/settings.md explains each of them.\n"


def with_settings(text: str, values: Mapping[str, str]) -> str:
    """Set variables in the text of a `.env`.

    A line that sets the variable is replaced, otherwise a comment such as `# PORT=3001`. Other variables are
    added at the end. Raises ValueError for a value that a line cannot contain.
    """
    text = text or _HEAD
    for variable, value in values.items():
        line = f"{variable}={_quoted(value)}"
        for start in (r"(?:export[ \t]+)?", r"#[ \t]*"):
            # The last line that sets a variable takes effect.
            found = list(
                re.finditer(rf"^[ \t]*{start}{re.escape(variable)}[ \t]*=[^\r\n]*", text, re.MULTILINE)
            )
            if found:
                text = f"{text[: found[-1].start()]}{line}{text[found[-1].end() :]}"
                break
        else:
            text = f"{text}{'' if text.endswith(chr(10)) else chr(10)}{line}\n"
    return text


def _quoted(value: str) -> str:
    if not value.isprintable():
        raise ValueError("it must consist of printable characters")
    if _PLAIN.fullmatch(value):
        return value
    escaped = value.replace("\\", "\\\\").replace("'", "\\'")
    return f"'{escaped}'"

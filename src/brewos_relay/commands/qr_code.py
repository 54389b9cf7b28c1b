"""QR codes as text, for terminals."""

from typing import TextIO

import segno

_COLORS = "\x1b[30;107m"  # black on white: cameras expect that, whatever the colours of the terminal are
_NO_COLORS = "\x1b[0m"


def can_print_qr(stream: TextIO) -> bool:
    """Tell whether a stream has the characters of a QR code."""
    try:
        "█▀▄".encode(stream.encoding or "ascii")
    except (UnicodeEncodeError, LookupError):
        return False
    return True


def qr_lines(text: str, *, colors: bool) -> list[str]:
    """Return the lines of a QR code, with two modules in each character.

    Without `colors`, the light modules are blocks, as most terminals are dark.
    """
    code = segno.make(text, micro=False, error="l", boost_error=False)
    rows = [[bool(module) == colors for module in row] for row in code.matrix_iter(border=1)]
    rows.append([not colors] * len(rows[0]))  # the last line has one row only
    blocks = {(True, True): "█", (True, False): "▀", (False, True): "▄", (False, False): " "}
    lines = []
    for upper, lower in zip(rows[::2], rows[1::2], strict=False):
        line = "".join(blocks[pair] for pair in zip(upper, lower, strict=True))
        lines.append(f"{_COLORS} {line} {_NO_COLORS}" if colors else f"{blocks[True, True]}{line}█")
    return lines

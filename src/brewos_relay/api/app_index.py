"""The index page of a built web app, as the relay sends it: with one script of the relay in its head.

Without the script, signed-out users see the app's own sign-in screen, which may offer no way to sign in.
"""

import re
from typing import Final

ENTRY: Final = "app_entry.js"
"""The file of the console with the script."""
MOST_BYTES: Final = 1024 * 1024
"""A larger index page is sent as it is."""

_TAG: Final = f'<script src="/console/{ENTRY}"></script>'.encode()

# The beginning of a page, up to where the content of the head begins. Each tag is optional (HTML §13.1.2.4).
_ATTRIBUTES: Final = rb"(?:\s(?>[^>\"']+|\"[^\"]*\"|'[^']*')*+)?+"
_SPACE: Final = rb"(?>\s+|<!--.*?-->)*+"
_TO_HEAD: Final = re.compile(
    rb"(?:\xef\xbb\xbf)?"
    + b"".join(
        rb"(?:" + _SPACE + rb"<" + tag + _ATTRIBUTES + rb">)?" for tag in (rb"!doctype", rb"html", rb"head")
    ),
    re.DOTALL | re.IGNORECASE,
)


def with_entry_script(page: bytes) -> bytes:
    """Return an index page that loads the relay's script before every other script."""
    found = _TO_HEAD.match(page)
    at = found.end() if found is not None else 0
    return page[:at] + _TAG + page[at:]

"""E-mail addresses: their stored form, and when two addresses are the same.

Two comparisons serve two purposes:

- `email_key` finds accounts, invites and rate limits: NFKC, full case folding, IDNA. At most one account has
  an address with a given key.
- `is_same_mailbox` is stricter. It decides whether an issuer's confirmation of one address proves the other.
  Mail for `straße.example` and for `strasse.example` goes to different places, and so may mail for a Kelvin
  sign and for a K.

The key of a domain consists of A-labels after full case folding, which is the mapping of UTS #46 with
transitional processing. It does not use the codec `encodings.idna`, which implements IDNA 2003, knows only
the letters of Unicode 3.2 and raises for later ones. A label that IDNA does not allow has a key as well: the
DNS refuses it, not the relay.
"""

import re
import string
from collections.abc import Callable
from typing import Final
from unicodedata import normalize

from brewos_relay.texts import EMAIL_CHARS

_NO_ADDRESS: Final = (
    "that is not an e-mail address: it must be like ada@example.org,"
    f" without spaces and with at most {EMAIL_CHARS} characters"
)
_LOWER: Final = str.maketrans(string.ascii_uppercase, string.ascii_lowercase)
_ACE: Final = "xn--"
_DOTS: Final = re.compile("[.\u3002]")  # NFKC converts the other dots of IDNA to one of these

_NO_LABEL: Final = re.compile("[.\u3002@ ]")

# Printable code points without a glyph: Default_Ignorable_Code_Point in Unicode's DerivedCoreProperties,
# without its format characters, which `isprintable` refuses.
_IGNORED: Final = re.compile(
    "[\u034f\u115f\u1160\u17b4\u17b5\u180b-\u180d\u180f\u3164\ufe00-\ufe0f\uffa0\U000e0100-\U000e01ef]"
)


def normal_email(text: str) -> str:
    """Return the stored form of an address, with A to Z in lower case. Raises ValueError if it is invalid."""
    email = text.strip().translate(_LOWER)
    if not _is_address(email):
        raise ValueError(_NO_ADDRESS)
    email_key(email)
    return email


def email_key(address: str) -> str:
    """Return the comparison key of an address: NFKC, full case folding, and the A-labels of its domain.

    Raises ValueError if the address is invalid.
    """
    written = address.strip()
    # NFKC turns a spacing accent into a space and a combining accent. No key has a space.
    local, _, domain = fold(fold(written).replace(" ", "")).rpartition("@")
    key = f"{local}@{_domain(domain, fold)}"
    if " " in written or not _is_address(key):
        raise ValueError(_NO_ADDRESS)
    return key


def fold(text: str) -> str:
    """Fold a text, or a part of an address to search for, like `email_key` does."""
    # Unicode D146 (compatibility caseless match), without the characters that D147 (identifiers) removes.
    folded = normalize("NFKC", normalize("NFKC", normalize("NFD", text).casefold()).casefold())
    return normalize("NFKC", _IGNORED.sub("", folded))


def is_same_mailbox(one: str, other: str) -> bool:
    """Tell whether mail for one address certainly reaches the reader of the other."""
    return _mailbox(one) == _mailbox(other)


def _mailbox(address: str) -> str:
    local, _, domain = address.strip().rpartition("@")
    return f"{local.translate(_LOWER)}@{_domain(domain, _lower)}"


def _is_address(text: str) -> bool:
    local, at, domain = text.rpartition("@")
    return bool(
        local and at and domain and len(text) <= EMAIL_CHARS and text.isprintable() and " " not in text
    )


def _lower(text: str) -> str:
    return normalize("NFKC", normalize("NFKC", text).lower())


def _domain(domain: str, folded: Callable[[str], str]) -> str:
    return ".".join(_a_label(label, folded) for label in _DOTS.split(folded(domain)))


def _a_label(label: str, folded: Callable[[str], str]) -> str:
    if label.startswith(_ACE):
        try:
            written = label.removeprefix(_ACE).encode("ascii").decode("punycode")
        except UnicodeError:
            return label
        plain = folded(written)
        # The A-label of no valid label: all ASCII, or with a character that ends a label.
        if written.isascii() or plain.startswith(_ACE) or _NO_LABEL.search(plain):
            return label
        label = plain
    return label if label.isascii() else _ACE + label.encode("punycode").decode("ascii")

"""E-mail addresses: how an account's is kept, and when two addresses are the same.

Two comparisons serve two purposes:

- `email_key` is what accounts, invites and rate limits are found by: NFKC, full case folding, IDNA. At most
  one account has an address with a given key.
- `is_same_mailbox` is stricter. It decides whether an issuer's word for one address is proof for the other.
  Mail for `straße.example` and for `strasse.example` goes to different places, and so may mail for a Kelvin
  sign and for a K.

The key of a domain is made of A-labels after full case folding, which is the mapping of UTS #46 with
transitional processing. The codec `encodings.idna` is not used: it implements IDNA 2003, knows the letters of
Unicode 3.2 only and raises for later ones. A label that IDNA does not allow has a key as well: the DNS
refuses it, not the relay.
"""

import re
import string
from collections.abc import Callable
from typing import Final
from unicodedata import normalize

_EMAIL_CHARS: Final = 320
_NO_ADDRESS: Final = (
    "that is no e-mail address: it must be like ada@example.org,"
    f" without spaces and of at most {_EMAIL_CHARS} characters"
)
_LOWER: Final = str.maketrans(string.ascii_uppercase, string.ascii_lowercase)
_ACE: Final = "xn--"
_DOTS: Final = re.compile("[.\u3002]")  # the others that IDNA takes for a dot become one of these in NFKC

_NO_LABEL: Final = re.compile("[.\u3002@ ]")

# Printable code points without a glyph: Default_Ignorable_Code_Point in Unicode's DerivedCoreProperties. The
# others of that property are format characters, which `isprintable` refuses.
_IGNORED: Final = re.compile(
    "[\u034f\u115f\u1160\u17b4\u17b5\u180b-\u180d\u180f\u3164\ufe00-\ufe0f\uffa0\U000e0100-\U000e01ef]"
)


def normal_email(text: str) -> str:
    """Give an e-mail address as it is kept, A to Z in lower case; ValueError if the text is no address."""
    email = text.strip().translate(_LOWER)
    if not _is_address(email):
        raise ValueError(_NO_ADDRESS)
    email_key(email)
    return email


def email_key(address: str) -> str:
    """Give what an address is compared by: NFKC, full case folding, and the A-labels of its domain.

    ValueError if it is no address.
    """
    written = address.strip()
    # NFKC makes a space and a combining accent of an accent that stands alone. No key has a space.
    local, _, domain = fold(fold(written).replace(" ", "")).rpartition("@")
    key = f"{local}@{_domain(domain, fold)}"
    if " " in written or not _is_address(key):
        raise ValueError(_NO_ADDRESS)
    return key


def fold(text: str) -> str:
    """Fold a text, or a part of an address to search for, as `email_key` folds addresses."""
    # Unicode, D146 (compatibility caseless match), and what D147 (identifiers) leaves out besides.
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
        local and at and domain and len(text) <= _EMAIL_CHARS and text.isprintable() and " " not in text
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
        # Without a letter beyond ASCII, or with what ends a label, it is the A-label of no label.
        if written.isascii() or plain.startswith(_ACE) or _NO_LABEL.search(plain):
            return label
        label = plain
    return label if label.isascii() else _ACE + label.encode("punycode").decode("ascii")

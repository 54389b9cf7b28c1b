import unicodedata
import warnings

import idna
import pytest

from brewos_relay.registry.emails import email_key, fold, is_same_mailbox, normal_email

KEYS = {
    "Ada@Example.ORG": "ada@example.org",
    " ada@example.org ": "ada@example.org",
    "ÜNAL@example.org": "ünal@example.org",
    "Straße@example.org": "strasse@example.org",
    "\N{KELVIN SIGN}im@example.org": "kim@example.org",
    "ﬁona@example.org": "fiona@example.org",
    "ada\N{FULLWIDTH COMMERCIAL AT}example\N{IDEOGRAPHIC FULL STOP}org": "ada@example.org",
    "a\N{VARIATION SELECTOR-16}da@example.org": "ada@example.org",
    "a\N{DIAERESIS}@example.org": "ä@example.org",
    "ada@bücher.example": "ada@xn--bcher-kva.example",
    "ada@BÜCHER.example": "ada@xn--bcher-kva.example",
    "ada@XN--BCHER-KVA.example": "ada@xn--bcher-kva.example",
    "ada@straße.example": "ada@strasse.example",
    "ada@xn--strae-oqa.example": "ada@strasse.example",
    "ada@under_score.example": "ada@under_score.example",
    # A-labels of no valid label stay unchanged.
    "ada@xn--.example": "ada@xn--.example",
    "ada@xn--a-.example": "ada@xn--a-.example",
    "ada@xn--99999999999.example": "ada@xn--99999999999.example",
}


@pytest.mark.parametrize(("address", "key"), KEYS.items(), ids=KEYS)
def test_the_key_of_an_address(address: str, key: str) -> None:
    assert email_key(address) == key
    assert email_key(key) == key


def test_an_a_label_that_hides_a_separator_is_not_read() -> None:
    for hidden in (
        "a\N{FULLWIDTH COMMERCIAL AT}b",
        "a\N{IDEOGRAPHIC FULL STOP}b",
        "\N{FULLWIDTH LATIN SMALL LETTER X}n--b",
    ):
        label = "xn--" + hidden.encode("punycode").decode()
        assert email_key(f"ada@{label}.example") == f"ada@{label}.example"


@pytest.mark.parametrize(
    "address",
    ["", "ada", "@example.org", "ada@", "a b@example.org", "a\0@b", "\ufdfa" * 30 + "@b"],
)
def test_malformed_address_is_refused(address: str) -> None:
    with pytest.raises(ValueError, match="not an e-mail address"):
        email_key(address)
    with pytest.raises(ValueError, match="not an e-mail address"):
        normal_email(address)


def test_an_address_is_kept_as_it_is_written_but_for_the_case_of_a_to_z() -> None:
    assert normal_email(" Ünal@Bücher.EXAMPLE ") == "Ünal@bücher.example"


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        ("Ada@example.org", "ada@EXAMPLE.org", True),
        ("ada@bücher.example", "ada@XN--bcher-kva.example", True),
        ("ada@BÜCHER.example", "ada@bücher.example", True),
        ("ada@straße.example", "ada@strasse.example", False),
        ("\N{KELVIN SIGN}im@example.org", "kim@example.org", False),
        ("\N{FULLWIDTH LATIN SMALL LETTER A}da@example.org", "ada@example.org", False),
    ],
)
def test_which_mailboxes_are_certainly_the_same(one: str, other: str, same: bool) -> None:
    assert is_same_mailbox(one, other) is same
    assert email_key(one) == email_key(other)


def printable() -> list[str]:
    every = (chr(code) for code in range(0x80, 0x110000) if not 0xD800 <= code < 0xE000)
    return [char for char in every if char.isprintable()]


def test_folding_twice_changes_nothing() -> None:
    assert [char for char in printable() if fold(fold(char)) != fold(char)] == []


def test_domains_have_the_a_labels_of_uts_46() -> None:
    # Labels that differ under IDNA 2008 have one key on purpose: sharp s, and the final sigma.
    folded = {"ß", "ẞ", "ς"}
    different = []
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        for char in printable()[::7]:
            try:
                wanted = idna.encode(f"a{char}b", uts46=True).decode()
            except idna.IDNAError:
                continue
            if char not in folded and email_key(f"ada@a{char}b") != f"ada@{wanted}":
                different.append(unicodedata.name(char, hex(ord(char))))
    assert different == []

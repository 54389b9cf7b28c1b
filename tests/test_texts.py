import sys
from unicodedata import category

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from brewos_relay.texts import clean_name, columns, is_identifier, is_name, is_showable, one_line, showable

FAMILY = "\U0001f468\u200d\U0001f469\u200d\U0001f467"  # three people, joined
SCOTLAND = "\U0001f3f4\U000e0067\U000e0062\U000e0073\U000e0063\U000e0074\U000e007f"
FLAG = "\U0001f1e9\U0001f1ea"
ACCENTED = "e\u0301"
THUMB = "\U0001f44d\U0001f3fd"

EVERY = [chr(point) for point in range(sys.maxunicode + 1)]


@pytest.mark.parametrize(
    "name",
    [
        FAMILY,
        SCOTLAND,
        FLAG,
        THUMB,
        "Küche \u2764\ufe0f",
        "\u0645\u06cc\u200c\u062e\u0648\u0627\u0647\u0645",  # Persian, with a zero-width non-joiner
        "Caf\u00e9\u00a0Central",
        "\u53f0\u6240\u3000\u4e8c\u968e",  # an ideographic space
        "\u05d1\u05d9\u05ea\u200f",  # Hebrew, with a right-to-left mark
        "soft\u00adhyphen",
        "\U0001fae9",  # newer than the tables of Python 3.11 and 3.12
        "\U0001facd",
        "\U000323b0",
        "\u0378",  # not assigned in any table
        "\ue000",
    ],
)
def test_names_as_people_write_them_are_accepted(name: str) -> None:
    assert is_name(name, longest_chars=100)
    assert clean_name(name, longest_chars=100) == name


@pytest.mark.parametrize(
    "name",
    [
        "",
        " ",
        "\u00a0\u3000",
        "\u200b",
        "\u200d\u200c",
        "\ufeff",
        "\ufe0f",
        "\u3164",
        "\u2800",
        "\U000e0001\U000e0061",
        "a\x00b",
        "a\nb",
        "a\x1b[2Jb",
        "a\x9bb",
        "a\u2028b",
        "a\u2029b",
        "\u202eabc",
        "a\u202ab\u202c",
        "\u2066a\u2069",
        "a\ud800",
        "a\ufdd0",
        "a\uffff",
        "a\U0010ffff",
        "x" * 101,
    ],
)
def test_unprintable_and_invisible_names_are_refused(name: str) -> None:
    assert not is_name(name, longest_chars=100)


def test_the_refused_characters_do_not_depend_on_the_tables_of_python() -> None:
    refused = {char for char in EVERY if not is_showable(char)}
    control = {char for char in EVERY if category(char) in ("Cc", "Cs", "Zl", "Zp")}
    assert control <= refused
    assert len(refused - control) == 9 + 66  # characters that reorder text, and noncharacters
    for char in refused:
        assert showable(f"a{char}b") == "ab"
        assert showable(f"a{char}b", instead="?") == "a?b"
    assert all(
        is_name(char, longest_chars=1) for char in EVERY if category(char)[0] in "LNPS" and char not in HIDDEN
    )


HIDDEN = "\u115f\u1160\u3164\uffa0\u2800"
"""Letters and a symbol that are invisible."""


def test_an_identifier_has_no_character_that_cannot_be_seen() -> None:
    assert is_identifier("ada@example.org", longest_chars=20)
    for text in ("", "x" * 21, "a\u200db", "a\u00a0b", "a\nb"):
        assert not is_identifier(text, longest_chars=20)


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("  Ada \t\r\n Lovelace ", "Ada Lovelace"),
        ("Ada\u2028Lovelace", "Ada Lovelace"),
        ("\u202eAda\u202c", "Ada"),
        ("A\x00d\ud800a", "Ada"),
        ("Ada\u3000L", "Ada\u3000L"),
        ("\x00", None),
        (" \u200d ", None),
        ("", None),
    ],
)
def test_a_foreign_name_is_cleaned(text: str, name: str | None) -> None:
    assert clean_name(text, longest_chars=100) == name


@pytest.mark.parametrize(
    "last", [FAMILY, SCOTLAND, FLAG, ACCENTED, THUMB, "\u2764\ufe0f", "\u0e01\u0e33\u0e49"[:1]]
)
def test_a_name_is_cut_between_two_characters(last: str) -> None:
    for kept in range(1, len(last)):
        assert clean_name("abc" + last, longest_chars=3 + kept) == "abc"
        assert clean_name(last + last, longest_chars=len(last) + kept) == last
    assert clean_name("abc" + last + "d", longest_chars=3 + len(last)) == "abc" + last


def test_a_character_without_end_is_cut_all_the_same() -> None:
    assert clean_name("e" + "\u0301" * 200, longest_chars=100) == "e" + "\u0301" * 99
    assert clean_name(FLAG * 200, longest_chars=101) == FLAG * 50


@given(text=st.text(st.characters()), longest_chars=st.integers(1, 12))
@example(text="\ud800a", longest_chars=1)
def test_a_cleaned_name_can_be_a_name(text: str, longest_chars: int) -> None:
    name = clean_name(text, longest_chars=longest_chars)
    if name is not None:
        assert is_name(name, longest_chars=longest_chars)
        assert clean_name(name, longest_chars=longest_chars) == name
    if is_name(text.strip(), longest_chars=longest_chars) and "  " not in text:
        assert name is not None


@pytest.mark.parametrize(
    ("text", "count"),
    [("abc", 3), ("\u53f0\u6240", 4), (ACCENTED, 1), (FAMILY, 2), (THUMB, 2), ("\U0001fae9", 2), ("", 0)],
)
def test_wide_characters_take_two_columns(text: str, count: int) -> None:
    assert columns(text) == count


def test_foreign_text_is_cut_to_one_line() -> None:
    assert one_line("\x1b]0;title\x07 a\nb ") == "]0;title  a b"
    assert one_line("a\x1b[2J\nb") == "a [2J b"
    assert len(one_line("x" * 1000)) == 300
    assert len(one_line("x" * 500, longest_chars=120)) == 120

import hashlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from brewos_relay.auth.keys import (
    DEVICE_ID,
    check_key,
    generate_key,
    hash_key,
    key_matches,
    parse_device_id,
    valid_key,
)


@pytest.mark.parametrize("text", ["BRW-12AB34CD", "brw-12ab34cd", "Brw-12aB34cD"])
def test_a_device_id_is_kept_in_upper_case(text: str) -> None:
    assert parse_device_id(text) == "BRW-12AB34CD"


@pytest.mark.parametrize(
    "text",
    [
        "",
        "BRW-",
        "BRW-1234567",
        "BRW-123456789",
        "BRW-1234567G",
        "BRW12345678",
        " BRW-12345678",
        "BRW-12345678\n",
        "BRW-\uff11\uff12\uff13\uff14\uff15\uff16\uff17\uff18",
        "\ud800",
    ],
)
def test_what_is_no_device_id_is_refused_and_repeated(text: str) -> None:
    with pytest.raises(ValueError, match="must be BRW- and 8 hex digits") as caught:
        parse_device_id(text)
    assert repr(text) in str(caught.value)


def test_a_key_in_the_place_of_an_id_is_not_repeated() -> None:
    key = generate_key()
    with pytest.raises(ValueError, match="a text of 43 characters") as caught:
        parse_device_id(key)
    assert key not in str(caught.value)


@given(st.text())
def test_any_text_is_an_id_or_a_value_error(text: str) -> None:
    try:
        device_id = parse_device_id(text)
    except ValueError:
        assert DEVICE_ID.fullmatch(text) is None
    else:
        assert device_id == text.upper() == parse_device_id(device_id)


@given(st.from_regex(DEVICE_ID, fullmatch=True))
def test_every_text_of_the_form_is_an_id(text: str) -> None:
    assert len(parse_device_id(text)) == 12


def test_generated_keys_are_valid_and_differ() -> None:
    keys = {generate_key() for _ in range(100)}
    assert len(keys) == 100
    assert all(len(key) == 43 and valid_key(key) for key in keys)


@pytest.mark.parametrize("key", ["a" * 32, "Z" * 128, "-_09" * 10])
def test_valid_keys(key: str) -> None:
    assert valid_key(key)
    check_key(key)


@pytest.mark.parametrize("key", ["", "a" * 31, "a" * 129, "a" * 32 + "\n", "a" * 31 + "+", "ä" * 32])
def test_other_texts_are_no_keys(key: str) -> None:
    assert not valid_key(key)
    with pytest.raises(ValueError, match=f"the key has {len(key)} characters"):
        check_key(key)


def test_a_refused_key_is_not_repeated() -> None:
    with pytest.raises(ValueError, match="it must be") as caught:
        check_key("my-secret-key")
    assert "my-secret-key" not in str(caught.value)


def test_keys_are_hashed_with_sha256() -> None:
    key = "k" * 43
    assert hash_key(key) == hashlib.sha256(key.encode()).digest()


@given(st.text(st.characters(codec=None)))
def test_any_text_can_be_compared(key: str) -> None:
    assert key_matches(key, hash_key(key))
    assert not key_matches(key + "x", hash_key(key))


def test_no_device_matches_no_key() -> None:
    assert not key_matches(generate_key(), None)
    assert not key_matches("", None)

import hashlib

from hypothesis import given
from hypothesis import strategies as st

from brewos_relay.auth.keys import hash_key, key_matches
from brewos_relay.vocabulary import generate_key


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

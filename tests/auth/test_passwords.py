import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from brewos_relay.auth.passwords import check_password, hash_password, password_matches

PASSWORD = "correct horse battery"
PHC = hash_password(PASSWORD)


def test_a_password_matches_its_own_hash_only() -> None:
    assert password_matches(PASSWORD, PHC)
    for other in ("", "Correct horse battery", PASSWORD + " ", PASSWORD[:-1], PASSWORD + "\0"):
        assert not password_matches(other, PHC)


def test_stored_hash_is_argon2id_with_its_own_salt() -> None:
    assert PHC.startswith("$argon2id$v=19$m=19456,t=2,p=1$")
    assert hash_password(PASSWORD) != PHC
    assert PASSWORD not in PHC


def test_a_hash_with_other_parameters_still_matches() -> None:
    # "password12" with 64 KiB and one pass: older hashes may have other parameters.
    from cryptography.hazmat.primitives.kdf.argon2 import Argon2id

    kdf = Argon2id(salt=b"s" * 16, length=32, iterations=1, lanes=1, memory_cost=64)
    assert password_matches("password12", kdf.derive_phc_encoded(b"password12"))


def test_no_password_matches_a_missing_hash() -> None:
    for password in (PASSWORD, "", "\0", "A" * 200):
        assert not password_matches(password, None)


@pytest.mark.parametrize(
    "phc",
    ["", "x", "$argon2id$", "$argon2id$v=19$m=64,t=1,p=1$AAAAAAAAAAAAAAAAAAAAAA$AAAA", "$2b$12$" + "A" * 53],
)
def test_malformed_hash_matches_nothing(phc: str) -> None:
    assert not password_matches(PASSWORD, phc)


def test_comparison_takes_as_long_without_a_stored_password() -> None:
    def cost_s(password: str, phc: str | None) -> float:
        times = []
        for _ in range(5):
            began_s = time.thread_time()
            password_matches(password, phc)
            times.append(time.thread_time() - began_s)
        return min(times)

    kept = cost_s("wrong password", PHC)
    assert kept > 0.003
    # Normalising this many accents would take half a second.
    accents = "a" + "\u0315" * 8000 + "\u0300" * 8000
    for password, phc in (("wrong password", None), ("x" * 201, PHC), (accents, PHC), (accents, None)):
        assert 0.4 < cost_s(password, phc) / kept < 2.5


def test_the_length_of_a_password() -> None:
    for password in ("x" * 10, "x" * 200, "ä" * 10):
        check_password(password)
    for password, count in (("", 0), ("x" * 9, 9), ("x" * 201, 201)):
        with pytest.raises(ValueError, match=f"has {count} characters: it must have 10 to 200"):
            check_password(password)
        with pytest.raises(ValueError, match=f"has {count} characters"):
            hash_password(password)


def test_long_password_is_not_truncated_to_a_matching_one() -> None:
    phc = hash_password("x" * 200)
    assert password_matches("x" * 200, phc)
    assert not password_matches("x" * 201, phc)


def test_the_same_letters_match_however_they_are_encoded() -> None:
    phc = hash_password("caf\u00e9 au lait")
    assert password_matches("cafe\u0301 au lait", phc)
    assert not password_matches("cafe au lait", phc)


@settings(max_examples=15)
@given(st.text(st.characters(codec=None), min_size=10, max_size=30))
def test_any_text_can_be_a_password(password: str) -> None:
    assert password_matches(password, hash_password(password))

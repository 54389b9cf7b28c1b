import hashlib
import re
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from brewos_relay.auth.secrets import (
    bearer_matches,
    derive_token,
    generate_code,
    generate_salt,
    generate_secret,
    generate_secret_token,
    hash_code,
    hash_secret,
    normalise_code,
    secret_matches,
)


def test_signing_secrets_are_long_and_random() -> None:
    secrets = {generate_secret() for _ in range(50)}
    assert len(secrets) == 50
    assert all(re.fullmatch(r"[A-Za-z0-9_-]{64}", secret) for secret in secrets)


def test_tokens_are_long_and_random() -> None:
    tokens = {generate_secret_token() for _ in range(50)}
    assert len(tokens) == 50
    assert all(re.fullmatch(r"[A-Za-z0-9_-]{43}", token) for token in tokens)


def test_successor_is_derived_from_token_and_salt() -> None:
    token, salt = generate_secret_token(), generate_salt()
    successor = derive_token(token, salt)
    assert re.fullmatch(r"[A-Za-z0-9_-]{43}", successor)
    assert derive_token(token, salt) == successor
    assert len({successor, derive_token(token, generate_salt()), derive_token(successor, salt), token}) == 4
    assert derive_token("\udc80", salt)


def test_salts_are_long_and_random() -> None:
    assert {len(salt) for salt in {generate_salt() for _ in range(50)}} == {32}
    assert len({generate_salt() for _ in range(50)}) == 50


def test_secrets_are_hashed_with_sha256() -> None:
    assert hash_secret("token") == hashlib.sha256(b"token").digest()


@given(st.text(st.characters(codec=None)))
def test_any_text_can_be_compared(secret: str) -> None:
    assert secret_matches(secret, hash_secret(secret))
    assert not secret_matches(secret + "x", hash_secret(secret))


def test_no_secret_matches_a_missing_hash() -> None:
    assert not secret_matches(generate_secret_token(), None)
    assert not secret_matches("", None)


@given(st.text(st.characters(codec=None)))
def test_any_text_can_be_hashed(text: str) -> None:
    assert len(hash_secret(text)) == 32


def test_codes_are_readable_and_random() -> None:
    codes = {generate_code() for _ in range(200)}
    assert len(codes) == 200
    assert all(re.fullmatch(r"[0-9A-HJKMNP-TV-Z]{4}-[0-9A-HJKMNP-TV-Z]{4}", code) for code in codes)
    assert len(set("".join(codes))) == 33  # every character there is comes up, and the dash


@pytest.mark.parametrize(
    "typed",
    [
        "7K0M-41QX",
        "7k0m-41qx",
        "7KOM-4LQX",
        "7kom-4iqx",
        "7K0M41QX",
        " 7K0M 41QX ",
        "7K-0M-41-QX",
        "7K0M -41qx",
    ],
)
def test_a_code_is_recognised_however_it_is_typed(typed: str) -> None:
    assert normalise_code(typed) == "7K0M-41QX"


@pytest.mark.parametrize(
    "typed",
    [
        "",
        "-",
        "7K0M-41Q",
        "7K0M-41QXX",
        "7K0M-41QU",
        "7K0M-41Q!",
        "7K0M_41QX",
        "7K0M-41Qé",
        "\u0131IL0-41QX",
        "BRW-12AB34CD",
        "7K0M-41QX" + " " * 32,
        "7K0M\x0041QX",
        "\ud800" * 8,
    ],
)
def test_malformed_code_is_refused(typed: str) -> None:
    assert normalise_code(typed) is None


@given(st.text(max_size=40))
def test_a_normal_code_stays_as_it_is(text: str) -> None:
    code = normalise_code(text)
    assert code is None or normalise_code(code) == code


def test_every_generated_code_is_a_normal_one() -> None:
    for _ in range(50):
        code = generate_code()
        assert normalise_code(code) == normalise_code(code.lower().replace("-", "")) == code


def test_a_code_is_found_by_its_hash_and_guessing_is_slow() -> None:
    began_s = time.perf_counter()
    first = hash_code("7K0M-41QX")
    assert time.perf_counter() - began_s > 0.005
    assert first == hash_code("7K0M-41QX") != hash_code("7K0M-41QZ")
    assert len(first) == 32


@pytest.mark.parametrize(
    ("header", "matches"),
    [
        (None, False),
        ("", False),
        ("Bearer", False),
        ("Bearer no", False),
        ("s3cret", False),
        ("Basic s3cret", False),
        ("Bearer \udcff", False),
        ("Bearer s3cret", True),
        ("bearer  s3cret ", True),
    ],
)
def test_bearer_token_has_to_match(header: str | None, matches: bool) -> None:
    assert bearer_matches(header, "s3cret") == matches

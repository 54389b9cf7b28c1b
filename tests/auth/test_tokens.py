import base64
import hashlib
import hmac
import json
import math
import time
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from brewos_relay import settings
from brewos_relay.auth.tokens import MIN_SECRET_BYTES, Claims, TokenSigner, generate_secret
from brewos_relay.errors import TokenRejected

SECRET = "0123456789abcdef0123456789abcdef"
SIGNER = TokenSigner(SECRET)
NOW_S = int(time.time())


def encode_part(content: bytes) -> str:
    return base64.urlsafe_b64encode(content).rstrip(b"=").decode()


def make_token(
    content: object, *, header: object = None, digest: str = "sha256", secret: str = SECRET
) -> str:
    """Sign anything at all, as no library would; bytes are taken as they are."""
    parts = [
        encode_part(part if isinstance(part, bytes) else json.dumps(part).encode())
        for part in ({"alg": "HS256", "typ": "JWT"} if header is None else header, content)
    ]
    signed = ".".join(parts)
    signature = hmac.new(secret.encode(), signed.encode(), digest).digest()
    return f"{signed}.{encode_part(signature)}"


def content(**changes: Any) -> dict[str, Any]:
    return {"userId": "ada", "email": "a@b.c", "iat": NOW_S, "exp": NOW_S + 36_000, **changes}


def read_payload(token: str) -> dict[str, Any]:
    payload = token.split(".")[1]
    read: dict[str, Any] = json.loads(base64.urlsafe_b64decode(payload + "=" * (-len(payload) % 4)))
    return read


def assert_rejected(token: str, *, because: str | None = None) -> None:
    with pytest.raises(TokenRejected, match=because) as caught:
        SIGNER.verify(token)
    assert not token or token not in str(caught.value)


# Issuing


def test_a_token_carries_what_it_was_issued_for() -> None:
    token = SIGNER.issue(
        user_id="ada", email="a@b.c", devices=["brw-0000000b", "BRW-0000000A"], ttl_s=36_000, now_s=NOW_S
    )
    assert read_payload(token) == {
        "userId": "ada",
        "email": "a@b.c",
        "iat": NOW_S,
        "exp": NOW_S + 36_000,
        "devices": ["BRW-0000000A", "BRW-0000000B"],
    }
    assert SIGNER.verify(token) == Claims(
        "ada", "a@b.c", NOW_S, NOW_S + 36_000, frozenset({"BRW-0000000A", "BRW-0000000B"})
    )


def test_a_token_lives_for_a_week_unless_told_otherwise() -> None:
    claims = SIGNER.verify(SIGNER.issue(user_id="ada", email="a@b.c"))
    assert abs(claims.issued_at_s - time.time()) < 60
    assert claims.expires_at_s - claims.issued_at_s == 7 * 24 * 3600


def test_a_token_without_devices_has_no_such_claim() -> None:
    token = SIGNER.issue(user_id="ada", email="a@b.c")
    assert "devices" not in read_payload(token)
    assert SIGNER.verify(token).devices == frozenset()


def test_a_token_for_all_devices() -> None:
    token = SIGNER.issue(user_id="ada", email="a@b.c", devices="*")
    assert read_payload(token)["devices"] == "*"
    assert SIGNER.verify(token).devices == "*"


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"user_id": ""}, "userId"),
        ({"user_id": "a\nb"}, "userId"),
        ({"user_id": "\ud800"}, "userId"),
        ({"user_id": "x" * 257}, "userId"),
        ({"email": ""}, "email"),
        ({"email": "x" * 321}, "email"),
        ({"devices": ["espresso"]}, "device id"),
        ({"ttl_s": 0}, "0 s"),
        ({"ttl_s": -5}, "-5 s"),
        ({"ttl_s": 10**12}, "exp"),
        ({"now_s": -1}, "iat"),
    ],
)
def test_nothing_is_issued_that_would_not_be_accepted(changes: dict[str, Any], problem: str) -> None:
    with pytest.raises(ValueError, match=problem):
        SIGNER.issue(**{"user_id": "ada", "email": "a@b.c", **changes})


def test_a_short_secret_is_refused() -> None:
    with pytest.raises(ValueError, match="has 31 bytes; it must have 32 or more"):
        TokenSigner("x" * 31)
    TokenSigner("ä" * 16)


def test_a_generated_secret_is_long_enough_and_new_each_time() -> None:
    assert len({generate_secret() for _ in range(50)}) == 50
    TokenSigner(generate_secret())


def test_the_settings_ask_for_a_secret_of_the_same_length() -> None:
    assert settings.MIN_JWT_SECRET_BYTES == MIN_SECRET_BYTES


# Verifying: the signature


def test_a_token_of_another_library_is_accepted() -> None:
    assert SIGNER.verify(make_token(content())).user_id == "ada"


def test_another_secret() -> None:
    assert_rejected(make_token(content(), secret="x" * 32), because="another secret")


@pytest.mark.parametrize("algorithm", ["none", "None", "HS384", "RS256", "hs256", "", None, 5, [], {}])
def test_another_algorithm(algorithm: object) -> None:
    assert_rejected(make_token(content(), header={"alg": algorithm}))


def test_the_refusal_of_another_algorithm_says_which_one_it_must_be() -> None:
    assert_rejected(make_token(content(), header={"alg": "HS512"}, digest="sha512"), because="HS256")


def test_no_signature_at_all() -> None:
    header, payload, _ = make_token(content(), header={"alg": "none"}).split(".")
    assert_rejected(f"{header}.{payload}.")
    assert_rejected(f"{header}.{payload}", because="malformed")


@pytest.mark.parametrize(
    "header",
    [
        b"",
        b"[]",
        b"null",
        b"{",
        b"\xff",
        b"[" * 100_000,
        b'{"alg": ' + b"9" * 5000 + b"}",
        {},
        {"alg": "HS256", "crit": ["x"]},
        {"alg": "HS256", "crit": 5},
        {"alg": "HS256", "kid": 5},
        {"alg": "HS256", "b64": False},
    ],
)
def test_a_bad_header(header: object) -> None:
    assert_rejected(make_token(content(), header=header))


@given(st.text(st.characters(codec=None)))
def test_garbage(token: str) -> None:
    with pytest.raises(TokenRejected):
        SIGNER.verify(token)


@given(st.lists(st.binary(max_size=40), min_size=1, max_size=4))
def test_garbage_in_the_form_of_a_token(parts: list[bytes]) -> None:
    with pytest.raises(TokenRejected):
        SIGNER.verify(".".join(encode_part(part) for part in parts))


@given(st.integers(min_value=0), st.integers(0, 127))
def test_a_changed_character_never_gives_other_claims(position: int, character: int) -> None:
    token = make_token(content())
    position %= len(token)
    changed = token[:position] + chr(character) + token[position + 1 :]
    try:
        claims = SIGNER.verify(changed)
    except TokenRejected:
        pass
    else:
        # The last character of a signature has bits that mean nothing.
        assert claims == SIGNER.verify(token)


# Verifying: the claims


@pytest.mark.parametrize(
    "payload", [b"", b"[]", b"5", b"null", b"{", b"\xff\xfe", b"[" * 100_000, b"9" * 5000]
)
def test_a_signed_payload_that_is_no_object(payload: bytes) -> None:
    assert_rejected(make_token(payload), because="malformed|must be a JSON object")


@pytest.mark.parametrize("name", ["userId", "email", "iat", "exp"])
def test_a_missing_claim(name: str) -> None:
    token = make_token({key: value for key, value in content().items() if key != name})
    assert_rejected(token, because=name)


@pytest.mark.parametrize("name", ["userId", "email"])
@pytest.mark.parametrize("value", [None, "", 5, True, [], {}, "a\x00b", "x" * 400])
def test_a_claim_that_must_be_text(name: str, value: object) -> None:
    assert_rejected(make_token(content(**{name: value})), because=name)


def test_half_a_surrogate_pair() -> None:
    assert_rejected(make_token(content(userId="\ud800")), because="userId")


@pytest.mark.parametrize("name", ["iat", "exp", "nbf"])
@pytest.mark.parametrize(
    "value",
    [None, True, "1999999999", [], {}, -1, 10**12, 10**400, 1e300, math.nan, math.inf, -math.inf],
)
def test_a_claim_that_must_be_a_time(name: str, value: object) -> None:
    assert_rejected(make_token(content(**{name: value})), because=name)


def test_a_number_too_long_for_python_to_read() -> None:
    payload = json.dumps(content()).replace(str(NOW_S + 36_000), "9" * 5000)
    assert_rejected(make_token(payload.encode()), because="malformed")


def test_a_time_may_have_a_fraction() -> None:
    assert SIGNER.verify(make_token(content(exp=NOW_S + 36_000.9))).expires_at_s == NOW_S + 36_000


@pytest.mark.parametrize("value", [None, "", "BRW-00000001", 5, True, {}, [5], [["*"]], ["*"], ["BRW-1"]])
def test_a_bad_devices_claim(value: object) -> None:
    assert_rejected(make_token(content(devices=value)), because="device")


def test_device_ids_in_a_token_are_brought_to_upper_case() -> None:
    assert SIGNER.verify(make_token(content(devices=["brw-0000abcd"]))).devices == frozenset({"BRW-0000ABCD"})


def test_an_expired_token() -> None:
    assert_rejected(SIGNER.issue(user_id="a", email="b", ttl_s=10, now_s=NOW_S - 11), because="has expired")


def test_a_token_for_later() -> None:
    assert_rejected(make_token(content(nbf=NOW_S + 100_000)), because="not valid yet")
    SIGNER.verify(make_token(content(nbf=NOW_S - 1)))


def test_claims_that_are_not_known_do_not_matter() -> None:
    SIGNER.verify(make_token(content(aud="x", iss=5, sub=[], jti={})))


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda children: st.lists(children, max_size=3) | st.dictionaries(st.text(), children, max_size=3),
    max_leaves=5,
)
times = json_values | st.integers(NOW_S - 10, NOW_S + 10**6)


@given(
    st.fixed_dictionaries(
        {},
        optional={
            "userId": json_values,
            "email": json_values,
            "iat": times,
            "exp": times,
            "devices": json_values,
        },
    )
)
def test_signed_garbage_is_rejected_or_makes_sense(claimed: dict[str, Any]) -> None:
    try:
        claims = SIGNER.verify(make_token(claimed))
    except TokenRejected:
        return
    assert claims.user_id.isprintable()
    assert claims.expires_at_s > NOW_S


def test_a_signature_is_made_as_the_standard_says() -> None:
    signed, _, signature = SIGNER.issue(user_id="ada", email="a@b.c").rpartition(".")
    expected = hmac.new(SECRET.encode(), signed.encode(), hashlib.sha256).digest()
    assert signature == encode_part(expected)

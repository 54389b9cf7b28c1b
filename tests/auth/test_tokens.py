import base64
import hashlib
import hmac
import json
import math
import time
from typing import Any, get_args

import jwt
import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ed25519, rsa
from hypothesis import example, given
from hypothesis import strategies as st

from brewos_relay.auth.secrets import generate_secret
from brewos_relay.auth.signing_keys import PrivateKey, SecretKey, load_private_key
from brewos_relay.auth.tokens import MAX_TOKEN_CHARS, KeyRing, TokenClaims
from brewos_relay.errors import TokenRejected
from brewos_relay.vocabulary import Role

SECRET = "0123456789abcdef0123456789abcdef"
RING = KeyRing([SECRET])
NOW_S = int(time.time())


def encode_part(content: bytes) -> str:
    return base64.urlsafe_b64encode(content).rstrip(b"=").decode()


def make_token(
    content: object, *, header: object = None, digest: str = "sha256", secret: str = SECRET
) -> str:
    """Sign any content, even invalid content. Bytes are used unchanged."""
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
        RING.verify(token)
    assert not token or token not in str(caught.value)


def read_header(token: str) -> dict[str, Any]:
    read: dict[str, Any] = jwt.get_unverified_header(token)
    return read


def assert_rejected_by(ring: KeyRing, token: str, *, because: str | None = None) -> None:
    with pytest.raises(TokenRejected, match=because):
        ring.verify(token)


def new_rsa_key() -> rsa.RSAPrivateKey:
    return rsa.generate_private_key(public_exponent=65537, key_size=2048)


RSA = new_rsa_key()
RSA_KEY = PrivateKey(RSA)
ED_KEY = PrivateKey(ed25519.Ed25519PrivateKey.generate())


# Issuing


def test_token_contains_the_issued_claims() -> None:
    token = RING.issue(
        user_id="ada", email="a@b.c", devices=["brw-0000000b", "BRW-0000000A"], ttl_s=36_000, now_s=NOW_S
    )
    assert read_payload(token) == {
        "userId": "ada",
        "email": "a@b.c",
        "iat": NOW_S,
        "exp": NOW_S + 36_000,
        "devices": ["BRW-0000000A", "BRW-0000000B"],
    }
    assert RING.verify(token) == TokenClaims(
        "ada", "a@b.c", NOW_S, NOW_S + 36_000, frozenset({"BRW-0000000A", "BRW-0000000B"})
    )


def test_a_token_lives_for_a_week_unless_told_otherwise() -> None:
    claims = RING.verify(RING.issue(user_id="ada", email="a@b.c"))
    assert abs(claims.issued_at_s - time.time()) < 60
    assert claims.expires_at_s - claims.issued_at_s == 7 * 24 * 3600


def test_token_without_devices_has_no_devices_claim() -> None:
    token = RING.issue(user_id="ada", email="a@b.c")
    assert "devices" not in read_payload(token)
    assert RING.verify(token).devices == frozenset()


def test_a_token_for_all_devices() -> None:
    token = RING.issue(user_id="ada", email="a@b.c", devices="*")
    assert read_payload(token)["devices"] == "*"
    assert RING.verify(token).devices == "*"


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
        ({"ttl_s": -5}, "got -5"),
        ({"ttl_s": 10**12}, "exp"),
        ({"now_s": -1}, "iat"),
    ],
)
def test_invalid_claims_are_not_issued(changes: dict[str, Any], problem: str) -> None:
    with pytest.raises(ValueError, match=problem):
        RING.issue(**{"user_id": "ada", "email": "a@b.c", **changes})


def test_a_short_secret_is_refused() -> None:
    with pytest.raises(ValueError, match="has 31 bytes; it must have 32 or more"):
        KeyRing(["x" * 31])
    KeyRing(["ä" * 16])


def test_a_generated_secret_is_long_enough() -> None:
    KeyRing([generate_secret()])


# Verifying: the signature


def test_a_token_of_another_library_is_accepted() -> None:
    assert RING.verify(make_token(content())).user_id == "ada"


def test_tokens_with_a_known_header_are_read_without_parsing_it_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    ring = KeyRing([SECRET])
    ring.verify(make_token(content()))
    monkeypatch.setattr(SecretKey, "verify", lambda _key, _token: pytest.fail("it was verified again"))
    assert ring.verify(make_token(content(userId="bea"))).user_id == "bea"


@pytest.mark.parametrize("part", range(3))
def test_forged_token_with_a_known_header_is_rejected(part: int) -> None:
    ring = KeyRing([SECRET])
    ring.verify(make_token(content()))
    parts = make_token(content()).split(".")
    forged = make_token(content(userId="eve"), header={"alg": "none"}, secret=SECRET[::-1])
    parts[part] = forged.split(".")[part]
    assert_rejected_by(ring, ".".join(parts))
    for wrong in ("", parts[2][:-1], "é", "A" * 43):
        assert_rejected_by(ring, f"{make_token(content()).rpartition('.')[0]}.{wrong}")


def test_expired_token_with_a_known_header_is_rejected() -> None:
    ring = KeyRing([SECRET])
    ring.verify(make_token(content()))
    assert_rejected_by(ring, make_token(content(exp=NOW_S - 1)), because="expired")


@pytest.mark.parametrize("payload", ["e30.e30", "e3-=", "e", "e 30"])
def test_signed_payload_that_is_no_base64_is_rejected_with_a_known_header(payload: str) -> None:
    ring = KeyRing([SECRET])
    ring.verify(make_token(content()))
    signed = f"{make_token(content()).partition('.')[0]}.{payload}"
    signature = hmac.new(SECRET.encode(), signed.encode(), "sha256").digest()
    assert_rejected_by(ring, f"{signed}.{encode_part(signature)}")


def test_headers_of_verified_tokens_do_not_accumulate() -> None:
    ring = KeyRing([SECRET])
    for number in range(200):
        ring.verify(make_token(content(), header={"alg": "HS256", "n": number}))
    assert len(ring._headers) == 64


def test_token_of_another_secret_is_rejected() -> None:
    assert_rejected(make_token(content(), secret="x" * 32), because="another secret")


@pytest.mark.parametrize("algorithm", ["none", "None", "HS384", "RS256", "hs256", "", None, 5, [], {}])
def test_token_of_another_algorithm_is_rejected(algorithm: object) -> None:
    assert_rejected(make_token(content(), header={"alg": algorithm}))


def test_rejection_names_the_required_algorithm() -> None:
    assert_rejected(make_token(content(), header={"alg": "HS512"}, digest="sha512"), because="HS256")


def test_b64_extension_is_rejected_even_if_true() -> None:
    for extension in ({"crit": ["b64"], "b64": True}, {"b64": True}):
        token = make_token(content(), header={"alg": "HS256", **extension})
        assert_rejected(token, because="an unsupported extension")


def test_detached_payload_is_rejected() -> None:
    header = {"alg": "HS256", "b64": False, "crit": ["b64"]}
    assert_rejected(make_token(b"", header=header))


def test_missing_signature_is_rejected() -> None:
    header, payload, _ = make_token(content(), header={"alg": "none"}).split(".")
    assert_rejected(f"{header}.{payload}.")
    assert_rejected(f"{header}.{payload}")


@pytest.mark.parametrize(
    "header",
    [
        b"",
        b"[]",
        b"null",
        b"{",
        b"\xff",
        b"[" * 10_000,
        b'{"alg": ' + b"9" * 5000 + b"}",
        {},
        {"alg": "HS256", "crit": ["x"]},
        {"alg": "HS256", "crit": 5},
        {"alg": "HS256", "crit": ["b64"], "b64": True},
        {"alg": "HS256", "b64": True},
        {"alg": "HS256", "kid": None},
        {"alg": "HS256", "kid": 5},
        {"alg": "HS256", "kid": True},
        {"alg": "HS256", "kid": ["x"]},
        {"alg": "HS256", "kid": {}},
        {"alg": "HS256", "kid": ""},
        {"alg": "HS256", "kid": "../../dev/null"},
        {"alg": "HS256", "kid": "x' UNION SELECT 1 --"},
        {"alg": "HS256", "b64": False},
    ],
)
def test_bad_header_is_rejected(header: object) -> None:
    assert_rejected(make_token(content(), header=header))


@given(st.text(st.characters(codec=None)))
@example("\ud800")
@example("é.é.é")
def test_garbage_is_rejected(token: str) -> None:
    with pytest.raises(TokenRejected):
        RING.verify(token)


@given(st.lists(st.binary(max_size=40), min_size=1, max_size=4))
def test_garbage_in_token_form_is_rejected(parts: list[bytes]) -> None:
    with pytest.raises(TokenRejected):
        RING.verify(".".join(encode_part(part) for part in parts))


@given(st.integers(min_value=0), st.integers(0, 127))
def test_a_changed_character_never_gives_other_claims(position: int, character: int) -> None:
    token = make_token(content())
    position %= len(token)
    changed = token[:position] + chr(character) + token[position + 1 :]
    try:
        claims = RING.verify(changed)
    except TokenRejected:
        pass
    else:
        # The last character of a signature has unused bits.
        assert claims == RING.verify(token)


# Verifying: the claims


@pytest.mark.parametrize(
    "payload", [b"", b"[]", b"5", b"null", b"{", b"\xff\xfe", b"[" * 10_000, b"9" * 5000]
)
def test_signed_payload_must_be_an_object(payload: bytes) -> None:
    assert_rejected(make_token(payload), because="malformed|must be a JSON object")


@pytest.mark.parametrize("name", ["userId", "email", "iat", "exp"])
def test_missing_claim_is_rejected(name: str) -> None:
    token = make_token({key: value for key, value in content().items() if key != name})
    assert_rejected(token, because=name)


@pytest.mark.parametrize("name", ["userId", "email"])
@pytest.mark.parametrize("value", [None, "", 5, True, [], {}, "a\x00b", "x" * 400])
def test_text_claim_of_another_type_is_rejected(name: str, value: object) -> None:
    assert_rejected(make_token(content(**{name: value})), because=name)


def test_lone_surrogate_is_rejected() -> None:
    assert_rejected(make_token(content(userId="\ud800")), because="userId")


@pytest.mark.parametrize("name", ["iat", "exp", "nbf"])
@pytest.mark.parametrize(
    "value",
    [None, True, "1999999999", [], {}, -1, 10**12, 10**400, 1e300, math.nan, math.inf, -math.inf],
)
def test_invalid_time_claim_is_rejected(name: str, value: object) -> None:
    assert_rejected(make_token(content(**{name: value})), because=name)


def test_too_long_number_is_rejected() -> None:
    payload = json.dumps(content()).replace(str(NOW_S + 36_000), "9" * 5000)
    assert_rejected(make_token(payload.encode()), because="malformed")


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-32"])
def test_claims_may_have_any_encoding_of_json(encoding: str) -> None:
    payload = json.dumps(content(userId="zoë"), ensure_ascii=False).encode(encoding)
    assert RING.verify(make_token(payload)).user_id == "zoë"


def test_last_one_of_repeated_claims_counts() -> None:
    payload = json.dumps(content()).encode().replace(b"{", b'{"userId": "eve", ', 1)
    assert RING.verify(make_token(payload)).user_id == content()["userId"]


def test_time_claim_may_have_a_fraction() -> None:
    assert RING.verify(make_token(content(exp=NOW_S + 36_000.9))).expires_at_s == NOW_S + 36_000


@pytest.mark.parametrize("value", [None, "", "BRW-00000001", 5, True, {}, [5], [["*"]], ["*"], ["BRW-1"]])
def test_bad_devices_claim_is_rejected(value: object) -> None:
    assert_rejected(make_token(content(devices=value)), because="device")


def test_device_ids_in_a_token_are_brought_to_upper_case() -> None:
    assert RING.verify(make_token(content(devices=["brw-0000abcd"]))).devices == frozenset({"BRW-0000ABCD"})


def test_expired_token_is_rejected() -> None:
    assert_rejected(RING.issue(user_id="a", email="b", ttl_s=10, now_s=NOW_S - 11), because="has expired")


def test_token_that_is_not_valid_yet_is_rejected() -> None:
    assert_rejected(make_token(content(nbf=NOW_S + 100_000)), because="not valid yet")
    assert_rejected(make_token(content(nbf=int(time.time()) + 200)), because="not valid yet")
    RING.verify(make_token(content(nbf=NOW_S - 1)))


@pytest.mark.parametrize("ahead_s", [0, 1, 59])
def test_clock_of_another_service_may_be_ahead(ahead_s: int) -> None:
    RING.verify(make_token(content(nbf=NOW_S + ahead_s, iat=NOW_S + ahead_s)))


def test_unknown_claims_are_ignored() -> None:
    RING.verify(make_token(content(aud="x", iss=5, sub=[], jti={})))


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
def test_signed_garbage_is_rejected_or_valid(claimed: dict[str, Any]) -> None:
    try:
        claims = RING.verify(make_token(claimed))
    except TokenRejected:
        return
    assert claims.user_id.isprintable()
    assert claims.expires_at_s > NOW_S


def test_signature_conforms_to_rfc_7515() -> None:
    signed, _, signature = RING.issue(user_id="ada", email="a@b.c").rpartition(".")
    expected = hmac.new(SECRET.encode(), signed.encode(), hashlib.sha256).digest()
    assert signature == encode_part(expected)


def test_a_token_carries_its_session_and_its_role() -> None:
    token = RING.issue(user_id="ada", email="a@b.c", devices="*", session_id="s-1", role="viewer")
    assert read_payload(token)["sid"] == "s-1"
    assert read_payload(token)["role"] == "viewer"
    claims = RING.verify(token)
    assert (claims.session_id, claims.role) == ("s-1", "viewer")


def test_token_without_session_and_role_is_an_owner_token() -> None:
    token = RING.issue(user_id="ada", email="a@b.c")
    assert not {"sid", "role"} & set(read_payload(token))
    claims = RING.verify(token)
    assert (claims.session_id, claims.role) == (None, "owner")


@pytest.mark.parametrize("role", get_args(Role))
def test_every_role_is_read_back(role: Role) -> None:
    assert RING.verify(RING.issue(user_id="ada", email="a@b.c", role=role)).role == role


@pytest.mark.parametrize("role", [None, "", "admin", "OWNER", 5, True, [], {}, ["owner"]])
def test_bad_role_claim_is_rejected(role: object) -> None:
    assert_rejected(make_token(content(role=role)), because="role must be one of viewer, member, owner")


@pytest.mark.parametrize("session_id", [None, "", 5, True, [], {}, "a\x00b", "x" * 129])
def test_bad_session_claim_is_rejected(session_id: object) -> None:
    assert_rejected(make_token(content(sid=session_id)), because="sid")


def test_no_token_is_issued_that_is_too_long_to_be_verified() -> None:
    many = [f"BRW-{number:08X}" for number in range(1000)]
    with pytest.raises(ValueError, match="1000 devices are too many for one token"):
        RING.issue(user_id="ada", email="a@b.c", devices=many)
    assert len(RING.verify(RING.issue(user_id="ada", email="a@b.c", devices=many[:700])).devices) == 700


def test_too_long_token_is_not_parsed() -> None:
    assert_rejected(make_token(content(x="x" * MAX_TOKEN_CHARS)), because="longer than 16384 characters")
    assert_rejected(make_token(content(), header={"alg": "HS256", "x": "x" * MAX_TOKEN_CHARS}))


# Several keys


def test_a_new_secret_goes_first_and_the_old_one_still_verifies() -> None:
    old = RING.issue(user_id="ada", email="a@b.c")
    ring = KeyRing(["new " * 8, SECRET])
    assert ring.verify(old).user_id == "ada"
    fresh = ring.issue(user_id="ada", email="a@b.c")
    assert KeyRing(["new " * 8]).verify(fresh).user_id == "ada"
    assert_rejected(fresh, because="another secret")
    assert read_header(fresh)["kid"] == SecretKey("new " * 8).id != read_header(old)["kid"]


def test_removed_secret_no_longer_verifies() -> None:
    assert_rejected_by(
        KeyRing(["new " * 8]), RING.issue(user_id="ada", email="a@b.c"), because="another secret"
    )


def test_a_token_without_a_key_id_is_tried_with_every_secret() -> None:
    ring = KeyRing(["new " * 8, SECRET, "third " * 6])
    assert ring.verify(make_token(content())).user_id == "ada"
    assert ring.verify(make_token(content(), secret="third " * 6)).user_id == "ada"
    assert_rejected_by(ring, make_token(content(), secret="x" * 32), because="another secret")


@pytest.mark.parametrize("secrets", [[], [SECRET]])
def test_a_token_without_a_key_id_is_tried_with_no_private_key(secrets: list[str]) -> None:
    token = jwt.encode(content(), RSA, algorithm="RS256")
    assert_rejected_by(KeyRing(secrets, [RSA_KEY]), token)


def test_the_key_id_of_one_secret_on_a_token_of_another() -> None:
    ring = KeyRing(["new " * 8, SECRET])
    token = make_token(content(), header={"alg": "HS256", "kid": SecretKey("new " * 8).id})
    assert_rejected_by(ring, token, because="another secret")


def test_an_empty_ring_is_refused() -> None:
    with pytest.raises(ValueError, match="a secret or a private key"):
        KeyRing([])


@pytest.mark.parametrize(("key", "algorithm"), [(RSA_KEY, "RS256"), (ED_KEY, "EdDSA")])
def test_a_private_key_signs_before_the_secrets(key: PrivateKey, algorithm: str) -> None:
    ring = KeyRing([SECRET], [key])
    token = ring.issue(user_id="ada", email="a@b.c", session_id="s-1")
    assert read_header(token) == {"alg": algorithm, "typ": "JWT", "kid": key.id}
    assert ring.verify(token).session_id == "s-1"
    assert ring.verify(RING.issue(user_id="bob", email="a@b.c")).user_id == "bob"
    assert_rejected_by(ring, token[:-8] + "AAAAAAAA", because="another secret or key")
    assert_rejected(token, because="another secret or key")


@pytest.mark.parametrize("key", [RSA_KEY, ED_KEY])
def test_another_service_can_verify_with_the_public_keys(key: PrivateKey) -> None:
    ring = KeyRing([SECRET], [key])
    shown = jwt.PyJWKSet.from_dict(ring.jwks())
    token = ring.issue(user_id="ada", email="a@b.c")
    read = jwt.decode(token, key=shown[read_header(token)["kid"]], algorithms=[key.algorithm])
    assert read["userId"] == "ada"


def test_jwks_contains_public_keys_only() -> None:
    assert RING.jwks() == {"keys": []}
    shown = KeyRing([SECRET], [RSA_KEY, ED_KEY]).jwks()
    assert [set(key) for key in shown["keys"]] == [
        {"kty", "n", "e", "kid", "alg", "use"},
        {"kty", "crv", "x", "kid", "alg", "use"},
    ]
    assert SECRET not in json.dumps(shown)


def test_ring_of_private_keys_rejects_tokens_of_a_secret() -> None:
    ring = KeyRing([], [ED_KEY])
    assert ring.verify(ring.issue(user_id="ada", email="a@b.c")).user_id == "ada"
    assert_rejected_by(ring, make_token(content()), because="another secret or key")


# A token never chooses how it is verified


@pytest.mark.parametrize("kid", [RSA_KEY.id, None], ids=["its own", "none"])
def test_token_signed_with_a_public_key_as_secret_is_rejected(kid: str | None) -> None:
    public = RSA.public_key()
    ring = KeyRing([SECRET], [RSA_KEY])
    header = {"alg": "HS256", "typ": "JWT"} if kid is None else {"alg": "HS256", "typ": "JWT", "kid": kid}
    for encoding in (serialization.Encoding.PEM, serialization.Encoding.DER):
        shown = public.public_bytes(encoding, serialization.PublicFormat.SubjectPublicKeyInfo)
        signed = f"{encode_part(json.dumps(header).encode())}.{encode_part(json.dumps(content()).encode())}"
        signature = hmac.new(shown, signed.encode(), "sha256").digest()
        assert_rejected_by(ring, f"{signed}.{encode_part(signature)}")


@pytest.mark.parametrize("algorithm", ["none", "HS256", "RS256", "PS256", "EdDSA", None, 5, []])
def test_algorithm_comes_from_the_key_not_the_token(algorithm: object) -> None:
    ring = KeyRing([SECRET], [RSA_KEY, ED_KEY])
    for key in (RSA_KEY, ED_KEY, SecretKey(SECRET)):
        if algorithm != key.algorithm:
            token = make_token(content(), header={"alg": algorithm, "kid": key.id})
            assert_rejected_by(ring, token, because=f"must be signed with {key.algorithm}")


def test_keys_inside_a_token_are_ignored() -> None:
    private = ed25519.Ed25519PrivateKey.generate()
    foreign = PrivateKey(private)
    for header in (
        {"alg": "EdDSA", "jwk": foreign.jwk()},
        {"alg": "EdDSA", "jwk": foreign.jwk(), "kid": foreign.id},
        {"alg": "EdDSA", "jwk": foreign.jwk(), "kid": ED_KEY.id},
        {"alg": "EdDSA", "jku": "http://127.0.0.1:1/keys", "kid": foreign.id},
        {"alg": "EdDSA", "x5u": "http://127.0.0.1:1/keys", "x5c": ["AAAA"], "kid": ED_KEY.id},
    ):
        signed = f"{encode_part(json.dumps(header).encode())}.{encode_part(json.dumps(content()).encode())}"
        token = f"{signed}.{encode_part(private.sign(signed.encode()))}"
        assert_rejected_by(KeyRing([SECRET], [ED_KEY]), token)


@given(
    st.dictionaries(
        st.sampled_from(["alg", "kid", "typ", "crit", "b64", "jwk", "jku", "x5c", "zip", "cty"]),
        json_values
        | st.sampled_from(["HS256", "RS256", "EdDSA", RSA_KEY.id, ED_KEY.id, SecretKey(SECRET).id]),
    ),
    st.binary(max_size=300),
)
@example({"alg": "HS256", "kid": "\ud800"}, b"")
@example({"alg": "RS256", "kid": RSA_KEY.id}, b"")
@example({"alg": "EdDSA", "kid": ED_KEY.id}, b"\0" * 64)
def test_any_header_with_any_signature_is_rejected(header: dict[str, Any], signature: bytes) -> None:
    ring = KeyRing([SECRET], [RSA_KEY, ED_KEY])
    parts = [json.dumps(header).encode(), json.dumps(content()).encode(), signature]
    with pytest.raises(TokenRejected):
        ring.verify(".".join(encode_part(part) for part in parts))


def test_repr_of_a_ring_contains_no_secret() -> None:
    assert SECRET not in repr(RING) + str(vars(RING))
    with pytest.raises(ValueError, match="has 5 bytes") as caught:
        KeyRing([SECRET, "short"])
    assert SECRET not in str(caught.value)


def test_key_from_a_file_signs_tokens() -> None:
    pem = RSA.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    token = KeyRing([], [RSA_KEY]).issue(user_id="ada", email="a@b.c")
    assert KeyRing([SECRET], [load_private_key(pem)]).verify(token).user_id == "ada"


def test_token_id_is_the_issued_one() -> None:
    token = RING.issue(user_id="ada", email="ada@example.org", token_id="t-1")
    assert RING.verify(token).token_id == "t-1"
    assert RING.verify(RING.issue(user_id="ada", email="ada@example.org")).token_id is None


def test_a_token_may_have_an_id() -> None:
    token = RING.issue(user_id="ada", email="a@b.c", token_id="1f0c9a52b7d3e486")
    assert read_payload(token)["jti"] == "1f0c9a52b7d3e486"
    assert RING.verify(token).token_id == "1f0c9a52b7d3e486"
    assert "jti" not in read_payload(RING.issue(user_id="ada", email="a@b.c"))


@pytest.mark.parametrize("token_id", [None, 5, "", [], "x" * 33, "a\x00b", "urn:uuid:1"])
def test_foreign_token_ids_are_ignored(token_id: object) -> None:
    assert RING.verify(make_token(content(jti=token_id))).token_id is None


def test_content_of_another_kind_is_signed_and_opened() -> None:
    signed = RING.sign({"aud": "push"})
    assert json.loads(RING.open(signed)) == {"aud": "push"}
    assert_rejected(signed)  # it is no token of a user
    with pytest.raises(TokenRejected):
        KeyRing(["another secret of sufficient length"]).open(signed)

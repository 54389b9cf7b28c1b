import base64
import hashlib
import hmac
import json

import jwt
import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed448, ed25519, rsa
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
)

from brewos_relay import settings
from brewos_relay.auth.signing_keys import MIN_SECRET_BYTES, PrivateKey, SecretKey, load_private_key
from brewos_relay.errors import TokenRejected

SECRET = "0123456789abcdef0123456789abcdef"
RSA = rsa.generate_private_key(public_exponent=65537, key_size=2048)
ED = ed25519.Ed25519PrivateKey.generate()
PUBLIC_RSA_PEM = RSA.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)


def to_pem(
    key: rsa.RSAPrivateKey | ed25519.Ed25519PrivateKey | ec.EllipticCurvePrivateKey | ed448.Ed448PrivateKey,
    *,
    encryption: serialization.KeySerializationEncryption | None = None,
) -> bytes:
    return key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, encryption or NoEncryption())


def encode_part(content: bytes) -> str:
    return base64.urlsafe_b64encode(content).rstrip(b"=").decode()


def decode_part(text: str) -> bytes:
    return base64.urlsafe_b64decode(text + "=" * (-len(text) % 4))


def shorten(token: str) -> str:
    """Remove the last byte of a token's signature."""
    signed, _, signature = token.rpartition(".")
    return f"{signed}.{encode_part(decode_part(signature)[:-1])}"


def test_secret_verifies_only_its_own_signatures() -> None:
    key = SecretKey(SECRET)
    token = key.sign(b"signed")
    assert key.verify(token) == b"signed"
    assert jwt.get_unverified_header(token) == {"alg": "HS256", "typ": "JWT", "kid": key.id}
    other = SecretKey("x" * 32).sign(b"signed")
    for forged in (other, token.rpartition(".")[0] + ".", shorten(token)):
        assert key.verify(forged) is None


def test_id_of_a_secret_is_stable_and_reveals_nothing() -> None:
    assert SecretKey(SECRET).id == "A7uSh8C-bAwMzOan"
    assert SecretKey("x" * 32).id != SecretKey(SECRET).id
    assert hashlib.sha256(SECRET.encode()).digest()[:4] != decode_part(SecretKey(SECRET).id)[:4]
    assert SECRET not in repr(SecretKey(SECRET))


@pytest.mark.parametrize(
    ("secret", "problem"),
    [
        ("x" * 31, "has 31 bytes; it must have 32 or more"),
        ("", "has 0 bytes"),
        ("\ud800" * 40, "is not UTF-8"),
        (to_pem(ED).decode(), "is a key"),
        (PUBLIC_RSA_PEM.decode(), "is a key"),
        ("ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAI", "is a key"),
    ],
    ids=["short", "empty", "not UTF-8", "private", "public", "ssh"],
)
def test_invalid_secret_is_refused(secret: str, problem: str) -> None:
    with pytest.raises(ValueError, match=problem) as caught:
        SecretKey(secret)
    assert not secret or secret not in str(caught.value)


def test_the_settings_ask_for_a_secret_of_the_same_length() -> None:
    assert settings.MIN_JWT_SECRET_BYTES == MIN_SECRET_BYTES


@pytest.mark.parametrize(("key", "algorithm"), [(RSA, "RS256"), (ED, "EdDSA")])
def test_a_private_key_from_a_file(
    key: rsa.RSAPrivateKey | ed25519.Ed25519PrivateKey, algorithm: str
) -> None:
    loaded = load_private_key(to_pem(key))
    assert loaded.algorithm == algorithm
    token = loaded.sign(b"signed")
    assert loaded.verify(token) == b"signed"
    assert jwt.get_unverified_header(token) == {"alg": algorithm, "typ": "JWT", "kid": loaded.id}
    signed, _, signature = token.rpartition(".")
    header, _, _ = signed.partition(".")
    for forged in (f"{header}.{encode_part(b'other')}.{signature}", f"{signed}.", shorten(token)):
        assert loaded.verify(forged) is None
    assert loaded.id == PrivateKey(key).id


def test_a_key_is_for_one_algorithm() -> None:
    keys = [SecretKey(SECRET), PrivateKey(RSA), PrivateKey(ED)]
    for key in keys:
        for other in keys:
            if key is not other:
                with pytest.raises(TokenRejected, match=f"must be signed with {key.algorithm}"):
                    key.verify(other.sign(b"signed"))


def test_token_signed_with_the_newer_name_of_eddsa_is_verified() -> None:
    header = encode_part(b'{"alg":"Ed25519","typ":"JWT"}')
    signed = f"{header}.{encode_part(b'signed')}"
    token = f"{signed}.{encode_part(ED.sign(signed.encode()))}"
    assert PrivateKey(ED).verify(token) == b"signed"
    assert PrivateKey(ed25519.Ed25519PrivateKey.generate()).verify(token) is None


def test_the_thumbprint_is_the_one_of_the_standard() -> None:
    # RFC 8037, appendix A: the key, its public half and its thumbprint.
    private = decode_part("nWGxne_9WmC6hEr0kuwsxERJxWl7MmkZcDusAxyuf2A")
    key = PrivateKey(ed25519.Ed25519PrivateKey.from_private_bytes(private))
    assert key.id == "kPrK_qmxVWaYVA9wwBF6Iuo3vVzz7TxHCTwXBygrS4k"
    assert key.jwk() == {
        "kty": "OKP",
        "crv": "Ed25519",
        "x": "11qYAYKxCrfVS_7TyWQHOg7hcvPapiMlrwIaaPcHURo",
        "kid": key.id,
        "alg": "EdDSA",
        "use": "sig",
    }


def test_the_public_half_of_an_rsa_key() -> None:
    numbers = RSA.public_key().public_numbers()
    shown = PrivateKey(RSA).jwk()
    assert int.from_bytes(decode_part(shown["n"])) == numbers.n
    assert shown["e"] == "AQAB"
    named = json.dumps({"e": shown["e"], "kty": "RSA", "n": shown["n"]}, separators=(",", ":"))
    assert shown["kid"] == encode_part(hashlib.sha256(named.encode()).digest())


def small_rsa_pem() -> bytes:
    return to_pem(rsa.generate_private_key(public_exponent=65537, key_size=1024))


@pytest.mark.parametrize(
    ("pem", "problem"),
    [
        (b"", "no private key in PEM form"),
        (b"\xff\x00 garbage", "no private key in PEM form"),
        (b"-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n", "no private key in PEM form"),
        (PUBLIC_RSA_PEM, "no private key in PEM form"),
        (to_pem(RSA, encryption=BestAvailableEncryption(b"passphrase")), "without a passphrase"),
        (small_rsa_pem(), "has 1024 bits; it must have 2048 or more"),
        (to_pem(ec.generate_private_key(ec.SECP256R1())), "neither an Ed25519 nor an RSA key"),
        (to_pem(ed448.Ed448PrivateKey.generate()), "neither an Ed25519 nor an RSA key"),
    ],
    ids=["empty", "garbage", "broken", "public", "encrypted", "small", "EC", "Ed448"],
)
def test_invalid_key_file_is_refused(pem: bytes, problem: str) -> None:
    with pytest.raises(ValueError, match=problem):
        load_private_key(pem)


def test_a_secret_opens_what_it_has_signed() -> None:
    key = SecretKey("s" * 32)
    signed, _, signature = key.sign(b'{"a":"\xff>?"}').rpartition(".")
    assert key.open_signed(signed.encode(), signature) == b'{"a":"\xff>?"}'
    for other in ("", signature[:-1], signature[::-1], "\ud800"):
        assert key.open_signed(signed.encode(), other) is None
    assert SecretKey("t" * 32).open_signed(signed.encode(), signature) is None


@pytest.mark.parametrize("payload", ["e30.e30", "e", "e 30"])
def test_signed_text_without_a_payload_is_not_opened(payload: str) -> None:
    signed = f"e30.{payload}".encode()
    digest = hmac.digest(b"s" * 32, signed, "sha256")
    signature = base64.urlsafe_b64encode(digest).rstrip(b"=").decode()
    assert SecretKey("s" * 32).open_signed(signed, signature) is None

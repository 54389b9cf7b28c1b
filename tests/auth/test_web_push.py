"""Web Push: the examples of RFC 8291 and RFC 8292, and wrong keys."""

import base64

import jwt
import pytest
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.asymmetric import ec

from brewos_relay.auth.web_push import (
    MOST_PLAINTEXT_BYTES,
    ServerKey,
    decode,
    encode,
    encrypt,
    encrypt_with,
    generate_server_key,
    read_browser_keys,
)
from support.browser_push import BrowserEnd, browser_end

# RFC 8291, appendix A
PLAINTEXT = b"When I grow up, I want to be a watermelon"
SENDER = "yfWPiYE-n46HLnH0KqZOF1fJJU3MYrct3AELtAQ-oRw"
RECEIVER = "q1dXpw3UpT5VOmu_cf_v6ih07Aems3njxI-JWgLcM94"
RECEIVER_PUBLIC = "BCVxsr7N_eNgVRqvHtD0zTZsEc6-VV-JvLexhqUzORcxaOzi6-AYWXvTBHm4bjyPjs7Vd8pZGH6SRpkNtoIAiw4"
AUTH = "BTBZMqHH6r4Tts7J_aSIgg"
SALT = "DGv6ra1nlYgDCS1FRnbzlw"
BODY = (
    "DGv6ra1nlYgDCS1FRnbzlwAAEABBBP4z9KsN6nGRTbVYI_c7VJSPQTBtkgcy27mlmlMoZIIgDll6e3vCYLocInmYWAmS6Tlz"
    "AC8wEqKK6PBru3jl7A_yl95bQpu6cVPTpK4Mqgkf1CXztLVBSt2Ks3oZwbuwXPXLWyouBWLVWGNWQexSgSxsj_Qulcy4a-fN"
)
# RFC 8292, section 2.4
CLAIMS = {"aud": "https://push.example.net", "exp": 1453523768, "sub": "mailto:push@example.com"}
PUBLIC = "BA1Hxzyi1RUM1b5wjxsn7nGxAszw2u61m164i3MrAIxHF6YK5h4SDYic-dRuU_RCPCfA5aq9ojSwk5Y2EmClBPs"
TOKEN = (
    "eyJ0eXAiOiJKV1QiLCJhbGciOiJFUzI1NiJ9.eyJhdWQiOiJodHRwczovL3B1c2guZXhhbXBsZS5uZXQiLCJleHAiOjE0NTM1"
    "MjM3NjgsInN1YiI6Im1haWx0bzpwdXNoQGV4YW1wbGUuY29tIn0.i3CYb7t4xfxCDquptFOepC9GAu_HLGkMlMuCGSK2rpiUfnK9"
    "ojFwDXb1JrErtmysazNjjvW2L9OkSSHzvoD1oA"
)


def private_key(text: str) -> ec.EllipticCurvePrivateKey:
    return ec.derive_private_key(int.from_bytes(decode(text), "big"), ec.SECP256R1())


def test_example_of_rfc_8291() -> None:
    keys = read_browser_keys(RECEIVER_PUBLIC, AUTH)
    body = encrypt_with(PLAINTEXT, keys, own=private_key(SENDER), salt=decode(SALT))
    assert encode(body) == BODY
    assert browser_end(RECEIVER, AUTH).decrypt(body) == PLAINTEXT


def read_identification(authorization: str, origin: str) -> dict[str, object]:
    """Read an identification as a push service does."""
    scheme, _, rest = authorization.partition(" ")
    token, public = (part.strip()[2:] for part in rest.split(","))
    assert scheme == "vapid"
    key = ec.EllipticCurvePublicKey.from_encoded_point(ec.SECP256R1(), decode(public))
    claims: dict[str, object] = jwt.decode(
        token, key, algorithms=["ES256"], audience=origin, options={"verify_exp": False}
    )
    return claims


def test_example_of_rfc_8292_and_our_own_identification() -> None:
    assert read_identification(f"vapid t={TOKEN}, k={PUBLIC}", "https://push.example.net") == CLAIMS
    key = ServerKey(generate_server_key())
    headers = key.headers(origin="https://push.example.net", contact="mailto:a@example.org", now_s=1000)
    assert f"k={key.public}" in headers["Authorization"]
    assert read_identification(headers["Authorization"], "https://push.example.net") == {
        "aud": "https://push.example.net",
        "exp": 1000 + 12 * 3600,
        "sub": "mailto:a@example.org",
    }
    bare = key.headers(origin="https://push.example.net", contact=None, now_s=1000)
    assert "sub" not in read_identification(bare["Authorization"], "https://push.example.net")


def test_each_message_is_encrypted_with_another_key_and_only_its_browser_reads_it() -> None:
    browser, other = BrowserEnd(), BrowserEnd()
    keys = read_browser_keys(**browser.keys)
    first, second = encrypt(b"Ready", keys), encrypt(b"Ready", keys)
    assert first[:86] != second[:86]
    assert browser.decrypt(first) == browser.decrypt(second) == b"Ready"
    with pytest.raises(InvalidTag):
        other.decrypt(first)
    assert len(encrypt(b"x" * MOST_PLAINTEXT_BYTES, keys)) < 4096
    with pytest.raises(ValueError, match="at most"):
        encrypt(b"x" * (MOST_PLAINTEXT_BYTES + 1), keys)


def test_keys_in_either_alphabet_are_read() -> None:
    browser = BrowserEnd()
    plain = {name: base64.b64encode(decode(value)).decode() for name, value in browser.keys.items()}
    assert plain["auth"].endswith("==")
    assert read_browser_keys(**plain) == read_browser_keys(**browser.keys)
    assert repr(read_browser_keys(**plain)) == "<BrowserKeys>"
    key = ServerKey(b"\0" * 31 + b"\7")
    assert repr(key) == "<ServerKey>"


@pytest.mark.parametrize(
    ("p256dh", "auth"),
    [
        ("", AUTH),
        (RECEIVER_PUBLIC[:-4], AUTH),
        ("B" + "A" * 86, AUTH),
        (encode(b"\x04" + b"\xff" * 64), AUTH),
        ("é", AUTH),
        ("*" * 87, AUTH),
        (RECEIVER_PUBLIC, ""),
        (RECEIVER_PUBLIC, AUTH + "AAAA"),
        (RECEIVER_PUBLIC, "\ud800"),
    ],
)
def test_wrong_keys_are_refused(p256dh: str, auth: str) -> None:
    with pytest.raises(ValueError):  # noqa: PT011 - the texts differ
        read_browser_keys(p256dh, auth)


@pytest.mark.parametrize("private", [b"", b"\0" * 32, b"\xff" * 32, b"\1" * 33])
def test_wrong_server_keys_are_refused(private: bytes) -> None:
    with pytest.raises(ValueError):  # noqa: PT011 - the texts differ
        ServerKey(private)

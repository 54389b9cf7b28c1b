import json
import re
import secrets
from collections.abc import Callable
from urllib.parse import quote, unquote

import pytest

from brewos_relay.auth.tokens import KeyRing
from brewos_relay.telemetry.redaction import Redaction
from brewos_relay.vocabulary import generate_key

JWT = KeyRing(["s" * 32]).issue(user_id="ada", email="a@example.org", devices="*")
KEY = "k3y_Of-the_Machine" + "0" * 25


@pytest.mark.parametrize(
    "text",
    [
        "GET /ws/device?id=BRW-12AB34CD&key=%s HTTP/1.1",
        "/ws/client?token=%s",
        "https://relay.example/claim?code=%s",
        "Authorization: Bearer %s",
        "'authorization': 'bearer %s'",
        '{"token": "%s"}',
        '{\\"refreshToken\\": \\"%s\\"}',
        "KeyError: '%s'",
        "sent %s to a machine",
        "password=%s",
    ],
)
@pytest.mark.parametrize("secret", [KEY, JWT, KEY.lower(), "hunter2-hunter2"])
def test_text_that_looks_like_a_secret_is_hidden(text: str, secret: str) -> None:
    if secret == "hunter2-hunter2" and ("KeyError" in text or "sent" in text):
        pytest.skip("a word among words")
    redacted = Redaction()(text % secret)
    assert secret not in redacted
    assert secret[-8:] not in redacted
    assert "[hidden]" in redacted


@pytest.mark.parametrize(
    "text",
    [
        "sent BEARER %s",
        "sent Basic %s",
        "TOKEN=%s",
        "pa\N{LATIN SMALL LETTER LONG S}sword=%s",
        "to\N{KELVIN SIGN}en: %s",
    ],
)
def test_names_of_secrets_are_found_in_upper_and_lower_case(text: str) -> None:
    assert "hunter-hunter" not in Redaction()(text % "hunter-hunter")


def test_keys_are_hidden_anywhere_in_a_line() -> None:
    redact = Redaction()
    for _ in range(200):
        key = generate_key()
        if any(char.isdigit() for char in key):  # all but one in a thousand
            assert key not in redact(f"it was {key} that came")


def test_known_secrets_of_any_form_are_hidden() -> None:
    redact = Redaction(["open sesame", "", "abc"])
    assert redact("he said open sesame, abc") == "he said [hidden], abc"


SECRETS = ['pa%40ss"wo\\rd/', "Zauberwört er", "it's-a-secret", "a+b c/d=e&f"]


@pytest.mark.parametrize("secret", SECRETS)
@pytest.mark.parametrize(
    "written",
    [
        str,
        repr,
        json.dumps,
        lambda text: json.dumps(text, ensure_ascii=False),
        lambda text: json.dumps(f"ValueError: {text}"),
        lambda text: json.dumps(f"KeyError: {text!r}"),
        lambda text: json.dumps({"body": json.dumps({"a": text})}),
        unquote,
        lambda text: quote(text, safe=""),
    ],
)
def test_known_secrets_are_hidden_in_every_encoding(secret: str, written: Callable[[str], str]) -> None:
    redacted = Redaction([secret])(written(secret))
    assert "[hidden]" in redacted
    for part in re.findall(r"\w{3,}", unquote(secret)):
        assert part not in redacted


@pytest.mark.parametrize(
    "entry",
    [
        {"code": 1234567},
        {"key": 1234567.5, "a": 1},
        {"key": -1.5e300},
        {"monkey": [1234567]},
        {"monkey": [[[1234567, 1]]]},
        {"token": {"a": 123456}},
        {"keys": [False]},
        {"keys": [[[[[[[]]]]]]]},
    ],
)
def test_json_stays_json(entry: object) -> None:
    text = json.dumps(entry)
    assert json.loads(Redaction()(text)) == entry
    assert json.loads(Redaction()(json.dumps({"event": text})))["event"] == text


@pytest.mark.parametrize(
    "secret", ["correcthorse", "2correcthorse", "2e4-horse", "nullhorse", "[correcthorse"]
)
@pytest.mark.parametrize("between", [":", ": "])
def test_text_that_resembles_json_does_not_expose_secrets(secret: str, between: str) -> None:
    assert Redaction()(f'{{"password"{between}{secret}}}') == f'{{"password"{between}[hidden]'


def test_passwords_in_urls_are_hidden() -> None:
    assert Redaction()("at postgresql://relay:pw@db/relay") == "at postgresql://relay:[hidden]@db/relay"


@pytest.mark.parametrize(
    "text",
    [
        "device BRW-12AB34CD came",
        "client 0123456789abcdef of device BRW-12AB34CD went: the peer ended it with 1000",
        "refused 2001:db8::1: 403 no access to this device",
        "no new key was sent to device BRW-12AB34CD: it is offline",
        "SHA-256 fingerprint AB:CD:EF:01:23:45:67:89:AB:CD:EF:01:23:45:67:89:AB:CD:EF:01:23:45:67:89",
        "File /srv/venv/lib/python3.11/site-packages/brewos_relay/server/run.py, line 12, in open_server",
        "test_the_commands_of_the_readme_work_as_they_stand_there",
        "/ws/client token was refused",
        "code: 1008",
    ],
)
def test_other_text_is_unchanged(text: str) -> None:
    assert Redaction()(text) == text


def test_a_long_text_is_redacted_quickly() -> None:
    for text in ("a" * 200_000, "key=" * 50_000, "/" * 100_000, "://" * 50_000, secrets.token_hex(100_000)):
        Redaction()(text)

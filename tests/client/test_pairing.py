"""Tests of client.pairing."""

import ssl
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest
import trio

from brewos_relay.client import pairing as pairing_module
from brewos_relay.client.key_store import KeyStore
from brewos_relay.client.pairing import Pairing, generate_pairing_token
from brewos_relay.errors import SettingsError
from support.household import add_session
from support.http_client import ask
from support.process import serve_here

DEVICE_ID = "BRW-0000ABCD"


@pytest.fixture
def keys(tmp_path: Path) -> KeyStore:
    return KeyStore(tmp_path / "key.json")


def test_tokens_are_32_characters_and_differ() -> None:
    made = {generate_pairing_token() for _ in range(20)}
    assert len(made) == 20
    assert {len(token) for token in made} == {32}


@pytest.mark.parametrize(
    ("url", "base"),
    [
        ("https://relay.example", "https://relay.example"),
        (" https://relay.example:8443/ ", "https://relay.example:8443"),
        ("wss://relay.example", "https://relay.example"),
        ("ws://127.0.0.1:3001", "http://127.0.0.1:3001"),
    ],
)
def test_pairing_url_leads_to_the_pairing_page(keys: KeyStore, url: str, base: str) -> None:
    pairing = Pairing(url, DEVICE_ID.lower(), keys)
    parts = urlsplit(pairing.pairing_url)
    assert f"{parts.scheme}://{parts.netloc}{parts.path}" == f"{base}/pair"
    assert parse_qs(parts.query) == {"id": [DEVICE_ID], "token": [pairing.token]}


def test_renewed_token_is_shown(keys: KeyStore) -> None:
    pairing = Pairing("https://relay.example", DEVICE_ID, keys)
    before, drawn = pairing.token, pairing.qr_for_terminal()
    assert pairing.renew_token() == pairing.token != before
    assert pairing.token in pairing.pairing_url
    assert pairing.qr_for_terminal() != drawn


def test_qr_code_fits_a_terminal(keys: KeyStore) -> None:
    drawn = Pairing("https://relay.example", DEVICE_ID, keys).qr_for_terminal()
    lines = drawn.rstrip("\n").split("\n")
    assert len(lines) < 40
    assert {len(line) for line in lines} == {len(lines[0])}
    assert len(lines[0]) < 80
    assert set(drawn) <= set(" \u2588\u2580\u2584\n")


@pytest.mark.parametrize(
    ("url", "device_id"), [("relay.example", DEVICE_ID), ("https://relay.example", "kitchen")]
)
def test_invalid_arguments_raise_at_once(keys: KeyStore, url: str, device_id: str) -> None:
    with pytest.raises(SettingsError):
        Pairing(url, device_id, keys)


async def test_register_sends_the_newest_key(keys: KeyStore, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[tuple[Any, ...]] = []

    async def post(*args: Any, **options: Any) -> dict[str, Any]:
        await trio.lowlevel.checkpoint()
        calls.append((*args, options))
        return {}

    monkeypatch.setattr(pairing_module, "post_json", post)
    context = ssl.create_default_context()
    pairing = Pairing("https://relay.example", DEVICE_ID, keys, ssl_context=context, timeout_s=3)
    await pairing.register()
    keys.add_next("n" * 43)
    await pairing.register()
    bodies = [
        {"deviceId": DEVICE_ID, "token": pairing.token, "deviceKey": key}
        for key in (keys.load().key, "n" * 43)
    ]
    options = {"ssl_context": context, "timeout_s": 3}
    assert calls == [
        ("https://relay.example", "/api/devices/register-claim", body, options) for body in bodies
    ]


async def test_secrets_do_not_leave_this_computer_without_tls(keys: KeyStore) -> None:
    with pytest.raises(SettingsError, match="use https"):
        await Pairing("http://relay.example", DEVICE_ID, keys).register()


async def test_registered_device_can_be_paired_with_its_url(tmp_path: Path, keys: KeyStore) -> None:
    async with serve_here(tmp_path) as server:
        url = f"http://127.0.0.1:{server.address[1]}"
        pairing = Pairing(url, DEVICE_ID, keys)
        await pairing.register()
        await pairing.register()
        shown = parse_qs(urlsplit(pairing.pairing_url).query)
        body = {"deviceId": shown["id"][0], "token": shown["token"][0], "name": "Kitchen"}
        await server.server.store.write(add_session, "ada", "session of ada")
        token = server.signer.issue(user_id="ada", email="ada@example.org", session_id="session of ada")
        told = await ask(server, "POST", "/api/devices/claim", body, token=token)
        assert (told.status, told.content["role"]) == (200, "owner")
        device = await server.device(DEVICE_ID, key=keys.load().key)
        assert device.connected["type"] == "connected"

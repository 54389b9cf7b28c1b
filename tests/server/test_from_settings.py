from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric import ed25519
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

from brewos_relay.api.account_rules import AccountRules
from brewos_relay.auth.identity_providers import FacebookVerifier, GoogleVerifier, Verifier
from brewos_relay.auth.tokens import KeyRing
from brewos_relay.errors import IdentityRejected, SettingsError
from brewos_relay.server.from_settings import account_rules, plain_http_warning, push_contact
from brewos_relay.server.key_ring import read_key_ring
from brewos_relay.settings import Settings
from brewos_relay.settings.parsing import parse_networks
from support.issuer import DISCOVERY_PATH, IssuerKey, open_issuer


def test_without_settings_people_sign_in_by_link_and_password_only() -> None:
    assert account_rules(Settings()) == AccountRules(verifiers={}, open_to_all=True)


def test_rules_for_new_accounts() -> None:
    assert account_rules(Settings(sign_up="open")).open_to_all
    assert not account_rules(Settings(sign_up="invited")).open_to_all


def test_google() -> None:
    rules = account_rules(Settings(google_client_ids=("for the web", "for phones")))
    assert set(rules.verifiers) == {"google"}
    assert isinstance(rules.verifiers["google"], GoogleVerifier)
    assert rules.google_client_id == "for the web"
    assert (rules.oidc_issuer, rules.oidc_audience) == (None, None)


def test_sign_in_on_the_pages_of_providers() -> None:
    rules = account_rules(
        Settings(
            public_url="https://coffee.example",
            google_client_ids=("for the web", "for phones"),
            google_client_secret="s",
            oidc_issuer="https://id.example/realms/home",
            oidc_client_id="relay",
            oidc_audiences=("other",),
        )
    )
    assert {kind: flow.name for kind, flow in rules.code_flows.items()} == {
        "google": "Google",
        "oidc": "id.example",
    }
    assert rules.code_flows["oidc"].redirect_uri == "https://coffee.example/login/callback"
    assert rules.oidc_audience == "other"
    named = Settings(
        public_url="https://coffee.example",
        oidc_issuer="https://id.example",
        oidc_client_id="relay",
        oidc_label="Home",
    )
    assert account_rules(named).code_flows["oidc"].name == "Home"
    assert account_rules(named).oidc_audience == "relay"


def test_an_issuer() -> None:
    rules = account_rules(
        Settings(oidc_issuer="https://issuer.example", oidc_audiences=("relay", "relay-on-phones"))
    )
    assert set(rules.verifiers) == {"oidc"}
    assert isinstance(rules.verifiers["oidc"], Verifier)
    assert (rules.oidc_issuer, rules.oidc_audience) == ("https://issuer.example", "relay")
    assert rules.google_client_id is None


def test_an_issuer_s_tokens_count_for_every_audience_by_the_keys_that_were_named() -> None:
    with open_issuer(IssuerKey("ES256", "k1")) as issuer:
        rules = account_rules(
            Settings(
                oidc_issuer=issuer.url,
                oidc_audiences=("relay", "relay-on-phones"),
                oidc_jwks_url=issuer.keys_url,
            )
        )
        verifier = rules.verifiers["oidc"]
        for audience in ("relay", "relay-on-phones"):
            assert verifier.verify(issuer.token(aud=audience)).email == "ada@example.org"
        with pytest.raises(IdentityRejected):
            verifier.verify(issuer.token(aud="another app"))
        assert DISCOVERY_PATH not in issuer.asked


def test_facebook() -> None:
    rules = account_rules(Settings(facebook_app_id="17", facebook_app_secret="hush"))
    assert set(rules.verifiers) == {"facebook"}
    assert isinstance(rules.verifiers["facebook"], FacebookVerifier)
    assert "hush" not in repr(rules)


def test_all_of_them() -> None:
    rules = account_rules(
        Settings(
            google_client_ids=("g",),
            oidc_issuer="https://issuer.example",
            oidc_audiences=("relay",),
            facebook_app_id="17",
            facebook_app_secret="hush",
        )
    )
    assert set(rules.verifiers) == {"google", "oidc", "facebook"}


def test_machines_per_account_come_from_the_settings() -> None:
    assert account_rules(Settings(machines_per_account=3)).machines_per_account == 3


def test_new_devices_follow_the_settings() -> None:
    rules = account_rules(Settings(pairing="window", new_machines_per_network=3)).new_devices
    assert (rules.mode, rules.per_network) == ("window", 3)


OLD = "0123456789abcdef0123456789abcdef"
NEW = OLD[::-1]


def issue(keys: KeyRing) -> str:
    return keys.issue(user_id="ada", email="ada@example.org")


def write_key(file: Path) -> Path:
    key = ed25519.Ed25519PrivateKey.generate()
    file.write_bytes(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
    return file


def test_the_first_secret_signs_and_all_verify() -> None:
    keys = read_key_ring(Settings(jwt_secret=f"{NEW},{OLD}"))
    assert keys.verify(issue(KeyRing([OLD]))).user_id == "ada"
    assert KeyRing([NEW]).verify(issue(keys)).user_id == "ada"


def test_the_first_file_signs_and_others_can_verify_with_its_public_key(tmp_path: Path) -> None:
    new, old = write_key(tmp_path / "new.pem"), write_key(tmp_path / "old.pem")
    keys = read_key_ring(Settings(jwt_key_files=(new, old), jwt_secret=OLD))
    assert len(keys.jwks()["keys"]) == 2
    assert read_key_ring(Settings(jwt_key_files=(new,))).verify(issue(keys)).user_id == "ada"
    assert keys.verify(issue(read_key_ring(Settings(jwt_key_files=(old,))))).user_id == "ada"
    assert keys.verify(issue(KeyRing([OLD]))).user_id == "ada"


def test_invalid_key_files_are_refused(tmp_path: Path) -> None:
    file = tmp_path / "k.pem"
    with pytest.raises(SettingsError, match=r"JWT_KEY_FILES contains .*k\.pem: it cannot be read: No such"):
        read_key_ring(Settings(jwt_key_files=(file,)))
    file.write_text("hush")
    with pytest.raises(SettingsError, match=r"JWT_KEY_FILES contains .*k\.pem: it contains no private key"):
        read_key_ring(Settings(jwt_key_files=(file,)))


def test_a_secret_that_is_a_key(tmp_path: Path) -> None:
    pem = write_key(tmp_path / "k.pem").read_text()
    with pytest.raises(SettingsError, match="JWT_SECRET: the secret is a key") as caught:
        read_key_ring(Settings(jwt_secret=f"{OLD},{pem}"))
    assert pem not in str(caught.value)


def test_no_key_at_all() -> None:
    with pytest.raises(SettingsError, match="JWT_SECRET is not set"):
        read_key_ring(Settings())


@pytest.mark.parametrize(
    ("changed", "contact"),
    [
        ({}, None),
        ({"public_url": "http://relay.home"}, None),
        ({"public_url": "https://relay.example"}, "https://relay.example"),
        ({"public_url": "https://relay.example", "push_contact": "mailto:a@b.org"}, "mailto:a@b.org"),
    ],
)
def test_push_services_get_the_address_of_the_operator(changed: dict[str, Any], contact: str | None) -> None:
    assert push_contact(Settings(**changed)) == contact


@pytest.mark.parametrize(
    ("chosen", "warns"),
    [
        ({}, True),
        ({"host": "0.0.0.0"}, True),
        ({"host": "127.0.0.1"}, False),
        ({"tls_self_signed": True}, False),
        ({"trusted_proxies": parse_networks("127.0.0.1")}, True),
        ({"trusted_proxies": parse_networks("172.31.250.0/29")}, False),
    ],
)
def test_plain_http_on_all_interfaces_is_warned_of(chosen: dict[str, Any], warns: bool) -> None:
    warning = plain_http_warning(Settings(**chosen))
    assert (warning is not None) == warns
    assert warning is None or "brewos-relay init" in warning

import pytest

from brewos_relay.api.account_rules import AccountRules
from brewos_relay.auth.identity_providers import FacebookVerifier, GoogleVerifier, Verifier
from brewos_relay.errors import IdentityRejected
from brewos_relay.server.accounts import account_rules
from brewos_relay.settings import Settings
from support.issuer import DISCOVERY_PATH, IssuerKey, open_issuer


def test_without_settings_people_sign_in_by_link_and_password_only() -> None:
    assert account_rules(Settings()) == AccountRules(verifiers={}, open_to_all=True)


def test_who_may_make_an_account() -> None:
    assert account_rules(Settings(sign_up="open")).open_to_all
    assert not account_rules(Settings(sign_up="invited")).open_to_all


def test_google() -> None:
    rules = account_rules(Settings(google_client_ids=("for the web", "for phones")))
    assert set(rules.verifiers) == {"google"}
    assert isinstance(rules.verifiers["google"], GoogleVerifier)
    assert rules.google_client_id == "for the web"
    assert (rules.oidc_issuer, rules.oidc_audience) == (None, None)


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

from dataclasses import fields
from ipaddress import ip_network
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import make_url

from brewos_relay.errors import SettingsError
from brewos_relay.settings import FIRST_LIMITS, Settings
from brewos_relay.settings.server_limits import ServerLimits

SECRET = "0123456789abcdef0123456789abcdef"


def test_the_limits_to_change_first_are_limits() -> None:
    assert set(FIRST_LIMITS) < {field.name for field in fields(ServerLimits)}
    assert len(set(FIRST_LIMITS)) == len(FIRST_LIMITS)


def test_a_secret_is_required_and_must_be_long_enough() -> None:
    assert Settings(jwt_secret=SECRET).require_jwt_secrets() == [SECRET]
    assert Settings(jwt_secret="ä" * 16).require_jwt_secrets() == ["ä" * 16]
    with pytest.raises(SettingsError, match=r"JWT_SECRET is not set: .* `brewos-relay secret`"):
        Settings().require_jwt_secrets()
    with pytest.raises(SettingsError, match=r"JWT_SECRET has 31 bytes: .* 32 bytes\. `brewos-relay secret`"):
        Settings(jwt_secret=SECRET[1:]).require_jwt_secrets()
    with pytest.raises(SettingsError, match=r"JWT_SECRET is not UTF-8: .* `brewos-relay secret`"):
        Settings(jwt_secret=SECRET + "\udcff").require_jwt_secrets()


def test_several_secrets_keep_their_order() -> None:
    assert Settings(jwt_secret=f"{SECRET[::-1]}, {SECRET},").require_jwt_secrets() == [SECRET[::-1], SECRET]
    with pytest.raises(SettingsError, match=r"JWT_SECRET has 5 bytes \(number 2 of 2\): ") as caught:
        Settings(jwt_secret=f"{SECRET},short").require_jwt_secrets()
    assert SECRET not in str(caught.value)
    assert "short" not in str(caught.value)


def test_no_secret_is_required_with_key_files() -> None:
    assert Settings(jwt_key_files=(Path("k.pem"),)).require_jwt_secrets() == []
    assert Settings(jwt_key_files=(Path("k.pem"),), jwt_secret=SECRET).require_jwt_secrets() == [SECRET]
    with pytest.raises(SettingsError, match="JWT_SECRET has 5 bytes"):
        Settings(jwt_key_files=(Path("k.pem"),), jwt_secret="short").require_jwt_secrets()


CERT: dict[str, Any] = {"tls_cert": Path("cert.pem"), "tls_key": Path("key.pem")}
NETWORK = ip_network("10.0.0.0/8")


@pytest.mark.parametrize(
    ("values", "problem"),
    [
        ({"tls_cert": Path("cert.pem")}, "TLS_CERT requires BREWOS_RELAY_TLS_KEY"),
        ({"tls_key": Path("key.pem")}, "TLS_KEY requires BREWOS_RELAY_TLS_CERT"),
        (CERT | {"tls_self_signed": True}, "TLS_CERT and BREWOS_RELAY_TLS_SELF_SIGNED cannot be"),
        ({"redirect_port": 80}, "REDIRECT_PORT requires BREWOS_RELAY_TLS_CERT or"),
        (CERT | {"redirect_port": 443, "port": 443}, "REDIRECT_PORT is 443, the same as BREWOS_RELAY_PORT"),
        ({"metrics_token": "hush"}, "METRICS_TOKEN must have at least 16 characters, got 4"),
        ({"proxy_protocol": True}, "PROXY_PROTOCOL requires BREWOS_RELAY_TRUSTED_PROXIES"),
        ({"oidc_issuer": "https://id.example.com"}, "OIDC_ISSUER requires BREWOS_RELAY_OIDC_CLIENT_ID"),
        ({"oidc_client_id": "relay", "public_url": "https://a.example"}, "require BREWOS_RELAY_OIDC_ISSUER"),
        ({"oidc_client_secret": "s"}, "require BREWOS_RELAY_OIDC_CLIENT_ID"),
        (
            {"oidc_issuer": "https://id.example.com", "oidc_client_id": "relay"},
            "OIDC_CLIENT_ID requires PUBLIC_URL",
        ),
        (
            {"google_client_secret": "s", "google_client_ids": ("x",)},
            "GOOGLE_CLIENT_SECRET requires PUBLIC_URL",
        ),
        ({"google_client_secret": "s"}, "GOOGLE_CLIENT_SECRET requires GOOGLE_CLIENT_ID"),
        ({"oidc_audiences": ("relay",)}, "require BREWOS_RELAY_OIDC_ISSUER"),
        ({"oidc_jwks_url": "https://id.example.com/keys"}, "require BREWOS_RELAY_OIDC_ISSUER"),
        ({"facebook_app_id": "123"}, "FACEBOOK_APP_ID and BREWOS_RELAY_FACEBOOK_APP_SECRET"),
        ({"facebook_app_secret": "hush"}, "FACEBOOK_APP_ID and BREWOS_RELAY_FACEBOOK_APP_SECRET"),
    ],
)
def test_conflicting_settings_are_refused(values: dict[str, Any], problem: str) -> None:
    with pytest.raises(SettingsError, match=problem) as caught:
        Settings(**values)
    assert str(caught.value).startswith("BREWOS_RELAY_")
    assert "hush" not in str(caught.value)


def test_compatible_settings_are_accepted() -> None:
    assert not Settings().speaks_tls
    assert Settings(**CERT, redirect_port=80).speaks_tls
    assert Settings(tls_self_signed=True, redirect_port=0, port=0).speaks_tls, "0 takes any free ones"
    assert Settings(proxy_protocol=True, trusted_proxies=(NETWORK,)).proxy_protocol
    assert Settings(oidc_issuer="https://id.example.com", oidc_audiences=("relay",)).oidc_jwks_url is None
    assert Settings(facebook_app_id="123", facebook_app_secret="hush").facebook_app_id == "123"


def test_repr_contains_no_secrets() -> None:
    settings = Settings(
        jwt_secret=SECRET,
        database_url="postgresql://relay:hunter2@db/relay",
        facebook_app_id="123",
        facebook_app_secret="hush",
    )
    assert "hush" not in repr(settings)
    assert SECRET not in repr(settings)
    assert "hunter2" not in repr(settings)
    assert "hunter2" in settings.secrets()
    written = Settings(database_url="postgresql://relay:hunter%402@db/relay?password=hunter3")
    assert written.secrets() == ["hunter%402", "hunter@2", "hunter3"]
    assert "hunter4" in Settings(database_url="postgresql://relay@db/relay?sslpassword=hunter4").secrets()
    with pytest.raises(SettingsError) as caught:
        Settings(jwt_secret="short-secret").require_jwt_secrets()
    assert "short-secret" not in str(caught.value)


@pytest.mark.parametrize("password", ["hun/ter", "hun?ter", "hun#ter", "[hunter", "hunter:2"])
def test_a_password_in_a_database_url_need_not_be_escaped(password: str) -> None:
    url = f"postgresql://relay:{password}@db/relay"
    assert make_url(url).password == password
    assert password in Settings(database_url=url).secrets()


def test_an_unescaped_password_in_a_database_url_is_found() -> None:
    assert Settings(database_url="postgresql://relay:hun@ter@db/relay").secrets() == ["hun", "hun@ter"]


def test_the_database_lies_in_the_data_dir() -> None:
    assert Settings(data_dir=Path("/a b/c")).resolved_database_url() == "sqlite:////a b/c/brewos-relay.db"


@pytest.mark.parametrize("data_dir", ["what?", "100%"])
def test_a_data_dir_that_cannot_be_part_of_a_url_is_refused(data_dir: str) -> None:
    with pytest.raises(SettingsError, match=r"DATA_DIR must not contain .* got"):
        Settings(data_dir=Path(data_dir)).resolved_database_url()

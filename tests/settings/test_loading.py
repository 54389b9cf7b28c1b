import re
from dataclasses import fields
from ipaddress import ip_network
from pathlib import Path
from typing import Any

import pytest

from brewos_relay.errors import SettingsError
from brewos_relay.settings import Settings, load_settings
from brewos_relay.settings.server_limits import ServerLimits

SECRET = "0123456789abcdef0123456789abcdef"
NOWHERE = Path("nowhere")


def load(environ: dict[str, str] | None = None, **overrides: Any) -> Settings:
    return load_settings(environ=environ or {}, dotenv_path=NOWHERE, **overrides)


def _switched_off_by_0() -> list[str]:
    text = (Path(__file__).parents[2] / "docs/reference/settings.md").read_text()
    return re.findall(r"^\| `(BREWOS_RELAY_\w+)` .*\b0 (?:keeps none|switches this off)", text, re.MULTILINE)


@pytest.mark.parametrize("variable", _switched_off_by_0())
def test_limit_that_0_switches_off_may_be_0(variable: str) -> None:
    name = variable.removeprefix("BREWOS_RELAY_").lower()
    assert getattr(load({variable: "0"}).limits, name) == 0
    with pytest.raises(SettingsError, match="0 or greater"):
        load({variable: "-1"})


def test_the_defaults() -> None:
    settings = load()
    assert settings == Settings()
    assert (settings.host, settings.port, settings.log_level) == ("", 3001, "info")
    assert settings.limits == ServerLimits()
    assert settings.resolved_database_url() == "sqlite:///data/brewos-relay.db"


def test_every_setting_can_come_from_the_environment() -> None:
    settings = load(
        {
            "BREWOS_RELAY_HOST": "127.0.0.1",
            "PORT": "443",
            "PUBLIC_URL": "https://relay.example.com/",
            "BREWOS_RELAY_TLS_CERT": "cert.pem",
            "BREWOS_RELAY_TLS_KEY": "key.pem",
            "BREWOS_RELAY_REDIRECT_PORT": "80",
            "BREWOS_RELAY_TRUSTED_PROXIES": "10.0.0.0/8, ::1",
            "BREWOS_RELAY_PROXY_PROTOCOL": "yes",
            "JWT_SECRET": SECRET,
            "BREWOS_RELAY_JWT_KEY_FILES": "new.pem,old.pem",
            "BREWOS_RELAY_SIGN_UP": "Invited",
            "GOOGLE_CLIENT_ID": "web.example,phone.example",
            "BREWOS_RELAY_OIDC_ISSUER": "https://id.example.com/home/",
            "BREWOS_RELAY_OIDC_AUDIENCE": "relay",
            "BREWOS_RELAY_OIDC_JWKS_URL": "https://id.example.com/keys?kind=all",
            "BREWOS_RELAY_FACEBOOK_APP_ID": "123",
            "BREWOS_RELAY_FACEBOOK_APP_SECRET": "hush",
            "BREWOS_RELAY_PAIRING": "Window",
            "BREWOS_RELAY_NEW_MACHINES_PER_NETWORK": "6",
            "BREWOS_RELAY_MACHINES_PER_ACCOUNT": "7",
            "BREWOS_RELAY_ALLOWED_ORIGINS": "https://app.example.com,http://localhost:5173",
            "DATA_DIR": "/var/lib/relay",
            "WEB_DIST_PATH": "web/dist",
            "BREWOS_RELAY_DATABASE_URL": "sqlite:////tmp/x.db",
            "BREWOS_RELAY_DATABASE_POOL": "5",
            "BREWOS_RELAY_LOG_LEVEL": "DEBUG",
            "BREWOS_RELAY_STALL_S": "2.5",
            "BREWOS_RELAY_OUTBOX_BYTES": "1000",
        }
    )
    assert settings == Settings(
        host="127.0.0.1",
        port=443,
        public_url="https://relay.example.com",
        tls_cert=Path("cert.pem"),
        tls_key=Path("key.pem"),
        redirect_port=80,
        trusted_proxies=(ip_network("10.0.0.0/8"), ip_network("::1/128")),
        proxy_protocol=True,
        jwt_secret=SECRET,
        jwt_key_files=(Path("new.pem"), Path("old.pem")),
        sign_up="invited",
        google_client_ids=("web.example", "phone.example"),
        oidc_issuer="https://id.example.com/home/",
        oidc_audiences=("relay",),
        oidc_jwks_url="https://id.example.com/keys?kind=all",
        facebook_app_id="123",
        facebook_app_secret="hush",
        pairing="window",
        new_machines_per_network=6,
        machines_per_account=7,
        allowed_origins=("https://app.example.com", "http://localhost:5173"),
        data_dir=Path("/var/lib/relay"),
        web_dist_path=Path("web/dist"),
        database_url="sqlite:////tmp/x.db",
        database_pool=5,
        log_level="debug",
        limits=ServerLimits(stall_s=2.5, outbox_bytes=1000),
    )
    assert settings.resolved_database_url() == "sqlite:////tmp/x.db"
    assert load({"BREWOS_RELAY_TLS_SELF_SIGNED": "on"}) == Settings(tls_self_signed=True)


def test_each_limit_is_a_setting() -> None:
    for limit in fields(ServerLimits):
        if limit.name in ("never_wait", "owner_commands"):
            continue
        assert limit.type in (int, float)
        settings = load({f"BREWOS_RELAY_{limit.name.upper()}": "7"})
        assert getattr(settings.limits, limit.name) == 7


@pytest.mark.parametrize("value", ["x", "-1", "65536", "1.5", " 80", "8_0", "\u0663", "9" * 5000])
def test_an_invalid_port_is_refused(value: str) -> None:
    with pytest.raises(SettingsError, match=r"PORT is .*: it must be a number from 0 to 65535"):
        load({"PORT": value})


@pytest.mark.parametrize("value", ["0", "-1", "1.5", "nan", "", "9" * 16, "many"])
def test_an_invalid_count_is_refused(value: str) -> None:
    environ = {"BREWOS_RELAY_OUTBOX_BYTES": value}
    if value:
        with pytest.raises(SettingsError, match=r"BREWOS_RELAY_OUTBOX_BYTES .* whole number greater than 0"):
            load(environ)


@pytest.mark.parametrize("value", ["0", "-1", "nan", "inf", "soon", "1e999"])
def test_an_invalid_duration_is_refused(value: str) -> None:
    with pytest.raises(SettingsError, match=f"BREWOS_RELAY_STALL_S is '{value}': .* seconds greater than 0"):
        load({"BREWOS_RELAY_STALL_S": value})


@pytest.mark.parametrize("value", ["0", "0.0", " 0 "])
@pytest.mark.parametrize("name", ["client_rate", "device_rate", "admit_rate"])
def test_a_rate_of_0_switches_it_off(name: str, value: str) -> None:
    assert getattr(load({f"BREWOS_RELAY_{name.upper()}": value}).limits, name) == 0.0
    assert getattr(load({f"BREWOS_RELAY_{name.upper()}": "0.5"}).limits, name) == 0.5


@pytest.mark.parametrize("value", ["-1", "nan", "inf", "fast"])
def test_an_invalid_rate_is_refused(value: str) -> None:
    with pytest.raises(SettingsError, match=f"BREWOS_RELAY_CLIENT_RATE is '{value}': it must be a number"):
        load({"BREWOS_RELAY_CLIENT_RATE": value})


def test_a_burst_may_be_0() -> None:
    assert load({"BREWOS_RELAY_CLIENT_BURST": "0"}).limits.client_burst == 0
    with pytest.raises(SettingsError, match=r"BREWOS_RELAY_CLIENT_BURST is '-1': .* 0 or greater"):
        load({"BREWOS_RELAY_CLIENT_BURST": "-1"})


def test_lists_of_commands_are_empty_unless_they_are_set() -> None:
    settings = load({"BREWOS_RELAY_NEVER_WAIT": "set_mode:on, brew_*,,restart "})
    assert settings.limits.never_wait == ("set_mode:on", "brew_*", "restart")
    assert load({"BREWOS_RELAY_NEVER_WAIT": ","}).limits.never_wait == ("",), "set, so that the server warns"
    assert load({"BREWOS_RELAY_NEVER_WAIT": ""}).limits.never_wait == ()
    assert load({"BREWOS_RELAY_OWNER_COMMANDS": "ota_*"}).limits.owner_commands == ("ota_*",)


def test_an_invalid_log_level_is_refused() -> None:
    with pytest.raises(
        SettingsError, match="BREWOS_RELAY_LOG_LEVEL is 'loud': it must be one of debug, info"
    ):
        load({"BREWOS_RELAY_LOG_LEVEL": "loud"})


def test_an_error_names_the_option_of_a_bad_value() -> None:
    with pytest.raises(SettingsError, match="--log-level is 'loud'"):
        load(log_level="loud")
    with pytest.raises(SettingsError, match="--trusted-proxy is 'home'"):
        load(trusted_proxies="home")


def test_overrides_may_be_limits_and_must_be_settings() -> None:
    assert load(stall_s=0.5, data_dir=Path("x")) == Settings(
        data_dir=Path("x"), limits=ServerLimits(stall_s=0.5)
    )
    with pytest.raises(TypeError, match="no such setting: colour"):
        load(colour="red")

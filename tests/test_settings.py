from dataclasses import fields
from ipaddress import ip_network
from pathlib import Path
from typing import Any

import pytest

from brewos_relay.core.limits import Limits
from brewos_relay.errors import SettingsError
from brewos_relay.settings import Settings, load_settings, variable_names

SECRET = "0123456789abcdef0123456789abcdef"


def load(
    environ: dict[str, str] | None = None, *, dotenv: Path = Path("nowhere"), **overrides: Any
) -> Settings:
    return load_settings(environ=environ or {}, dotenv_path=dotenv, **overrides)


def write_dotenv(folder: Path, content: str | bytes) -> Path:
    path = folder / ".env"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


def test_the_defaults() -> None:
    settings = load()
    assert settings == Settings()
    assert (settings.host, settings.port, settings.log_level) == ("", 3001, "info")
    assert settings.limits == Limits()
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
            "BREWOS_RELAY_ALLOWED_ORIGINS": "https://app.example.com,http://localhost:5173",
            "DATA_DIR": "/var/lib/relay",
            "WEB_DIST_PATH": "web/dist",
            "BREWOS_RELAY_DATABASE_URL": "sqlite:////tmp/x.db",
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
        allowed_origins=("https://app.example.com", "http://localhost:5173"),
        data_dir=Path("/var/lib/relay"),
        web_dist_path=Path("web/dist"),
        database_url="sqlite:////tmp/x.db",
        log_level="debug",
        limits=Limits(stall_s=2.5, outbox_bytes=1000),
    )
    assert settings.resolved_database_url() == "sqlite:////tmp/x.db"
    assert load({"BREWOS_RELAY_TLS_SELF_SIGNED": "on"}) == Settings(tls_self_signed=True)


def test_each_limit_is_a_setting() -> None:
    for limit in fields(Limits):
        if limit.name in ("never_wait", "owner_commands"):
            continue
        assert limit.type in (int, float)
        settings = load({f"BREWOS_RELAY_{limit.name.upper()}": "7"})
        assert getattr(settings.limits, limit.name) == 7


def test_short_names_go_before_prefixed_ones() -> None:
    assert variable_names("port") == ("PORT", "BREWOS_RELAY_PORT")
    assert variable_names("host") == ("BREWOS_RELAY_HOST",)
    assert variable_names("google_client_ids") == ("GOOGLE_CLIENT_ID", "BREWOS_RELAY_GOOGLE_CLIENT_ID")
    assert variable_names("oidc_audiences") == ("BREWOS_RELAY_OIDC_AUDIENCE",)
    assert load({"BREWOS_RELAY_PORT": "81"}).port == 81
    assert load({"BREWOS_RELAY_PORT": "81", "PORT": "82"}).port == 82


def test_the_command_line_goes_before_the_environment_before_dotenv(tmp_path: Path) -> None:
    dotenv = write_dotenv(tmp_path, "PORT=1\nBREWOS_RELAY_HOST=a\nBREWOS_RELAY_LOG_LEVEL=error\n")
    environ = {"BREWOS_RELAY_PORT": "2", "BREWOS_RELAY_HOST": "b"}
    settings = load(environ, dotenv=dotenv, port=3, host=None)
    assert (settings.port, settings.host, settings.log_level) == (3, "b", "error")


def test_an_empty_variable_is_not_set(tmp_path: Path) -> None:
    dotenv = write_dotenv(tmp_path, "PORT=5\nDATA_DIR=\nWEB_DIST_PATH\n")
    settings = load({"PORT": "", "JWT_SECRET": ""}, dotenv=dotenv)
    assert settings == Settings(port=5)


def test_a_dotenv_is_taken_literally(tmp_path: Path) -> None:
    dotenv = write_dotenv(tmp_path, f"# a comment\nexport JWT_SECRET='${{HOME}}{SECRET}'\n")
    assert load(dotenv=dotenv).jwt_secret == "${HOME}" + SECRET


def test_a_dotenv_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match=r"\.env cannot be read: it is not UTF-8"):
        load(dotenv=write_dotenv(tmp_path, b"PORT=\xff\n"))
    with pytest.raises(SettingsError, match="cannot be read: Not a directory"):
        load(dotenv=tmp_path / ".env" / ".env")


def test_a_folder_in_the_place_of_a_dotenv_is_ignored(tmp_path: Path) -> None:
    assert load(dotenv=tmp_path) == Settings()


@pytest.mark.parametrize("value", ["x", "-1", "65536", "1.5", " 80", "8_0", "\u0663", "9" * 5000])
def test_a_port_that_is_none(value: str) -> None:
    with pytest.raises(SettingsError, match=r"PORT is .*: it must be a number from 0 to 65535"):
        load({"PORT": value})


@pytest.mark.parametrize("value", ["0", "-1", "1.5", "nan", "", "9" * 16, "many"])
def test_a_bad_count(value: str) -> None:
    environ = {"BREWOS_RELAY_OUTBOX_BYTES": value}
    if value:
        with pytest.raises(SettingsError, match=r"BREWOS_RELAY_OUTBOX_BYTES .* whole number greater than 0"):
            load(environ)


@pytest.mark.parametrize("value", ["0", "-1", "nan", "inf", "soon", "1e999"])
def test_a_bad_duration(value: str) -> None:
    with pytest.raises(SettingsError, match=f"BREWOS_RELAY_STALL_S is '{value}': .* seconds greater than 0"):
        load({"BREWOS_RELAY_STALL_S": value})


@pytest.mark.parametrize("value", ["0", "0.0", " 0 "])
@pytest.mark.parametrize("name", ["client_rate", "device_rate", "admit_rate"])
def test_a_rate_of_0_switches_it_off(name: str, value: str) -> None:
    assert getattr(load({f"BREWOS_RELAY_{name.upper()}": value}).limits, name) == 0.0
    assert getattr(load({f"BREWOS_RELAY_{name.upper()}": "0.5"}).limits, name) == 0.5


@pytest.mark.parametrize("value", ["-1", "nan", "inf", "fast"])
def test_a_bad_rate(value: str) -> None:
    with pytest.raises(SettingsError, match=f"BREWOS_RELAY_CLIENT_RATE is '{value}': it must be a number"):
        load({"BREWOS_RELAY_CLIENT_RATE": value})


def test_a_burst_may_be_nothing() -> None:
    assert load({"BREWOS_RELAY_CLIENT_BURST": "0"}).limits.client_burst == 0
    with pytest.raises(SettingsError, match=r"BREWOS_RELAY_CLIENT_BURST is '-1': .* 0 or greater"):
        load({"BREWOS_RELAY_CLIENT_BURST": "-1"})


def test_which_commands_never_wait_is_a_list() -> None:
    settings = load({"BREWOS_RELAY_NEVER_WAIT": "set_mode:on, brew_*,,restart "})
    assert settings.limits.never_wait == ("set_mode:on", "brew_*", "restart")
    assert load({"BREWOS_RELAY_NEVER_WAIT": ","}).limits.never_wait == (), "everything may wait"
    assert load({"BREWOS_RELAY_NEVER_WAIT": ""}).limits.never_wait == Limits().never_wait
    assert load({"BREWOS_RELAY_OWNER_COMMANDS": "ota_*"}).limits.owner_commands == ("ota_*",)


def test_a_log_level_that_is_none() -> None:
    with pytest.raises(
        SettingsError, match="BREWOS_RELAY_LOG_LEVEL is 'loud': it must be one of debug, info"
    ):
        load({"BREWOS_RELAY_LOG_LEVEL": "loud"})


def test_a_bad_value_of_the_command_line_is_named_as_such() -> None:
    with pytest.raises(SettingsError, match="--log-level is 'loud'"):
        load(log_level="loud")
    with pytest.raises(SettingsError, match="--trusted-proxy is 'home'"):
        load(trusted_proxies="home")


def test_overrides_take_limits_and_refuse_what_is_no_setting() -> None:
    assert load(stall_s=0.5, data_dir=Path("x")) == Settings(data_dir=Path("x"), limits=Limits(stall_s=0.5))
    with pytest.raises(TypeError, match="no such setting: colour"):
        load(colour="red")


def test_a_secret_is_required_and_must_be_long_enough() -> None:
    assert Settings(jwt_secret=SECRET).require_jwt_secrets() == [SECRET]
    assert Settings(jwt_secret="ä" * 16).require_jwt_secrets() == ["ä" * 16]
    with pytest.raises(SettingsError, match=r"JWT_SECRET is not set: .* `brewos-relay secret`"):
        Settings().require_jwt_secrets()
    with pytest.raises(SettingsError, match=r"JWT_SECRET has 31 bytes: .* 32 bytes; `brewos-relay secret`"):
        Settings(jwt_secret=SECRET[1:]).require_jwt_secrets()
    with pytest.raises(SettingsError, match=r"JWT_SECRET is not UTF-8: .* `brewos-relay secret`"):
        Settings(jwt_secret=SECRET + "\udcff").require_jwt_secrets()


def test_several_secrets_keep_their_order() -> None:
    assert Settings(jwt_secret=f"{SECRET[::-1]}, {SECRET},").require_jwt_secrets() == [SECRET[::-1], SECRET]
    with pytest.raises(SettingsError, match=r"JWT_SECRET has 5 bytes \(number 2 of 2\): ") as caught:
        Settings(jwt_secret=f"{SECRET},short").require_jwt_secrets()
    assert SECRET not in str(caught.value)
    assert "short" not in str(caught.value)


def test_keys_in_files_need_no_secret() -> None:
    assert Settings(jwt_key_files=(Path("k.pem"),)).require_jwt_secrets() == []
    assert Settings(jwt_key_files=(Path("k.pem"),), jwt_secret=SECRET).require_jwt_secrets() == [SECRET]
    with pytest.raises(SettingsError, match="JWT_SECRET has 5 bytes"):
        Settings(jwt_key_files=(Path("k.pem"),), jwt_secret="short").require_jwt_secrets()


CERT: dict[str, Any] = {"tls_cert": Path("cert.pem"), "tls_key": Path("key.pem")}
NETWORK = ip_network("10.0.0.0/8")


@pytest.mark.parametrize(
    ("values", "problem"),
    [
        ({"tls_cert": Path("cert.pem")}, "TLS_CERT needs BREWOS_RELAY_TLS_KEY"),
        ({"tls_key": Path("key.pem")}, "TLS_KEY needs BREWOS_RELAY_TLS_CERT"),
        (CERT | {"tls_self_signed": True}, "TLS_CERT and BREWOS_RELAY_TLS_SELF_SIGNED exclude"),
        ({"redirect_port": 80}, "REDIRECT_PORT needs BREWOS_RELAY_TLS_CERT or"),
        (CERT | {"redirect_port": 443, "port": 443}, "REDIRECT_PORT is 443, where the relay itself listens"),
        ({"proxy_protocol": True}, "PROXY_PROTOCOL needs BREWOS_RELAY_TRUSTED_PROXIES"),
        ({"oidc_issuer": "https://id.example.com"}, "OIDC_ISSUER needs BREWOS_RELAY_OIDC_AUDIENCE"),
        ({"oidc_audiences": ("relay",)}, "need BREWOS_RELAY_OIDC_ISSUER"),
        ({"oidc_jwks_url": "https://id.example.com/keys"}, "need BREWOS_RELAY_OIDC_ISSUER"),
        ({"facebook_app_id": "123"}, "FACEBOOK_APP_ID and BREWOS_RELAY_FACEBOOK_APP_SECRET"),
        ({"facebook_app_secret": "hush"}, "FACEBOOK_APP_ID and BREWOS_RELAY_FACEBOOK_APP_SECRET"),
    ],
)
def test_settings_that_do_not_go_together(values: dict[str, Any], problem: str) -> None:
    with pytest.raises(SettingsError, match=problem) as caught:
        Settings(**values)
    assert str(caught.value).startswith("BREWOS_RELAY_")
    assert "hush" not in str(caught.value)


def test_settings_that_do_go_together() -> None:
    assert not Settings().speaks_tls
    assert Settings(**CERT, redirect_port=80).speaks_tls
    assert Settings(tls_self_signed=True, redirect_port=0, port=0).speaks_tls, "0 takes any free ones"
    assert Settings(proxy_protocol=True, trusted_proxies=(NETWORK,)).proxy_protocol
    assert Settings(oidc_issuer="https://id.example.com", oidc_audiences=("relay",)).oidc_jwks_url is None
    assert Settings(facebook_app_id="123", facebook_app_secret="hush").facebook_app_id == "123"


def test_secrets_stay_out_of_texts() -> None:
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
    with pytest.raises(SettingsError) as caught:
        Settings(jwt_secret="short-secret").require_jwt_secrets()
    assert "short-secret" not in str(caught.value)


def test_the_database_lies_in_the_data_dir() -> None:
    assert Settings(data_dir=Path("/a b/c")).resolved_database_url() == "sqlite:////a b/c/brewos-relay.db"


@pytest.mark.parametrize("data_dir", ["what?", "100%"])
def test_a_data_dir_that_no_url_can_hold(data_dir: str) -> None:
    with pytest.raises(SettingsError, match=r"DATA_DIR is '.*': choose a folder without"):
        Settings(data_dir=Path(data_dir)).resolved_database_url()

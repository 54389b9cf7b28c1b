from dataclasses import fields
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
            "PORT": "80",
            "JWT_SECRET": SECRET,
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
        port=80,
        jwt_secret=SECRET,
        data_dir=Path("/var/lib/relay"),
        web_dist_path=Path("web/dist"),
        database_url="sqlite:////tmp/x.db",
        log_level="debug",
        limits=Limits(stall_s=2.5, outbox_bytes=1000),
    )
    assert settings.resolved_database_url() == "sqlite:////tmp/x.db"


def test_each_limit_is_a_setting() -> None:
    for limit in fields(Limits):
        if limit.name == "never_wait":
            continue
        assert limit.type in (int, float)
        settings = load({f"BREWOS_RELAY_{limit.name.upper()}": "7"})
        assert getattr(settings.limits, limit.name) == 7


def test_short_names_go_before_prefixed_ones() -> None:
    assert variable_names("port") == ("PORT", "BREWOS_RELAY_PORT")
    assert variable_names("host") == ("BREWOS_RELAY_HOST",)
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


def test_a_log_level_that_is_none() -> None:
    with pytest.raises(
        SettingsError, match="BREWOS_RELAY_LOG_LEVEL is 'loud': it must be one of debug, info"
    ):
        load({"BREWOS_RELAY_LOG_LEVEL": "loud"})


def test_a_bad_value_of_the_command_line_is_named_as_such() -> None:
    with pytest.raises(SettingsError, match="--log-level is 'loud'"):
        load(log_level="loud")


def test_overrides_take_limits_and_refuse_what_is_no_setting() -> None:
    assert load(stall_s=0.5, data_dir=Path("x")) == Settings(data_dir=Path("x"), limits=Limits(stall_s=0.5))
    with pytest.raises(TypeError, match="no such setting: colour"):
        load(colour="red")


def test_a_secret_is_required_and_must_be_long_enough() -> None:
    assert Settings(jwt_secret=SECRET).require_jwt_secret() == SECRET
    assert Settings(jwt_secret="ä" * 16).require_jwt_secret() == "ä" * 16
    with pytest.raises(SettingsError, match=r"JWT_SECRET is not set: .* `brewos-relay secret`"):
        Settings().require_jwt_secret()
    with pytest.raises(SettingsError, match=r"JWT_SECRET has 31 bytes: .* 32 bytes; `brewos-relay secret`"):
        Settings(jwt_secret=SECRET[1:]).require_jwt_secret()
    with pytest.raises(SettingsError, match=r"JWT_SECRET is not UTF-8: .* `brewos-relay secret`"):
        Settings(jwt_secret=SECRET + "\udcff").require_jwt_secret()


def test_secrets_stay_out_of_texts() -> None:
    settings = Settings(jwt_secret=SECRET, database_url="postgresql://relay:hunter2@db/relay")
    assert SECRET not in repr(settings)
    assert "hunter2" not in repr(settings)
    with pytest.raises(SettingsError) as caught:
        Settings(jwt_secret="short-secret").require_jwt_secret()
    assert "short-secret" not in str(caught.value)


def test_the_database_lies_in_the_data_dir() -> None:
    assert Settings(data_dir=Path("/a b/c")).resolved_database_url() == "sqlite:////a b/c/brewos-relay.db"


@pytest.mark.parametrize("data_dir", ["what?", "100%"])
def test_a_data_dir_that_no_url_can_hold(data_dir: str) -> None:
    with pytest.raises(SettingsError, match=r"DATA_DIR is '.*': choose a folder without"):
        Settings(data_dir=Path(data_dir)).resolved_database_url()

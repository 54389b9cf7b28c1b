"""Where settings stand: variables, files like those of systemd's LoadCredential=, a `.env`."""

from pathlib import Path
from typing import Any

import pytest

from brewos_relay.errors import SettingsError
from brewos_relay.settings import (
    Settings,
    find_settings,
    load_settings,
    read_variable,
    unknown_variables,
    variable_names,
)

SECRET = "0123456789abcdef0123456789abcdef"


def load(
    environ: dict[str, str] | None = None, *, dotenv: Path = Path("nowhere"), **overrides: Any
) -> Settings:
    return load_settings(environ=environ or {}, dotenv_path=dotenv, **overrides)


def write_dotenv(folder: Path, content: str | bytes) -> Path:
    path = folder / ".env"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


def write_credential(folder: Path, name: str, content: bytes) -> dict[str, str]:
    (folder / name).write_bytes(content)
    return {"CREDENTIALS_DIRECTORY": str(folder)}


def test_short_names_take_precedence_over_prefixed_names() -> None:
    assert variable_names("port") == ("PORT", "BREWOS_RELAY_PORT")
    assert variable_names("host") == ("BREWOS_RELAY_HOST",)
    assert variable_names("google_client_ids") == ("GOOGLE_CLIENT_ID", "BREWOS_RELAY_GOOGLE_CLIENT_ID")
    assert variable_names("oidc_audiences") == ("BREWOS_RELAY_OIDC_AUDIENCE",)
    assert load({"BREWOS_RELAY_PORT": "81"}).port == 81
    assert load({"BREWOS_RELAY_PORT": "81", "PORT": "82"}).port == 82


def test_command_line_precedes_environment_and_environment_precedes_dotenv(tmp_path: Path) -> None:
    dotenv = write_dotenv(tmp_path, "PORT=1\nBREWOS_RELAY_HOST=a\nBREWOS_RELAY_LOG_LEVEL=error\n")
    environ = {"BREWOS_RELAY_PORT": "2", "BREWOS_RELAY_HOST": "b"}
    settings = load(environ, dotenv=dotenv, port=3, host=None)
    assert (settings.port, settings.host, settings.log_level) == (3, "b", "error")


def test_an_empty_variable_is_not_set(tmp_path: Path) -> None:
    dotenv = write_dotenv(tmp_path, "PORT=5\nDATA_DIR=\nWEB_DIST_PATH\n")
    settings = load({"PORT": "", "JWT_SECRET": ""}, dotenv=dotenv)
    assert settings == Settings(port=5)


def test_values_in_a_dotenv_are_literal(tmp_path: Path) -> None:
    dotenv = write_dotenv(tmp_path, f"# a comment\nexport JWT_SECRET='${{HOME}}{SECRET}'\n")
    assert load(dotenv=dotenv).jwt_secret == "${HOME}" + SECRET


def test_an_unreadable_dotenv_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match=r"\.env cannot be read: it is not UTF-8"):
        load(dotenv=write_dotenv(tmp_path, b"PORT=\xff\n"))
    with pytest.raises(SettingsError, match="cannot be read: Not a directory"):
        load(dotenv=tmp_path / ".env" / ".env")


def test_a_folder_named_dotenv_is_ignored(tmp_path: Path) -> None:
    assert load(dotenv=tmp_path) == Settings()


@pytest.mark.parametrize("end", [b"", b"\n", b"\r\n"])
def test_a_credential_sets_a_setting(tmp_path: Path, end: bytes) -> None:
    environ = write_credential(tmp_path, "JWT_SECRET", SECRET.encode() + end)
    assert load(environ).require_jwt_secrets() == [SECRET]
    assert read_variable("JWT_SECRET", environ=environ, dotenv_path=tmp_path / ".env") == SECRET
    assert read_variable("OTHER", environ=environ, dotenv_path=tmp_path / ".env") is None


def test_every_setting_can_be_a_credential(tmp_path: Path) -> None:
    write_credential(tmp_path, "BREWOS_RELAY_DRAIN_S", b"7\n")
    environ = write_credential(tmp_path, "BREWOS_RELAY_HOST", b"127.0.0.1")
    found = load(environ)
    assert (found.limits.drain_s, found.host) == (7, "127.0.0.1")


def test_environment_precedes_credentials_and_credentials_precede_dotenv(tmp_path: Path) -> None:
    environ = write_credential(tmp_path, "PORT", b"2")
    dotenv = write_dotenv(tmp_path, "PORT=3\n")
    assert load({**environ, "PORT": "1"}, dotenv=dotenv).port == 1
    assert load(environ, dotenv=dotenv).port == 2
    assert load(environ, dotenv=dotenv, port=4).port == 4
    assert load({}, dotenv=dotenv).port == 3


def test_an_unreadable_credential_is_an_error(tmp_path: Path) -> None:
    environ = write_credential(tmp_path, "JWT_SECRET", b"\xff\xfe")
    with pytest.raises(SettingsError, match="JWT_SECRET cannot be read: it is not UTF-8"):
        load(environ)
    (tmp_path / "JWT_SECRET").unlink()
    (tmp_path / "JWT_SECRET").mkdir()
    with pytest.raises(SettingsError, match="JWT_SECRET cannot be read: Is a directory"):
        load(environ)


# What Kubernetes tells every process beside a service of this name. kubernetes.io: "Environment variables"
SERVICE_LINKS = {
    "BREWOS_RELAY_SERVICE_HOST": "10.0.0.1",
    "BREWOS_RELAY_SERVICE_PORT": "80",
    "BREWOS_RELAY_SERVICE_PORT_HTTP": "80",
    "BREWOS_RELAY_PORT": "tcp://10.0.0.1:80",
    "BREWOS_RELAY_PORT_80_TCP": "tcp://10.0.0.1:80",
    "BREWOS_RELAY_PORT_80_TCP_PROTO": "tcp",
    "BREWOS_RELAY_PORT_80_TCP_PORT": "80",
    "BREWOS_RELAY_PORT_80_TCP_ADDR": "10.0.0.1",
    "BREWOS_RELAY_METRICS_SERVICE_HOST": "10.0.0.2",
    "BREWOS_RELAY_METRICS_SERVICE_PORT": "9100",
    "BREWOS_RELAY_METRICS_PORT": "udp://10.0.0.2:9100",
    "BREWOS_RELAY_METRICS_PORT_9100_UDP": "udp://10.0.0.2:9100",
    "BREWOS_RELAY_REDIRECT_PORT": "tcp://[fd00::1]:80",
}


def test_service_links_of_an_orchestrator_set_nothing() -> None:
    assert load(SERVICE_LINKS) == Settings()
    assert unknown_variables(environ=SERVICE_LINKS, dotenv_path=Path("nowhere")) == []
    assert read_variable("BREWOS_RELAY_PORT", environ=SERVICE_LINKS, dotenv_path=Path("nowhere")) is None


def test_service_links_do_not_replace_ports_from_files(tmp_path: Path) -> None:
    dotenv = write_dotenv(tmp_path, "BREWOS_RELAY_PORT=81\n")
    assert load(SERVICE_LINKS, dotenv=dotenv).port == 81


def test_no_setting_is_named_like_a_service_link() -> None:
    every = {variable: "x" for name in find_settings(environ={}) for variable in variable_names(name)}
    found = find_settings(environ=every, dotenv_path=Path("nowhere"))
    assert all(one is not None for one in found.values())


def test_wrong_port_is_still_refused() -> None:
    with pytest.raises(SettingsError, match="BREWOS_RELAY_PORT is 'http://a:80'"):
        load({"BREWOS_RELAY_PORT": "http://a:80"})


def test_unknown_variables_are_found_with_the_nearest_name(tmp_path: Path) -> None:
    write_credential(tmp_path, "BREWOS_RELAY_OIDC_ISUER", b"https://a.example")
    environ = write_credential(tmp_path, "unrelated", b"x") | {
        "BREWOS_RELAY_PROT": "80",
        "BREWOS_RELAY_ZZZZ": "1",
        "BREWOS_RELAY_URL": "http://a",
        "BREWOS_RELAY_BROWSER_TESTS": "required",
        "BREWOS_RELAY_HOST": "a",
        "OTHER": "1",
    }
    dotenv = write_dotenv(tmp_path, "BREWOS_RELAY_LOG_LEVLE=info\nPORT=1\n")
    texts = [str(each) for each in unknown_variables(environ=environ, dotenv_path=dotenv)]
    no_effect = "is not a setting and has no effect"
    assert texts == [
        f"BREWOS_RELAY_PROT in the environment {no_effect}; did you mean BREWOS_RELAY_PORT?",
        f"BREWOS_RELAY_ZZZZ in the environment {no_effect}",
        f"BREWOS_RELAY_OIDC_ISUER in the credentials {no_effect}; did you mean BREWOS_RELAY_OIDC_ISSUER?",
        f"BREWOS_RELAY_LOG_LEVLE in {dotenv} {no_effect}; did you mean BREWOS_RELAY_LOG_LEVEL?",
    ]


def test_credentials_folder_that_is_missing_has_no_unknown_variables(tmp_path: Path) -> None:
    environ = {"CREDENTIALS_DIRECTORY": str(tmp_path / "missing")}
    assert unknown_variables(environ=environ, dotenv_path=Path("nowhere")) == []


def test_byte_order_mark_is_removed_from_dotenv_and_credentials(tmp_path: Path) -> None:
    dotenv = write_dotenv(tmp_path, b"\xef\xbb\xbfPORT=81\n")
    assert load(dotenv=dotenv).port == 81
    environ = write_credential(tmp_path, "JWT_SECRET", b"\xef\xbb\xbf" + SECRET.encode())
    assert load(environ).jwt_secret == SECRET

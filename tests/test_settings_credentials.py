"""Secrets that come as files, as from systemd's LoadCredential=."""

from pathlib import Path

import pytest

from brewos_relay.errors import SettingsError
from brewos_relay.settings import Settings, load_settings, read_variable

SECRET = "from-a-file-" + "f" * 32


def write(folder: Path, name: str, content: bytes) -> dict[str, str]:
    (folder / name).write_bytes(content)
    return {"CREDENTIALS_DIRECTORY": str(folder)}


def load(folder: Path, environ: dict[str, str], **overrides: object) -> Settings:
    return load_settings(environ=environ, dotenv_path=folder / ".env", **overrides)


@pytest.mark.parametrize("end", [b"", b"\n", b"\r\n"])
def test_a_file_is_as_good_as_a_variable(tmp_path: Path, end: bytes) -> None:
    environ = write(tmp_path, "JWT_SECRET", SECRET.encode() + end)
    assert load(tmp_path, environ).require_jwt_secrets() == [SECRET]
    assert read_variable("JWT_SECRET", environ=environ, dotenv_path=tmp_path / ".env") == SECRET
    assert read_variable("OTHER", environ=environ, dotenv_path=tmp_path / ".env") is None


def test_every_setting_can_be_a_file(tmp_path: Path) -> None:
    write(tmp_path, "BREWOS_RELAY_DRAIN_S", b"7\n")
    environ = write(tmp_path, "BREWOS_RELAY_HOST", b"127.0.0.1")
    found = load(tmp_path, environ)
    assert (found.limits.drain_s, found.host) == (7, "127.0.0.1")


def test_the_environment_goes_before_files_and_files_before_dotenv(tmp_path: Path) -> None:
    environ = write(tmp_path, "PORT", b"2")
    (tmp_path / ".env").write_text("PORT=3\n")
    assert load(tmp_path, {**environ, "PORT": "1"}).port == 1
    assert load(tmp_path, environ).port == 2
    assert load(tmp_path, environ, port=4).port == 4
    assert load(tmp_path, {}).port == 3


def test_a_file_that_cannot_be_read(tmp_path: Path) -> None:
    environ = write(tmp_path, "JWT_SECRET", b"\xff\xfe")
    with pytest.raises(SettingsError, match="JWT_SECRET cannot be read: it is not UTF-8"):
        load(tmp_path, environ)
    (tmp_path / "JWT_SECRET").unlink()
    (tmp_path / "JWT_SECRET").mkdir()
    with pytest.raises(SettingsError, match="JWT_SECRET cannot be read: Is a directory"):
        load(tmp_path, environ)

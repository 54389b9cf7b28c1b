from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric import ed25519
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

from brewos_relay.auth.tokens import KeyRing
from brewos_relay.errors import SettingsError
from brewos_relay.server.key_ring import read_key_ring
from brewos_relay.settings import Settings

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


def test_files_that_are_no_good(tmp_path: Path) -> None:
    file = tmp_path / "k.pem"
    with pytest.raises(SettingsError, match=r"JWT_KEY_FILES names .*k\.pem: it cannot be read: No such file"):
        read_key_ring(Settings(jwt_key_files=(file,)))
    file.write_text("hush")
    with pytest.raises(SettingsError, match=r"JWT_KEY_FILES names .*k\.pem: there is no private key"):
        read_key_ring(Settings(jwt_key_files=(file,)))


def test_a_secret_that_is_a_key(tmp_path: Path) -> None:
    pem = write_key(tmp_path / "k.pem").read_text()
    with pytest.raises(SettingsError, match="JWT_SECRET: the secret is a key") as caught:
        read_key_ring(Settings(jwt_secret=f"{OLD},{pem}"))
    assert pem not in str(caught.value)


def test_no_key_at_all() -> None:
    with pytest.raises(SettingsError, match="JWT_SECRET is not set"):
        read_key_ring(Settings())

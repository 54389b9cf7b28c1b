"""The certificate that the server makes for itself."""

import datetime
import ipaddress
import socket
import ssl
import sys
from pathlib import Path

import pytest
from cryptography import x509

from brewos_relay.errors import SettingsError
from brewos_relay.server import self_signed
from brewos_relay.server.certificates import load_certificate
from brewos_relay.server.local_ca import CERTIFICATE_FILE, FOLDER, is_private
from brewos_relay.server.self_signed import FILE_NAME, ensure_self_signed, own_addresses, own_names

NOW = datetime.datetime(2030, 1, 1, tzinfo=datetime.UTC)
DAY = datetime.timedelta(days=1)


def test_it_serves_this_machine_under_all_of_its_names(tmp_path: Path) -> None:
    path = ensure_self_signed(tmp_path / "new" / "folder")
    assert path == tmp_path / "new" / "folder" / FILE_NAME
    assert path.stat().st_mode & 0o777 == 0o600
    assert {file.name for file in path.parent.iterdir()} == {FILE_NAME, FOLDER}, "no other file is left"
    _, certificate = load_certificate(path, path)
    for host in (
        "localhost",
        "127.0.0.1",
        "[::1]",
        *own_names(),
        *map(str, filter(is_private, own_addresses())),
    ):
        assert certificate.is_for(host), host


def test_a_client_that_trusts_it_takes_it(tmp_path: Path) -> None:
    path = ensure_self_signed(tmp_path)
    context, _ = load_certificate(path, path)
    to_server, to_client = ssl.MemoryBIO(), ssl.MemoryBIO()
    strict = ssl.create_default_context(cafile=tmp_path / FOLDER / CERTIFICATE_FILE)
    ours = strict.wrap_bio(to_client, to_server, server_hostname="localhost")
    theirs = context.wrap_bio(to_server, to_client, server_side=True)
    for end in (ours, theirs):
        with pytest.raises(ssl.SSLWantReadError):
            end.do_handshake()
    ours.do_handshake()


def test_it_is_kept_until_30_days_before_its_expiry(tmp_path: Path) -> None:
    path = ensure_self_signed(tmp_path, now=NOW)
    first = path.read_bytes()
    ends = x509.load_pem_x509_certificate(first).not_valid_after_utc
    assert ends - NOW == 396 * DAY
    assert ensure_self_signed(tmp_path, now=ends - 31 * DAY).read_bytes() == first
    second = ensure_self_signed(tmp_path, now=ends - 30 * DAY).read_bytes()
    assert second != first
    assert x509.load_pem_x509_certificate(second).not_valid_after_utc == ends - 30 * DAY + 396 * DAY


@pytest.mark.parametrize(
    ("made_at", "because"),
    [
        (datetime.datetime(1970, 1, 2, tzinfo=datetime.UTC), "has expired on 1971"),
        (NOW + 400 * DAY, "was created while this machine's clock was wrong"),
        (NOW + 2 * DAY, "was created while this machine's clock was wrong"),
    ],
)
def test_certificate_made_while_the_clock_was_wrong_is_renewed(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, made_at: datetime.datetime, because: str
) -> None:
    path = ensure_self_signed(tmp_path, now=made_at)
    wrong = path.read_bytes()
    ensure_self_signed(tmp_path, now=NOW)
    right = path.read_bytes()
    assert right != wrong
    certificate = x509.load_pem_x509_certificate(right)
    assert certificate.not_valid_before_utc < NOW < certificate.not_valid_after_utc
    assert because in caplog.text


def test_certificate_stays_while_the_clock_is_not_set(tmp_path: Path) -> None:
    """A computer without a battery for its clock starts in 1970 at each boot."""
    first = ensure_self_signed(tmp_path, now=NOW).read_bytes()
    for not_set in (datetime.datetime(1970, 1, 1, tzinfo=datetime.UTC), NOW.replace(year=2025)):
        assert ensure_self_signed(tmp_path, now=not_set).read_bytes() == first


@pytest.mark.parametrize("content", [b"", b"garbage", b"-----BEGIN CERTIFICATE-----\n"])
def test_an_invalid_file_is_replaced(tmp_path: Path, content: bytes) -> None:
    (tmp_path / FILE_NAME).write_bytes(content)
    (tmp_path / FILE_NAME).chmod(0o644)
    path = ensure_self_signed(tmp_path)
    load_certificate(path, path)
    assert path.stat().st_mode & 0o777 == 0o600


def test_an_unwritable_folder_is_reported(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(SettingsError, match=r"cannot store the certificate in .*file.*: Not a directory"):
        ensure_self_signed(tmp_path / "file")


@pytest.mark.parametrize(
    ("host", "names"),
    [
        ("Kitchen", ["localhost", "kitchen", "kitchen.local"]),
        ("kitchen.example.org.", ["localhost", "kitchen.example.org", "kitchen", "kitchen.local"]),
        ("localhost", ["localhost", "localhost.local"]),
        ("küche", ["localhost"]),
        ("", ["localhost"]),
        ("a" * 64, ["localhost"]),
    ],
)
def test_names_that_can_stand_in_a_certificate(
    monkeypatch: pytest.MonkeyPatch, host: str, names: list[str]
) -> None:
    monkeypatch.setattr(socket, "gethostname", lambda: host)
    assert own_names() == names


def test_addresses_are_found_without_help_from_the_system(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise OSError("no network here")

    monkeypatch.setattr(socket, "getaddrinfo", fail)
    monkeypatch.setattr(socket.socket, "connect", fail)
    monkeypatch.setattr(sys, "platform", "elsewhere")
    assert own_addresses() == [ipaddress.ip_address("127.0.0.1"), ipaddress.ip_address("::1")]


@pytest.mark.skipif(sys.platform != "linux", reason="asks Linux")
def test_a_process_that_may_not_list_interfaces_gets_its_certificate(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def fail() -> None:
        raise OSError("Address family not supported by protocol")

    monkeypatch.setattr(socket, "if_nameindex", fail)
    _, certificate = load_certificate(*[ensure_self_signed(tmp_path)] * 2)
    assert certificate.is_for("127.0.0.1")


@pytest.mark.skipif(sys.platform != "linux", reason="asks Linux")
def test_addresses_of_interfaces_are_found() -> None:
    assert "127.0.0.1" in self_signed._addresses_of_interfaces()
    assert all(ipaddress.ip_address(address) for address in self_signed._addresses_of_interfaces())

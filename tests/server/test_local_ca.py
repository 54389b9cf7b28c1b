"""The local CA, as clients see it that trust nothing else."""

import datetime
import os
import shutil
import ssl
import stat
import subprocess
from collections.abc import Iterator
from ipaddress import IPv4Address, ip_address
from pathlib import Path

import pytest
from cryptography import x509

from brewos_relay.errors import SettingsError
from brewos_relay.server import self_signed
from brewos_relay.server.certificates import load_certificate
from brewos_relay.server.local_ca import CERTIFICATE_FILE, FOLDER, KEY_FILE, LocalCa, replace_file
from brewos_relay.server.self_signed import FILE_NAME, ca_problem, ensure_self_signed, replace_ca

NOW = datetime.datetime(2030, 1, 1, tzinfo=datetime.UTC)
DAY = datetime.timedelta(days=1)
HOST = "coffee.example.org"


@pytest.fixture(autouse=True)
def at_home(monkeypatch: pytest.MonkeyPatch) -> None:
    """A computer with a private and a public address."""
    addresses = [IPv4Address("127.0.0.1"), IPv4Address("192.168.1.5"), IPv4Address("192.0.2.9")]
    monkeypatch.setattr(self_signed, "own_addresses", lambda: addresses)
    monkeypatch.setattr(self_signed, "own_names", lambda: ["localhost", "kitchen", "kitchen.local"])


def ca_of(folder: Path) -> LocalCa:
    ca = LocalCa.load(folder)
    assert ca is not None
    return ca


def connect(server_file: Path, ca_file: Path, host: str) -> None:
    """Do a handshake with a client that trusts only the CA. Raises ssl.SSLCertVerificationError."""
    context, _ = load_certificate(server_file, server_file)
    to_server, to_client = ssl.MemoryBIO(), ssl.MemoryBIO()
    client = ssl.create_default_context(cafile=ca_file)
    client.verify_flags |= ssl.VERIFY_X509_STRICT  # the default from Python 3.13 on
    ours = client.wrap_bio(to_client, to_server, server_hostname=host)
    theirs = context.wrap_bio(to_server, to_client, server_side=True)
    for end in (ours, theirs):
        with pytest.raises(ssl.SSLWantReadError):
            end.do_handshake()
    ours.do_handshake()


def openssl_verifies(server_file: Path, ca_file: Path, host: str) -> bool:
    try:
        kind = ["-verify_ip", str(ip_address(host))]
    except ValueError:
        kind = ["-verify_hostname", host]
    trust = ["-no-CApath", "-no-CAstore", "-CAfile", str(ca_file)]
    command = ["openssl", "verify", "-x509_strict", "-purpose", "sslserver", *trust, *kind, str(server_file)]
    return subprocess.run(command, capture_output=True, timeout=10, check=False).returncode == 0


def test_clients_that_trust_only_the_ca_accept_the_server(tmp_path: Path) -> None:
    server_file = ensure_self_signed(tmp_path, HOST)
    ca_file = tmp_path / FOLDER / CERTIFICATE_FILE
    for host in (HOST, "localhost", "kitchen", "kitchen.local", "127.0.0.1", "192.168.1.5"):
        connect(server_file, ca_file, host)
        assert shutil.which("openssl") is None or openssl_verifies(server_file, ca_file, host), host
    for host in ("example.org", "192.168.1.6", "192.0.2.9"):
        with pytest.raises(ssl.SSLCertVerificationError):
            connect(server_file, ca_file, host)


@pytest.mark.parametrize("other", ["bank.example", "example.org", "kitchen2", "192.0.2.9", "2001:db8::1"])
def test_clients_refuse_the_ca_s_certificate_for_another_name(tmp_path: Path, other: str) -> None:
    ensure_self_signed(tmp_path, HOST)
    ca = ca_of(tmp_path)
    assert not ca.permits(other)
    forged = tmp_path / "forged.pem"
    replace_file(forged, ca.issue([other, HOST], now=datetime.datetime.now(datetime.UTC)))
    ca_file = tmp_path / FOLDER / CERTIFICATE_FILE
    for host in (other, HOST):
        with pytest.raises(ssl.SSLCertVerificationError, match="permitted subtree violation"):
            connect(forged, ca_file, host)
        assert shutil.which("openssl") is None or not openssl_verifies(forged, ca_file, host)


def test_ca_cannot_create_other_authorities_and_has_critical_constraints(tmp_path: Path) -> None:
    ensure_self_signed(tmp_path, HOST)
    extensions = ca_of(tmp_path).certificate.extensions
    constraints = extensions.get_extension_for_class(x509.BasicConstraints)
    assert (constraints.critical, constraints.value) == (True, x509.BasicConstraints(True, 0))
    assert extensions.get_extension_for_class(x509.NameConstraints).critical
    assert extensions.get_extension_for_class(x509.KeyUsage).critical
    leaf = x509.load_pem_x509_certificate((tmp_path / FILE_NAME).read_bytes())
    assert not leaf.extensions.get_extension_for_class(x509.BasicConstraints).value.ca
    assert leaf.not_valid_after_utc - leaf.not_valid_before_utc <= 398 * DAY


def test_server_sends_a_chain_that_fits_the_buffer_of_a_machine(tmp_path: Path) -> None:
    pem = ensure_self_signed(tmp_path, HOST).read_bytes()
    assert pem.count(b"BEGIN CERTIFICATE") == 1
    der = ssl.PEM_cert_to_DER_cert(pem[pem.index(b"-----BEGIN CERT") :].decode())
    assert len(der) < 1024


def test_only_this_user_can_read_the_key_and_backups_can_skip_it(tmp_path: Path) -> None:
    old = os.umask(0)
    try:
        ensure_self_signed(tmp_path / "data", HOST)
    finally:
        os.umask(old)
    folder = tmp_path / "data" / FOLDER
    assert stat.S_IMODE((folder / KEY_FILE).stat().st_mode) == 0o600
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    assert stat.S_IMODE(folder.parent.stat().st_mode) == 0o700
    assert b"PRIVATE" not in (folder / CERTIFICATE_FILE).read_bytes()
    if (tar := shutil.which("tar")) is not None:
        command = [tar, "--exclude-caches", "-cf", "-", "-C", str(tmp_path), "data"]
        archive = subprocess.run(command, capture_output=True, timeout=10, check=True).stdout
        assert FILE_NAME.encode() in archive
        assert KEY_FILE.encode() not in archive


def test_renewal_keeps_the_ca(tmp_path: Path) -> None:
    first = ensure_self_signed(tmp_path, HOST, now=NOW).read_bytes()
    ca = ca_of(tmp_path)
    assert ensure_self_signed(tmp_path, HOST, now=NOW + 365 * DAY).read_bytes() == first
    second = ensure_self_signed(tmp_path, HOST, now=NOW + 366 * DAY).read_bytes()
    assert second != first
    assert ca_of(tmp_path).certificate == ca.certificate
    assert ca.has_issued(x509.load_pem_x509_certificate(second))


def test_new_address_or_name_gets_into_the_certificate_if_the_ca_permits_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    ensure_self_signed(tmp_path, HOST)
    moved = [IPv4Address("192.168.7.7"), IPv4Address("192.0.2.10")]
    monkeypatch.setattr(self_signed, "own_addresses", lambda: moved)
    file = ensure_self_signed(tmp_path, f"www.{HOST}")
    assert f"is not valid for www.{HOST}" in caplog.text
    connect(file, tmp_path / FOLDER / CERTIFICATE_FILE, "192.168.7.7")
    connect(file, tmp_path / FOLDER / CERTIFICATE_FILE, f"www.{HOST}")
    kept = file.read_bytes()
    assert ensure_self_signed(tmp_path, "other.example").read_bytes() == kept
    assert "made for other names than other.example" in (ca_problem(tmp_path, "other.example") or "")
    assert ca_problem(tmp_path, HOST) is None


def test_another_ca_is_made_only_on_request(tmp_path: Path) -> None:
    ensure_self_signed(tmp_path, HOST)
    before = ca_of(tmp_path)
    replace_ca(tmp_path, "other.example")
    after = ca_of(tmp_path)
    assert before.certificate != after.certificate
    assert before.key != after.key
    connect(tmp_path / FILE_NAME, tmp_path / FOLDER / CERTIFICATE_FILE, "other.example")


@pytest.mark.parametrize("lost", [b"", None])
def test_server_without_the_key_of_its_ca_keeps_its_certificate(tmp_path: Path, lost: bytes | None) -> None:
    first = ensure_self_signed(tmp_path, HOST, now=NOW).read_bytes()
    key = tmp_path / FOLDER / KEY_FILE
    key.unlink() if lost is None else key.write_bytes(lost)
    assert ensure_self_signed(tmp_path, HOST, now=NOW + 390 * DAY).read_bytes() == first
    assert "the key of the local CA is missing" in (ca_problem(tmp_path, HOST, now=NOW) or "")
    (tmp_path / FILE_NAME).unlink()
    with pytest.raises(SettingsError, match="init --new-ca"):
        ensure_self_signed(tmp_path, HOST)


def test_damaged_ca_is_never_replaced(tmp_path: Path) -> None:
    ensure_self_signed(tmp_path, HOST)
    (tmp_path / FOLDER / CERTIFICATE_FILE).write_bytes(b"garbage")
    with pytest.raises(SettingsError, match=r"ca\.crt is damaged.*--new-ca"):
        ensure_self_signed(tmp_path, HOST)


def test_ca_is_valid_for_10_years_whatever_the_clock_said(tmp_path: Path) -> None:
    for number, clock in enumerate((1970, 2027, 2040)):
        made_at = datetime.datetime(clock, 5, 31, tzinfo=datetime.UTC)
        ensure_self_signed(tmp_path / str(number), HOST, now=made_at)
        certificate = ca_of(tmp_path / str(number)).certificate
        assert certificate.not_valid_before_utc.year == 2026
        assert certificate.not_valid_after_utc.year == max(clock, 2026) + 10
    ends = ca_of(tmp_path / "1").certificate.not_valid_after_utc
    soon = ends - 89 * DAY
    assert "the local CA expires on 2037-" in (ca_problem(tmp_path / "1", HOST, now=soon) or "")
    last = ensure_self_signed(tmp_path / "1", HOST, now=soon).read_bytes()
    assert x509.load_pem_x509_certificate(last).not_valid_after_utc == ends
    assert ensure_self_signed(tmp_path / "1", HOST, now=ends - DAY).read_bytes() == last


def test_certificate_of_an_earlier_version_is_kept_until_it_is_due(tmp_path: Path) -> None:
    ensure_self_signed(tmp_path, HOST, now=NOW)
    shutil.rmtree(tmp_path / FOLDER)
    old = (tmp_path / FILE_NAME).read_bytes()
    assert ensure_self_signed(tmp_path, HOST, now=NOW + DAY).read_bytes() == old
    assert LocalCa.load(tmp_path) is None
    ensure_self_signed(tmp_path, "other.example", now=NOW + DAY)
    assert ca_of(tmp_path).permits("other.example")


@pytest.fixture
def interrupted(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[int]]:
    """Interrupt the n-th rename of a file."""
    left = [0]
    replace = Path.replace

    def interrupt(self: Path, target: Path) -> Path:
        if left[0] == 0:
            raise KeyboardInterrupt
        left[0] -= 1
        return replace(self, target)

    monkeypatch.setattr(Path, "replace", interrupt)
    yield left
    monkeypatch.setattr(Path, "replace", replace)


@pytest.mark.parametrize("number", range(4))
def test_interrupted_creation_leaves_no_half_file_and_can_be_repeated(
    tmp_path: Path, interrupted: list[int], number: int
) -> None:
    interrupted[0] = number
    with pytest.raises(KeyboardInterrupt):
        ensure_self_signed(tmp_path, HOST)
    assert not [path for path in tmp_path.rglob("*") if path.name.endswith(".tmp")]
    interrupted[0] = 100
    file = ensure_self_signed(tmp_path, HOST)
    connect(file, tmp_path / FOLDER / CERTIFICATE_FILE, HOST)

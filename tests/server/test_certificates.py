"""Certificates from files: which are accepted or refused with which error, and when they are reloaded."""

import datetime
import logging
import os
import ssl
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import pytest
import trio
import trio.testing
from cryptography.hazmat.primitives import serialization

from brewos_relay.errors import SettingsError
from brewos_relay.server.certificates import CertificateFiles, load_certificate
from support.certificates import (
    client_context,
    elliptic_key,
    encode_key,
    make_certificate,
    rsa_key,
    write_certificate,
)

DAY = datetime.timedelta(days=1)


def handshake(
    server: ssl.SSLContext, client: ssl.SSLContext, session: ssl.SSLSession | None = None
) -> ssl.SSLObject:
    """Let both shake hands in memory; return the client's end."""
    to_server, to_client = ssl.MemoryBIO(), ssl.MemoryBIO()
    theirs = server.wrap_bio(to_server, to_client, server_side=True)
    ours = client.wrap_bio(to_client, to_server, session=session)
    for end in (ours, theirs, ours, theirs, ours):
        with suppress(ssl.SSLWantReadError):
            end.do_handshake()
    return ours


# -- Loading ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
def test_clients_resume_their_sessions_with_one_ticket(tmp_path: Path, version: ssl.TLSVersion) -> None:
    context, _ = load_certificate(*write_certificate(tmp_path))
    client = client_context()
    client.minimum_version = client.maximum_version = version
    session = None
    for is_resumed in (False, True, True):
        ours = handshake(context, client, session)
        with suppress(ssl.SSLWantReadError):
            ours.read(1)  # with TLS 1.3, the ticket comes after the handshake
        assert ours.session_reused is is_resumed
        session = ours.session
    assert context.num_tickets == 1


@pytest.mark.parametrize("kind", ["elliptic", "RSA"])
@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
def test_both_kinds_of_keys_serve_both_versions(tmp_path: Path, kind: str, version: ssl.TLSVersion) -> None:
    files = write_certificate(tmp_path, elliptic_key() if kind == "elliptic" else rsa_key())
    context, _ = load_certificate(*files)
    client = client_context(version)
    client.set_alpn_protocols(["h2", "http/1.1"])
    ours = handshake(context, client)
    assert ours.version() == version.name.replace("_", ".")
    assert ours.selected_alpn_protocol() == "http/1.1"
    assert ours.compression() is None


@pytest.mark.parametrize(
    ("kind", "cipher"),
    [("elliptic", "ECDHE-ECDSA-AES128-GCM-SHA256"), ("RSA", "ECDHE-RSA-AES128-GCM-SHA256")],
)
def test_a_small_machine_with_one_cipher_gets_in(tmp_path: Path, kind: str, cipher: str) -> None:
    files = write_certificate(tmp_path, elliptic_key() if kind == "elliptic" else rsa_key())
    client = client_context(ssl.TLSVersion.TLSv1_2)
    client.set_ciphers(cipher)
    used = handshake(load_certificate(*files)[0], client).cipher()
    assert used is not None
    assert used[0] == cipher


@pytest.mark.parametrize("cipher", ["AES128-GCM-SHA256", "ECDHE-RSA-AES128-SHA", "DHE-RSA-AES128-GCM-SHA256"])
def test_ciphers_without_forward_secrecy_or_integrity_are_refused(tmp_path: Path, cipher: str) -> None:
    context, _ = load_certificate(*write_certificate(tmp_path, rsa_key()))
    client = client_context(ssl.TLSVersion.TLSv1_2)
    client.set_ciphers(cipher)
    with pytest.raises(ssl.SSLError):
        handshake(context, client)


def test_versions_before_1_2_are_not_offered(tmp_path: Path) -> None:
    context, _ = load_certificate(*write_certificate(tmp_path))
    assert context.minimum_version is ssl.TLSVersion.TLSv1_2
    assert context.options & ssl.OP_NO_RENEGOTIATION
    assert context.options & ssl.OP_NO_COMPRESSION


def test_a_name_that_is_asked_for_does_not_matter(tmp_path: Path) -> None:
    context, _ = load_certificate(*write_certificate(tmp_path))
    to_server, to_client = ssl.MemoryBIO(), ssl.MemoryBIO()
    ours = client_context().wrap_bio(to_client, to_server, server_hostname="elsewhere.example")
    theirs = context.wrap_bio(to_server, to_client, server_side=True)
    for end in (ours, theirs):
        with pytest.raises(ssl.SSLWantReadError):
            end.do_handshake()
    ours.do_handshake()


def test_a_certificate_and_its_key_may_be_in_one_file(tmp_path: Path) -> None:
    key = elliptic_key()
    path = tmp_path / "both.pem"
    path.write_bytes(encode_key(key) + make_certificate(key))
    load_certificate(path, path)


def test_hosts_of_a_certificate(tmp_path: Path) -> None:
    names = ["Relay.example.org", "*.home.example", "192.0.2.7", "2001:db8::7"]
    _, certificate = load_certificate(*write_certificate(tmp_path, names=names))
    for host in (
        "relay.example.org",
        "RELAY.example.org.",
        "a.home.example.",
        "192.0.2.7",
        "[2001:DB8:0::7]",
    ):
        assert certificate.is_for(host), host
    for host in ("example.org", "home.example", "a.b.home.example", "192.0.2.8", "localhost", "", "."):
        assert not certificate.is_for(host), host
    assert len(certificate.fingerprint) == 32 * 3 - 1


def test_a_certificate_may_have_no_names(tmp_path: Path) -> None:
    _, certificate = load_certificate(*write_certificate(tmp_path, names=[]))
    assert certificate.names == frozenset()


@pytest.mark.parametrize("which", ["cert", "key"])
def test_an_error_names_the_missing_file(tmp_path: Path, which: str) -> None:
    files = write_certificate(tmp_path)
    missing: Path = getattr(files, which)
    missing.unlink()
    with pytest.raises(SettingsError, match=f"{missing.name} cannot be read: No such file"):
        load_certificate(*files)


@pytest.mark.parametrize(
    ("which", "content", "complaint"),
    [
        ("cert", b"nothing", "server.crt holds no certificate"),
        ("cert", b"-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n", "holds no certificate"),
        ("key", b"nothing", "server.key holds no private key"),
        ("key", encode_key(elliptic_key(), passphrase=b"x"), "server.key is protected by a passphrase"),
        ("key", encode_key(elliptic_key()), "server.key does not match .*server.crt: these files belong"),
    ],
)
def test_errors_name_the_file_and_the_problem(
    tmp_path: Path, which: str, content: bytes, complaint: str
) -> None:
    files = write_certificate(tmp_path)
    getattr(files, which).write_bytes(content)
    with pytest.raises(SettingsError, match=complaint):
        load_certificate(*files)


def test_a_chain_in_the_wrong_order_is_reported(tmp_path: Path) -> None:
    files = write_certificate(tmp_path)
    files.cert.write_bytes(make_certificate(elliptic_key()) + files.cert.read_bytes())
    with pytest.raises(SettingsError, match="own certificate must be the first"):
        load_certificate(*files)


def test_a_key_that_openssl_rejects_is_reported(tmp_path: Path) -> None:
    files = write_certificate(tmp_path)
    public = elliptic_key().public_key()
    files.key.write_bytes(
        public.public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)
    )
    with pytest.raises(SettingsError, match="holds no private key"):
        load_certificate(*files)


@pytest.mark.parametrize(
    ("starts", "ends", "warning"),
    [
        (-2 * DAY, -DAY, "expired on "),
        (-2 * DAY, 3 * DAY, "expires on "),
        (2 * DAY, 90 * DAY, "is not valid yet"),
        (-2 * DAY, 90 * DAY, None),
    ],
)
def test_a_certificate_outside_its_validity_is_a_warning(
    tmp_path: Path,
    starts: datetime.timedelta,
    ends: datetime.timedelta,
    warning: str | None,
    caplog: pytest.LogCaptureFixture,
) -> None:
    CertificateFiles(*write_certificate(tmp_path, starts=starts, ends=ends))
    assert [record.levelname for record in caplog.records] == (["WARNING"] if warning else [])
    assert (warning or "") in caplog.text


# -- Reloading --------------------------------------------------------------------------------------------


def test_files_are_reloaded_on_request(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    tls = CertificateFiles(*write_certificate(tmp_path))
    first, fingerprint = tls.current(), tls.certificate.fingerprint
    write_certificate(tmp_path)
    assert tls.current() is first
    caplog.set_level(logging.INFO)
    assert tls.reload()
    assert tls.current() is not first
    assert tls.certificate.fingerprint != fingerprint
    assert tls.certificate.fingerprint in caplog.text


def test_invalid_files_change_nothing(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    files = write_certificate(tmp_path)
    tls = CertificateFiles(*files)
    first = tls.current()
    files.key.write_bytes(b"half a ke")
    assert not tls.reload()
    assert tls.current() is first
    assert "holds no private key" in caplog.text
    assert "half a ke" not in caplog.text


async def test_files_that_change_are_noticed(
    tmp_path: Path, autojump_clock: trio.testing.MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    files = write_certificate(tmp_path)
    tls = CertificateFiles(*files)
    first = tls.current()
    with trio.fail_after(1000):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(tls.watch)
            await trio.sleep(20)
            assert tls.current() is first
            key = elliptic_key()
            files.cert.write_bytes(make_certificate(key))  # the key comes a little later
            await trio.sleep(20)
            assert tls.current() is first
            assert caplog.text.count("does not match") == 1, "one warning for one change"
            files.key.unlink()
            await trio.sleep(20)
            files.key.write_bytes(encode_key(key))
            await trio.sleep(6)
            assert tls.current() is not first
            second = tls.current()
            os.utime(files.cert, (1, 1))
            await trio.sleep(6)
            assert tls.current() is not second
            nursery.cancel_scope.cancel()


async def test_files_are_renewed_every_minute(
    tmp_path: Path,
    autojump_clock: trio.testing.MockClock,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async def run_here(renew_files: Callable[[], None]) -> None:
        await trio.lowlevel.checkpoint()
        renew_files()

    # The clock does not wait for threads.
    monkeypatch.setattr(trio.to_thread, "run_sync", run_here)
    asked: list[float] = []

    def renew() -> None:
        asked.append(trio.current_time())
        if len(asked) == 2:
            raise SettingsError("the disk is full")
        write_certificate(tmp_path)

    tls = CertificateFiles(*write_certificate(tmp_path), renew=renew)
    first = tls.current()
    with trio.move_on_after(3 * 60 + 10):
        await tls.watch()
    assert len(asked) == 3
    assert tls.current() is not first
    assert "the disk is full" in caplog.text


def test_reload_renews_the_files_first(tmp_path: Path) -> None:
    tls = CertificateFiles(*write_certificate(tmp_path), renew=lambda: write_certificate(tmp_path))
    before = tls.certificate.fingerprint
    assert tls.reload()
    assert tls.certificate.fingerprint != before

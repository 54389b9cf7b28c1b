"""Clients in the folder of a server, and the certificates that they trust."""

import ssl
from pathlib import Path

import pytest

from brewos_relay.server.own_client import local_url, tls_context
from brewos_relay.server.self_signed import ensure_self_signed
from brewos_relay.settings import Settings
from support.certificates import Files, server_context, write_certificate


def connect(context: ssl.SSLContext | None, server: Files, host: str) -> None:
    """Do a handshake. Raises ssl.SSLCertVerificationError."""
    assert context is not None
    to_server, to_client = ssl.MemoryBIO(), ssl.MemoryBIO()
    ours = context.wrap_bio(to_client, to_server, server_hostname=host)
    theirs = server_context(server).wrap_bio(to_server, to_client, server_side=True)
    for end in (ours, theirs):
        with pytest.raises(ssl.SSLWantReadError):
            end.do_handshake()
    ours.do_handshake()


@pytest.mark.parametrize(
    ("settings", "url"),
    [
        (Settings(), "http://127.0.0.1:3001"),
        (Settings(host="::", port=80), "http://[::1]:80"),
        (Settings(host="192.0.2.1", tls_self_signed=True, port=443), "https://192.0.2.1:443"),
    ],
)
def test_address_on_this_computer(settings: Settings, url: str) -> None:
    assert local_url(settings) == url
    assert (tls_context(settings, url) is None) == url.startswith("http:")


def test_certificate_of_the_local_ca_is_trusted_for_its_names(tmp_path: Path) -> None:
    settings = Settings(tls_self_signed=True, data_dir=tmp_path)
    for url in (local_url(settings), "https://coffee.example"):
        tls_context(settings, url)  # the server has not been started
    file = ensure_self_signed(tmp_path, "coffee.example")
    for host in ("127.0.0.1", "coffee.example"):
        connect(tls_context(settings, f"https://{host}"), Files(file, file), host)
    with pytest.raises(ssl.SSLCertVerificationError):
        connect(tls_context(settings, "https://b.example"), Files(file, file), "b.example")


def test_own_certificate_is_trusted_at_this_computer_whatever_its_name(tmp_path: Path) -> None:
    (tmp_path / "other").mkdir()
    files = write_certificate(tmp_path, names=["relay.example"])
    settings = Settings(tls_cert=files.cert, tls_key=files.key)
    connect(tls_context(settings, local_url(settings)), files, "127.0.0.1")
    with pytest.raises(ssl.SSLCertVerificationError):
        connect(
            tls_context(settings, local_url(settings)),
            write_certificate(tmp_path / "other", names=["127.0.0.1"]),
            "127.0.0.1",
        )
    with pytest.raises(ssl.SSLCertVerificationError):
        connect(tls_context(settings, "https://relay.example"), files, "relay.example")

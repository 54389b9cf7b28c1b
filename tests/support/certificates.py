"""Certificates made for a test, and both ends of TLS connections that use them."""

import datetime
import ipaddress
import ssl
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.x509.oid import NameOID

Key = ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey


class Files(NamedTuple):
    """PEM files of a certificate and its key."""

    cert: Path
    key: Path


def elliptic_key() -> Key:
    return ec.generate_private_key(ec.SECP256R1())


def rsa_key() -> Key:
    return rsa.generate_private_key(65537, 2048)


def make_certificate(
    key: Key,
    names: Iterable[str] = ("localhost",),
    *,
    starts: datetime.timedelta = datetime.timedelta(days=-1),
    ends: datetime.timedelta = datetime.timedelta(days=90),
) -> bytes:
    """Make a certificate for these names and addresses, signed by its own key, in PEM form."""
    now = datetime.datetime.now(datetime.UTC)
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "a test")])
    builder = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now + starts)
        .not_valid_after(now + ends)
    )
    if alternatives := [_general_name(name) for name in names]:
        builder = builder.add_extension(x509.SubjectAlternativeName(alternatives), critical=False)
    return builder.sign(key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM)


def _general_name(name: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(name))
    except ValueError:
        return x509.DNSName(name)


def encode_key(key: Key, *, passphrase: bytes | None = None) -> bytes:
    """Write a key in PEM form."""
    encryption: serialization.KeySerializationEncryption = serialization.NoEncryption()
    if passphrase is not None:
        encryption = serialization.BestAvailableEncryption(passphrase)
    return key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, encryption)


def write_certificate(folder: Path, key: Key | None = None, **made: object) -> Files:
    """Write a certificate and its key into a folder; see `make_certificate`."""
    key = key or elliptic_key()
    files = Files(folder / "server.crt", folder / "server.key")
    files.cert.write_bytes(make_certificate(key, **made))  # type: ignore[arg-type]
    files.key.write_bytes(encode_key(key))
    files.key.chmod(0o600)
    return files


def server_context(files: Files) -> ssl.SSLContext:
    """Make the simplest server's context."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(files.cert, files.key)
    return context


def client_context(version: ssl.TLSVersion | None = None) -> ssl.SSLContext:
    """Make the context of a client that checks nothing, as machines do, and speaks one version only."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    # Python 3.11.0 to 3.11.3 take an end without close_notify for one with it.
    context.options &= ~ssl.OP_IGNORE_UNEXPECTED_EOF
    if version is not None:
        context.minimum_version = context.maximum_version = version
    return context

"""A self-signed certificate for a server in a home network."""

import datetime
import fcntl
import logging
import os
import socket
import struct
import sys
from contextlib import suppress
from ipaddress import IPv4Address, IPv6Address, ip_address
from pathlib import Path
from typing import Final

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from brewos_relay.errors import SettingsError

FILE_NAME: Final = "tls-self-signed.pem"

log = logging.getLogger(__name__)

_VALID: Final = datetime.timedelta(days=397)
"""Browsers refuse certificates with a longer validity."""
_RENEW_BEFORE: Final = datetime.timedelta(days=30)
_CLOCKS_DIFFER: Final = datetime.timedelta(days=1)
_CLOCK_SET: Final = datetime.datetime(2026, 1, 1, tzinfo=datetime.UTC)
"""An earlier time means that the clock is not set yet: the computer has no clock battery."""
_ANYWHERE: Final = ((socket.AF_INET, "192.0.2.1"), (socket.AF_INET6, "2001:db8::1"))
_SIOCGIFADDR: Final = 0x8915


def ensure_self_signed(data_dir: Path, *, now: datetime.datetime | None = None) -> Path:
    """Return the file with a key and a certificate for all names and addresses of this machine.

    Create a new one if there is none, 30 days before the old one expires, or if the old one was created while
    the clock was wrong. Keep it when addresses change, since users have verified its fingerprint. Raises
    SettingsError.
    """
    path = data_dir / FILE_NAME
    now = now or datetime.datetime.now(datetime.UTC)
    try:
        with suppress(FileNotFoundError, ValueError):
            reason = _reason_to_renew(x509.load_pem_x509_certificate(path.read_bytes()), now)
            if reason is None:
                return path
            log.warning("creating a new certificate: the one in %s %s", path, reason)
        data_dir.mkdir(parents=True, exist_ok=True)
        _replace(path, _make(now))
    except OSError as error:
        raise SettingsError(f"cannot store the certificate in {path}: {error.strerror}") from None
    return path


def _reason_to_renew(certificate: x509.Certificate, now: datetime.datetime) -> str | None:
    """Return why a certificate must be renewed, or None if it is valid or the clock is not set."""
    if now < _CLOCK_SET:
        return None
    starts, ends = certificate.not_valid_before_utc, certificate.not_valid_after_utc
    if now < starts:
        return f"is valid from {starts:%Y-%m-%d}: it was created while this machine's clock was wrong"
    if ends - now <= _RENEW_BEFORE:
        return f"{'has expired' if ends <= now else 'expires'} on {ends:%Y-%m-%d}"
    return None


def _make(now: datetime.datetime) -> bytes:
    """Create a key and a certificate, in PEM form."""
    key = ec.generate_private_key(ec.SECP256R1())  # supported by machines of every age
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "brewos-relay")])
    names: list[x509.GeneralName] = [x509.DNSName(host) for host in own_names()]
    names += [x509.IPAddress(address) for address in own_addresses()]
    usage = dict.fromkeys(
        (
            "content_commitment",
            "key_encipherment",
            "data_encipherment",
            "key_agreement",
            "key_cert_sign",
            "crl_sign",
            "encipher_only",
            "decipher_only",
        ),
        False,
    )
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - _CLOCKS_DIFFER)
        .not_valid_after(now + _VALID - _CLOCKS_DIFFER)
        .add_extension(x509.SubjectAlternativeName(names), critical=False)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(x509.KeyUsage(digital_signature=True, **usage), critical=True)
        .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), critical=False)
        .sign(key, hashes.SHA256())
    )
    return key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    ) + certificate.public_bytes(serialization.Encoding.PEM)


def _replace(path: Path, data: bytes) -> None:
    """Replace a file atomically, readable only by its owner, even if another process does the same."""
    new = path.with_name(f"{path.name}.{os.getpid()}")
    new.unlink(missing_ok=True)
    with os.fdopen(os.open(new, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    new.replace(path)


def own_names() -> list[str]:
    """List the host names of this machine, in lower case and without duplicates."""
    host = socket.gethostname().lower().rstrip(".")
    short = host.partition(".")[0]
    candidates = ["localhost", host, short, f"{short}.local"]
    return [name for name in dict.fromkeys(candidates) if _is_name(name)]


def _is_name(name: str) -> bool:
    return 0 < len(name) <= 253 and all(
        0 < len(label) <= 63 and label.isascii() and label.replace("-", "").replace("_", "").isalnum()
        for label in name.split(".")
    )


def own_addresses() -> list[IPv4Address | IPv6Address]:
    """List the addresses of this machine that can be found, without duplicates."""
    found: set[str] = {"127.0.0.1", "::1"}
    with suppress(OSError):
        found |= {str(info[4][0]) for info in socket.getaddrinfo(socket.gethostname(), None)}
    for family, elsewhere in _ANYWHERE:  # documentation addresses; connecting a UDP socket sends nothing
        with suppress(OSError), socket.socket(family, socket.SOCK_DGRAM) as probe:
            probe.connect((elsewhere, 9))
            found.add(str(probe.getsockname()[0]))
    if sys.platform == "linux":
        found |= _addresses_of_interfaces()
    addresses = {ip_address(text.partition("%")[0]) for text in found}
    return sorted(addresses, key=lambda address: (address.version, int(address)))


def _addresses_of_interfaces() -> set[str]:
    found = set()
    # In a sandbox that forbids this, the process finds its addresses as on other systems.
    with suppress(OSError), socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as asked:
        for _, name in socket.if_nameindex():
            with suppress(OSError):  # an interface without an IPv4 address
                answer = fcntl.ioctl(asked, _SIOCGIFADDR, struct.pack("256s", name.encode()[:15]))
                found.add(socket.inet_ntoa(answer[20:24]))
    with suppress(OSError):
        for line in Path("/proc/net/if_inet6").read_text(encoding="ascii").splitlines():
            found.add(str(IPv6Address(bytes.fromhex(line.split()[0]))))
    return found

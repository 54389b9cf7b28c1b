"""The local certificate authority (CA) of a server in a home network, which phones and computers can trust.

It can issue certificates for the names of this server and for private addresses only: clients refuse any
other certificate of the same CA (RFC 5280 §4.2.1.10).
"""

import datetime
import fcntl
import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from ipaddress import IPv4Address, IPv6Address, ip_address, ip_network
from pathlib import Path
from typing import Final, Self

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from brewos_relay.errors import SettingsError

FOLDER: Final = "local-ca"
CERTIFICATE_FILE: Final = "ca.crt"
KEY_FILE: Final = "ca.key"

LEAF_VALID: Final = datetime.timedelta(days=397)
"""Browsers and phones refuse certificates of servers with a longer validity."""
CLOCKS_DIFFER: Final = datetime.timedelta(days=1)
CLOCK_SET: Final = datetime.datetime(2026, 1, 1, tzinfo=datetime.UTC)
"""An earlier time means that the clock is not set yet: the computer has no clock battery."""

_VALID_YEARS: Final = 10
_PRIVATE: Final = tuple(
    map(ip_network, ("10.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16", "127.0.0.0/8", "fc00::/7", "::1/128"))
)
# Backup programs can skip folders with this file: https://bford.info/cachedir/
_NO_BACKUP: Final = "CACHEDIR.TAG"
_NO_BACKUP_TEXT: Final = (
    b"Signature: 8a477f597d28d172789f06886806bc55\n"
    b"# The key of the local CA must not be in a backup. A relay without it makes another CA.\n"
)

Address = IPv4Address | IPv6Address


@dataclass(frozen=True, slots=True)
class LocalCa:
    """A certificate authority, with its key.

    The key is None if its file is missing: the CA cannot issue certificates then.
    """

    certificate: x509.Certificate
    key: ec.EllipticCurvePrivateKey | None = field(repr=False)

    @classmethod
    def create(cls, data_dir: Path, names: Iterable[str], *, now: datetime.datetime) -> Self:
        """Create a CA for these names and addresses and all private addresses; it replaces an earlier one.

        Raises OSError.
        """
        key = ec.generate_private_key(ec.SECP256R1())
        made = cls(_make(key, names, now), key)
        folder = data_dir / FOLDER
        make_folder(folder)
        # The certificate comes last: only with it is there a CA.
        (folder / CERTIFICATE_FILE).unlink(missing_ok=True)
        replace_file(folder / _NO_BACKUP, _NO_BACKUP_TEXT)
        replace_file(folder / KEY_FILE, encode_key(key))
        replace_file(folder / CERTIFICATE_FILE, made.pem)
        return made

    @classmethod
    def load(cls, data_dir: Path) -> Self | None:
        """Load the CA of a data folder; None if there is none. Raises SettingsError if it cannot be read."""
        folder = data_dir / FOLDER
        try:
            certificate = x509.load_pem_x509_certificate((folder / CERTIFICATE_FILE).read_bytes())
        except (FileNotFoundError, NotADirectoryError):
            return None
        except OSError as error:
            raise SettingsError(
                f"cannot read the local CA in {folder / CERTIFICATE_FILE}: {error.strerror}"
            ) from None
        except ValueError:
            raise SettingsError(
                f"{folder / CERTIFICATE_FILE} is damaged; restore it, or make another CA with"
                " `brewos-relay init --new-ca`"
            ) from None
        key = None
        with suppress(OSError, ValueError, TypeError, UnsupportedAlgorithm):
            found = serialization.load_pem_private_key((folder / KEY_FILE).read_bytes(), password=None)
            if (
                isinstance(found, ec.EllipticCurvePrivateKey)
                and found.public_key() == certificate.public_key()
            ):
                key = found
        return cls(certificate, key)

    @property
    def pem(self) -> bytes:
        """The certificate in PEM form."""
        return self.certificate.public_bytes(serialization.Encoding.PEM)

    @property
    def fingerprint(self) -> str:
        """The SHA-256 fingerprint, as browsers and phones show it."""
        return self.certificate.fingerprint(hashes.SHA256()).hex(":").upper()

    def permits(self, name: str) -> bool:
        """Whether certificates of this CA can be valid for a name or an address."""
        constraints = self.certificate.extensions.get_extension_for_class(x509.NameConstraints).value
        for tree in constraints.permitted_subtrees or ():
            if isinstance(tree, x509.DNSName):
                if name == tree.value or name.endswith(f".{tree.value}"):
                    return True
            elif isinstance(tree, x509.IPAddress):
                with suppress(ValueError):
                    if ip_address(name) in ip_network(str(tree.value)):
                        return True
        return False

    def has_issued(self, leaf: x509.Certificate) -> bool:
        """Whether a certificate is one of this CA."""
        try:
            leaf.verify_directly_issued_by(self.certificate)
        except Exception:  # ValueError, TypeError or InvalidSignature; a damaged certificate may raise others
            return False
        return True

    def issue(self, names: Iterable[str], *, now: datetime.datetime) -> bytes:
        """Create a key and a certificate for a server with these names and addresses, in PEM form.

        All of them must be permitted. The certificate of the CA is not part of the result: clients have it,
        and the firmware's buffer for a TLS message may be 2 KiB small. Raises SettingsError without a key.
        """
        if self.key is None:
            raise SettingsError(
                f"the key of the local CA is missing: put back {FOLDER}/{KEY_FILE}, or make another CA with"
                " `brewos-relay init --new-ca`"
            )
        names = list(names)
        key = ec.generate_private_key(ec.SECP256R1())  # supported by machines of every age
        authority = x509.AuthorityKeyIdentifier.from_issuer_subject_key_identifier(
            self.certificate.extensions.get_extension_for_class(x509.SubjectKeyIdentifier).value
        )
        ends = min(now + LEAF_VALID - CLOCKS_DIFFER, self.certificate.not_valid_after_utc)
        leaf = (
            _builder(key, "brewos-relay", self.certificate.subject)
            .not_valid_before(now - CLOCKS_DIFFER)
            .not_valid_after(max(ends, now))
            .add_extension(x509.SubjectAlternativeName(list(map(_general_name, names))), critical=False)
            .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
            .add_extension(_usage(digital_signature=True), critical=True)
            .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), critical=False)
            .add_extension(authority, critical=False)
            .sign(self.key, hashes.SHA256())
        )
        return encode_key(key) + leaf.public_bytes(serialization.Encoding.PEM)


def is_private(address: Address) -> bool:
    """Whether an address is one of private networks, or of this computer itself."""
    return any(address.version == network.version and address in network for network in _PRIVATE)


@contextmanager
def locked(data_dir: Path) -> Iterator[None]:
    """Keep other processes from changing the certificates in a folder, which is created if missing."""
    make_folder(data_dir)
    folder = os.open(data_dir, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        fcntl.flock(folder, fcntl.LOCK_EX)
        yield
    finally:
        os.close(folder)


def make_folder(folder: Path) -> None:
    """Make a folder for this user only, if it is missing. As root, make it one of its parent's owner."""
    if folder.is_dir():
        return
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    if os.geteuid() == 0:
        owner = folder.parent.stat()
        os.chown(folder, owner.st_uid, owner.st_gid)


def replace_file(path: Path, data: bytes) -> None:
    """Write a file that only this user can read; other processes see the old or the new one, never a part."""
    new = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    new.unlink(missing_ok=True)
    try:
        with os.fdopen(os.open(new, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        if os.geteuid() == 0:
            # A command of root must leave files that the relay's user can read.
            owner = path.parent.stat()
            os.chown(new, owner.st_uid, owner.st_gid)
        new.replace(path)
    finally:
        new.unlink(missing_ok=True)


def encode_key(key: ec.EllipticCurvePrivateKey) -> bytes:
    """Encode a key in PEM form."""
    return key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )


def _make(key: ec.EllipticCurvePrivateKey, names: Iterable[str], now: datetime.datetime) -> x509.Certificate:
    names = list(names)
    # The date is part of the name: phones list the names only, and there may be several.
    subject = x509.Name(
        [x509.NameAttribute(NameOID.COMMON_NAME, f"brewos-relay CA for {names[0]}"[:53] + f" ({now:%Y-%m})")]
    )
    permitted: list[x509.GeneralName] = [x509.IPAddress(network) for network in _PRIVATE]
    for name in names:
        try:
            address = ip_address(name)
        except ValueError:
            permitted.append(x509.DNSName(name))
        else:
            if not is_private(address):
                permitted.append(x509.IPAddress(ip_network(address)))
    ends = max(now, CLOCK_SET)
    return (
        _builder(key, subject, subject)
        # A fixed start, so that the CA is valid whatever this computer's clock said.
        .not_valid_before(CLOCK_SET)
        .not_valid_after(ends.replace(year=ends.year + _VALID_YEARS, day=1))
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(_usage(key_cert_sign=True, crl_sign=True), critical=True)
        .add_extension(x509.NameConstraints(permitted, excluded_subtrees=None), critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .sign(key, hashes.SHA256())
    )


def _builder(
    key: ec.EllipticCurvePrivateKey, subject: x509.Name | str, issuer: x509.Name
) -> x509.CertificateBuilder:
    if isinstance(subject, str):
        subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, subject)])
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
    )


def _usage(**usage: bool) -> x509.KeyUsage:
    names = (
        "digital_signature",
        "content_commitment",
        "key_encipherment",
        "data_encipherment",
        "key_agreement",
        "key_cert_sign",
        "crl_sign",
        "encipher_only",
        "decipher_only",
    )
    return x509.KeyUsage(**{name: usage.get(name, False) for name in names})


def _general_name(name: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ip_address(name))
    except ValueError:
        return x509.DNSName(name)

"""The server's TLS certificate: loaded from files, checked with clear errors, and reloaded on changes."""

import logging
import ssl
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from ipaddress import ip_address
from pathlib import Path
from typing import Final

import trio
from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes, serialization

from brewos_relay.errors import SettingsError

log = logging.getLogger(__name__)

_CIPHERS: Final = "ECDHE+AESGCM:ECDHE+CHACHA20"
"""For TLS 1.2: ciphers with forward secrecy, including those of small machines. TLS 1.3 defines its own."""
_LOOK_EVERY_S: Final = 5.0
_RENEW_EVERY_S: Final = 60.0
_SOON_S: Final = 7 * 86_400.0


@dataclass(frozen=True, slots=True)
class Certificate:
    """The properties of a certificate.

    `names` are its host names, in lower case, and its addresses. `fingerprint` is the SHA-256 fingerprint, as
    browsers show it. `expires_at_s` is in seconds since the epoch.
    """

    names: frozenset[str]
    fingerprint: str
    starts_at_s: float
    expires_at_s: float

    def is_for(self, host: str) -> bool:
        """Whether the certificate is valid for this host: a name or an address, without a port."""
        host = host.lower().removesuffix(".").strip("[]")
        with suppress(ValueError):
            return str(ip_address(host)) in self.names
        return host in self.names or f"*.{host.partition('.')[2]}" in self.names


class CertificateFiles:
    """The certificate and key files of the server, and the TLS context for new connections.

    If changed files are invalid, the earlier certificate stays in use, and the log says why.
    """

    def __init__(self, cert_path: Path, key_path: Path, *, renew: Callable[[], object] | None = None) -> None:
        """Load the files. Raises SettingsError.

        `renew` is called every minute and at each reload, and writes new files if they are due.
        """
        self._cert_path = cert_path
        self._key_path = key_path
        self._renew = renew
        self._stamp = self._look()
        self.context, self.certificate = load_certificate(cert_path, key_path)
        self._warn_of_expiry()

    def current(self) -> ssl.SSLContext:
        """Return the TLS context for the next connection."""
        return self.context

    def reload(self) -> bool:
        """Renew the files if they are due, and load them. If that fails, change nothing and return False."""
        self._renew_if_due()
        return self._load()

    def _load(self) -> bool:
        self._stamp = self._look()
        try:
            context, certificate = load_certificate(self._cert_path, self._key_path)
        except SettingsError as problem:
            log.error("cannot use the new certificate; the earlier one stays in use: %s", problem)
            return False
        self.context, self.certificate = context, certificate
        log.info("the certificate was loaded; SHA-256 fingerprint %s", certificate.fingerprint)
        self._warn_of_expiry()
        return True

    def reload_if_changed(self) -> None:
        """Load the files if they have changed since the last look."""
        if self._look() != self._stamp:
            self._load()

    async def watch(self) -> None:
        """Renew the files when they are due and load them when they change, until cancelled."""
        renew_at = trio.current_time() + _RENEW_EVERY_S
        while True:
            await trio.sleep(_LOOK_EVERY_S)
            if self._renew is not None and trio.current_time() >= renew_at:
                renew_at = trio.current_time() + _RENEW_EVERY_S
                await trio.to_thread.run_sync(self._renew_if_due)
            self.reload_if_changed()

    def _renew_if_due(self) -> None:
        if self._renew is None:
            return
        try:
            self._renew()
        except SettingsError as problem:
            log.error("cannot renew the certificate: %s", problem)

    def _look(self) -> tuple[object, ...]:
        """Return a value that changes with the files, without reading them."""
        stamp: list[object] = []
        for path in (self._cert_path, self._key_path):
            try:
                found = path.stat()
            except OSError as error:
                stamp.append(error.errno)
            else:
                stamp.append((found.st_ino, found.st_size, found.st_mtime_ns))
        return tuple(stamp)

    def _warn_of_expiry(self) -> None:
        certificate, now_s = self.certificate, time.time()
        day = time.strftime("%Y-%m-%d", time.gmtime(certificate.expires_at_s))
        if now_s >= certificate.expires_at_s:
            log.warning("the certificate %s expired on %s: renew it", self._cert_path, day)
        elif now_s >= certificate.expires_at_s - _SOON_S:
            log.warning("the certificate %s expires on %s: renew it", self._cert_path, day)
        elif now_s < certificate.starts_at_s:
            log.warning("the certificate %s is not valid yet: check this machine's clock", self._cert_path)


def load_certificate(cert_path: Path, key_path: Path) -> tuple[ssl.SSLContext, Certificate]:
    """Load a certificate chain and its key, in PEM form. Raises SettingsError."""
    cert_data = _read(cert_path, what="certificate")
    key_data = _read(key_path, what="key")
    try:
        chain = x509.load_pem_x509_certificates(cert_data)
    except ValueError:
        raise SettingsError(f"{cert_path} holds no certificate in PEM form") from None
    try:
        key = serialization.load_pem_private_key(key_data, password=None)
    except TypeError:
        raise SettingsError(
            f"the key in {key_path} is protected by a passphrase; remove it: "
            f"openssl pkey -in {key_path} -out FILE"
        ) from None
    except (ValueError, UnsupportedAlgorithm):
        raise SettingsError(f"{key_path} holds no private key in PEM form") from None
    public_key = key.public_key()
    if chain[0].public_key() != public_key:
        if any(other.public_key() == public_key for other in chain[1:]):
            hint = f"the server's own certificate must be the first one in {cert_path}"
        else:
            hint = "these files belong to different certificates"
        raise SettingsError(f"the key in {key_path} does not match the certificate in {cert_path}: {hint}")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.set_ciphers(_CIPHERS)
    context.options |= ssl.OP_NO_COMPRESSION | ssl.OP_NO_RENEGOTIATION
    context.set_alpn_protocols(["http/1.1"])
    context.num_tickets = 1  # each further one adds 14 µs to a connection; resuming one gives a new one
    try:
        context.load_cert_chain(cert_path, key_path)
    except (ssl.SSLError, OSError) as error:
        reason = getattr(error, "reason", None) or error.strerror
        raise SettingsError(f"OpenSSL rejects {cert_path} and {key_path}: {reason}") from None
    return context, _describe(chain[0])


def _read(path: Path, *, what: str) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise SettingsError(f"the {what} file {path} cannot be read: {error.strerror}") from None


def _describe(certificate: x509.Certificate) -> Certificate:
    names: set[str] = set()
    with suppress(x509.ExtensionNotFound, ValueError):
        alternatives = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
        names |= {name.lower() for name in alternatives.get_values_for_type(x509.DNSName)}
        names |= {str(address) for address in alternatives.get_values_for_type(x509.IPAddress)}
    return Certificate(
        names=frozenset(names),
        fingerprint=certificate.fingerprint(hashes.SHA256()).hex(":").upper(),
        starts_at_s=certificate.not_valid_before_utc.timestamp(),
        expires_at_s=certificate.not_valid_after_utc.timestamp(),
    )

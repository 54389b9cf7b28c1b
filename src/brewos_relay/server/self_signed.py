"""The certificate that a server in a home network creates for itself, issued by its local CA."""

import datetime
import fcntl
import logging
import socket
import struct
import sys
from contextlib import suppress
from ipaddress import IPv6Address, ip_address
from pathlib import Path
from typing import Final

from cryptography import x509

from brewos_relay.errors import SettingsError
from brewos_relay.server.local_ca import CLOCK_SET, Address, LocalCa, is_private, locked, replace_file

FILE_NAME: Final = "tls-self-signed.pem"

log = logging.getLogger(__name__)

_RENEW_BEFORE: Final = datetime.timedelta(days=30)
_CA_ENDS_SOON: Final = datetime.timedelta(days=90)
_ANYWHERE: Final = ((socket.AF_INET, "192.0.2.1"), (socket.AF_INET6, "2001:db8::1"))
_LOOPBACK: Final = frozenset({"127.0.0.1", "::1"})
_SIOCGIFADDR: Final = 0x8915


def ensure_self_signed(
    data_dir: Path,
    public_host: str | None = None,
    *,
    needs_ca: bool = False,
    now: datetime.datetime | None = None,
) -> Path:
    """Return the file with the server's key and certificate.

    The certificate is for the host of the public URL, and for the names and private addresses of this
    machine. Create a new one if there is none, 30 days before the old one expires, if it was created while
    the clock was wrong, or if it lacks a name or address that the local CA permits. The CA is created once
    and stays. A certificate of an earlier version, without a CA, is kept until it is due, since users have
    verified its fingerprint, unless `needs_ca` is true. Raises SettingsError.
    """
    path = data_dir / FILE_NAME
    now = now or datetime.datetime.now(datetime.UTC)
    try:
        ca = LocalCa.load(data_dir)
        if (ca or not needs_ca) and _reason_to_renew(path, ca, public_host, now) is None:
            return path
        with locked(data_dir):
            # Another process may have renewed it meanwhile.
            ca = LocalCa.load(data_dir)
            reason = _reason_to_renew(path, ca, public_host, now)
            if reason is None and (ca or not needs_ca):
                return path
            if reason is not None and path.exists():
                log.warning("creating a new certificate: the one in %s %s", path, reason)
            ca = ca or LocalCa.create(data_dir, wanted_names(public_host), now=now)
            replace_file(path, ca.issue(filter(ca.permits, wanted_names(public_host)), now=now))
    except OSError as error:
        raise SettingsError(f"cannot store the certificate in {path}: {error.strerror}") from None
    return path


def replace_ca(data_dir: Path, public_host: str | None, *, now: datetime.datetime | None = None) -> None:
    """Create another local CA, and a certificate of it. Raises SettingsError."""
    now = now or datetime.datetime.now(datetime.UTC)
    names = wanted_names(public_host)
    try:
        with locked(data_dir):
            replace_file(data_dir / FILE_NAME, LocalCa.create(data_dir, names, now=now).issue(names, now=now))
    except OSError as error:
        raise SettingsError(f"cannot store the local CA in {data_dir}: {error.strerror}") from None


def ca_problem(
    data_dir: Path, public_host: str | None, *, now: datetime.datetime | None = None
) -> str | None:
    """Return what phones cannot verify, and the remedy; None if all is well, or if there is no local CA."""
    ca = LocalCa.load(data_dir)
    if ca is None:
        return None
    remedy = "make another CA with `brewos-relay init --new-ca`, and trust it on each phone and computer"
    if public_host is not None and not ca.permits(public_host):
        return f"the local CA was made for other names than {public_host}: {remedy}"
    ends = ca.certificate.not_valid_after_utc
    if ends - (now or datetime.datetime.now(datetime.UTC)) < _CA_ENDS_SOON:
        return f"the local CA expires on {ends:%Y-%m-%d}: {remedy}"
    if ca.key is None:
        return f"the key of the local CA is missing, so its certificates cannot be renewed: {remedy}"
    return None


def wanted_names(public_host: str | None) -> list[str]:
    """List the names and addresses that the certificate must have, the public one first."""
    names = [public_host] if public_host is not None else []
    names += own_names()
    names += [str(address) for address in own_addresses() if is_private(address)]
    return list(dict.fromkeys(names))


def _reason_to_renew(
    path: Path, ca: LocalCa | None, public_host: str | None, now: datetime.datetime
) -> str | None:
    """Return why a certificate must be created.

    None if the present one is good, or if no better one can be created: the clock is not set, or the CA has
    lost its key.
    """
    try:
        certificate = x509.load_pem_x509_certificate(path.read_bytes())
        names = _names_of(certificate)
    except (FileNotFoundError, ValueError):
        return "is missing or damaged"
    if now < CLOCK_SET or (ca is not None and ca.key is None):
        return None
    starts, ends = certificate.not_valid_before_utc, certificate.not_valid_after_utc
    if now < starts:
        return f"is valid from {starts:%Y-%m-%d}: it was created while this machine's clock was wrong"
    if ends - now <= _RENEW_BEFORE and not _ends_with(ca, ends):
        return f"{'has expired' if ends <= now else 'expires'} on {ends:%Y-%m-%d}"
    if ca is None:
        is_good = public_host is None or public_host in names
        return None if is_good else f"is not valid for {public_host}"
    if not ca.has_issued(certificate):
        return "was not issued by the local CA"
    missing = (name for name in wanted_names(public_host) if name not in names and ca.permits(name))
    first = next(missing, None)
    return None if first is None else f"is not valid for {first}"


def _ends_with(ca: LocalCa | None, ends: datetime.datetime) -> bool:
    """Whether a certificate ends only because its CA does, so that a new one would not last longer."""
    return ca is not None and ends >= ca.certificate.not_valid_after_utc


def _names_of(certificate: x509.Certificate) -> set[str]:
    try:
        found = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except x509.ExtensionNotFound:
        return set()
    return {*found.get_values_for_type(x509.DNSName), *map(str, found.get_values_for_type(x509.IPAddress))}


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


def own_addresses() -> list[Address]:
    """List the addresses of this machine that can be found, without duplicates."""
    found = set(_LOOPBACK)
    if sys.platform == "linux":
        found |= _addresses_of_interfaces()
    if found <= _LOOPBACK:  # this may ask a DNS server, and take long
        with suppress(OSError):
            found |= {str(info[4][0]) for info in socket.getaddrinfo(socket.gethostname(), None)}
    for family, elsewhere in _ANYWHERE:  # documentation addresses; connecting a UDP socket sends nothing
        with suppress(OSError), socket.socket(family, socket.SOCK_DGRAM) as probe:
            probe.connect((elsewhere, 9))
            found.add(str(probe.getsockname()[0]))
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

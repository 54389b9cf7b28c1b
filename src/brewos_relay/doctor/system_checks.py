"""Checks of a server's environment: database, disk, certificate, port, open files, clock."""

import ctypes
import errno
import http.client
import json
import resource
import socket
import ssl
import time
from email.utils import parsedate_to_datetime
from typing import ClassVar, Final
from urllib.parse import urlsplit

from sqlalchemy import text

from brewos_relay.doctor import Finding, State
from brewos_relay.errors import RegistryError, SettingsError
from brewos_relay.registry import migrations
from brewos_relay.registry.accounts import colliding_addresses
from brewos_relay.registry.database import Database, version
from brewos_relay.registry.engine import database_file
from brewos_relay.server.certificates import load_certificate
from brewos_relay.server.from_settings import missing_administrator, public_host
from brewos_relay.server.health_checks import advice_for, examine_disk
from brewos_relay.server.own_client import local_url
from brewos_relay.server.self_signed import FILE_NAME, ca_problem
from brewos_relay.settings import Settings

_SOON_DAYS: Final = 21
_FEW_FILES: Final = 4096
_SHOWN_ADDRESSES: Final = 5
_CLOCK_OFF_S: Final = 30.0
_ANSWER_S: Final = 5.0
_STA_UNSYNC: Final = 0x40


def check_database(settings: Settings) -> list[Finding]:
    """Check whether the registry can be read and written, and is undamaged. Nothing is changed or created."""
    name = "database"
    try:
        url = settings.resolved_database_url()
        file = database_file(url)
        if file is not None and not file.exists():
            advice = "the server creates it when it starts; check DATA_DIR if it should exist"
            return [Finding(name, "warning", f"{file.absolute()} does not exist yet", advice)]
        location, tables = version(url)
        if tables is None:
            detail = f"{location} has none of the registry's tables"
            return [Finding(name, "failed", detail, "run `brewos-relay db upgrade` to create them")]
        if tables != migrations.HEAD:
            detail = f"{location} has tables of version {tables}, but this program needs {migrations.HEAD}"
            return [Finding(name, "failed", detail, "back it up, then run `brewos-relay db upgrade`")]
        detail = f"{location}, version {tables}, can be written"
        with Database.open(url) as database:
            with database.writing() as db:
                db.execute(text("UPDATE devices SET name = name WHERE 1 = 0"))
            if database.one_writer:
                with database.reading() as db:
                    wrong = [row[0] for row in db.execute(text("PRAGMA quick_check(3)")) if row[0] != "ok"]
                if wrong:
                    advice = "stop the server and restore a backup: `brewos-relay db restore`"
                    return [Finding(name, "failed", f"{location} is damaged: {'; '.join(wrong)}", advice)]
                detail += ", no damage found"
    except (RegistryError, SettingsError, PermissionError) as problem:
        what = str(problem)
        if isinstance(problem, PermissionError):
            what = f"{problem.filename}: {problem.strerror}"
        return [Finding(name, "failed", what, "check that it exists and that this user may write to it")]
    return [Finding(name, "ok", detail)]


def check_accounts(settings: Settings) -> list[Finding]:
    """Check for an administrator, and for accounts with colliding addresses.

    Returns nothing if the registry cannot be read, which `check_database` reports.
    """
    name = "accounts"
    try:
        with Database.open(settings.resolved_database_url()) as database, database.reading() as db:
            missing = missing_administrator(db, settings)
            same = colliding_addresses(db)
    except (RegistryError, SettingsError):
        return []
    if missing is not None:
        return [Finding(name, "warning", missing.text, missing.advice)]
    if same:
        shown = ", ".join(same[:_SHOWN_ADDRESSES])
        more = f" and {len(same) - _SHOWN_ADDRESSES} more" if len(same) > _SHOWN_ADDRESSES else ""
        detail = f"{shown}{more}: equal to another account's address except for case or look-alike letters"
        return [Finding(name, "warning", detail, "remove the unused account: brewos-relay user list")]
    return [Finding(name, "ok", "there is an administrator")]


def check_disk(settings: Settings) -> list[Finding]:
    """Check whether the registry's disk has room and can be written."""
    name = "disk"
    try:
        file = database_file(settings.resolved_database_url())
    except (RegistryError, SettingsError):
        return []  # `check_database` reports it
    if file is None or not file.parent.exists():
        return []
    disk = examine_disk(file)
    found: list[Finding] = []
    for problem, detail in disk.problems.items():
        state: State = "failed" if problem in {"read_only", "write_failed"} else "warning"
        found.append(Finding(name, state, detail, advice_for(problem)))
    if found or disk.free_bytes is None:
        return found
    return [Finding(name, "ok", f"{disk.free_bytes / 2**30:.1f} GiB are free on the registry's disk")]


def check_degraded(url: str, context: ssl.SSLContext | None = None) -> list[Finding]:
    """Ask a running server whether it is degraded. Returns nothing if no server answers."""
    try:
        _, _, body = fetch(url, "/readyz", context)
        detail = json.loads(body)["degraded"]
        advice = "read the server's log for the cause and the remedy"
        return [Finding("running server", "warning", f"degraded: {each}", advice) for each in detail]
    except (OSError, http.client.HTTPException, ValueError, LookupError, TypeError):
        return []


def check_certificate(settings: Settings) -> list[Finding]:
    """Check the certificate of the settings."""
    name = "certificate"
    if not settings.speaks_tls:
        return [
            Finding(name, "ok", "none: the port serves plain HTTP, for a local network or a proxy with TLS")
        ]
    if settings.tls_cert is not None and settings.tls_key is not None:
        cert, key = settings.tls_cert, settings.tls_key
    else:
        cert = key = settings.data_dir / FILE_NAME
        if not cert.exists():
            return [Finding(name, "ok", f"the server creates {cert} when it starts")]
    try:
        _, certificate = load_certificate(cert, key)
    except SettingsError as problem:
        return [
            Finding(
                name, "failed", str(problem), "the server cannot start with it: replace it by a valid one"
            )
        ]
    found = [_days_left(name, str(cert), certificate.expires_at_s)]
    if settings.tls_self_signed and (wrong := ca_problem(settings.data_dir, public_host(settings))):
        what, _, advice = wrong.partition(": ")
        found.append(Finding("local CA", "warning", what, advice))
    return found


def _days_left(name: str, what: str, expires_at_s: float) -> Finding:
    days = (expires_at_s - time.time()) / 86_400
    if days <= 0:
        return Finding(name, "failed", f"{what} expired {-days:.0f} days ago", "renew it")
    detail = f"{what} is valid for {days:.0f} more days"
    if days < _SOON_DAYS:
        return Finding(name, "warning", detail, "check that its renewal works")
    return Finding(name, "ok", detail)


def check_served_certificate(url: str, context: ssl.SSLContext | None) -> list[Finding]:
    """Check the certificate that clients of `url` receive, which may be a proxy's.

    Returns nothing without TLS, or if no server answers, which the canary reports.
    """
    if context is None:
        return []
    name = "served certificate"
    try:
        parts = urlsplit(url)
        host, port = parts.hostname or "", parts.port or 443
        with (
            socket.create_connection((host, port), timeout=_ANSWER_S) as plain,
            context.wrap_socket(plain, server_hostname=host) as stream,
        ):
            served = stream.getpeercert() or {}
            return [_days_left(name, f"the one of {url}", ssl.cert_time_to_seconds(str(served["notAfter"])))]
    except ssl.SSLCertVerificationError as problem:
        detail = f"the one of {url} is not trusted: {problem.verify_message}"
        advice = (
            "renew it, and let the server send the intermediate certificates; or check the name."
            " For a local CA, run this in the server's folder, or set SSL_CERT_FILE to its ca.crt"
        )
        return [Finding(name, "failed", detail, advice)]
    except (OSError, LookupError, ValueError):
        return []


def check_port(settings: Settings) -> list[Finding]:
    """Check whether the port is free, or served by a relay."""
    name = f"port {settings.port}"
    family = socket.AF_INET6 if ":" in settings.host else socket.AF_INET
    with socket.socket(family) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((settings.host, settings.port))
        except OSError as problem:
            if problem.errno == errno.EADDRINUSE:
                return [_check_server_on_port(name, local_url(settings))]
            advice = "check --host; a port below 1024 needs a privilege (AmbientCapabilities= in a unit)"
            return [Finding(name, "failed", f"cannot be used: {problem.strerror}", advice)]
    return [Finding(name, "ok", "free: no server is running on it")]


def _check_server_on_port(name: str, url: str) -> Finding:
    try:
        status, _, body = fetch(url, "/api/health")
        health = json.loads(body)
        detail = f"served by a relay with {health['devices']} devices and {health['clients']} clients"
    except (OSError, http.client.HTTPException, ValueError, LookupError, TypeError):
        return Finding(
            name,
            "failed",
            "taken by another program",
            "stop that program, or choose another port with --port",
        )
    if status == 503:
        return Finding(name, "warning", f"{detail}, which is draining", "check again in a minute")
    return Finding(name, "ok", detail)


def check_open_files() -> list[Finding]:
    """Warn if this process may open only few files, and so connections. The check uses the hard limit.

    A server has the same limit if it is started in the same way.
    """
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    detail = "no limit" if hard == resource.RLIM_INFINITY else f"{hard}"
    if hard != resource.RLIM_INFINITY and hard < _FEW_FILES:
        advice = f"raise the limit to {_FEW_FILES} or more: LimitNOFILE= in a unit, ulimits in compose"
        return [Finding("open files", "warning", f"limit: {detail}, one for each connection", advice)]
    return [Finding("open files", "ok", f"limit: {detail}, one for each connection")]


def check_clock_sync() -> list[Finding]:
    """Check whether the kernel reports that this computer's clock is synchronized."""
    name, compare = "clock", "compare it: --clock https://HOST"
    kept = _is_clock_synced()
    if kept is None:
        return [Finding(name, "warning", "this system does not report whether it is synchronized", compare)]
    if not kept:
        advice = f"start chrony or systemd-timesyncd, or {compare}"
        return [Finding(name, "warning", "the kernel reports that it is not synchronized", advice)]
    return [Finding(name, "ok", "synchronized by this computer")]


class _Timex(ctypes.Structure):
    """The first fields of `struct timex` and room for the others (adjtimex(2))."""

    _fields_: ClassVar = [
        ("modes", ctypes.c_uint),
        ("offset", ctypes.c_long),
        ("freq", ctypes.c_long),
        ("maxerror", ctypes.c_long),
        ("esterror", ctypes.c_long),
        ("status", ctypes.c_int),
        ("rest", ctypes.c_byte * 512),
    ]


def _is_clock_synced() -> bool | None:
    """Return whether the kernel's clock is synchronized; None if the kernel does not tell.

    adjtimex(2) changes nothing here, as `modes` is zero.
    """
    try:
        state: int = ctypes.CDLL(None).adjtimex(ctypes.byref(timex := _Timex()))
    except (AttributeError, OSError):
        return None
    if state < 0:
        return None
    return not timex.status & _STA_UNSYNC


def check_clock(url: str, context: ssl.SSLContext | None = None) -> list[Finding]:
    """Compare this computer's clock with the Date header of a server; more than 30 s apart is a failure.

    The header has whole seconds, rounded down: the server's time is half a second later on average.
    """
    name = "clock"
    try:
        before_s = time.time()
        _, headers, _ = fetch(url, "/", context)
        here_s = (before_s + time.time()) / 2
        there_s = parsedate_to_datetime(headers["date"]).timestamp() + 0.5
    except (OSError, http.client.HTTPException, ValueError, LookupError, TypeError):
        return [
            Finding(name, "warning", f"{url} sends no valid Date header", "name another server with --clock")
        ]
    off_s = here_s - there_s
    detail = f"{abs(off_s):.0f} s {'ahead of' if off_s > 0 else 'behind'} {url}"
    if abs(off_s) > _CLOCK_OFF_S:
        return [
            Finding(
                name,
                "failed",
                detail,
                "tokens and certificates depend on it: synchronize it, for example with chrony",
            )
        ]
    return [Finding(name, "ok", f"agrees with {url}" if abs(off_s) < 2 else detail)]


def fetch(url: str, path: str, context: ssl.SSLContext | None = None) -> tuple[int, dict[str, str], bytes]:
    """Request a page from a server; return status, headers by lower-case name, and body.

    Without `context` the certificate is not verified; nothing secret is sent. Raises OSError or
    HTTPException.
    """
    parts = urlsplit(url)
    connection: http.client.HTTPConnection
    if parts.scheme in {"https", "wss"}:
        unchecked = ssl.create_default_context()
        unchecked.check_hostname = False
        unchecked.verify_mode = ssl.CERT_NONE
        connection = http.client.HTTPSConnection(
            parts.hostname or "", parts.port, timeout=_ANSWER_S, context=context or unchecked
        )
    else:
        connection = http.client.HTTPConnection(parts.hostname or "", parts.port, timeout=_ANSWER_S)
    try:
        connection.request("GET", path, headers={"Connection": "close"})
        answer = connection.getresponse()
        headers = {key.lower(): value for key, value in answer.getheaders()}
        return answer.status, headers, answer.read(64 * 1024)
    finally:
        connection.close()

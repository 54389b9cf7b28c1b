import datetime
import socket
import ssl
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

from brewos_relay.doctor import system_checks
from brewos_relay.doctor.system_checks import (
    check_clock_sync,
    check_degraded,
    check_disk,
    check_served_certificate,
)
from brewos_relay.server import health_checks
from brewos_relay.settings import Settings
from support.certificates import Files, server_context, write_certificate
from support.ports import free_port


@contextmanager
def server_with(files: Files) -> Iterator[int]:
    """Run a TLS handshake with one client, in a thread; return the port."""
    with socket.create_server(("127.0.0.1", 0)) as listening:
        listening.settimeout(10)

        def serve() -> None:
            accepted, _ = listening.accept()
            with (
                accepted,
                suppress(OSError),
                server_context(files).wrap_socket(accepted, server_side=True) as tls,
            ):
                tls.recv(1)

        thread = threading.Thread(target=serve)
        thread.start()
        yield listening.getsockname()[1]
        thread.join()


def trusting(files: Files) -> ssl.SSLContext:
    return ssl.create_default_context(cafile=str(files.cert))


@pytest.mark.parametrize(
    ("days", "state", "said"),
    [(80, "ok", "80 more days"), (5, "warning", "5 more days"), (-0.5, "failed", "expired")],
)
def test_remaining_days_of_the_served_certificate(tmp_path: Path, days: float, state: str, said: str) -> None:
    files = write_certificate(tmp_path, ends=datetime.timedelta(days=days))
    with server_with(files) as port:
        (finding,) = check_served_certificate(f"https://localhost:{port}", trusting(files))
    assert (finding.name, finding.state) == ("served certificate", state)
    assert said in finding.text
    assert bool(finding.advice) == (state != "ok")


def test_untrusted_certificate_or_wrong_name_fails(tmp_path: Path) -> None:
    files = write_certificate(tmp_path, names=["relay.example"])
    for context, said in ((ssl.create_default_context(), "self"), (trusting(files), "ostname mismatch")):
        with server_with(files) as port:
            (finding,) = check_served_certificate(f"https://localhost:{port}", context)
        assert finding.state == "failed"
        assert said in finding.text


@pytest.mark.parametrize("url", ["https://localhost:99999", "https://[::1"])
def test_invalid_address_is_left_to_the_canary(url: str) -> None:
    assert check_served_certificate(url, ssl.create_default_context()) == []


def test_plain_http_has_no_certificate_finding() -> None:
    assert check_served_certificate("http://localhost:1", None) == []
    assert check_served_certificate(f"https://localhost:{free_port()}", ssl.create_default_context()) == []


@pytest.mark.parametrize(
    ("kept", "state", "said"),
    [
        (True, "ok", "synchronized"),
        (False, "warning", "not synchronized"),
        (None, "warning", "does not report"),
    ],
)
def test_clock_synchronization_is_reported(
    monkeypatch: pytest.MonkeyPatch, kept: bool | None, state: str, said: str
) -> None:
    monkeypatch.setattr(system_checks, "_is_clock_synced", lambda: kept)
    (finding,) = check_clock_sync()
    assert (finding.name, finding.state) == ("clock", state)
    assert said in finding.text
    assert ("--clock" in finding.advice) == (state != "ok")


def test_kernel_reports_clock_synchronization() -> None:
    assert system_checks._is_clock_synced() in {True, False, None}


def test_system_without_adjtimex_reports_no_synchronization(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("brewos_relay.doctor.system_checks.ctypes.CDLL", lambda _name: object())
    assert system_checks._is_clock_synced() is None


def test_free_space_of_the_registrys_disk_is_reported(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = Settings(data_dir=tmp_path)
    (finding,) = check_disk(settings)
    assert (finding.name, finding.state) == ("disk", "ok")
    monkeypatch.setattr(health_checks, "LOW_BYTES", 2**70)
    monkeypatch.setattr(health_checks, "LOW_SHARE", 2.0)
    (finding,) = check_disk(settings)
    assert finding.state == "warning"
    assert "almost full" in finding.text
    assert "free some space" in finding.advice


def test_failing_disk_is_worse_than_a_full_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = health_checks.Disk(problems={"read_only": "the registry's disk is read-only"})
    monkeypatch.setattr(system_checks, "examine_disk", lambda _file: found)
    (finding,) = check_disk(Settings(data_dir=tmp_path))
    assert finding.state == "failed"


@pytest.mark.parametrize("url", ["postgresql://db.example/relay", "no url"])
def test_only_a_local_disk_is_checked(tmp_path: Path, url: str) -> None:
    assert check_disk(Settings(data_dir=tmp_path, database_url=url)) == []
    assert check_disk(Settings(data_dir=tmp_path / "not there")) == []


def test_degraded_server_is_a_warning(monkeypatch: pytest.MonkeyPatch) -> None:
    def fetch(_url: str, path: str, _context: object) -> tuple[int, dict[str, str], bytes]:
        assert path == "/readyz"
        return 200, {}, b'{"status":"ready","reasons":[],"degraded":["the registry\'s disk is full"]}'

    monkeypatch.setattr(system_checks, "fetch", fetch)
    (finding,) = check_degraded("http://localhost:1")
    assert (finding.name, finding.state) == ("running server", "warning")
    assert "disk is full" in finding.text


def test_missing_server_is_not_degraded() -> None:
    assert check_degraded(f"http://localhost:{free_port()}") == []

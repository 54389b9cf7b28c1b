import datetime
import socket
import ssl
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

from brewos_relay.doctor import system_checks
from brewos_relay.doctor.system_checks import check_kept_clock, check_served_certificate
from support.certificates import Files, server_context, write_certificate
from support.fronts import free_port


@contextmanager
def server_with(files: Files) -> Iterator[int]:
    """Shake hands with one client, in a thread; give the port."""
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
def test_the_days_that_are_left_to_what_everybody_sees(
    tmp_path: Path, days: float, state: str, said: str
) -> None:
    files = write_certificate(tmp_path, ends=datetime.timedelta(days=days))
    with server_with(files) as port:
        (finding,) = check_served_certificate(f"https://localhost:{port}", trusting(files))
    assert (finding.name, finding.state) == ("served certificate", state)
    assert said in finding.text
    assert bool(finding.advice) == (state != "ok")


def test_a_certificate_that_nobody_trusts_or_of_another_name(tmp_path: Path) -> None:
    files = write_certificate(tmp_path, names=["relay.example"])
    for context, said in ((ssl.create_default_context(), "self"), (trusting(files), "ostname mismatch")):
        with server_with(files) as port:
            (finding,) = check_served_certificate(f"https://localhost:{port}", context)
        assert finding.state == "failed"
        assert said in finding.text


@pytest.mark.parametrize("url", ["https://localhost:99999", "https://[::1"])
def test_an_address_that_cannot_be_read_is_for_the_canary_to_tell(url: str) -> None:
    assert check_served_certificate(url, ssl.create_default_context()) == []


def test_where_there_is_no_certificate_nothing_is_said() -> None:
    assert check_served_certificate("http://localhost:1", None) == []
    assert check_served_certificate(f"https://localhost:{free_port()}", ssl.create_default_context()) == []


@pytest.mark.parametrize(
    ("kept", "state", "said"),
    [(True, "ok", "kept right"), (False, "warning", "nothing"), (None, "warning", "does not say")],
)
def test_whether_anything_keeps_the_clock(
    monkeypatch: pytest.MonkeyPatch, kept: bool | None, state: str, said: str
) -> None:
    monkeypatch.setattr(system_checks, "_is_clock_kept", lambda: kept)
    (finding,) = check_kept_clock()
    assert (finding.name, finding.state) == ("clock", state)
    assert said in finding.text
    assert ("--clock" in finding.advice) == (state != "ok")


def test_the_kernel_is_asked() -> None:
    assert system_checks._is_clock_kept() in {True, False, None}


def test_systems_that_cannot_be_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("brewos_relay.doctor.system_checks.ctypes.CDLL", lambda _name: object())
    assert system_checks._is_clock_kept() is None

"""Tests of the demo in its own process."""

import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from brewos_relay.commands import run_demo
from brewos_relay.commands.run_client import run_send
from brewos_relay.errors import SettingsError
from support.load import slowdown

DEADLINE_S = 30.0
RUN = "import sys; from brewos_relay.commands.run_demo import run_demo; run_demo(int(sys.argv[1]))"


class Running:
    """A demo in its own process, with its output so far."""

    def __init__(self, temporary: Path) -> None:
        self.lines: list[str] = []
        self._news = threading.Condition()
        self._ended = False
        self.process = subprocess.Popen(
            [sys.executable, "-c", RUN, "0"],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            encoding="utf-8",
            env=os.environ
            | {"TMPDIR": str(temporary), "PYTHONPATH": os.pathsep.join(sys.path), "PYTHONUTF8": "1"},
        )
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            with self._news:
                self.lines.append(line.rstrip("\n"))
                self._news.notify_all()
        with self._news:
            self._ended = True
            self._news.notify_all()

    def wait_for(self, pattern: str) -> re.Match[str]:
        """Wait for a matching line of output."""

        def find() -> re.Match[str] | None:
            return next((match for line in self.lines if (match := re.search(pattern, line))), None)

        with self._news:
            self._news.wait_for(lambda: find() is not None or self._ended, DEADLINE_S)
            match = find()
        assert match is not None, "\n".join(self.lines)
        return match

    def stop(self, number: int) -> float:
        """Send a signal and wait for the end; return how long that took, in s."""
        began_s = time.monotonic()
        self.process.send_signal(number)
        self.process.wait(DEADLINE_S)
        took_s = time.monotonic() - began_s
        self._reader.join(DEADLINE_S)
        return took_s


@pytest.fixture
def running(tmp_path: Path) -> Iterator[Running]:
    started = Running(tmp_path)
    try:
        yield started
    finally:
        started.process.kill()
        started.process.wait(DEADLINE_S)
        assert started.process.stdout is not None
        started.process.stdout.close()


def test_demo_shows_a_device_and_ends_cleanly(running: Running, tmp_path: Path) -> None:
    url = running.wait_for(r"^URL +(http://127\.0\.0\.1:\d+)$")[1]
    device_id = running.wait_for(r"^device +(BRW-[0-9A-F]{8})\b")[1]
    token = running.wait_for(r"^token +(\S+)$")[1]
    running.wait_for(rf"^  brewos-relay tail {device_id} --url {url} --token {re.escape(token)}$")
    running.wait_for(r"^  brewos-relay send .* set_mode mode=off --url")
    running.wait_for(r"status +heating +brew \d+\.\d/93\.0 °C")
    running.wait_for(r"status_delta .*brew")
    assert list(tmp_path.iterdir()), "the registry is in the temporary folder"

    fields = ("boiler=steam", "temp=125")
    assert run_send(url=url, token=token, device_id=device_id, command="set_temp", fields=fields) == 0
    running.wait_for(r"log +info: Steam temperature set to 125\.0 C")
    running.wait_for(r"steam \d+\.\d/125\.0 °C")
    assert run_send(url=url, token=token, device_id=device_id, command="set_mode", fields=("mode=off",)) == 0
    running.wait_for(r"status +idle")

    load = slowdown()
    took_s = running.stop(signal.SIGINT)
    load = max(load, slowdown())
    assert running.process.returncode == 0
    assert not [line for line in running.lines if "Traceback" in line]
    assert took_s < 2.0 * load  # about 1 s on an idle computer
    assert list(tmp_path.iterdir()) == []


def test_sigterm_leaves_no_files(running: Running, tmp_path: Path) -> None:
    running.wait_for("status")
    running.stop(signal.SIGTERM)
    assert running.process.returncode == 0
    assert list(tmp_path.iterdir()) == []


def test_given_port_must_be_free() -> None:
    with socket.create_server((run_demo.HOST, 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(SettingsError, match=f"port {port}"):
            run_demo.check_port(port)
        with pytest.raises(SettingsError, match="--port"):
            run_demo.run_demo(port)
    assert run_demo.check_port(port) == port


def test_next_free_port_is_the_default(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.create_server((run_demo.HOST, 0)) as taken:
        port = taken.getsockname()[1]
        monkeypatch.setattr(run_demo, "FIRST_PORT", port)
        assert port < run_demo.find_port() <= port + 100
        monkeypatch.setattr(run_demo, "_PORTS_TRIED", 1)
        with pytest.raises(SettingsError, match="all taken"):
            run_demo.find_port()


def test_demo_repr_has_no_secrets(tmp_path: Path) -> None:
    prepared = run_demo.prepare(tmp_path, port=1)
    assert prepared.token not in repr(prepared)
    assert prepared.device_key not in repr(prepared)
    assert prepared.settings.jwt_secret not in repr(prepared)
    assert prepared.settings.limits.device_min_age_s == 0

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
import segno
import trio

from brewos_relay.client.http_call import post_json
from brewos_relay.commands import run_demo
from brewos_relay.commands.qr_code import qr_lines
from brewos_relay.commands.run_client import run_send
from brewos_relay.errors import SettingsError
from support.load import Delay

DEADLINE_S = 30.0
RUN = "import sys; from brewos_relay.commands.run_demo import run_demo; run_demo(int(sys.argv[1]), {})"


class Running:
    """A demo in its own process, with its output so far."""

    def __init__(self, temporary: Path) -> None:
        self.lines: list[str] = []
        self._news = threading.Condition()
        self._ended = False
        self.process = subprocess.Popen(
            [sys.executable, "-c", RUN.format("verbose=True"), "0"],
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
        """Send a signal and wait for the end; return how long that took, not counting its delays."""
        began_s = time.monotonic()
        delay = Delay(time.monotonic)
        self.process.send_signal(number)
        while self.process.poll() is None:
            assert time.monotonic() - began_s < DEADLINE_S
            delay.sample()
            time.sleep(0.02)
        took_s = time.monotonic() - began_s - delay.since(began_s)
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
    url = running.wait_for(r"^(http://127\.0\.0\.1:\d+)/login#demo&invite=\S{22}$")[1]
    folder = Path(running.wait_for(r"after: cd (\S+)$")[1])
    device_id = running.wait_for(r"^  brewos-relay tail (BRW-[0-9A-F]{8})$")[1]
    running.wait_for(r"^  brewos-relay send .* set_temp boiler=brew temp=96$")
    assert folder.parent == tmp_path
    assert (folder / ".env").stat().st_mode & 0o777 == 0o600
    settings = dict(re.findall(r"^(\w+)=(.*)$", (folder / ".env").read_text(), re.M))
    assert settings["BREWOS_RELAY_URL"] == url
    token = settings["BREWOS_RELAY_TOKEN"]
    running.wait_for(r"status +heating +brew \d+\.\d/93\.0 °C")
    running.wait_for(r"status_delta .*brew")
    assert list(tmp_path.iterdir()), "the registry is in the temporary folder"

    fields = ("boiler=steam", "temp=125")
    assert run_send(url=url, token=token, device_id=device_id, command="set_temp", fields=fields) == 0
    running.wait_for(r"log +info: Steam temperature set to 125\.0 C")
    running.wait_for(r"steam \d+\.\d/125\.0 °C")
    assert run_send(url=url, token=token, device_id=device_id, command="set_mode", fields=("mode=off",)) == 0
    running.wait_for(r"status +idle")

    took_s = running.stop(signal.SIGINT)
    assert running.process.returncode == 0
    assert not [line for line in running.lines if "Traceback" in line]
    assert took_s < 2.0  # about 1 s on an idle computer
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


def prepared(folder: Path, lan_address: str | None) -> run_demo.Demo:
    return run_demo.prepare(folder, port=3001, lan_address=lan_address)


@pytest.mark.parametrize("lan_address", ["192.168.100.100", None])
def test_everything_fits_into_80_columns_and_24_lines_and_the_link_is_last(
    tmp_path: Path, lan_address: str | None
) -> None:
    (folder := tmp_path / "brewos-relay-demo-abcdefgh").mkdir()
    demo = prepared(folder, lan_address)
    lines = run_demo.introduction(demo, "http://127.0.0.1:3001")
    assert len(lines) <= 23, "the cursor is in the last line"
    assert max(len(line) for line in lines if str(folder) not in line) <= 80
    assert lines[-1] == f"http://127.0.0.1:3001/login#demo&invite={demo.invite}"
    assert ("Scan this with a phone" in "".join(lines)) == (lan_address is not None)
    assert demo.settings.host == ("127.0.0.1" if lan_address is None else "")
    assert (demo.settings.pairing, demo.settings.sign_up) == ("closed", "invited")


@pytest.mark.parametrize("colors", [True, False])
def test_qr_code_has_the_link_for_phones(tmp_path: Path, colors: bool) -> None:
    demo = prepared(tmp_path, "192.168.1.5")
    lines = run_demo.introduction(demo, "http://127.0.0.1:3001", colors=colors)
    text = f"http://192.168.1.5:3001/login#demo&invite={demo.invite}"
    assert qr_lines(text, colors=colors)[3] in "\n".join(lines)
    dark = {"█": (1, 1), "▀": (1, 0), "▄": (0, 1), " ": (0, 0)}
    modules: list[list[int]] = []
    for line in qr_lines(text, colors=colors):
        pairs = [dark[each] for each in re.sub("\x1b\\[[0-9;]*m", "", line)[1:-1]]
        modules += [[pair[half] ^ (not colors) for pair in pairs] for half in (0, 1)]
    expected = segno.make(text, micro=False, error="l", boost_error=False).matrix_iter(border=1)
    assert modules[:-1] == [list(map(int, row)) for row in expected]


def test_private_addresses_are_found_only(monkeypatch: pytest.MonkeyPatch) -> None:
    for address, found in (("192.168.1.5", "192.168.1.5"), ("192.0.2.9", None), ("127.0.0.1", None)):
        monkeypatch.setattr(socket.socket, "connect", lambda *_: None)
        monkeypatch.setattr(socket.socket, "getsockname", lambda _, address=address: (address, 1))
        assert run_demo.find_lan_address() == found


def test_quiet_demo_prints_no_messages_and_its_link_works_again(tmp_path: Path) -> None:
    demo = run_demo.prepare(tmp_path, port=0)
    said: list[str] = []

    async def sign_in_twice() -> None:
        url, _, invite = said[-1].partition("/login#demo&invite=")
        for _ in range(2):
            session = await post_json(url, "/api/auth/invite", {"token": invite})
            assert session["user"]["email"] == run_demo.EMAIL

    async def main() -> None:
        with trio.fail_after(DEADLINE_S):
            await run_demo.demonstrate(demo, say=said.append, until=sign_in_twice)

    trio.run(main)
    assert len(said) == 5

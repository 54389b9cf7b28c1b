"""Tests of commands whose standard streams are closed, full, or cannot write every character."""

import signal
import subprocess
import sys
import time
import urllib.request
from contextlib import suppress
from pathlib import Path

import pytest

from support.ports import free_port
from support.process import SECRET, environment

COMMAND_S = 30
COMMANDS = (
    ("--help",),
    ("--version",),
    ("secret",),
    ("token", "--user", "ada", "--email", "ada@example.org", "--all-devices"),
    ("db", "status"),
    ("device", "list"),
    ("doctor", "--settings"),
)

needs_full_device = pytest.mark.skipif(not Path("/dev/full").exists(), reason="there is no /dev/full")


def shell(folder: Path, redirected: str, *command: str, **variables: str) -> subprocess.CompletedProcess[str]:
    """Run a command with redirected streams, as a shell does."""
    return subprocess.run(
        ["/bin/sh", "-c", f'exec "$@" {redirected}', "sh", sys.executable, "-m", "brewos_relay", *command],
        cwd=folder,
        env=environment(**variables),
        capture_output=True,
        encoding="latin-1",
        timeout=COMMAND_S,
        check=False,
    )


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with a registry; the name of its device has characters of many scripts."""
    made = tmp_path_factory.mktemp("registry")
    added = shell(made, "", "device", "add", "BRW-00000001", "--name", "Küche → ☕")
    assert added.returncode == 0, added.stderr
    return made


@needs_full_device
@pytest.mark.parametrize("command", COMMANDS, ids=" ".join)
def test_full_output_is_one_error_line_and_exit_code_1(folder: Path, command: tuple[str, ...]) -> None:
    done = shell(folder, ">/dev/full", *command)
    assert done.returncode == 1
    assert done.stderr == "brewos-relay: cannot write the output: No space left on device\n"


@pytest.mark.parametrize("command", COMMANDS, ids=" ".join)
def test_closed_output_is_one_error_line_and_exit_code_1(folder: Path, command: tuple[str, ...]) -> None:
    done = shell(folder, ">&-", *command)
    assert done.returncode == 1
    assert done.stderr == "brewos-relay: cannot write the output: Bad file descriptor\n"


@needs_full_device
def test_full_errors_leave_the_exit_code(folder: Path) -> None:
    assert shell(folder, "2>/dev/full", "brew").returncode == 2
    assert shell(folder, "2>&-", "brew").returncode == 2
    done = shell(folder, ">/dev/full 2>/dev/full", "--help")
    assert (done.returncode, done.stdout, done.stderr) == (1, "", "")


def test_terminal_that_cannot_show_a_character_gets_an_escape(folder: Path) -> None:
    done = shell(folder, "", "device", "list", PYTHONIOENCODING="latin-1")
    assert done.returncode == 0
    assert done.stderr == ""
    assert "BRW-00000001" in done.stdout
    assert "Küche \\u2192 \\u2615" in done.stdout


def test_error_with_characters_of_other_scripts_is_one_line(folder: Path) -> None:
    done = shell(folder, "", "кофе", PYTHONIOENCODING="latin-1")
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1
    assert "\\u043a" in done.stderr


@pytest.mark.parametrize("redirected", [">&-", "2>&-", "<&- >&- 2>&-", ">/dev/full", "2>/dev/full"])
def test_server_runs_and_ends_without_its_streams(tmp_path: Path, redirected: str) -> None:
    port = free_port()
    command = [sys.executable, "-m", "brewos_relay", "serve", "--host", "127.0.0.1", "--port", str(port)]
    server = subprocess.Popen(
        ["/bin/sh", "-c", f'exec "$@" {redirected}', "sh", *command],
        cwd=tmp_path,
        env=environment(JWT_SECRET=SECRET),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        deadline_s = time.monotonic() + COMMAND_S
        while not _answers(port):
            assert server.poll() is None
            assert time.monotonic() < deadline_s
            time.sleep(0.05)
        standard = [Path(f"/proc/{server.pid}/fd/{number}") for number in range(3)]
        if standard[0].parent.exists():
            assert all(str(one.readlink()).startswith(("/dev/", "pipe:")) for one in standard)
        server.send_signal(signal.SIGTERM)
        assert server.wait(COMMAND_S) == 0
    finally:
        server.kill()
        server.wait()


def _answers(port: int) -> bool:
    with suppress(OSError), urllib.request.urlopen(f"http://127.0.0.1:{port}/livez", timeout=5) as answer:
        return bool(answer.status == 200)
    return False


def test_server_warns_of_unknown_variables_and_ignores_service_links(tmp_path: Path) -> None:
    with subprocess.Popen(
        [sys.executable, "-m", "brewos_relay", "serve", "--host", "127.0.0.1", "--port", "0"],
        cwd=tmp_path,
        env=environment(
            JWT_SECRET=SECRET,
            BREWOS_RELAY_DRANE_S="1",
            BREWOS_RELAY_PORT="tcp://10.0.0.1:80",
            BREWOS_RELAY_METRICS_PORT="tcp://10.0.0.1:9100",
        ),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        encoding="utf-8",
    ) as server:
        try:
            assert server.stdout is not None
            assert "is ready on 127.0.0.1:" in server.stdout.readline()
            server.send_signal(signal.SIGTERM)
            _, errors = server.communicate(timeout=COMMAND_S)
        finally:
            server.kill()
    assert server.returncode == 0
    assert "did you mean BREWOS_RELAY_DRAIN_S?" in errors
    assert errors.count("is not a setting") == 1

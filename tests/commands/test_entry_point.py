"""Tests of the command as a whole: help, version, cost of the start, and exit codes."""

import errno
import json
import os
import resource
import runpy
import signal
import subprocess
import sys
import threading
from functools import partial
from importlib.metadata import PackageNotFoundError
from typing import NoReturn

import click
import pytest

from brewos_relay.cli import cli, main
from brewos_relay.version import BUILD

from .conftest import SECRET, Run, assert_refused

DEADLINE_S = 30.0
CPU_BOUND_S = 1.0  # far above the usual time, for slow or busy computers

COMMANDS = {
    ("cluster", "status"),
    ("db", "backup"),
    ("db", "export"),
    ("db", "import"),
    ("db", "restore"),
    ("db", "status"),
    ("db", "upgrade"),
    ("completion",),
    ("demo",),
    ("device", "activity"),
    ("device", "add"),
    ("device", "doctor"),
    ("device", "give"),
    ("device", "import"),
    ("device", "list"),
    ("device", "remove"),
    ("device", "release"),
    ("device", "rotate-key"),
    ("device", "shots"),
    ("device", "take"),
    ("device", "users"),
    ("doctor",),
    ("init",),
    ("pairing", "close"),
    ("pairing", "open"),
    ("pairing", "status"),
    ("secret",),
    ("send",),
    ("serve",),
    ("simulate",),
    ("tail",),
    ("token", "list"),
    ("token", "revoke"),
    ("user", "admin"),
    ("user", "invite"),
    ("user", "list"),
    ("user", "password"),
    ("user", "remove"),
    ("user", "sign-out"),
}
GROUPS = [("cluster",), ("db",), ("device",), ("pairing",), ("user",)]


def walk(command: click.Command, path: tuple[str, ...] = ()) -> set[tuple[str, ...]]:
    if not isinstance(command, click.Group):
        return {path}
    return {found for name, each in command.commands.items() for found in walk(each, (*path, name))}


# Help and version


def test_list_of_commands() -> None:
    assert walk(cli) == COMMANDS


@pytest.mark.parametrize("path", [(), *GROUPS, ("token",), *sorted(COMMANDS)])
def test_help_teaches(run: Run, path: tuple[str, ...]) -> None:
    outcome = run(*path, "--help")
    assert outcome.code == 0
    assert outcome.err == ""
    assert outcome.out.startswith(f"Usage: {' '.join(('brewos-relay', *path))} ")
    if path:
        assert "Example:\n" in outcome.out
    assert f"brewos-relay {' '.join(path)}".strip() in outcome.out.split("\n", 1)[1]
    assert all(len(line) <= 120 for line in outcome.out.splitlines())


@pytest.mark.parametrize("path", [(), *GROUPS])
def test_short_help_of_commands_is_not_cut(
    run: Run, monkeypatch: pytest.MonkeyPatch, path: tuple[str, ...]
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    lines = run(*path, "--help").out.partition("\nCommands:\n")[2].splitlines()
    assert lines
    assert all(line.endswith(".") and not line.endswith("..") for line in lines)


@pytest.mark.parametrize("path", [(), *GROUPS])
def test_group_without_a_command_shows_its_help(run: Run, path: tuple[str, ...]) -> None:
    assert run(*path) == run(*path, "--help")


def test_version_is_that_of_the_package(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.metadata.version", lambda name: f"1.2.3 of {name}")
    outcome = run("--version")
    assert (outcome.code, outcome.out) == (0, f"brewos-relay 1.2.3 of brewos-relay ({BUILD})\n")


def test_version_of_a_source_tree(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    def version(name: str) -> NoReturn:
        raise PackageNotFoundError(name)

    monkeypatch.setattr("importlib.metadata.version", version)
    assert run("--version").out == f"brewos-relay (not installed, {BUILD})\n"


# Wrong usage


@pytest.mark.parametrize(
    ("args", "parts"),
    [
        (["--colour"], ["No such option", "--colour", "See `brewos-relay --help`."]),
        (["brew"], ["No such command 'brew'", "See `brewos-relay --help`."]),
        (["token"], ["--user", "See `brewos-relay token --help`."]),
        (["device", "add"], ["ID", "See `brewos-relay device add --help`."]),
        (["serve", "--port", "http"], ["--port", "'http'"]),
        (["serve", "--port", "65536"], ["--port", "65536"]),
        (["serve", "--log-level", "loud"], ["--log-level", "'loud'"]),
        (["tail", "BRW-00000001"], ["--token", "BREWOS_RELAY_TOKEN", "See `brewos-relay tail --help`."]),
        (["send", "BRW-00000001", "tare", "--token", ""], ["BREWOS_RELAY_TOKEN", "`brewos-relay token`"]),
        (["tail", "BRW-1", "--token", "x"], ["'BRW-1' is not a device id", "BRW-12AB34CD"]),
    ],
)
def test_wrong_usage_is_one_line_with_exit_code_2(run: Run, args: list[str], parts: list[str]) -> None:
    assert_refused(run(*args), 2, *parts)


# Cost of the start


def run_child(*command: str) -> tuple[str, float]:
    """Run a child process; return its output and its CPU time in s."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    done = subprocess.run(
        [sys.executable, *command],
        env={**os.environ, "JWT_SECRET": SECRET},
        capture_output=True,
        text=True,
        check=True,
        timeout=DEADLINE_S,
    )
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return done.stdout, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


_LIST_MODULES = """
import atexit, json, runpy, sys
atexit.register(lambda: print("\\n" + json.dumps(sorted(sys.modules))))
runpy.run_module("brewos_relay", run_name="__main__")
"""

LIGHT = [
    ["--help"],
    ["--version"],
    [],
    ["secret"],
    ["serve", "--help"],
    ["tail", "--help"],
    ["send", "--help"],
    ["device", "add", "--help"],
    ["device", "list", "--help"],
    ["device", "rotate-key", "--help"],
    ["user", "invite", "--help"],
    ["db", "status", "--help"],
    ["token", "--user", "ada", "--email", "a@b.c", "--device", "BRW-00000001", "--ttl", "1h"],
]


@pytest.mark.parametrize("args", LIGHT)
def test_light_commands_load_nothing_heavy(args: list[str]) -> None:
    out, _ = run_child("-c", _LIST_MODULES, *args)
    modules = set(json.loads(out.splitlines()[-1]))
    assert "click" in modules
    assert not modules & {"trio", "quart", "quart_trio", "hypercorn", "trio_websocket", "msgspec"}
    # `token` needs the signing code, and the registry for the id of the token.
    makes_token = args[:1] == ["token"]
    assert makes_token or not modules & {"sqlalchemy", "alembic"}
    assert makes_token or not modules & {"jwt", "cryptography"}
    assert ("brewos_relay.settings" in modules) == makes_token


@pytest.mark.parametrize("args", LIGHT)
def test_light_commands_take_little_time(args: list[str]) -> None:
    out, cpu_s = run_child("-m", "brewos_relay", *args)
    assert out
    assert cpu_s < CPU_BOUND_S


# Exit codes


def raise_from_a_command(monkeypatch: pytest.MonkeyPatch, problem: BaseException) -> None:
    def invoke(_ctx: object) -> NoReturn:
        raise problem

    monkeypatch.setattr(cli.commands["secret"], "invoke", invoke)


@pytest.mark.parametrize(
    "problem",
    [
        KeyboardInterrupt(),
        BaseExceptionGroup("", [KeyboardInterrupt()]),
        BaseExceptionGroup("", [ValueError(), BaseExceptionGroup("", [KeyboardInterrupt()])]),
    ],
)
def test_interrupt_ends_a_command_quietly(
    run: Run, monkeypatch: pytest.MonkeyPatch, problem: BaseException
) -> None:
    raise_from_a_command(monkeypatch, problem)
    outcome = run("secret")
    assert (outcome.code, outcome.out, outcome.err.strip()) == (130, "", "")


def test_bug_is_not_hidden(monkeypatch: pytest.MonkeyPatch) -> None:
    raise_from_a_command(monkeypatch, BaseExceptionGroup("", [ValueError("a bug")]))
    with pytest.raises(ExceptionGroup):
        main(["secret"])


def test_closed_pipe_ends_a_command_quietly(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdout", sys.stdout)  # click replaces it; restore it afterwards
    monkeypatch.setattr(sys, "stderr", sys.stderr)
    raise_from_a_command(monkeypatch, BrokenPipeError(errno.EPIPE, "Broken pipe"))
    outcome = run("secret")
    assert (outcome.code, outcome.out, outcome.err) == (1, "", "")


_WAIT = """
import sys, types, time
stand_in = types.ModuleType("brewos_relay.commands.run_demo")
def run_demo(port, **_):
    print("ready", flush=True)
    time.sleep(30)
stand_in.run_demo = run_demo
sys.modules["brewos_relay.commands.run_demo"] = stand_in
from brewos_relay.cli import main
main(["demo"])
"""


def test_ctrl_c_leaves_no_traceback() -> None:
    with subprocess.Popen(
        [sys.executable, "-c", _WAIT],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        # A shell makes its background jobs ignore SIGINT, and child processes inherit that.
        preexec_fn=partial(signal.signal, signal.SIGINT, signal.SIG_DFL),
    ) as child:
        watchdog = threading.Timer(DEADLINE_S, child.kill)
        watchdog.start()
        assert child.stdout is not None
        assert child.stderr is not None
        assert child.stdout.readline() == "ready\n"
        child.send_signal(signal.SIGINT)
        assert child.stderr.read().strip() == ""
        assert child.wait() == 130
        watchdog.cancel()


def test_package_runs_as_a_module(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["brewos-relay", "secret"])
    with pytest.raises(SystemExit) as exited:
        runpy.run_module("brewos_relay", run_name="__main__")
    assert exited.value.code == 0
    runpy.run_module("brewos_relay.__main__", run_name="elsewhere")

"""The examples in the documentation work: Python prints the documented output, and commands succeed.

Every block of Python or commands is run, except those below a `<!-- not run: why -->`. The commands of a page
run from top to bottom in one folder; a `<!-- before: … -->` has commands that readers need not see. A
long-running command, such as a server, runs until the end of the page.
"""

import os
import re
import shlex
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import pytest

from support.process import environment
from tables import without_generated

ROOT: Final = Path(__file__).parents[1]
DOCS: Final = ROOT / "docs"
PAGES: Final = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted(DOCS.rglob("*.md"))]
DEADLINE_S: Final = 60.0

_BLOCK: Final = re.compile(
    r"^<!-- before:\n(?P<before>.*?)^-->$"
    r"|^(?P<indent> *)(?:<!-- not run: (?P<reason>[^\n]+) -->\n *)?"
    r"```(?P<language>\w*)\n(?P<code>.*?)^ *```$",
    re.M | re.S,
)
_ENDLESS: Final = re.compile(r"^(?:\w+=\S+ )*brewos-relay (?P<name>serve|demo|tail|simulate)\b")
_HEREDOC: Final = re.compile(r"<<-?\s*'?(\w+)'?")
_URL: Final = re.compile(r"https?://[\w.\[\]:]+:\d+")
#: Paths on the computers of readers, and their replacements in the tests.
_ELSEWHERE: Final = {"/var/lib/brewos-relay": "var", "/srv/brewos/dist": "dist"}


@dataclass(frozen=True, slots=True)
class Block:
    """A fenced block, or the commands of a `before` (in the language `before`)."""

    language: str
    code: str
    reason: str | None = None
    """The reason not to run it."""
    output: str | None = None
    """Its documented output: a block of text directly after it."""


def blocks(page: Path) -> Iterator[Block]:
    """List the blocks of a page, in order."""
    found = list(_BLOCK.finditer(without_generated(page.read_text("utf-8"))))
    for match, after in zip(found, [*found[1:], None], strict=False):
        if match["before"] is not None:
            yield Block("before", match["before"])
            continue
        code = "".join(line.removeprefix(match["indent"]) for line in match["code"].splitlines(keepends=True))
        output = after["code"] if after is not None and after["language"] == "text" else None
        yield Block(match["language"], code, match["reason"], output)


def python_examples() -> list[object]:
    return [
        pytest.param(block, id=f"{page.relative_to(ROOT)}-{number}")
        for page in PAGES
        for number, block in enumerate(blocks(page))
        if block.language == "python" and block.reason is None
    ]


@pytest.mark.parametrize("example", python_examples())
def test_python_example_prints_its_documented_output(example: Block, tmp_path: Path) -> None:
    ran = subprocess.run(
        [sys.executable, "-W", "error", "-c", example.code],
        cwd=tmp_path,
        env=environment(),
        capture_output=True,
        text=True,
        timeout=DEADLINE_S,
        check=False,
    )
    assert (ran.stderr, ran.returncode) == ("", 0)
    assert example.output is not None, "write its output in a block of text after it"
    assert ran.stdout == example.output


def pages_with_commands() -> list[object]:
    return [
        pytest.param(page, id=str(page.relative_to(ROOT)))
        for page in PAGES
        if any(block.language == "console" and block.reason is None for block in blocks(page))
    ]


@pytest.mark.parametrize("page", pages_with_commands())
def test_commands_succeed(page: Path, tmp_path: Path) -> None:
    with ExitStack() as stack:
        shell = Shell(tmp_path, stack)
        for block in blocks(page):
            if block.language in ("before", "console") and block.reason is None:
                *others, last = commands(block.code)
                for command in others:
                    shell.run(command)
                is_refused = block.output is not None and block.output.startswith("brewos-relay: ")
                shell.run(last, refusal=block.output if is_refused else None)


def test_documentation_has_examples() -> None:
    assert len(python_examples()) >= 3
    assert len(pages_with_commands()) >= 5


def test_every_block_that_is_not_run_has_a_reason() -> None:
    for page in PAGES:
        text = page.read_text("utf-8")
        runnable = [block for block in blocks(page) if block.language in ("python", "console", "bash", "sh")]
        assert len(re.findall(r"^ *<!-- not run", text, re.M)) == sum(
            block.reason is not None for block in runnable
        ), page
        assert not [block for block in runnable if block.language in ("bash", "sh")], f"{page}: write console"


def commands(code: str) -> Iterator[str]:
    """Split a block into commands: each a line with its continuation lines and here-document.

    In a block with prompts (`$`), the other lines are output.
    """
    if code.startswith("$ "):
        code = "\n".join(line.removeprefix("$ ") for line in code.splitlines() if line.startswith("$ "))
    lines = iter(code.splitlines())
    for line in lines:
        command = line
        while command.endswith("\\"):
            command += "\n" + next(lines)
        if heredoc := _HEREDOC.search(command):
            for more in lines:
                command += "\n" + more
                if more.strip() == heredoc[1]:
                    break
        if command.strip():
            yield command


class Shell:
    """A shell with its own folder, which keeps variables and the current folder between commands."""

    def __init__(self, folder: Path, stack: ExitStack) -> None:
        self._folder, self._stack = folder, stack
        self._here = folder / "here"
        self._memory = folder / "memory"
        self._url: str | None = None
        bin_folder = folder / "bin"
        for made in (self._here, bin_folder, folder / "var", folder / "dist"):
            made.mkdir()
        (folder / "dist" / "index.html").write_text("<title>An app</title>")
        program = bin_folder / "brewos-relay"
        program.write_text(f'#!/bin/sh\nexec "{sys.executable}" -m brewos_relay "$@"\n')
        program.chmod(0o755)
        self._environment = environment(PATH=f"{bin_folder}{os.pathsep}{os.environ['PATH']}")
        del self._environment["JWT_SECRET"]  # the pages create one
        self._memory.write_text(f"cd {shlex.quote(str(self._here))}\n")

    def run(self, command: str, *, refusal: str | None = None) -> None:
        """Run a command until it ends, or a long-running one until its first line of output.

        With a `refusal`, the command must fail with this error.
        """
        for elsewhere, name in _ELSEWHERE.items():
            command = command.replace(elsewhere, str(self._folder / name))
        if self._url is not None:
            command = command.replace("http://127.0.0.1:3001", self._url)
        if endless := _ENDLESS.match(command):
            self._begin(endless["name"], command)
            return
        remember = f"{{ export -p; echo \"cd '$PWD'\"; umask -p; }} > {self._memory}"
        script = f". {self._memory}\n{command}\n{remember}"
        ran = subprocess.run(
            ["/bin/bash", "-eo", "pipefail", "-c", script],
            cwd=self._here,
            env=self._environment,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=DEADLINE_S,
            check=False,
        )
        if refusal is not None:
            assert (ran.returncode != 0, ran.stderr) == (True, refusal), command
            return
        assert ran.returncode == 0, f"{command}\n{ran.stdout}{ran.stderr}"

    def _begin(self, name: str, command: str) -> None:
        """Start a long-running command, and wait for its first line of output."""
        if name == "serve":
            dotenv = self._here / ".env"
            redirects = "redirect" in command or (dotenv.exists() and "REDIRECT" in dotenv.read_text())
            command += " --host 127.0.0.1 --port 0" + (" --redirect-port 0" if redirects else "")
        if name == "demo":
            command += " --port 0"
        process = subprocess.Popen(
            ["/bin/bash", "-c", f". {self._memory}\n{self._exec(command)}"],
            cwd=self._here,
            env=self._environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            stdin=subprocess.DEVNULL,
            text=True,
        )
        self._stack.callback(_stop, process)
        deadline = threading.Timer(DEADLINE_S, process.kill)
        deadline.start()
        self._stack.callback(deadline.cancel)
        assert process.stdout is not None
        assert process.stderr is not None
        line = process.stdout.readline()
        assert line, f"{command}\n{process.stderr.read()}"
        assert name != "tail" or "attached to" in line, line
        if name in ("serve", "demo") and (url := _URL.search(line)):
            self._url = url[0]
            with self._memory.open("a") as memory:
                memory.write(f"export BREWOS_RELAY_URL={self._url}\n")

    @staticmethod
    def _exec(command: str) -> str:
        """Let a command replace its shell, so that signals reach it."""
        variables = re.match(r"(?:\w+=\S+ )*", command)
        assert variables
        return f"{variables[0]}exec {command[variables.end() :]}"


def _stop(process: subprocess.Popen[str]) -> None:
    """Interrupt a program, which must exit with 0; kill it if it does not exit."""
    try:
        process.send_signal(signal.SIGINT)
        process.communicate(timeout=DEADLINE_S)
    finally:
        process.kill()
        process.communicate()
    assert process.returncode == 0

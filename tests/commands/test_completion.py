import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from support.process import environment

from .conftest import Run, assert_refused


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_script_is_valid_and_calls_the_program(run: Run, shell: str) -> None:
    outcome = run("completion", shell)
    assert (outcome.code, outcome.err) == (0, "")
    assert f"_BREWOS_RELAY_COMPLETE={shell}_complete" in outcome.out
    if (program := shutil.which(shell)) is not None:
        subprocess.run([program, "-n"], input=outcome.out, text=True, timeout=10, check=True)


def test_unknown_shell_is_refused(run: Run) -> None:
    assert_refused(run("completion", "tcsh"), 2, "'tcsh'", "'fish'")


@pytest.mark.skipif(shutil.which("bash") is None, reason="there is no bash")
def test_bash_completes_commands_and_options(run: Run, tmp_path: Path) -> None:
    program = tmp_path / "brewos-relay"
    program.write_text(f'#!/bin/sh\nexec "{sys.executable}" -m brewos_relay "$@"\n')
    program.chmod(0o755)
    script = run("completion", "bash").out
    asked = """
        COMP_WORDS=(brewos-relay device li); COMP_CWORD=2; _brewos_relay_completion brewos-relay
        echo "${COMPREPLY[@]}"
        COMPREPLY=(); COMP_WORDS=(brewos-relay serve --log-format js); COMP_CWORD=3
        _brewos_relay_completion brewos-relay
        echo "${COMPREPLY[@]}"
    """
    ran = subprocess.run(
        ["bash", "-c", script + asked],
        env=environment(PATH=f"{tmp_path}{os.pathsep}{os.environ['PATH']}"),
        capture_output=True,
        text=True,
        timeout=30,
        check=True,
    )
    assert ran.stdout.splitlines() == ["list", "json"]

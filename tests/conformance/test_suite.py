import os
import sys
from pathlib import Path

import pytest

from conformance.suite import (
    PYTHON27_VARIABLE,
    Unavailable,
    find_python27,
    foreign_environment,
    install_suite,
)


@pytest.fixture
def bare(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """Leave nothing on PATH and no pyenv; the empty directory that PATH names."""
    monkeypatch.delenv(PYTHON27_VARIABLE, raising=False)
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setenv("PYENV_ROOT", str(tmp_path))
    return tmp_path


def script(path: Path, text: str) -> str:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)
    return str(path)


def test_without_a_python27_it_says_what_to_do(bare: Path) -> None:
    with pytest.raises(Unavailable, match=rf"none is on PATH(.|\n)*{PYTHON27_VARIABLE}"):
        find_python27()


def test_an_interpreter_of_another_version_is_not_taken(bare: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(PYTHON27_VARIABLE, sys.executable)
    with pytest.raises(Unavailable, match="is another Python"):
        find_python27()


def test_one_that_does_not_start_is_passed_over_and_the_newest_of_pyenv_taken(bare: Path) -> None:
    script(bare / "python2.7", "exit 127")
    script(bare / "versions" / "2.7.9" / "bin" / "python2.7", "echo '(2, 7)'")
    newest = script(bare / "versions" / "2.7.18" / "bin" / "python2.7", "echo '(2, 7)'")
    assert find_python27() == newest


def test_an_installed_suite_is_used_as_it_is(bare: Path) -> None:
    python = script(bare / "cache" / "py2" / "bin" / "python", "exit 0")
    assert install_suite(bare / "cache") == Path(python)


def test_a_broken_one_is_made_again(bare: Path) -> None:
    script(bare / "py2" / "bin" / "python", "exit 1")
    with pytest.raises(Unavailable, match=r"No Python 2\.7"):
        install_suite(bare)


def test_the_suite_does_not_see_the_packages_of_this_python(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", "src")
    assert "PYTHONPATH" not in foreign_environment()
    assert foreign_environment()["PATH"] == os.environ["PATH"]

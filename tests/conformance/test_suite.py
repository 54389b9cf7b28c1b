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
    """Set PATH to an empty directory, without pyenv; return the directory."""
    monkeypatch.delenv(PYTHON27_VARIABLE, raising=False)
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setenv("PYENV_ROOT", str(tmp_path))
    return tmp_path


def script(path: Path, text: str) -> str:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)
    return str(path)


def test_missing_python27_is_reported_with_advice(bare: Path) -> None:
    with pytest.raises(Unavailable, match=rf"none is on PATH(.|\n)*{PYTHON27_VARIABLE}"):
        find_python27()


def test_interpreter_of_another_version_is_refused(bare: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(PYTHON27_VARIABLE, sys.executable)
    with pytest.raises(Unavailable, match="is another Python"):
        find_python27()


def test_broken_interpreter_is_skipped_for_the_newest_of_pyenv(bare: Path) -> None:
    script(bare / "python2.7", "exit 127")
    script(bare / "versions" / "2.7.9" / "bin" / "python2.7", "echo '(2, 7)'")
    newest = script(bare / "versions" / "2.7.18" / "bin" / "python2.7", "echo '(2, 7)'")
    assert find_python27() == newest


def test_installed_suite_is_used(bare: Path) -> None:
    python = script(bare / "cache" / "py2" / "bin" / "python", "exit 0")
    assert install_suite(bare / "cache") == Path(python)


def test_broken_environment_is_created_again(bare: Path) -> None:
    script(bare / "py2" / "bin" / "python", "exit 1")
    with pytest.raises(Unavailable, match=r"No Python 2\.7"):
        install_suite(bare)


def test_suite_does_not_see_packages_of_this_python(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", "src")
    assert "PYTHONPATH" not in foreign_environment()
    assert foreign_environment()["PATH"] == os.environ["PATH"]

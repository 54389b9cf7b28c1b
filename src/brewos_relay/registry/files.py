"""New files that appear under their name only when they are complete."""

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from brewos_relay.errors import RegistryError


@contextmanager
def new_file(folder: Path, *, beside: tuple[str, ...] = ()) -> Iterator[Path]:
    """Create an empty file that only this user can read. It is deleted at the end unless it was renamed.

    So are the files with the suffixes `beside`.
    """
    try:
        number, name = tempfile.mkstemp(prefix=".brewos-relay-", suffix=".tmp", dir=folder)
    except OSError as problem:
        raise RegistryError(f"cannot create a file in {folder.absolute()}: {problem.strerror}") from problem
    os.close(number)
    path = Path(name)
    try:
        yield path
    finally:
        for end in ("", *beside):
            Path(f"{name}{end}").unlink(missing_ok=True)


def require_free(target: Path, *, replace: bool) -> None:
    """Raise RegistryError if a file exists and must not be replaced."""
    if target.exists() and not replace:
        raise RegistryError(f"{target} exists already; choose another name, or replace it with --force")


def give_name(path: Path, target: Path, *, replace: bool) -> None:
    """Rename a file, and sync its folder. Raises RegistryError if the name was taken meanwhile."""
    try:
        if replace:
            path.replace(target)
        else:
            _rename_to_free(path, target)
    except FileExistsError:
        raise RegistryError(f"{target} was created meanwhile; choose another name") from None
    sync_folder(target.parent)


def sync(path: Path) -> None:
    """Wait until the content of a file is on disk."""
    number = os.open(path, os.O_RDONLY)
    try:
        os.fsync(number)
    finally:
        os.close(number)


def sync_folder(folder: Path) -> None:
    """Wait until the names in a folder are on disk."""
    # Some file systems cannot sync a folder, and do not need it.
    with suppress(OSError):
        sync(folder)


def _rename_to_free(path: Path, name: Path) -> None:
    """Rename a file. Raises FileExistsError if the name is taken."""
    try:
        os.link(path, name)
    except OSError as problem:
        if isinstance(problem, FileExistsError):
            raise
        # The file system has no hard links; checking first is the best that it allows.
        if name.exists():
            raise FileExistsError from None
        path.replace(name)

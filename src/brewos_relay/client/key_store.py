"""The key of a device in a private file, which contains either the old or the new key at any time.

RelayError
└── KeyStoreError   the file cannot be read or written, or is not a key file
"""

import os
import stat
from contextlib import suppress
from pathlib import Path
from typing import Final

import msgspec

from brewos_relay.errors import RelayError
from brewos_relay.vocabulary import generate_key, is_key

_FILE_BYTES: Final = 64 * 1024


class KeyStoreError(RelayError):
    """A file of secrets cannot be used; the text names it and the remedy."""

    code = "key_store"


class Keys(msgspec.Struct, frozen=True, rename="camel", omit_defaults=True):
    """The keys in a file: the `key` that a relay has accepted, and a `next_key` that it sent later."""

    key: str
    next_key: str | None = None

    @property
    def newest(self) -> str:
        """The key to try first: a relay that sent a new key may have revoked the older one."""
        return self.key if self.next_key is None else self.next_key

    def __repr__(self) -> str:
        return f"Keys(key=…, next_key={'…' if self.next_key is not None else None})"


class KeyStore:
    """The keys of one device in a file that only its owner can read (0600).

    `load` makes a key if the file does not exist. A key from a relay is stored beside the current one
    (`add_next`) until one of them is accepted (`accepted`). Each change is on disk when the call returns. All
    methods block on the disk. `known` are the keys once they were read.

    Errors are KeyStoreError. A file that is not a key file is never overwritten.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)
        self.known: Keys | None = None

    def __repr__(self) -> str:
        return f"KeyStore({str(self.path)!r})"

    def load(self) -> Keys:
        """Return the keys: the first call reads the file, or creates it with a new key."""
        if self.known is None:
            data = read_private(self.path)
            self.known = self._write(Keys(generate_key())) if data is None else self._read(data)
        return self.known

    def add_next(self, key: str) -> Keys:
        """Store a key from the relay beside the current one; it replaces an earlier next key."""
        if not is_key(key):
            raise KeyStoreError("the key from the relay is invalid: it must be 32 to 128 of A-Z a-z 0-9 _ -")
        keys = self.load()
        return keys if key in (keys.key, keys.next_key) else self._write(Keys(keys.key, key))

    def accepted(self, key: str) -> Keys:
        """Keep only this key, which the relay has accepted."""
        keys = self.load()
        return keys if keys == Keys(key) else self._write(Keys(key))

    def _write(self, keys: Keys) -> Keys:
        write_private(self.path, msgspec.json.encode(keys) + b"\n")
        self.known = keys
        return keys

    def _read(self, data: bytes) -> Keys:
        with suppress(msgspec.MsgspecError, RecursionError):
            keys = msgspec.json.decode(data, type=Keys)
            if is_key(keys.key) and (keys.next_key is None or is_key(keys.next_key)):
                return keys
        raise KeyStoreError(
            f"{self.path} is not a key file; restore the right file, or remove this one and pair again"
        )


def read_private(path: Path) -> bytes | None:
    """Read a file of secrets; None if it does not exist. Raises KeyStoreError if other users can read it."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise KeyStoreError(f"{path} cannot be read ({error.strerror})") from None
    try:
        mode = stat.S_IMODE(os.fstat(descriptor).st_mode)
        if mode & 0o077:
            raise KeyStoreError(
                f"{path} contains secrets, and other users can read it (its mode is {mode:04o}): "
                f"run `chmod 600 {path}`"
            )
        return os.read(descriptor, _FILE_BYTES)
    except OSError as error:
        raise KeyStoreError(f"{path} cannot be read ({error.strerror})") from None
    finally:
        os.close(descriptor)


def write_private(path: Path, data: bytes) -> None:
    """Write a file of secrets (0600) atomically: readers find the old content or `data`.

    This also holds if the process or the computer stops: the new file is complete and on disk before it
    replaces the old one. Raises KeyStoreError; the old file is unchanged then.
    """
    path = Path(os.path.realpath(path))  # replace the target of a symbolic link, not the link
    new = path.with_name(f".{path.name}.new")
    try:
        with suppress(FileNotFoundError):
            new.unlink()  # left by an interrupted write
        descriptor = os.open(new, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        try:
            remaining = memoryview(data)
            while remaining:
                remaining = remaining[os.write(descriptor, remaining) :]
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
        new.replace(path)
        folder = os.open(path.parent, os.O_RDONLY | os.O_CLOEXEC)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)
    except OSError as error:
        raise KeyStoreError(
            f"{path} cannot be written ({error.strerror}); its directory must exist and be writable"
        ) from None

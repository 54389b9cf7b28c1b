"""Where a device keeps its key: one file, which says the old or the new thing whatever happens, nothing else.

RelayError
└── KeyStoreError   the file cannot be read or written, or is not what it should be
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
    """A file of secrets cannot be used; the text names it, and says what to do."""

    code = "key_store"


class Keys(msgspec.Struct, frozen=True, rename="camel", omit_defaults=True):
    """What a key store keeps: the `key` that a relay has accepted, and a `next_key` that it sent later."""

    key: str
    next_key: str | None = None

    @property
    def newest(self) -> str:
        """The key to come with first: a relay that sent one knows it, and may know no other any more."""
        return self.key if self.next_key is None else self.next_key

    def __repr__(self) -> str:
        return f"Keys(key=…, next_key={'…' if self.next_key is not None else None})"


class KeyStore:
    """The keys of one device in a file that only its owner can read (0600).

    `load` makes a key if there is no file yet. A key that a relay sends is kept beside the one in use
    (`add_next`) until one of them has been accepted (`accepted`). Every change is on the disk when the
    call returns. All of them block, for as long as the disk takes. `known` are the keys once they were read.

    Errors are KeyStoreError. A file that does not hold a key is never written over.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)
        self.known: Keys | None = None

    def __repr__(self) -> str:
        return f"KeyStore({str(self.path)!r})"

    def load(self) -> Keys:
        """Give the keys; from the file the first time, and one that is made now if there is no file."""
        if self.known is None:
            data = read_private(self.path)
            self.known = self._write(Keys(generate_key())) if data is None else self._read(data)
        return self.known

    def add_next(self, key: str) -> Keys:
        """Keep a key that a relay has sent beside the one in use; one that was kept before is forgotten."""
        if not is_key(key):
            raise KeyStoreError("what was sent as a key is none: 32 to 128 of A-Z a-z 0-9 _ - make one")
        keys = self.load()
        return keys if key in (keys.key, keys.next_key) else self._write(Keys(keys.key, key))

    def accepted(self, key: str) -> Keys:
        """Forget all keys but this one, which a relay has let in."""
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
            f"{self.path} does not hold a key; put back the right file, or remove this one and pair again"
        )


def read_private(path: Path) -> bytes | None:
    """Read a file of secrets; None if there is none. Raises KeyStoreError if others can read it, too."""
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
                f"{path} holds secrets, and others on this computer may read it (its mode is {mode:04o}); "
                f"`chmod 600 {path}` keeps them out"
            )
        return os.read(descriptor, _FILE_BYTES)
    except OSError as error:
        raise KeyStoreError(f"{path} cannot be read ({error.strerror})") from None
    finally:
        os.close(descriptor)


def write_private(path: Path, data: bytes) -> None:
    """Write a file of secrets (0600) in one step: whoever reads it finds what was there before, or `data`.

    That holds whenever the process or the computer stops: the new file is complete and on the disk before
    it takes the place of the old one. Raises KeyStoreError; the old file is still there then.
    """
    path = Path(os.path.realpath(path))  # where a link leads to: the link is to stay one
    new = path.with_name(f".{path.name}.new")
    try:
        with suppress(FileNotFoundError):
            new.unlink()  # left by somebody who did not come to the end
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
            f"{path} cannot be written ({error.strerror}); the folder must exist and be yours"
        ) from None

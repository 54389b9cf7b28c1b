"""Tests of client.key_store: a crash leaves a valid key, and the files are private."""

import os
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest

from brewos_relay.client import key_store
from brewos_relay.client.key_store import Keys, KeyStore, KeyStoreError, read_private, write_private
from brewos_relay.vocabulary import generate_key, is_key

OLD, NEW, NEWER = ("a" * 43, "b" * 43, "c" * 43)


def kept(path: Path) -> Any:
    return msgspec.json.decode(path.read_bytes())


def store_with(path: Path, keys: dict[str, str]) -> KeyStore:
    write_private(path, msgspec.json.encode(keys))
    return KeyStore(path)


def test_key_is_made_once_and_stored(tmp_path: Path) -> None:
    path = tmp_path / "key.json"
    store = KeyStore(path)
    assert not store.known
    keys = store.load()
    assert is_key(keys.key)
    assert len(keys.key) == 43
    assert keys.next_key is None
    assert store.known == keys
    assert KeyStore(str(path)).load() == keys
    assert store.load() is keys
    assert generate_key() != generate_key()


def test_file_is_private_with_any_umask(tmp_path: Path) -> None:
    before = os.umask(0)
    try:
        KeyStore(tmp_path / "key.json").load()
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "key.json").stat().st_mode) == 0o600
    assert [path.name for path in tmp_path.iterdir()] == ["key.json"]


def test_next_key_is_stored_until_one_key_is_accepted(tmp_path: Path) -> None:
    path = tmp_path / "key.json"
    store = store_with(path, {"key": OLD})
    assert store.load().newest == OLD
    assert store.add_next(NEW) == Keys(OLD, NEW)
    assert store.load().newest == NEW
    assert kept(path) == {"key": OLD, "nextKey": NEW}
    assert store.add_next(NEWER) == Keys(OLD, NEWER)
    assert KeyStore(path).load() == Keys(OLD, NEWER)
    assert store.accepted(NEWER) == Keys(NEWER)
    assert kept(path) == {"key": NEWER}


def test_old_key_can_be_accepted(tmp_path: Path) -> None:
    store = store_with(tmp_path / "key.json", {"key": OLD, "nextKey": NEW})
    assert store.accepted(OLD) == Keys(OLD)
    assert kept(tmp_path / "key.json") == {"key": OLD}


def test_unchanged_keys_are_not_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = store_with(tmp_path / "key.json", {"key": OLD, "nextKey": NEW})
    store.load()
    monkeypatch.setattr(key_store, "write_private", None)
    assert store.add_next(NEW) == store.add_next(OLD) == Keys(OLD, NEW)
    one = KeyStore(tmp_path / "key.json")
    one.known = Keys(OLD)
    assert one.accepted(OLD) == Keys(OLD)


@pytest.mark.parametrize("sent", ["", "short", "x" * 129, "a" * 42 + "!", None, 43])
def test_invalid_key_is_refused(tmp_path: Path, sent: Any) -> None:
    store = store_with(tmp_path / "key.json", {"key": OLD})
    with pytest.raises(KeyStoreError, match="the key from the relay is invalid"):
        store.add_next(sent)
    assert kept(tmp_path / "key.json") == {"key": OLD}


@pytest.mark.parametrize(
    "data",
    [b"", b"nonsense", b"[]", b'{"key":"short"}', b'{"key":5}', b'{"key":"%s","nextKey":""}' % (b"a" * 43)],
)
def test_invalid_file_is_not_overwritten(tmp_path: Path, data: bytes) -> None:
    path = tmp_path / "key.json"
    write_private(path, data)
    with pytest.raises(KeyStoreError, match="is not a key file"):
        KeyStore(path).load()
    assert path.read_bytes() == data


def test_file_readable_by_others_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "key.json"
    store_with(path, {"key": OLD})
    path.chmod(0o640)
    with pytest.raises(KeyStoreError, match=r"0640.*chmod 600") as caught:
        KeyStore(path).load()
    assert OLD not in str(caught.value)


def test_missing_directory_is_reported(tmp_path: Path) -> None:
    with pytest.raises(KeyStoreError, match="its directory must exist"):
        KeyStore(tmp_path / "nowhere" / "key.json").load()
    with pytest.raises(KeyStoreError, match="cannot be read"):
        read_private(tmp_path / ("n" * 300))
    (tmp_path / "folder").mkdir(mode=0o700)
    with pytest.raises(KeyStoreError, match="cannot be read"):
        KeyStore(tmp_path / "folder").load()


def test_symbolic_link_stays_a_link(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    link = tmp_path / "key.json"
    link.symlink_to(tmp_path / "data" / "real.json")
    keys = KeyStore(link).load()
    assert link.is_symlink()
    assert kept(tmp_path / "data" / "real.json") == {"key": keys.key}


def test_repr_hides_the_keys(tmp_path: Path) -> None:
    store = store_with(tmp_path / "key.json", {"key": OLD, "nextKey": NEW})
    shown = f"{store!r} {store.load()!r} {store.load()} {Keys(OLD)!r}"
    assert OLD not in shown
    assert NEW not in shown


# A crash between any two steps


class Crash(BaseException):
    """The power fails."""


def steps() -> list[tuple[Any, str]]:
    return [
        (os, "open"),
        (os, "write"),
        (os, "fsync"),
        (os, "close"),
        (Path, "unlink"),
        (Path, "replace"),
    ]


class PowerCut:
    """Ends the process at the `after`th call of the file system, before or after the call."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, *, at: int, done: bool) -> None:
        self.calls = 0
        self._at = at
        self._done = done
        self._cut = False
        for owner, name in steps():
            monkeypatch.setattr(owner, name, self._around(name, getattr(owner, name)))

    def _around(self, name: str, real: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            if self._cut:
                if name == "close":  # what a dead process does not need to do, but this one does
                    return real(*args, **kwargs)
                raise Crash
            self.calls += 1
            if self.calls == self._at:
                self._cut = True
                if name == "write" and self._done:
                    real(args[0], bytes(args[1])[:5])  # half of it
                elif self._done or name == "close":
                    real(*args, **kwargs)
                raise Crash
            return real(*args, **kwargs)

        return call


@pytest.mark.parametrize("left_over", [False, True])
@pytest.mark.parametrize("done", [False, True])
def test_crash_between_any_two_steps_leaves_the_old_or_the_new_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, done: bool, left_over: bool
) -> None:
    path = tmp_path / "key.json"
    at = 0
    found: list[Keys] = []
    while True:
        at += 1
        store = store_with(path, {"key": OLD})
        store.load()
        if left_over:
            (tmp_path / ".key.json.new").write_bytes(b"half of")
        with monkeypatch.context() as patch:
            power = PowerCut(patch, at=at, done=done)
            try:
                store.add_next(NEW)
                crashed = False
            except Crash:
                crashed = True
        if not crashed:
            break
        after = KeyStore(path)
        found.append(after.load())
        assert after.load() in (Keys(OLD), Keys(OLD, NEW))
        assert after.accepted(NEW) == KeyStore(path).load() == Keys(NEW)  # it can go on from there
    assert power.calls >= 8
    assert Keys(OLD) in found
    assert Keys(OLD, NEW) in found


def test_new_file_is_synced_before_it_replaces_the_old_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = store_with(tmp_path / "key.json", {"key": OLD})
    store.load()
    done: list[str] = []

    def noting(name: str, real: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            done.append(name)
            return real(*args, **kwargs)

        return call

    for owner, name in steps():
        monkeypatch.setattr(owner, name, noting(name, getattr(owner, name)))
    store.add_next(NEW)
    assert [name for name in done if name in ("write", "fsync", "replace")] == [
        "write",
        "fsync",
        "replace",
        "fsync",
    ]


def test_full_disk_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "key.json"
    store = store_with(path, {"key": OLD})
    store.load()

    def full(*_: Any) -> int:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "write", full)
        with pytest.raises(KeyStoreError, match=r"cannot be written \(No space left"):
            store.add_next(NEW)
    assert store.known == Keys(OLD)
    assert kept(path) == {"key": OLD}
    assert store.add_next(NEW) == Keys(OLD, NEW)

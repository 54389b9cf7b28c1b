"""The pages and files of a built single-page app."""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path, PurePosixPath
from stat import S_ISREG
from typing import BinaryIO, Final, Self

import trio
from quart import Blueprint, Response, abort, request
from quart.wrappers.response import ResponseBody
from werkzeug.routing import PathConverter

from brewos_relay.api.app_index import MOST_BYTES, with_entry_script
from brewos_relay.api.content_codings import (
    CODINGS,
    MOST_INPUT_BYTES,
    SUFFIXES,
    CompressedContents,
    is_compressible,
    wanted_codings,
)
from brewos_relay.api.ranges import limit_to_range
from brewos_relay.api.static_content import (
    CONTENT_TYPES,
    IMMUTABLE,
    REVALIDATE,
    make_page,
    send_page,
    start_answer,
)
from brewos_relay.errors import SettingsError

INDEX: Final = "index.html"
READ_BYTES: Final = 128 * 1024


class PagePathConverter(PathConverter):
    """Match every path except /api and paths below it, which have JSON answers."""

    regex = r"(?!api(?:/|$)).*?"


@dataclass(frozen=True, slots=True)
class _File:
    """A file to send, with its state when it was found. None of its `names` below `root` is a link."""

    root: Path
    names: tuple[str, ...]
    device: int
    inode: int
    size_bytes: int
    changed_ns: int

    @property
    def tag(self) -> str:
        """The entity tag of the file."""
        return f"{self.changed_ns:x}-{self.size_bytes:x}"


class _FileBody(ResponseBody):
    """An answer body: a file or a part of it.

    The file is opened when it is sent, and must still be the file that was found.
    """

    def __init__(self, found: _File, first: int, stop: int) -> None:
        self._found = found
        self._first = first
        self._left = stop - first
        self._file: BinaryIO | None = None

    async def __aenter__(self) -> Self:
        self._file = await trio.to_thread.run_sync(_open, self._found, self._first)
        return self

    async def __aexit__(self, *_problem: object) -> None:
        if self._file is not None:
            self._file.close()

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> bytes:
        if self._file is None or self._left == 0:
            raise StopAsyncIteration
        chunk = await trio.to_thread.run_sync(self._file.read, min(READ_BYTES, self._left))
        if not chunk:
            raise StopAsyncIteration
        self._left -= len(chunk)
        return chunk


def web_blueprint(root: Path, compressed: CompressedContents) -> Blueprint:
    """Make the blueprint that serves a built single-page app from a folder.

    A path without a file gets index.html, as the app has its own routes. Only below /assets, where names are
    hashed, it gets 404. index.html is sent with a script that leads signed-out users to the relay's own
    pages, see `app_index`. Raises errors.SettingsError if the folder has no index.html.
    """
    if _find(root, INDEX) is None:
        raise SettingsError(
            f"WEB_DIST_PATH must be the folder of a built web app, got {str(root)!r}: its {INDEX} is missing,"
            " or is a link that leads out of the folder. Without WEB_DIST_PATH, the relay serves its console"
        )
    blueprint = Blueprint("web", __name__)

    @blueprint.get("/", defaults={"path": ""})
    @blueprint.get("/<page:path>")
    async def web(path: str) -> Response:
        if not _is_plain(path, request.scope.get("raw_path", b"")):
            abort(404)
        immutable = path.startswith("assets/")
        found = await trio.to_thread.run_sync(_find, root, path)
        if found is None and immutable:
            abort(404)
        found = found or await trio.to_thread.run_sync(_find, root, INDEX)
        if found is None:
            abort(503)  # the app is being replaced right now
        if found.names == (INDEX,) and found.size_bytes <= MOST_BYTES:
            return await _send_index(found, compressed)
        return await _send_file(found, compressed, cache=IMMUTABLE if immutable else REVALIDATE)

    return blueprint


async def _send_index(found: _File, compressed: CompressedContents) -> Response:
    """Send the index page of the app, with the relay's script."""
    try:
        content = with_entry_script(await trio.to_thread.run_sync(_read, found))
    except OSError:
        abort(503)  # the app is being replaced right now
    return await send_page(make_page(content, _content_type(found.names)), compressed)


async def _send_file(found: _File, compressed: CompressedContents, *, cache: str) -> Response:
    """Send a file, compressed if the browser accepts that, or the requested part of it."""
    content_type = _content_type(found.names)
    if is_compressible(content_type) and (codings := wanted_codings(request)):
        beside = await trio.to_thread.run_sync(_find_compressed, found, codings)
        if beside is not None:
            coding, file = beside
            body = _FileBody(file, 0, file.size_bytes)
            return await start_answer(
                body, file.size_bytes, content_type, tag=file.tag, cache=cache, coding=coding
            )
        for coding in codings:
            if coding in CODINGS and found.size_bytes <= MOST_INPUT_BYTES:
                content = await _compress(found, coding, compressed)
                if content is not None:
                    return await start_answer(
                        content, len(content), content_type, tag=found.tag, cache=cache, coding=coding
                    )
    whole = _FileBody(found, 0, found.size_bytes)
    response = await start_answer(whole, found.size_bytes, content_type, tag=found.tag, cache=cache)
    first, stop = limit_to_range(response, request, size_bytes=found.size_bytes)
    if (first, stop) != (0, found.size_bytes):
        response.response = _FileBody(found, first, stop)
    return response


async def _compress(found: _File, coding: str, compressed: CompressedContents) -> bytes | None:
    try:
        return await compressed.find(found, coding, partial(_read, found))
    except OSError:
        abort(503)  # the app is being replaced right now


def _find_compressed(found: _File, codings: Sequence[str]) -> tuple[str, _File] | None:
    """Find a compressed file that a build tool wrote beside a file. Runs in a worker thread.

    An older one belongs to a former content of the file.
    """
    path = "/".join(found.names)
    for coding in codings:
        file = _find(found.root, path + SUFFIXES[coding])
        if file is not None and file.changed_ns >= found.changed_ns:
            return coding, file
    return None


def _is_plain(path: str, raw_path: bytes) -> bool:
    """Tell whether a path is safe: no escaped slashes, no way up, no private file."""
    raw_path = raw_path.lower()
    if b"%2f" in raw_path or b"%5c" in raw_path:
        return False
    if "\\" in path or any(character < " " or character == "\x7f" for character in path):
        return False
    return _is_public(path.split("/"))


def _is_public(names: Sequence[str]) -> bool:
    """Tell whether no name begins with a dot, except .well-known (RFC 8615) at the top."""
    return all(
        not name.startswith(".") or (number == 0 and name == ".well-known")
        for number, name in enumerate(names)
    )


def _find(root: Path, path: str) -> _File | None:
    """Find a regular file below `root`. Links must not lead out of it. Runs in a worker thread."""
    try:
        root = root.resolve(strict=True)
        names = (root / PurePosixPath(path)).resolve(strict=True).relative_to(root).parts
        if not names or not _is_public(names):  # a link may lead to a private file
            return None
        file = _open_below(root, names)
        try:
            status = os.fstat(file)
        finally:
            os.close(file)
    except (OSError, RuntimeError, ValueError):
        return None
    if not S_ISREG(status.st_mode):
        return None
    return _File(root, names, status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns)


def _open(found: _File, first: int) -> BinaryIO:
    """Open a file that was found, at a byte. Raises OSError if the file has been replaced.

    Runs in a worker thread.
    """
    file = _open_below(found.root, found.names)
    status = os.fstat(file)
    now = (status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns)
    if now != (found.device, found.inode, found.size_bytes, found.changed_ns):
        os.close(file)
        raise OSError(f"{'/'.join(found.names)} was replaced during the request")
    os.lseek(file, first, os.SEEK_SET)
    return os.fdopen(file, "rb", buffering=0)


def _read(found: _File) -> bytes:
    """Read a file that was found. Raises OSError like `_open`. Runs in a worker thread."""
    with _open(found, 0) as file:
        return file.read(found.size_bytes)


def _open_below(root: Path, names: Sequence[str]) -> int:
    """Open a file by its names below a folder. Fails if one of them is a link, even one created just now."""
    folder = os.open(root, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        for name in names[:-1]:
            flags = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
            below = os.open(name, flags, dir_fd=folder)
            os.close(folder)
            folder = below
        # O_NONBLOCK: opening a pipe must not wait for its other end.
        return os.open(names[-1], os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, dir_fd=folder)
    finally:
        os.close(folder)


def _content_type(names: Sequence[str]) -> str:
    suffix = PurePosixPath(names[-1]).suffix
    if not suffix and names[:-1] == (".well-known",):
        return "application/json"  # app association files are JSON without a suffix
    return CONTENT_TYPES.get(suffix.lower(), "application/octet-stream")

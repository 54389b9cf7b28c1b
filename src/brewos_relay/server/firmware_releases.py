"""The list of firmware releases for the BrewOS app: from a URL or a folder, cached."""

import json
import logging
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, Final

import msgspec
import trio

from brewos_relay.api.firmware import Release
from brewos_relay.errors import OutboundFailed
from brewos_relay.outbound import Outbound

log = logging.getLogger(__name__)

FRESH_S: Final = 900.0
"""How long a list is used. GitHub answers 60 requests an hour."""
FRESH_FOLDER_S: Final = 30.0
RETRY_S: Final = 60.0
"""How long to wait after a failure."""
WAIT_S: Final = 2.0
"""How long a request waits for a list. The app's service worker gives up after 3 s."""
MOST_BYTES: Final = 2 * 1024 * 1024
_FETCH_S: Final = 20.0
_FILES: Final = 100
_RELEASES: Final = 50
_ASSETS: Final = 50
_NOTES_CHARS: Final = 16 * 1024


class FirmwareReleases:
    """Keeps the list of releases. `source` is an https URL, a folder, or None for no list.

    **Owns:** nothing: `run` fetches, so that requests at the same time share one fetch, and a slow one
    continues after the request.
    """

    def __init__(self, source: str | None, outbound: Outbound) -> None:
        self._source = source
        self._outbound = outbound
        self._is_url = source is not None and source.startswith("https://")
        self._known: Sequence[Release] | None = () if source is None else None
        self._due_at = 0.0 if source is not None else float("inf")
        self._wanted = trio.Event()
        self._renewed = trio.Event()

    async def run(self) -> None:
        """Renew the list whenever it is wanted and due, until cancelled."""
        while True:
            await self._wanted.wait()
            self._wanted = trio.Event()
            if trio.current_time() >= self._due_at:
                await self._renew()
            renewed, self._renewed = self._renewed, trio.Event()
            renewed.set()

    async def releases(self) -> Sequence[Release] | None:
        """Return the releases, from an earlier list if the source is slow. None if none is known."""
        if trio.current_time() >= self._due_at:
            self._wanted.set()
            with trio.move_on_after(WAIT_S):
                await self._renewed.wait()
        return self._known

    async def _renew(self) -> None:
        assert self._source is not None
        try:
            if self._is_url:
                self._known = await self._fetch(self._source)
            else:
                self._known = await trio.to_thread.run_sync(_read_folder, Path(self._source))
        except (OutboundFailed, OSError, ValueError) as problem:
            self._due_at = trio.current_time() + RETRY_S
            log.warning("cannot read the firmware releases: %s", problem)
        else:
            self._due_at = trio.current_time() + (FRESH_S if self._is_url else FRESH_FOLDER_S)

    async def _fetch(self, url: str) -> list[Release]:
        answer = await self._outbound.send(
            "GET",
            url,
            headers={"Accept": "application/json"},
            most_bytes=MOST_BYTES,
            timeout_s=_FETCH_S,
            public_only=False,
        )
        if answer.status != 200:
            raise ValueError(f"the server answered {answer.status}")
        content = await trio.to_thread.run_sync(_decode, answer.body)
        if not isinstance(content, list):
            raise ValueError("the answer is not a list of releases")
        return _releases_in(content)


def _decode(content: bytes) -> Any:
    try:
        return json.loads(content)
    except RecursionError:
        raise ValueError("the list is nested too deeply") from None


def _releases_in(content: Iterable[object]) -> list[Release]:
    """Read the releases of a list, without entries of another form; the newest first."""
    found = []
    for entry in content:
        if isinstance(entry, dict) and entry.get("draft") is not True:
            try:
                release = msgspec.convert(entry, Release)
            except msgspec.ValidationError:
                continue
            notes = release.body[:_NOTES_CHARS] if release.body is not None else ""
            url = release.html_url if release.html_url and release.html_url.startswith("https://") else None
            found.append(
                msgspec.structs.replace(release, body=notes, html_url=url, assets=release.assets[:_ASSETS])
            )
    found.sort(key=lambda release: release.published_at or "", reverse=True)
    return found[:_RELEASES]


def _read_folder(folder: Path) -> list[Release]:
    """Read the JSON files of a folder, each with a release or a list of them. Runs in a worker thread."""
    entries: list[object] = []
    left = MOST_BYTES
    for path in sorted(folder.iterdir())[:_FILES]:
        if path.suffix != ".json" or not path.is_file():
            continue
        with path.open("rb") as file:
            content = file.read(left + 1)
        left -= len(content)
        if left < 0:
            raise ValueError(f"the files in {folder} have more than {MOST_BYTES} bytes")
        try:
            decoded = _decode(content)
        except ValueError:
            raise ValueError(f"{path} is not JSON") from None
        entries += decoded if isinstance(decoded, list) else [decoded]
    return _releases_in(entries)

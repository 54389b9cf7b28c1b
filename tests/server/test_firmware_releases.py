"""The list of firmware releases: from a server or a folder, cached, and in the app's format."""

import json
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import trio

from brewos_relay.outbound import Outbound
from brewos_relay.server import firmware_releases as module
from brewos_relay.server.firmware_releases import FirmwareReleases
from support.https_server import Asked, HttpsServer, answer, open_https_server

OLD = {
    "tag_name": "v0.8.61",
    "prerelease": False,
    "published_at": "2026-01-01T00:00:00Z",
    "body": "Notes",
    "html_url": "https://releases.example/v0.8.61",
    "assets": [{"name": "firmware.bin", "updated_at": "2026-01-02T00:00:00Z", "size": 9}],
}
NEW = {**OLD, "tag_name": "v0.9.0-beta.1", "prerelease": True, "published_at": "2026-02-01T00:00:00Z"}


class Source:
    """A server with a list of releases."""

    def __init__(self) -> None:
        self.next = answer(200, json.dumps([OLD, NEW]).encode())
        self.go_on = trio.Event()
        self.go_on.set()

    async def __call__(self, asked: Asked) -> bytes:
        assert asked.method == "GET"
        await self.go_on.wait()
        return self.next


@pytest.fixture
def source() -> Source:
    return Source()


@pytest.fixture
async def server(tmp_path: Path, source: Source) -> AsyncIterator[HttpsServer]:
    async with open_https_server(tmp_path, source) as server:
        yield server


@asynccontextmanager
async def reading(source: str | None, outbound: Outbound | None = None) -> AsyncIterator[Callable[[], Any]]:
    """Run the task; gives a function that returns the names of the releases."""
    releases = FirmwareReleases(source, outbound or Outbound())

    async def names() -> Sequence[str] | None:
        found = await releases.releases()
        return None if found is None else [each.tag_name for each in found]

    with trio.fail_after(5):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(releases.run)
            yield names
            nursery.cancel_scope.cancel()


async def test_requests_at_the_same_time_share_one_fetch(server: HttpsServer, source: Source) -> None:
    async with reading(server.url("/list?a=b"), Outbound(server.tls)) as names:
        found: list[Any] = []

        async def find() -> None:
            found.append(await names())

        async with trio.open_nursery() as nursery:
            for _ in range(5):
                nursery.start_soon(find)
        assert found == [["v0.9.0-beta.1", "v0.8.61"]] * 5
        assert await names() == found[0]
        assert [asked.target for asked in server.asked] == ["/list?a=b"]


async def test_slow_source_delays_a_request_by_less_than_the_apps_timeout(
    server: HttpsServer, source: Source, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert module.WAIT_S < 2.5
    monkeypatch.setattr(module, "WAIT_S", 0.1)
    source.go_on = trio.Event()
    async with reading(server.url(), Outbound(server.tls)) as names:
        assert await names() is None
        source.go_on.set()
        # The fetch has continued meanwhile.
        while await names() is None:
            pass
        assert len(server.asked) == 1


@pytest.mark.parametrize(
    "wrong",
    [
        answer(500),
        answer(404, b"[]"),
        answer(302, Location="https://elsewhere.example/"),
        answer(200, b"<html>"),
        answer(200, b'{"message":"rate limit"}'),
        answer(200, b"[" * 100_000),
        answer(200, b" " * (module.MOST_BYTES + 1)),
    ],
)
async def test_failure_keeps_the_earlier_list_and_is_not_repeated_at_once(
    server: HttpsServer, source: Source, monkeypatch: pytest.MonkeyPatch, wrong: bytes
) -> None:
    monkeypatch.setattr(module, "FRESH_S", 0.0)
    async with reading(server.url(), Outbound(server.tls)) as names:
        known = await names()
        source.next = wrong
        for _ in range(3):
            assert await names() == known
        assert len(server.asked) == 2


async def test_only_the_fields_that_the_app_reads_are_kept(server: HttpsServer, source: Source) -> None:
    odd = [
        *({}, "text", None, {"tag_name": 5}, {**OLD, "draft": True}, {**OLD, "published_at": 7}),
        {"tag_name": "bare", "extra": "x"},
        {**OLD, "tag_name": "long", "body": "x" * 100_000, "html_url": "javascript:alert(1)"},
    ]
    source.next = answer(200, json.dumps([*odd, *[OLD] * 200]).encode())
    releases = FirmwareReleases(server.url(), Outbound(server.tls))
    async with trio.open_nursery() as nursery:
        nursery.start_soon(releases.run)
        found = await releases.releases()
        nursery.cancel_scope.cancel()
    assert found is not None
    assert len(found) == 50
    [long] = [each for each in found if each.tag_name == "long"]
    assert (len(long.body or ""), long.html_url) == (16 * 1024, None)
    assert {each.tag_name for each in found} <= {"long", "bare", "v0.8.61"}


async def test_folder_of_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "FRESH_FOLDER_S", 0.0)
    (tmp_path / "all.json").write_text(json.dumps([OLD]))
    (tmp_path / "notes.txt").write_text("not JSON")
    (tmp_path / "folder.json").mkdir()
    async with reading(str(tmp_path)) as names:
        assert await names() == ["v0.8.61"]
        (tmp_path / "new.json").write_text(json.dumps(NEW))
        assert await names() == ["v0.9.0-beta.1", "v0.8.61"]
        monkeypatch.setattr(module, "RETRY_S", 0.0)
        (tmp_path / "new.json").write_text("{")
        assert await names() == ["v0.9.0-beta.1", "v0.8.61"]
        (tmp_path / "new.json").write_text(" " * module.MOST_BYTES)
        assert await names() == ["v0.9.0-beta.1", "v0.8.61"]
    async with reading(str(tmp_path / "missing")) as names:
        assert await names() is None


async def test_without_a_source_there_are_no_releases_and_no_requests() -> None:
    async with reading(None) as names:
        assert await names() == []

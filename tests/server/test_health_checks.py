import logging
import os
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
import trio
from trio.testing import MockClock

from brewos_relay.errors import RegistryBusy, RegistryError
from brewos_relay.server import health_checks
from brewos_relay.server.health_checks import (
    LARGE_WAL_BYTES,
    PROBLEMS,
    Disk,
    ReadinessCheck,
    StorageWatch,
    advice_for,
    examine_disk,
)

FAILED = ("write_failed", "the registry's disk failed a write")


class PlainStore:
    def __init__(self) -> None:
        self.write_problem: tuple[str, str] | None = None
        self.probes = 0
        self.is_well = False

    async def probe(self) -> None:
        self.probes += 1
        if not self.is_well:
            raise RegistryBusy("locked")
        self.write_problem = None


def statvfs(**changed: int) -> Any:
    found = {"f_bavail": 10**6, "f_frsize": 4096, "f_blocks": 10**7, "f_files": 10**6, "f_favail": 10**5}
    return os.statvfs_result((4096, *[{**found, "f_flag": 0, **changed}.get(name, 0) for name in (
        "f_frsize", "f_blocks", "f_bfree", "f_bavail", "f_files", "f_ffree", "f_favail", "f_flag", "f_namemax"
    )]))  # fmt: skip


@pytest.mark.parametrize(
    ("changed", "problem"),
    [
        ({}, None),
        ({"f_bavail": 1000}, "disk_full"),
        ({"f_bavail": 1000, "f_blocks": 10_000}, None),  # a small disk
        ({"f_bavail": 400, "f_blocks": 10_000}, "disk_full"),
        ({"f_favail": 0}, "disk_full"),
        ({"f_favail": 0, "f_files": 0}, None),  # a file system that does not count its files
        ({"f_flag": os.ST_RDONLY}, "read_only"),
    ],
)
def test_disk_is_examined(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, changed: dict[str, int], problem: str | None
) -> None:
    monkeypatch.setattr(os, "statvfs", lambda _folder: statvfs(**changed))
    found = examine_disk(tmp_path / "registry.db")
    assert set(found.problems) == ({problem} if problem else set())
    assert found.free_bytes == 4096 * changed.get("f_bavail", 10**6)
    assert str(tmp_path) not in str(found)  # everyone can read it


def test_real_disk_is_examined(tmp_path: Path) -> None:
    found = examine_disk(tmp_path / "registry.db")
    assert found.free_bytes is not None
    assert found.free_bytes > 0


def test_a_missing_folder_is_a_problem(tmp_path: Path) -> None:
    assert set(examine_disk(tmp_path / "gone" / "registry.db").problems) == {"write_failed"}


def test_large_write_ahead_log_is_a_problem(tmp_path: Path) -> None:
    with (tmp_path / "registry.db-wal").open("wb") as wal:
        wal.truncate(LARGE_WAL_BYTES + 1)
    assert "wal_large" in examine_disk(tmp_path / "registry.db").problems


def test_each_problem_has_advice() -> None:
    assert all(advice_for(problem) for problem in PROBLEMS)


async def test_problem_is_logged_when_it_begins_and_when_it_ends(caplog: pytest.LogCaptureFixture) -> None:
    disk = Disk(5, {"disk_full": "the registry's disk is almost full"})
    watch = StorageWatch(PlainStore(), Path("registry.db"), examine=lambda _file: disk)
    with caplog.at_level(logging.INFO):
        await watch.look()
        await watch.look()
        assert watch.problems == {"disk_full": "the registry's disk is almost full"}
        assert watch.free_bytes == 5
        disk = Disk(10**9)
        await watch.look()
        await watch.look()
    assert watch.problems == {}
    assert [record.levelname for record in caplog.records] == ["ERROR", "INFO"]
    assert caplog.messages[0].startswith("degraded: the registry's disk is almost full; free some space")
    assert caplog.messages[1] == "no longer degraded: disk_full is over"


async def test_failed_write_counts_at_once_until_a_write_succeeds(caplog: pytest.LogCaptureFixture) -> None:
    store = PlainStore()
    watch = StorageWatch(store, None)
    with caplog.at_level(logging.INFO):
        await watch.look()
        assert (store.probes, watch.problems, watch.free_bytes) == (0, {}, None)
        store.write_problem = FAILED
        assert watch.problems == dict([FAILED])
        await watch.look()
        await watch.look()
        assert store.probes == 2
        store.is_well = True
        await watch.look()
    assert watch.problems == {}
    assert [record.levelname for record in caplog.records] == ["ERROR", "INFO"]


async def test_looks_go_on(autojump_clock: MockClock) -> None:

    looks: list[float] = []

    async def look() -> None:
        looks.append(trio.current_time())

    watch = StorageWatch(PlainStore(), None)
    watch.look = look  # type: ignore[method-assign]
    with trio.move_on_after(2.5 * health_checks.LOOK_EVERY_S):
        await watch.run()
    assert len(looks) == 3


class AskedStore:
    def __init__(self) -> None:
        self.asked = 0
        self.problem: Exception | None = None
        self.takes_s = 0.0

    async def check(self) -> None:
        self.asked += 1
        await trio.sleep(self.takes_s)
        if self.problem is not None:
            raise self.problem


def readiness(
    store: AskedStore, *, closing: bool = False, expires_at_s: float | None = None
) -> ReadinessCheck:
    tls = None
    if expires_at_s is not None:
        tls = SimpleNamespace(certificate=SimpleNamespace(expires_at_s=expires_at_s))
    relay = SimpleNamespace(closing=closing)
    return ReadinessCheck(relay=cast(Any, relay), store=cast(Any, store), tls=cast(Any, tls))


async def test_all_is_well() -> None:
    assert await readiness(AskedStore(), expires_at_s=4e9).problems() == []


async def test_all_reasons_are_reported(autojump_clock: MockClock) -> None:
    store = AskedStore()
    store.problem = RegistryError("gone")
    assert await readiness(store, closing=True, expires_at_s=1.0).problems() == [
        "the relay is shutting down",
        "the registry does not answer",
        "the certificate has expired",
    ]


async def test_a_registry_that_hangs_does_not_answer(autojump_clock: MockClock) -> None:
    store = AskedStore()
    store.takes_s = 60
    began_at = trio.current_time()
    assert await readiness(store).problems() == ["the registry does not answer"]
    assert trio.current_time() - began_at < 3


async def test_the_registry_is_not_asked_more_than_once_a_second(autojump_clock: MockClock) -> None:
    store = AskedStore()
    ready = readiness(store)
    async with trio.open_nursery() as nursery:
        for _ in range(10):
            nursery.start_soon(ready.problems)
    assert store.asked == 1
    await trio.sleep(1)
    await ready.problems()
    assert store.asked == 2

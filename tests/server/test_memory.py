import ctypes
import sys

import pytest
import trio
from trio.testing import MockClock

from brewos_relay.server import memory
from brewos_relay.server.memory import give_memory_back


async def test_memory_is_given_back_once_a_minute(autojump_clock: MockClock) -> None:
    calls: list[int] = []
    began_at = trio.current_time()

    def trim(keep_bytes: int) -> int:
        calls.append(keep_bytes)
        return 1

    async with trio.open_nursery() as nursery:
        nursery.start_soon(give_memory_back, trim)
        await trio.sleep(59)
        assert calls == []
        while len(calls) < 3:  # noqa: ASYNC110  it comes by itself
            await trio.sleep(1)
        assert calls == [0, 0, 0]
        assert trio.current_time() - began_at > 170
        nursery.cancel_scope.cancel()


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="only glibc has it")
def test_the_c_library_is_asked() -> None:
    trim = memory._find_trim()
    if trim is not None:  # another C library may be in use
        assert trim(0) in {0, 1}


async def test_where_nobody_can_there_is_nothing_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "_find_trim", lambda: None)
    with trio.fail_after(1):
        await give_memory_back()


def test_a_c_library_without_it_is_no_failure(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ctypes, "CDLL", lambda _name: object())
    assert memory._find_trim() is None

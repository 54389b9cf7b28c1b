import functools
import os
import sys
from pathlib import Path

import pytest
import trio

from brewos_relay.api import pairing, sharing
from brewos_relay.api.hashing import hash_in_thread
from brewos_relay.api.passwords import PasswordCheck
from brewos_relay.api.request_limits import RequestLimits
from brewos_relay.auth.secrets import hash_code
from support.household import MACHINE, Household, open_household


def own_priority() -> int:
    return os.getpriority(os.PRIO_PROCESS, 0)


@pytest.mark.skipif(sys.platform != "linux", reason="threads have priorities on Linux only")
async def test_hashing_has_a_lower_priority_than_other_work() -> None:
    usual = own_priority()
    assert await hash_in_thread(own_priority, known=True) == min(19, usual + 5)
    assert await hash_in_thread(own_priority, known=False) == min(19, usual + 10)
    assert own_priority() == usual
    # Trio reuses its threads for the registry.
    assert await trio.to_thread.run_sync(own_priority) == usual


@pytest.mark.skipif(sys.platform != "linux", reason="threads have priorities on Linux only")
async def test_passwords_of_strangers_have_the_lowest_priority(house: Household) -> None:
    check, usual = PasswordCheck(store=house.store, request_limits=RequestLimits()), own_priority()
    assert await check.run(own_priority, network="home", known=True) == min(19, usual + 5)
    assert await check.run(own_priority, network="stranger", known=False) == min(19, usual + 10)


@pytest.mark.skipif(sys.platform != "linux", reason="threads have priorities on Linux only")
async def test_short_codes_are_hashed_with_a_low_priority(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    priorities: list[int] = []

    def hash_and_record(code: str) -> bytes:
        priorities.append(own_priority())
        return hash_code(code)

    for module in (pairing, sharing):
        monkeypatch.setattr(module, "hash_code", hash_and_record)
    usual = own_priority()
    async with open_household(tmp_path) as house:
        made = (await house.ask("POST", f"/devices/{MACHINE}/share")).content
        body = {"deviceId": made["manualCode"], "token": ""}
        assert (await house.ask("POST", "/devices/claim-share", body, by="bob")).status == 200
    assert priorities == [min(19, usual + 5), min(19, usual + 10)]


async def test_hashing_returns_and_raises_what_the_work_does() -> None:
    limiter = trio.CapacityLimiter(1)
    assert await hash_in_thread(int, "7", known=True, limiter=limiter) == 7
    with pytest.raises(ValueError, match="no number"):
        await hash_in_thread(int, "no number", known=True, limiter=limiter)
    assert limiter.borrowed_tokens == 0


async def test_hashing_takes_turns_at_its_limiter() -> None:
    limiter = trio.CapacityLimiter(1)
    busy: list[int] = []

    def work() -> None:
        busy.append(int(limiter.borrowed_tokens))

    with trio.fail_after(5):
        async with trio.open_nursery() as nursery:
            for _ in range(5):
                nursery.start_soon(functools.partial(hash_in_thread, work, known=False, limiter=limiter))
    assert busy == [1] * 5

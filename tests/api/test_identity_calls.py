"""Calls to identity providers that hang."""

import threading
from collections.abc import Iterator

import pytest
import trio
from trio.testing import wait_all_tasks_blocked

from brewos_relay.api import identity_calls
from brewos_relay.api.identity_calls import ProviderCalls
from brewos_relay.api.payloads import Refused


@pytest.fixture
def released() -> Iterator[threading.Event]:
    event = threading.Event()
    yield event
    event.set()


async def test_provider_that_hangs_delays_no_sign_in_with_another(released: threading.Event) -> None:
    calls = ProviderCalls()

    async def hang() -> None:
        await calls.call("Slow", released.wait, 30)

    with trio.fail_after(10):
        async with trio.open_nursery() as nursery:
            for _ in range(10):
                nursery.start_soon(hang)
            await wait_all_tasks_blocked()
            assert await calls.call("Quick", int, "5") == 5
            released.set()


async def test_call_that_takes_too_long_is_refused(
    released: threading.Event, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(identity_calls, "CALL_S", 0.05)
    with trio.fail_after(10), pytest.raises(Refused) as refusal:
        await ProviderCalls().call("Slow", released.wait, 30)
    assert refusal.value.status == 503

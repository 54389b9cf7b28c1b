import logging

import pytest
import trio
from trio.testing import MockClock

from brewos_relay.server.supervision import contained, describe, keep_running


async def test_a_failed_task_runs_again_after_a_pause(
    autojump_clock: MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    ran_at: list[float] = []

    async def run() -> None:
        ran_at.append(trio.current_time())
        await trio.sleep(1)
        if len(ran_at) < 3:
            raise MemoryError

    began_at = trio.current_time()
    await keep_running("measuring", run)
    assert [at - began_at for at in ran_at] == [0, 2, 4]
    assert caplog.text.count("measuring failed: MemoryError at test_supervision.py:") == 2


async def test_cancellation_ends_a_task_that_is_kept_running(autojump_clock: MockClock) -> None:
    with trio.move_on_after(5) as scope:
        await keep_running("sleeping", trio.sleep_forever)
    assert scope.cancelled_caught


def test_failure_that_cannot_be_logged_is_contained_too(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_arguments: object, **_options: object) -> None:
        raise MemoryError

    monkeypatch.setattr(logging.Logger, "error", fail)
    with contained("anything"):
        raise ValueError("no")


def test_failure_without_a_traceback_is_named() -> None:
    assert describe(ValueError("secret")) == "ValueError"
    assert describe(ExceptionGroup("", [ValueError("secret")])) == "ValueError"

"""Measurements of a machine, handed over to the histories of a relay like by a snapshot."""

from typing import Any

import msgspec
import trio

from brewos_relay.core.histories import Histories
from brewos_relay.core.history import Run, Samples
from brewos_relay.core.limits import Limits
from brewos_relay.dialect import BREWOS
from brewos_relay.messages import Message

ONE, TWO = "BRW-00000001", "BRW-00000002"


def status(*, brewing: bool = False, **groups: Any) -> Message:
    state = "brewing" if brewing else "ready"
    content = {"type": "status", "machine": {"state": state, "isBrewing": brewing}, **groups}
    return Message(msgspec.msgpack.encode(content), is_text=False)


def delta(**groups: Any) -> Message:
    return Message(msgspec.msgpack.encode({"type": "status_delta", **groups}), is_text=False)


def pressure(bar: float) -> Message:
    return delta(pressure=bar)


class Kept:
    """Histories of devices, and a device whose changes are marked and handed over like by a snapshot."""

    def __init__(self, **limits: Any) -> None:
        self.histories = Histories(Limits(**limits), BREWOS)
        self.changes: list[Message] = []
        self.device_id = ONE

    def send(self, *changes: Message) -> None:
        """Send changes, and mark them as the periodic check does."""
        self.changes += changes
        self.histories.mark(self.device_id, self.changes, {}, trio.current_time())

    def hand_over(self, whole: Message | None = None) -> None:
        size_bytes = sum(len(change.payload) for change in self.changes)
        self.histories.take(self.device_id, self.changes, whole, changes_bytes=size_bytes)
        self.changes = []

    async def samples(self, seconds: float = 600.0) -> Samples:
        samples = await self.histories.read(self.device_id, seconds=seconds)
        assert samples is not None
        return samples

    async def runs(self) -> list[Run]:
        await self.histories.compact_due()
        return [run for _, run in self.histories.take_runs(100)]

    async def brew(self, seconds: float, *, rest: float = 10.0) -> None:
        """Make a shot, with a change each second."""
        self.hand_over(status(brewing=True, pressure=0.0))
        for number in range(round(seconds)):
            await trio.sleep(1)
            self.send(delta(pressure=9.0, scale={"weight": 1.5 * number, "flowRate": 1.5}))
        self.hand_over(status(brewing=False, pressure=0.0))
        await trio.sleep(rest)

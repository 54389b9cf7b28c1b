"""ClusterView: the devices of all instances, for admission and the API."""

from collections.abc import Sequence
from contextlib import suppress
from typing import Any, Final

import msgspec
import trio

from brewos_relay.cluster.broker import BrokerError, Located
from brewos_relay.cluster.devices import DeviceTable
from brewos_relay.cluster.member import AT_ONCE, Member
from brewos_relay.cluster.remote_commands import ANSWER_S
from brewos_relay.core.relay import Relay
from brewos_relay.core.remote import RemoteOutcome
from brewos_relay.messages import Message

FIND_S: Final = 1.0
"""How long a client waits for the state of a device on another instance before it is attached."""
CONTEST_S: Final = 0.25
"""How long a device waits for the answer whether another machine uses its id."""
_HOLD_S: Final = 5.0
"""How long a device is followed for a client that is about to come."""


class ClusterView:
    """Answers questions about devices on any instance. What the broker does not tell in time is absent."""

    def __init__(self, relay: Relay, table: DeviceTable, member: Member) -> None:
        self._relay = relay
        self._table = table
        self._member = member

    async def find(self, device_id: str) -> None:
        """Follow a device for a client that is about to come, and wait for its state, at most `FIND_S`."""
        record = self._table.record(device_id)
        if record.is_local or (record.remote is not None and record.remote.has_state):
            return
        record.held_until = trio.current_time() + _HOLD_S
        if self._member.connection is None:
            return
        if record.settled is None:
            record.settled = trio.Event()
        self._table.mark(device_id)
        with trio.move_on_after(FIND_S):
            await record.settled.wait()

    async def is_contested(self, device_id: str) -> bool:
        """Whether two devices on different instances use this id, so that another one has to be refused."""
        with trio.move_on_after(CONTEST_S):
            return (await self._locate([device_id]))[0].contested
        return False

    async def are_online(self, device_ids: Sequence[str]) -> list[bool]:
        """Tell for each device whether it is connected to any instance."""
        here = [self._relay.has_device(device_id) for device_id in device_ids]
        elsewhere = [device_id for device_id, is_here in zip(device_ids, here, strict=True) if not is_here]
        located: list[Located] = []
        with trio.move_on_after(ANSWER_S):
            for start in range(0, len(elsewhere), AT_ONCE):
                located += await self._locate(elsewhere[start : start + AT_ONCE])
        online = {
            device_id for device_id, found in zip(elsewhere, located, strict=False) if found.owner is not None
        }
        return [is_here or device_id in online for device_id, is_here in zip(device_ids, here, strict=True)]

    async def state_of(self, device_id: str) -> dict[str, Any] | None:
        """Return the known state of a device, from its instance if need be; see `Relay.state_of`."""
        if self._relay.has_device(device_id) or self._relay.is_online(device_id):
            return self._relay.state_of(device_id)
        with trio.move_on_after(ANSWER_S):
            owner = (await self._locate([device_id]))[0].owner
            if owner is not None and owner.instance != self._member.instance:
                content = await self._member.state_requests.ask(owner.instance, device_id)
                return msgspec.json.decode(content, type=dict[str, Any]) if content is not None else None
        return self._relay.state_of(device_id)

    async def send_to_device(self, device_id: str, message: Message) -> RemoteOutcome:
        """Send a message of the relay to a device on any instance, and return its outcome."""
        if self._relay.has_device(device_id):
            return "delivered" if self._relay.send_to_device(device_id, message) else "busy"
        owner = None
        with trio.move_on_after(ANSWER_S):
            owner = (await self._locate([device_id]))[0].owner
        if owner is None or owner.instance == self._member.instance:
            return "device_offline"
        done = trio.Event()
        outcomes: list[RemoteOutcome] = []

        def take_outcome(outcome: RemoteOutcome) -> None:
            outcomes.append(outcome)
            done.set()

        self._member.commands.send(owner.instance, device_id, message, take_outcome, float("inf"))
        await done.wait()
        return outcomes[0]

    async def instances(self) -> dict[str, dict[str, Any]]:
        """Return the description of each live instance; only this one's if the broker cannot be reached."""
        found: dict[str, dict[str, Any]] = {}
        if self._member.connection is not None:
            with suppress(BrokerError), trio.move_on_after(ANSWER_S):
                for name, description in (await self._member.connection.instances()).items():
                    found[name] = _decode(description)
        return found | {self._member.instance: dict(self._member.describe())}

    async def _locate(self, device_ids: Sequence[str]) -> list[Located]:
        """Find devices; none is found if the broker cannot be reached."""
        if self._member.connection is not None:
            with suppress(BrokerError):
                return await self._member.connection.locate(device_ids)
        await trio.lowlevel.checkpoint()
        return [Located(None)] * len(device_ids)


def _decode(description: bytes) -> dict[str, Any]:
    try:
        return msgspec.json.decode(description, type=dict[str, Any])
    except (msgspec.DecodeError, RecursionError):
        return {}

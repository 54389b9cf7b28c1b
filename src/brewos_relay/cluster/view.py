"""ClusterView: the devices of all instances, for admission and the API."""

from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Any, Final

import msgspec
import trio

from brewos_relay.cluster.broker import BrokerError, Located
from brewos_relay.cluster.devices import DeviceTable
from brewos_relay.cluster.member import Member
from brewos_relay.cluster.ownership import AT_ONCE
from brewos_relay.cluster.remote_commands import ANSWER_S
from brewos_relay.core.counters import Counters
from brewos_relay.core.relay import Relay
from brewos_relay.core.remote import RemoteOutcome
from brewos_relay.instances import Description, read_description
from brewos_relay.live_devices import (
    DeviceHistory,
    LiveDevice,
    LogAction,
    LogView,
    PeerCounts,
    device_history,
    live_device,
    view_log,
)
from brewos_relay.messages import Message

FIND_S: Final = 1.0
"""How long a client waits for the state of a device on another instance before it is attached."""
CONTEST_S: Final = 0.25
"""How long a device waits for the answer whether another machine uses its id."""
_HOLD_S: Final = 5.0
"""How long a device is followed for a client that is about to come."""


class _Search:
    """Devices that are located together."""

    def __init__(self) -> None:
        self.ids: dict[str, None] = {}
        self.found: dict[str, Located] = {}
        self.done = trio.Event()


class ClusterView:
    """The devices and clients of all instances; a `protocols.RelayView`.

    What other instances do not tell in time is missing.
    """

    def __init__(self, relay: Relay, table: DeviceTable, member: Member) -> None:
        self._relay = relay
        self._table = table
        self._member = member
        self._search: _Search | None = None
        """What is asked for in this pass of the event loop."""

    async def find(self, device_id: str) -> None:
        """Follow a device for a client that is about to come, and wait for its state, at most `FIND_S`."""
        record = self._table.record(device_id)
        record.held_until = trio.current_time() + _HOLD_S
        if record.is_local or (record.remote is not None and record.remote.has_state):
            return
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
            return (await self._locate_together(device_id)).contested
        return False

    async def _locate_together(self, device_id: str) -> Located:
        """Locate a device together with those that other tasks ask for now: all cost little more than one."""
        search, is_first = self._search, self._search is None
        if search is None:
            search = self._search = _Search()
        search.ids[device_id] = None
        if is_first:
            try:
                await trio.lowlevel.cancel_shielded_checkpoint()
                self._search = None
                ids = list(search.ids)
                search.found = dict(zip(ids, await self._locate(ids), strict=True))
            finally:
                search.done.set()
        else:
            await search.done.wait()
        if (found := search.found.get(device_id)) is None:  # the task that asked for all was cancelled
            [found] = await self._locate([device_id])
        return found

    @property
    def closing(self) -> bool:
        """Whether this instance accepts no new connections."""
        return self._relay.closing

    @property
    def counters(self) -> Counters:
        """The running totals of this instance."""
        return self._relay.counters

    async def count_peers(self) -> PeerCounts:
        """Count the devices and clients of all instances. The figures of others are some seconds old."""
        found = (await self.instances()).values()
        return PeerCounts(sum(each.devices for each in found), sum(each.clients for each in found))

    async def find_live(self, device_ids: Sequence[str]) -> Mapping[str, LiveDevice]:
        """Return what all instances know of the connections of devices.

        The broker knows which devices are online if an instance does not answer.
        """
        live = {device_id: live_device(self._relay, device_id) for device_id in device_ids}
        if self._member.connection is None:
            return live
        others = [name for name in await self.instances() if name != self._member.instance]
        for start in range(0, len(device_ids), AT_ONCE):
            some = device_ids[start : start + AT_ONCE]
            with trio.move_on_after(ANSWER_S):
                await self._ask_all(others, some, live)
        return live

    async def _ask_all(
        self, others: Sequence[str], device_ids: Sequence[str], live: dict[str, LiveDevice]
    ) -> None:
        """Ask the broker and other instances about devices at the same time.

        **Owns:** a nursery with a task for each of them, `_find_owners` and `_ask_live`.
        """
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._find_owners, device_ids, live)
            for name in others:
                nursery.start_soon(self._ask_live, name, device_ids, live)

    async def _find_owners(self, device_ids: Sequence[str], live: dict[str, LiveDevice]) -> None:
        for device_id, found in zip(device_ids, await self._locate(device_ids), strict=True):
            if found.owner is not None and not live[device_id].is_online:
                live[device_id] = msgspec.structs.replace(live[device_id], is_online=True)

    async def _ask_live(self, instance: str, device_ids: Sequence[str], live: dict[str, LiveDevice]) -> None:
        for device_id, found in (await self._member.requests.ask_live(instance, device_ids)).items():
            if (known := live.get(device_id)) is not None:
                live[device_id] = LiveDevice(
                    known.is_online or found.is_online,
                    found.info if found.is_online else known.info,
                    [*known.user_ids, *found.user_ids],
                )

    async def state_of(self, device_id: str) -> dict[str, Any] | None:
        """Return the known state of a device, from its instance if need be; see `Relay.state_of`."""
        if self._relay.has_device(device_id) or self._relay.is_online(device_id):
            return self._relay.state_of(device_id)
        with trio.move_on_after(ANSWER_S):
            owner = (await self._locate([device_id]))[0].owner
            if owner is not None and owner.instance != self._member.instance:
                content = await self._member.requests.ask_state(owner.instance, device_id)
                return _decode_state(content) if content is not None else None
        return self._relay.state_of(device_id)

    async def log_of(self, device_id: str, action: LogAction) -> LogView | None:
        """Return the log of a device, from its instance if need be; see `live_devices.view_log`."""
        if not self._relay.has_device(device_id):
            with trio.move_on_after(ANSWER_S):
                owner = (await self._locate([device_id]))[0].owner
                if owner is not None and owner.instance != self._member.instance:
                    return await self._member.requests.ask_log(owner.instance, device_id, action)
        return view_log(self._relay, device_id, action)

    async def history_of(self, device_id: str, *, seconds: float) -> DeviceHistory | None:
        """Return the measurements of a device, from its instance if need be; None if there are none."""
        if not self._relay.has_device(device_id):
            with trio.move_on_after(ANSWER_S):
                owner = (await self._locate([device_id]))[0].owner
                if owner is not None and owner.instance != self._member.instance:
                    return await self._member.requests.ask_history(owner.instance, device_id, seconds)
        return device_history(await self._relay.history_of(device_id, seconds=seconds))

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

    async def instances(self) -> dict[str, Description]:
        """Return the description of each live instance; only this one's if the broker cannot be reached."""
        found: dict[str, Description] = {}
        if self._member.connection is not None:
            with suppress(BrokerError), trio.move_on_after(ANSWER_S):
                for name, description in (await self._member.connection.instances()).items():
                    found[name] = read_description(description)
        return found | {self._member.instance: self._member.describe()}

    async def _locate(self, device_ids: Sequence[str]) -> list[Located]:
        """Find devices; none is found if the broker cannot be reached."""
        if self._member.connection is not None:
            with suppress(BrokerError):
                return await self._member.connection.locate(device_ids)
        await trio.lowlevel.checkpoint()
        return [Located(None)] * len(device_ids)


def _decode_state(content: bytes) -> dict[str, Any] | None:
    try:
        return msgspec.json.decode(content, type=dict[str, Any])
    except (msgspec.DecodeError, RecursionError):
        return None

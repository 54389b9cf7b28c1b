"""Invariants of a cluster: random sequences of events and failures on a virtual clock.

The broker is the one in memory; `test_broker_contract` compares it with the real servers.
"""

import itertools
import math
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

import trio
from hypothesis import given, settings
from hypothesis import strategies as st
from trio.testing import MockClock

from brewos_relay.cluster.broker import LEASE_S, RENEW_EVERY_S
from brewos_relay.core.limits import Limits
from brewos_relay.errors import CloseCode, RelayClosing
from support.instances import Instance, open_instance
from support.memory_broker import MemoryBroker
from support.peers import ScriptedPeer

DEVICES: Final = ("BRW-00000001", "BRW-00000002")
SLOTS: Final = 3
LIMITS: Final = Limits(device_min_age_s=8.0)

# Frequent steps, so that there is something for the rare ones.
OFTEN: Final = (
    "device comes",
    "device comes",
    "device says",
    "client comes",
    "client commands",
    "time passes",
    "a moment passes",
)
SELDOM: Final = (
    "device leaves",
    "device returns at once",
    "client leaves",
    "link is cut",
    "link is away",
    "link is back",
    "link stops",
    "link goes on",
    "outbox is full",
    "replies are late",
    "process stops",
    "process goes on",
    "instance dies",
    "instance starts",
    "broker loses all",
    "broker clock steps",
)
STEPS: Final = st.lists(
    st.tuples(
        st.sampled_from(OFTEN * 4 + SELDOM), st.integers(0, SLOTS - 1), st.integers(0, 1), st.integers(0, 5)
    ),
    min_size=10,
    max_size=50,
)
Step = tuple[str, int, int, int]


@dataclass(eq=False)
class Machine:
    """One connection of a device."""

    number: int
    device_id: str
    place: "Place"
    peer: ScriptedPeer
    opened_at: float
    said: int = 0
    left: bool = False

    @property
    def is_living(self) -> bool:
        return not (self.left or self.peer.closes or self.place.is_dead)

    def say(self, kind: str = "note") -> None:
        self.said += 1
        self.peer.say({"type": kind, "by": self.number, "n": self.said})

    @property
    def commands(self) -> list[tuple[int, float]]:
        """The commands that were delivered, and when."""
        return [
            (content["requestId"], at)
            for content, at in received(self.peer)
            if content.get("type") == "command"
        ]


@dataclass(eq=False)
class App:
    """One client of a device."""

    device_id: str
    place: "Place"
    peer: ScriptedPeer
    sent_at: dict[int, float] = field(default_factory=dict)
    """The commands that it sent, and when."""
    left: bool = False

    @property
    def is_living(self) -> bool:
        return not (self.left or self.place.is_dead)

    @property
    def is_online(self) -> bool:
        """Whether the device is online, as the app was told last."""
        told = False
        for content, _ in received(self.peer):
            match content["type"]:
                case "connected":
                    told = content["deviceOnline"]
                case "device_online":
                    told = True
                case "device_offline":
                    told = False
                case "device_status":
                    told = content["online"]
        return told

    @property
    def notes(self) -> list[tuple[int, int, float]]:
        """The messages of the device: which connection sent each, its number, and when it came."""
        return [
            (content["by"], content["n"], at)
            for content, at in received(self.peer)
            if content["type"] == "note"
        ]

    def told(self, request: int) -> list[tuple[str, float]]:
        """What the app was told of a command, and when."""
        return [
            (content["status"], at)
            for content, at in received(self.peer)
            if content["type"] == "command_status" and content["requestId"] == request
        ]


@dataclass(eq=False)
class Place:
    """One process with an instance, which can stop and die."""

    name: str
    instance: Instance
    scope: trio.CancelScope
    is_dead: bool = False
    held: list[Callable[[], object]] | None = None
    """What its peers did while the process is stopped; None while it runs."""

    def do(self, action: Callable[[], object]) -> None:
        """Let a peer do something, which a stopped process notices later."""
        if self.held is not None:
            self.held.append(action)
        else:
            action()

    def run_held(self) -> None:
        held, self.held = self.held, None
        for action in held or ():
            action()


def received(peer: ScriptedPeer) -> list[tuple[dict[str, Any], float]]:
    """Return what was delivered to a peer, and when."""
    times = [
        at for delivery, at in zip(peer.deliveries, peer.taken_at, strict=True) for _ in delivery.messages
    ]
    return list(zip(peer.received, times, strict=True))


class World:
    """Some instances and their peers. Applies steps, and checks what must hold."""

    def __init__(self, nursery: trio.Nursery) -> None:
        self.nursery = nursery
        self.clock_ahead_s = 1000.0
        self.broker = MemoryBroker(lambda: trio.current_time() + self.clock_ahead_s)
        self.places: list[Place] = []
        self.all_places: list[Place] = []
        self.machines: list[Machine] = []
        self.apps: list[App] = []
        self.names = itertools.count()
        self.numbers = itertools.count()
        self.requests = itertools.count()
        self.clock_stepped = False
        self.leases_last_s = LEASE_S
        self.late: set[int] = set()
        """Commands that a stopped process did not read at once."""
        self.waited: set[int] = set()
        """Connections that had to wait for an earlier one on the same instance, and sent their state then."""

    async def start(self, slot: int | None = None) -> None:
        """Start an instance, whose clock differs from the others'."""
        number = next(self.names)
        name, ahead_s = f"i{number}", number * 111.0
        place = await self.nursery.start(self._run, name, ahead_s)
        self.all_places.append(place)
        if slot is None:
            self.places.append(place)
        else:
            self.places[slot] = place

    async def _run(self, name: str, ahead_s: float, *, task_status: trio.TaskStatus[Place]) -> None:
        with trio.CancelScope() as scope:
            async with open_instance(
                name, self.broker, limits=LIMITS, elapsed=lambda: trio.current_time() + ahead_s
            ) as instance:
                task_status.started(Place(name, instance, scope))
                await trio.sleep_forever()

    def machine(self, device_id: str, pick: int) -> Machine | None:
        living = [each for each in self.machines if each.device_id == device_id and each.is_living]
        return living[pick % len(living)] if living else None

    def app(self, device_id: str, pick: int) -> App | None:
        living = [each for each in self.apps if each.device_id == device_id and each.is_living]
        return living[pick % len(living)] if living else None

    # Steps

    async def step(self, what: str, slot: int, which: int, pick: int) -> None:
        """Apply one step."""
        place, device_id = self.places[slot], DEVICES[which]
        machine, app = self.machine(device_id, pick), self.app(device_id, pick)
        await trio.sleep(0.02)  # the order of connections is certain: clocks are exact to some ms
        match what:
            case "device comes" if not place.is_dead and place.held is None:
                self.connect(device_id, place)
            case "device says" if machine is not None:
                machine.place.do(machine.say)
            case "device leaves" if machine is not None:
                machine.left = True
                machine.place.do(machine.peer.leave)
            case "device returns at once" if machine is not None and machine.place.held is None:
                machine.left = True
                machine.peer.leave()
                await trio.sleep(0.01 * pick)
                if not place.is_dead and place.held is None:
                    self.connect(device_id, place)
            case "client comes" if not place.is_dead:
                self.nursery.start_soon(self.bring_app, device_id, place)
            case "client leaves" if app is not None:
                app.left = True
                app.place.do(app.peer.leave)
            case "client commands" if app is not None:
                self.command(app)
            case "time passes":
                await trio.sleep((0.3, 1.1, 2.3, 6.0, 12.0, 21.0)[pick])
            case "a moment passes":
                await trio.sleep((0.0, 0.002, 0.01, 0.05, 0.1, 0.2)[pick])
            case _:
                await self.fail(what, place, slot, pick)

    async def fail(self, what: str, place: Place, slot: int, pick: int) -> None:
        """Apply one step that breaks or repairs something."""
        is_joined = place.name in self.broker._connections
        match what:
            case "link is cut":
                self.broker.cut(place.name)
            case "link is away":
                self.broker.unreachable.add(place.name)
                self.broker.cut(place.name)
            case "link is back":
                self.broker.unreachable.discard(place.name)
            case "link stops" if is_joined:
                self.broker.stop(place.name)
            case "link goes on" if place.held is None:
                self.broker.go_on(place.name)
            case "outbox is full":
                self.broker.full ^= {place.name}
            case "replies are late" if is_joined:
                self.broker.delay_replies(place.name)
                await trio.sleep((0.0, 0.01, 0.1, 0.5, 1.0, 3.0)[pick])
                if place.name in self.broker._connections:
                    self.broker.pass_replies(place.name)
            case "process stops" if is_joined and place.held is None and not place.is_dead:
                self.broker.stop(place.name)
                place.held = []
            case "process goes on":
                self.go_on(place)
            case "instance dies":
                self.die(place)
            case "instance starts" if place.is_dead:
                await self.start(slot)
            case "broker loses all":
                self.broker.flush()
            case "broker clock steps":
                by_s = (-30.0, -5.0, -1.0, 1.0, 5.0, 30.0)[pick]
                self.clock_stepped = True
                self.clock_ahead_s += by_s
                self.leases_last_s += max(0.0, -by_s)

    def connect(self, device_id: str, place: Place) -> None:
        machine = Machine(
            next(self.numbers), device_id, place, ScriptedPeer(silent=True), trio.current_time()
        )
        machine.peer.is_sure = True
        if any(each.device_id == device_id and each.place is place for each in self.machines):
            self.waited.add(machine.number)
        self.machines.append(machine)
        place.instance.relay.attach_device(device_id, machine.peer)
        machine.say("status")

    async def bring_app(self, device_id: str, place: Place) -> None:
        """Attach a client as the server does: after the device was looked for."""
        await place.instance.view.find(device_id)
        if place.is_dead or place.held is not None:
            return
        app = App(device_id, place, ScriptedPeer())
        app.peer.is_sure = True
        try:
            place.instance.relay.attach_client(device_id, app.peer)
        except RelayClosing:
            return
        self.apps.append(app)

    def command(self, app: App) -> None:
        request = next(self.requests)
        app.sent_at[request] = trio.current_time()
        if app.place.held is not None:
            self.late.add(request)
        said = {"type": "command", "cmd": "tare", "requestId": request}
        app.place.do(lambda: app.peer.say(said))

    def go_on(self, place: Place) -> None:
        if place.held is not None:
            place.run_held()
            self.broker.go_on(place.name)

    def die(self, place: Place) -> None:
        if not place.is_dead:
            place.is_dead = True
            self.broker.unreachable.add(place.name)
            self.broker.cut(place.name)
            place.held = None
            place.scope.cancel()

    async def settle(self) -> None:
        """Repair everything, and wait until that has had its effect."""
        self.broker.full.clear()
        for place in self.places:
            if not place.is_dead:
                self.broker.unreachable.discard(place.name)
                self.go_on(place)
                self.broker.go_on(place.name)
        await trio.sleep(self.leases_last_s + 2 * RENEW_EVERY_S + 2.0)

    # Checks

    def check_standing(self) -> None:
        """Of all connections of a device, one is left. All instances and clients know it."""
        for device_id in DEVICES:
            of_device = [each for each in self.machines if each.device_id == device_id]
            living = [each for each in of_device if each.is_living]
            assert len(living) <= 1, [each.number for each in living]
            for place in self.places:
                if place.is_dead:
                    continue
                here = [each for each in living if each.place is place]
                assert place.instance.relay.has_device(device_id) == bool(here), (place.name, device_id)
            for app in self.apps:
                if app.is_living and app.device_id == device_id:
                    assert app.is_online == bool(living), (app.place.name, device_id)
            for each in of_device:
                if each.peer.closes and not each.place.is_dead:
                    assert each.peer.close_code == CloseCode.REPLACED
                    newer = [other for other in of_device if other.opened_at > each.opened_at]
                    assert newer or self.clock_stepped

    async def check_delivery(self) -> None:
        """Every client gets each message of the device once."""
        for machine in self.machines:
            if not machine.is_living:
                continue
            before = machine.said
            for _ in range(3):
                machine.say()
            await trio.sleep(0.5)
            for app in self.apps:
                if app.is_living and app.device_id == machine.device_id:
                    got = [n for by, n, _ in app.notes if by == machine.number and n > before]
                    assert got == [before + 1, before + 2, before + 3], (app.place.name, machine.number)

    async def check_commands_cross(self) -> None:
        for app in [each for each in self.apps if each.is_living]:
            living = [each for each in self.machines if each.is_living and each.device_id == app.device_id]
            self.command(app)
            [*_, request] = app.sent_at
            await trio.sleep(0.5)
            [(status, _)] = app.told(request)
            assert status == ("delivered" if living else "queued")
        await trio.sleep(LIMITS.pending_s + 2)

    def check_history(self) -> None:
        """Nothing that a peer ever got was wrong."""
        opened_at = {machine.number: machine.opened_at for machine in self.machines}
        places = {machine.number: machine.place for machine in self.machines}
        ended_at = {machine.number: self.ended_at(machine) for machine in self.machines}
        for app in self.apps:
            state_from = None
            for content, _ in received(app.peer):
                if content["type"] == "status":
                    state_from = places[content["by"]]
                if content["type"] == "note" and content["by"] not in self.waited:
                    assert places[content["by"]] is state_from, "before the state"
            newest: dict[int, int] = {}
            latest = -1
            for by, n, at in app.notes:
                assert n > newest.get(by, 0), "twice, or in another order"
                newest[by] = n
                if latest >= 0 and opened_at[by] < opened_at[latest] and not self.clock_stepped:
                    assert at >= ended_at[latest], "of an older connection after a newer one"
                latest = by
        self.check_commands()

    def ended_at(self, machine: Machine) -> float:
        return machine.peer.gone_at if machine.peer.gone_at is not None else math.inf

    def check_commands(self) -> None:
        acted: Counter[int] = Counter()
        acted_at: dict[int, float] = {}
        for machine in self.machines:
            for request, at in machine.commands:
                acted[request] += 1
                acted_at[request] = at
        for app in self.apps:
            for request, sent_at in app.sent_at.items():
                told = app.told(request)
                outcomes = [each for each in told if each[0] != "queued"]
                assert acted[request] <= 1, "acted twice"
                assert len(told) - len(outcomes) <= 1
                assert len(outcomes) <= 1, outcomes
                if not outcomes:
                    assert not app.is_living, "a client was told no outcome"
                    continue
                [(status, told_at)] = outcomes
                match status:
                    case "delivered":
                        assert acted[request] == 1, "lost"
                    case "unknown":
                        assert acted_at.get(request, 0.0) <= told_at, "acted late"
                        in_time = acted_at.get(request, 0.0) <= sent_at + 2.0
                        assert in_time or len(told) > 1 or request in self.late, "acted after 2 s"
                    case _:
                        assert acted[request] == 0, f"acted in spite of {status}"

    async def end(self) -> None:
        """End all peers; nothing may be left."""
        for app in self.apps:
            app.peer.leave()
        for machine in self.machines:
            machine.peer.leave()
        await trio.sleep(8)
        for place in self.places:
            if not place.is_dead:
                assert not place.instance.table.records, place.name
                assert place.instance.relay.session_count == 0, place.name
                assert not len(place.instance.member.commands)
        for device_id in DEVICES:
            assert self.broker.locate(device_id).owner is None


def run_steps(steps: Sequence[Step]) -> None:
    """Run steps in a new world, and check it."""

    async def main() -> None:
        async with trio.open_nursery() as nursery:
            world = World(nursery)
            for _ in range(SLOTS):
                await world.start()
            for step in steps:
                await world.step(*step)
            await world.settle()
            world.check_standing()
            await world.check_delivery()
            await world.check_commands_cross()
            world.check_history()
            await world.end()
            nursery.cancel_scope.cancel()

    trio.run(main, clock=MockClock(autojump_threshold=0))


@settings(max_examples=60)
@given(STEPS)
def test_a_cluster_keeps_its_promises(steps: Sequence[Step]) -> None:
    run_steps(steps)

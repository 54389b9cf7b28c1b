"""What must hold whatever happens, in whatever order: random lives of a relay against a model of it."""

import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

import trio
from hypothesis import given, settings
from hypothesis import strategies as st
from trio.testing import MockClock, wait_all_tasks_blocked

from brewos_relay.core.limits import Limits
from brewos_relay.core.relay import Relay, open_relay
from brewos_relay.messages import Message
from support.peers import ScriptedPeer

DEVICES: Final = 2
GARBAGE: Final = Message(b"[]")
LIMITS: Final = Limits()

# What happens more often, so that there is somebody whom the rest can happen to.
OFTEN: Final = ("device comes", "device says", "client comes", "client says", "time passes")
SELDOM: Final = (
    "zombie comes",
    "device leaves",
    "device fails",
    "replaced device says",
    "device chokes",
    "device tells",
    "client leaves",
    "client fails",
    "client asks",
    "client chokes",
    "client breaks",
)
ACTIONS: Final = OFTEN * 4 + SELDOM * 2
STEPS: Final = st.lists(
    st.tuples(st.sampled_from(ACTIONS), st.integers(0, DEVICES - 1), st.integers(0, 5), st.integers(1, 3)),
    min_size=15,  # short lives show little, and hypothesis prefers them
    max_size=60,
)


@dataclass
class Waiting:
    """A command that waits for the device."""

    sender: ScriptedPeer
    told: Any
    expires_at: float


@dataclass
class Expected:
    """What the model knows of one device, and what each of its peers should have received."""

    device_id: str
    device: ScriptedPeer | None = None
    arriving: ScriptedPeer | None = None
    replaced: list[ScriptedPeer] = field(default_factory=list)
    clients: list[ScriptedPeer] = field(default_factory=list)
    lagging: set[ScriptedPeer] = field(default_factory=set)
    status: Any = None
    gone_at: float = -math.inf
    asked_at: float = -math.inf
    pending: list[Waiting] = field(default_factory=list)

    @property
    def attached(self) -> list[ScriptedPeer]:
        return [*self.clients, *(device for device in (self.device, self.arriving) if device)]

    def known(self) -> list[Any]:
        """Say what a client is told of the device."""
        return [("device_status", self.device_id, self.device is not None), self.status]


class Model:
    """Drives a relay and says what should have come of it.

    Steps are taken half a second after the relay has looked at what is due, so that the order is plain.
    """

    def __init__(self, relay: Relay) -> None:
        self.relay = relay
        self.devices = [Expected(f"BRW-{number:08X}") for number in range(DEVICES)]
        self.expected: dict[ScriptedPeer, list[Any]] = {}
        self.stood: set[ScriptedPeer] = set()
        """Connections that stood for their device at some time."""
        self.left: set[ScriptedPeer] = set()
        """Peers that went by their own doing."""
        self.left_out = self.invalid = self.undeliverable = self.zombies = 0
        self._numbers = itertools.count()

    async def step(self, action: str, number: int, pick: int, count: int) -> None:
        at = self.devices[number]
        client = at.clients[pick % len(at.clients)] if at.clients else None
        match action:
            case "time passes":
                for _ in range(count):
                    await self._pass_a_second()
            case "device comes" | "zombie comes":
                self._device_comes(at, silent=action == "zombie comes")
            case "device leaves" | "device fails" if at.device is not None:
                self._go(at.device, action)
                at.device, at.gone_at = None, trio.current_time()
                self._tell(at, "device_offline")
            case "device says" if at.device is not None:
                self._broadcast(at, self._say(at.device, count, garbage=pick == 0))
            case "device tells" if at.device is not None:
                at.status = ("status", next(self._numbers))
                at.device.say({"type": "status", "n": at.status[1]})
                self._broadcast(at, [at.status])
            case "replaced device says" if at.replaced:
                at.replaced[pick % len(at.replaced)].say({"type": "status", "n": next(self._numbers)})
            case "device chokes" if at.device is not None:
                at.device.refuses = not at.device.refuses
            case "client comes":
                client = self._new_peer()
                self.relay.attach_client(at.device_id, client)
                at.clients.append(client)
                self.expected[client].append(("connected", at.device_id, at.device is not None))
                if at.status is not None:
                    self.expected[client] += at.known()
            case "client leaves" | "client fails" if client is not None:
                self._go(client, action)
                self._forget(at, client)
            case "client says" if client is not None:
                self._client_says(at, client, count, garbage=pick == 0)
            case "client asks" if client is not None:
                self._client_asks(at, client)
            case "client chokes" if client is not None:
                client.refuses = not client.refuses
                client.backlog_bytes = int(client.refuses)
            case "client breaks" if client is not None and at.device is not None:
                self._client_breaks(at, at.device, client)
        if not at.attached:
            at.pending.clear()
            at.asked_at = -math.inf

    def _new_peer(self, **options: Any) -> ScriptedPeer:
        peer = ScriptedPeer(**options)
        self.expected[peer] = []
        return peer

    # Devices

    def _device_comes(self, at: Expected, *, silent: bool) -> None:
        device = self._new_peer(min_age_s=LIMITS.device_min_age_s, silent=silent)
        self.relay.attach_device(at.device_id, device)
        self.expected[device].append("connected")
        if at.arriving is not None:
            at.replaced.append(at.arriving)
        at.arriving = device
        self._arrives(at, trio.current_time())

    def _arrives(self, at: Expected, now: float) -> None:
        if at.arriving is None or at.arriving.silent:
            return
        if at.device is not None and now - at.device.opened_at < LIMITS.device_min_age_s:
            return
        if at.device is None:
            self._tell(at, "device_online")
        else:
            at.replaced.append(at.device)
        at.device, at.arriving = at.arriving, None
        self.stood.add(at.device)
        if at.clients:
            self.expected[at.device].append("request_state")
            at.asked_at = now
        self._expire(at, now)
        self.expected[at.device] += [waiting.told for waiting in at.pending]
        for waiting in at.pending:
            self._answer(at, waiting.sender, "queued_message_sent")
        at.pending.clear()

    # Clients

    def _client_says(self, at: Expected, client: ScriptedPeer, count: int, *, garbage: bool) -> None:
        commands = self._say(client, count, garbage=garbage)
        answers: list[Any] = ["invalid_message"] if garbage else []
        if at.device is None:
            for told in commands:
                if len(at.pending) < LIMITS.pending_commands:
                    expires_at = trio.current_time() + LIMITS.pending_s
                    at.pending.append(Waiting(client, told, expires_at))
                    answers.append(("device_status", at.device_id, False))
                else:
                    answers.append("device_offline_error")
                    self.undeliverable += 1
        elif at.device.refuses:
            answers.append("device_busy")
            self.undeliverable += count
        else:
            self.expected[at.device] += commands
        self.expected[client] += answers

    def _client_asks(self, at: Expected, client: ScriptedPeer) -> None:
        client.say({"type": "request_state"})
        now = trio.current_time()
        if at.device is None:
            self.expected[client].append(("device_status", at.device_id, False))
        elif now - at.asked_at >= LIMITS.state_request_s:
            at.asked_at = now
            if at.device.refuses:
                self.undeliverable += 1
                self.expected[client].append("device_busy")
            else:
                self.expected[at.device].append("request_state")

    def _client_breaks(self, at: Expected, device: ScriptedPeer, client: ScriptedPeer) -> None:
        """Let a client fail in `deliver`, which shows when the device speaks next."""
        client.deliver_error = ValueError("scripted")
        self.left_out += client in at.lagging
        self._forget(at, client)
        self._broadcast(at, self._say(device, 1, garbage=False))

    def _forget(self, at: Expected, client: ScriptedPeer) -> None:
        at.clients.remove(client)
        at.lagging.discard(client)

    # Everybody

    def _say(self, peer: ScriptedPeer, count: int, *, garbage: bool) -> list[Any]:
        contents = [{"type": "numbered", "n": next(self._numbers)} for _ in range(count)]
        peer.say(*([GARBAGE] if garbage else []), *contents)
        self.invalid += garbage
        return [("numbered", content["n"]) for content in contents]

    def _go(self, peer: ScriptedPeer, action: str) -> None:
        self.left.add(peer)
        if action.endswith("fails"):
            peer.fail(ValueError("scripted"))
        else:
            peer.leave()

    def _broadcast(self, at: Expected, said: list[Any]) -> None:
        """Expect what the device says; a client that lags hears only what nothing later says again."""
        for client in at.clients:
            if client.refuses:
                at.lagging.add(client)
            heard = [one for one in said if client not in at.lagging or one[0] == "numbered"]
            self.left_out += len(said) - len(heard)
            self.expected[client] += heard

    def _tell(self, at: Expected, told: Any) -> None:
        for client in at.clients:
            self.expected[client].append(told)

    def _answer(self, at: Expected, client: ScriptedPeer, told: Any) -> None:
        """Expect an answer that came later than its question, if the client is still there."""
        if client in at.clients:
            self.expected[client].append(told)

    # Time

    async def _pass_a_second(self) -> None:
        for at in self.devices:
            for peer in at.attached:
                if not peer.silent:
                    peer.say()
            self._arrives(at, trio.current_time())
        await trio.sleep(0.4)
        now = trio.current_time() + 0.1
        await trio.sleep(0.6)
        for at in self.devices:
            self._look(at, now)

    def _look(self, at: Expected, now: float) -> None:
        """Expect what the relay does once a second; `now` is when it did."""
        zombie = at.arriving
        if zombie is not None and zombie.silent:
            if now - zombie.opened_at >= LIMITS.device_first_frame_s:
                self.zombies += 1
                at.replaced.append(zombie)
                at.arriving = None
        else:
            self._arrives(at, now)
        self._expire(at, now)
        for client in [client for client in at.clients if client in at.lagging and not client.refuses]:
            at.lagging.discard(client)
            self.expected[client] += at.known()[: 1 + (at.status is not None)]
        if at.device is None and now - at.gone_at >= LIMITS.snapshot_s:
            at.status = None

    def _expire(self, at: Expected, now: float) -> None:
        expired = [waiting for waiting in at.pending if waiting.expires_at <= now]
        at.pending = [waiting for waiting in at.pending if waiting.expires_at > now]
        for waiting in expired:
            self.undeliverable += 1
            self._answer(at, waiting.sender, "device_offline_error")

    # What can be seen

    def check(self) -> None:
        """Compare everything that can be seen with what it should be."""
        now = trio.current_time()
        attached = {peer for at in self.devices for peer in at.attached}
        for peer, expected in self.expected.items():
            assert [_tell(content) for content in peer.received if content["type"] != "keepalive"] == expected
            assert peer.runs == 1
            held = peer not in self.left and now - peer.opened_at < peer.min_age_s
            assert peer.acloses_begun == (peer not in attached), "each is closed once"
            assert peer.acloses == (peer not in attached and not held)
        for peer in self.stood - self.left:
            assert all(at - peer.opened_at >= LIMITS.device_min_age_s for at in peer.closed_at)
        for at in self.devices:
            assert {peer.close_code for peer in at.replaced} <= {4002, 1008}
            assert self.relay.is_online(at.device_id) == (at.device is not None)
        assert self.relay.device_count == sum(at.device is not None for at in self.devices)
        assert self.relay.client_count == sum(len(at.clients) for at in self.devices)
        counters = self.relay.counters
        assert counters.left_out == self.left_out
        assert counters.invalid == self.invalid
        assert counters.undeliverable == self.undeliverable
        assert counters.zombies == self.zombies

    def check_tasks(self, tasks: int) -> None:
        """Check how many tasks there are: one for each peer that is not closed, and their sessions."""
        living = sum(peer.acloses == 0 for peer in self.expected)
        assert living <= tasks <= 2 * living


def _tell(content: dict[str, Any]) -> Any:
    """Take of a message what the model predicts."""
    match content:
        case {"type": "connected", "deviceId": device_id, "deviceOnline": online}:
            return ("connected", device_id, online)
        case {"type": "numbered" | "status" as kind, "n": number}:
            return (kind, number)
        case {"type": "error", "error": "device_offline"}:
            return "device_offline_error"
        case {"type": "error", "error": error}:
            return error
        case {"type": "device_status", "deviceId": device_id, "online": online}:
            return ("device_status", device_id, online)
    return content["type"]


def run_in_trio(main: Callable[[], Any]) -> None:
    """Run a test's body with a clock that jumps, and a deadline."""

    async def within_a_deadline() -> None:
        with trio.fail_after(3600):
            await main()

    trio.run(within_a_deadline, clock=MockClock(autojump_threshold=0))


@settings(max_examples=100, deadline=None)
@given(steps=STEPS)
def test_a_relay_does_what_its_model_does(steps: Sequence[tuple[str, int, int, int]]) -> None:
    async def main() -> None:
        async with open_relay() as relay:
            await trio.sleep(0.5)
            model = Model(relay)
            before = trio.lowlevel.current_statistics().tasks_living
            for step in steps:
                await model.step(*step)
                await wait_all_tasks_blocked()
                model.check()
                model.check_tasks(trio.lowlevel.current_statistics().tasks_living - before)
            for at in model.devices:
                for peer in at.attached:
                    peer.leave()
            await trio.sleep(LIMITS.device_min_age_s + 1)
            assert trio.lowlevel.current_statistics().tasks_living == before
            assert (relay.device_count, relay.client_count, relay.attached) == (0, 0, set())
        assert all(peer.acloses == 1 for peer in model.expected)

    run_in_trio(main)


# The same without waiting between the steps: less can be said of each moment, but more can happen.

HASTY_ACTIONS: Final = (
    "device comes",
    "device comes",
    "device sneaks",
    "device leaves",
    "device says",
    "device says",
    "device chokes",
    "client comes",
    "client comes",
    "client leaves",
    "client says",
    "client says",
    "client chokes",
)
HASTY_STEPS: Final = st.lists(
    st.tuples(
        st.sampled_from(HASTY_ACTIONS), st.integers(0, DEVICES - 1), st.integers(0, 9), st.integers(0, 2)
    ),
    min_size=15,
    max_size=60,
)


@dataclass(eq=False)
class Speaker:
    """A peer that numbers what it says, so that nothing can be mistaken or out of order unnoticed."""

    peer: ScriptedPeer
    device_number: int
    number: int
    said: int = 0
    left: bool = False

    def say(self) -> None:
        self.said += 1
        kind = "status" if self.said % 2 else "said"  # of which the latter must reach everybody
        self.peer.say({"type": kind, "device": self.device_number, "by": self.number, "n": self.said})


class Crowd:
    """Everybody who was ever attached to a relay."""

    def __init__(self, relay: Relay) -> None:
        self.devices: list[Speaker] = []
        self.clients: list[Speaker] = []
        self._relay = relay

    async def step(self, action: str, device_number: int, pick: int, pause: int) -> None:
        kind, verb = action.split()
        speakers = self.devices if kind == "device" else self.clients
        if verb in {"comes", "sneaks"}:
            min_age_s = LIMITS.device_min_age_s if kind == "device" else 0.0
            peer = ScriptedPeer(goodbye_s=float(pick % 3), min_age_s=min_age_s, silent=verb == "sneaks")
            attach = self._relay.attach_device if kind == "device" else self._relay.attach_client
            attach(str(device_number), peer)
            speakers.append(Speaker(peer, device_number, len(speakers)))
        elif there := [speaker for speaker in speakers if speaker.device_number == device_number]:
            speaker = there[pick % len(there)]
            if verb == "leaves":
                speaker.peer.leave()
                speaker.left = True
            elif verb == "chokes":
                speaker.peer.refuses = not speaker.peer.refuses
                speaker.peer.backlog_bytes = int(speaker.peer.refuses)
            elif speaker.peer.acloses_begun == 0:
                speaker.say()
        if pause == 1:
            await trio.lowlevel.checkpoint()
        elif pause == 2:
            await trio.sleep(pick)

    def check(self) -> None:
        for client in self.clients:
            self._check_client(client)
        for device in self.devices:
            greeting, *received = device.peer.received
            assert greeting["type"] == "connected"
            said = [content for content in received if content["type"] in {"said", "status"}]
            assert {content["device"] for content in said} <= {device.device_number}
            for by in {content["by"] for content in said}:
                numbers = [content["n"] for content in said if content["by"] == by]
                assert numbers == sorted(set(numbers))
            if not device.left:
                assert device.peer.gone_at is not None
                assert device.peer.gone_at - device.peer.opened_at >= LIMITS.device_min_age_s

    def _check_client(self, client: Speaker) -> None:
        greeting, *received = client.peer.received
        assert (greeting["type"], greeting["deviceId"]) == ("connected", str(client.device_number))
        online = greeting["deviceOnline"]
        heard: list[tuple[int, int]] = []
        is_snapshot = False
        for content in received:
            if content["type"] in {"device_online", "device_offline"}:
                assert online != (content["type"] == "device_online"), "it is said when it changes"
                online = not online
            elif content["type"] in {"said", "status"}:
                assert content["device"] == client.device_number
                if not is_snapshot:
                    assert online
                    heard.append((content["by"], content["n"]))
            is_snapshot = "snapshotAgeMs" in content
        assert heard == sorted(set(heard)), "in order, once, and nothing of those who were replaced"

    def check_closes(self) -> None:
        """Check that the relay asked no device to end that was there for less than 8 s.

        Those that were never said to be there may be: their wire holds them until they are old enough.
        """
        spoke = {speaker for speaker in self.devices if speaker.said and not speaker.left}
        for device in spoke:
            code = device.peer.close_code
            young = [
                at for at in device.peer.closed_at if at - device.peer.opened_at < LIMITS.device_min_age_s
            ]
            if young:
                assert code == 4002
                later = [other for other in self.devices if other.number > device.number]
                assert any(other.device_number == device.device_number for other in later)


@settings(max_examples=100, deadline=None)
@given(steps=HASTY_STEPS, end=st.sampled_from(["drain", "leave", "cancel"]))
def test_nothing_is_lost_mixed_up_or_left_over_in_a_hurry(
    steps: Sequence[tuple[str, int, int, int]], end: str
) -> None:
    async def main() -> None:
        before = trio.lowlevel.current_statistics().tasks_living
        with trio.CancelScope() as scope:
            async with open_relay() as relay:
                crowd = Crowd(relay)
                for step in steps:
                    await crowd.step(*step)
                crowd.check_closes()
                if end == "drain":
                    await relay.drain()
                    assert relay.attached == set()
                elif end == "cancel":
                    scope.cancel()
        crowd.check()
        assert (relay.device_count, relay.client_count) == (0, 0)
        assert trio.lowlevel.current_statistics().tasks_living == before
        for speaker in (*crowd.devices, *crowd.clients):
            peer = speaker.peer
            assert (peer.runs, peer.acloses_begun, peer.acloses) == (1, 1, 1)

    run_in_trio(main)

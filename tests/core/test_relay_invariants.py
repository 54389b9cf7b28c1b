"""What must hold whatever happens, in whatever order: random lives of a relay against a model of it."""

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

import trio
from hypothesis import given, settings
from hypothesis import strategies as st
from trio.testing import MockClock, wait_all_tasks_blocked

from brewos_relay.core.relay import Relay, open_relay
from brewos_relay.messages import Message
from support.peers import ScriptedPeer

DEVICES: Final = 2
GARBAGE: Final = Message(b"[]")

# What happens more often, so that there is somebody whom the rest can happen to.
OFTEN: Final = ("device comes", "device says", "client comes", "client says")
SELDOM: Final = (
    "device leaves",
    "device fails",
    "replaced device says",
    "device chokes",
    "client leaves",
    "client fails",
    "client asks",
    "client chokes",
    "client breaks",
)
ACTIONS: Final = OFTEN * 4 + SELDOM
STEPS: Final = st.lists(
    st.tuples(st.sampled_from(ACTIONS), st.integers(0, DEVICES - 1), st.integers(0, 5), st.integers(1, 3)),
    min_size=15,  # short lives show little, and hypothesis prefers them
    max_size=60,
)


@dataclass
class Expected:
    """What the model knows of one device, and what each of its peers should have received."""

    device: ScriptedPeer | None = None
    replaced: list[ScriptedPeer] = field(default_factory=list)
    clients: list[ScriptedPeer] = field(default_factory=list)


class Model:
    """Drives a relay and says what should have come of it."""

    def __init__(self, relay: Relay) -> None:
        self.relay = relay
        self.devices = [Expected() for _ in range(DEVICES)]
        self.expected: dict[ScriptedPeer, list[Any]] = {}
        self.left_out = self.invalid = self.undeliverable = 0
        self._numbers = itertools.count()

    def step(self, action: str, number: int, pick: int, count: int) -> None:
        at = self.devices[number]
        client = at.clients[pick % len(at.clients)] if at.clients else None
        device_id = f"BRW-{number:08X}"
        match action:
            case "device comes":
                self._device_comes(at, device_id)
            case "device leaves" | "device fails" if at.device is not None:
                self._go(at.device, action)
                at.device = None
                self._broadcast(at, ["device_offline"])
            case "device says" if at.device is not None:
                said = self._say(at.device, count, garbage=pick == 0)
                self._broadcast(at, said)
            case "replaced device says" if at.replaced:
                at.replaced[pick % len(at.replaced)].say({"type": "status", "n": next(self._numbers)})
            case "device chokes" if at.device is not None:
                at.device.refuses = not at.device.refuses
            case "client comes":
                client = self._new_peer()
                self.relay.attach_client(device_id, client)
                at.clients.append(client)
                self.expected[client].append(("connected", device_id, at.device is not None))
            case "client leaves" | "client fails" if client is not None:
                self._go(client, action)
                at.clients.remove(client)
            case "client says" if client is not None:
                self._client_says(at, client, count, garbage=pick == 0)
            case "client asks" if client is not None and at.device is None:
                client.say({"type": "request_state"})
                self.undeliverable += 1
                self._expect(client, [("device_status", device_id)])
            case "client chokes" if client is not None:
                client.refuses = not client.refuses
            case "client breaks" if client is not None:
                self._client_breaks(at, client)

    def _new_peer(self) -> ScriptedPeer:
        peer = ScriptedPeer()
        self.expected[peer] = []
        return peer

    def _device_comes(self, at: Expected, device_id: str) -> None:
        device = self._new_peer()
        self.relay.attach_device(device_id, device)
        self.expected[device].append("connected")
        if at.device is None:
            self._broadcast(at, ["device_online"])
        else:
            at.replaced.append(at.device)
        at.device = device

    def _client_says(self, at: Expected, client: ScriptedPeer, count: int, *, garbage: bool) -> None:
        commands = self._say(client, count, garbage=garbage)
        answers = ["invalid_message"] if garbage else []
        if at.device is None:
            answers += ["device_offline"] * count
            self.undeliverable += count
        elif at.device.refuses:
            answers.append("device_busy")
            self.undeliverable += count
        else:
            self.expected[at.device] += commands
        self._expect(client, answers)

    def _client_breaks(self, at: Expected, client: ScriptedPeer) -> None:
        """Let a client fail in `deliver`, which shows when the device speaks next."""
        if at.device is None:
            return
        client.deliver_error = ValueError("scripted")
        at.clients.remove(client)
        self._broadcast(at, self._say(at.device, 1, garbage=False))

    def _say(self, peer: ScriptedPeer, count: int, *, garbage: bool) -> list[Any]:
        contents = [{"type": "numbered", "n": next(self._numbers)} for _ in range(count)]
        peer.say(*([GARBAGE] if garbage else []), *contents)
        self.invalid += garbage
        return [("numbered", content["n"]) for content in contents]

    def _go(self, peer: ScriptedPeer, action: str) -> None:
        if action.endswith("fails"):
            peer.fail(ValueError("scripted"))
        else:
            peer.leave()

    def _broadcast(self, at: Expected, said: list[Any]) -> None:
        for client in at.clients:
            self.left_out += len(said) * client.refuses
            self._expect(client, said)

    def _expect(self, client: ScriptedPeer, said: list[Any]) -> None:
        if not client.refuses:
            self.expected[client] += said

    def check(self) -> None:
        """Compare everything that can be seen with what it should be."""
        for peer, expected in self.expected.items():
            assert [_tell(content) for content in peer.received] == expected
        attached = [at.device for at in self.devices if at.device] + [
            client for at in self.devices for client in at.clients
        ]
        for peer in self.expected:
            assert peer.runs == 1
            assert peer.acloses == (peer not in attached)
        for at in self.devices:
            assert {peer.close_code for peer in at.replaced} <= {4002}
        for number, at in enumerate(self.devices):
            assert self.relay.is_online(f"BRW-{number:08X}") == (at.device is not None)
        assert self.relay.device_count == sum(at.device is not None for at in self.devices)
        assert self.relay.client_count == sum(len(at.clients) for at in self.devices)
        counters = self.relay.counters
        assert counters.left_out == self.left_out
        assert counters.invalid == self.invalid
        assert counters.undeliverable == self.undeliverable

    def tasks(self) -> int:
        """Say how many tasks there should be: one for each session, and one for each peer in it."""
        peers = [[*at.clients, *([at.device] if at.device else [])] for at in self.devices]
        return sum(1 + len(those) for those in peers if those)


def _tell(content: dict[str, Any]) -> Any:
    """Take of a message what the model predicts."""
    match content:
        case {"type": "connected", "deviceId": device_id, "deviceOnline": online}:
            return ("connected", device_id, online)
        case {"type": "numbered", "n": number}:
            return ("numbered", number)
        case {"type": "error", "error": error}:
            return error
        case {"type": "device_status", "deviceId": device_id, "online": False}:
            return ("device_status", device_id)
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
            model = Model(relay)
            before = trio.lowlevel.current_statistics().tasks_living
            for step in steps:
                model.step(*step)
                await wait_all_tasks_blocked()
                model.check()
                assert trio.lowlevel.current_statistics().tasks_living == before + model.tasks()
            for at in model.devices:
                for peer in [*at.clients, *([at.device] if at.device else [])]:
                    peer.leave()
            await wait_all_tasks_blocked()
            assert trio.lowlevel.current_statistics().tasks_living == before
            assert (relay.device_count, relay.client_count) == (0, 0)
        assert all(peer.acloses == 1 for peer in model.expected)

    run_in_trio(main)


# The same without waiting between the steps: less can be said of each moment, but more can happen.

HASTY_ACTIONS: Final = (
    "device comes",
    "device leaves",
    "device says",
    "client comes",
    "client leaves",
    "client says",
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

    def say(self) -> None:
        self.said += 1
        self.peer.say({"type": "said", "device": self.device_number, "by": self.number, "n": self.said})


class Crowd:
    """Everybody who was ever attached to a relay."""

    def __init__(self, relay: Relay) -> None:
        self.devices: list[Speaker] = []
        self.clients: list[Speaker] = []
        self._relay = relay

    async def step(self, action: str, device_number: int, pick: int, pause: int) -> None:
        kind, verb = action.split()
        speakers = self.devices if kind == "device" else self.clients
        if verb == "comes":
            peer = ScriptedPeer(goodbye_s=float(pick % 3))
            attach = self._relay.attach_device if kind == "device" else self._relay.attach_client
            attach(str(device_number), peer)
            speakers.append(Speaker(peer, device_number, len(speakers)))
        elif there := [speaker for speaker in speakers if speaker.device_number == device_number]:
            speaker = there[pick % len(there)]
            if verb == "leaves":
                speaker.peer.leave()
            elif speaker.peer.acloses_begun == 0:
                speaker.say()
        if pause == 1:
            await trio.lowlevel.checkpoint()
        elif pause == 2:
            await trio.sleep(pick)

    def check(self) -> None:
        for client in self.clients:
            greeting, *received = client.peer.received
            assert (greeting["type"], greeting["deviceId"]) == ("connected", str(client.device_number))
            online = greeting["deviceOnline"]
            heard = [(0, 0)]
            for content in received:
                if content["type"] in {"device_online", "device_offline"}:
                    assert online != (content["type"] == "device_online"), "it is said when it changes"
                    online = not online
                elif content["type"] == "said":
                    assert online
                    assert content["device"] == client.device_number
                    heard.append((content["by"], content["n"]))
            assert heard[1:] == sorted(set(heard[1:])), (
                "in order, once, and nothing of those who were replaced"
            )
        for device in self.devices:
            greeting, *received = device.peer.received
            assert greeting["type"] == "connected"
            assert {content["device"] for content in received} <= {device.device_number}
            for by in {content["by"] for content in received}:
                numbers = [content["n"] for content in received if content["by"] == by]
                assert numbers == sorted(set(numbers))


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
                if end == "drain":
                    await relay.drain()
                elif end == "cancel":
                    scope.cancel()
        crowd.check()
        assert (relay.device_count, relay.client_count) == (0, 0)
        assert trio.lowlevel.current_statistics().tasks_living == before
        for speaker in (*crowd.devices, *crowd.clients):
            peer = speaker.peer
            assert (peer.runs, peer.acloses_begun, peer.acloses) == (1, 1, 1)

    run_in_trio(main)

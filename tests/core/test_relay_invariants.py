"""Invariants of the relay: random sequences of events, compared with a model."""

import itertools
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Final

import trio
from hypothesis import given, settings
from hypothesis import strategies as st
from trio.testing import MockClock, wait_all_tasks_blocked

from brewos_relay.core.audience import CHECK_EVERY_S
from brewos_relay.core.grant import FULL, Grant
from brewos_relay.core.limits import Limits
from brewos_relay.core.relay import Relay, open_relay
from brewos_relay.delivery import Delivery
from brewos_relay.dialect import BREWOS
from brewos_relay.errors import CloseCode
from brewos_relay.messages import Message
from support.peers import ScriptedPeer

DEVICES: Final = 2
GARBAGE: Final = Message(b"[]")
LIMITS: Final = Limits()
SAYS_ALL_WITHIN_S: Final = 0.75

# Frequent steps, so that there are peers for the rare ones.
SAID: Final = "getConfig"
"""A type that members may send, that may wait, and that is no status."""
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
    "client manages",
    "grant changes",
    "access is taken",
    "login ends",
    "key ends",
)
ACTIONS: Final = OFTEN * 4 + SELDOM * 2
STEPS: Final = st.lists(
    st.tuples(st.sampled_from(ACTIONS), st.integers(0, DEVICES - 1), st.integers(0, 5), st.integers(1, 3)),
    min_size=15,  # short sequences show little, and hypothesis prefers them
    max_size=60,
)


USERS: Final = ("ada", "bob", "cem")
LOGINS: Final = ("one", "other")
KEYS: Final = (b"old", b"new")
ROLES: Final = ((True, True), (True, True), (True, False), (False, False), (False, True))


def grant_of(pick: int, count: int) -> tuple[Grant, float]:
    """Choose a grant and when it ends (trio time).

    Ends are between two steps: some before the relay runs its checks, some after.
    """
    may_command, may_manage = ROLES[(pick + count) % len(ROLES)]
    lasts_s = pick + 0.5 * (count % 2) + 0.25 if pick % 3 == 0 else math.inf
    grant = Grant(
        user_id=USERS[pick % len(USERS)],
        session_id=LOGINS[count % len(LOGINS)],
        may_command=may_command,
        may_manage=may_manage,
        until_s=time.time() + lasts_s,
    )
    return grant, trio.current_time() + lasts_s


@dataclass
class Access:
    """The grant of a client in the model."""

    grant: Grant
    ends_at: float

    def allows(self, *, managing: bool = False) -> bool:
        in_time = self.ends_at > trio.current_time()
        return in_time and self.grant.may_command and (self.grant.may_manage or not managing)


@dataclass
class Waiting:
    """A command that waits for the device."""

    sender: ScriptedPeer
    told: Any
    expires_at: float


@dataclass
class Expected:
    """One device in the model, and the messages that each of its peers should have received."""

    device_id: str
    device: ScriptedPeer | None = None
    arriving: ScriptedPeer | None = None
    replaced: list[ScriptedPeer] = field(default_factory=list)
    """Connections of the device that the relay has closed, replaced or silent."""
    keyless: list[ScriptedPeer] = field(default_factory=list)
    """Connections that it has closed because of their key."""
    clients: list[ScriptedPeer] = field(default_factory=list)
    lagging: set[ScriptedPeer] = field(default_factory=set)
    status: Any = None
    is_told: bool = True
    """Whether clients are told of it: just after an absence, the machine may send all of it itself."""
    tell_at: float = math.inf
    gone_at: float = -math.inf
    asked_at: float = -math.inf
    pending: list[Waiting] = field(default_factory=list)

    @property
    def attached(self) -> list[ScriptedPeer]:
        return [*self.clients, *(device for device in (self.device, self.arriving) if device)]

    def known(self) -> list[Any]:
        """Return the state that a client is told."""
        if self.status is None:
            return []
        online = ("device_status", self.device_id, self.device is not None)
        return [online, *([self.status] if self.is_told else [])]

    def goes(self) -> None:
        self.device, self.gone_at, self.tell_at = None, trio.current_time(), math.inf


class Model:
    """Drives a relay, and predicts the result.

    Steps run half a second after the checks of the relay, so that the order is certain.
    """

    def __init__(self, relay: Relay) -> None:
        self.relay = relay
        self.devices = [Expected(f"BRW-{number:08X}") for number in range(DEVICES)]
        self.expected: dict[ScriptedPeer, list[Any]] = {}
        self.stood: set[ScriptedPeer] = set()
        """Connections that stood for their device at some time."""
        self.left: set[ScriptedPeer] = set()
        """Peers that ended by themselves."""
        self.access: dict[ScriptedPeer, Access] = {}
        self.logins: dict[ScriptedPeer, str | None] = {}
        """The login session of each client, which no change of its grant replaces."""
        self.ended: dict[ScriptedPeer, int] = {}
        """Clients that the relay has closed, with the code."""
        self.keys: dict[ScriptedPeer, bytes] = {}
        self.refused: set[int] = set()
        """The numbers of messages that must not reach a device."""
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
                self._device_comes(at, KEYS[pick % 2], silent=action == "zombie comes")
            case "device leaves" | "device fails" if at.device is not None:
                self._go(at.device, action)
                at.goes()
                self._tell(at, "device_offline")
            case "device says" if at.device is not None:
                self._broadcast(at, self._say(at.device, count, garbage=pick == 0))
            case "device tells" if at.device is not None:
                at.status, at.is_told, at.tell_at = ("status", next(self._numbers)), True, math.inf
                at.device.say({"type": "status", "n": at.status[1]})
                self._broadcast(at, [at.status])
            case "replaced device says" if at.replaced or at.keyless:
                ended = at.replaced + at.keyless
                ended[pick % len(ended)].say({"type": "status", "n": next(self._numbers)})
            case "device chokes" if at.device is not None:
                at.device.refuses = not at.device.refuses
            case "client comes":
                client = self._new_peer()
                grant, ends_at = grant_of(pick, count)
                self.access[client] = Access(grant, ends_at)
                self.logins[client] = grant.session_id
                self.relay.attach_client(at.device_id, client, grant=grant)
                at.clients.append(client)
                self.expected[client].append(("connected", at.device_id, at.device is not None))
                self.expected[client] += at.known()
            case "client leaves" | "client fails" if client is not None:
                self._go(client, action)
                self._forget(at, client)
            case "client says" if client is not None:
                self._client_says(at, client, count, garbage=pick == 0)
            case "client manages" if client is not None:
                self._client_manages(at, client)
            case "grant changes":
                self._grant_changes(at, pick, count)
            case "access is taken":
                self._access_is_taken(at, USERS[pick % len(USERS)])
            case "login ends":
                self._login_ends(USERS[pick % len(USERS)], LOGINS[count % len(LOGINS)])
            case "key ends":
                self._key_ends(at, KEYS[pick % 2])
            case "client asks" if client is not None:
                self._client_asks(at, client)
            case "client chokes" if client is not None:
                client.refuses = not client.refuses
                client.backlog_bytes = int(client.refuses)
            case "client breaks" if client is not None and at.device is not None:
                self._client_breaks(at, at.device, client)
        for each in self.devices:
            if not each.attached:
                each.pending.clear()
                each.asked_at = -math.inf

    def _new_peer(self, **options: Any) -> ScriptedPeer:
        peer = ScriptedPeer(**options)
        self.expected[peer] = []
        return peer

    # Devices

    def _device_comes(self, at: Expected, key: bytes, *, silent: bool) -> None:
        device = self._new_peer(min_age_s=LIMITS.device_min_age_s, silent=silent)
        self.keys[device] = key
        self.relay.attach_device(at.device_id, device, credential=key)
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
            if at.status is not None:
                at.is_told, at.tell_at = False, now + SAYS_ALL_WITHIN_S
        else:
            at.replaced.append(at.device)
        at.device, at.arriving = at.arriving, None
        self.stood.add(at.device)
        if at.clients:
            self.expected[at.device].append("request_state")
            at.asked_at = now
        self._expire(at, now)
        for waiting in at.pending:
            if self.access[waiting.sender].allows():
                self.expected[at.device].append(waiting.told)
                self._answer(at, waiting.sender, "queued_message_sent")
            else:
                self.refused.add(waiting.told[1])
                self._answer(at, waiting.sender, "forbidden")
        at.pending.clear()

    def _key_ends(self, at: Expected, key: bytes) -> None:
        """Close the connections that used another key."""
        self.relay.end_device(at.device_id, unless=[key])
        if at.arriving is not None and self.keys[at.arriving] != key:
            at.keyless.append(at.arriving)
            at.arriving = None
        if at.device is not None and self.keys[at.device] != key:
            at.keyless.append(at.device)
            at.goes()
            self._tell(at, "device_offline")
        if at.device is None:
            at.status = None  # it was the state of a device with another key

    # Clients

    def _client_says(self, at: Expected, client: ScriptedPeer, count: int, *, garbage: bool) -> None:
        commands = self._say(client, count, garbage=garbage)
        answers: list[Any] = ["invalid_message"] if garbage else []
        if not self.access[client].allows():
            self.refused.update(number for _, number in commands)
            answers += ["forbidden"] * count
        elif at.device is None:
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

    def _client_manages(self, at: Expected, client: ScriptedPeer) -> None:
        """Let a client send a command for owners; it never waits for an absent device."""
        told = ("command", next(self._numbers))
        client.say({"type": "command", "cmd": "restart", "n": told[1]})
        if not self.access[client].allows(managing=True):
            self.refused.add(told[1])
            self.expected[client].append("forbidden")
        elif at.device is None or at.device.refuses:
            self.undeliverable += 1
            self.expected[client].append("device_busy" if at.device else "device_offline_error")
        else:
            self.expected[at.device].append(told)

    def _grant_changes(self, at: Expected, pick: int, count: int) -> None:
        grant, ends_at = grant_of(pick, count)
        assert grant.user_id is not None
        self.relay.set_grant(at.device_id, grant.user_id, grant)
        for client in {*at.clients, *(waiting.sender for waiting in at.pending)}:
            if self._is_of(client, grant.user_id) and self.access[client].ends_at > -math.inf:
                self.access[client] = Access(grant, ends_at)

    def _access_is_taken(self, at: Expected, user_id: str) -> None:
        self.relay.set_grant(at.device_id, user_id, None)
        for client in {*at.clients, *(waiting.sender for waiting in at.pending)}:
            if self._is_of(client, user_id):
                self._end(at, client, CloseCode.ACCESS_ENDED)

    def _login_ends(self, user_id: str, login: str) -> None:
        """End one login session of a user, who may have clients of others."""
        self.relay.end_clients(
            lambda grant: (grant.user_id, grant.session_id) == (user_id, login),
            code=4002,
            reason="logged out",
        )
        for at in self.devices:
            for client in {*at.clients, *(waiting.sender for waiting in at.pending)}:
                if self._is_of(client, user_id) and self.logins[client] == login:
                    self._end(at, client, 4002)

    def _is_of(self, client: ScriptedPeer, user_id: str) -> bool:
        return self.access[client].grant.user_id == user_id

    def _end(self, at: Expected, client: ScriptedPeer, code: int) -> None:
        self.access[client].ends_at = -math.inf
        if client in at.clients:
            self.ended[client] = code
            self._forget(at, client)

    def _client_asks(self, at: Expected, client: ScriptedPeer) -> None:
        client.say({"type": "request_state"})
        now = trio.current_time()
        if self.access[client].ends_at <= now:
            self.expected[client].append("forbidden")
        elif at.device is None:
            self.expected[client].append(("device_status", at.device_id, False))
        elif now - at.asked_at >= LIMITS.state_request_s:
            at.asked_at = now
            if at.device.refuses:
                self.undeliverable += 1
                self.expected[client].append("device_busy")
            else:
                self.expected[at.device].append("request_state")

    def _client_breaks(self, at: Expected, device: ScriptedPeer, client: ScriptedPeer) -> None:
        """Let a client fail in `deliver`, which shows when the device sends next."""
        client.deliver_error = ValueError("scripted")
        self.left_out += client in at.lagging
        self._forget(at, client)
        self._broadcast(at, self._say(device, 1, garbage=False))

    def _forget(self, at: Expected, client: ScriptedPeer) -> None:
        at.clients.remove(client)
        at.lagging.discard(client)

    # All peers

    def _say(self, peer: ScriptedPeer, count: int, *, garbage: bool) -> list[Any]:
        contents = [{"type": SAID, "n": next(self._numbers)} for _ in range(count)]
        peer.say(*([GARBAGE] if garbage else []), *contents)
        self.invalid += garbage
        return [(SAID, content["n"]) for content in contents]

    def _go(self, peer: ScriptedPeer, action: str) -> None:
        self.left.add(peer)
        if action.endswith("fails"):
            peer.fail(ValueError("scripted"))
        else:
            peer.leave()

    def _broadcast(self, at: Expected, said: list[Any]) -> None:
        """Expect messages of the device; a lagging client gets only messages that are not repeated."""
        for client in at.clients:
            if client.refuses:
                at.lagging.add(client)
            heard = [one for one in said if client not in at.lagging or one[0] == SAID]
            self.left_out += len(said) - len(heard)
            self.expected[client] += heard

    def _tell(self, at: Expected, told: Any) -> None:
        for client in at.clients:
            self.expected[client].append(told)

    def _answer(self, at: Expected, client: ScriptedPeer, told: Any) -> None:
        """Expect an answer that came after its question, if the client is still attached."""
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
        """Expect the result of the periodic checks, which ran at `now`."""
        zombie = at.arriving
        if zombie is not None and zombie.silent:
            if now - zombie.opened_at >= LIMITS.device_first_frame_s:
                self.zombies += 1
                at.replaced.append(zombie)
                at.arriving = None
        else:
            self._arrives(at, now)
        if now >= at.tell_at:
            at.is_told, at.tell_at = True, math.inf
            for told in at.known():
                self._tell(at, told)
        self._expire(at, now)
        for client in [client for client in at.clients if self.access[client].ends_at <= now]:
            self._end(at, client, CloseCode.ACCESS_ENDED)
        for client in [client for client in at.clients if client in at.lagging and not client.refuses]:
            at.lagging.discard(client)
            self.expected[client] += at.known() or [("device_status", at.device_id, at.device is not None)]
        if at.device is None and now - at.gone_at >= LIMITS.snapshot_s:
            at.status, at.is_told = None, True

    def _expire(self, at: Expected, now: float) -> None:
        expired = [waiting for waiting in at.pending if waiting.expires_at <= now]
        at.pending = [waiting for waiting in at.pending if waiting.expires_at > now]
        for waiting in expired:
            self.undeliverable += 1
            self._answer(at, waiting.sender, "device_offline_error")

    # Comparison

    def check(self) -> None:
        """Compare everything that is visible with the model."""
        now = trio.current_time()
        attached = {peer for at in self.devices for peer in at.attached}
        for peer, expected in self.expected.items():
            assert [_tell(content) for content in peer.received if content["type"] != "keepalive"] == expected
            assert peer.runs == 1
            held = peer not in self.left and now - peer.opened_at < peer.min_age_s
            assert peer.acloses_begun == (peer not in attached), "each is closed once"
            assert peer.acloses == (peer not in attached and not held)
        for peer, code in self.ended.items():
            assert peer.close_code == code
        for peer in self.keys:
            assert self.refused.isdisjoint(content.get("n") for content in peer.received)
            if peer not in self.left and peer.gone_at is not None:
                assert peer.gone_at - peer.opened_at >= LIMITS.device_min_age_s
        keyless = {peer for at in self.devices for peer in at.keyless}
        for peer in self.stood - self.left - keyless:
            assert all(at - peer.opened_at >= LIMITS.device_min_age_s for at in peer.closed_at)
        for at in self.devices:
            assert {peer.close_code for peer in at.replaced} <= {4002, 1008}
            assert {peer.close_code for peer in at.keyless} <= {4003}
            assert self.relay.is_online(at.device_id) == (at.device is not None)
        assert self.relay.device_count == sum(at.device is not None for at in self.devices)
        assert self.relay.client_count == sum(len(at.clients) for at in self.devices)
        counters = self.relay.counters
        assert counters.left_out == self.left_out
        assert counters.invalid == self.invalid
        assert counters.undeliverable == self.undeliverable
        assert counters.zombies == self.zombies

    def check_tasks(self, tasks: int) -> None:
        """Check the number of tasks: one for each session, and one for each peer that has not ended."""
        living = sum(peer.acloses == 0 for peer in self.expected)
        assert living <= tasks <= 2 * living


def _tell(content: dict[str, Any]) -> Any:
    """Return the parts of a message that the model predicts."""
    match content:
        case {"type": "connected", "deviceId": device_id, "deviceOnline": online}:
            return ("connected", device_id, online)
        case {"type": "getConfig" | "status" | "command" as kind, "n": number}:
            return (kind, number)
        case {"type": "error", "error": "device_offline"}:
            return "device_offline_error"
        case {"type": "error", "error": error}:
            return error
        case {"type": "device_status", "deviceId": device_id, "online": online}:
            return ("device_status", device_id, online)
    return content["type"]


def run_in_trio(main: Callable[[], Any]) -> None:
    """Run the body of a test with an autojump clock and a deadline."""

    async def within_a_deadline() -> None:
        with trio.fail_after(3600):
            await main()

    trio.run(within_a_deadline, clock=MockClock(autojump_threshold=0))


@settings(max_examples=100)
@given(steps=STEPS)
def test_relay_behaves_as_its_model(steps: Sequence[tuple[str, int, int, int]]) -> None:
    async def main() -> None:
        async with open_relay(dialect=BREWOS) as relay:
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


# The same without waiting between the steps: less is certain at each moment, but more can happen.

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
    "client manages",
    "client manages",
    "client chokes",
    "grant changes",
    "grant changes",
    "access taken",
    "login ends",
    "key ends",
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
    """A peer that numbers its messages, so that no confusion or change of order stays unnoticed."""

    peer: ScriptedPeer
    device_number: int
    number: int
    said: int = 0
    left: bool = False
    ended_at: float = math.inf
    """When the relay was told to end it."""
    grant: Grant = FULL
    key: bytes = b""
    ends_at: float = math.inf
    """When its access expires."""

    def say(self, kind: str | None = None) -> None:
        self.said += 1
        kind = kind or ("status" if self.said % 2 else SAID)  # the latter have to reach every client
        self.peer.say({"type": kind, "device": self.device_number, "by": self.number, "n": self.said})

    def may(self, kind: str) -> bool:
        """Whether its messages may reach the device at this moment."""
        in_time = trio.current_time() < min(self.ends_at, self.ended_at)
        return in_time and self.grant.may_command and (self.grant.may_manage or kind == SAID)


class Watched(ScriptedPeer):
    """A peer that checks each message at the moment when it gets it."""

    def __init__(self, look: Callable[[dict[str, Any]], None], **options: Any) -> None:
        super().__init__(**options)
        self._look = look

    def deliver(self, delivery: Delivery, keep: bool = False) -> bool:
        taken = super().deliver(delivery, keep)
        if taken:
            for content in self.received[-len(delivery.messages) :]:
                self._look(content)
        return taken


class Crowd:
    """Every peer that was ever attached to a relay."""

    def __init__(self, relay: Relay) -> None:
        self.devices: list[Speaker] = []
        self.clients: list[Speaker] = []
        self.trespasses: list[dict[str, Any]] = []
        """Messages from clients that had no right to send them at that moment."""
        self._relay = relay

    async def step(self, action: str, device_number: int, pick: int, pause: int) -> None:
        kind, verb = action.split()
        speakers = self.devices if kind == "device" else self.clients
        if verb in {"comes", "sneaks"}:
            self._comes(kind, device_number, pick, pause, silent=verb == "sneaks")
        elif kind in {"grant", "access", "login", "key"}:
            self._changes(kind, device_number, pick, pause)
        elif there := [speaker for speaker in speakers if speaker.device_number == device_number]:
            speaker = there[pick % len(there)]
            if verb == "leaves":
                speaker.peer.leave()
                speaker.left = True
            elif verb == "chokes":
                speaker.peer.refuses = not speaker.peer.refuses
                speaker.peer.backlog_bytes = int(speaker.peer.refuses)
            elif speaker.peer.acloses_begun == 0:
                speaker.say("restart" if verb == "manages" else None)
        if pause == 1:
            await trio.lowlevel.checkpoint()
        elif pause == 2:
            await trio.sleep(pick)

    def _comes(self, kind: str, device_number: int, pick: int, pause: int, *, silent: bool) -> None:
        speakers = self.devices if kind == "device" else self.clients
        goodbye_s, number = float(pick % 3), len(speakers)
        if kind == "device":
            key = KEYS[pick % 2]
            peer = Watched(
                self._look_at_command, goodbye_s=goodbye_s, min_age_s=LIMITS.device_min_age_s, silent=silent
            )
            speakers.append(Speaker(peer, device_number, number, key=key))
            self._relay.attach_device(str(device_number), peer, credential=key)
        else:
            grant, ends_at = grant_of(pick, pause)
            peer = Watched(self._look_at_report, goodbye_s=goodbye_s, silent=silent)
            speakers.append(Speaker(peer, device_number, number, grant=grant, ends_at=ends_at))
            self._relay.attach_client(str(device_number), peer, grant=grant)

    def _changes(self, what: str, device_number: int, pick: int, pause: int) -> None:
        """Change the rights of a user; later messages must follow the new ones."""
        now = trio.current_time()
        grant, ends_at = grant_of(pick, pause)
        user, login, key = grant.user_id, grant.session_id, KEYS[pick % 2]
        assert user is not None
        theirs = [client for client in self.clients if client.grant.user_id == user]
        here = [client for client in theirs if client.device_number == device_number]
        if what == "grant":
            self._relay.set_grant(str(device_number), user, grant)
            for client in here:
                client.grant, client.ends_at = replace(grant, session_id=client.grant.session_id), ends_at
        elif what == "access":
            self._relay.set_grant(str(device_number), user, None)
            for client in here:
                client.ended_at = min(client.ended_at, now)
        elif what == "login":
            self._relay.end_clients(
                lambda grant: (grant.user_id, grant.session_id) == (user, login), code=4002, reason="bye"
            )
            for client in theirs:
                if client.grant.session_id == login:
                    client.ended_at = min(client.ended_at, now)
        else:
            self._relay.end_device(str(device_number), unless=[key])
            for device in self.devices:
                if device.device_number == device_number and device.key != key:
                    device.ended_at = min(device.ended_at, now)

    def _look_at_command(self, content: dict[str, Any]) -> None:
        if "by" in content:
            client = self.clients[content["by"]]
            if not client.may(content["type"]):
                self.trespasses.append(content)

    def _look_at_report(self, content: dict[str, Any]) -> None:
        if content["type"] == SAID and self.devices[content["by"]].ended_at < math.inf:
            self.trespasses.append(content)

    def check(self) -> None:
        assert self.trespasses == []
        for client in self.clients:
            self._check_client(client)
        for device in self.devices:
            greeting, *received = device.peer.received
            assert greeting["type"] == "connected"
            said = [content for content in received if content["type"] in {SAID, "status", "restart"}]
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
                assert online != (content["type"] == "device_online"), "a change is announced"
                online = not online
            elif content["type"] in {SAID, "status"}:
                assert content["device"] == client.device_number
                if not is_snapshot:
                    assert online
                    heard.append((content["by"], content["n"]))
            is_snapshot = "snapshotAgeMs" in content
        assert heard == sorted(set(heard)), "in order, once, and none from replaced connections"
        gone_at = client.peer.gone_at
        assert gone_at is not None
        if not client.left and gone_at > client.ended_at:
            assert client.peer.closed_at[0] <= client.ended_at
            assert gone_at <= client.ended_at + client.peer.goodbye_s
        late_at = client.ends_at + CHECK_EVERY_S + 0.01
        if not client.left and gone_at > late_at + client.peer.goodbye_s:
            assert client.peer.closed_at[0] <= late_at

    def check_closes(self) -> None:
        """Check that the relay told no device to end within its first 8 s.

        Devices that never came online are excluded: their connection holds them until they are old enough.
        """
        for device in self.devices:
            if device.ended_at < math.inf and not device.left:
                assert device.peer.closes, "a device with a revoked key is closed"
                assert device.peer.closed_at[0] <= device.ended_at
        spoke = {speaker for speaker in self.devices if speaker.said and not speaker.left}
        for device in spoke:
            code = device.peer.close_code
            young = [
                at for at in device.peer.closed_at if at - device.peer.opened_at < LIMITS.device_min_age_s
            ]
            if young and device.ended_at == math.inf:
                assert code == 4002
                later = [other for other in self.devices if other.number > device.number]
                assert any(other.device_number == device.device_number for other in later)


@settings(max_examples=100)
@given(steps=HASTY_STEPS, end=st.sampled_from(["drain", "leave", "cancel"]))
def test_nothing_is_lost_mixed_up_or_left_over_in_a_hurry(
    steps: Sequence[tuple[str, int, int, int]], end: str
) -> None:
    async def main() -> None:
        before = trio.lowlevel.current_statistics().tasks_living
        with trio.CancelScope() as scope:
            async with open_relay(dialect=BREWOS) as relay:
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

"""Run the data path with random input. Compiled or interpreted, the outcomes must be the same.

    BREWOS_RELAY_COMPILED=0 python tests/fuzz/outcomes.py SEED COUNT

prints the outcomes of `COUNT` seeds, in lines of JSON. They depend on nothing but the seed: not on
clocks, and not on the order of Trio's tasks.
"""

import json
import logging
import os
import secrets
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from itertools import count
from pathlib import Path
from random import Random
from typing import Any, Final
from unittest.mock import patch

import trio
from trio.testing import MockClock, wait_all_tasks_blocked

sys.path.insert(0, str(Path(__file__).parents[1]))  # this is run by its path

from brewos_relay.core.attachment import Attachment
from brewos_relay.core.counters import Counters
from brewos_relay.core.grant import Grant
from brewos_relay.core.limits import Limits
from brewos_relay.core.rate_limits import TokenBucket
from brewos_relay.core.relay import Relay, open_relay
from brewos_relay.core.throttle import Throttle
from brewos_relay.dialect import BREWOS
from brewos_relay.errors import TokenRejected
from brewos_relay.messages import Message, encode
from brewos_relay.wire.connection import client_connection, device_connection
from brewos_relay.wire.frames import FrameParser, Parsed, encode_close, encode_frame, encode_pongs, unmask
from brewos_relay.wire.poller import Poller
from brewos_relay.wire.polling import open_poller
from brewos_relay.wire.transport import Transport
from fuzz import corpus
from fuzz.mutation import Mutator
from support.sockets import fill, read_available
from support.wire_client import BINARY, TEXT, frame

DEVICES: Final = ("BRW-00000001", "BRW-00000002")
EPOCH_S: Final = 1_800_000_000
COUNTED: Final = tuple(
    name for name in dir(Counters) if name[0] != "_" and name not in ("count_end", "latency")
)
PARSED: Final = (
    "ending",
    "has_control",
    "has_pong",
    "incomplete",
    "oversized",
    "pings",
    "skipped_bytes",
    "small",
)
ODD_NUMBERS: Final = (-1, 0, 1, 2**15, 2**16, 2**31, 2**62, 2**63 - 1, 2**63, 2**64, -(2**63) - 1, 2**200)
ODD_FIELDS: Final = (
    "seq",
    "notAfter",
    "timestamp",
    "temp",
    "pressure",
    "machine",
    "requestId",
    "level",
    "cmd",
)
ODD_TIMES: Final = (0, 0.0, 0.5, 3, 10**6, 1e300, float("inf"), -5)
REASONS: Final = ("", "é" * 70, "\ud800", "x" * 123, "☕" * 50)
MOST_WAIT_S: Final = 60.0
PAUSES_S: Final = (0.01, 0.5, 1.0, 2.5, 7.0, 12.0, 50.0)


def outcome_of(call: Callable[..., object], *args: object, **named: object) -> str:
    """Return the result of a call, or its exception. A whole number is the same as a float."""
    try:
        result = call(*args, **named)
        return repr(float(result) if type(result) is int else result)
    except Exception as error:
        return f"{type(error).__name__}: {error}"


def frames(mutator: Mutator) -> object:
    """Parse frames that come in pieces."""
    most_bytes = mutator.chance.choice((0, 10, 2048, 2**40, 2**70))
    parser = FrameParser(max_message_bytes=most_bytes, skip_oversize=mutator.chance.random() < 0.5)
    results: list[object] = []
    for piece in mutator.split(mutator.mutated(corpus.FRAMES)):
        parsed = parser.feed(piece)
        if isinstance(parsed, Parsed):
            results.append({name: repr(getattr(parsed, name)) for name in PARSED})
        messages = parsed.messages if isinstance(parsed, Parsed) else parsed
        results += [(message.is_text, message.payload.hex()) for message in messages]
    return results


def values(mutator: Mutator) -> object:
    """Call functions with numbers and texts at the limits of machine code and beyond."""
    chance = mutator.chance
    number, other = chance.choice(ODD_NUMBERS), chance.randrange(-10, 6000)
    payload = chance.randbytes(chance.choice((0, 1, 125, 126, 65_535, 65_536)))
    counters = Counters()
    counters.bytes_to_clients = number
    counters.bytes_to_clients += abs(number) + 1
    results: list[object] = [
        outcome_of(encode_close, chance.choice((number, other, None)), chance.choice(REASONS)),
        outcome_of(encode_frame, chance.choice((number, other)), payload),
        outcome_of(encode_pongs, [payload[:125]] * chance.randrange(3)),
        outcome_of(unmask, payload, chance.randbytes(chance.choice((3, 4, 4, 4)))),
        outcome_of(counters.latency.observe, chance.choice(ODD_TIMES), number),
        [repr(each) for each in (counters.latency.counts, counters.latency.total, counters.bytes_to_clients)],
    ]
    bucket = TokenBucket(rate_per_s=chance.choice((0.5, 20, 1e300)), burst=chance.choice((1, 60.5)), now=0)
    for _ in range(6):
        amount, now = chance.choice(ODD_TIMES), chance.choice(ODD_TIMES)
        results.append(outcome_of(chance.choice((bucket.take, bucket.owe)), amount, now))
        results.append(outcome_of(bucket.admit, now, reserve=amount))
        results.append(outcome_of(bucket.level, now))
    return results


def _message(mutator: Mutator, *, packed: bool) -> Message:
    """Make a message of a device that is mostly valid."""
    known = corpus.PACKED if packed else corpus.JSON
    payload = mutator.chance.choice(known) if mutator.chance.random() < 0.5 else mutator.mutated(known)
    return Message(payload if packed else payload.decode(errors="replace").encode(), not packed)


def held(mutator: Mutator) -> object:
    """Hold and release the messages of a device that exceeds its rate."""
    chance = mutator.chance
    throttle = Throttle(
        BREWOS,
        rate_per_s=chance.choice((0.5, 5, 50.0)),
        burst=chance.choice((0, 1, 200.0)),
        allowed=chance.random(),
        anonymous=chance.random() < 0.5,
        now=0.0,
    )
    results: list[object] = []
    now = 0.0
    for _ in range(chance.randrange(1, 30)):
        now += chance.choice((0.0, 0.01, 1, 30))
        messages = [_message(mutator, packed=chance.random() < 0.7)] * chance.choice((1, 1, 20))
        throttle.hold([(message, head) for message in messages if (head := message.peek()) is not None])
        results += [len(throttle), throttle.size_bytes, throttle.merged, throttle.dropped]
        results.append(throttle.count_read(len(messages), chance.choice(ODD_NUMBERS[1:]), now))
        released = throttle.release(now) if chance.random() < 0.8 else throttle.release_all()
        results += [message.payload.hex() for message in released]
    return [*results, throttle.summary(now)]


def _odd_content(chance: Random) -> bytes:
    """Make JSON with values that fields do not have otherwise."""
    content = dict(chance.choice(corpus.CONTENTS))
    for name in chance.sample(ODD_FIELDS, 2):
        content[name] = chance.choice((*ODD_NUMBERS, *ODD_TIMES, True, None, "x", [], {}))
    return json.dumps(content).encode()


class _ScriptedSocket(socket.socket):
    """A connected socket that takes all, parts, or nothing of each write, and keeps these bytes."""

    def __init__(self, connected: socket.socket, chance: Random) -> None:
        super().__init__(connected.family, connected.type, connected.proto, connected.detach())
        self.setblocking(False)
        self.written = bytearray()
        self.mode = "all"
        self._chance = chance

    def fill(self) -> None:
        """Take nothing, until the other end has read."""
        self.mode = "full"
        fill(self)

    def send(self, data: Any, flags: int = 0) -> int:
        if self.mode == "broken":
            raise ConnectionResetError("no more")
        if self.mode == "full":
            return super().send(data)  # raises, since the buffer of the system is full
        if self.mode == "parts" and self._chance.random() < 0.3:
            raise BlockingIOError
        taken = len(data) if self.mode == "all" else self._chance.randrange(1, len(data) + 1)
        self.written += data[:taken]
        return taken


class _InOrder(set[Attachment]):
    """The attached peers, in the order of their arrival."""

    def __iter__(self) -> Iterator[Attachment]:
        return iter(sorted(super().__iter__(), key=lambda peer: (peer.attached_at, peer.number)))


class _Scene:
    """A relay with devices and clients, which do things at random, one after another."""

    def __init__(self, mutator: Mutator, relay: Relay, poller: Poller) -> None:
        self._mutator = mutator
        self._chance = mutator.chance
        self._relay = relay
        self._poller = poller
        self.peers: list[tuple[Attachment, _ScriptedSocket, socket.socket, bool]] = []
        self.results: list[object] = []

    async def play(self) -> None:
        """Do some things, each until nothing moves any more."""
        chance = self._chance
        for _ in range(chance.randrange(7, 27)):
            # Nothing is due at the same time as the periodic checks: Trio has no order for that.
            await trio.sleep(chance.random() / 10)
            if len(self.peers) < 2 or chance.random() < 0.15:
                self._connect()
            elif chance.random() < 0.8:
                self._send()
            else:
                self._change()
            if chance.random() < 0.3:
                await trio.sleep(chance.choice(PAUSES_S))
            await wait_all_tasks_blocked()
        for device_id in DEVICES:
            self.results.append(self._relay.state_of(device_id))
            self.results.append(repr(await self._relay.history_of(device_id, seconds=600.0)))
        if chance.random() < 0.3:
            at_once = trio.Event()
            at_once.set()
            await self._relay.drain(hurry=at_once)

    def _connect(self) -> None:
        chance, relay = self._chance, self._relay
        near, far = socket.socketpair()
        sock = _ScriptedSocket(near, Random(chance.random()))  # Trio closes peers in any order
        far.setblocking(False)
        if chance.random() < 0.2:
            sock.fill()
        limits, device_id = relay.limits, chance.choice((DEVICES[0], *DEVICES))
        transport = Transport(
            sock,
            outbox_limit_bytes=limits.outbox_bytes,
            lag_bytes=limits.lag_bytes,
            write_batch=self._poller.write_batch,
        )
        is_device = chance.random() < 0.4
        initial = self._data(is_device) if chance.random() < 0.2 else b""
        attachment: Attachment
        if is_device:
            anonymous = chance.random() < 0.2
            connection = device_connection(
                transport,
                poller=self._poller,
                limits=limits,
                counters=relay.counters,
                initial=initial,
                anonymous=anonymous,
            )
            credential = chance.choice((b"one", b"two"))
            attachment = relay.attach_device(
                device_id, connection, credential=credential, anonymous=anonymous
            )
        else:
            connection = client_connection(transport, poller=self._poller, limits=limits, initial=initial)
            attachment = relay.attach_client(
                device_id,
                connection,
                expires_at_s=EPOCH_S + chance.choice((30, 200, 10**6, 2**70)),
                renew=self._renew,
                grant=self._grant(),
            )
        self.peers.append((attachment, sock, far, is_device))

    def _grant(self) -> Grant:
        chance = self._chance
        return Grant(
            user_id=chance.choice(("anna", "bert")),
            may_command=chance.random() < 0.8,
            may_manage=chance.random() < 0.5,
            until_s=EPOCH_S + chance.choice((20, 10**6, float("inf"))),
        )

    def _renew(self, token: str) -> int:
        if len(token) % 2:
            raise TokenRejected("odd")
        return EPOCH_S + 1000

    def _data(self, is_device: bool) -> bytes:
        """Make bytes of a peer: frames, mostly valid, with almost valid messages."""
        chance = self._chance
        if chance.random() < 0.1:
            return self._mutator.mutated(corpus.FRAMES)
        packed = is_device and chance.random() < 0.7
        known = corpus.PACKED if packed else corpus.JSON if is_device else corpus.COMMANDS
        kind = chance.choice(("valid", "valid", "mutated", "odd"))
        if kind == "odd":
            packed, payload = False, _odd_content(chance)
        else:
            payload = chance.choice(known) if kind == "valid" else self._mutator.mutated(known)[:3000]
        is_text = not packed and chance.random() < 0.9
        if is_text:
            payload = payload.decode(errors="replace").encode()
        return frame(TEXT if is_text else BINARY, payload) * chance.choice((1, 1, 1, 2, 30))

    def _send(self) -> None:
        _, _, far, is_device = self._chance.choice(self.peers)
        for piece in self._mutator.split(self._data(is_device)):
            with suppress(OSError):
                far.send(piece)

    def _change(self) -> None:
        """Change how a socket takes writes, end a connection, or let the relay do something."""
        chance, relay = self._chance, self._relay
        attachment, sock, far, _ = chance.choice(self.peers)
        device_id, user_id = chance.choice(DEVICES), chance.choice(("anna", "bert"))
        act = chance.randrange(10)
        if act < 2 and sock.fileno() >= 0:
            with suppress(OSError):
                sock.fill()
        elif act < 4:
            sock.mode = chance.choice(("all", "parts", "parts", "broken"))
            with suppress(OSError):
                read_available(far)
        elif act == 4:
            far.close()
        elif act == 5:
            with suppress(OSError):
                far.shutdown(socket.SHUT_WR)
        elif act == 6:
            relay.end_device(device_id, unless=(chance.choice((b"one", b"two")),))
        elif act == 7:
            relay.set_grant(device_id, user_id, chance.choice((None, self._grant())))
        elif act == 8:
            self.results.append(relay.send_to_device(device_id, encode({"type": "restart"})))
        else:
            attachment.close(chance.choice((1001, 4003)), chance.choice(("", "é" * 70)))


def _limits(chance: Random) -> Limits:
    return Limits(
        message_s=30.071,  # never over at the same time as a periodic check
        stall_s=10.137,
        close_s=1.013,
        client_rate=chance.choice((0, 2, 20.0)),
        client_burst=chance.choice((1, 60.0)),
        device_rate=chance.choice((0, 5, 50.0)),
        device_burst=chance.choice((1, 200.0)),
        lag_bytes=chance.choice((500, 64 * 1024)),
        outbox_bytes=chance.choice((2000, 256 * 1024)),
        pending_commands=chance.choice((1, 50)),
        history_bytes=chance.choice((4096, 64 * 1024)),
        device_message_bytes=chance.choice((300, 16 * 1024)),
    )


def _sorted(total: object) -> str:
    return repr(sorted(total.items()) if isinstance(total, dict) else total)


async def _play(mutator: Mutator) -> object:
    seen: list[str] = []
    counters = Counters()
    peers = []
    opened = open_relay(
        limits=_limits(mutator.chance),
        dialect=BREWOS,
        on_seen=lambda *seen_at: seen.append(repr(seen_at)),
        on_activity=lambda event: seen.append(repr(event)),
        counters=counters,
    )
    async with open_poller(counters) as poller, opened as relay:
        relay.attached = _InOrder()
        scene = _Scene(mutator, relay, poller)
        await scene.play()
    for attachment, sock, far, _ in scene.peers:
        far.close()
        peers.append((sock.written.hex(), str(attachment.end), attachment.received, sock.fileno()))
    totals = {name: _sorted(getattr(counters, name)) for name in COUNTED}
    # Sorted, as the log is: at the end, all peers are closed at once.
    return {"peers": peers, "results": scene.results, "seen": sorted(seen), "counters": totals}


def relay(mutator: Mutator) -> object:
    """Let machines and apps do things at random, over sockets that take parts of writes."""
    lines: list[str] = []
    handler, log = logging.Handler(), logging.getLogger("brewos_relay")
    with ExitStack() as patched:
        for target, name, value in (
            (handler, "emit", lambda line: lines.append(f"{line.levelname} {line.getMessage()}")),
            (log, "handlers", [handler]),
            (log, "propagate", False),
        ):
            patched.enter_context(patch.object(target, name, value))
        patched.callback(log.setLevel, log.level)
        log.setLevel(logging.INFO)
        played = trio.run(_play, mutator, clock=MockClock(autojump_threshold=0))
    return {"played": played, "log": sorted(lines)}


KINDS: Final[dict[str, Callable[[Mutator], object]]] = {
    "frames": frames,
    "values": values,
    "held": held,
    "relay": relay,
}


@contextmanager
def _nothing_by_chance(seed: int) -> Iterator[None]:
    """Fix the clock, the identifiers, and the order of Trio's tasks."""

    def now_s() -> float:
        try:
            return EPOCH_S + trio.current_time()
        except RuntimeError:
            return EPOCH_S

    numbers = count(1)
    order = trio._core._run._r
    state = order.getstate()
    order.seed(seed)
    with ExitStack() as patched:
        patched.callback(order.setstate, state)
        patched.enter_context(patch.object(trio._core._run, "_ALLOW_DETERMINISTIC_SCHEDULING", True))
        patched.enter_context(patch.object(time, "time", now_s))
        patched.enter_context(patch.object(time, "time_ns", lambda: round(now_s() * 1000) * 1_000_000))
        patched.enter_context(
            patch.object(secrets, "token_hex", lambda size: f"{next(numbers):0{2 * size}x}")
        )
        yield


def outcomes(seed: int, number: int) -> Iterator[str]:
    """Return the outcomes for as many seeds, each as a line of JSON."""
    for each in range(seed, seed + number):
        for kind, make in KINDS.items():
            with _nothing_by_chance(each):
                yield json.dumps([kind, each, make(Mutator(each))])


def differences(seed: int, number: int) -> list[str]:
    """Compare the outcomes of this build with those of the interpreted one, in a process of its own."""
    command = [sys.executable, str(Path(__file__)), str(seed), str(number)]
    environ = {**os.environ, "BREWOS_RELAY_COMPILED": "0"}
    with (
        tempfile.TemporaryFile("w+") as written,  # not a pipe, which would hold the process up
        subprocess.Popen(command, env=environ, stdout=written) as interpreted,
    ):
        try:
            here = list(outcomes(seed, number))
            assert interpreted.wait(MOST_WAIT_S) == 0
        finally:
            interpreted.kill()
        written.seek(0)
        there = written.read().splitlines()
    return [_describe(one, other) for one, other in zip(here, there, strict=True) if one != other]


def _describe(one: str, other: str) -> str:
    kind, seed, _ = json.loads(one)
    at = next(
        at for at, (left, right) in enumerate(zip(one + "!", other + "?", strict=False)) if left != right
    )
    part = slice(max(0, at - 100), at + 100)
    return f"{kind} with seed {seed}: …{one[part]}…\n  interpreted: …{other[part]}…"


if __name__ == "__main__":
    for line in outcomes(int(sys.argv[1]), int(sys.argv[2])):
        print(line)

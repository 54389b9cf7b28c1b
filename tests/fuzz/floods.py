"""Measure a bystander's sign-ins and connections, with and without a flood of valid requests.

The floods come from another process, and name other networks as a trusted proxy does. In the field, they come
from other computers. So that process has one processor, and that only while the server and the bystander need
none: its own work would otherwise delay both, however the server treats the flood.

Quiet and flooded windows alternate, since the speed of a computer varies. A minute of windows has 300
sign-ins and 900 connections without the flood, and nearly as many with it: the slowest 1 % are several.
"""

import argparse
import itertools
import json
import os
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Iterable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import trio

if __name__ == "__main__":  # the process that floods is run by its path
    sys.path.insert(0, str(Path(__file__).parents[1]))

from brewos_relay.auth.passwords import hash_password
from brewos_relay.auth.secrets import hash_secret
from brewos_relay.registry.access import give
from brewos_relay.registry.accounts import add_user, set_password_hash
from brewos_relay.registry.database import Database
from brewos_relay.registry.devices import add_devices
from brewos_relay.registry.records import NewDevice
from brewos_relay.vocabulary import generate_key, now_ms
from support.logs import errors_in
from support.process import KEY, environment, machine_id, serve_process
from support.resources import most_memory_mib
from support.wire_client import upgrade_head

PASSWORD: Final = "correct horse battery"
WINDOWS: Final = 4
"""The number of quiet windows, and of flooded ones."""
EVERY_S: Final = 0.02
"""The bystander's pause before a connection."""
CONNECTS: Final = 3
"""How many connections the bystander makes after each sign-in."""
MACHINES: Final = 400
"""Machines of the bystander: each may connect 10 times a minute."""
MOST_RATIO: Final = 2.0
"""The limit for the slowest 1 % in a flood, relative to quiet."""
SETTLE_S: Final = 3.0
ANSWER_S: Final = 20.0
MOST_LOG_BYTES: Final = 1_000_000
BYSTANDERS: Final = 100
"""Networks of the bystander: each account may sign in 20 times a minute from one."""
FLOODING: Final = 60
"""Machines that the flood has registered."""
STREET: Final = 500
STREET_S: Final = 60.0
RETRY_S: Final = 30.3

RATES: Final = {"connects": 515.0, "registrations": 50.0, "sign_ins": 30.0, "claims": 30.0}
"""Requests a second of each kind."""


@dataclass
class Seen:
    """The result: times in s by the bystander's action, without and with the flood."""

    quiet: dict[str, list[float]] = field(default_factory=lambda: {"sign-in": [], "connect": []})
    flooded: dict[str, list[float]] = field(default_factory=lambda: {"sign-in": [], "connect": []})
    answers: Counter[str] = field(default_factory=Counter)
    street_s: float | None = None
    street_refused: int = 0
    log_bytes: int = 0
    memory_mib: int = 0
    problems: list[str] = field(default_factory=list)

    def lines(self) -> Iterable[str]:
        """Describe the measurements."""
        for name in self.quiet:
            quiet, flooded = percentile(self.quiet[name]), percentile(self.flooded[name])
            yield (
                f"{name}: p99 {quiet * 1000:.1f} ms quiet, {flooded * 1000:.1f} ms flooded"
                f" ({flooded / quiet:.2f} times), p50 {percentile(self.quiet[name], 50) * 1000:.1f}"
                f" and {percentile(self.flooded[name], 50) * 1000:.1f} ms,"
                f" of {len(self.quiet[name])} and {len(self.flooded[name])}"
            )
        yield f"the floods were answered {dict(sorted(self.answers.items()))}"
        if self.street_s is not None:
            yield (
                f"a street of {STREET} machines was back after {self.street_s:.1f} s,"
                f" {self.street_refused} refusals"
            )
        yield f"log of {self.log_bytes} bytes, {self.memory_mib} MiB of memory"


def percentile(times: list[float], percent: float = 99) -> float:
    """Return a percentile of times."""
    return sorted(times)[min(len(times) - 1, round(len(times) * percent / 100))]


# Requests


async def ask(
    address: tuple[str, int], path: str, body: dict[str, Any], *, network: str, token: str | None = None
) -> tuple[int, Any]:
    """Send a POST request on a new connection. Return the status and the JSON."""
    payload = json.dumps(body).encode()
    head = f"POST {path} HTTP/1.1\r\nHost: relay.example\r\nConnection: close\r\n"
    head += f"X-Forwarded-For: {network}\r\n"
    head += f"Content-Type: application/json\r\nContent-Length: {len(payload)}\r\n"
    if token is not None:
        head += f"Authorization: Bearer {token}\r\n"
    with trio.fail_after(ANSWER_S):
        async with await trio.open_tcp_stream(*address) as stream:
            await stream.send_all(head.encode() + b"\r\n" + payload)
            received = b"".join([piece async for piece in stream])
    answer_head, _, answer = received.partition(b"\r\n\r\n")
    return int(answer_head[9:12]), json.loads(answer) if answer else None


@asynccontextmanager
async def connected(address: tuple[str, int], target: str, *, network: str) -> Any:
    """Open a WebSocket for the block. Yields the status of the response."""
    head = upgrade_head(target).removesuffix(b"\r\n") + f"X-Forwarded-For: {network}\r\n\r\n".encode()
    with trio.fail_after(ANSWER_S):
        stream = await trio.open_tcp_stream(*address)
        try:
            await stream.send_all(head)
            received = b""
            while b"\r\n\r\n" not in received:
                piece = await stream.receive_some()
                if not piece:
                    break
                received += piece
            yield int(received[9:12] or b"0")
        finally:
            await trio.aclose_forcefully(stream)


async def sign_in(address: tuple[str, int], email: str, *, network: str) -> tuple[int, Any]:
    return await ask(address, "/api/auth/password", {"email": email, "password": PASSWORD}, network=network)


# The process that floods


class Flood:
    """Sends valid requests of each kind at a fixed rate, without waiting for earlier responses."""

    def __init__(self, address: tuple[str, int], plan: dict[str, Any]) -> None:
        self.address = address
        self.plan = plan
        self.answers: Counter[str] = Counter()
        self._numbers = itertools.count()

    async def run(self, secs: float) -> None:
        kinds: dict[str, Callable[[int], Awaitable[int]]] = {
            "connects": self.connect,
            "registrations": self.register,
            "sign_ins": self.sign_in,
            "claims": self.claim,
        }
        with trio.move_on_after(secs):
            async with trio.open_nursery() as nursery:
                for kind in self.plan.get("kinds", kinds):
                    request = kinds[kind]
                    nursery.start_soon(self._send, kind, request, RATES[kind])

    async def _send(self, kind: str, request: Callable[[int], Awaitable[int]], per_s: float) -> None:
        began_at = trio.current_time()
        async with trio.open_nursery() as nursery:
            for number in itertools.count():
                await trio.sleep_until(began_at + number / per_s)
                if len(nursery.child_tasks) < per_s:  # skip while a second's requests are unanswered
                    nursery.start_soon(self._one, kind, request, number)

    async def _one(self, kind: str, request: Callable[[int], Awaitable[int]], number: int) -> None:
        status: object = "nothing"
        with suppress(OSError, trio.BrokenResourceError, trio.TooSlowError, ValueError):
            status = await request(number)
        self.answers[f"{kind} {status}"] += 1

    async def connect(self, number: int) -> int:
        """Connect as a machine that the flood has registered, and leave at once."""
        device = self.plan["devices"][number % len(self.plan["devices"])]
        target = f"/ws/device?id={device}&key={KEY}"
        async with connected(self.address, target, network=f"203.0.113.{number % 4}") as status:
            return int(status)

    async def register(self, number: int) -> int:
        body = {
            "deviceId": machine_id(0xF0000000 + int(self.plan["seed"]) * 100_000 + number),
            "token": generate_key(),
            "deviceKey": generate_key(),
        }
        path = "/api/devices/register-claim"
        return (await ask(self.address, path, body, network=f"203.0.113.{number % 16}"))[0]

    async def sign_in(self, number: int) -> int:
        """Sign in with the right password, from a /56."""
        network = f"2001:db8:0:{number % 256:x}::1"
        return (await sign_in(self.address, f"flood{number % 8}@example.org", network=network))[0]

    async def claim(self, number: int) -> int:
        """Register a machine and claim it, with an account that has signed in."""
        device, token = machine_id(0xE0000000 + int(self.plan["seed"]) * 100_000 + number), generate_key()
        network = f"203.0.113.{128 + number % 16}"
        body = {"deviceId": device, "token": token, "deviceKey": generate_key()}
        await ask(self.address, "/api/devices/register-claim", body, network=network)
        body = {"deviceId": device, "token": token}
        path, session = "/api/devices/claim", self.plan["token"]
        return (await ask(self.address, path, body, network=network, token=session))[0]


def step_back() -> None:
    """Use one processor, and only while no other process wants it."""
    os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})
    os.sched_setscheduler(0, os.SCHED_IDLE, os.sched_param(0))


async def flood_until_told(plan: dict[str, Any]) -> None:
    """Flood, and print the counts of responses."""
    step_back()
    flood = Flood((plan["host"], plan["port"]), plan)
    await flood.run(plan["secs"])
    print(json.dumps(flood.answers), flush=True)


# The bystander


class Bystander:
    """Signs in and connects as a machine repeatedly, from networks that have signed in before."""

    def __init__(self, address: tuple[str, int], seen: Seen) -> None:
        self.address = address
        self.seen = seen
        self._turns = itertools.count()

    async def become_known(self) -> None:
        """Sign in once from each network."""
        for number in range(BYSTANDERS):
            status, _ = await sign_in(
                self.address, f"bystander{number}@example.org", network=f"192.0.2.{number + 1}"
            )
            assert status == 200, status

    async def measure(self, secs: float, times: dict[str, list[float]]) -> None:
        end_at = trio.current_time() + secs
        while trio.current_time() < end_at:
            turn = next(self._turns)
            number = turn % BYSTANDERS
            network = f"192.0.2.{number + 1}"
            began_at_s = time.perf_counter()
            status, content = await sign_in(self.address, f"bystander{number}@example.org", network=network)
            times["sign-in"].append(time.perf_counter() - began_at_s)
            if status != 200:
                self.seen.problems.append(f"a sign-in of the bystander is answered {status} {content}")
            for device in range(CONNECTS * turn, CONNECTS * (turn + 1)):
                await trio.sleep(EVERY_S)
                await self._connect(machine_id(device % MACHINES + 1), network, times)

    async def _connect(self, device: str, network: str, times: dict[str, list[float]]) -> None:
        began_at_s = time.perf_counter()
        target = f"/ws/device?id={device}&key={KEY}"
        async with connected(self.address, target, network=network) as status:
            times["connect"].append(time.perf_counter() - began_at_s)
        if status != 101:
            self.seen.problems.append(f"a connection of the bystander is answered {status}")


async def street(address: tuple[str, int], seen: Seen) -> None:
    """Reconnect a street after a power cut: machines behind one address, all in a few seconds."""
    began_at = trio.current_time()
    back = 0

    async def machine(number: int) -> None:
        nonlocal back
        await trio.sleep(5 * number / STREET)
        while True:
            status = 0
            target = f"/ws/device?id={machine_id(0x10000 + number)}&key={KEY}"
            with suppress(OSError, trio.BrokenResourceError, trio.TooSlowError):
                async with connected(address, target, network="198.51.100.7") as status:
                    pass
            if status == 101:
                back += 1
                return
            seen.street_refused += 1
            await trio.sleep(RETRY_S)

    with trio.move_on_after(STREET_S):
        async with trio.open_nursery() as nursery:
            for number in range(STREET):
                nursery.start_soon(machine, number)
        seen.street_s = trio.current_time() - began_at
    if seen.street_s is None:
        seen.problems.append(
            f"only {back} of the street's {STREET} machines were back after {STREET_S:.0f} s"
        )


def fill(url: str) -> None:
    """Add the accounts and machines of the bystander, the flood and the street."""
    at_ms, password_hash = now_ms(), hash_password(PASSWORD)
    with Database.open(url) as database, database.writing() as db:
        names = [f"bystander{number}" for number in range(BYSTANDERS)]
        names += [f"flood{number}" for number in range(8)]
        for name in names:
            user = add_user(db, email=f"{name}@example.org", name=None, now_ms=at_ms)
            set_password_hash(db, user.id, password_hash)
        owned = [
            machine_id(number) for number in (*range(1, MACHINES + 1), *range(0x10000, 0x10000 + STREET))
        ]
        rows = [NewDevice(id=device, key_hash=hash_secret(KEY)) for device in owned]
        add_devices(db, rows, now_ms=at_ms)
        for device in owned:
            give(db, device, user.id, role="owner", now_ms=at_ms)


async def flood_server(folder: Path, *, secs: float, seed: int, with_street: bool = True) -> Seen:
    """Measure a server of its own; `secs` is the length of all windows together."""
    seen = Seen()
    settings: dict[str, object] = {
        "DATA_DIR": folder,
        "BREWOS_RELAY_LOG_FORMAT": "json",
        "BREWOS_RELAY_TRUSTED_PROXIES": "127.0.0.1",
        "BREWOS_RELAY_DEVICE_MIN_AGE_S": 0.001,
    }
    await trio.to_thread.run_sync(fill, f"sqlite:///{folder / 'brewos-relay.db'}")
    async with serve_process(folder, **settings) as server:
        flooding = [machine_id(0xD0000000 + number) for number in range(FLOODING)]
        for number, device in enumerate(flooding):
            body = {"deviceId": device, "token": generate_key(), "deviceKey": KEY}
            status, content = await ask(
                server.address, "/api/devices/register-claim", body, network=f"203.0.113.{number % 16}"
            )
            assert status == 200, content
        status, session = await sign_in(server.address, "flood0@example.org", network="203.0.113.128")
        assert status == 200, session
        plan = {
            "host": server.address[0],
            "port": server.address[1],
            "devices": flooding,
            "token": session["accessToken"],
            "secs": secs / WINDOWS / 2 + SETTLE_S,
        }
        bystander = Bystander(server.address, seen)
        await bystander.become_known()
        for window in range(WINDOWS):
            await bystander.measure(secs / WINDOWS / 2, seen.quiet)
            async with trio.open_nursery() as nursery:
                nursery.start_soon(_flood, {**plan, "seed": seed % 100 * WINDOWS + window}, seen)
                await trio.sleep(SETTLE_S)
                await bystander.measure(secs / WINDOWS / 2, seen.flooded)
        if with_street:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(
                    _flood, {**plan, "seed": seed % 100 * WINDOWS + WINDOWS, "secs": STREET_S}, seen
                )
                await trio.sleep(SETTLE_S)
                await street(server.address, seen)
                nursery.cancel_scope.cancel()
        log_text = server.log_file.read_text(errors="replace")
        seen.log_bytes, seen.memory_mib = len(log_text), most_memory_mib(server.process.pid)
        seen.problems += errors_in(log_text)[:5]
    _judge(seen)
    return seen


async def _flood(plan: dict[str, Any], seen: Seen) -> None:
    """Run the process that floods."""
    with trio.fail_after(plan["secs"] + ANSWER_S):
        done = await trio.run_process(
            [sys.executable, str(Path(__file__)), json.dumps(plan)],
            env=environment(),
            capture_stdout=True,
            stderr=subprocess.STDOUT,
            check=False,
        )
    try:
        seen.answers.update(json.loads(done.stdout))
    except ValueError:
        seen.problems.append(f"the process that floods failed: {done.stdout.decode()[-2000:]}")


def _judge(seen: Seen) -> None:
    for name, quiet in seen.quiet.items():
        ratio = percentile(seen.flooded[name]) / percentile(quiet)
        if ratio > MOST_RATIO:
            seen.problems.append(f"a {name} of the bystander takes {ratio:.2f} times as long in a flood")
    if seen.log_bytes > MOST_LOG_BYTES:
        seen.problems.append(f"the log has {seen.log_bytes} bytes")
    for kind in RATES:
        if not any(answer.startswith(f"{kind} {ok}") for answer in seen.answers for ok in (101, 200, 201)):
            seen.problems.append(f"no {kind} of the flood succeeded: {dict(seen.answers)}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("plan", type=json.loads)
    trio.run(flood_until_told, parser.parse_args().plan)

"""Send invalid data to a real server on raw sockets, while a machine and its app communicate through it."""

import random
import ssl
import subprocess
import sys
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import msgspec
import trio

from fuzz import corpus, patience
from fuzz.mutation import Mutator
from support.certificates import client_context
from support.logs import errors_in
from support.process import KEY, ProcessServer, environment, machine_id, serve_process
from support.resources import most_memory_mib, open_files
from support.wire_client import BINARY, TEXT, Ended, Response, WireClient, frame, text, upgrade_head

CANARY: Final = machine_id(0x7FFFFFFF)
ATTACKED: Final = [machine_id(number) for number in (1, 2, 3)]
ATTACKERS: Final = 12
EXPECTED: Final = frozenset({501, 503})
"""Accepted server errors: an unknown transfer coding, and a busy server."""
ECHO_S: Final = 5.0
"""How long a message between the bystanders may take."""
CALM_S: Final = 30.0
"""How long after the last attack its connections may still be counted."""
FROM_ELSEWHERE: Final = b"PROXY TCP4 203.0.113.7 127.0.0.1 50000 443\r\n"
MOST_PAYLOAD_BYTES: Final = 10_000
PATIENCE_S: Final = 0.5
"""How long an attacker waits for an answer."""
TRICKLE_S: Final = 0.05
"""The longest pause within the data of an attacker."""
MOST_MIB: Final = 256
"""The memory that a server may use for any input: three times that for a few connections."""
FILES_MORE: Final = 30
"""How many more files it may have open at the end: each thread of the registry keeps some."""


@dataclass
class Seen:
    """The result of a run."""

    attacks: int = 0
    upgraded: int = 0
    outlasted: int = 0
    """The connections of machines that were held long enough."""
    echoes: int = 0
    statuses: dict[int, int] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)


class Attacker:
    """A peer that connects repeatedly."""

    def __init__(
        self,
        server: ProcessServer,
        seed: int,
        seen: Seen,
        *,
        behind_proxy: bool,
        tls_context: ssl.SSLContext | None,
    ) -> None:
        self._server = server
        self._tls_context = tls_context
        self._mutator = Mutator(seed)
        self._seen = seen
        self._behind_proxy = behind_proxy
        self._token = server.token(ATTACKED)

    @property
    def _chance(self) -> random.Random:
        return self._mutator.chance

    async def attack_on(self) -> None:
        """Attack until cancelled."""
        while True:
            await self.attack()

    async def attack(self) -> None:
        """Connect, send data, check the response, and disconnect in one of several ways."""
        if self._tls_context is not None and self._chance.random() < 0.2:
            await self._spoil_tls()
            return
        try:
            connection = await WireClient.connect(self._server.address, tls_context=self._tls_context)
        except ConnectionError as problem:
            self._seen.problems.append(f"a connection failed: {problem!r}")
            return
        try:
            with suppress(Ended, trio.BrokenResourceError), trio.move_on_after(ECHO_S):
                await self._talk(connection)
        finally:
            self._seen.attacks += 1
            if self._chance.random() < 0.5:
                connection.abort()
            else:
                await trio.aclose_forcefully(connection.stream)

    async def _spoil_tls(self) -> None:
        """Begin with data that is not, or not quite, TLS."""
        connection = await WireClient.connect(self._server.address)
        try:
            with suppress(Ended, trio.BrokenResourceError), trio.move_on_after(PATIENCE_S):
                await self._send(connection, self._mutator.mutated(corpus.TLS_BEGINNINGS))
                await connection.read_to_end()
        finally:
            self._seen.attacks += 1
            connection.abort()

    async def _talk(self, connection: WireClient) -> None:
        chance = self._chance
        if self._behind_proxy:
            header = chance.choice(corpus.PROXY_HEADERS[:2]).partition(b"GET")[0]
            if chance.random() < 0.5:
                header = self._mutator.mutated(corpus.PROXY_HEADERS)
            await self._send(connection, header)
        if chance.random() < 0.4:
            await self._send(connection, self._mutator.mutated(corpus.HEADS))
            if chance.random() < 0.3:
                await connection.send_eof()
            await self._answer(connection)
            return
        device = chance.choice(ATTACKED)
        target = chance.choice(
            (f"/ws/device?id={device}&key={KEY}", f"/ws/client?token={self._token}&device={device}")
        )
        await connection.send(upgrade_head(target))
        answer = await self._answer(connection)
        if answer is None or answer.status != 101:
            return
        self._seen.upgraded += 1
        for _ in range(chance.randrange(1, 12)):
            await self._send(connection, self._frame())
        if self._chance.random() < 0.2:
            await connection.send_eof()
        with trio.move_on_after(PATIENCE_S):
            await connection.read_to_end()

    def _frame(self) -> bytes:
        """Make a frame: a broken one, or a valid one with a broken message."""
        kind = self._chance.choice((TEXT, BINARY, None, None))
        if kind is None:
            return self._mutator.mutated(corpus.FRAMES)
        payload = self._mutator.mutated(corpus.JSON if kind == TEXT else corpus.PACKED)
        if kind == TEXT:
            payload = payload.decode(errors="replace").encode()
        return frame(kind, payload[:MOST_PAYLOAD_BYTES])

    async def _send(self, connection: WireClient, data: bytes) -> None:
        trickles = self._chance.random() < 0.1
        for piece in self._mutator.split(data):
            await connection.send(piece)
            if trickles:
                await trio.sleep(self._chance.uniform(0, TRICKLE_S))

    async def _answer(self, connection: WireClient) -> Response | None:
        with trio.move_on_after(PATIENCE_S):
            try:
                answer = await connection.read_response()
            except (ValueError, IndexError) as error:
                self._seen.problems.append(f"an answer is not HTTP: {error!r}")
                return None
            self._seen.statuses[answer.status] = self._seen.statuses.get(answer.status, 0) + 1
            if answer.status >= 500 and answer.status not in EXPECTED:
                self._seen.problems.append(f"an answer is {answer.head!r}")
            return answer
        return None


async def stand_by(
    server: ProcessServer,
    seen: Seen,
    *,
    behind_proxy: bool,
    tls_context: ssl.SSLContext | None,
    within_s: float,
) -> None:
    """Run a machine and its app that send each other messages for a while."""
    device, app = [
        await _connect(server, target, behind_proxy, tls_context)
        for target in (
            f"/ws/device?id={CANARY}&key={KEY}",
            f"/ws/client?token={server.token([CANARY])}&device={CANARY}",
        )
    ]
    await device.show_life()
    with trio.move_on_after(within_s):
        while True:
            number = seen.echoes + 1
            with trio.move_on_after(ECHO_S) as waited:
                await app.send(text({"type": "command", "cmd": "echo", "number": number}))
                while (await device.read_json()).get("number") != number:
                    pass
                await device.send(text({"type": "log", "level": "error", "number": number}))
                while (await app.read_json()).get("number") != number:
                    pass
            if waited.cancelled_caught:
                seen.problems.append(f"the bystanders' message {number} took more than {ECHO_S:.0f} s")
                return
            seen.echoes = number
            await trio.sleep(0.2)


async def _connect(
    server: ProcessServer, target: str, behind_proxy: bool, tls_context: ssl.SSLContext | None
) -> WireClient:
    with trio.fail_after(ECHO_S):
        connection = await server.connect(tls_context=tls_context)
        if behind_proxy:
            await connection.send(FROM_ELSEWHERE)
        answer = await connection.ask(upgrade_head(target))
    assert answer.status == 101, answer
    return connection


async def wait_calm(
    server: ProcessServer, *, behind_proxy: bool, tls_context: ssl.SSLContext | None
) -> str | None:
    """Wait until the server counts no peers. Return its counts if that takes too long."""
    counted: object = "nothing"
    with trio.move_on_after(CALM_S):
        while True:
            connection = await server.connect(tls_context=tls_context)
            if behind_proxy:
                await connection.send(FROM_ELSEWHERE)
            answer = await connection.ask(b"GET /api/health HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n")
            connection.abort()
            counted = msgspec.json.decode(answer.body)
            assert isinstance(counted, dict)
            if counted["devices"] == 0 and counted["clients"] == 0:
                return None
            await trio.sleep(0.5)
    return f"{CALM_S:.0f} s after all peers have left, the server counts {counted}"


async def fuzz_server(
    folder: Path, *, secs: float, seed: int, behind_proxy: bool = False, tls: bool = False
) -> Seen:
    """Attack a server of its own for a while.

    Over TLS, the server holds the connections of machines until they are old enough. Otherwise it does not,
    so that more can be tried in the same time.
    """
    settings: dict[str, object] = {
        "DATA_DIR": folder,
        "BREWOS_RELAY_LOG_LEVEL": "warning",
        "BREWOS_RELAY_LOG_FORMAT": "json",
        "BREWOS_RELAY_ADMIT_RATE": 0,
    }
    if tls:
        settings |= patience.SETTINGS
    else:
        settings |= {"BREWOS_RELAY_DEVICE_MIN_AGE_S": 0.001}
    if behind_proxy:
        settings |= {"BREWOS_RELAY_PROXY_PROTOCOL": "true", "BREWOS_RELAY_TRUSTED_PROXIES": "127.0.0.1"}
    machines = folder / "machines.csv"
    machines.write_text("".join(f"{device},{KEY}\n" for device in [*ATTACKED, *patience.PATIENT, CANARY]))
    command = [sys.executable, "-m", "brewos_relay", "device", "import", str(machines)]
    await trio.run_process(
        command, cwd=folder, env=environment(**settings), capture_stdout=True, stderr=subprocess.STDOUT
    )
    seen = Seen()
    tls_context = client_context() if tls else None
    async with serve_process(folder, **settings) as server:
        files = open_files(server.process.pid)
        with trio.move_on_after(secs):
            async with trio.open_nursery() as nursery:
                for number in range(ATTACKERS):
                    attacker = Attacker(
                        server,
                        seed * ATTACKERS + number,
                        seen,
                        behind_proxy=behind_proxy,
                        tls_context=tls_context,
                    )
                    nursery.start_soon(attacker.attack_on)
                if tls:
                    for number, device in enumerate(patience.PATIENT):
                        mutator = Mutator(seed * len(patience.PATIENT) + number)
                        nursery.start_soon(patience.be_patient, server, device, mutator, tls_context, seen)
                await stand_by(
                    server, seen, behind_proxy=behind_proxy, tls_context=tls_context, within_s=secs
                )
                nursery.cancel_scope.cancel()
        server.abort()
        if server.process.poll() is not None:
            seen.problems.append(f"the server has ended, with exit code {server.process.returncode}")
        else:
            seen.problems += await _look_at_the_rest(server, files, behind_proxy, tls_context)
        seen.problems += errors_in(server.log_file.read_text(errors="replace"))[:5]
    if not seen.echoes:
        seen.problems.append("the bystanders exchanged no message")
    return seen


async def _look_at_the_rest(
    server: ProcessServer, files: int, behind_proxy: bool, tls_context: ssl.SSLContext | None
) -> list[str]:
    """Return the problems that the attacks left behind."""
    problems = []
    if left := await wait_calm(server, behind_proxy=behind_proxy, tls_context=tls_context):
        problems.append(left)
    if (mib := most_memory_mib(server.process.pid)) > MOST_MIB:
        problems.append(f"the server needed {mib} MiB")
    left_files = open_files(server.process.pid) - files
    if left_files > FILES_MORE:
        problems.append(f"the server has {left_files} more files open than before")
    return problems

"""Measure what TLS adds to the CPU time of a delivery, and to the memory of an idle connection.

    python benchmarks/tls.py [--rounds 5] [--messages 20000] [--idle 400] [--json]

A server process runs the relay's data path (transport, codec, sessions), alternately plain and over TLS. A
generator process uses blocking sockets. Each is pinned to a processor of its own. The server has no registry
and admits every peer. The script reads figures that only Linux provides.

Exit codes: 0 limit kept, 1 limit missed.
"""

import argparse
import datetime
import json
import multiprocessing
import os
import socket
import ssl
import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from functools import partial
from multiprocessing.connection import Connection
from pathlib import Path

import trio
from pinning import choose_pins
from workloads import TLS_TARGET, TLS_WORKLOADS

from brewos_relay.core.relay import open_relay
from brewos_relay.dialect import BREWOS
from brewos_relay.server.certificates import CertificateFiles
from brewos_relay.server.incoming import IncomingConnection, PortPolicy, accept_connections
from brewos_relay.server.self_signed import ensure_self_signed
from brewos_relay.settings.server_limits import ServerLimits
from brewos_relay.wire.connection import client_connection, device_connection
from brewos_relay.wire.handshake import accept_upgrade, parse_head
from brewos_relay.wire.polling import open_poller

TICKS_PER_S = os.sysconf("SC_CLK_TCK")
PAGE_KIB = os.sysconf("SC_PAGE_SIZE") // 1024
KEY = "dGhlIHNhbXBsZSBub25jZQ=="
SETTLE_S = 0.3
LIMITS = ServerLimits(device_rate=0, client_rate=0, admit_rate=0, keepalive_s=3600, client_ping_s=3600)


async def serve(told: Connection, context: ssl.SSLContext | None) -> None:
    """Admit every peer, until cancelled."""
    port_policy = PortPolicy(tls_context=None if context is None else lambda: context)
    listening = socket.create_server(("127.0.0.1", 0), backlog=4096)
    listening.setblocking(False)
    async with (
        open_poller() as poller,
        open_relay(dialect=BREWOS, limits=LIMITS) as relay,
        trio.open_nursery() as nursery,
    ):

        async def answer(incoming: IncomingConnection) -> None:
            head, rest = await incoming.receive_head(port_policy=port_policy, limits=LIMITS)
            request = parse_head(head)
            incoming.transport.write(accept_upgrade(request))
            device_id = request.parameters()["id"]
            if request.path == "/ws/device":
                device = device_connection(
                    incoming.transport,
                    poller=poller,
                    limits=LIMITS,
                    counters=relay.counters,
                    initial=rest,
                )
                relay.attach_device(device_id, device)
            else:
                client = client_connection(incoming.transport, poller=poller, limits=LIMITS, initial=rest)
                relay.attach_client(device_id, client)
            incoming.release()

        accept = partial(
            accept_connections, limits=LIMITS, write_batch=poller.write_batch, failure="a connection failed"
        )
        nursery.start_soon(accept, [listening], answer)
        told.send(listening.getsockname())
        await trio.sleep_forever()


def run_server(told: Connection, pem: Path | None, cpu: int | None) -> None:
    pin(cpu)
    trio.run(serve, told, CertificateFiles(pem, pem).context if pem is not None else None)


def pin(cpu: int | None) -> None:
    if cpu is not None:
        os.sched_setaffinity(0, {cpu})


class Peer:
    """A connection of the generator."""

    def __init__(self, address: tuple[str, int], path: str, context: ssl.SSLContext | None) -> None:
        sock = socket.create_connection(address, timeout=10)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.sock = context.wrap_socket(sock) if context is not None else sock
        head = (
            f"GET {path} HTTP/1.1\r\nHost: a\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n"
            f"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: {KEY}\r\n\r\n"
        )
        self.sock.sendall(head.encode())
        self.received = bytearray()
        while b"\r\n\r\n" not in self.received:
            self._receive()
        del self.received[: self.received.index(b"\r\n\r\n") + 4]

    def _receive(self) -> None:
        data = self.sock.recv(65536)
        if not data:
            raise SystemExit("the server ended a connection")
        self.received += data

    def read_frame(self) -> int:
        """Read a frame; return the length of its payload."""
        while True:
            if len(self.received) >= 4:
                length, start = self.received[1], 2
                if length == 126:
                    length, start = int.from_bytes(self.received[2:4], "big"), 4
                if len(self.received) >= start + length:
                    del self.received[: start + length]
                    return length
            self._receive()


def frame(payload: bytes) -> bytes:
    """Build a masked text frame (with a mask of zeros, which changes nothing)."""
    length = len(payload)
    size = bytes([0x80 | length]) if length < 126 else b"\xfe" + length.to_bytes(2, "big")
    return b"\x81" + size + bytes(4) + payload


def cpu_s(pid: int) -> float:
    """Give the CPU time of a process, to the nanosecond where the system says so."""
    try:
        return int(Path(f"/proc/{pid}/schedstat").read_text(encoding="ascii").split()[0]) / 1e9
    except (OSError, ValueError, IndexError):
        fields = Path(f"/proc/{pid}/stat").read_text(encoding="ascii").rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / TICKS_PER_S


def memory_kib(pid: int) -> int:
    return int(Path(f"/proc/{pid}/statm").read_text(encoding="ascii").split()[1]) * PAGE_KIB


class Side:
    """A server, plain or with TLS, and a connection to it."""

    def __init__(self, pem: Path | None, cpu: int | None) -> None:
        here, there = multiprocessing.Pipe()
        self.process = multiprocessing.Process(target=run_server, args=(there, pem, cpu), daemon=True)
        self.process.start()
        self.address = here.recv()
        self.context: ssl.SSLContext | None = None
        if pem is not None:
            self.context = ssl.create_default_context(cafile=pem)
            self.context.check_hostname = False
            self.context.verify_mode = ssl.CERT_NONE

    @property
    def pid(self) -> int:
        assert self.process.pid is not None
        return self.process.pid

    def connect(self, number: int, *, device: bool) -> Peer:
        path = f"/ws/{'device' if device else 'client'}?id=BRW-{number:08X}"
        return Peer(self.address, path, self.context)

    def measure(self, workload: Sequence[int], messages: int) -> float:
        """Return the server's CPU time of a delivery, in µs."""
        devices, apps, size, times = workload
        machines = [self.connect(number, device=True) for number in range(devices)]
        readers = [[self.connect(number, device=False) for _ in range(apps)] for number in range(devices)]
        text = b'{"type":"status_delta","seq":1,"x":"' + b"a" * (size - 38) + b'"}'
        message = frame(text)

        def deliver_all() -> None:
            for machine in machines:
                machine.sock.sendall(message)
            for row in readers:
                for reader in row:
                    while reader.read_frame() != len(text):
                        pass

        rounds = max(1, messages * times // (devices * apps))
        for _ in range(rounds // 10 + 3):
            deliver_all()
        time.sleep(SETTLE_S)
        before_s = cpu_s(self.pid)
        for _ in range(rounds):
            deliver_all()
        used_s = cpu_s(self.pid) - before_s
        for peer in [*machines, *(reader for row in readers for reader in row)]:
            peer.sock.close()
        time.sleep(SETTLE_S)
        return used_s / (rounds * devices * apps) * 1e6

    def measure_idle(self, count: int) -> float:
        """Return the memory of a device's idle connection, in KiB."""
        for peer in [self.connect(number + 10_000, device=True) for number in range(20)]:
            peer.sock.close()
        time.sleep(SETTLE_S)
        before_kib = memory_kib(self.pid)
        peers = [self.connect(number + 20_000, device=True) for number in range(count)]
        time.sleep(SETTLE_S)
        used_kib = memory_kib(self.pid) - before_kib
        for peer in peers:
            peer.sock.close()
        return used_kib / count

    def measure_connecting(self, count: int) -> float:
        """Return the server's CPU time of a handshake and upgrade, in µs."""
        before_s = cpu_s(self.pid)
        peers = [self.connect(number + 50_000, device=True) for number in range(count)]
        used_s = cpu_s(self.pid) - before_s
        for peer in peers:
            peer.sock.close()
        return used_s / count * 1e6


def compare(plain: Side, tls: Side, chosen: argparse.Namespace) -> dict[str, list[tuple[float, float]]]:
    """Measure both sides in turns; return the pairs of their figures by workload, then the other pairs."""
    pairs = {
        name: [
            (plain.measure(workload, chosen.messages), tls.measure(workload, chosen.messages))
            for _ in range(chosen.rounds)
        ]
        for name, workload in TLS_WORKLOADS.items()
    }
    if chosen.idle:
        pairs["idle, KiB per connection"] = [(plain.measure_idle(chosen.idle), tls.measure_idle(chosen.idle))]
        pairs["connecting, CPU µs"] = [(plain.measure_connecting(100), tls.measure_connecting(100))]
    return pairs


def show(pairs: dict[str, list[tuple[float, float]]]) -> bool:
    """Print medians; return whether the target was missed."""
    print(f"{'workload':34}{'plain':>9}{'TLS':>9}{'ratio':>8}   CPU µs per delivery, medians")
    missed = False
    for name, values in pairs.items():
        middle = [statistics.median(side) for side in zip(*values, strict=True)]
        ratios = [over / under for under, over in values if under > 0]  # 0 in a short run
        ratio = statistics.median(ratios) if ratios else None
        missed |= name in TLS_WORKLOADS and ratio is not None and ratio > TLS_TARGET
        print(f"{name:34}{middle[0]:9.1f}{middle[1]:9.1f}{'-' if ratio is None else f'{ratio:.2f}':>8}")
    return missed


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--messages", type=int, default=20_000, help="deliveries of each measurement")
    parser.add_argument(
        "--idle", type=int, default=400, help="connections to measure memory with; 0 skips it"
    )
    parser.add_argument("--json", action="store_true", help="print all measurements as one line of JSON")
    chosen = parser.parse_args()
    pins = choose_pins()
    pin(pins.generator)
    with tempfile.TemporaryDirectory() as folder:
        pem = ensure_self_signed(Path(folder), now=datetime.datetime.now(datetime.UTC))
        plain, tls = Side(None, pins.server), Side(pem, pins.server)
        try:
            pairs = compare(plain, tls, chosen)
        finally:
            for side in (plain, tls):
                side.process.terminate()
    if chosen.json:
        print(json.dumps(pairs))
        return 0
    return 1 if show(pairs) else 0


if __name__ == "__main__":
    multiprocessing.set_start_method("spawn")
    sys.exit(main())

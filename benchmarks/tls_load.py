"""A load generator for connections over TLS: what `load idle` and `load storm` do, and report.

    python tls_load.py {idle,storm} --port P --pid PID --devices D --apps K --key KEY --token JWT [--secs S]

A few threads open blocking connections at the same time; none of them is ever read again.
"""

import argparse
import json
import os
import socket
import ssl
import struct
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

THREADS = 16
TIMEOUT_S = 20.0
SETTLE_S = 0.5
WARM_UP = 20
"""Connections made beforehand, so that what a server loads for the first one is not counted."""


def cpu_s(pid: int) -> float:
    """Return the CPU time of a process and all its threads, from the clock that is named by its id."""
    return time.clock_gettime((~pid << 3) | 2)


def memory_kib(pid: int) -> int:
    """Return the proportional memory of a process."""
    rollup = Path(f"/proc/{pid}/smaps_rollup").read_text(encoding="ascii").splitlines()
    return next(int(line.split()[1]) for line in rollup if line.startswith("Pss:"))


class Opener:
    """Opens WebSockets over TLS; each run comes from an address of its own, as `load` does it."""

    def __init__(self, port: int) -> None:
        self.port = port
        self.context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        self.context.check_hostname = False
        self.context.verify_mode = ssl.CERT_NONE
        offset = (os.getpid() & 0xFFFF) * 16
        self.source = socket.inet_ntoa(struct.pack("!I", 0x7F000001 + offset))
        self.failed: list[str] = []
        self._lock = threading.Lock()

    def open(self, target: str) -> ssl.SSLSocket | None:
        """Connect and ask for the upgrade; None if that failed."""
        plain = socket.socket()
        plain.settimeout(TIMEOUT_S)
        try:
            plain.bind((self.source, 0))
            plain.connect(("127.0.0.1", self.port))
            plain.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            secure = self.context.wrap_socket(plain)
            secure.sendall(
                f"GET {target} HTTP/1.1\r\nHost: 127.0.0.1\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
                "Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n".encode()
            )
            answer = b""
            while b"\r\n" not in answer and (data := secure.recv(4096)):
                answer += data
            if answer.startswith(b"HTTP/1.1 101"):
                return secure
            problem = repr(answer[:60])
        except OSError as error:
            problem = str(error)
        plain.close()
        with self._lock:
            self.failed.append(problem)
        return None

    def open_all(self, targets: list[str]) -> list[ssl.SSLSocket]:
        with ThreadPoolExecutor(THREADS) as pool:
            return [opened for opened in pool.map(self.open, targets) if opened is not None]


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Connect over TLS, many times.")
    parser.add_argument("mode", choices=("idle", "storm"))
    for name in ("port", "pid", "devices", "apps"):
        parser.add_argument(f"--{name}", type=int, required=True)
    for name in ("key", "token"):
        parser.add_argument(f"--{name}", required=True)
    parser.add_argument("--base", type=lambda text: int(text, 0), default=0x100, help="the first device")
    parser.add_argument(
        "--secs", type=float, default=5.0, help="how long to hold all connections (default 5)"
    )
    parser.add_argument("--verbose", action="store_true", help="say why a connection failed")
    return parser.parse_args()


def main() -> int:
    chosen = parse_arguments()
    ids = [f"BRW-{chosen.base + number:08X}" for number in range(chosen.devices)]
    devices = [f"/ws/device?id={device_id}&key={chosen.key}" for device_id in ids]
    apps = [f"/ws/client?token={chosen.token}&device={i}" for i in ids for _ in range(chosen.apps)]
    opener = Opener(chosen.port)
    for warm in opener.open_all(apps[:WARM_UP]):
        warm.close()
    time.sleep(SETTLE_S)

    before_kib, before_s, began_s = memory_kib(chosen.pid), cpu_s(chosen.pid), time.monotonic()
    opened = opener.open_all(devices + apps)
    connect_s, used_s = time.monotonic() - began_s, cpu_s(chosen.pid) - before_s
    time.sleep(SETTLE_S)
    idle_s = cpu_s(chosen.pid)
    time.sleep(chosen.secs)
    idle_s = cpu_s(chosen.pid) - idle_s
    pss_kib = memory_kib(chosen.pid)
    count = len(devices) + len(apps)
    report = {
        "mode": chosen.mode,
        "conns": len(opened),
        "failed": len(opener.failed),
        "connect_s": connect_s,
        "conns_per_s": count / connect_s,
        "cpu_us_per_conn": used_s / count * 1e6,
        "pss_kib": pss_kib,
        "kib_per_conn": (pss_kib - before_kib) / count,
        "idle_cpu_pct": idle_s / chosen.secs * 100,
    }
    print(json.dumps(report))
    for connection in opened:  # with a reset: thousands of ports that wait would be missing in the next run
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        connection.close()
    if opener.failed:
        print(f"{len(opener.failed)} connections failed, the first: {opener.failed[0]}", file=sys.stderr)
    return 1 if opener.failed else 0


if __name__ == "__main__":
    sys.exit(main())

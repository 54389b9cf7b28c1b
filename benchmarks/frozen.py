"""Measure the effect of one frozen app on the other 99 of its device and on the relay's memory.

    python benchmarks/frozen.py [--runs 7] [--secs 7]

Runs with and without the frozen app alternate, each with a fresh server; the first kind changes with each
round. A frozen app attaches with a small receive buffer and never reads. The operating system would buffer a
minute of these messages, so the device first sends until the relay itself buffers some. An app that accepts
nothing for 10 s is closed, so a run is shorter than that.

Exit codes: 0 both limits kept, 1 a limit missed or a measurement failed, 2 wrong usage, 3 could not start.
"""

import argparse
import json
import socket
import sys
import tempfile
import time
from contextlib import nullcontext
from pathlib import Path
from statistics import median

from pinning import Pins, choose_pins, describe, pinned_to
from progress import describe_machine, describe_python, say
from servers import BUILD, BenchError, Fleet, Server, build_programs, prepare_relay, run_quietly, running
from workloads import FIRST_DEVICE, Workload

WORKLOAD = Workload(
    name="frozen-1x99",
    group="frozen",
    mode="rate",
    devices=1,
    apps=99,
    arguments=("--rate", "50", "--size", "600"),
)
LATENCY_LIMIT = 1.2
MEMORY_LIMIT_KIB = 256
RECEIVE_BUFFER_BYTES = 4096
DEVICE_ID = f"BRW-{FIRST_DEVICE:08X}"
FILLING_BYTES, FILLINGS = 16_000, 500
LONGEST_SECS = 7.0


def upgrade(target: str, port: int) -> socket.socket:
    """Open a WebSocket; nothing of what the relay says is read behind its answer."""
    peer = socket.socket()
    try:
        peer.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, RECEIVE_BUFFER_BYTES)
        peer.settimeout(5)
        peer.connect(("127.0.0.1", port))
        peer.sendall(
            f"GET {target} HTTP/1.1\r\nHost: bench\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n"
            "Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n".encode()
        )
        if not peer.recv(512).startswith(b"HTTP/1.1 101"):
            raise BenchError("a WebSocket was refused")
    except BaseException:
        peer.close()
        raise
    return peer


def talk(server: Server, port: int) -> None:
    """Be the device for a moment, and say more than the operating system holds for an app."""
    payload = b'{"type":"log","level":"info","message":"' + b"x" * FILLING_BYTES + b'"}'
    frame = (
        b"\x81\xfe" + len(payload).to_bytes(2, "big") + bytes(4) + payload
    )  # a mask of zeros changes nothing
    with upgrade(f"/ws/device?id={DEVICE_ID}&key={server.key}", port) as device:
        for _ in range(FILLINGS):
            device.sendall(frame)
        device.sendall(b"\x88\x82" + bytes(4) + (1000).to_bytes(2, "big"))
        time.sleep(0.5)


def measure(server: Server, *, frozen: bool, secs: float, pins: Pins) -> tuple[float, float]:
    """Run the workload against a fresh server; return p99 in µs and the server's memory in KiB."""
    target = f"/ws/client?token={server.token}&device={DEVICE_ID}"
    with (
        running(server, cpu=pins.server) as (port, pid),
        upgrade(target, port) if frozen else nullcontext(),
    ):
        talk(server, port)
        command = [str(BUILD / "load"), *WORKLOAD.command, "--port", str(port), "--pid", str(pid)]
        secrets_and_length = ["--key", server.key, "--token", server.token, "--secs", str(secs)]
        report = json.loads(
            run_quietly([*command, *secrets_and_length], preexec_fn=pinned_to(pins.generator))
        )
    if frozen and " lags" not in (BUILD / "relay.log").read_text():
        raise BenchError("the relay did not have to hold anything for the frozen app")
    return report["p99_us"], report["pss_kib"]


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Measure the effect of one frozen app on the other 99.")
    parser.add_argument("--runs", type=int, default=7, help="rounds, of which the medians count (default 7)")
    parser.add_argument(
        "--secs", type=float, default=7.0, help="length of one measurement, 7 at most (default 7)"
    )
    chosen = parser.parse_args()
    if chosen.runs < 1 or not 0 < chosen.secs <= LONGEST_SECS:
        parser.error(f"--runs must be above 0, --secs above 0 and not above {LONGEST_SECS:.0f}")
    return chosen


def main() -> int:
    arguments = parse_arguments()
    p99_us: dict[bool, list[float]] = {False: [], True: []}
    pss_kib: dict[bool, list[float]] = {False: [], True: []}
    failures = 0
    pins = choose_pins()
    with tempfile.TemporaryDirectory(prefix="brewos-relay-frozen-") as folder:
        try:
            build_programs()
            server = prepare_relay(Fleet(folder=Path(folder), devices=1), command=None)
        except BenchError as error:
            say(str(error))
            return 3
        for run in range(arguments.runs):
            for frozen in (run % 2 == 1, run % 2 == 0):
                label = f"[{run + 1}/{arguments.runs}] {'with' if frozen else 'without'} a frozen app"
                try:
                    p99, pss = measure(server, frozen=frozen, secs=arguments.secs, pins=pins)
                except (BenchError, OSError) as error:
                    failures += 1
                    say(f"{label}: {error}")
                    continue
                say(f"{label:<27} p99 {p99:6.0f} µs, memory {pss:6.0f} KiB")
                p99_us[frozen].append(p99)
                pss_kib[frozen].append(pss)
    if not all(p99_us.values()):
        return 1

    without_us, with_us = median(p99_us[False]), median(p99_us[True])
    growth_kib = median(pss_kib[True]) - median(pss_kib[False])
    noise_kib = max(pss_kib[False]) - min(pss_kib[False])
    slower = with_us / without_us
    print(f"p99 of the 99 others: {without_us:.0f} µs without, {with_us:.0f} µs with a frozen app:", end=" ")
    print(f"{slower:.2f} x, limit {LATENCY_LIMIT} x: {'ok' if slower <= LATENCY_LIMIT else 'MISSED'}")
    small = growth_kib <= MEMORY_LIMIT_KIB + noise_kib
    print(f"memory: {growth_kib:+.0f} KiB with it, limit {MEMORY_LIMIT_KIB} KiB", end=" ")
    print(f"(runs without it differ by {noise_kib:.0f} KiB): {'ok' if small else 'MISSED'}")
    print(f"\nMedians of {arguments.runs}. {describe_machine()}, {describe_python()}, {describe(pins)}.")
    return 0 if slower <= LATENCY_LIMIT and small and not failures else 1


if __name__ == "__main__":
    sys.exit(main())

"""The cost of a message between two instances: CPU time of the sender and of the receiver, through Redis.

Needs a Redis server, unless `--url` is given, and the extra `redis`. Each instance is a process of its own.
"""

import argparse
import multiprocessing
import statistics
import sys
import time
from multiprocessing.connection import Connection

import trio
from redis_server import START_S, running_redis

from brewos_relay.cluster.broker import BrokerConnection, Mail, OwnerChanged
from brewos_relay.cluster.redis_broker import RedisBroker
from brewos_relay.cluster.redis_url import parse_redis_url
from brewos_relay.errors import RelayError
from brewos_relay.server.private_redis import find_program

MESSAGE_BYTES = 600
BURSTS = (1, 8)
SENDS_PER_S = 2_000
"""Bursts in a second: so slow that each of them arrives before the next one is sent."""
CANNOT_START = 3


def receive(url: str, count: int, result: Connection) -> None:
    """Receive this many messages; report the CPU time for each in µs, without the first one."""

    async def main() -> None:
        done = trio.Event()
        got = 0
        began_s = 0.0

        def take(message: Mail | OwnerChanged) -> None:
            nonlocal got, began_s
            assert isinstance(message, Mail)
            assert len(message.payload) == MESSAGE_BYTES
            got += 1
            if got == 1:
                began_s = time.process_time()
            elif got == count:
                done.set()

        async with RedisBroker(parse_redis_url(url)).connect("receiver", take) as bus:
            result.send("ready")
            with trio.move_on_after(count / SENDS_PER_S * 3 + START_S):  # the sender paces twice
                await done.wait()
            if got < count:
                with trio.move_on_after(0):
                    print(f"the connection was lost: {await bus.wait_lost()}", file=sys.stderr)
                raise RuntimeError(f"{count - got} of {count} messages did not arrive")
            result.send((time.process_time() - began_s) / (count - 1) * 1e6)

    trio.run(main)


def send(url: str, count: int, burst: int, result: Connection) -> None:
    """Send this many messages, in bursts; report the CPU time for each in µs, less that of an idle loop."""

    payload = b"x" * MESSAGE_BYTES

    async def pace(bus: BrokerConnection | None) -> float:
        began_s = time.process_time()
        next_s = trio.current_time()
        for _ in range(count // burst):
            if bus is not None:
                for _ in range(burst):
                    assert bus.send("receiver", payload)
            next_s += 1 / SENDS_PER_S
            await trio.sleep_until(next_s)
        return time.process_time() - began_s

    async def main() -> None:
        async with RedisBroker(parse_redis_url(url)).connect("sender", lambda _: None) as bus:
            idle_s = await pace(None)
            result.send((await pace(bus) - idle_s) / count * 1e6)

    trio.run(main)


def measure(url: str, count: int, burst: int) -> tuple[float, float]:
    """Return the CPU time of a message in µs, of the sender and of the receiver."""
    spawn = multiprocessing.get_context("spawn")
    sent, sends = spawn.Pipe(duplex=False)
    received, receives = spawn.Pipe(duplex=False)
    receiver = spawn.Process(target=receive, args=(url, count, receives))
    receiver.start()
    assert received.recv() == "ready"
    sender = spawn.Process(target=send, args=(url, count, burst, sends))
    sender.start()
    # Without these, the end of a process that fails is noticed.
    receives.close()
    sends.close()
    try:
        return sent.recv(), received.recv()
    finally:
        sender.join()
        receiver.join()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--url", help="use this server instead of a new one on this machine")
    parser.add_argument("--messages", type=int, default=8_000, help="messages of a round (8000)")
    parser.add_argument("--rounds", type=int, default=5)
    arguments = parser.parse_args()
    if arguments.url:
        run(arguments.url, arguments.messages, arguments.rounds)
        return
    try:
        program = find_program()
    except RelayError as error:
        print(error, file=sys.stderr)
        sys.exit(CANNOT_START)
    with running_redis(program) as server:
        run(server.url, arguments.messages, arguments.rounds)


def run(url: str, count: int, rounds: int) -> None:
    print(f"CPU time of a message of {MESSAGE_BYTES} bytes in µs, median of {rounds} (least to most)")
    for burst in BURSTS:
        results = [measure(url, count - count % burst, burst) for _ in range(rounds)]
        columns = [
            f"{name} {statistics.median(each):.1f} ({min(each):.1f} to {max(each):.1f})"
            for name, each in zip(("send", "receive"), zip(*results, strict=True), strict=True)
        ]
        print(f"bursts of {burst}: {', '.join(columns)}")


if __name__ == "__main__":
    main()

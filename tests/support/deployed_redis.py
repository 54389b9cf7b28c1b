"""A Redis with a configuration from `deploy/`, and a check that instances can use it and do no more."""

import re
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import urlsplit

import pytest
import trio

from brewos_relay.cluster.broker import BrokerError, Claim, Mail, OwnerChanged
from brewos_relay.cluster.redis_broker import RedisBroker
from brewos_relay.cluster.redis_url import parse_redis_url
from support.pages import read
from support.ports import free_port
from support.redis_server import REQUIRED, find_redis


def documented_rights() -> str:
    """Return the rights that the settings reference gives to the relay's user, in one line.

    tests/cluster/test_redis_broker.py checks that the relay needs exactly these.
    """
    [rights] = re.findall(r"ACL SETUSER relay on >PASSWORD ([^`]+)", read("reference/settings.md"))
    return " ".join(rights.split())


def need_redis() -> Path:
    """Find the program; without it, the test is skipped, or fails where it is required."""
    program = find_redis()
    if program is None:
        if REQUIRED:
            pytest.fail("there is no redis-server here, and BREWOS_RELAY_REDIS_TESTS=required")
        pytest.skip("there is no redis-server here; BREWOS_RELAY_REDIS_TESTS=required makes this a failure")
    return program


@contextmanager
def redis_with_configuration(configuration: str, folder: Path) -> Iterator[int]:
    """Run a Redis with this configuration on a free port, and yield the port."""
    file = folder / "redis.conf"
    file.write_text(configuration)
    with running([str(need_redis()), str(file)], folder) as port:
        yield port


@contextmanager
def running(command: list[str], folder: Path) -> Iterator[int]:
    """Run a command that ends with the arguments of a Redis, on a free port."""
    port = free_port()
    log = folder / "redis.log"
    with log.open("wb") as output:
        process = subprocess.Popen(
            [*command, "--port", str(port), "--bind", "127.0.0.1", "--dir", str(folder)],
            stdout=output,
            stderr=output,
        )
    try:
        deadline_s = time.monotonic() + 20
        while b"eady to accept connections" not in log.read_bytes():
            assert process.poll() is None, log.read_text()
            assert time.monotonic() < deadline_s, log.read_text()
            time.sleep(0.01)
        yield port
    finally:
        process.kill()
        process.wait(20)


async def check_broker(url: str) -> None:
    """Check that two instances can use the server, with their own user, who has the least rights."""
    received: list[Mail | OwnerChanged] = []
    broker = RedisBroker(parse_redis_url(url))
    with trio.fail_after(20):
        async with broker.connect("one", received.append) as one, broker.connect("two", print) as two:
            assert not await two.renew(b"{}")
            assert set(await one.instances()) == {"two"}
            assert (await one.subscribe("BRW-00000001")).owner is None
            [claimed] = await two.claim([Claim("BRW-00000001", 5)])
            assert claimed.won
            assert two.send("one", b"mail")
            assert await one.take_budget("a", amount=1, per_s=1, burst=1)
            await one.refund_budget("a", amount=1, burst=1)
            await one.note_swap("BRW-00000001")
            assert (await one.locate(["BRW-00000001"]))[0].owner == claimed.since
            await two.release("BRW-00000001", claimed.since)
            assert await one.count_mailboxes(["two"]) == [True]
            await two.resign()
            while len(received) < 3:  # noqa: ASYNC110 - another task receives
                await trio.sleep(0.01)
            with pytest.raises(BrokerError, match="NOPERM"):
                await one.link.call([("FLUSHALL",)])
        wrong = url.replace(str(urlsplit(url).password), "wrong")
        with pytest.raises(BrokerError):
            async with RedisBroker(parse_redis_url(wrong)).connect("three", print):
                pass

"""Brokers to test against, and instances that use them."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Protocol

import trio

from brewos_relay.cluster.broker import Broker, BrokerConnection, Mail, OwnerChanged
from brewos_relay.cluster.redis_broker import RedisBroker
from brewos_relay.cluster.redis_url import parse_redis_url
from support.memory_broker import MemoryBroker
from support.redis_server import RedisServer
from support.waiting import until

START_S = 1_800_000_000.0
WITHIN_S = 10.0

_AGE = """
local us = tonumber(ARGV[1])
for _, key in ipairs(redis.call('KEYS', '*')) do
  local name = string.match(key, ':(%l+)')
  local left_ms = redis.call('PTTL', key)
  if name == 'swaps' then
    local times = redis.call('LRANGE', key, 0, -1)
    for i, time in ipairs(times) do
      redis.call('LSET', key, i - 1, string.format('%.0f', time - us))
    end
  elseif name == 'budget' then
    local left, at = string.match(redis.call('GET', key), '(%S+) (%S+)')
    redis.call('SET', key, left .. ' ' .. string.format('%.0f', at - us), 'KEEPTTL')
  elseif name == 'instances' then
    for _, instance in ipairs(redis.call('ZRANGE', key, 0, -1)) do
      redis.call('ZINCRBY', key, -us, instance)
    end
  end
  if left_ms >= 0 then
    redis.call('PEXPIRE', key, math.max(0, left_ms - us / 1000))
  end
end
return 1
"""


class BrokerUnderTest(Protocol):
    """A broker, and what tests do to it."""

    broker: Broker

    def age(self, seconds: float) -> None:
        """Make everything that the broker has stored older, except the times of owners."""
        ...

    def flush(self) -> None:
        """Lose all data."""
        ...

    def cut(self, instance: str) -> None:
        """Cut the connection of an instance."""
        ...


class MemoryUnderTest:
    """A broker in memory whose clock stands still."""

    def __init__(self) -> None:
        self.now_s = START_S
        self.memory = MemoryBroker(lambda: self.now_s)
        self.broker: Broker = self.memory
        self.flush = self.memory.flush
        self.cut = self.memory.cut

    def age(self, seconds: float) -> None:
        self.now_s += seconds


class RedisUnderTest:
    """A broker on a server."""

    def __init__(self, server: RedisServer, *, prefix: str = "brewos:") -> None:
        self.server = server
        self.broker: Broker = RedisBroker(parse_redis_url(f"{server.socket_url}&prefix={prefix}"))
        self.flush = server.flush

    def age(self, seconds: float) -> None:
        reply = self.server.run("EVAL", _AGE, "0", str(round(seconds * 1e6)))
        assert reply == b":1\r\n", reply

    def cut(self, instance: str) -> None:
        for line in self.server.run("CLIENT", "LIST").decode().splitlines():
            fields = dict(field.split("=", 1) for field in line.split() if "=" in field)
            if fields.get("name") == f"brewos-relay:{instance}":
                self.server.run("CLIENT", "KILL", "ID", fields["id"])


class Member:
    """An instance. Keeps what it receives; `bus` is its present connection."""

    def __init__(self, broker: Broker, name: str) -> None:
        self._broker = broker
        self.name = name
        self.received: list[Mail | OwnerChanged] = []
        self._settled = 0
        self._stop = trio.Event()
        self._stopped = trio.Event()
        self.bus: BrokerConnection

    async def run(self, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Keep a connection until `stop`."""
        async with self._broker.connect(self.name, self.received.append) as self.bus:
            task_status.started()
            await self._stop.wait()
        self._stopped.set()

    async def stop(self) -> None:
        """Close the connection."""
        self._stop.set()
        await self._stopped.wait()
        self._stop, self._stopped = trio.Event(), trio.Event()

    async def take(self) -> list[Mail | OwnerChanged]:
        """Wait until everything that was sent has arrived, and return all of it since the last call."""
        self._settled += 1
        marker = Mail(b"settled %d" % self._settled)
        assert self.bus.send(self.name, marker.payload)
        await until(lambda: marker in self.received)
        taken = [each for each in self.received if each != marker]
        self.received.clear()
        return taken


@asynccontextmanager
async def members(
    broker: Broker, *names: str, renewed: bool = True, within_s: float = WITHIN_S
) -> AsyncIterator[list[Member]]:
    """Connect instances, each with a lease unless `renewed` is False. The block has `within_s`."""
    failure: Exception | None = None
    with trio.fail_after(within_s):
        async with trio.open_nursery() as nursery:
            joined = [Member(broker, name) for name in names]
            for member in joined:
                await nursery.start(member.run)
                if renewed:
                    await member.bus.renew(b"")
            try:
                yield joined
            except Exception as error:
                failure = error
            nursery.cancel_scope.cancel()
    if failure is not None:
        raise failure

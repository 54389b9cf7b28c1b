"""Observe a cluster on Redis without being one of its instances. Nothing stays on the bus."""

import re
import secrets
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any, Final

from brewos_relay.cluster.broker import LEASE_S, BrokerError, Mail, OwnerChanged
from brewos_relay.cluster.envelopes import LiveAnswer, unpack
from brewos_relay.cluster.redis_broker import RedisBroker, RedisConnection
from brewos_relay.cluster.requests import Requests

_OLDEST: Final = (6, 2)
_PUBSUB_HARD_BYTES: Final = 32 * 1024 * 1024
_PUBSUB_SOFT_BYTES: Final = 8 * 1024 * 1024
"""The limits for subscribers that Redis has by default. With smaller ones, it closes connections of instances
in a burst of messages."""

_NUMBER: Final = re.compile(r"[0-9]+")


@dataclass(frozen=True, slots=True)
class ServerFacts:
    """What a Redis server tells about itself. None stands for what this user may not read."""

    version: str | None
    is_too_old: bool = False
    evicts: str | None = None
    """The eviction policy, if the server may evict keys when its memory is full."""
    memory_is_readable: bool = True
    pubsub_limits: tuple[int, int] | None = None
    """The hard and the soft limit for subscribers in bytes; 0 for no limit."""

    @property
    def has_small_buffers(self) -> bool:
        """Whether it disconnects instances in a burst of messages that a default Redis would carry."""
        hard, soft = self.pubsub_limits or (0, 0)
        return 0 < hard < _PUBSUB_HARD_BYTES or 0 < soft < _PUBSUB_SOFT_BYTES


@asynccontextmanager
async def observe(broker: RedisBroker) -> AsyncIterator[tuple[RedisConnection, Requests]]:
    """Connect to a cluster as an observer, which can ask its instances.

    Raises BrokerError if the bus cannot be reached in time.
    """
    name = _observer_name()

    def receive(message: Mail | OwnerChanged) -> None:
        if isinstance(message, Mail) and isinstance(answer := unpack(message.payload), LiveAnswer):
            requests.take(answer)

    async with broker.connect(name, receive) as connection:
        requests = Requests(name, connection.send)
        yield connection, requests


async def read_facts(broker: RedisBroker) -> ServerFacts:
    """Ask a server for its version and its limits. Raises BrokerError if it cannot be reached."""
    info = _parse_info(await _ask(broker, "INFO"))
    number = info.get("valkey_version") or info.get("redis_version")
    program = "Valkey" if "valkey_version" in info else "Redis"
    at_least = tuple(map(int, _NUMBER.findall(info.get("redis_version", "")[:20])[:2]))
    policy = info.get("maxmemory_policy")
    return ServerFacts(
        version=f"{program} {number[:20]}" if number else None,
        is_too_old=len(at_least) == len(_OLDEST) and at_least < _OLDEST,
        evicts=policy if policy not in (None, "noeviction") and info.get("maxmemory") != "0" else None,
        memory_is_readable=policy is not None,
        pubsub_limits=_pubsub_limits(await _ask(broker, "CONFIG", "GET", "client-output-buffer-limit")),
    )


async def lease_ages_s(connection: RedisConnection, prefix: str) -> dict[str, float]:
    """Return how long ago each instance renewed its lease, by the clock of Redis."""
    [ends] = await connection.link.call(
        [("ZRANGEBYSCORE", f"{prefix}instances", "-inf", "+inf", "WITHSCORES")]
    )
    now_us = await connection.now_us()
    return {
        name.decode("ascii", "replace"): max(0.0, LEASE_S - (float(end_us) - now_us) / 1e6)
        for name, end_us in ends
    }


async def _ask(broker: RedisBroker, *command: str) -> Any:
    """Send a command that this user may have no right to: None then. An error ends its connection."""
    async with broker.connect(_observer_name(), lambda _message: None) as connection:
        try:
            [reply] = await connection.link.call([command])
        except BrokerError:
            return None
        return reply


def _observer_name() -> str:
    return f"observer-{secrets.token_hex(6)}"


def _parse_info(reply: Any) -> dict[str, str]:
    text = _text(reply)
    pairs = (line.split(":", 1) for line in text.splitlines() if ":" in line)
    return {name: value.strip() for name, value in pairs}


def _pubsub_limits(reply: Any) -> tuple[int, int] | None:
    if isinstance(reply, dict):
        words: Sequence[str] = _text(reply.get(b"client-output-buffer-limit")).split()
        if "pubsub" in words:
            limits = words[words.index("pubsub") + 1 :][:2]
            if len(limits) == 2 and all(map(str.isdigit, limits)):
                return int(limits[0]), int(limits[1])
    return None


def _text(reply: Any) -> str:
    return reply.decode("utf-8", "replace") if isinstance(reply, bytes) else str(reply or "")

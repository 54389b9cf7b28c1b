"""A broker on Redis or Valkey: one RESP3 connection for each instance."""

import math
import re
import ssl
from collections.abc import AsyncIterator, Iterable, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from itertools import count
from typing import Any, Final, TypeAlias

import trio

from brewos_relay.cluster import redis_scripts
from brewos_relay.cluster.broker import (
    LEASE_S,
    RENEW_EVERY_S,
    SWAPS,
    SWAPS_WITHIN_S,
    BrokerError,
    Claim,
    ClaimResult,
    Located,
    Mail,
    OwnerChanged,
    Receive,
    Since,
)
from brewos_relay.cluster.redis_scripts import Script
from brewos_relay.cluster.redis_url import RedisAddress
from brewos_relay.cluster.resp import Argument, ErrorReply, RespConnection, split

CONNECT_WITHIN_S: Final = 5.0
PROBE_EVERY_S: Final = 1.0
LOST_AFTER_S: Final = 5.0
"""How long the answer to a probe of the own mailbox may take."""
DESCRIPTION_BYTES: Final = 4096
"""The size of the longest description of an instance."""
INSTANCES: Final = 1000
"""The most instances that are listed."""

_DEVICES_AT_ONCE: Final = 100
"""Devices for one script. It takes less than a millisecond; Redis serves no other client meanwhile."""
_OWNER_EXPIRY_S: Final = 7 * 24 * 3600
_KEEP_WITHIN_S: Final = 24 * 3600
"""Each owned device is kept from expiry about this often."""
_BUDGET_EXPIRY_S: Final = 30 * 24 * 3600
_FLUSH_S: Final = 1.0

_INSTANCE: Final = re.compile(r"[!-~]{1,200}")
_RECORD: Final = re.compile(rb"(-?[0-9]{1,17}) ([!-~]{1,200})")
_ANNOUNCEMENT: Final = re.compile(rb"([+-])([^\n]+)\n([^\n]{1,256})")
_PROBE: Final = re.compile(rb"p([0-9]{1,15})")
_EXACT: Final = 2**53
"""Lua's numbers are exact below."""

Invocation: TypeAlias = tuple[Sequence[Argument], Sequence[Argument]]
"""Keys and arguments of a script."""


class RedisBroker:
    """Connects instances to a Redis server; see `Broker`. Needs Redis 6.2 or newer, or Valkey.

    Raises OSError or ssl.SSLError if a certificate cannot be used.
    """

    def __init__(
        self,
        address: RedisAddress,
        *,
        lease_s: float = LEASE_S,
        connect_within_s: float = CONNECT_WITHIN_S,
        probe_every_s: float = PROBE_EVERY_S,
        lost_after_s: float = LOST_AFTER_S,
    ) -> None:
        self._address = address
        self._tls_context = address.make_tls_context()
        self._lease_s = lease_s
        self._connect_within_s = connect_within_s
        self._probe_every_s = probe_every_s
        self._lost_after_s = lost_after_s

    @asynccontextmanager
    async def connect(self, instance: str, receive: Receive) -> AsyncIterator["RedisConnection"]:
        """Connect an instance; see `Broker.connect`.

        **Owns:** the task that runs the connection, with its own nursery, and the task that probes it.
        **Ends when:** the block is left.
        """
        if not _INSTANCE.fullmatch(instance):
            raise ValueError(f"the name of an instance must be 1 to 200 visible characters, got {instance!r}")
        problem: Exception | None = None
        deadline = trio.current_time() + self._connect_within_s
        connection = await self._open(instance, receive, deadline)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(connection.link.run)
            try:
                await self._greet(connection, deadline)
                nursery.start_soon(connection.probe, self._probe_every_s, self._lost_after_s)
                yield connection
                with trio.move_on_after(_FLUSH_S):
                    await connection.link.flush()
            except Exception as error:  # raised here, the nursery would wrap it in a group
                problem = error
            connection.link.lose("it was closed")
            nursery.cancel_scope.cancel()
        if problem is not None:
            raise problem

    async def _open(self, instance: str, receive: Receive, deadline: float) -> "RedisConnection":
        try:
            with trio.fail_at(deadline):
                stream = await self._address.open(self._tls_context)
        except trio.TooSlowError:
            raise BrokerError(f"{self._address} did not answer within {self._connect_within_s:g} s") from None
        except (OSError, ssl.SSLError, trio.BrokenResourceError) as error:
            reason: BaseException = error.__cause__ or error
            if isinstance(reason, BaseExceptionGroup):  # one for each address of the host
                reason = reason.exceptions[0]
            raise BrokerError(f"cannot connect to {self._address}: {reason}") from None
        return RedisConnection(stream, instance, receive, self._address, self._lease_s)

    async def _greet(self, connection: "RedisConnection", deadline: float) -> None:
        try:
            with trio.fail_at(deadline):
                await connection.greet(self._address)
        except trio.TooSlowError:
            raise BrokerError(f"{self._address} did not answer within {self._connect_within_s:g} s") from None
        except BrokerError as error:
            raise BrokerError(f"cannot use {self._address}: {connection.link.why_lost or error}") from None


class RedisConnection:
    """The connection of one instance to Redis; see `BrokerConnection`."""

    def __init__(
        self, stream: Any, instance: str, receive: Receive, address: RedisAddress, lease_s: float
    ) -> None:
        self.instance = instance
        self.link = RespConnection(stream, self._on_message)
        self._receive = receive
        self._lease_s = lease_s
        self._prefix = address.prefix
        self._channels = f"{address.prefix}{address.db}:"
        self._boxes = f"{self._channels}box:".encode()
        self._box = self._boxes + instance.encode()
        self._devices = f"{self._channels}dev:".encode()
        self._subscriptions: dict[str, int] = {}
        self._subscribing = count()
        self._owned: dict[str, None] = {}
        self._announced = b""
        """The last announcement that came on the channel of a device: the mailbox may get it as well."""
        self._probe = self._answered = 0

    # Connecting and probing

    async def greet(self, address: RedisAddress) -> None:
        """Sign in, prepare the server, and wait until messages arrive. Raises BrokerError."""
        hello: list[Argument] = ["HELLO", 3]
        if address.password:
            hello += ["AUTH", address.user, address.password]
        hello += ["SETNAME", f"brewos-relay:{self.instance}"]
        [server] = await self.link.call([hello])
        with self._checking():
            role, mode = server[b"role"], server[b"mode"]
        if mode == b"cluster":
            raise BrokerError("it is part of a Redis Cluster; use a single server, or one with replicas")
        if role not in (b"master", b"primary"):
            raise BrokerError("it is a replica, which cannot be written to")
        await self.link.call(
            [["SELECT", address.db], *(["SCRIPT", "LOAD", script.source] for script in redis_scripts.ALL)]
        )
        self.link.subscribe(self._box)
        self._send_probe()
        await self.link.call([("PING",)])
        if not self._answered:
            raise BrokerError("a message to the own mailbox did not come back")

    async def probe(self, every_s: float, lost_after_s: float) -> None:
        """Send probes to the own mailbox. End the connection if several in a row are not answered.

        Counts probes instead of time, so that a pause of this process ends no connection.
        """
        allowed = max(1, round(lost_after_s / every_s))
        missed = 0
        while not self.link.is_lost:
            missed = 0 if self._answered == self._probe else missed + 1
            if missed >= allowed:
                self.link.lose(f"no message came back for {lost_after_s:g} s")
                return
            self._send_probe()
            await trio.sleep(every_s)

    def _send_probe(self) -> None:
        self._probe += 1
        self.link.publish_now(self._box, b"p%d" % self._probe)

    async def wait_lost(self) -> str:
        """See `BrokerConnection.wait_lost`."""
        return await self.link.wait_lost()

    # Leases

    async def now_us(self) -> int:
        """See `BrokerConnection.now_us`."""
        [time] = await self.link.call([("TIME",)])
        with self._checking():
            seconds, microseconds = (int(each) for each in time)
            return seconds * 1_000_000 + microseconds

    async def renew(self, info: bytes) -> bool:
        """See `BrokerConnection.renew`. `info` has at most `DESCRIPTION_BYTES`."""
        if len(info) > DESCRIPTION_BYTES:
            raise ValueError(f"a description must have at most {DESCRIPTION_BYTES} bytes, got {len(info)}")
        lease_ms = round(self._lease_s * 1000)
        arguments = (self.instance, info, lease_ms, _OWNER_EXPIRY_S)
        [was_valid] = await self._run(redis_scripts.RENEW, [(self._some_owned(), arguments)])
        return bool(was_valid)

    async def resign(self) -> None:
        """See `BrokerConnection.resign`."""
        await self.link.call(
            [
                ("DEL", f"{self._prefix}alive:{self.instance}"),
                ("ZREM", f"{self._prefix}instances", self.instance),
            ]
        )

    async def instances(self) -> dict[str, bytes]:
        """See `BrokerConnection.instances`. Lists at most `INSTANCES`."""
        [found] = await self._run(redis_scripts.INSTANCES, [((), (INSTANCES,))])
        with self._checking():
            pairs = list(zip(found[::2], found[1::2], strict=True))
            return {_instance(name): _bytes(info, DESCRIPTION_BYTES) for name, info in pairs}

    async def count_mailboxes(self, instances: Sequence[str]) -> list[bool]:
        """See `BrokerConnection.count_mailboxes`."""
        [counts] = await self.link.call([("PUBSUB", "NUMSUB", *map(self._box_of, instances))])
        with self._checking():
            if isinstance(counts, dict):
                counts = [each for pair in counts.items() for each in pair]
            if len(counts) != 2 * len(instances):
                # Redis counts a channel that is given twice twice, but a map would have it once.
                raise ValueError("a count is missing")
            return [int(each) > 0 for each in counts[1::2]]

    # Owners

    async def claim(self, claims: Sequence[Claim]) -> list[ClaimResult]:
        """See `BrokerConnection.claim`."""
        for claim in claims:
            self._owned[claim.device_id] = None
        chunks = list(_chunks(claims))
        invocations: list[Invocation] = [
            (
                [self._own(claim.device_id) for claim in chunk],
                [self.instance, _OWNER_EXPIRY_S, *(_time_of(claim) for claim in chunk)],
            )
            for chunk in chunks
        ]
        results: list[ClaimResult] = []
        for chunk, owners in zip(chunks, await self._run(redis_scripts.CLAIM, invocations), strict=True):
            with self._checking():
                for claim, owner in zip(chunk, owners, strict=True):
                    since = Since(claim.at_us, self.instance)
                    results.append(ClaimResult(since, since if owner == b"" else _since(owner)))
        for claim, result in zip(claims, results, strict=True):
            if not result.won:
                self._owned.pop(claim.device_id, None)
        return results

    async def release(self, device_id: str, since: Since) -> None:
        """See `BrokerConnection.release`."""
        self._owned.pop(device_id, None)
        record = f"{since.at_us} {since.instance}"
        await self._run(redis_scripts.RELEASE, [([self._own(device_id)], [record])])

    async def locate(self, device_ids: Sequence[str]) -> list[Located]:
        """See `BrokerConnection.locate`."""
        return await self._locate(device_ids)

    async def note_swap(self, device_id: str) -> None:
        """See `BrokerConnection.note_swap`."""
        key = f"{self._prefix}swaps:{device_id}"
        await self._run(redis_scripts.NOTE_SWAP, [([key], [SWAPS, round(SWAPS_WITHIN_S)])])

    async def subscribe(self, device_id: str) -> Located:
        """See `BrokerConnection.subscribe`."""
        self.link.check()
        number = next(self._subscribing)
        is_new = device_id not in self._subscriptions
        self._subscriptions[device_id] = number
        if is_new:
            self.link.subscribe(self._devices + device_id.encode())
        try:
            [located] = await self._locate([device_id])
        except trio.Cancelled:
            # Another task may have subscribed to the device since.
            if is_new and self._subscriptions.get(device_id) == number:
                self._forget(device_id)
            raise
        return located

    async def unsubscribe(self, device_id: str) -> None:
        """See `BrokerConnection.unsubscribe`."""
        await trio.lowlevel.checkpoint()
        self.link.check()
        if device_id in self._subscriptions:
            self._forget(device_id)

    # Mail and budgets

    def send(self, instance: str, payload: bytes) -> bool:
        """See `BrokerConnection.send`."""
        return self.link.publish(self._box_of(instance), payload)

    async def take_budget(self, key: str, *, amount: float, per_s: float, burst: float) -> bool:
        """See `BrokerConnection.take_budget`."""
        full_after_s = burst / per_s if per_s > 0 else math.inf
        expiry_s = math.ceil(min(full_after_s, _BUDGET_EXPIRY_S)) + 1
        arguments = (float(amount), float(per_s), float(burst), expiry_s)
        [taken] = await self._run(redis_scripts.TAKE, [([f"{self._prefix}budget:{key}"], arguments)])
        return bool(taken)

    async def refund_budget(self, key: str, *, amount: float, burst: float) -> None:
        """See `BrokerConnection.refund_budget`."""
        arguments = (float(amount), float(burst))
        await self._run(redis_scripts.REFUND, [([f"{self._prefix}budget:{key}"], arguments)])

    async def _locate(self, device_ids: Sequence[str]) -> list[Located]:
        arguments = (SWAPS, round(SWAPS_WITHIN_S * 1e6))
        invocations = [([self._own(each) for each in chunk], arguments) for chunk in _chunks(device_ids)]
        located: list[Located] = []
        replies = await self._run(redis_scripts.LOCATE, invocations)
        with self._checking():
            for reply in replies:
                located += [_located(each) for each in reply]
            if len(located) != len(device_ids):
                raise ValueError("a device is missing")
        return located

    async def _run(self, script: Script, invocations: Iterable[Invocation]) -> list[Any]:
        """Run a script once for each of the invocations, all in one pipeline."""
        tails = [
            (len(keys), *keys, self._prefix, self._channels, *arguments) for keys, arguments in invocations
        ]
        replies = await self.link.call([("EVALSHA", script.sha, *tail) for tail in tails])
        # Redis has forgotten the script. EVAL loads it.
        missing = [n for n, reply in enumerate(replies) if isinstance(reply, ErrorReply)]
        if missing:
            again = await self.link.call([("EVAL", script.source, *tails[n]) for n in missing])
            for n, reply in zip(missing, again, strict=True):
                replies[n] = reply
        return replies

    def _own(self, device_id: str) -> str:
        return f"{self._prefix}own:{device_id}"

    def _box_of(self, instance: str) -> bytes:
        return self._boxes + instance.encode()

    def _forget(self, device_id: str) -> None:
        del self._subscriptions[device_id]
        self._announced = b""  # the mailbox alone gets the next one, which may be the same
        self.link.unsubscribe(self._devices + device_id.encode())

    def _some_owned(self) -> list[str]:
        """Take the next owned devices in turn, as many as each renewal has to keep from expiry."""
        each_time = math.ceil(len(self._owned) * RENEW_EVERY_S / _KEEP_WITHIN_S)
        chosen = [device_id for _, device_id in zip(range(each_time), self._owned, strict=False)]
        for device_id in chosen:
            del self._owned[device_id]
            self._owned[device_id] = None
        return [self._own(device_id) for device_id in chosen]

    @contextmanager
    def _checking(self) -> Iterator[None]:
        """End the connection if a reply in the block has the wrong form."""
        try:
            yield
        except (AttributeError, IndexError, KeyError, TypeError, ValueError):
            self.link.lose("Redis sent a reply of the wrong form")
            self.link.check()

    def _on_message(self, channel: bytes, payload: bytes) -> None:
        if channel == self._box:
            self._on_mail(payload)
        elif channel.startswith(self._devices):
            device_id = channel[len(self._devices) :].decode("utf-8", "replace")
            if device_id in self._subscriptions:
                self._announced = payload
                self._announce(payload)

    def _on_mail(self, payload: bytes) -> None:
        before, self._announced = self._announced, b""
        try:
            payloads = split(payload)
        except ValueError:
            raise BrokerError("a message to this instance is malformed") from None
        if payloads is not None:
            for each in payloads:
                self._receive(Mail(each))
        elif payload[:1] in (b"+", b"-"):
            # The script published it to both channels at once, so nothing came between.
            if payload != before:
                self._announce(payload)
        elif (probe := _PROBE.fullmatch(payload)) is not None:
            self._answered = max(self._answered, min(int(probe[1]), self._probe))

    def _announce(self, payload: bytes) -> None:
        match = _ANNOUNCEMENT.fullmatch(payload)
        try:
            if match is None:
                raise ValueError("malformed")
            since, device_id = _since(match[2]), match[3].decode()
        except ValueError:
            raise BrokerError("an announcement of an owner is malformed") from None
        if since.instance != self.instance:
            self._owned.pop(device_id, None)
        self._receive(OwnerChanged(device_id, since, since if match[1] == b"+" else None))


def _chunks(items: Sequence[Any]) -> Iterator[Sequence[Any]]:
    for start in range(0, len(items), _DEVICES_AT_ONCE):
        yield items[start : start + _DEVICES_AT_ONCE]


def _time_of(claim: Claim) -> int:
    if not -_EXACT < claim.at_us < _EXACT:
        raise ValueError(f"the time of a claim must be a number of µs below 2⁵³, got {claim.at_us}")
    return claim.at_us


def _since(record: object) -> Since:
    if not isinstance(record, bytes) or (match := _RECORD.fullmatch(record)) is None:
        raise ValueError("not a record of an owner")
    return Since(int(match[1]), match[2].decode())


def _located(reply: Any) -> Located:
    return Located(None) if reply == b"" else Located(_since(reply[1:]), reply[:1] == b"1")


def _instance(name: object) -> str:
    if not isinstance(name, bytes) or not _INSTANCE.fullmatch(text := name.decode()):
        raise ValueError("not the name of an instance")
    return text


def _bytes(value: object, most: int) -> bytes:
    if not isinstance(value, bytes) or len(value) > most:
        raise ValueError(f"not bytes, or more than {most}")
    return value

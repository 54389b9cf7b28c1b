"""Member: this instance as one of many, joined by a broker."""

import logging
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from typing import Final

import msgspec
import trio

from brewos_relay.cluster.broker import (
    RENEW_EVERY_S,
    Broker,
    BrokerConnection,
    BrokerError,
    Mail,
    OwnerChanged,
)
from brewos_relay.cluster.broker_clock import BrokerClock, elapsed_s
from brewos_relay.cluster.devices import DeviceTable
from brewos_relay.cluster.mail_handler import MailHandler
from brewos_relay.cluster.ownership import AUDIT_EVERY_S, Ownership
from brewos_relay.cluster.remote_commands import RemoteCommands
from brewos_relay.cluster.requests import Requests
from brewos_relay.core.relay import Relay
from brewos_relay.instances import Description

log = logging.getLogger(__name__)

FOLLOW_WITHOUT_BROKER_S: Final = 20.0
"""How long devices of other instances count as online while the broker cannot be reached."""
_TICK_S: Final = 0.25
_RETRY_S: Final = (0.1, 0.2, 0.3)
"""Pauses before connecting again; the last one repeats."""
_STEADY_S: Final = 1.0
"""A connection that lasts this long ends a series of failures."""


class Member:
    """This instance of a cluster: stays connected to the broker, and passes on what arrives.

    Made by `open_member`. Without the broker, local devices and clients go on as before.
    """

    def __init__(
        self,
        relay: Relay,
        table: DeviceTable,
        broker: Broker,
        *,
        instance: str,
        describe: Callable[[], Description],
        read_changes: Callable[[], None] = lambda: None,
        elapsed: Callable[[], float] = elapsed_s,
    ) -> None:
        self.instance = instance
        self.connection: BrokerConnection | None = None
        """The connection to the broker, while it lives."""
        self.joined = trio.Event()
        """Set when the instance has joined the cluster for the first time."""
        self.reconnects = 0
        """How often the connection to the broker was lost."""
        self.describe = describe
        """Returns what the instance tells about itself."""
        self._broker = broker
        self._clock = BrokerClock(elapsed)
        self.commands = RemoteCommands(instance, self._clock, self.send)
        """Commands for devices of other instances."""
        self.requests = Requests(instance, self.send)
        """Questions to other instances."""
        self._ownership = Ownership(relay, table, instance, self.commands, self._clock, self.send)
        self._mail = MailHandler(
            relay,
            table,
            instance,
            self._ownership,
            self.commands,
            self.requests,
            self._clock,
            self.send,
            read_changes,
        )
        self._lost_at = trio.current_time()
        self._resigned = False

    @property
    def unreadable(self) -> int:
        """Mail that was dropped because it could not be read."""
        return self._mail.unreadable

    async def run(self) -> None:
        """Stay connected to the broker until cancelled."""
        failures = 0
        while True:
            why, began_at = "", trio.current_time()
            try:
                async with self._broker.connect(self.instance, self._receive) as connection:
                    began_at = trio.current_time()
                    knows_lease = await self._renew(connection)
                    why = await self._stay(connection, knows_lease)
            except* BrokerError as problems:
                why = _reasons(problems)
            except* Exception as errors:
                log.error("the cluster failed; joining it again", exc_info=errors)
                why = "of an internal error"
            finally:
                self._lose()
            if trio.current_time() - began_at >= _STEADY_S:
                failures = 0
            if failures == 0:
                log.warning("the bus is unavailable: %s; trying again", why)
            await trio.sleep(_RETRY_S[min(failures, len(_RETRY_S) - 1)])
            failures += 1

    async def _stay(self, connection: BrokerConnection, knows_lease: bool) -> str:
        """Use a connection until it is lost; return why it was. A task that fails ends it as well.

        **Owns:** a nursery with three tasks: `_keep_lease`, and `tell_broker` and `audit` of `Ownership`.
        """
        self.connection = connection
        self.joined.set()
        log.info("joined the cluster as %s", self.instance)
        self._ownership.announce_again(is_new=True, knows_lease=knows_lease)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._keep_lease, connection)
            nursery.start_soon(self._ownership.tell_broker, connection)
            nursery.start_soon(self._ownership.audit, connection)
            why = await connection.wait_lost()
            nursery.cancel_scope.cancel()
        return why

    def _lose(self) -> None:
        """Note that the connection is lost: nothing that was sent has to arrive."""
        if self.connection is not None:
            self.reconnects += 1
            self._lost_at = trio.current_time()
        self.connection = None
        self.requests.lose()

    async def _keep_lease(self, connection: BrokerConnection) -> None:
        while True:
            await trio.sleep(RENEW_EVERY_S)
            if not await self._renew(connection):
                self._ownership.announce_again(is_new=False, knows_lease=False)

    async def _renew(self, connection: BrokerConnection) -> bool:
        began_at = self._clock.begin()
        self._clock.end(began_at, await connection.now_us())
        if self._resigned:
            return True
        return await connection.renew(msgspec.json.encode(self.describe()))

    async def watch(self) -> None:
        """Check what depends on time, with the broker or without, until cancelled."""
        check_at = 0.0
        while True:
            await trio.sleep(_TICK_S)
            now = trio.current_time()
            self.commands.expire(now)
            if now >= check_at:
                check_at = now + AUDIT_EVERY_S
                self._ownership.check(now, is_connected=self.connection is not None)
                if self.connection is None and now - self._lost_at >= FOLLOW_WITHOUT_BROKER_S:
                    self._ownership.unfollow_all()

    def send(self, instance: str, payload: bytes) -> bool:
        """Send an envelope to an instance; False if that is not possible now."""
        return self.connection is not None and self.connection.send(instance, payload)

    def _receive(self, message: Mail | OwnerChanged) -> None:
        if isinstance(message, Mail):
            self._mail.take(message.payload)
            return
        try:
            self._ownership.take_change(message)
        except Exception:
            log.exception("the change of the owner of device %s failed", message.device_id)

    async def resign(self) -> None:
        """End the lease, so that no device counts as connected to this instance."""
        self._resigned = True
        if self.connection is not None:
            with suppress(BrokerError):
                await self.connection.resign()


def _reasons(problems: BaseExceptionGroup[BrokerError]) -> str:
    """Return the messages of all errors in a group, each once."""
    texts: dict[str, None] = {}
    for problem in problems.exceptions:
        text = _reasons(problem) if isinstance(problem, BaseExceptionGroup) else str(problem)
        texts[text] = None
    return "; ".join(texts)


@asynccontextmanager
async def open_member(
    relay: Relay,
    table: DeviceTable,
    broker: Broker,
    *,
    instance: str,
    describe: Callable[[], Description],
    read_changes: Callable[[], None] = lambda: None,
    elapsed: Callable[[], float] = elapsed_s,
) -> AsyncIterator[Member]:
    """Join a cluster with a relay that was opened with `remote=table`. Leaving the block resigns.

    No other process may have the name `instance`, not even an earlier one. `read_changes` is called when
    another instance has written changes into the registry.

    **Owns:** a nursery with two tasks, `Member.run` and `Member.watch`.
    """
    member = Member(
        relay,
        table,
        broker,
        instance=instance,
        describe=describe,
        read_changes=read_changes,
        elapsed=elapsed,
    )
    async with trio.open_nursery() as nursery:
        nursery.start_soon(member.run)
        nursery.start_soon(member.watch)
        try:
            yield member
        finally:
            with trio.move_on_after(1.0, shield=True):
                await member.resign()
            nursery.cancel_scope.cancel()

"""Join a server to the other instances on its bus."""

import hashlib
import logging
import secrets
import socket
from collections.abc import AsyncIterator, Callable, Collection, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

import msgspec
import trio

from brewos_relay.core.relay import Relay
from brewos_relay.core.remote import SINGLE_INSTANCE, RemotePresence
from brewos_relay.errors import SettingsError
from brewos_relay.instances import (
    DIFFERENCES,
    Description,
    Rates,
    Survey,
    SurveyedInstance,
    find_problems,
)
from brewos_relay.live_devices import LocalView
from brewos_relay.protocols import RelayView
from brewos_relay.registry.engine import database_file
from brewos_relay.server.supervision import keep_running
from brewos_relay.settings import Settings
from brewos_relay.telemetry.metrics import BusFigures
from brewos_relay.version import installed_version
from brewos_relay.vocabulary import now_ms

if TYPE_CHECKING:
    from brewos_relay.cluster.devices import DeviceTable
    from brewos_relay.cluster.member import Member
    from brewos_relay.cluster.redis_broker import RedisBroker
    from brewos_relay.cluster.shared_budgets import SharedBudgets
    from brewos_relay.cluster.view import ClusterView

log = logging.getLogger(__name__)

_JOIN_S: Final = 2.0
"""How long a starting server waits for the bus. It also starts without it."""
_SURVEY_S: Final = 4.0
"""How long a survey may take: longer than the slowest answer of an instance."""
_COMPARE_EVERY_S: Final = 15.0
"""How often an instance compares itself with the others."""
_RATES_OVER_S: Final = 2.0
"""The shortest time that a rate is computed over."""
_BOOT_ID: Final = Path("/proc/sys/kernel/random/boot_id")


@dataclass(frozen=True, slots=True)
class Joined:
    """A server's place among the instances. `cluster` is None without a bus."""

    view: RelayView
    cluster: "ClusterView | None" = None
    member: "Member | None" = None
    budgets: "SharedBudgets | None" = None
    comparison: "Comparison | None" = None

    def problems(self) -> list[str]:
        """List the problem with the bus, if it cannot be reached. Machines and apps still connect."""
        if self.member is None or self.member.connection is not None:
            return []
        return ["the bus is unavailable: devices and apps on different instances are not connected"]

    def announce_changes(self) -> None:
        """Let the other instances read the changes that this one has written into the registry.

        They would find them by themselves, a quarter of a second later.
        """
        if self.member is not None and self.comparison is not None:
            from brewos_relay.cluster.envelopes import ChangesWritten, pack

            payload = pack(ChangesWritten(self.member.instance))
            for name in self.comparison.others:
                self.member.send(name, payload)

    async def survey(self) -> Survey | None:
        """List the instances, and ask each of them; None without a bus."""
        if self.member is None:
            return None
        own = SurveyedInstance(self.member.instance, self.member.describe(), 0.0)
        if (connection := self.member.connection) is None:
            await trio.lowlevel.checkpoint()
            return Survey(None, [own])
        from brewos_relay.cluster.broker import BrokerError
        from brewos_relay.cluster.survey import survey

        with trio.move_on_after(_SURVEY_S), suppress(BrokerError):
            found = await survey(connection, self.member.requests)
            return Survey(
                found.bus_ms,
                [
                    # Its own figures are not as old as its lease.
                    msgspec.structs.replace(own, answer_ms=each.answer_ms) if each.name == own.name else each
                    for each in found.instances
                ],
            )
        return Survey(None, [own])

    def bus_figures(self) -> BusFigures | None:
        """Return the figures of the bus for the metrics; None without a bus."""
        if self.member is None:
            return None
        return BusFigures(
            connected=self.member.connection is not None,
            reconnects=self.member.reconnects,
            unreadable=self.member.unreadable,
            alone=self.budgets.alone if self.budgets is not None else 0,
            problems={
                kind: self.comparison is not None and kind in self.comparison.found for kind in DIFFERENCES
            },
        )


class Bus:
    """The bus of a server, before its relay is open. Without the setting, nothing is imported.

    Raises SettingsError if its URL is malformed or its driver is missing.
    """

    def __init__(self, settings: Settings, *, parent_pid: int | None = None) -> None:
        self._settings = settings
        self._parent = f"{_boot_id()} {socket.gethostname()} {parent_pid}" if parent_pid else ""
        self._started_ms = now_ms()
        self.instance = f"{settings.instance or socket.gethostname()}-{secrets.token_hex(3)}"
        """The name of this instance, which no other process has."""
        self.remote: RemotePresence = SINGLE_INSTANCE
        """The remote presence for the relay."""
        self._table: DeviceTable | None = None
        self._broker: RedisBroker | None = None
        if settings.bus:
            self._prepare(settings.bus)

    def _prepare(self, url: str) -> None:
        self._broker = open_broker(url)
        from brewos_relay.cluster.devices import DeviceTable

        self._table = self.remote = DeviceTable()

    @asynccontextmanager
    async def join(
        self, relay: Relay, registry: str, read_changes: Callable[[], None] = lambda: None
    ) -> AsyncIterator[Joined]:
        """Join the cluster with a relay that was opened with `remote`. Leaving the block leaves the cluster.

        `registry` is the fingerprint of the registry. `read_changes` is called when another instance has
        written changes into it. Raises SettingsError if the instances cannot work together.

        **Owns:** with a bus, a nursery with the task that compares this instance with the others.
        """
        if self._table is None or self._broker is None:
            yield Joined(LocalView(relay))
            return
        from brewos_relay.cluster import shared_budgets
        from brewos_relay.cluster.member import open_member
        from brewos_relay.cluster.view import ClusterView

        describe = self._describe(relay, registry)
        async with open_member(
            relay,
            self._table,
            self._broker,
            instance=self.instance,
            describe=describe,
            read_changes=read_changes,
        ) as member:
            view = ClusterView(relay, self._table, member)
            comparison = Comparison(view, self.instance)
            with trio.move_on_after(_JOIN_S):
                await member.joined.wait()
                found = await view.instances()
                refuse_mixed_hosts(self._settings, found, self.instance)
                comparison.take(found)
            async with trio.open_nursery() as nursery:
                nursery.start_soon(keep_running, "comparing the instances", comparison.run)
                budgets = shared_budgets.SharedBudgets(
                    lambda: member.connection, secret=_digest("budgets", self._settings)
                )
                yield Joined(view, view, member, budgets, comparison)
                nursery.cancel_scope.cancel()

    def _describe(self, relay: Relay, registry: str) -> Callable[[], Description]:
        fixed = msgspec.structs.replace(
            describe_settings(self._settings, registry), started_ms=self._started_ms, parent=self._parent
        )
        counters = relay.counters
        rates = _RateMeter(
            lambda: (
                counters.received_from_devices,
                counters.received_from_clients,
                counters.sent_to_clients,
                sum(counters.commands.values()),
            )
        )

        def describe() -> Description:
            return msgspec.structs.replace(
                fixed,
                devices=relay.device_count,
                clients=relay.client_count,
                undeliverable=counters.undeliverable,
                closing=relay.closing,
                rates=rates.read(),
            )

        return describe


class _RateMeter:
    """Computes rates from counters, each time over at least 2 s."""

    def __init__(self, count: Callable[[], Sequence[int]]) -> None:
        self._count = count
        self._counts = count()
        self._at = trio.current_time()
        self._rates = Rates()

    def read(self) -> Rates:
        """Return the latest rates."""
        now = trio.current_time()
        passed_s = now - self._at
        if passed_s >= _RATES_OVER_S:
            counts = self._count()
            each = (round((new - old) / passed_s, 1) for new, old in zip(counts, self._counts, strict=True))
            self._rates = Rates(*each)
            self._counts, self._at = counts, now
        return self._rates


class Comparison:
    """Compares this instance with the others on the bus, and logs each problem once.

    Instances that do not answer are not among the problems: only a survey asks for answers.
    """

    def __init__(self, view: "ClusterView", instance: str) -> None:
        self._view = view
        self._instance = instance
        self.others: Collection[str] = ()
        """The other instances that were found last."""
        self.found: Collection[str] = ()
        """The kinds of the problems that were found last."""

    async def run(self) -> None:
        """Compare until cancelled."""
        while True:
            await trio.sleep(_COMPARE_EVERY_S)
            self.take(await self._view.instances())

    def take(self, descriptions: Mapping[str, Description]) -> None:
        """Compare descriptions. A problem that has gone and comes back is logged again."""
        self.others = descriptions.keys() - {self._instance}
        problems = find_problems(descriptions)
        for problem in problems:
            if problem.kind not in self.found:
                log.warning("%s: %s", problem.text, problem.advice, extra={"instance": self._instance})
        self.found = {problem.kind for problem in problems}


def open_broker(url: str) -> "RedisBroker":
    """Prepare connections to the bus at a URL.

    Raises SettingsError if the URL is malformed or the driver is missing.
    """
    try:
        from brewos_relay.cluster.redis_broker import RedisBroker
        from brewos_relay.cluster.redis_url import parse_redis_url
    except ImportError as problem:
        raise SettingsError(
            f"BREWOS_RELAY_BUS requires {problem.name}; install it with `pip install 'brewos-relay[redis]'`"
        ) from None
    try:
        return RedisBroker(parse_redis_url(url))
    except OSError as problem:  # a certificate
        raise SettingsError(f"BREWOS_RELAY_BUS cannot be used: {problem}") from None
    except ValueError as problem:
        raise SettingsError(f"BREWOS_RELAY_BUS is malformed: it must be {problem}") from None


def describe_settings(settings: Settings, registry: str) -> Description:
    """Return the part of an instance's description that follows from its settings and its host."""
    return Description(
        version=installed_version(),
        host=socket.gethostname(),
        boot=_boot_id(),
        sqlite=is_on_one_host(settings),
        keys=fingerprint(settings),
        registry=registry,
    )


def is_on_one_host(settings: Settings) -> bool:
    """Whether the registry is a file, which only processes of one host can share."""
    return database_file(settings.resolved_database_url()) is not None


def refuse_mixed_hosts(settings: Settings, instances: Mapping[str, Description], own: str) -> None:
    """Raise SettingsError if an instance on another host shares the bus, but not the registry's file."""
    for name, description in instances.items():
        if name == own or not (is_on_one_host(settings) or description.sqlite):
            continue
        if description.boot != _boot_id():
            raise SettingsError(
                f"BREWOS_RELAY_BUS is shared with the instance {name} on another host, but the registry of"
                " one of them is an SQLite file. Set BREWOS_RELAY_DATABASE_URL to the same PostgreSQL"
                " database for all instances; `brewos-relay db export` and `db import` move a registry there"
            )


def fingerprint(settings: Settings) -> str:
    """Return a fingerprint of the keys that verify tokens, to find instances with other keys."""
    return _digest("keys", settings).hex()[:16]


def _digest(purpose: str, settings: Settings) -> bytes:
    """Derive a secret from the keys that verify tokens, which reveals no other one."""
    digest = hashlib.sha256(f"brewos-relay {purpose}\0".encode())
    for secret in sorted(settings.jwt_secret.split(",")):
        digest.update(hashlib.sha256(secret.strip().encode()).digest())
    for file in sorted(settings.jwt_key_files):
        digest.update(hashlib.sha256(file.read_bytes()).digest())
    return digest.digest()


def _boot_id() -> str:
    """Return what all processes of one running kernel share, also in different containers."""
    try:
        return _BOOT_ID.read_text("ascii").strip()
    except OSError:
        return socket.gethostname()

"""Join a server to the other instances on its bus."""

import hashlib
import secrets
import socket
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import trio

from brewos_relay.core.relay import Relay
from brewos_relay.core.remote import SINGLE_INSTANCE, RemotePresence
from brewos_relay.errors import SettingsError
from brewos_relay.live_devices import LocalView
from brewos_relay.protocols import RelayView
from brewos_relay.registry.engine import database_file
from brewos_relay.settings import Settings
from brewos_relay.telemetry.metrics import BusFigures
from brewos_relay.version import installed_version
from brewos_relay.vocabulary import now_ms

if TYPE_CHECKING:
    from brewos_relay.cluster.devices import DeviceTable
    from brewos_relay.cluster.member import Member
    from brewos_relay.cluster.redis_broker import RedisBroker
    from brewos_relay.cluster.view import ClusterView

_JOIN_S: Final = 2.0
"""How long a starting server waits for the bus. It also starts without it."""
_BOOT_ID: Final = Path("/proc/sys/kernel/random/boot_id")


@dataclass(frozen=True, slots=True)
class Joined:
    """A server's place among the instances. `cluster` is None without a bus."""

    view: RelayView
    cluster: "ClusterView | None" = None
    member: "Member | None" = None

    def problems(self) -> list[str]:
        """List the problem with the bus, if it cannot be reached. Machines and apps still connect."""
        if self.member is None or self.member.connection is not None:
            return []
        return ["the bus is unavailable: devices and apps on different instances are not connected"]

    def bus_figures(self) -> BusFigures | None:
        """Return the figures of the bus for the metrics; None without a bus."""
        if self.member is None:
            return None
        return BusFigures(
            connected=self.member.connection is not None,
            reconnects=self.member.reconnects,
            unreadable=self.member.unreadable,
        )


class Bus:
    """The bus of a server, before its relay is open. Without the setting, nothing is imported.

    Raises SettingsError if its URL is malformed or its driver is missing.
    """

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
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
        try:
            from brewos_relay.cluster.devices import DeviceTable
            from brewos_relay.cluster.redis_broker import RedisBroker
            from brewos_relay.cluster.redis_url import parse_redis_url
        except ImportError as problem:
            raise SettingsError(
                f"BREWOS_RELAY_BUS requires {problem.name}; install it with"
                " `pip install 'brewos-relay[redis]'`"
            ) from None
        try:
            self._broker = RedisBroker(parse_redis_url(url))
        except OSError as problem:  # a certificate
            raise SettingsError(f"BREWOS_RELAY_BUS cannot be used: {problem}") from None
        except ValueError as problem:
            raise SettingsError(f"BREWOS_RELAY_BUS is malformed: it must be {problem}") from None
        self._table = self.remote = DeviceTable()

    @asynccontextmanager
    async def join(self, relay: Relay) -> AsyncIterator[Joined]:
        """Join the cluster with a relay that was opened with `remote`. Leaving the block leaves the cluster.

        Raises SettingsError if the instances cannot work together.
        """
        if self._table is None or self._broker is None:
            yield Joined(LocalView(relay))
            return
        from brewos_relay.cluster.member import open_member
        from brewos_relay.cluster.view import ClusterView

        describe = self._describe(relay)
        async with open_member(
            relay, self._table, self._broker, instance=self.instance, describe=describe
        ) as member:
            view = ClusterView(relay, self._table, member)
            with trio.move_on_after(_JOIN_S):
                await member.joined.wait()
                refuse_mixed_hosts(self._settings, await view.instances(), self.instance)
            yield Joined(view, view, member)

    def _describe(self, relay: Relay) -> Callable[[], dict[str, Any]]:
        settings = self._settings
        fixed = {
            "version": installed_version(),
            "host": socket.gethostname(),
            "boot": _boot_id(),
            "startedMs": self._started_ms,
            "sqlite": is_on_one_host(settings),
            "keys": fingerprint(settings),
        }

        def describe() -> dict[str, Any]:
            counters = relay.counters
            return fixed | {
                "devices": relay.device_count,
                "clients": relay.client_count,
                "closing": relay.closing,
                "fromDevices": counters.received_from_devices,
                "toClients": counters.sent_to_clients,
                "commands": sum(counters.commands.values()),
                "atMs": now_ms(),
            }

        return describe


def is_on_one_host(settings: Settings) -> bool:
    """Whether the registry is a file, which only processes of one host can share."""
    return database_file(settings.resolved_database_url()) is not None


def refuse_mixed_hosts(settings: Settings, instances: dict[str, dict[str, Any]], own: str) -> None:
    """Raise SettingsError if an instance on another host shares the bus, but not the registry's file."""
    for name, description in instances.items():
        if name == own or not (is_on_one_host(settings) or description.get("sqlite") is True):
            continue
        if description.get("boot") != _boot_id():
            raise SettingsError(
                f"BREWOS_RELAY_BUS is shared with the instance {name} on another host, but the registry of"
                " one of them is an SQLite file. Set BREWOS_RELAY_DATABASE_URL to the same PostgreSQL"
                " database for all instances; `brewos-relay db export` and `db import` move a registry there"
            )


def fingerprint(settings: Settings) -> str:
    """Return a fingerprint of the keys that verify tokens, to find instances with other keys."""
    digest = hashlib.sha256(b"brewos-relay keys\0")
    for secret in sorted(settings.jwt_secret.split(",")):
        digest.update(hashlib.sha256(secret.strip().encode()).digest())
    for file in sorted(settings.jwt_key_files):
        digest.update(hashlib.sha256(file.read_bytes()).digest())
    return digest.hexdigest()[:16]


def _boot_id() -> str:
    """Return what all processes of one running kernel share, also in different containers."""
    try:
        return _BOOT_ID.read_text("ascii").strip()
    except OSError:
        return socket.gethostname()

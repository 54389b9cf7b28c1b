"""A relay with its port, without files or threads, for tests on a virtual clock; it can leave, or crash."""

import socket
from collections.abc import AsyncIterator, Iterable, Sequence
from contextlib import asynccontextmanager
from typing import Any, Final, cast

import trio

from brewos_relay.auth.proxy_trust import ProxyTrust
from brewos_relay.auth.secrets import hash_secret
from brewos_relay.auth.tokens import KeyRing
from brewos_relay.core.relay import Relay, open_relay
from brewos_relay.dialect import BREWOS
from brewos_relay.registry.records import Access, Device, StoredState
from brewos_relay.registry.store import Store
from brewos_relay.server.admission import Admission
from brewos_relay.server.listener import Listener
from brewos_relay.server.persistence import StateKeeper
from brewos_relay.settings.server_limits import ServerLimits
from brewos_relay.vocabulary import Role
from brewos_relay.wire.connection import WebSocketConnection
from brewos_relay.wire.polling import open_poller
from brewos_relay.wire.transport import TransportStream
from support.late_answers import LateAnswer

SECRET: Final = "tests-only-" + "s" * 32
APP_ORIGIN: Final = "https://cloud.example"
_BACKLOG: Final = 4096


class MemoryStore(Store):
    """A store of plain data. `answer_s` is the delay of its answers."""

    def __init__(self, keys: dict[str, str]) -> None:
        self.keys = keys
        self.seen: dict[str, int] = {}
        self.accesses: dict[tuple[str, str], Access] = {}
        self.states: dict[str, StoredState] = {}
        self.answer_s = 0.0

    async def find_device(self, device_id: str) -> Device | None:
        await trio.sleep(self.answer_s)
        key = self.keys.get(device_id)
        if key is None:
            return None
        seen = self.seen.get(device_id)
        return Device(id=device_id, key_hash=hash_secret(key), name=None, created_at_ms=1, last_seen_ms=seen)

    async def access_of(self, user_id: str, device_id: str) -> Access | None:
        await trio.sleep(self.answer_s)
        return self.accesses.get((user_id, device_id))

    async def find_state(self, device_id: str) -> StoredState | None:
        await trio.sleep(self.answer_s)
        return self.states.get(device_id)

    def ask_device(self, device_id: str) -> Any:
        return LateAnswer(self.find_device, device_id)

    def ask_access(self, user_id: str, device_id: str) -> Any:
        return LateAnswer(self.access_of, user_id, device_id)

    def ask_state(self, device_id: str) -> Any:
        return LateAnswer(self.find_state, device_id)

    async def save_states(self, states: Sequence[StoredState]) -> None:
        await trio.lowlevel.checkpoint()
        self.states |= {state.device_id: state for state in states}

    def record_seen(self, device_id: str, at_ms: int) -> None:
        self.seen[device_id] = at_ms


class RelayHere:
    """A listening relay and its parts."""

    def __init__(self, relay: Relay, address: tuple[str, int]) -> None:
        self.relay = relay
        self.address = address
        self.crashed = False

    def crash(self) -> None:
        """Let every connection end as if the process had been killed; leave the block right after that."""
        self.crashed = True
        for attachment in list(self.relay.attached):
            cast(WebSocketConnection, attachment.peer)._transport.close()


@asynccontextmanager
async def open_relay_here(
    store: MemoryStore, *, port: int = 0, limits: ServerLimits | None = None, **changed: Any
) -> AsyncIterator[RelayHere]:
    """Open a relay on a port of this machine; leaving the block lets it leave as a server does.

    `changed` are fields of the limits with other values than the defaults.

    **Owns:** the relay, its poller and its listener.
    """
    with socket.create_server(("127.0.0.1", port), backlog=_BACKLOG) as listening:
        listening.setblocking(False)
        bounds = limits or ServerLimits(**changed)
        async with (
            open_poller() as poller,
            open_relay(dialect=BREWOS, limits=bounds, on_seen=store.record_seen) as relay,
        ):
            admission = Admission(
                relay=relay,
                store=store,
                keys=KeyRing([SECRET]),
                proxy_trust=ProxyTrust(),
                allowed_origins=[APP_ORIGIN],
                revision=lambda: 0,
            )
            async with trio.open_nursery() as nursery:
                listener = Listener(
                    [listening],
                    relay=relay,
                    poller=poller,
                    admission=admission,
                    limits=bounds,
                    take_http=_hang_up,
                )
                nursery.start_soon(listener.run)
                states = StateKeeper(relay, store)
                nursery.start_soon(states.run)
                here = RelayHere(relay, listening.getsockname())
                yield here
                if not here.crashed:
                    await relay.drain()
                    await states.save_all()
                nursery.cancel_scope.cancel()


def _hang_up(stream: trio.abc.Stream, initial: bytes, **_: object) -> None:
    assert isinstance(stream, TransportStream)
    stream._transport.close()


def token(
    devices: Iterable[str] | None = None, *, user_id: str = "ada", ttl_s: int = 86_400, role: Role = "owner"
) -> str:
    """Make a token for these devices, or for all of them."""
    named = "*" if devices is None else list(devices)
    return KeyRing([SECRET]).issue(
        user_id=user_id, email="a@example.org", devices=named, ttl_s=ttl_s, role=role
    )

"""Relay: from device ids to live sessions."""

import logging
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

import trio

from brewos_relay.core.limits import Limits
from brewos_relay.core.peer import Peer
from brewos_relay.core.session import Attachment, Counters, DeviceSession
from brewos_relay.errors import CloseCode, RelayClosing

log = logging.getLogger(__name__)

OnSeen = Callable[[str, int], None]


class Relay:
    """Brings devices and their clients together; made by `open_relay`.

    **Owns:** nothing itself: each session runs in the nursery of `open_relay`.
    """

    def __init__(self, nursery: trio.Nursery, *, limits: Limits, on_seen: OnSeen | None) -> None:
        self.limits = limits
        self.counters = Counters()
        self.closing = False
        """Set once the relay takes nobody on any more."""
        self.attached: set[Attachment] = set()
        self._nursery = nursery
        self._on_seen = on_seen
        self._sessions: dict[str, DeviceSession] = {}

    @property
    def device_count(self) -> int:
        """How many devices are online."""
        return sum(session.online for session in self._sessions.values())

    @property
    def client_count(self) -> int:
        """How many clients are attached."""
        return sum(session.client_count for session in self._sessions.values())

    def is_online(self, device_id: str) -> bool:
        """Whether this device is connected now."""
        session = self._sessions.get(device_id)
        return session is not None and session.online

    def attach_device(self, device_id: str, peer: Peer) -> Attachment:
        """Make `peer` the connection of a device; it belongs to the relay from here on.

        An earlier connection of the same device is closed with 4002. Raises RelayClosing.
        """
        return self._session(device_id).attach_device(peer)

    def attach_client(self, device_id: str, peer: Peer, *, last_seen_ms: int | None = None) -> Attachment:
        """Attach `peer` to a device as one of its clients; it belongs to the relay from here on.

        `last_seen_ms` says when the device was last seen, in ms since the epoch, as far as the caller knows.
        Raises RelayClosing.
        """
        session = self._session(device_id)
        if session.last_seen_ms is None:
            session.last_seen_ms = last_seen_ms
        return session.attach_client(peer)

    def _session(self, device_id: str) -> DeviceSession:
        if self.closing:
            raise RelayClosing("the relay is leaving and takes nobody on; come back later")
        session = self._sessions.get(device_id)
        if session is None:
            session = self._sessions[device_id] = DeviceSession(device_id, self)
            self._nursery.start_soon(session.run, name=device_id)
        return session

    def session_emptied(self, session: DeviceSession) -> None:
        """Forget a session that nobody is attached to."""
        del self._sessions[session.device_id]

    def device_seen(self, device_id: str, at_ms: int) -> None:
        """Tell whoever opened the relay that a device came or went."""
        if self._on_seen is None:
            return
        try:
            self._on_seen(device_id, at_ms)
        except Exception:
            log.exception("nobody could note that device %s was seen", device_id)

    async def drain(self) -> None:
        """Take nobody on, close every peer (1012), and wait until all have gone, at most `limits.drain_s`.

        A device that is too young to be closed is waited for.
        """
        self.closing = True
        leaving = list(self.attached)
        with trio.move_on_after(self.limits.drain_s) as deadline:
            for attachment in leaving:
                attachment.close(CloseCode.SERVICE_RESTART, "the relay is restarting")
            for attachment in leaving:
                await attachment.wait_closed()
        if deadline.cancelled_caught:
            log.warning("draining took longer than %g s and was cut short", self.limits.drain_s)


@asynccontextmanager
async def open_relay(*, limits: Limits | None = None, on_seen: OnSeen | None = None) -> AsyncIterator[Relay]:
    """Open a relay; leaving the block closes every peer that is still attached, with a goodbye.

    `on_seen(device_id, at_ms)` is called when a device comes or goes; it must not block. An exception that
    leaves the block comes out in an ExceptionGroup, as from every nursery.

    **Owns:** the nursery in which every session lives.
    """
    async with trio.open_nursery() as nursery:
        relay = Relay(nursery, limits=limits or Limits(), on_seen=on_seen)
        try:
            yield relay
        finally:
            relay.closing = True
            nursery.cancel_scope.cancel()

"""Handover: passes WebSocket requests between the workers of one machine.

A device and its clients then share a process, and no message has to cross the bus. The open socket goes to
the other worker with the request that was read from it.

Trio keeps the number of a socket that it has waited for in its epoll. If another process still has the socket
when this one closes it, that entry stays until the connection ends. It is disarmed, so it wakes no task, and
it costs the kernel about 200 bytes.
"""

import logging
import os
import socket
from contextlib import suppress
from itertools import count
from typing import Final, Protocol
from zlib import crc32

import trio

from brewos_relay.core.rate_limits import open_bucket
from brewos_relay.core.remote import RemotePresence
from brewos_relay.server.admission import DEVICE_PATH
from brewos_relay.server.fd_channel import FdChannel
from brewos_relay.server.incoming import IncomingConnection
from brewos_relay.server.worker_messages import Answer, FromSibling, Offer, Places
from brewos_relay.vocabulary import parse_device_id
from brewos_relay.wire.handshake import Refusal, Request

log = logging.getLogger(__name__)

ANSWER_S: Final = 0.25
"""How long a connection waits for the other worker to take it."""
_TAKEN_AT_ONCE: Final = 1000
"""The most connections from other workers that are answered at a time."""
_PLACES_AT_ONCE: Final = 2000
"""The most devices in one message."""
_NONE, _CLIENTS, _DEVICE = range(3)


class TakePassed(Protocol):
    """Answers a WebSocket request that another worker has read."""

    async def __call__(
        self, accepted: socket.socket, address: str, port: int, *, secure: bool, head: bytes, rest: bytes
    ) -> None: ...


class _Sibling:
    """Another worker, and the offers that it has not answered."""

    def __init__(self, number: int, channel: FdChannel[FromSibling]) -> None:
        self.number = number
        self.channel = channel
        self.offers: dict[int, tuple[trio.Event, list[bool]]] = {}

    def forget_offers(self) -> None:
        """Let every unanswered offer end now."""
        for answered, _ in self.offers.values():
            answered.set()


class Handover:
    """Knows where the devices of this machine are, and passes requests for them to the right worker.

    It is the `RemotePresence` of the worker's relay: what that has is told to the other workers.

    **Owns:** the channels to the other workers and, in `run`, a nursery with the tasks that read and write
    them, a task that tells what has changed, and one for each connection that another worker has passed.
    """

    def __init__(self, number: int, *, per_s: float) -> None:
        """Take the number of this worker, and how many connections a second it may pass; 0 for any number."""
        self._number = number
        self.passed = 0
        """How many connections were passed to another worker."""
        self.taken = 0
        """How many connections were taken from another worker."""
        self.kept = 0
        """How many connections were kept, since the other worker did not take them."""
        self.is_leaving = False
        """Whether this worker takes no connections from others any more."""
        self._bucket = open_bucket(per_s, burst=max(1.0, per_s))
        self._own: dict[str, int] = {}
        self._device_at: dict[str, int] = {}
        self._clients_at: dict[str, int] = {}
        self._siblings: dict[int, _Sibling] = {}
        self._homes = [number]
        self._changed: dict[str, None] = {}
        self._has_changed = trio.Event()
        self._numbers = count()
        self._answering = 0
        self._put, self._joining = trio.open_memory_channel[_Sibling](64)

    # The devices of this worker

    def device_came(self, device_id: str, connected_at: float) -> None:
        """Note that this worker has the device."""
        self._set_own(device_id, self._own.get(device_id, _NONE) | _DEVICE)

    def device_went(self, device_id: str) -> None:
        """Note that this worker does not have the device any more."""
        self._set_own(device_id, self._own.get(device_id, _NONE) & ~_DEVICE)

    def device_wanted(self, device_id: str) -> None:
        """Note that this worker has clients of the device."""
        self._set_own(device_id, self._own.get(device_id, _NONE) | _CLIENTS)

    def device_unwanted(self, device_id: str) -> None:
        """Note that this worker has no clients of the device any more."""
        self._set_own(device_id, self._own.get(device_id, _NONE) & ~_CLIENTS)

    def _set_own(self, device_id: str, place: int) -> None:
        if place:
            self._own[device_id] = place
        else:
            self._own.pop(device_id, None)
        self._changed[device_id] = None
        self._has_changed.set()

    def outcomes(self) -> dict[str, int]:
        """Return how many connections were passed, and how many stayed here."""
        return {"passed": self.passed, "kept": self.kept}

    def find(self, device_id: str) -> int | None:
        """Return the number of the worker that should have connections for a device, None for this one.

        That is the worker that has the device. Without a device, clients stay together. The first connection
        of a device goes to its home, which all workers compute alike: a device and its clients meet there,
        even if they come at the same moment. Then no message of theirs crosses the bus, which would cost more
        than the passing after a few messages.
        """
        own = self._own.get(device_id, _NONE)
        if own & _DEVICE:
            return None
        at = self._device_at.get(device_id)
        if at is None and not own:
            at = self._clients_at.get(device_id)
            if at is None:
                home = self._homes[crc32(device_id.encode()) % len(self._homes)]
                at = home if home != self._number else None
        return at

    # Passing

    async def pass_on(self, incoming: IncomingConnection, request: Request, head: bytes, rest: bytes) -> bool:
        """Pass a WebSocket request to the worker that has its device. Return whether that has taken it.

        A connection is passed once at most. Whatever goes wrong, it stays here.
        """
        if incoming.passed or self.is_leaving or incoming.transport.outbox_bytes:
            return False
        sibling = self._sibling_for(request)
        if sibling is None or (self._bucket is not None and not self._bucket.admit(trio.current_time())):
            return False
        try:
            token = _make_token()
        except OSError:
            return False
        number, answered, answers = next(self._numbers), trio.Event(), list[bool]()
        offer = Offer(number, incoming.address, incoming.port, incoming.secure, head, rest)
        is_gone = False
        sibling.offers[number] = answered, answers
        try:
            if sibling.channel.try_send(offer, (incoming.transport.fd, token)):
                is_gone = True
                with trio.move_on_after(ANSWER_S):
                    await answered.wait()
        finally:
            del sibling.offers[number]
            # Only one of the two workers reads the byte, even if both believe that it is their turn.
            if is_gone and (answers == [True] or not os.read(token, 1)):
                incoming.give_away()
            else:
                is_gone = False
            os.close(token)
        if is_gone:
            self.passed += 1
        else:
            self.kept += 1
        return is_gone

    def _sibling_for(self, request: Request) -> _Sibling | None:
        try:
            name = "id" if request.path == DEVICE_PATH else "device"
            device_id = parse_device_id(request.parameters().get(name, ""))
        except (ValueError, Refusal):
            return None
        number = self.find(device_id)
        return self._siblings.get(number) if number is not None else None

    # The other workers

    def add_sibling(self, number: int, sock: socket.socket) -> None:
        """Exchange connections with another worker from now on."""
        sibling = _Sibling(number, FdChannel[FromSibling](sock, FromSibling))
        try:
            self._put.send_nowait(sibling)
        except trio.WouldBlock:
            sibling.channel.close()

    async def run(self, take: TakePassed) -> None:
        """Exchange connections with the other workers until cancelled. `take` answers their requests."""
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._tell_changes)
                async for sibling in self._joining:
                    nursery.start_soon(self._listen_to, sibling, take)
        finally:
            for sibling in self._siblings.values():
                sibling.channel.close()

    async def _tell_changes(self) -> None:
        """Tell the other workers where devices are, many in one message."""
        while True:
            await self._has_changed.wait()
            self._has_changed = trio.Event()
            changed, self._changed = {each: self._own.get(each, _NONE) for each in self._changed}, {}
            for sibling in self._siblings.values():
                _tell(sibling, changed)

    async def _listen_to(self, sibling: _Sibling, take: TakePassed) -> None:
        """Read what another worker sends, until it ends.

        **Owns:** a nursery with the writer of the channel, and a task for each connection that was passed.
        """
        earlier = self._siblings.get(sibling.number)
        if earlier is not None:
            self._drop(earlier)
        self._siblings[sibling.number] = sibling
        self._homes = sorted((self._number, *self._siblings))
        _tell(sibling, dict(self._own))
        channel = sibling.channel
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(channel.run)
                with suppress(trio.EndOfChannel):
                    while True:
                        message, files = await channel.receive()
                        self._receive(sibling, message, files, nursery, take)
                self._drop(sibling)
        finally:
            self._drop(sibling)

    def _receive(
        self,
        sibling: _Sibling,
        message: FromSibling,
        files: list[int],
        nursery: trio.Nursery,
        take: TakePassed,
    ) -> None:
        match message:
            case Places():
                for device_id, place in message.changed.items():
                    _place(self._device_at, device_id, sibling.number, bool(place & _DEVICE))
                    _place(self._clients_at, device_id, sibling.number, place == _CLIENTS)
            case Answer():
                if (offer := sibling.offers.get(message.number)) is not None:
                    offer[1].append(message.taken)
                    offer[0].set()
            case Offer():
                accepted = self._claim(files)
                sibling.channel.send(Answer(message.number, accepted is not None))
                if accepted is not None:
                    self.taken += 1
                    nursery.start_soon(self._answer, accepted, message, take)

    def _claim(self, files: list[int]) -> socket.socket | None:
        """Take the connection of an offer, unless this worker cannot, or the other one has it again."""
        if len(files) != 2:
            return None  # there was no free file for them
        connection, token = files
        try:
            if not self.is_leaving and self._answering < _TAKEN_AT_ONCE and os.read(token, 1):
                return socket.socket(fileno=connection)
        finally:
            os.close(token)
        os.close(connection)
        return None

    async def _answer(self, accepted: socket.socket, offer: Offer, take: TakePassed) -> None:
        self._answering += 1
        try:
            await take(
                accepted, offer.address, offer.port, secure=offer.secure, head=offer.head, rest=offer.rest
            )
        finally:
            self._answering -= 1

    def _drop(self, sibling: _Sibling) -> None:
        """Forget a worker that has ended, and all that it had."""
        sibling.channel.close()
        sibling.forget_offers()
        if self._siblings.get(sibling.number) is sibling:
            del self._siblings[sibling.number]
            self._homes = sorted((self._number, *self._siblings))
            for places in (self._device_at, self._clients_at):
                for device_id in [each for each, number in places.items() if number == sibling.number]:
                    del places[device_id]


class BothPresences:
    """Tells two remote presences the same."""

    def __init__(self, one: RemotePresence, two: RemotePresence) -> None:
        self._both = one, two

    def device_came(self, device_id: str, connected_at: float) -> None:
        """Tell both that the device is here."""
        for each in self._both:
            each.device_came(device_id, connected_at)

    def device_went(self, device_id: str) -> None:
        """Tell both that the device is not here any more."""
        for each in self._both:
            each.device_went(device_id)

    def device_wanted(self, device_id: str) -> None:
        """Tell both that the device has clients here."""
        for each in self._both:
            each.device_wanted(device_id)

    def device_unwanted(self, device_id: str) -> None:
        """Tell both that the device has no clients here any more."""
        for each in self._both:
            each.device_unwanted(device_id)


def _make_token() -> int:
    """Make a file that holds one byte. Reading it never blocks: no process can write to it."""
    readable, writable = os.pipe()
    try:
        os.write(writable, b"1")
    finally:
        os.close(writable)
    return readable


def _tell(sibling: _Sibling, places: dict[str, int]) -> None:
    """Tell another worker what this one has of some devices."""
    ids = list(places)
    for start in range(0, len(ids), _PLACES_AT_ONCE):
        sibling.channel.send(Places({each: places[each] for each in ids[start : start + _PLACES_AT_ONCE]}))


def _place(places: dict[str, int], device_id: str, number: int, is_there: bool) -> None:
    """Note whether a worker has a device."""
    if is_there:
        places[device_id] = number
    elif places.get(device_id) == number:
        del places[device_id]

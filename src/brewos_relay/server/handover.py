"""Handover: passes WebSocket requests between the workers of one machine.

A device and its clients then share a process, and no message has to cross the bus. The open socket goes to
the other worker with the request that was read from it.

Trio keeps the number of a socket that it has waited for in its epoll. If another process still has the socket
when this one closes it, that entry stays until the connection ends. It is disarmed, so it wakes no task, and
it costs the kernel about 200 bytes.
"""

import logging
import os
import re
import socket
from collections import Counter
from contextlib import suppress
from itertools import count, islice
from typing import Final, Protocol

import trio

from brewos_relay.core.rate_limits import open_bucket
from brewos_relay.core.remote import RemotePresence
from brewos_relay.server.admission import OtherInstances
from brewos_relay.server.fd_channel import FdChannel
from brewos_relay.server.incoming import IncomingConnection
from brewos_relay.server.worker_messages import Answer, FromSibling, Offer, Offered, Places

log = logging.getLogger(__name__)

ANSWER_S: Final = 0.25
"""How long connections wait for the other worker to take them."""
_OFFERED_AT_ONCE: Final = 60
"""The most connections in one message. It comes with as many files, and a token."""
_TAKEN_AT_ONCE: Final = 1000
"""The most connections from other workers that are answered at a time."""
_PLACES_AT_ONCE: Final = 2000
"""The most devices in one message."""
_SPARE_SHARE: Final = 0.1
_SPARE: Final = 1
"""A worker may have a tenth more devices than another one, and this many more, before it passes new ones."""
_EXPECTED_S: Final = 10.0
"""How long a new device counts for the worker that its connection went to, until it is there."""
_MOST_EXPECTED: Final = 5000
_NONE, _CLIENTS, _DEVICE = range(3)

_end_pass: Final = trio.lowlevel.cancel_shielded_checkpoint

_DEVICE_OF_REQUEST: Final = re.compile(
    rb"GET /ws(?:/device\?(?:[^ #]*&)?id|(?:/client)?\?(?:[^ #]*&)?device)=(BRW-[0-9A-F]{8})[& ]",
    re.IGNORECASE,
)
"""The device of a request for a WebSocket, as machines and apps write it."""


class TakePassed(Protocol):
    """Answers a WebSocket request that another worker has read."""

    async def __call__(
        self, accepted: socket.socket, address: str, port: int, *, secure: bool, head: bytes, rest: bytes
    ) -> None: ...


class _OpenOffer:
    """Connections that are offered to another worker together, until that is decided."""

    def __init__(self) -> None:
        self.connections: list[Offered] = []
        self.files: list[int] = []
        self.answered = trio.Event()
        self.answers: list[bool] = []
        self.decided = trio.Event()
        self.is_taken = False
        """Whether the other worker has them, once it is decided."""

    def withdraw(self, file: int) -> None:
        """Leave out a connection that ends before the offer is sent."""
        at = self.files.index(file)
        del self.connections[at], self.files[at]


class _Sibling:
    """Another worker, and the offers that it has not answered."""

    def __init__(self, number: int, channel: FdChannel[FromSibling]) -> None:
        self.number = number
        self.channel = channel
        self.places = 0
        """Of how many devices it has the device or clients."""
        self.has_told = False
        """Whether it has told its places."""
        self.gathering: _OpenOffer | None = None
        """The connections of this pass of the event loop."""
        self.offers: dict[int, _OpenOffer] = {}

    def forget_offers(self) -> None:
        """Let every unanswered offer end now."""
        for offer in self.offers.values():
            offer.answered.set()


class Handover:
    """Knows where the devices of this machine are, and passes requests for them to the right worker.

    It is the `RemotePresence` of the worker's relay: what that has is told to the other workers.

    **Owns:** the channels to the other workers and, in `run`, a nursery with the tasks that read and write
    them, a task that tells what has changed, and one for each connection that another worker has passed.
    """

    def __init__(self, number: int, workers: int, *, per_s: float) -> None:
        """Take the number of this worker, and that of all workers.

        `per_s` is how many connections a second it may pass; 0 for any number.
        """
        self._number = number
        self._count = workers
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
        self._expected: dict[str, tuple[int, float]] = {}
        """New devices: the worker that their connection went to, and when (trio time)."""
        self._expected_at: Counter[int] = Counter()
        """How many of them each worker has."""
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
        self._expect_no_longer(device_id)
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

        That is the worker that has the device. Without a device, clients stay together, and the device joins
        them. The first connection of a device stays where it was accepted, unless another worker has clearly
        fewer devices.
        """
        own = self._own.get(device_id, _NONE)
        if own & _DEVICE:
            return None
        at = self._device_at.get(device_id)
        if at is None and not own:
            at = self._clients_at.get(device_id)
            if at is None:
                at = self._find_room(device_id)
        return at if at != self._number else None

    def _find_room(self, device_id: str) -> int:
        """Return the number of the worker for a new device, and count the device there from now on."""
        now = trio.current_time()
        for expected, (_, at) in list(islice(self._expected.items(), 2)):
            if at < now - _EXPECTED_S or len(self._expected) >= _MOST_EXPECTED:
                self._expect_no_longer(expected)  # it was refused
        if device_id in self._expected:
            return self._expected[device_id][0]
        loads = {number: each.places + self._expected_at[number] for number, each in self._siblings.items()}
        number = self._number
        if loads:
            least = min(loads, key=loads.__getitem__)
            if len(self._own) + self._expected_at[number] > loads[least] * (1 + _SPARE_SHARE) + _SPARE:
                number = least
        self._expected[device_id] = number, now
        self._expected_at[number] += 1
        return number

    def _expect_no_longer(self, device_id: str) -> None:
        if (expected := self._expected.pop(device_id, None)) is not None:
            self._expected_at[expected[0]] -= 1

    def is_elsewhere(self, device_id: str) -> bool:
        """Whether another worker has the device, or may have it and has not told its places yet."""
        siblings = self._siblings.values()
        if len(siblings) < self._count - 1 or not all(sibling.has_told for sibling in siblings):
            return True
        return device_id in self._device_at

    # Passing

    async def pass_on(self, incoming: IncomingConnection, head: bytes, rest: bytes) -> bool:
        """Pass a WebSocket request to the worker that has its device. Return whether that has taken it.

        `head` is not parsed yet. A connection is passed once at most. Whatever goes wrong, it stays here.
        """
        if incoming.passed or self.is_leaving or incoming.transport.outbox_bytes:
            return False
        sibling = self._sibling_for(head)
        if sibling is None or (self._bucket is not None and not self._bucket.admit(trio.current_time())):
            return False
        transport = incoming.transport
        is_first = sibling.gathering is None
        offer = sibling.gathering = sibling.gathering or _OpenOffer()
        offer.files.append(transport.fd)
        offer.connections.append(
            Offered(transport.family, incoming.address, incoming.port, incoming.secure, head, rest)
        )
        if len(offer.files) == _OFFERED_AT_ONCE:
            sibling.gathering = None
        if is_first:
            await self._offer(sibling, offer)
        else:
            try:
                await offer.decided.wait()
            except trio.Cancelled:
                offer.withdraw(transport.fd)
                raise
        if offer.is_taken:
            incoming.give_away()
            self.passed += 1
        else:
            self.kept += 1
        return offer.is_taken

    async def _offer(self, sibling: _Sibling, offer: _OpenOffer) -> None:
        """Let the other connections of this pass join, offer all to another worker, and decide who has them.

        Only one of the two workers reads the byte in the token, even if both believe that it is their turn.
        """
        number, token = next(self._numbers), -1
        try:
            await _end_pass()
            if sibling.gathering is offer:
                sibling.gathering = None
            token = _make_token()
            sibling.offers[number] = offer
            if sibling.channel.try_send(Offer(number, offer.connections), (token, *offer.files)):
                offer.is_taken = True
                with trio.move_on_after(ANSWER_S):
                    await offer.answered.wait()
        except OSError:
            pass  # no token: there are no free files
        finally:
            sibling.offers.pop(number, None)
            offer.is_taken = offer.is_taken and (offer.answers == [True] or not os.read(token, 1))
            if token >= 0:
                os.close(token)
            offer.decided.set()

    def _sibling_for(self, head: bytes) -> _Sibling | None:
        if (match := _DEVICE_OF_REQUEST.match(head)) is None:
            return None
        number = self.find(match[1].decode("ascii").upper())
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
                sibling.has_told = True
                for device_id, place in message.changed.items():
                    self._expect_no_longer(device_id)
                    before = self._device_at.get(device_id), self._clients_at.get(device_id)
                    sibling.places += bool(place) - (sibling.number in before)
                    _place(self._device_at, device_id, sibling.number, bool(place & _DEVICE))
                    _place(self._clients_at, device_id, sibling.number, place == _CLIENTS)
            case Answer():
                if (offer := sibling.offers.get(message.number)) is not None:
                    offer.answers.append(message.taken)
                    offer.answered.set()
            case Offer():
                is_taken = self._claim(message, files)
                sibling.channel.send(Answer(message.number, is_taken))
                if is_taken:
                    self.taken += len(message.connections)
                    for offered, file in zip(message.connections, files[1:], strict=True):
                        accepted = socket.socket(offered.family, socket.SOCK_STREAM, 0, file)
                        nursery.start_soon(self._answer, accepted, offered, take)

    def _claim(self, offer: Offer, files: list[int]) -> bool:
        """Take the connections of an offer, unless this worker cannot, or the other one has them again."""
        connections = len(offer.connections)
        is_taken = False
        if len(files) == 1 + connections:  # or else there were no free files for them
            has_room = self._answering + connections <= _TAKEN_AT_ONCE and not self.is_leaving
            is_taken = has_room and bool(os.read(files[0], 1))
        for file in files[:1] if is_taken else files:
            os.close(file)
        return is_taken

    async def _answer(self, accepted: socket.socket, offer: Offered, take: TakePassed) -> None:
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
            for device_id in [
                each for each, (number, _) in self._expected.items() if number == sibling.number
            ]:
                self._expect_no_longer(device_id)
            for places in (self._device_at, self._clients_at):
                for device_id in [each for each, number in places.items() if number == sibling.number]:
                    del places[device_id]


class OtherWorkers:
    """The devices of other workers, as admission needs them, if no other instances share their bus.

    Two machines with one id are contested only while another instance has one of them. The workers know
    that, so the bus is rarely asked.
    """

    def __init__(self, cluster: OtherInstances, handover: Handover) -> None:
        self._cluster = cluster
        self._handover = handover

    async def is_contested(self, device_id: str) -> bool:
        """See `OtherInstances.is_contested`."""
        return self._handover.is_elsewhere(device_id) and await self._cluster.is_contested(device_id)

    async def find(self, device_id: str) -> None:
        """See `OtherInstances.find`."""
        await self._cluster.find(device_id)


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
    for start in range(0, max(1, len(ids)), _PLACES_AT_ONCE):
        sibling.channel.send(Places({each: places[each] for each in ids[start : start + _PLACES_AT_ONCE]}))


def _place(places: dict[str, int], device_id: str, number: int, is_there: bool) -> None:
    """Note whether a worker has a device."""
    if is_there:
        places[device_id] = number
    elif places.get(device_id) == number:
        del places[device_id]

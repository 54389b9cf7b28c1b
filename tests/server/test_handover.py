"""Passing connections between workers: two of them within one process, on real sockets."""

import os
import socket
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Final, NamedTuple

import pytest
import trio
import trio.testing

from brewos_relay.server import handover
from brewos_relay.server.handover import BothPresences, Handover, OtherWorkers
from brewos_relay.server.incoming import IncomingConnection
from brewos_relay.server.worker_messages import Offer
from brewos_relay.settings.server_limits import ServerLimits
from support.process import machine_id
from support.resources import own_open_files
from support.wire_client import upgrade_head

MACHINE: Final = machine_id(1)
OTHER: Final = machine_id(2)
DEVICE_HEAD: Final = upgrade_head(f"/ws/device?id={MACHINE.lower()}&key=k").removesuffix(b"\r\n\r\n")
CLIENT_HEAD: Final = upgrade_head(f"/ws/client?token=t&device={MACHINE}").removesuffix(b"\r\n\r\n")


class Passed(NamedTuple):
    """What a worker was given."""

    peer: socket.socket
    address: str
    port: int
    secure: bool
    head: bytes
    rest: bytes


class Worker:
    """A worker that keeps what it is given."""

    def __init__(self, number: int, *, per_s: float = 0) -> None:
        self.handover = Handover(number, 2, per_s=per_s)
        self.taken: list[Passed] = []
        self.busy = trio.Event()
        self.busy.set()

    async def take(
        self, accepted: socket.socket, address: str, port: int, *, secure: bool, head: bytes, rest: bytes
    ) -> None:
        self.taken.append(Passed(accepted, address, port, secure, head, rest))
        await self.busy.wait()


def link(one: Worker, two: Worker) -> None:
    pair = socket.socketpair()
    one.handover.add_sibling(2, pair[0])
    two.handover.add_sibling(1, pair[1])


@asynccontextmanager
async def linked(*, per_s: float = 0) -> AsyncIterator[tuple[Worker, Worker]]:
    """Run two workers, 1 and 2."""
    before = own_open_files()
    one, two = Worker(1, per_s=per_s), Worker(2)
    with trio.fail_after(10):
        async with trio.open_nursery() as nursery:
            for worker in (one, two):
                nursery.start_soon(worker.handover.run, worker.take)
            link(one, two)
            await settled()
            yield one, two
            nursery.cancel_scope.cancel()
    for passed in (*one.taken, *two.taken):
        passed.peer.close()
    assert own_open_files() == before


async def settled() -> None:
    """Wait until all messages between the workers have arrived."""
    for _ in range(5):
        await trio.testing.wait_all_tasks_blocked()


@asynccontextmanager
async def connection(*, passed: bool = False) -> AsyncIterator[tuple[IncomingConnection, socket.socket]]:
    """Make an accepted connection, and give its other end too."""
    with socket.create_server(("127.0.0.1", 0)) as listening:
        peer = socket.create_connection(listening.getsockname())
        accepted, (address, port) = listening.accept()
    incoming = IncomingConnection.accept(accepted, address, port, limits=ServerLimits(), passed=passed)
    try:
        yield incoming, peer
    finally:
        incoming.close()
        peer.close()


async def offer(worker: Worker, incoming: IncomingConnection, head: bytes = CLIENT_HEAD) -> bool:
    return await worker.handover.pass_on(incoming, head, b"rest")


@pytest.mark.parametrize("head", [DEVICE_HEAD, CLIENT_HEAD], ids=["device", "client"])
async def test_connection_goes_to_the_worker_with_the_device(head: bytes) -> None:
    async with linked() as (one, two), connection() as (incoming, peer):
        two.handover.device_came(MACHINE, 0.0)
        await settled()
        incoming.secure = True
        assert await offer(one, incoming, head)
        assert incoming.released
        assert incoming.transport.closed
        await settled()
        [passed] = two.taken
        assert passed[1:] == ("127.0.0.1", peer.getsockname()[1], True, head, b"rest")
        passed.peer.send(b"hello")
        assert peer.recv(5) == b"hello"
        assert (one.handover.outcomes(), two.handover.taken) == ({"passed": 1, "kept": 0}, 1)


async def test_clients_gather_and_the_device_joins_them() -> None:
    async with linked() as (one, two), connection() as (client, _), connection() as (device, _):
        two.handover.device_wanted(MACHINE)
        await settled()
        assert await offer(one, client, CLIENT_HEAD)
        assert await offer(one, device, DEVICE_HEAD)


async def test_connection_stays_with_what_this_worker_has() -> None:
    async with linked() as (one, two), connection() as (incoming, _):
        assert not await offer(one, incoming), "no worker has the device"
        two.handover.device_wanted(MACHINE)
        one.handover.device_wanted(MACHINE)
        await settled()
        assert not await offer(one, incoming), "both have clients"
        two.handover.device_came(OTHER, 0.0)
        one.handover.device_came(MACHINE, 0.0)
        two.handover.device_came(MACHINE, 0.0)
        await settled()
        assert not await offer(one, incoming), "the device is here too"
        one.handover.device_went(MACHINE)
        assert await offer(one, incoming), "the clients here follow the device"
    assert two.taken


async def test_places_end_with_the_device_and_its_clients() -> None:
    async with linked() as (one, two):
        two.handover.device_came(MACHINE, 0.0)
        two.handover.device_wanted(MACHINE)
        await settled()
        assert one.handover.find(MACHINE) == 2
        two.handover.device_went(MACHINE)
        await settled()
        assert one.handover.find(MACHINE) == 2, "its clients are there"
        two.handover.device_unwanted(MACHINE)
        await settled()
        assert one.handover.find(MACHINE) is None
        two.handover.device_came(MACHINE, 0.0)
        two.handover.device_went(MACHINE)
        await settled()
        assert one.handover.find(MACHINE) is two.handover.find(MACHINE) is None


async def test_first_connections_stay_unless_another_worker_has_clearly_fewer_devices(
    autojump_clock: trio.testing.MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(handover, "_EXPECTED_S", 1.0)
    new = map(machine_id, range(1000, 2000))
    async with linked() as (one, two):
        for number in range(100, 200):
            two.handover.device_came(machine_id(number), 0.0)
        for number in range(200, 311):
            one.handover.device_came(machine_id(number), 0.0)
        await settled()
        assert one.handover.find(next(new)) is two.handover.find(next(new)) is None, "a tenth more"
        one.handover.device_wanted(machine_id(200))
        one.handover.device_wanted(machine_id(311))
        await settled()
        assert (one.handover.find(next(new)), two.handover.find(next(new))) == (2, None)
        assert one.handover.find(machine_id(150)) == 2
        await trio.sleep(handover._EXPECTED_S + 1)
        one.handover.device_unwanted(machine_id(311))
        one.handover.device_went(machine_id(310))
        await settled()
        assert one.handover.find(next(new)) is None, "what went does not count"
        two.handover._siblings[1].channel.close()
        await settled()
        assert one.handover.find(next(new)) is None, "it is alone"


async def test_new_devices_count_before_they_are_there(
    autojump_clock: trio.testing.MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(handover, "_EXPECTED_S", 1.0)
    new = [machine_id(number) for number in range(1000, 1050)]
    async with linked() as (one, two):
        places = [one.handover.find(device_id) for device_id in new]
        assert 23 <= places.count(2) <= 25
        assert [one.handover.find(device_id) for device_id in new] == places, "also for an app"
        for device_id, place in zip(new, places, strict=True):
            (two if place == 2 else one).handover.device_came(device_id, 0.0)
        await settled()
        assert not one.handover._expected
        assert set(one.handover._expected_at.values()) == {0}
        one.handover.find(OTHER)
        await trio.sleep(handover._EXPECTED_S + 1)
        one.handover.find(MACHINE)
        assert list(one.handover._expected) == [MACHINE], "the other one was refused"
        for number in range(handover._MOST_EXPECTED + 10):
            one.handover.find(machine_id(number))
        assert len(one.handover._expected) <= handover._MOST_EXPECTED
        assert one.handover._expected_at.total() == len(one.handover._expected)


async def test_connections_of_one_pass_go_together(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(handover, "_OFFERED_AT_ONCE", 3)
    async with AsyncExitStack() as stack:
        one, two = await stack.enter_async_context(linked())
        two.handover.device_came(MACHINE, 0.0)
        await settled()
        sent: list[int] = []
        try_send = one.handover._siblings[2].channel.try_send

        def counting(message: Offer, files: Sequence[int]) -> bool:
            sent.append(len(message.connections))
            return try_send(message, files)

        monkeypatch.setattr(one.handover._siblings[2].channel, "try_send", counting)
        pairs = [await stack.enter_async_context(connection()) for _ in range(5)]
        async with trio.open_nursery() as nursery:
            for incoming, _ in pairs:
                nursery.start_soon(offer, one, incoming)
        await settled()
        assert sorted(sent) == [2, 3]
        assert all(incoming.released for incoming, _ in pairs)
        for passed in two.taken:
            passed.peer.send(b"hello")
        assert [peer.recv(5) for _, peer in pairs] == 5 * [b"hello"]
        assert one.handover.outcomes() == {"passed": 5, "kept": 0}


async def test_connection_that_ends_before_the_offer_is_sent_is_left_out(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    ended = trio.Event()
    monkeypatch.setattr(handover, "_end_pass", ended.wait)
    async with linked() as (one, two), connection() as (first, _), connection() as (second, peer):
        two.handover.device_came(MACHINE, 0.0)
        await settled()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(offer, one, first)
            await trio.testing.wait_all_tasks_blocked()
            with trio.CancelScope() as ending:
                async with trio.open_nursery() as inner:
                    inner.start_soon(offer, one, second)
                    await trio.testing.wait_all_tasks_blocked()
                    ending.cancel()
            assert not second.released
            second.close()
            ended.set()
        await settled()
        assert first.released
        assert len(two.taken) == 1
        assert peer.recv(1) == b"", "it is closed"


async def test_bus_is_asked_about_two_machines_only_if_another_worker_may_have_one() -> None:
    asked: list[str] = []

    class Cluster:
        async def is_contested(self, device_id: str) -> bool:
            asked.append(device_id)
            return True

        async def find(self, device_id: str) -> None:
            asked.append(f"find {device_id}")

    async with linked() as (one, two):
        others = OtherWorkers(Cluster(), one.handover)
        assert not await others.is_contested(MACHINE)
        two.handover.device_came(MACHINE, 0.0)
        await settled()
        assert await others.is_contested(MACHINE)
        await others.find(OTHER)
        two.handover._siblings[1].channel.close()
        await settled()
        assert await others.is_contested(OTHER), "the other worker is not known"
        assert asked == [MACHINE, f"find {OTHER}", OTHER]


async def test_worker_that_joins_later_learns_all_places() -> None:
    one, two = Worker(1), Worker(2)
    for number in range(5000):
        one.handover.device_came(machine_id(number), 0.0)
    with trio.fail_after(10):
        async with trio.open_nursery() as nursery:
            for worker in (one, two):
                nursery.start_soon(worker.handover.run, worker.take)
            await settled()
            link(one, two)
            await settled()
            assert {two.handover.find(machine_id(number)) for number in range(5000)} == {1}
            nursery.cancel_scope.cancel()


async def test_connection_that_was_passed_is_not_passed_again() -> None:
    async with linked() as (one, two), connection(passed=True) as (incoming, _):
        two.handover.device_came(MACHINE, 0.0)
        await settled()
        assert not await offer(one, incoming)


async def test_connection_with_unsent_data_stays() -> None:
    async with linked() as (one, two), connection() as (incoming, _):
        two.handover.device_came(MACHINE, 0.0)
        await settled()
        while incoming.transport.write(bytes(100_000)):
            pass
        assert not await offer(one, incoming)


@pytest.mark.parametrize(
    "target",
    [
        "/ws/device",
        "/ws/device?id=kitchen",
        "/ws/client?device=",
        f"/ws/client?token=device={MACHINE}",
        f"/ws/device?device={MACHINE}",
        f"/ws/client?id={MACHINE}",
        f"/ws/client/?device={MACHINE}",
        f"/api/devices?device={MACHINE}",
    ],
)
async def test_request_without_a_valid_device_stays(target: str) -> None:
    async with linked() as (one, two), connection() as (incoming, _):
        two.handover.device_came(MACHINE, 0.0)
        await settled()
        assert not await offer(one, incoming, upgrade_head(target).removesuffix(b"\r\n\r\n"))


async def test_connections_beyond_the_rate_stay() -> None:
    async with linked(per_s=1) as (one, two), connection() as (first, _), connection() as (second, _):
        two.handover.device_came(MACHINE, 0.0)
        await settled()
        assert await offer(one, first)
        assert not await offer(one, second)


async def test_worker_that_leaves_or_is_full_takes_no_connection(monkeypatch: pytest.MonkeyPatch) -> None:
    async with linked() as (one, two), connection() as (incoming, peer), connection() as (another, _):
        two.handover.device_came(MACHINE, 0.0)
        await settled()
        two.handover.is_leaving = True
        assert not await offer(one, incoming)
        two.handover.is_leaving = False
        monkeypatch.setattr(handover, "_TAKEN_AT_ONCE", 1)
        two.busy = trio.Event()
        assert await offer(one, another)
        await settled()
        assert not await offer(one, incoming)
        incoming.transport.write(b"hello")
        assert peer.recv(5) == b"hello", "it is served here"
        assert one.handover.outcomes() == {"passed": 1, "kept": 2}
        one.handover.is_leaving = True
        assert not await offer(one, incoming)


async def test_connection_stays_if_no_answer_comes_in_time(autojump_clock: trio.testing.MockClock) -> None:
    async with linked() as (one, _two), connection() as (incoming, peer):
        pair = socket.socketpair()
        one.handover.add_sibling(3, pair[0])
        with pair[1] as silent:
            await settled()
            one.handover._device_at[MACHINE] = 3
            began_at = trio.current_time()
            assert not await offer(one, incoming)
            assert trio.current_time() - began_at == handover.ANSWER_S
            _, [token, received], _, _ = socket.recv_fds(silent, 65536, 2)
            assert os.read(token, 1) == b"", "the other worker is too late"
            os.close(token)
            os.close(received)
            incoming.transport.write(b"hello")
            assert peer.recv(5) == b"hello"


async def test_connection_is_gone_if_it_was_taken_without_an_answer(
    autojump_clock: trio.testing.MockClock,
) -> None:
    async with linked() as (one, _two), connection() as (incoming, peer):
        pair = socket.socketpair()
        one.handover.add_sibling(3, pair[0])
        with pair[1] as slow:
            await settled()
            one.handover._device_at[MACHINE] = 3
            async with trio.open_nursery() as nursery:
                nursery.start_soon(offer, one, incoming)
                await trio.testing.wait_all_tasks_blocked()
                _, [token, received], _, _ = socket.recv_fds(slow, 65536, 2)
                assert os.read(token, 1) == b"1"
            assert incoming.released, "the other worker has it, so it is not served twice"
            with socket.socket(fileno=received) as taken:
                taken.send(b"hello")
            os.close(token)
            assert peer.recv(5) == b"hello"


async def test_cancelled_offer_is_not_served_twice(autojump_clock: trio.testing.MockClock) -> None:
    async with linked() as (one, _two), connection() as (incoming, _peer):
        pair = socket.socketpair()
        one.handover.add_sibling(3, pair[0])
        with pair[1] as silent:
            await settled()
            one.handover._device_at[MACHINE] = 3
            with trio.move_on_after(0.1):
                await offer(one, incoming)
            assert not incoming.released
            _, files, _, _ = socket.recv_fds(silent, 65536, 2)
            assert os.read(files[0], 1) == b""
            for file in files:
                os.close(file)


async def test_worker_that_has_ended_is_forgotten() -> None:
    async with linked() as (one, two), connection() as (incoming, _):
        two.handover.device_came(MACHINE, 0.0)
        two.handover.device_wanted(OTHER)
        await settled()
        two.handover._siblings[1].channel.close()
        await settled()
        assert one.handover.find(MACHINE) is None
        assert one.handover.find(OTHER) is None
        link(one, two)
        await settled()
        assert one.handover.find(MACHINE) == 2
        assert await offer(one, incoming)


async def test_offer_ends_at_once_when_the_other_worker_ends(autojump_clock: trio.testing.MockClock) -> None:
    async with linked() as (one, _two), connection() as (incoming, _):
        pair = socket.socketpair()
        one.handover.add_sibling(3, pair[0])
        await settled()
        one.handover._device_at[MACHINE] = 3
        async with trio.open_nursery() as nursery:
            began_at = trio.current_time()
            nursery.start_soon(offer, one, incoming)
            await trio.testing.wait_all_tasks_blocked()
            pair[1].close()
        assert trio.current_time() == began_at
        assert not incoming.released


async def test_new_channel_replaces_that_of_an_earlier_worker() -> None:
    async with linked() as (one, two), connection() as (incoming, _):
        link(one, two)
        await settled()
        two.handover.device_came(MACHINE, 0.0)
        await settled()
        assert await offer(one, incoming)


class Heard:
    def __init__(self) -> None:
        self.heard: list[str] = []

    def device_came(self, device_id: str, connected_at: float) -> None:
        self.heard.append(f"came {device_id} {connected_at}")

    def device_went(self, device_id: str) -> None:
        self.heard.append(f"went {device_id}")

    def device_wanted(self, device_id: str) -> None:
        self.heard.append(f"wanted {device_id}")

    def device_unwanted(self, device_id: str) -> None:
        self.heard.append(f"unwanted {device_id}")


def test_both_presences_are_told_the_same() -> None:
    one, two = Heard(), Heard()
    both = BothPresences(one, two)
    both.device_came("a", 1.0)
    both.device_wanted("a")
    both.device_unwanted("a")
    both.device_went("a")
    assert one.heard == two.heard == ["came a 1.0", "wanted a", "unwanted a", "went a"]

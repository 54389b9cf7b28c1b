"""RemoteDevice: a device on another instance as a peer."""

from collections.abc import Sequence
from typing import Any

import trio
from trio.testing import MockClock, wait_all_tasks_blocked

from brewos_relay.cluster.broker import Since
from brewos_relay.cluster.broker_clock import BrokerClock
from brewos_relay.cluster.envelopes import Command, unpack
from brewos_relay.cluster.remote_commands import RemoteCommands
from brewos_relay.cluster.remote_device import RemoteDevice
from brewos_relay.delivery import Delivery
from brewos_relay.messages import Message

NOTE = Message(b'{"type":"note"}')
OTHER = Message(b'{"type":"other"}')


def make_device() -> tuple[RemoteDevice, list[tuple[str, bytes]]]:
    """Make a device on instance b, and the list of what is sent."""
    sent: list[tuple[str, bytes]] = []

    def send(instance: str, payload: bytes) -> bool:
        sent.append((instance, payload))
        return True

    clock = BrokerClock(trio.current_time)
    clock.end(clock.begin(), 0)
    return RemoteDevice("BRW-00000001", Since(1, "b"), RemoteCommands("a", clock, send)), sent


async def test_messages_are_passed_on_in_order(autojump_clock: MockClock) -> None:
    device, _ = make_device()
    got: list[Sequence[Message]] = []

    def receive(messages: Sequence[Message]) -> float:
        got.append(list(messages))
        return 0.0

    device.receive([NOTE])
    device.receive([OTHER])
    tasks: Any = None
    async with trio.open_nursery() as nursery:
        nursery.start_soon(device.run, tasks, receive)
        await wait_all_tasks_blocked()
        device.receive([NOTE])
        device.close(1001, "it went")
        device.close(1001, "it went")
    device.receive([NOTE])
    assert got == [[NOTE, OTHER], [NOTE]]
    assert device.is_closed


async def test_device_that_is_cancelled_keeps_nothing(autojump_clock: MockClock) -> None:
    device, _ = make_device()
    tasks: Any = None
    with trio.move_on_after(1):
        await device.run(tasks, lambda messages: 0.0)
    assert device.is_closed
    await device.aclose()
    device.receive([NOTE])


async def test_command_crosses_unless_the_instance_is_not_reachable(autojump_clock: MockClock) -> None:
    device, sent = make_device()
    outcomes: list[str] = []
    device.send_command(NOTE, outcomes.append, 5.0)
    [(instance, payload)] = sent
    assert instance == "b"
    assert unpack(payload) == Command("a", "BRW-00000001", 1, 1_700_000, 5.0, NOTE.payload)
    device.is_reachable = False
    device.send_command(NOTE, outcomes.append, 5.0)
    device.send_command(NOTE, None, 5.0)
    assert outcomes == ["device_offline"]
    assert len(sent) == 1


async def test_state_is_asked_for_confirmed_and_denied(autojump_clock: MockClock) -> None:
    device, _ = make_device()
    assert (device.has_state, device.awaits_state) == (False, True)
    device.confirm()
    assert (device.has_state, device.awaits_state) == (True, False)
    await trio.sleep(3)
    device.ask()
    assert (device.has_state, device.awaits_state) == (True, True)
    assert device.asked_at == trio.current_time()
    device.deny()
    assert (device.has_state, device.awaits_state) == (False, True)
    assert device.asked_at < 0


async def test_device_behaves_as_a_peer_without_a_socket(autojump_clock: MockClock) -> None:
    device, _ = make_device()
    assert not device.deliver(Delivery((NOTE,)))
    assert device.backlog_bytes == 0
    assert device.ping()

"""RemoteClients: messages of a device for clients on other instances."""

from trio.testing import MockClock

from brewos_relay.cluster.envelopes import DeviceMessages, unpack
from brewos_relay.cluster.remote_clients import RemoteClients
from brewos_relay.delivery import Delivery
from brewos_relay.messages import Message

NOTES = Delivery((Message(b'{"n":1}'), Message(b"\x81", is_text=False)))
STATE = b"the state"


class Bus:
    """Takes what is sent, unless it is full."""

    def __init__(self) -> None:
        self.sent: list[tuple[str, bytes]] = []
        self.is_full = False
        self.clients = RemoteClients("a", "BRW-00000001", self.send, lambda device_id: STATE)

    def send(self, instance: str, payload: bytes) -> bool:
        if not self.is_full:
            self.sent.append((instance, payload))
        return not self.is_full

    def take(self) -> list[tuple[str, bytes]]:
        sent, self.sent = self.sent, []
        return sent


async def test_each_instance_gets_the_state_and_then_each_message_once(autojump_clock: MockClock) -> None:
    bus = Bus()
    bus.clients.deliver(NOTES)
    bus.clients.add("b")
    bus.clients.add("c")
    assert bus.take() == [("b", STATE), ("c", STATE)]
    bus.clients.deliver(NOTES)
    [(_, payload), other] = bus.take()
    assert other == ("c", payload)
    assert unpack(payload) == DeviceMessages("a", "BRW-00000001", [(b'{"n":1}', True), (b"\x81", False)])
    bus.clients.discard("b")
    bus.clients.discard("d")
    bus.clients.deliver(NOTES)
    assert [instance for instance, _ in bus.take()] == ["c"]
    assert bus.clients.instances == ["c"]
    assert len(bus.clients) == 1


async def test_instance_that_missed_a_message_gets_the_state_instead_of_more(
    autojump_clock: MockClock,
) -> None:
    bus = Bus()
    bus.clients.add("b")
    bus.take()
    bus.is_full = True
    bus.clients.deliver(NOTES)
    bus.is_full = False
    bus.clients.add("c")  # while b waits for the state, only c gets messages
    bus.take()
    bus.is_full = True
    bus.clients.deliver(NOTES)
    bus.clients.send_state()
    assert bus.clients.is_stale
    bus.is_full = False
    bus.clients.deliver(NOTES)
    assert bus.take() == []
    bus.clients.send_state()
    assert sorted(bus.take()) == [("b", STATE), ("c", STATE)]
    bus.clients.send_state()
    assert bus.take() == []


async def test_state_is_sent_again_to_all(autojump_clock: MockClock) -> None:
    bus = Bus()
    bus.clients.add("b")
    bus.take()
    bus.clients.renew_state()
    assert bus.take() == [("b", STATE)]


async def test_only_the_stale_instance_waits(autojump_clock: MockClock) -> None:
    bus = Bus()
    bus.clients.add("b")
    bus.is_full = True
    bus.clients.add("c")
    bus.is_full = False
    bus.take()
    bus.clients.deliver(NOTES)
    assert [instance for instance, _ in bus.take()] == ["b"]


async def test_time_of_the_last_request_is_known(autojump_clock: MockClock) -> None:
    bus = Bus()
    bus.clients.add("b")
    assert bus.clients.has_asked_since("b", 0.0)
    assert not bus.clients.has_asked_since("b", 1e9)
    assert bus.clients.has_asked_since("c", 0.0), "it is not there to be dropped"

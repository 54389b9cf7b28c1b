import dataclasses
import logging

import pytest
import trio
from trio.testing import MockClock, wait_all_tasks_blocked

from brewos_relay.core.limits import Limits
from brewos_relay.core.memory import memory_peer
from brewos_relay.core.peer import Receive, Tasks
from brewos_relay.core.relay import open_relay
from brewos_relay.errors import CloseCode, PeerGone, RelayClosing
from brewos_relay.messages import encode
from support.peers import ScriptedPeer

ONE, TWO = "BRW-00000001", "BRW-00000002"
STATUS = encode({"type": "status"})
COMMAND = encode({"type": "command", "cmd": "tare"})


def tasks_living() -> int:
    return trio.lowlevel.current_statistics().tasks_living


async def test_devices_and_clients_meet_by_the_id_of_the_device() -> None:
    async with open_relay() as relay:
        peers = {device_id: (ScriptedPeer(), ScriptedPeer()) for device_id in (ONE, TWO)}
        for device_id, (device, client) in peers.items():
            relay.attach_client(device_id, client)
            relay.attach_device(device_id, device)
        await wait_all_tasks_blocked()
        peers[ONE][0].say(STATUS)
        peers[TWO][1].say(COMMAND)
        assert peers[ONE][0].types == ["connected"]
        assert peers[ONE][1].types == ["connected", "device_online", "status"]
        assert peers[TWO][0].types == ["connected", "command"]
        assert peers[TWO][1].types == ["connected", "device_online"]
        assert relay.counters.received_from_devices == 1
        assert relay.counters.received_from_clients == 1


async def test_memory_peers_meet(autojump_clock: MockClock) -> None:
    device, machine = memory_peer()
    client, app = memory_peer()
    with trio.fail_after(5):
        async with open_relay() as relay:
            relay.attach_device(ONE, device)
            attachment = relay.attach_client(ONE, client)
            await machine.send(STATUS)
            await app.send(COMMAND)
            assert [(await machine.receive()).peek_type() for _ in range(2)] == ["connected", "command"]
            assert [(await app.receive()).peek_type() for _ in range(2)] == ["connected", "status"]
            app.close()
            await attachment.wait_closed()
            assert (relay.device_count, relay.client_count) == (1, 0)
        with pytest.raises(PeerGone):
            await machine.receive()


async def test_who_is_here_is_counted() -> None:
    async with open_relay() as relay:
        assert (relay.device_count, relay.client_count, relay.is_online(ONE)) == (0, 0, False)
        assert not relay.closing
        device, clients = ScriptedPeer(), [ScriptedPeer() for _ in range(3)]
        for device_id, client in zip((ONE, ONE, TWO), clients, strict=True):
            relay.attach_client(device_id, client)
        assert (relay.device_count, relay.client_count, relay.is_online(ONE)) == (0, 3, False)
        relay.attach_device(ONE, device)
        assert (relay.device_count, relay.client_count) == (1, 3)
        assert (relay.is_online(ONE), relay.is_online(TWO)) == (True, False)
        for peer in (device, clients[0]):
            peer.leave()
        await wait_all_tasks_blocked()
        assert (relay.device_count, relay.client_count, relay.is_online(ONE)) == (0, 2, False)


async def test_sessions_end_with_their_last_peer_and_are_forgotten() -> None:
    async with open_relay() as relay:
        await wait_all_tasks_blocked()
        before = tasks_living()
        for _ in range(3):
            device, client = ScriptedPeer(), ScriptedPeer()
            relay.attach_device(ONE, device)
            relay.attach_client(ONE, client)
            await wait_all_tasks_blocked()
            assert tasks_living() == before + 3
            device.leave()
            client.leave()
            await wait_all_tasks_blocked()
            assert tasks_living() == before
            assert relay._sessions == {}


async def test_whoever_comes_during_the_last_goodbye_finds_a_new_session(autojump_clock: MockClock) -> None:
    async with open_relay() as relay:
        old, device, client = ScriptedPeer(goodbye_s=5), ScriptedPeer(), ScriptedPeer()
        leaving = relay.attach_device(ONE, old)
        await wait_all_tasks_blocked()
        old.leave()
        await wait_all_tasks_blocked()
        assert not relay.is_online(ONE)
        relay.attach_client(ONE, client)
        relay.attach_device(ONE, device)
        with trio.fail_after(6):
            await leaving.wait_closed()
        device.say(STATUS)
        assert client.types == ["connected", "device_online", "status"]
        assert old.closes == []
        assert relay.is_online(ONE)


async def test_coming_and_going_devices_are_told_of() -> None:
    seen: list[tuple[str, int]] = []
    async with open_relay(on_seen=lambda device_id, at_ms: seen.append((device_id, at_ms))) as relay:
        device = ScriptedPeer()
        relay.attach_client(ONE, ScriptedPeer())
        relay.attach_device(ONE, device)
        relay.attach_device(TWO, ScriptedPeer())
        await wait_all_tasks_blocked()
        device.leave()
        await wait_all_tasks_blocked()
        assert [device_id for device_id, _ in seen] == [ONE, TWO, ONE]
    assert [device_id for device_id, _ in seen] == [ONE, TWO, ONE, TWO], "leaving the relay is leaving"
    assert seen == sorted(seen, key=lambda entry: entry[1])


async def test_devices_come_and_go_even_if_nobody_can_note_it(caplog: pytest.LogCaptureFixture) -> None:
    def fail(device_id: str, at_ms: int) -> None:
        raise OSError("no space")

    async with open_relay(on_seen=fail) as relay:
        device = ScriptedPeer()
        relay.attach_device(ONE, device)
        await wait_all_tasks_blocked()
        assert relay.is_online(ONE)
        device.leave()
        await wait_all_tasks_blocked()
        assert device.acloses == 1
        assert not relay.is_online(ONE)
        assert caplog.text.count("OSError: no space") == 2


@pytest.mark.parametrize(
    ("given_ms", "last_seen"),
    [([None, None], None), ([7, 8], "1970-01-01T00:00:00.007Z"), ([None, 8], "1970-01-01T00:00:00.008Z")],
)
async def test_when_a_device_was_last_seen_comes_from_outside_at_first(
    given_ms: list[int | None], last_seen: str | None
) -> None:
    async with open_relay() as relay:
        for last_seen_ms in given_ms:
            client = ScriptedPeer()
            relay.attach_client(ONE, client, last_seen_ms=last_seen_ms)
        await wait_all_tasks_blocked()
        client.say({"type": "request_state"})
        assert client.received[-1]["lastSeen"] == last_seen


async def test_the_relay_knows_better_when_a_device_was_last_seen() -> None:
    async with open_relay() as relay:
        device, client = ScriptedPeer(), ScriptedPeer()
        relay.attach_device(ONE, device)
        relay.attach_client(ONE, client, last_seen_ms=0)
        await wait_all_tasks_blocked()
        device.leave()
        await wait_all_tasks_blocked()
        client.say({"type": "request_state"})
        assert client.received[-1]["lastSeen"] > "2020"


async def test_a_device_can_be_reached_after_a_peer_could_not_be_greeted() -> None:
    async with open_relay() as relay:
        broken = ScriptedPeer()
        broken.deliver_error = ValueError("no way out")
        relay.attach_client(ONE, broken)
        await wait_all_tasks_blocked()
        relay.attach_device(ONE, ScriptedPeer())
        assert relay.client_count == 0


# Leaving


async def test_leaving_the_block_says_goodbye_to_everybody(autojump_clock: MockClock) -> None:
    peers = [ScriptedPeer(goodbye_s=3) for _ in range(4)]
    before = tasks_living()
    async with open_relay() as relay:
        relay.attach_device(ONE, peers[0])
        relay.attach_client(ONE, peers[1])
        await wait_all_tasks_blocked()
        relay.attach_device(TWO, peers[2])
        relay.attach_client(ONE, peers[3])
    assert [peer.acloses for peer in peers] == [1] * 4
    assert trio.current_time() == pytest.approx(3)
    assert tasks_living() == before
    assert relay.closing
    assert (relay.device_count, relay.client_count) == (0, 0)
    with pytest.raises(RelayClosing):
        relay.attach_client(ONE, ScriptedPeer())


async def test_cancelling_says_goodbye_to_everybody(autojump_clock: MockClock) -> None:
    peers = [ScriptedPeer(goodbye_s=1) for _ in range(2)]
    with trio.move_on_after(10) as scope:
        async with open_relay() as relay:
            relay.attach_device(ONE, peers[0])
            relay.attach_client(ONE, peers[1])
            await trio.sleep_forever()
    assert scope.cancelled_caught
    assert [peer.acloses for peer in peers] == [1, 1]
    assert trio.current_time() == pytest.approx(11)


async def test_an_error_in_the_block_says_goodbye_to_everybody() -> None:
    peer, mine = ScriptedPeer(), ValueError("mine")

    async def open_and_fail() -> None:
        async with open_relay() as relay:
            relay.attach_device(ONE, peer)
            raise mine

    with pytest.raises(ExceptionGroup) as raised:
        await open_and_fail()
    assert raised.value.exceptions == (mine,), "as out of any nursery"
    assert peer.acloses == 1


class _FailsWhenCancelled(ScriptedPeer):
    """A peer with a nursery of its own, in which a task fails as it is cancelled."""

    async def run(self, tasks: Tasks, receive: Receive) -> None:
        async with trio.open_nursery() as own:
            own.start_soon(self._fail_when_cancelled)
            await super().run(tasks, receive)

    async def _fail_when_cancelled(self) -> None:
        try:
            await trio.sleep_forever()
        finally:
            raise ValueError("scripted")


async def test_a_peer_that_fails_as_it_is_cancelled_is_nobody_elses_concern() -> None:
    peers = [ScriptedPeer(), _FailsWhenCancelled()]
    async with open_relay() as relay:
        for peer in peers:
            relay.attach_client(ONE, peer)
        await wait_all_tasks_blocked()
    assert [peer.acloses for peer in peers] == [1, 1]


async def test_draining_closes_everybody_and_takes_nobody_on(autojump_clock: MockClock) -> None:
    peers = [ScriptedPeer(goodbye_s=goodbye_s) for goodbye_s in (0, 8, 4)]
    async with open_relay() as relay:
        relay.attach_device(ONE, peers[0])
        relay.attach_client(ONE, peers[1])
        relay.attach_device(TWO, peers[2])
        await wait_all_tasks_blocked()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(relay.drain)
            await wait_all_tasks_blocked()
            assert relay.closing
            for attach in (relay.attach_device, relay.attach_client):
                newcomer = ScriptedPeer()
                with pytest.raises(RelayClosing, match="come back later"):
                    attach(ONE, newcomer)
                assert (newcomer.runs, newcomer.deliveries, newcomer.closes) == (0, [], [])
            assert {peer.close_code for peer in peers} == {CloseCode.SERVICE_RESTART}
        assert trio.current_time() == pytest.approx(8), "the slowest goodbye is waited for"
        assert [peer.acloses for peer in peers] == [1] * 3


async def test_draining_goes_on_after_its_time(
    autojump_clock: MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    limits = dataclasses.replace(Limits(), drain_s=5.0)
    peers = [ScriptedPeer(goodbye_s=goodbye_s) for goodbye_s in (60, 1)]
    async with open_relay(limits=limits) as relay:
        relay.attach_client(ONE, peers[0])
        relay.attach_client(ONE, peers[1])
        await wait_all_tasks_blocked()
        await relay.drain()
        assert trio.current_time() == pytest.approx(5)
        assert [peer.acloses for peer in peers] == [0, 1]
        (record,) = [record for record in caplog.records if record.levelno >= logging.WARNING]
        assert "longer than 5 s" in record.getMessage()
    assert peers[0].acloses == 1


async def test_draining_when_nobody_is_there_and_draining_twice(
    autojump_clock: MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    async with open_relay() as relay:
        await relay.drain()
        await relay.drain()
        assert relay.closing
        assert trio.current_time() == 0
    assert "longer" not in caplog.text


async def test_draining_waits_for_goodbyes_that_began_earlier(autojump_clock: MockClock) -> None:
    async with open_relay() as relay:
        replaced, leaving, client = (ScriptedPeer(goodbye_s=4) for _ in range(3))
        relay.attach_device(ONE, replaced)
        relay.attach_device(ONE, leaving)
        relay.attach_client(TWO, client)
        await wait_all_tasks_blocked()
        leaving.leave()
        client.leave()
        await wait_all_tasks_blocked()
        await relay.drain()
        assert [peer.acloses for peer in (replaced, leaving, client)] == [1] * 3


async def test_draining_closes_everybody_else_when_one_cannot_be_closed() -> None:
    async with open_relay() as relay:
        broken, client = ScriptedPeer(), ScriptedPeer()
        broken.close_error = ValueError("no close")
        relay.attach_client(ONE, broken)
        relay.attach_client(ONE, client)
        await relay.drain()
        assert client.acloses == 1

import dataclasses
import functools
import gc
import json
import logging
import time
from dataclasses import replace
from itertools import pairwise

import pytest
import trio
from hypothesis import given
from hypothesis import strategies as st
from trio.testing import MockClock, wait_all_tasks_blocked

from brewos_relay import messages
from brewos_relay.core.counters import Counters
from brewos_relay.core.grant import FULL, Grant
from brewos_relay.core.limits import Limits
from brewos_relay.core.pauses import PauseWatch
from brewos_relay.core.peer import Receive, Tasks, memory_peer
from brewos_relay.core.recording import ActivityEvent
from brewos_relay.core.relay import Relay, open_relay
from brewos_relay.core.session import DeviceSession
from brewos_relay.core.snapshot import KnownState, Snapshot
from brewos_relay.dialect import BREWOS
from brewos_relay.errors import CloseCode, PeerGone, RelayClosing
from brewos_relay.messages import DeviceInfo, Message, encode
from brewos_relay.vocabulary import now_ms
from support.peers import RecordedPresence, ScriptedAudience, ScriptedPeer, ScriptedRemotePeer
from support.suspension import suspendable
from support.waiting import count_turns

ONE, TWO = "BRW-00000001", "BRW-00000002"
STATUS = encode({"type": "status"})
COMMAND = encode({"type": "command", "cmd": "tare"})


def tasks_living() -> int:
    return trio.lowlevel.current_statistics().tasks_living


async def test_devices_and_clients_meet_by_the_id_of_the_device() -> None:
    async with open_relay(dialect=BREWOS) as relay:
        peers = {device_id: (ScriptedPeer(), ScriptedPeer()) for device_id in (ONE, TWO)}
        for device_id, (device, client) in peers.items():
            relay.attach_client(device_id, client)
            relay.attach_device(device_id, device)
        await wait_all_tasks_blocked()
        peers[ONE][0].say(STATUS)
        peers[TWO][1].say(COMMAND)
        assert peers[ONE][0].types == ["connected", "request_state"]
        assert peers[ONE][1].types == ["connected", "device_online", "status"]
        assert peers[TWO][0].types == ["connected", "request_state", "command"]
        assert peers[TWO][1].types == ["connected", "device_online"]
        assert relay.counters.received_from_devices == 1
        assert relay.counters.received_from_clients == 1


async def test_memory_peers_meet(autojump_clock: MockClock) -> None:
    device, machine = memory_peer()
    client, app = memory_peer()
    with trio.fail_after(5):
        async with open_relay(dialect=BREWOS) as relay:
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


async def test_state_of_an_anonymous_device_goes_with_it(autojump_clock: MockClock) -> None:
    async with open_relay(dialect=BREWOS) as relay:
        for device_id, anonymous in ((ONE, False), (TWO, True)):
            device = ScriptedPeer()
            attachment = relay.attach_device(device_id, device, anonymous=anonymous)
            await wait_all_tasks_blocked()
            device.say(STATUS)
            assert relay.state_of(device_id) is not None
            assert relay.is_anonymous(device_id) is anonymous
            device.leave()
            await attachment.wait_closed()
        assert relay.state_of(ONE) is not None
        assert relay.state_of(TWO) is None
        assert not relay.is_anonymous(TWO)


async def test_a_flood_of_connections_is_logged_in_few_lines_with_a_count(
    autojump_clock: MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    async with open_relay(dialect=BREWOS) as relay:
        for _ in range(500):
            device = ScriptedPeer()
            attachment = relay.attach_device(ONE, device, network="203.0.113.66")
            await wait_all_tasks_blocked()
            device.leave()
            await attachment.wait_closed()
        lines = len(caplog.messages)
        assert lines <= 2 * 200
        other = ScriptedPeer()
        relay.attach_device(TWO, other, network="192.0.2.1")
        await wait_all_tasks_blocked()
        assert caplog.messages[lines:] == [f"device {TWO} came"]
        # In between, the flood was over.
        await trio.sleep(61)
        reports = [message for message in caplog.messages if "suppressed" in message]
        assert len(reports) == 2
        assert all("about connections from 203.0.113.66" in report for report in reports)
        device = ScriptedPeer()
        for _ in range(300):
            relay.lines.admit("device came", "203.0.113.66")
    assert "were suppressed: device came" in caplog.text.rpartition("203.0.113.66")[2], (
        "also when the relay closes"
    )


async def test_devices_and_clients_are_counted() -> None:
    async with open_relay(dialect=BREWOS) as relay:
        assert (relay.device_count, relay.client_count, relay.is_online(ONE)) == (0, 0, False)
        assert not relay.closing
        device, clients = ScriptedPeer(), [ScriptedPeer() for _ in range(3)]
        for device_id, client in zip((ONE, ONE, TWO), clients, strict=True):
            relay.attach_client(device_id, client)
        assert (relay.device_count, relay.client_count, relay.is_online(ONE)) == (0, 3, False)
        relay.attach_device(ONE, device)
        assert (relay.device_count, relay.is_online(ONE)) == (0, False), "it has not sent a frame"
        await wait_all_tasks_blocked()
        assert (relay.device_count, relay.client_count) == (1, 3)
        assert (relay.is_online(ONE), relay.is_online(TWO)) == (True, False)
        for peer in (device, clients[0]):
            peer.leave()
        await wait_all_tasks_blocked()
        assert (relay.device_count, relay.client_count, relay.is_online(ONE)) == (0, 2, False)


async def test_sessions_end_with_their_last_peer_and_are_forgotten() -> None:
    async with open_relay(dialect=BREWOS) as relay:
        await wait_all_tasks_blocked()
        before = tasks_living()
        for _ in range(3):
            device, client = ScriptedPeer(), ScriptedPeer()
            relay.attach_device(ONE, device)
            relay.attach_client(ONE, client)
            await wait_all_tasks_blocked()
            assert tasks_living() == before + 2
            device.leave()
            client.leave()
            await wait_all_tasks_blocked()
            assert tasks_living() == before
            assert relay._sessions == {}


@pytest.mark.parametrize("somebody_is_there", [False, True])
async def test_a_peer_that_cannot_be_attached_leaves_nothing_behind(
    somebody_is_there: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_args: object, **_fields: object) -> Message:
        raise ZeroDivisionError

    grant = replace(FULL, user_id="ada", by_token=False)
    async with open_relay(dialect=BREWOS) as relay:
        if somebody_is_there:
            relay.attach_client(ONE, ScriptedPeer(), grant=grant)
        with monkeypatch.context() as patch:
            patch.setattr(messages, "connected_device", fail)
            patch.setattr(messages, "connected_client", fail)
            with pytest.raises(ZeroDivisionError):
                relay.attach_device(ONE, ScriptedPeer())
            with pytest.raises(ZeroDivisionError):
                relay.attach_client(ONE, ScriptedPeer(), grant=grant)
        await wait_all_tasks_blocked()
        assert (
            len(relay.attached) == relay.session_count == relay.client_counts.of(grant) == somebody_is_there
        )
        device, client = ScriptedPeer(), ScriptedPeer()
        relay.attach_client(ONE, client)
        relay.attach_device(ONE, device)
        await wait_all_tasks_blocked()
        device.say(STATUS)
        assert client.types == ["connected", "device_online", "status"]


async def test_client_during_the_last_close_gets_a_new_session(autojump_clock: MockClock) -> None:
    async with open_relay(dialect=BREWOS) as relay:
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
        assert [kind for kind in client.types if kind != "keepalive"] == [
            "connected",
            "device_online",
            "status",
        ]
        assert old.closes == []
        assert relay.is_online(ONE)


async def test_coming_and_going_devices_are_told_of() -> None:
    seen: list[tuple[str, int]] = []
    async with open_relay(
        dialect=BREWOS, on_seen=lambda device_id, at_ms: seen.append((device_id, at_ms))
    ) as relay:
        device = ScriptedPeer()
        relay.attach_client(ONE, ScriptedPeer())
        relay.attach_device(ONE, device)
        relay.attach_device(TWO, ScriptedPeer())
        await wait_all_tasks_blocked()
        device.leave()
        await wait_all_tasks_blocked()
        assert sorted(device_id for device_id, _ in seen[:2]) == [ONE, TWO]
        assert [device_id for device_id, _ in seen[2:]] == [ONE]
    assert [device_id for device_id, _ in seen[2:]] == [ONE, TWO], "closing the relay ends its devices"
    assert seen == sorted(seen, key=lambda entry: entry[1])


async def test_devices_come_and_go_even_if_on_seen_fails(caplog: pytest.LogCaptureFixture) -> None:
    def fail(device_id: str, at_ms: int) -> None:
        raise OSError("no space")

    async with open_relay(dialect=BREWOS, on_seen=fail) as relay:
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
    async with open_relay(dialect=BREWOS) as relay:
        for last_seen_ms in given_ms:
            client = ScriptedPeer()
            relay.attach_client(ONE, client, last_seen_ms=last_seen_ms)
        await wait_all_tasks_blocked()
        client.say({"type": "request_state"})
        assert client.received[-1]["lastSeen"] == last_seen


async def test_the_relay_knows_better_when_a_device_was_last_seen() -> None:
    async with open_relay(dialect=BREWOS) as relay:
        device, client = ScriptedPeer(), ScriptedPeer()
        relay.attach_device(ONE, device)
        relay.attach_client(ONE, client, last_seen_ms=0)
        await wait_all_tasks_blocked()
        device.leave()
        await wait_all_tasks_blocked()
        client.say({"type": "request_state"})
        assert client.received[-1]["lastSeen"] > "2020"


async def test_a_device_can_be_reached_after_a_peer_could_not_be_greeted() -> None:
    async with open_relay(dialect=BREWOS) as relay:
        broken = ScriptedPeer()
        broken.deliver_error = ValueError("no way out")
        relay.attach_client(ONE, broken)
        await wait_all_tasks_blocked()
        relay.attach_device(ONE, ScriptedPeer())
        assert relay.client_count == 0


# Closing and draining


async def test_leaving_the_block_closes_every_peer(autojump_clock: MockClock) -> None:
    peers = [ScriptedPeer(goodbye_s=3) for _ in range(4)]
    before = tasks_living()
    async with open_relay(dialect=BREWOS) as relay:
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


async def test_cancelling_closes_every_peer(autojump_clock: MockClock) -> None:
    peers = [ScriptedPeer(goodbye_s=1) for _ in range(2)]
    with trio.move_on_after(10) as scope:
        async with open_relay(dialect=BREWOS) as relay:
            relay.attach_device(ONE, peers[0])
            relay.attach_client(ONE, peers[1])
            await trio.sleep_forever()
    assert scope.cancelled_caught
    assert [peer.acloses for peer in peers] == [1, 1]
    assert trio.current_time() == pytest.approx(11)


async def test_error_in_the_block_closes_every_peer() -> None:
    peer, mine = ScriptedPeer(), ValueError("mine")

    async def open_and_fail() -> None:
        async with open_relay(dialect=BREWOS) as relay:
            relay.attach_device(ONE, peer)
            raise mine

    with pytest.raises(ExceptionGroup) as raised:
        await open_and_fail()
    assert raised.value.exceptions == (mine,), "like an exception from any nursery"
    assert peer.acloses == 1


class _FailsWhenCancelled(ScriptedPeer):
    """A peer with a nursery of its own and a task that fails when it is cancelled."""

    async def run(self, tasks: Tasks, receive: Receive) -> None:
        async with trio.open_nursery() as own:
            own.start_soon(self._fail_when_cancelled)
            await super().run(tasks, receive)

    async def _fail_when_cancelled(self) -> None:
        try:
            await trio.sleep_forever()
        finally:
            raise ValueError("scripted")


async def test_peer_that_fails_while_cancelled_ends_no_other() -> None:
    peers = [ScriptedPeer(), _FailsWhenCancelled()]
    async with open_relay(dialect=BREWOS) as relay:
        for peer in peers:
            relay.attach_client(ONE, peer)
        await wait_all_tasks_blocked()
    assert [peer.acloses for peer in peers] == [1, 1]


async def test_drain_closes_every_peer_and_accepts_no_more(autojump_clock: MockClock) -> None:
    peers = [ScriptedPeer(goodbye_s=goodbye_s) for goodbye_s in (4, 1, 4)]
    async with open_relay(dialect=BREWOS) as relay:
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
                with pytest.raises(RelayClosing, match="connect again later"):
                    attach(ONE, newcomer)
                assert (newcomer.runs, newcomer.deliveries, newcomer.closes) == (0, [], [])
        assert {peer.close_code for peer in peers} == {CloseCode.SERVICE_RESTART}
        assert trio.current_time() == pytest.approx(14), "the drain waits for the slowest close"
        assert [peer.acloses for peer in peers] == [1] * 3


async def test_drain_spreads_closes_evenly_over_20_s(autojump_clock: MockClock) -> None:
    async with open_relay(dialect=BREWOS) as relay:
        devices = [ScriptedPeer(min_age_s=8.0) for _ in range(40)]
        clients = [ScriptedPeer() for _ in range(10)]
        for number, device in enumerate(devices):
            relay.attach_device(f"BRW-{number:08X}", device)
            await trio.sleep(1)
            for each in devices[: number + 1]:
                each.say()
        for number, client in enumerate(clients):
            relay.attach_client(f"BRW-{number:08X}", client)
        await wait_all_tasks_blocked()
        began = trio.current_time()
        await relay.drain()
        assert trio.current_time() - began < 21
        assert [device.closed_at[0] - began for device in devices] == pytest.approx(
            [number * 0.5 for number in range(40)]
        ), "the oldest go first"
        assert sorted(client.closed_at[0] - began for client in clients) == pytest.approx(
            [number * 2.0 for number in range(10)]
        )
        for device in devices:
            assert device.gone_at is not None
            assert device.gone_at - device.opened_at >= 8
            assert (device.close_code, device.acloses) == (CloseCode.SERVICE_RESTART, 1)


async def test_a_hurried_drain_closes_the_rest_at_once_and_holds_young_devices(
    autojump_clock: MockClock,
) -> None:
    hurry = trio.Event()
    async with open_relay(dialect=BREWOS) as relay:
        began = trio.current_time()
        devices = [ScriptedPeer(min_age_s=8.0) for _ in range(10)]
        clients = [ScriptedPeer() for _ in range(10)]
        for number, (device, client) in enumerate(zip(devices, clients, strict=True)):
            relay.attach_device(str(number), device)
            relay.attach_client(str(number), client)
        await wait_all_tasks_blocked()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(functools.partial(relay.drain, hurry=hurry))
            await trio.sleep(2.5)
            hurry.set()
        for peers in (devices, clients):
            assert {peer.close_code for peer in peers} == {1012}
            assert sorted(peer.closed_at[0] - began for peer in peers) == [0.0, 2.0, *[2.5] * 8]
        assert {device.gone_at for device in devices} == {began + 8.0}
        assert trio.current_time() - began == 8.0, "the hold of the youngest device"


async def test_clients_are_told_when_to_come_back_and_it_is_not_all_at_once(
    autojump_clock: MockClock,
) -> None:
    async with open_relay(dialect=BREWOS) as relay:
        clients = [ScriptedPeer(refuses=number % 2 == 0) for number in range(10)]
        for client in clients:
            relay.attach_client(ONE, client)
        await wait_all_tasks_blocked()
        for client in clients:
            client.forget()
        began = trio.current_time()
        await relay.drain()
        back_ms = []
        for client in clients:
            assert client.taken_at[0] == began, "before any client is closed"
            told = client.received[0]
            assert told["type"] == "restarting"
            assert began + told["reconnectInMs"] / 1000 > client.closed_at[0]
            back_ms.append(told["reconnectInMs"])
        steps = [later - earlier for earlier, later in pairwise(sorted(back_ms))]
        assert steps == [2000] * 9
        assert min(back_ms) >= 20_000, "not before all have ended"


async def test_relay_that_drains_as_one_of_several_closes_its_peers_in_its_part_of_the_time(
    autojump_clock: MockClock,
) -> None:
    async with open_relay(dialect=BREWOS) as relay:
        clients = [ScriptedPeer() for _ in range(10)]
        for client in clients:
            relay.attach_client(ONE, client)
        await wait_all_tasks_blocked()
        for client in clients:
            client.forget()
        began = trio.current_time()
        await relay.drain(window_s=5.0)
        assert trio.current_time() - began == pytest.approx(4.5)
        told_s = sorted(client.received[0]["reconnectInMs"] / 1000 for client in clients)
        closed_s = sorted(client.closed_at[0] - began for client in clients)
        gaps_s = [back_s - ended_s for back_s, ended_s in zip(told_s, closed_s, strict=True)]
        assert gaps_s == pytest.approx([21.0] * 10), "the other relays take the rest of the 20 s"


async def test_a_device_that_came_a_moment_ago_outlives_its_8_s(autojump_clock: MockClock) -> None:
    async with open_relay(dialect=BREWOS, limits=Limits(drain_s=2.0)) as relay:
        devices = [ScriptedPeer(min_age_s=8.0, silent=number == 0) for number in range(3)]
        for number, device in enumerate(devices):
            relay.attach_device(str(number), device)
        await wait_all_tasks_blocked()
        await relay.drain()
        assert [device.gone_at for device in devices] == [8.0] * 3
        assert trio.current_time() == 8.0


async def test_draining_goes_on_after_its_time(
    autojump_clock: MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    limits = dataclasses.replace(Limits(), drain_s=5.0)
    peers = [ScriptedPeer(goodbye_s=goodbye_s) for goodbye_s in (60, 1)]
    async with open_relay(dialect=BREWOS, limits=limits) as relay:
        relay.attach_client(ONE, peers[0])
        relay.attach_client(ONE, peers[1])
        await wait_all_tasks_blocked()
        await relay.drain()
        assert trio.current_time() == pytest.approx(23), (
            "drain_s, the longest hold of a device, and the close"
        )
        assert [peer.acloses for peer in peers] == [0, 1]
        (record,) = [record for record in caplog.records if record.levelno >= logging.WARNING]
        assert "after 23 s" in record.getMessage()
    assert peers[0].acloses == 1


async def test_drain_without_peers_and_drain_twice(
    autojump_clock: MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    async with open_relay(dialect=BREWOS) as relay:
        await relay.drain()
        await relay.drain()
        assert relay.closing
        assert trio.current_time() == 0
    assert "not everybody" not in caplog.text


async def test_drain_waits_for_closes_that_began_earlier(autojump_clock: MockClock) -> None:
    async with open_relay(dialect=BREWOS) as relay:
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


async def test_drain_closes_other_peers_when_one_fails(autojump_clock: MockClock) -> None:
    async with open_relay(dialect=BREWOS) as relay:
        broken, client = ScriptedPeer(), ScriptedPeer()
        broken.close_error = ValueError("no close")
        relay.attach_client(ONE, broken)
        relay.attach_client(ONE, client)
        await relay.drain()
        assert client.acloses == 1


# Periodic checks


async def test_every_session_is_looked_after_once_a_second(autojump_clock: MockClock) -> None:
    async with open_relay(dialect=BREWOS) as relay:
        clients = [ScriptedPeer() for _ in range(120)]
        for number, client in enumerate(clients):
            relay.attach_client(str(number), client)
        await trio.sleep(30)
        assert all(client.types.count("keepalive") in (4, 5, 6) for client in clients)
        assert all(client.pinged_at for client in clients)


async def test_failing_checks_of_a_session_affect_no_other(
    autojump_clock: MockClock, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with open_relay(dialect=BREWOS) as relay:
        clients = [ScriptedPeer(), ScriptedPeer()]
        for device_id, client in zip((ONE, TWO), clients, strict=True):
            relay.attach_client(device_id, client)
        run_checks = DeviceSession.run_checks

        def fail_for_one(session: DeviceSession, now: float) -> None:
            if session.device_id == ONE:
                raise ValueError("scripted")
            run_checks(session, now)

        monkeypatch.setattr(DeviceSession, "run_checks", fail_for_one)
        await trio.sleep(10)
        assert "keepalive" not in clients[0].types
        assert "keepalive" in clients[1].types
        assert "ValueError: scripted" in caplog.text
        assert ONE in caplog.text


async def test_checks_of_many_devices_let_other_tasks_run(
    monkeypatch: pytest.MonkeyPatch, autojump_clock: MockClock
) -> None:
    checked: list[str] = []
    monkeypatch.setattr(DeviceSession, "run_checks", lambda session, _now: checked.append(session.device_id))
    async with open_relay(dialect=BREWOS) as relay:
        for number in range(100):
            relay.attach_client(f"BRW-{number:08X}", ScriptedPeer())
        assert await count_turns(lambda: relay._run_checks(PauseWatch())) >= 8
    assert len(checked) == 100


async def test_checks_continue_after_a_failure_of_all(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, autojump_clock: MockClock
) -> None:
    look = Relay._run_checks
    left = [MemoryError()]

    async def fail_once(relay: Relay, watch: PauseWatch) -> None:
        if left:
            raise left.pop()
        await look(relay, watch)

    monkeypatch.setattr(Relay, "_run_checks", fail_once)
    async with open_relay(dialect=BREWOS) as relay:
        client = ScriptedPeer()
        relay.attach_client(ONE, client)
        await trio.sleep(10)
        assert "keepalive" in client.types
    assert "the periodic checks failed" in caplog.text


# Known states


async def test_info_of_a_device_can_be_read() -> None:
    async with open_relay(dialect=BREWOS) as relay:
        assert relay.info_of(ONE) == DeviceInfo()
        device = ScriptedPeer()
        relay.attach_device(ONE, device)
        await wait_all_tasks_blocked()
        device.say({"type": "device_info", "machineType": "dual_boiler"})
        assert relay.info_of(ONE) == DeviceInfo(machine_type="dual_boiler")


async def test_log_of_a_device_is_kept_for_a_while_after_it_went() -> None:
    async with open_relay(dialect=BREWOS) as relay:
        assert relay.log_of(ONE) is None
        device = ScriptedPeer()
        relay.attach_device(ONE, device)
        await wait_all_tasks_blocked()
        device.say({"type": "status", "seq": 1})
        device.say({"type": "log_config", "enabled": True})
        device.say({"type": "log", "message": "Pump on"})
        await wait_all_tasks_blocked()
        assert relay.known_fields(ONE, ("status",), {"seq"}) == {"seq": b"1"}
        log = relay.log_of(ONE)
        assert log is not None
        assert len(log.lines()) == 1
        device.leave()
        await wait_all_tasks_blocked()
        assert relay.log_of(ONE) is log


async def test_the_state_of_a_device_can_be_asked_for(autojump_clock: MockClock) -> None:
    async with open_relay(dialect=BREWOS) as relay:
        assert relay.state_of(ONE) is None
        device = ScriptedPeer()
        relay.attach_device(ONE, device)
        await wait_all_tasks_blocked()
        assert relay.state_of(ONE) is None
        device.say({"type": "status", "seq": 1, "a": 1}, {"type": "status_delta", "seq": 2, "b": 2})
        assert relay.state_of(ONE) == {
            "snapshotAgeMs": 0,
            "lastKnown": False,
            "staleGroups": [],
            "messages": {"status": {"type": "status", "seq": 2, "a": 1, "b": 2}},
        }
        await trio.sleep(5)
        state = relay.state_of(ONE)
        assert state is not None
        assert 4000 <= state["snapshotAgeMs"] <= 5000
        assert relay.state_of(TWO) is None


@pytest.mark.parametrize("goes_at_once", [True, False])
async def test_known_state_outlives_the_device_by_a_minute(
    goes_at_once: bool, autojump_clock: MockClock
) -> None:
    async with open_relay(dialect=BREWOS) as relay:
        device = ScriptedPeer()
        relay.attach_device(ONE, device)
        await wait_all_tasks_blocked()
        device.say({"type": "status", "seq": 1})
        if not goes_at_once:
            await trio.sleep(2.5)
        device.leave()
        await wait_all_tasks_blocked()
        assert relay._sessions == {}
        await trio.sleep(50)
        state = relay.state_of(ONE)
        assert state is not None
        assert 50_000 <= state["snapshotAgeMs"] <= 53_000
        client = ScriptedPeer()
        relay.attach_client(ONE, client)
        assert client.types == ["connected", "device_status", "status"]
        assert client.received[1]["snapshotAgeMs"] >= 50_000
        await wait_all_tasks_blocked()
        client.leave()
        await trio.sleep(8)
        assert relay.state_of(ONE) is not None
        await trio.sleep(4)
        assert relay.state_of(ONE) is None
        assert relay._absent_states == {}


async def test_returning_device_continues_from_the_known_state(autojump_clock: MockClock) -> None:
    async with open_relay(dialect=BREWOS) as relay:
        first, second, client = ScriptedPeer(), ScriptedPeer(), ScriptedPeer()
        relay.attach_device(ONE, first)
        await wait_all_tasks_blocked()
        first.say({"type": "status", "seq": 1, "a": 1})
        first.leave()
        await trio.sleep(31)
        relay.attach_device(ONE, second)
        await wait_all_tasks_blocked()
        second.say({"type": "status_delta", "seq": 2, "b": 2})
        await trio.sleep(2)
        relay.attach_client(ONE, client)
        assert client.received[2] == {"type": "status", "seq": 2, "a": 1, "b": 2}
        for _ in range(40):
            second.say()
            await trio.sleep(2)
        assert relay.state_of(ONE) is not None


async def test_the_state_of_an_absent_device_is_last_known_and_all_of_it_stale(
    autojump_clock: MockClock,
) -> None:
    async with open_relay(dialect=BREWOS) as relay:
        device = ScriptedPeer()
        relay.attach_device(ONE, device)
        await wait_all_tasks_blocked()
        device.say({"type": "status", "seq": 1, "a": 1, "b": 2})
        device.leave()
        await trio.sleep(3)
        state = relay.state_of(ONE)
        assert state is not None
        assert (state["lastKnown"], state["staleGroups"]) == (True, ["a", "b"])
        known = KnownState(encode({"type": "status", "c": 3}), 0)
        device = ScriptedPeer()
        relay.attach_device(TWO, device, known_state=known)
        await wait_all_tasks_blocked()
        state = relay.state_of(TWO)
        assert state is not None
        assert (state["lastKnown"], state["staleGroups"]) == (True, ["c"])
        assert state["messages"] == {"status": {"type": "status", "c": 3}}


async def test_it_is_known_for_how_long_a_state_stays(autojump_clock: MockClock) -> None:
    async with open_relay(dialect=BREWOS) as relay:
        assert not relay.knows_state(ONE, for_s=0)
        client, device = ScriptedPeer(), ScriptedPeer()
        relay.attach_device(ONE, device)
        relay.attach_device(TWO, ScriptedPeer())
        await wait_all_tasks_blocked()
        device.say({"type": "status"})
        assert relay.knows_state(ONE, for_s=1000)
        assert not relay.knows_state(TWO, for_s=0)
        device.leave()
        await trio.sleep(10)
        assert relay.knows_state(ONE, for_s=49)
        assert not relay.knows_state(ONE, for_s=51)
        relay.attach_client(ONE, client)
        assert relay.knows_state(ONE, for_s=49)
        assert not relay.knows_state(ONE, for_s=51)


async def test_states_are_saved_when_they_have_changed_enough(autojump_clock: MockClock) -> None:
    async with open_relay(dialect=BREWOS, limits=Limits(state_save_s=100.0)) as relay:
        device, anonymous = ScriptedPeer(), ScriptedPeer()
        before_us = now_ms() * 1000
        relay.attach_device(ONE, device)
        relay.attach_device(TWO, anonymous, anonymous=True)
        await wait_all_tasks_blocked()
        assert relay.unsaved_states() == []
        device.say({"type": "status", "seq": 1, "a": 1})
        anonymous.say({"type": "status", "seq": 1, "a": 1})
        await trio.sleep(2)
        assert relay.unsaved_states() == [ONE]
        known = relay.state_to_save(ONE)
        assert known is not None
        assert 0 < now_ms() - known.at_ms < 3000
        assert before_us <= known.since_us <= now_ms() * 1000 + 999
        assert json.loads(known.message.payload) == {"type": "status", "seq": 1, "a": 1}
        assert relay.unsaved_states() == []
        device.say({"type": "status_delta", "seq": 2, "a": 2})
        assert relay.unsaved_states() == []
        relay.mark_owned(TWO)  # a user has paired it meanwhile
        relay.mark_owned("BRW-FFFFFFFF")
        anonymous.say({"type": "keepalive"})
        assert relay.unsaved_states() == [TWO]
        device.leave()
        await wait_all_tasks_blocked()
        assert relay.unsaved_states() == [TWO, ONE]
        assert relay.state_to_save(ONE) is not None
        assert relay.unsaved_states() == [TWO]
        relay.state_not_saved(ONE)
        assert relay.unsaved_states() == [TWO, ONE]
        relay.forget_state(ONE)
        relay.forget_state(TWO)
        assert relay.unsaved_states() == [TWO]
        assert relay.state_to_save(ONE) is None
        relay.state_not_saved(ONE)
        anonymous.leave()
        await wait_all_tasks_blocked()
        relay.attach_client(TWO, ScriptedPeer())
        relay.forget_state(TWO)
        assert relay.state_of(TWO) is None
        relay.end_device(TWO)


# History


async def test_history_outlasts_the_connection_and_ends_with_the_key(autojump_clock: MockClock) -> None:
    def says(bar: float) -> None:
        device.receive([encode({"type": "status", "pressure": bar})])

    async def kept() -> list[float | None]:
        history = await relay.history_of(ONE, seconds=600.0)
        return list(history.values["pressure"]) if history is not None else []

    answers: list[object] = []
    async with open_relay(dialect=BREWOS) as relay:
        assert await kept() == []
        device = relay.attach_device(ONE, first := ScriptedPeer())
        await wait_all_tasks_blocked()
        says(1.0)
        first.leave()
        await trio.sleep(120)  # longer than the state stays
        assert await kept() == [1.0, None]
        device = relay.attach_device(ONE, second := ScriptedPeer())
        await wait_all_tasks_blocked()
        says(2.0)
        relay.forget_state(ONE)  # as when its users change
        relay.ask_history(ONE, 60.0, answers.append)
        assert answers == [], "another task answers"
        assert await kept() == [1.0, None, 2.0]
        second.leave()
        await trio.sleep(120)
        relay.end_device(ONE)
        assert await kept() == []


# Admission


async def test_no_more_are_let_in_than_the_rate(autojump_clock: MockClock) -> None:
    async with open_relay(dialect=BREWOS, limits=Limits(admit_rate=10.0)) as relay:
        assert [relay.admits() for _ in range(15)].count(True) == 10
        await trio.sleep(0.5)
        assert [relay.admits() for _ in range(15)].count(True) == 5


async def test_admit_rate_below_one_a_second_admits(autojump_clock: MockClock) -> None:
    async with open_relay(dialect=BREWOS, limits=Limits(admit_rate=0.5)) as relay:
        assert [relay.admits() for _ in range(3)] == [True, False, False]
        await trio.sleep(2)
        assert relay.admits()


async def test_admit_rate_of_0_admits_all() -> None:
    async with open_relay(dialect=BREWOS, limits=Limits(admit_rate=0.0)) as relay:
        assert all(relay.admits() for _ in range(10_000))


async def test_clients_of_a_device_are_bounded(autojump_clock: MockClock) -> None:
    async with open_relay(dialect=BREWOS, limits=Limits(clients_per_device=2)) as relay:
        peers = [ScriptedPeer(), ScriptedPeer()]
        for peer in peers:
            assert relay.reached_client_limit(ONE, FULL) is None
            relay.attach_client(ONE, peer)
        assert relay.reached_client_limit(ONE, FULL) == "this machine"
        assert relay.reached_client_limit(TWO, FULL) is None
        peers[0].leave()
        await wait_all_tasks_blocked()
        assert relay.reached_client_limit(ONE, FULL) is None


async def test_clients_of_a_user_are_bounded(autojump_clock: MockClock) -> None:
    async with open_relay(dialect=BREWOS, limits=Limits(clients_per_user=2)) as relay:
        ada, bob = Grant(user_id="ada"), Grant(user_id="bob")
        peers = {ONE: ScriptedPeer(), TWO: ScriptedPeer()}
        for device_id, peer in peers.items():
            assert relay.reached_client_limit(device_id, ada) is None
            relay.attach_client(device_id, peer, grant=ada)
        for device_id in (ONE, TWO, "BRW-00000003"):
            assert relay.reached_client_limit(device_id, ada) == "this user"
            assert relay.reached_client_limit(device_id, bob) is None
            assert relay.reached_client_limit(device_id, FULL) is None
            assert relay.reached_client_limit(device_id, replace(ada, by_token=True)) is None
        peers[TWO].leave()
        await wait_all_tasks_blocked()
        assert relay.reached_client_limit(ONE, ada) is None
        peers[ONE].leave()
        await wait_all_tasks_blocked()
        assert len(relay.client_counts) == 0, "users without clients are forgotten"


async def test_a_device_id_that_is_fought_for_is_contested_and_counted(autojump_clock: MockClock) -> None:
    async with open_relay(dialect=BREWOS) as relay:
        assert not relay.is_contested(ONE)
        for _ in range(4):
            device = ScriptedPeer()
            relay.attach_device(ONE, device)
            await trio.sleep(10)
            device.say()
            assert not relay.is_contested(TWO)
        assert relay.is_contested(ONE)
        assert relay.is_contested(ONE)
        assert relay.counters.conflicts == 2
        device.leave()
        await wait_all_tasks_blocked()
        assert not relay.is_contested(ONE)


async def test_a_token_ends_and_is_renewed(autojump_clock: MockClock) -> None:
    async with open_relay(dialect=BREWOS) as relay:
        clients = [ScriptedPeer(), ScriptedPeer()]
        for client in clients:
            relay.attach_client(
                ONE, client, expires_at_s=time.time() + 20, renew=lambda token: int(time.time()) + 3600
            )
        await trio.sleep(10)
        clients[0].say({"type": "refresh_auth", "token": "fresh"})
        await trio.sleep(15)
        assert [client.close_code for client in clients] == [None, CloseCode.TOKEN_REJECTED]


async def test_late_end_of_a_replaced_connection_keeps_the_next_session(
    autojump_clock: MockClock,
) -> None:
    async with open_relay(dialect=BREWOS) as relay:
        old, new, client = ScriptedPeer(), ScriptedPeer(), ScriptedPeer()
        old.stays = True
        relay.attach_device(ONE, old)
        await trio.sleep(8)
        relay.attach_device(ONE, new)
        await wait_all_tasks_blocked()
        assert old.close_code == CloseCode.REPLACED
        new.leave()
        await wait_all_tasks_blocked()
        relay.attach_client(ONE, client)
        await wait_all_tasks_blocked()
        old.leave()
        await wait_all_tasks_blocked()
        assert relay.client_count == 1
        assert [old.acloses, new.acloses, client.acloses] == [1, 1, 0]


async def test_full_status_request_returns_the_status_only(autojump_clock: MockClock) -> None:
    async with open_relay(dialect=BREWOS) as relay:
        peer, machine = memory_peer()
        relay.attach_device("BRW-00000001", peer)
        await machine.send({"type": "device_info", "deviceId": "BRW-00000001"})
        await trio.sleep(1)
        peer, app = memory_peer()
        relay.attach_client("BRW-00000001", peer)
        await app.send({"type": "request_full_status"})
        await app.send({"type": "ping", "timestamp": 1})
        types = [(await app.receive()).peek_type() for _ in range(4)]
        assert types == ["connected", "device_status", "device_info", "pong"]


# Grants and their ends

ADA, BOB = Grant(user_id="ada", session_id="s1"), Grant(user_id="bob", session_id="s2")
VIEWER = Grant(user_id="ada", may_command=False, may_manage=False)


def forbidden_count(peer: ScriptedPeer) -> int:
    return sum(content.get("error") == "forbidden" for content in peer.received)


async def test_a_grant_is_set_for_one_user_and_one_device() -> None:
    async with open_relay(dialect=BREWOS) as relay:
        device, elsewhere = ScriptedPeer(), ScriptedPeer()
        relay.attach_device(ONE, device)
        relay.attach_device(TWO, elsewhere)
        adas, bobs, nobodys, adas_two = (ScriptedPeer() for _ in range(4))
        attachment = relay.attach_client(ONE, adas, grant=ADA)
        relay.attach_client(ONE, bobs, grant=BOB)
        relay.attach_client(ONE, nobodys)
        relay.attach_client(TWO, adas_two, grant=ADA)
        await wait_all_tasks_blocked()
        relay.set_grant(ONE, "ada", Grant(user_id="other", session_id="s9", may_command=False))
        assert attachment.grant == Grant(user_id="ada", session_id="s1", may_command=False)
        for client in (adas, bobs, nobodys, adas_two):
            client.say(COMMAND)
        assert [forbidden_count(peer) for peer in (adas, bobs, nobodys, adas_two)] == [1, 0, 0, 0]
        assert device.types.count("command") == 2
        assert elsewhere.types.count("command") == 1
        relay.set_grant(ONE, "ada", ADA)
        adas.say(COMMAND)
        assert device.types.count("command") == 3
        assert adas.closes == []


async def test_access_that_is_taken_ends_the_user_s_clients_of_that_device() -> None:
    async with open_relay(dialect=BREWOS) as relay:
        device = ScriptedPeer()
        relay.attach_device(ONE, device)
        adas, others = [ScriptedPeer() for _ in range(3)], [ScriptedPeer() for _ in range(2)]
        for client in adas:
            relay.attach_client(ONE, client, grant=ADA)
        relay.attach_client(ONE, others[0], grant=BOB)
        relay.attach_client(TWO, others[1], grant=ADA)
        await wait_all_tasks_blocked()
        relay.set_grant(ONE, "ada", None)
        for client in adas:
            client.say(COMMAND)
        assert "command" not in device.types
        await wait_all_tasks_blocked()
        assert [client.close_code for client in adas] == [CloseCode.ACCESS_ENDED] * 3
        assert [client.acloses for client in adas] == [1] * 3
        assert [client.closes for client in others] == [[], []]
        assert relay.client_count == 2
        relay.set_grant("BRW-00000009", "ada", None)


async def test_client_whose_access_was_ended_gets_no_new_grant(autojump_clock: MockClock) -> None:
    async with open_relay(dialect=BREWOS) as relay:
        device, client, again = ScriptedPeer(), ScriptedPeer(), ScriptedPeer()
        client.stays = True
        relay.attach_client(ONE, client, grant=ADA)
        await wait_all_tasks_blocked()
        client.say(COMMAND)
        relay.end_clients(lambda grant: grant.session_id == "s1", code=4002, reason="signed out")
        relay.set_grant(ONE, "ada", ADA)
        relay.attach_client(ONE, again, grant=dataclasses.replace(ADA, session_id="s3"))
        relay.attach_device(ONE, device)
        await wait_all_tasks_blocked()
        client.say(COMMAND)
        assert "command" not in device.types
        again.say(COMMAND)
        assert device.types.count("command") == 1


async def test_pending_command_of_a_departed_client_ends_with_its_access() -> None:
    async with open_relay(dialect=BREWOS) as relay:
        relay.attach_client(ONE, ScriptedPeer(), grant=BOB)
        adas, bobs = ScriptedPeer(), ScriptedPeer()
        relay.attach_client(ONE, adas, grant=ADA)
        relay.attach_client(ONE, bobs, grant=dataclasses.replace(BOB, session_id="s8"))
        await wait_all_tasks_blocked()
        for client in (adas, bobs):
            client.say(COMMAND)
            client.leave()
        await wait_all_tasks_blocked()
        relay.set_grant(ONE, "ada", None)
        relay.end_clients(lambda grant: grant.session_id == "s8", code=4002, reason="signed out")
        device = ScriptedPeer()
        relay.attach_device(ONE, device)
        await wait_all_tasks_blocked()
        assert device.types == ["connected", "request_state"]


async def test_clients_with_a_device_token_keep_their_grant() -> None:
    async with open_relay(dialect=BREWOS) as relay:
        peers = [ScriptedPeer() for _ in range(3)]
        by_token = dataclasses.replace(ADA, by_token=True)
        for peer, grant in zip(peers, (ADA, by_token, Grant()), strict=True):
            relay.attach_client(ONE, peer, grant=grant)
        await wait_all_tasks_blocked()
        assert relay.users_of(ONE) == {"ada"}
        assert relay.users_of(TWO) == set()
        assert relay.grants_of(ONE) == [ADA, by_token, Grant()]
        assert relay.grants_of(TWO) == []
        relay.set_grant(ONE, "ada", VIEWER)
        for peer in peers:
            peer.say(COMMAND)
        assert [forbidden_count(peer) for peer in peers] == [1, 0, 0]
        relay.set_grant(ONE, "ada", None)
        await wait_all_tasks_blocked()
        assert [peer.close_code for peer in peers] == [4003, None, None]
        assert relay.users_of(ONE) == set()


async def test_clients_are_ended_wherever_they_are() -> None:
    async with open_relay(dialect=BREWOS) as relay:
        peers = [ScriptedPeer() for _ in range(4)]
        for peer, device_id, grant in zip(peers, (ONE, TWO, ONE, TWO), (ADA, ADA, BOB, VIEWER), strict=True):
            relay.attach_client(device_id, peer, grant=grant)
        # including clients whose session has not begun to run
        relay.end_clients(lambda grant: grant.session_id == "s1", code=4002, reason="signed out")
        peers[0].say(COMMAND)
        await wait_all_tasks_blocked()
        assert [peer.closes for peer in peers] == [[(4002, "signed out")]] * 2 + [[], []]
        assert [peer.acloses for peer in peers] == [1, 1, 0, 0]
        assert relay.client_count == 2


async def test_a_grant_reaches_a_client_before_its_session_runs() -> None:
    async with open_relay(dialect=BREWOS) as relay:
        device, client, ended = ScriptedPeer(), ScriptedPeer(), ScriptedPeer()
        relay.attach_device(ONE, device)
        relay.attach_client(ONE, client, grant=ADA)
        relay.attach_client(ONE, ended, grant=BOB)
        for peer in (client, ended):
            peer.say(COMMAND)  # sent when its task begins
        relay.set_grant(ONE, "ada", VIEWER)
        relay.set_grant(ONE, "bob", None)
        await wait_all_tasks_blocked()
        assert "command" not in device.types
        assert forbidden_count(client) == 1
        assert (ended.close_code, ended.runs, ended.acloses) == (CloseCode.ACCESS_ENDED, 1, 1)


async def test_ended_clients_do_not_delay_a_drain(autojump_clock: MockClock) -> None:
    async with open_relay(dialect=BREWOS) as relay:
        ended, device = ScriptedPeer(goodbye_s=1), ScriptedPeer(min_age_s=8.0)
        staying = [ScriptedPeer() for _ in range(2)]
        relay.attach_client(ONE, ended, grant=ADA)
        for client in staying:
            relay.attach_client(ONE, client, grant=BOB)
        relay.attach_device(ONE, device, credential=b"old")
        await wait_all_tasks_blocked()
        relay.set_grant(ONE, "ada", None)
        relay.end_device(ONE)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(relay.drain)
            await trio.sleep(1)
            relay.set_grant(ONE, "bob", None)
        assert trio.current_time() < 25
        assert [peer.close_code for peer in (ended, device)] == [4003, 4003]
        assert 4003 in [client.close_code for client in staying], "its turn had not come"
        assert [peer.acloses for peer in (ended, *staying, device)] == [1] * 4
        assert device.gone_at == 8
        assert "restarting" not in ended.types
        assert relay.attached == set()


# Devices whose key was revoked


async def test_a_device_ends_unless_its_credential_is_good(autojump_clock: MockClock) -> None:
    async with open_relay(dialect=BREWOS) as relay:
        present, arriving = ScriptedPeer(min_age_s=8.0), ScriptedPeer(min_age_s=8.0, silent=True)
        other, client = ScriptedPeer(), ScriptedPeer()
        relay.attach_device(ONE, present, credential=b"old")
        relay.attach_client(ONE, client)
        relay.attach_device(TWO, other, credential=b"old")
        await wait_all_tasks_blocked()
        relay.attach_device(ONE, arriving, credential=b"new")
        await trio.sleep(1)
        relay.end_device(ONE, unless=[b"new", b"old"])
        assert (present.closes, arriving.closes) == ([], [])
        client.forget()
        relay.end_device(ONE, unless=[b"new"])
        present.say(STATUS)
        await wait_all_tasks_blocked()
        present.say(STATUS)
        assert present.close_code == CloseCode.ACCESS_ENDED
        assert (relay.is_online(ONE), arriving.closes) == (False, [])
        assert client.types == ["device_offline"], "its messages no longer count"
        assert present.acloses == 0, "none is closed too early"
        await trio.sleep(8)
        assert present.gone_at == 8
        arriving.say()
        assert relay.is_online(ONE)
        relay.end_device(ONE)
        await wait_all_tasks_blocked()
        assert arriving.close_code == CloseCode.ACCESS_ENDED
        assert other.closes == []
        relay.end_device("BRW-00000009")


async def test_a_device_that_has_yet_to_speak_ends_as_well(autojump_clock: MockClock) -> None:
    async with open_relay(dialect=BREWOS) as relay:
        device = ScriptedPeer(silent=True, min_age_s=8.0)
        relay.attach_device(ONE, device, credential=b"old")
        await wait_all_tasks_blocked()
        relay.end_device(ONE, unless=[b"new"])
        device.say(STATUS)
        await wait_all_tasks_blocked()
        device.say(STATUS)
        assert (relay.is_online(ONE), relay.device_count) == (False, 0)
        await trio.sleep(9)
        assert device.gone_at == 8


async def test_device_without_a_credential_can_be_kept() -> None:
    async with open_relay(dialect=BREWOS) as relay:
        device = ScriptedPeer()
        relay.attach_device(ONE, device)
        await wait_all_tasks_blocked()
        relay.end_device(ONE, unless=[None])
        assert device.closes == []
        relay.end_device(ONE, unless=[b"new"])
        assert device.close_code == CloseCode.ACCESS_ENDED


# Messages of the relay


async def test_a_message_of_the_relay_reaches_the_device_that_is_there() -> None:
    async with open_relay(dialect=BREWOS) as relay:
        message = encode({"type": "key_rotate"})
        assert not relay.send_to_device(ONE, message)
        device = ScriptedPeer(silent=True)
        relay.attach_device(ONE, device)
        await wait_all_tasks_blocked()
        assert not relay.send_to_device(ONE, message), "it may be left over from a broken connection"
        device.say()
        device.refuses = True
        assert relay.send_to_device(ONE, message)
        assert device.types == ["connected", "key_rotate"]
        assert not relay.send_to_device(TWO, message)
        device.refuses_all = True
        assert not relay.send_to_device(ONE, message)
        device.deliver_error = ValueError("no way out")
        assert not relay.send_to_device(ONE, message)
        await wait_all_tasks_blocked()
        assert not relay.send_to_device(ONE, message)
        assert device.acloses == 1


async def test_message_of_the_relay_reaches_matching_clients() -> None:
    async with open_relay(dialect=BREWOS) as relay:
        message = encode({"type": "key_pending"})
        adas, bobs, elsewhere = ScriptedPeer(refuses=True), ScriptedPeer(), ScriptedPeer()
        relay.attach_client(ONE, adas, grant=ADA)
        relay.attach_client(ONE, bobs, grant=BOB)
        relay.attach_client(TWO, elsewhere, grant=ADA)
        relay.tell_clients(ONE, message, lambda grant: grant.user_id == "ada")
        relay.tell_clients("BRW-00000009", message, lambda grant: True)
        assert (adas.messages[-1], adas.kept) == (message, [True, True])
        assert message not in (*bobs.messages, *elsewhere.messages)


# Activity


async def test_activity_is_recorded() -> None:
    noted: list[ActivityEvent] = []
    async with open_relay(dialect=BREWOS, on_activity=noted.append) as relay:
        client, device = ScriptedPeer(), ScriptedPeer()
        relay.attach_client(ONE, client, grant=ADA)
        relay.attach_device(ONE, device)
        await wait_all_tasks_blocked()
        client.say(COMMAND)
        assert [(event.device_id, event.kind, event.user_id, event.detail) for event in noted] == [
            (ONE, "client_came", "ada", {}),
            (ONE, "online", None, {}),
            (ONE, "command", "ada", {"name": "tare", "outcome": "delivered"}),
        ]
        relay.set_grant(ONE, "ada", None)
        await wait_all_tasks_blocked()
        assert [(event.kind, event.detail["by"], event.detail["code"]) for event in noted[3:]] == [
            ("client_went", "relay", 4003)
        ]
    assert [(event.kind, event.detail["by"], event.detail["code"]) for event in noted[4:]] == [
        ("offline", "relay", 1001)
    ]


async def test_commands_that_are_not_wanted_are_no_activity(caplog: pytest.LogCaptureFixture) -> None:
    noted: list[ActivityEvent] = []
    asked: list[tuple[str, str | None]] = []

    def wants(device_id: str, user_id: str | None) -> bool:
        asked.append((device_id, user_id))
        if len(asked) > 2:
            raise OSError("cannot tell")
        return len(asked) > 1

    async with open_relay(dialect=BREWOS, on_activity=noted.append, wants_commands=wants) as relay:
        client = ScriptedPeer()
        relay.attach_client(ONE, client, grant=ADA)
        await wait_all_tasks_blocked()
        noted.clear()
        counts = []
        for _ in range(3):
            client.say(COMMAND)
            counts.append(len(noted))
        assert counts == [0, 1, 2], "a failure records the command"
        assert {event.kind for event in noted} == {"command"}
        assert relay.counters.commands == {"queued": 3}
    assert asked == [(ONE, "ada")] * 3
    assert caplog.text.count("OSError: cannot tell") == 1


async def test_live_peers_can_be_counted() -> None:
    counters = Counters()
    async with open_relay(dialect=BREWOS, counters=counters) as relay:
        assert relay.counters is counters
        client, device = ScriptedPeer(), ScriptedPeer()
        relay.attach_client(ONE, client)
        relay.attach_device(TWO, device)
        await wait_all_tasks_blocked()
        client.say(COMMAND)
        assert (relay.session_count, relay.lagging_count, relay.pending_count) == (2, 0, 1)


async def test_relay_works_even_if_on_activity_fails(caplog: pytest.LogCaptureFixture) -> None:
    def fail(*_: object) -> None:
        raise OSError("no space")

    async with open_relay(dialect=BREWOS, on_activity=fail) as relay:
        client, device = ScriptedPeer(), ScriptedPeer()
        relay.attach_client(ONE, client)
        relay.attach_device(ONE, device)
        await wait_all_tasks_blocked()
        client.say(COMMAND)
        assert device.types[-1] == "command"
        client.leave()
        await wait_all_tasks_blocked()
        assert relay.client_count == 0
        assert caplog.text.count("OSError: no space") == 4


def sessions_in_memory() -> int:
    return sum(type(one) is DeviceSession for one in gc.get_objects())


@pytest.mark.parametrize("with_device", [True, False])
async def test_nothing_of_a_session_is_left_when_it_has_ended(
    with_device: bool, autojump_clock: MockClock
) -> None:
    async with open_relay(dialect=BREWOS) as relay:
        await wait_all_tasks_blocked()
        gc.collect()
        before = sessions_in_memory()  # of other tests, whose failures or logs may refer to them
        gc.disable()
        try:
            peer, app = memory_peer()
            client = relay.attach_client(ONE, peer, grant=ADA, renew=lambda token: 1)
            await app.send(COMMAND)
            if with_device:
                device_peer, machine = memory_peer()
                relay.attach_device(ONE, device_peer, credential=b"key")
                await wait_all_tasks_blocked()
                machine.close()
                await wait_all_tasks_blocked()
                await app.send(COMMAND)
                del device_peer, machine
            await wait_all_tasks_blocked()
            assert sessions_in_memory() == before + 1
            relay.set_grant(ONE, "ada", None)
            with trio.fail_after(5):
                await client.wait_closed()
            await wait_all_tasks_blocked()
            del client, peer, app
            assert sessions_in_memory() == before, "a reference cycle keeps the session in memory"
        finally:
            gc.enable()


# Pauses of the process


async def test_no_peer_is_closed_for_its_silence_in_a_pause(
    autojump_clock: MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    async with open_relay(dialect=BREWOS) as relay:
        device, arriving, client = ScriptedPeer(), ScriptedPeer(silent=True), ScriptedPeer()
        relay.attach_device(ONE, device)
        relay.attach_device(TWO, arriving)
        relay.attach_client(ONE, client)
        await trio.sleep(5.5)
        client.forget()
        autojump_clock.jump(50)
        await trio.sleep(1.1)
        assert client.types == ["keepalive"], "apps wait for a keepalive"
        assert "did not run for" in caplog.text
        await trio.sleep(8)
        assert not relay.is_online(TWO), "a pause is no sign of life"
        assert [peer.closes for peer in (device, arriving, client)] == [[], [], []]
        await trio.sleep(2)
        assert arriving.close_code == 1008
        await trio.sleep(23)
        assert client.closes == []
        await trio.sleep(2)
        assert client.close_code == 1008
        assert device.closes == []
        await trio.sleep(10)
        assert device.close_code == 1008, "silence counts from the end of the pause"


async def test_wall_clock_ends_pass_in_a_pause(
    autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    suspend = suspendable(monkeypatch)
    async with open_relay(dialect=BREWOS) as relay:
        device, expiring, ending, staying = (ScriptedPeer() for _ in range(4))
        relay.attach_device(ONE, device)
        relay.attach_client(ONE, expiring, expires_at_s=time.time() + 40)
        relay.attach_client(ONE, ending, grant=replace(FULL, until_s=time.time() + 40))
        relay.attach_client(ONE, staying, expires_at_s=time.time() + 4000)
        await trio.sleep(2)
        device.say(STATUS)
        await trio.sleep(2)
        suspend(50.0)
        await trio.sleep(2)
        assert expiring.close_code == CloseCode.TOKEN_REJECTED
        assert ending.close_code == CloseCode.ACCESS_ENDED
        assert staying.closes == []
        state = relay.state_of(ONE)
        assert state is not None
        assert state["snapshotAgeMs"] >= 50_000


async def test_state_of_an_absent_device_expires_in_a_pause(
    autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    suspend = suspendable(monkeypatch)
    async with open_relay(dialect=BREWOS) as relay:
        for device_id in (ONE, TWO):
            device = ScriptedPeer()
            relay.attach_device(device_id, device)
            await wait_all_tasks_blocked()
            device.say(STATUS)
            device.leave()
        relay.attach_client(TWO, ScriptedPeer())
        await trio.sleep(2)
        assert relay.state_of(ONE)
        assert relay.state_of(TWO)
        suspend(60.0)
        await trio.sleep(2)
        assert relay.state_of(ONE) is None
        assert relay.state_of(TWO) is None


async def test_connections_that_were_replaced_after_a_pause_are_no_fight(autojump_clock: MockClock) -> None:
    async with open_relay(dialect=BREWOS) as relay:
        for _ in range(5):
            relay.attach_device(ONE, ScriptedPeer())
            await trio.sleep(12)
            autojump_clock.jump(50)
            await trio.sleep(2)
            assert not relay.is_contested(ONE)


# Without a dialect


async def test_relay_without_a_dialect_passes_everything_on_and_keeps_nothing(
    autojump_clock: MockClock,
) -> None:
    async with open_relay() as relay:
        device, client = ScriptedPeer(), ScriptedPeer()
        status = encode({"type": "status", "seq": 1})
        known = KnownState(status, round(time.time() * 1000))
        relay.attach_device(ONE, device, known_state=known)
        relay.attach_client(ONE, client)
        await wait_all_tasks_blocked()
        device.say(status, encode({"type": "status_delta", "x": 1}), encode({"type": "device_info"}))
        await trio.sleep(2)
        assert client.types == ["connected", "device_online", "status", "status_delta", "device_info"]
        assert relay.state_of(ONE) is None
        assert relay.info_of(ONE) == DeviceInfo()
        assert device.types == ["connected"], "the relay asks nothing of a device that it does not know"
        client.say(encode({"type": "request_full_status"}))
        assert device.types[1:] == ["request_full_status"]
        device.leave()
        await wait_all_tasks_blocked()
        client.forget()
        client.say(encode({"type": "command", "cmd": "set_mode", "mode": "off"}))
        assert client.types == ["error"]
        assert relay.pending_count == 0


# Devices and clients on other instances


async def remote_device(relay: Relay, *, told: bool = True) -> ScriptedRemotePeer:
    """Attach a device on another instance, with its state."""
    peer = ScriptedRemotePeer()
    device = relay.attach_remote_device(ONE, peer)
    await wait_all_tasks_blocked()
    if told:
        snapshot = Snapshot(BREWOS)
        snapshot.update(STATUS, "status", None)
        relay.take_remote_state(device, snapshot.export(trio.current_time()), last_seen_ms=1)
    return peer


async def test_nothing_is_known_of_a_device_without_a_session() -> None:
    async with open_relay(dialect=BREWOS) as relay:
        assert not relay.has_device(ONE)
        assert not relay.is_lively(ONE)
        assert not relay.yield_device(ONE)
        assert not relay.set_remote_audience(ONE, ScriptedAudience())
        assert relay.deliver_remote_command(ONE, COMMAND) == "device_offline"
        state, seen_ms = relay.export_state(ONE)
        assert (state.status, state.others, seen_ms) == (None, [], None)


async def test_device_of_this_relay_serves_other_instances(autojump_clock: MockClock) -> None:
    async with open_relay(dialect=BREWOS) as relay:
        device, audience = ScriptedPeer(), ScriptedAudience()
        for device_id in (ONE, TWO):  # the second one is unknown
            relay.set_since(device_id, 17)
            relay.ask_for_state(device_id)
        relay.attach_device(ONE, device)
        await wait_all_tasks_blocked()
        device.forget()
        relay.ask_for_state(ONE)
        assert device.types == ["request_state"]
        device.say(STATUS)
        relay.set_since(ONE, 17)
        known = relay.state_to_save(ONE)
        assert known is not None
        assert known.since_us == 17
        assert relay.has_device(ONE)
        assert relay.is_lively(ONE)
        assert relay.set_remote_audience(ONE, audience)
        device.forget()
        device.say(STATUS)
        assert audience.messages == [STATUS]
        assert relay.deliver_remote_command(ONE, COMMAND) == "delivered"
        assert device.messages == [COMMAND]
        state, seen_ms = relay.export_state(ONE)
        assert state.status == STATUS
        assert seen_ms is not None
        assert abs(seen_ms - now_ms()) < 60_000
        assert relay.yield_device(ONE)
        await wait_all_tasks_blocked()
        assert device.close_code == CloseCode.REPLACED
        assert (relay.has_device(ONE), relay.session_count) == (False, 0)
        assert relay.export_state(ONE)[0].status is None, "the other instance keeps its state"


async def test_remote_device_is_online_but_not_of_this_relay(autojump_clock: MockClock) -> None:
    async with open_relay(dialect=BREWOS) as relay:
        peer = await remote_device(relay)
        assert relay.is_online(ONE)
        assert not relay.has_device(ONE)
        assert not relay.is_lively(ONE)
        assert (relay.device_count, relay.session_count) == (0, 1)
        assert relay.attached == set()
        assert not relay.send_to_device(ONE, COMMAND)
        assert relay.state_of(ONE) is not None
        relay.end_device(ONE)
        assert relay.is_online(ONE)
        peer.leave()
        await wait_all_tasks_blocked()
        assert not relay.is_online(ONE)


async def test_state_of_a_remote_device_is_neither_saved_nor_kept(autojump_clock: MockClock) -> None:
    async with open_relay(dialect=BREWOS) as relay:
        peer = await remote_device(relay)
        peer.say(STATUS)
        await trio.sleep(400)
        client = ScriptedPeer()
        relay.attach_client(ONE, client)
        await wait_all_tasks_blocked()
        assert relay.unsaved_states() == []
        assert not relay.knows_state(ONE, for_s=4.0), "it does not stay here"
        peer.leave()
        await wait_all_tasks_blocked()
        assert relay.unsaved_states() == []
        assert relay.state_of(ONE) is not None
        assert not relay.knows_state(ONE, for_s=4.0)
        relay.attach_client(ONE, late := ScriptedPeer())
        assert late.types == ["connected", "device_status", "status"]
        await wait_all_tasks_blocked()
        for each in (client, late):
            each.leave()
        await wait_all_tasks_blocked()
        assert (relay.session_count, relay.state_of(ONE)) == (0, None)


async def test_state_of_a_device_that_came_here_from_another_instance_is_saved(
    autojump_clock: MockClock,
) -> None:
    async with open_relay(dialect=BREWOS) as relay:
        await remote_device(relay)
        device = ScriptedPeer()
        relay.attach_device(ONE, device)
        await wait_all_tasks_blocked()
        device.say(STATUS)
        assert relay.knows_state(ONE, for_s=4.0)
        assert relay.unsaved_states() == [ONE]
        device.leave()
        await wait_all_tasks_blocked()
        assert relay.state_of(ONE) is not None
        assert relay.unsaved_states() == [ONE]


async def test_state_for_a_remote_device_whose_session_ended_is_ignored() -> None:
    async with open_relay(dialect=BREWOS) as relay:
        peer = ScriptedRemotePeer()
        device = relay.attach_remote_device(ONE, peer)
        await wait_all_tasks_blocked()
        peer.leave()
        await wait_all_tasks_blocked()
        relay.take_remote_state(device, relay.export_state(ONE)[0], last_seen_ms=1)
        assert relay.session_count == 0


async def test_drain_does_not_wait_for_remote_devices(autojump_clock: MockClock) -> None:
    async with open_relay(dialect=BREWOS, limits=Limits(drain_s=2.0)) as relay:
        peer = await remote_device(relay)
        client = ScriptedPeer()
        relay.attach_client(ONE, client)
        await wait_all_tasks_blocked()
        with trio.fail_after(5):
            await relay.drain()
        assert client.close_code == CloseCode.SERVICE_RESTART
        assert peer.closes == []
        with pytest.raises(RelayClosing):
            relay.attach_remote_device(ONE, ScriptedRemotePeer())
    assert peer.acloses == 1


# Often, so that there are peers for the others.
SEAM_ACTIONS = [
    *["device comes", "client comes", "remote device comes"] * 2,
    "zombie comes",
    "device goes",
    "device fails",
    "key ends",
    "remote device goes",
    "remote device fails",
    "yields",
    "client goes",
    "client fails",
    "client cannot be greeted",
    "access ends",
    "time passes",
]


@given(st.lists(st.tuples(st.sampled_from(SEAM_ACTIONS), st.integers(0, 3)), max_size=40))
def test_what_other_instances_are_told_balances_in_any_order(steps: list[tuple[str, int]]) -> None:
    trio.run(balance, steps, clock=MockClock(autojump_threshold=0))


async def balance(steps: list[tuple[str, int]]) -> None:
    """Run steps, and compare what other instances are told with the peers that are there."""
    told = RecordedPresence()
    clients: list[ScriptedPeer] = []
    devices: list[ScriptedPeer] = []
    remotes: list[ScriptedPeer] = []
    peers = {"client": clients, "device": devices, "remote device": remotes}
    async with open_relay(dialect=BREWOS, remote=told) as relay:
        for action, pick in steps:
            if action in {"device comes", "zombie comes"}:
                devices.append(device := ScriptedPeer(silent=action == "zombie comes", min_age_s=8.0))
                relay.attach_device(ONE, device)
            elif action == "remote device comes":
                remotes.append(await remote_device(relay, told=pick > 0))
            elif action in {"client comes", "client cannot be greeted"}:
                clients.append(client := ScriptedPeer())
                client.deliver_error = ValueError("no") if action != "client comes" else None
                relay.attach_client(ONE, client)
            elif action == "key ends":
                relay.end_device(ONE)
            elif action == "access ends":
                relay.end_clients(lambda _: True, code=4003, reason="enough")
            elif action == "yields":
                relay.yield_device(ONE)
            elif action == "time passes":
                await trio.sleep(5 * pick)
            else:
                kind, how = action.rsplit(" ", 1)
                if peers[kind]:
                    peer = peers[kind].pop(pick % len(peers[kind]))
                    peer.leave() if how == "goes" else peer.fail(ValueError("no"))
            await wait_all_tasks_blocked()
            # A peer whose end has begun is closed. A device may be held open after that.
            here = [peer for peer in devices if not peer.closes and peer.runs]
            assert set(told.connected_at) == ({ONE} if relay.has_device(ONE) else set())
            assert set(told.connected_at.values()) <= {peer.opened_at for peer in here}
            assert told.wanted == ({ONE} if any(not peer.closes for peer in clients) else set())
    assert told.connected_at == {}
    assert told.wanted == set()
    for came, went in (("came", "went"), ("wanted", "unwanted")):
        changes = [name for name, _ in told.calls if name in (came, went)]
        starts = [name for index, name in enumerate(changes) if index == 0 or changes[index - 1] != name]
        assert starts == [came, went] * (len(starts) // 2)

import time
from typing import Any

import msgspec
import pytest
import trio
from trio.testing import MockClock

from brewos_relay import messages
from brewos_relay.core.attachment import DeviceAttachment, RemoteDeviceAttachment
from brewos_relay.core.counters import Counters
from brewos_relay.core.histories import Histories
from brewos_relay.core.limits import Limits
from brewos_relay.core.presence import Presence
from brewos_relay.core.snapshot import SmallSnapshot, Snapshot, SnapshotState
from brewos_relay.dialect import BREWOS
from brewos_relay.messages import Message, encode
from support.peers import PassiveSession, ScriptedPeer, ScriptedRemotePeer
from support.state_messages import update


def connection() -> DeviceAttachment:
    return DeviceAttachment(PassiveSession(), ScriptedPeer(), bucket=None)


def remote_connection() -> RemoteDeviceAttachment:
    return RemoteDeviceAttachment(PassiveSession(), ScriptedRemotePeer())


@pytest.fixture
def presence() -> Presence:
    return Presence("BRW-00000001", limits=Limits(), dialect=BREWOS)


async def test_no_connection_is_present_at_first(presence: Presence) -> None:
    assert (presence.present, presence.arriving) == (None, None)
    assert presence.may_replace(0.0)
    assert not presence.is_contested(0.0)


async def test_a_connection_arrives_and_then_stands_for_the_device(presence: Presence) -> None:
    device = connection()
    assert presence.arrive(device) is None
    assert (presence.present, presence.arriving) == (None, device)
    assert presence.replace(trio.current_time()) is None
    assert (presence.present, presence.arriving) == (device, None)


async def test_state_is_of_the_connection_that_stands_for_the_device(presence: Presence) -> None:
    assert presence.snapshot.since_us == 0
    first, second = connection(), connection()
    assert abs(first.since_us - time.time_ns() // 1000) < 60_000_000
    first.since_us = 100
    presence.arrive(first)
    assert presence.snapshot.since_us == 0, "it only waits"
    presence.replace(trio.current_time())
    assert presence.snapshot.since_us == 100
    second.since_us = 40  # the clock was set back
    presence.arrive(second)
    presence.replace(trio.current_time())
    assert presence.snapshot.since_us == 101
    for anonymous in (True, False):
        presence.set_anonymous(anonymous)
        assert presence.snapshot.since_us == 101


async def test_newer_arriving_connection_replaces_the_older_one(presence: Presence) -> None:
    older, newer = connection(), connection()
    presence.arrive(older)
    assert presence.arrive(newer) is older
    assert presence.arriving is newer
    assert not presence.leave(older)
    assert presence.arriving is newer


@pytest.mark.parametrize(("spoke_after_s", "held_s"), [(0.0, 8.0), (4.5, 10.0), (None, 10.5)])
async def test_only_a_connection_that_is_safe_to_end_may_be_replaced(
    presence: Presence, autojump_clock: MockClock, spoke_after_s: float | None, held_s: float
) -> None:
    older, newer = connection(), connection()
    if spoke_after_s is not None:
        older.spoke_at = older.attached_at + spoke_after_s
    presence.arrive(older)
    presence.replace(trio.current_time())
    presence.arrive(newer)
    await trio.sleep(held_s - 0.01)
    assert not presence.may_replace(trio.current_time())
    await trio.sleep(0.01)
    assert presence.may_replace(trio.current_time())
    assert presence.replace(trio.current_time()) is older
    assert presence.present is newer


async def test_leaving_is_forgotten_wherever_one_stood(presence: Presence) -> None:
    device, arriving, stranger = connection(), connection(), connection()
    presence.arrive(device)
    presence.replace(trio.current_time())
    presence.arrive(arriving)
    assert not presence.leave(stranger)
    assert not presence.leave(arriving)
    assert (presence.present, presence.arriving) == (device, None)
    assert presence.leave(device)
    assert presence.present is None


async def swap(presence: Presence, *, heard: bool, after_s: float) -> None:
    """Let another connection replace the present one, which was alive or not."""
    await trio.sleep(after_s)
    if presence.present is not None:
        presence.present.heard = heard
    presence.arrive(connection())
    presence.replace(trio.current_time())


async def test_two_machines_with_one_id_are_a_fight_after_three_swaps(
    presence: Presence, autojump_clock: MockClock
) -> None:
    contested = []
    for _ in range(6):
        await swap(presence, heard=True, after_s=30)
        contested.append(presence.is_contested(trio.current_time()))
    assert contested == [False, False, False, True, True, True], "the first connection replaced none"


async def test_reconnect_after_a_silence_is_no_contest(presence: Presence, autojump_clock: MockClock) -> None:
    for _ in range(6):
        await swap(presence, heard=False, after_s=31)
        assert not presence.is_contested(trio.current_time())


async def test_contest_ends_when_the_present_device_is_silent_or_leaves(
    presence: Presence, autojump_clock: MockClock
) -> None:
    for _ in range(4):
        await swap(presence, heard=True, after_s=10)
    assert presence.is_contested(trio.current_time())
    await trio.sleep(19)
    assert presence.is_contested(trio.current_time())
    await trio.sleep(1)
    assert not presence.is_contested(trio.current_time()), "it sends nothing any more"
    assert presence.present is not None
    presence.present.heard = True
    assert presence.is_contested(trio.current_time())
    presence.leave(presence.present)
    assert not presence.is_contested(trio.current_time())


async def test_a_fight_is_forgotten_after_five_minutes(presence: Presence, autojump_clock: MockClock) -> None:
    for _ in range(4):
        await swap(presence, heard=True, after_s=10)
    for after_s, contested in ((279, True), (1, False)):  # the first replacement was 20 s before the last
        await trio.sleep(after_s)
        assert presence.present is not None
        presence.present.heard = True
        assert presence.is_contested(trio.current_time()) == contested


async def test_silent_device_is_pinged_and_then_closed(autojump_clock: MockClock) -> None:
    presence, counters = (
        Presence("BRW-00000001", limits=Limits(device_ping_s=10, device_silence_s=30), dialect=BREWOS),
        Counters(),
    )
    assert not presence.run_checks(trio.current_time(), counters)
    device = connection()
    presence.arrive(device)
    presence.replace(trio.current_time())
    peer = device.peer
    assert isinstance(peer, ScriptedPeer)
    for second in range(1, 31):
        await trio.sleep(1)
        assert not presence.run_checks(trio.current_time(), counters)
        assert len(peer.pinged_at) == second // 10 - (second == 30)
    assert peer.close_code == 1008
    assert counters.zombies == 0


async def test_arriving_connection_without_a_frame_is_closed(autojump_clock: MockClock) -> None:
    presence, counters = (
        Presence("BRW-00000001", limits=Limits(device_first_frame_s=10), dialect=BREWOS),
        Counters(),
    )
    arriving = connection()
    presence.arrive(arriving)
    await trio.sleep(5)
    assert not presence.run_checks(trio.current_time(), counters)
    arriving.heard, arriving.spoke_at = True, trio.current_time()
    assert presence.run_checks(trio.current_time(), counters), "it has sent a frame"
    await trio.sleep(10)
    assert not presence.run_checks(trio.current_time(), counters)
    assert counters.zombies == 1
    assert isinstance(arriving.peer, ScriptedPeer)
    assert arriving.peer.close_code == 1008


async def test_pause_restarts_silence_and_is_no_sign_of_life(autojump_clock: MockClock) -> None:
    presence, counters = Presence("BRW-00000001", limits=Limits(), dialect=BREWOS), Counters()
    presence.resume(trio.current_time(), 0.0)
    present, arriving = connection(), connection()
    presence.arrive(present)
    presence.replace(trio.current_time())
    presence.arrive(arriving)
    await trio.sleep(50)
    presence.resume(trio.current_time(), 0.0)
    assert not presence.run_checks(trio.current_time(), counters)
    for device in (present, arriving):
        assert isinstance(device.peer, ScriptedPeer)
        assert device.peer.closes == []
        assert device.peer.pinged_at == []


async def test_replacements_before_a_pause_are_no_contest(autojump_clock: MockClock) -> None:
    presence = Presence("BRW-00000001", limits=Limits(), dialect=BREWOS)
    for _ in range(4):
        presence.arrive(connection())
        presence.replace(trio.current_time())
    assert presence.is_contested(trio.current_time())
    presence.resume(trio.current_time(), 0.0)
    assert not presence.is_contested(trio.current_time())


# State


STATUS = {"type": "status", "seq": 1, "pressure": 9.0, "temps": {"brew": 93}}


def told(messages: list[Message]) -> list[Any]:
    return [msgspec.json.decode(message.payload) for message in messages]


def online(presence: Presence) -> DeviceAttachment:
    device = connection()
    presence.arrive(device)
    presence.replace(trio.current_time())
    return device


async def test_status_of_an_unknown_device_has_no_age(presence: Presence) -> None:
    (status,) = told(presence.state())
    expected = {"type": "device_status", "deviceId": "BRW-00000001", "online": False, "lastSeen": None}
    assert status == {**expected, "snapshotAgeMs": None}


async def test_state_tells_presence_and_last_status(presence: Presence) -> None:
    presence.last_seen_ms = 0
    online(presence)
    update(presence.snapshot, encode(STATUS))
    status, state = told(presence.state())
    assert (status["online"], status["lastSeen"], status["snapshotAgeMs"]) == (
        True,
        "1970-01-01T00:00:00.000Z",
        0,
    )
    assert "staleGroups" not in status
    assert state == STATUS


async def test_restored_state_is_told_once_after_the_time_for_a_whole_state(
    presence: Presence, autojump_clock: MockClock
) -> None:
    now = trio.current_time()
    presence.restore((encode(STATUS), now - 5), now)
    assert presence.take_restored_state(now) == []
    await trio.sleep(BREWOS.says_state_within_s)
    status, state = told(presence.take_restored_state(trio.current_time()))
    assert status["staleGroups"] == ["pressure", "temps"]
    assert state == {"type": "status", "temps": {"brew": 93}}
    assert presence.take_restored_state(trio.current_time()) == []


async def test_whole_state_replaces_a_restored_one(presence: Presence) -> None:
    now = trio.current_time()
    presence.restore((encode(STATUS), now), now)
    update(presence.snapshot, encode(STATUS))
    assert presence.take_restored_state(now + 1) == []


async def test_state_that_is_unknown_or_too_old_is_not_told(presence: Presence) -> None:
    now = trio.current_time()
    for known_before in (None, (Message(b"[]"), now)):
        presence.restore(known_before, now)
        assert presence.snapshot.empty
    presence.restore((encode(STATUS), now - 901), now)
    assert presence.snapshot.has_status
    assert presence.take_restored_state(now + 3600) == []


async def test_known_state_is_forgotten_some_time_after_the_device_went(
    presence: Presence, autojump_clock: MockClock
) -> None:
    device = online(presence)
    update(presence.snapshot, encode(STATUS))
    await trio.sleep(1000)
    presence.check_state(trio.current_time())
    assert presence.snapshot.has_status, "the device is online"
    presence.leave(device)
    presence.mark_gone(trio.current_time())
    await trio.sleep(59)
    presence.check_state(trio.current_time())
    assert presence.snapshot.has_status
    await trio.sleep(1)
    presence.check_state(trio.current_time())
    assert presence.snapshot.empty


async def test_state_of_an_absent_device_can_be_forgotten(presence: Presence) -> None:
    device = online(presence)
    update(presence.snapshot, encode(STATUS))
    presence.forget_state()
    assert presence.snapshot.has_status, "the device is online"
    presence.leave(device)
    presence.forget_state()
    assert presence.snapshot.empty
    arriving = connection()
    arriving.known_before = (encode(STATUS), 0.0)
    presence.arrive(arriving)
    presence.forget_state()
    assert arriving.known_before is None


async def test_little_is_kept_of_an_anonymous_device(presence: Presence) -> None:
    presence.set_anonymous(True)
    assert type(presence.snapshot) is SmallSnapshot
    update(presence.snapshot, encode(STATUS))
    presence.set_anonymous(True)
    assert presence.snapshot.has_status
    presence.set_anonymous(False)
    assert type(presence.snapshot) is Snapshot
    assert presence.snapshot.has_status


# Connections on other instances


def exported(whole: dict[str, Any] | None, *, age_s: float = 0.0, shown: bool = True) -> SnapshotState:
    """Return the state of the device on another instance; with an age, one from before an absence."""
    now = trio.current_time()
    snapshot = Snapshot(BREWOS)
    if whole is not None and age_s:
        snapshot.restore(encode(whole), at=now - age_s)
        if shown:
            snapshot.show()
    elif whole is not None:
        update(snapshot, encode(whole))
    return snapshot.export(now)


async def test_time_by_the_clock_of_all_instances_stays_after_an_earlier_connection(
    presence: Presence,
) -> None:
    presence.set_since(5)
    assert presence.snapshot.since_us == 0, "there is no connection"
    local = connection()
    presence.arrive(local)
    presence.replace(trio.current_time())
    presence.set_since(7)
    assert presence.snapshot.since_us == 7
    local.after_us = 9
    presence.set_since(8)
    assert presence.snapshot.since_us == 10


async def test_a_connection_yields_to_one_on_another_instance(presence: Presence) -> None:
    local, remote = online(presence), remote_connection()
    assert presence.yield_to(remote) is local
    assert presence.present is remote
    assert presence.state_is_remote
    assert presence.status() == messages.device_status(
        "BRW-00000001", online=True, last_seen=None, snapshotAgeMs=None
    )
    assert not presence.leave(local), "it no longer stood for the device"
    assert presence.leave(remote)
    assert presence.state_is_remote, "that instance keeps its state"


async def test_state_is_of_this_instance_while_a_connection_of_it_stands_for_the_device(
    presence: Presence,
) -> None:
    presence.yield_to(remote_connection())
    online(presence)
    assert not presence.state_is_remote
    presence.yield_to(None)
    assert presence.present is None
    assert presence.state_is_remote


async def test_remote_connection_is_replaced_at_once_and_not_counted_as_a_swap(
    presence: Presence, autojump_clock: MockClock
) -> None:
    for _ in range(6):
        online(presence)
        await trio.sleep(10)
        presence.yield_to(remote_connection())
        assert presence.may_replace(trio.current_time())
    online(presence).heard = True
    assert not presence.is_contested(trio.current_time())


async def test_only_a_connection_of_this_instance_is_lively(
    presence: Presence, autojump_clock: MockClock
) -> None:
    assert not presence.is_lively(trio.current_time())
    online(presence)
    await trio.sleep(19)
    assert presence.is_lively(trio.current_time())
    await trio.sleep(1)
    assert not presence.is_lively(trio.current_time())
    remote = remote_connection()
    presence.yield_to(remote)
    remote.heard = True
    assert not presence.is_lively(trio.current_time())


async def test_remote_connection_gets_no_ping_and_may_be_silent(
    presence: Presence, autojump_clock: MockClock
) -> None:
    remote = remote_connection()
    presence.yield_to(remote)
    for _ in range(300):
        await trio.sleep(1)
        assert not presence.run_checks(trio.current_time(), Counters())
    assert isinstance(remote.peer, ScriptedRemotePeer)
    assert (remote.peer.pinged_at, remote.peer.closes) == ([], [])


async def test_arriving_connection_replaces_a_remote_one_at_the_next_check(presence: Presence) -> None:
    online(presence)
    arriving = connection()
    presence.arrive(arriving)
    arriving.spoke_at = now = trio.current_time()
    assert not presence.run_checks(now, Counters()), "the present one is young"
    presence.yield_to(remote_connection())
    assert presence.run_checks(now, Counters())


async def test_state_of_another_instance_replaces_what_was_known(
    presence: Presence, autojump_clock: MockClock
) -> None:
    update(presence.snapshot, encode({"type": "status", "old": {}}), encode({"type": "device_info"}))
    await trio.sleep(100)
    state = exported(STATUS)
    await trio.sleep(2)
    presence.take_state(state)
    assert presence.snapshot.messages() == [encode(STATUS)]
    assert presence.snapshot.age_s(trio.current_time()) == 0


async def test_restored_state_is_not_shown_after_the_connection_yielded(presence: Presence) -> None:
    online(presence)
    now = trio.current_time()
    presence.restore((encode(STATUS), now - 5), now)
    presence.yield_to(remote_connection())
    assert presence.take_restored_state(now + 60) == [], "the other instance says when"


@pytest.mark.parametrize(
    ("held_s", "shown", "told_again"), [(5.0, False, True), (5.0, True, False), (901.0, False, False)]
)
async def test_restored_state_of_a_remote_device_is_shown_after_a_local_connection_came(
    presence: Presence, held_s: float, shown: bool, told_again: bool
) -> None:
    presence.yield_to(remote_connection())
    presence.take_state(exported(STATUS, age_s=held_s, shown=shown))
    online(presence)
    now = trio.current_time()
    presence.continue_remote(None, now)
    assert presence.take_restored_state(now + 0.7) == []
    assert (presence.take_restored_state(now + 0.75) != []) is told_again


async def test_state_from_the_registry_is_used_where_the_other_instance_sent_none(
    presence: Presence,
) -> None:
    presence.yield_to(remote_connection())
    online(presence)
    now = trio.current_time()
    presence.continue_remote((encode(STATUS), now - 5), now)
    assert [message.peek_type() for message in presence.take_restored_state(now + 1)] == [
        "device_status",
        "status",
    ]
    presence.yield_to(remote_connection())
    presence.take_state(exported({"type": "status", "n": 2}))
    online(presence)
    presence.continue_remote((encode(STATUS), now - 5), now)
    assert presence.snapshot.messages() == [encode({"type": "status", "n": 2})], "what is known wins"


@pytest.mark.parametrize("ends", ["it goes", "a local one comes", "another one comes"])
async def test_state_of_a_remote_device_whose_key_ended_is_forgotten_with_its_connection(
    presence: Presence, ends: str
) -> None:
    remote, arriving = remote_connection(), connection()
    presence.yield_to(remote)
    presence.take_state(exported(STATUS))
    presence.arrive(arriving)
    arriving.known_before = known = (encode(STATUS), 0.0)
    presence.forget_state()
    assert arriving.known_before is known
    presence.forget_state(key_ended=True)
    assert presence.snapshot.messages() != [], "that instance decides whether it has the key"
    assert arriving.known_before != known
    if ends == "it goes":
        presence.leave(remote)
    elif ends == "a local one comes":
        presence.replace(trio.current_time())
    else:
        presence.yield_to(remote_connection())
    assert presence.snapshot.messages() == []
    presence.take_state(exported(STATUS))
    presence.yield_to(None)
    assert presence.snapshot.messages() != [], "it is forgotten once"


async def test_state_of_a_present_local_device_is_not_forgotten(presence: Presence) -> None:
    online(presence)
    update(presence.snapshot, encode(STATUS))
    presence.forget_state(key_ended=True)
    assert not presence.snapshot.empty


# History


async def test_history_is_kept_while_a_device_with_users_is_connected_here() -> None:
    histories = Histories(Limits(), BREWOS)
    presence = Presence("BRW-00000001", limits=Limits(), dialect=BREWOS, histories=histories)

    def says(pressure: float) -> None:
        update(presence.snapshot, encode({"type": "status", "pressure": pressure}))

    async def kept() -> list[float | None]:
        presence.snapshot.hand_over()
        found = await histories.read("BRW-00000001", seconds=60.0)
        return list(found.values["pressure"]) if found is not None else []

    says(1)  # as after an absence
    assert await kept() == []
    device = connection()
    presence.arrive(device)
    presence.replace(trio.current_time())
    says(2)
    assert (await kept())[-1] == 2
    presence.set_anonymous(True)
    says(3)
    assert (await kept())[-1] is None
    presence.set_anonymous(False)
    says(4)
    assert (await kept())[-1] == 4
    presence.yield_to(remote_connection())
    says(5)
    assert (await kept())[-1] is None
    presence.arrive(device)
    presence.replace(trio.current_time())
    says(6)
    presence.forget_state()
    assert presence.leave(device)
    presence.mark_gone(trio.current_time())
    presence.forget_state()
    assert (await kept())[-2:] == [6, None], "its users may change while it has the same key"
    presence.forget_state(key_ended=True)
    assert await kept() == []


async def test_kept_log_lines_go_with_a_change_of_users(presence: Presence) -> None:
    presence.arrive(device := connection())
    presence.present, presence.arriving = device, None
    update(presence.snapshot, encode({"type": "log_config", "enabled": True}))
    update(presence.snapshot, encode({"type": "log", "message": "Pump on"}))
    log = presence.snapshot.log
    assert log is not None
    assert len(log.lines()) == 1
    presence.forget_state()
    assert (log.lines(), log.config.enabled) == ([], True)

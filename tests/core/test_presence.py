import time
from typing import Any

import msgspec
import pytest
import trio
from trio.testing import MockClock

from brewos_relay.core.attachment import DeviceAttachment
from brewos_relay.core.counters import Counters
from brewos_relay.core.limits import Limits
from brewos_relay.core.presence import Presence
from brewos_relay.core.snapshot import SmallSnapshot, Snapshot
from brewos_relay.dialect import BREWOS
from brewos_relay.messages import Message, encode
from support.peers import PassiveSession, ScriptedPeer
from support.state_messages import update


def connection() -> DeviceAttachment:
    return DeviceAttachment(PassiveSession(), ScriptedPeer(), bucket=None)


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

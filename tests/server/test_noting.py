import pytest
import trio
import trio.testing

from brewos_relay.core.limits import Limits
from brewos_relay.core.relay import open_relay
from brewos_relay.core.snapshot import DeviceInfo
from brewos_relay.messages import encode
from brewos_relay.registry.records import Activity
from brewos_relay.registry.store import Store
from brewos_relay.server.noting import SEEN_EVERY_S, ActivityRecorder
from brewos_relay.vocabulary import now_ms
from support.peers import ScriptedPeer

ONE, TWO = "BRW-00000001", "BRW-00000002"


class NotedStore(Store):
    """Remembers what it is told."""

    def __init__(self) -> None:
        self.seen: list[tuple[str, int]] = []
        self.entries: list[Activity] = []
        self.infos: list[tuple[str, str | None, str | None]] = []

    def note_seen(self, device_id: str, at_ms: int) -> None:
        self.seen.append((device_id, at_ms))

    def note_activity(self, entry: Activity) -> None:
        self.entries.append(entry)

    def note_info(self, device_id: str, *, firmware_version: str | None, machine_type: str | None) -> None:
        self.infos.append((device_id, firmware_version, machine_type))


def noting_info(info: DeviceInfo) -> tuple[ActivityRecorder, NotedStore]:
    """Make one of a relay that knows this of every device."""
    store = NotedStore()
    recorder = ActivityRecorder(store)
    recorder.info_of = lambda _device_id: info
    return recorder, store


async def test_what_happens_is_handed_on_with_who_did_it_and_when() -> None:
    store = NotedStore()
    recorder = ActivityRecorder(store)
    before = now_ms()
    recorder.note_seen(ONE, 17)
    recorder.note_activity(ONE, "command", "ada", {"name": "tare", "outcome": "delivered"})
    recorder.note_activity(ONE, "online", None, {})
    assert store.seen == [(ONE, 17)]
    command, online = store.entries
    assert (command.device_id, command.kind, command.user_id) == (ONE, "command", "ada")
    assert command.detail == {"name": "tare", "outcome": "delivered"}
    assert before <= command.at_ms <= now_ms()
    assert (online.kind, online.user_id, online.detail) == ("online", None, {})
    assert store.infos == []


@pytest.mark.parametrize(
    ("info", "noted"),
    [
        (DeviceInfo("0.8.62", "dual_boiler"), ("0.8.62", "dual_boiler")),
        (DeviceInfo("0.8.62"), ("0.8.62", None)),
        (DeviceInfo(8, "dual_boiler"), (None, "dual_boiler")),
        (DeviceInfo("0.8\0", "dual_boiler"), (None, "dual_boiler")),
    ],
)
async def test_what_a_machine_said_of_itself_is_noted_when_it_goes(
    info: DeviceInfo, noted: tuple[str | None, str | None]
) -> None:
    recorder, store = noting_info(info)
    recorder.note_activity(ONE, "online", None, {})
    assert store.infos == []
    recorder.note_activity(ONE, "offline", None, {})
    assert store.infos == [(ONE, *noted)]


@pytest.mark.parametrize("info", [DeviceInfo(), DeviceInfo(8, "\ud800")])
async def test_a_machine_that_said_nothing_of_itself_leaves_what_is_known(info: DeviceInfo) -> None:
    recorder, store = noting_info(info)
    recorder.note_activity(ONE, "offline", None, {})
    assert store.infos == []
    assert [entry.kind for entry in store.entries] == ["offline"]


async def test_before_there_is_a_relay_nothing_is_known_of_any_device() -> None:
    store = NotedStore()
    ActivityRecorder(store).note_activity(ONE, "offline", None, {})
    assert store.infos == []


async def test_nobody_pushes_out_what_others_did(autojump_clock: trio.testing.MockClock) -> None:
    store = NotedStore()
    recorder = ActivityRecorder(store)

    def noted_of(user_id: str | None, device_id: str = ONE) -> int:
        return sum((entry.user_id, entry.device_id) == (user_id, device_id) for entry in store.entries)

    async with open_relay() as relay, trio.open_nursery() as nursery:
        nursery.start_soon(recorder.run, relay)
        for _ in range(1000):
            recorder.note_activity(ONE, "command", "eve", {})
        assert noted_of("eve") == 120
        recorder.note_activity(ONE, "command", "ada", {})
        recorder.note_activity(ONE, "online", None, {})
        recorder.note_activity(TWO, "command", "eve", {})
        assert (noted_of("ada"), noted_of(None), noted_of("eve", TWO)) == (1, 1, 1)
        await trio.sleep(239)
        recorder.note_activity(ONE, "command", "eve", {})
        assert noted_of("eve") == 120
        await trio.sleep(2)
        for _ in range(1000):
            recorder.note_activity(ONE, "command", "eve", {})
        assert noted_of("eve") == 240
        assert len(recorder._counts) == 1
        nursery.cancel_scope.cancel()


async def test_what_a_machine_is_is_noted_however_often_it_goes() -> None:
    recorder, store = noting_info(DeviceInfo("0.8.62"))
    for _ in range(200):
        recorder.note_activity(ONE, "offline", None, {})
    assert len(store.infos) == 200
    assert len(store.entries) == 120


async def test_what_a_live_relay_tells() -> None:
    store = NotedStore()
    recorder = ActivityRecorder(store)
    with trio.fail_after(5):
        async with open_relay(on_seen=recorder.note_seen, on_activity=recorder.note_activity) as relay:
            recorder.info_of, recorder.is_anonymous = relay.info_of, relay.is_anonymous
            device, client = ScriptedPeer(), ScriptedPeer()
            relay.attach_device(ONE, device)
            relay.attach_client(ONE, client)
            await trio.testing.wait_all_tasks_blocked()
            device.say(
                encode({"type": "device_info", "firmwareVersion": "0.8.62", "machineType": "dual_boiler"})
            )
            client.say({"type": "command", "cmd": "tare"})
            device.leave()
            await trio.testing.wait_all_tasks_blocked()
            assert store.infos == [(ONE, "0.8.62", "dual_boiler")]
    kinds = [entry.kind for entry in store.entries]
    assert kinds == ["client_came", "online", "command", "offline", "client_went"]
    assert [device_id for device_id, _ in store.seen] == [ONE, ONE]


async def test_devices_without_users_take_no_room_of_others() -> None:
    """Entries that wait are bounded, and anyone can make as many devices as they like come and go."""
    store = NotedStore()
    recorder = ActivityRecorder(store)
    with trio.fail_after(5):
        async with open_relay(on_activity=recorder.note_activity) as relay:
            recorder.info_of, recorder.is_anonymous = relay.info_of, relay.is_anonymous
            for _ in range(3):
                device = ScriptedPeer()
                attachment = relay.attach_device(TWO, device, anonymous=True)
                await trio.testing.wait_all_tasks_blocked()
                device.say(encode({"type": "device_info", "firmwareVersion": "0.8.62"}))
                device.leave()
                await attachment.wait_closed()
            assert store.entries == []
            assert store.infos == [(TWO, "0.8.62", None)] * 3
            device = ScriptedPeer()
            relay.attach_device(TWO, device, anonymous=True)
            await trio.testing.wait_all_tasks_blocked()
            relay.note_owned(TWO)
            device.leave()
            await trio.testing.wait_all_tasks_blocked()
    assert [entry.kind for entry in store.entries] == ["offline"]


async def test_devices_that_are_there_are_seen_now_and_then(autojump_clock: trio.testing.MockClock) -> None:
    store = NotedStore()
    recorder = ActivityRecorder(store)
    patient = Limits(device_silence_s=2 * SEEN_EVERY_S, device_first_frame_s=2 * SEEN_EVERY_S)
    async with open_relay(limits=patient) as relay, trio.open_nursery() as nursery:
        relay.attach_device(ONE, ScriptedPeer())
        relay.attach_device(TWO, ScriptedPeer(silent=True))
        relay.attach_client(TWO, ScriptedPeer())
        nursery.start_soon(recorder.run, relay)
        await trio.sleep(SEEN_EVERY_S - 1)
        assert store.seen == []
        before = now_ms()
        await trio.sleep(2)
        assert [device_id for device_id, _ in store.seen] == [ONE]
        assert before <= store.seen[0][1] <= now_ms()
        nursery.cancel_scope.cancel()

"""DeviceTable: records of devices, and the marks for the task that tells the broker."""

import trio
from trio.testing import MockClock

from brewos_relay.cluster.broker import Since
from brewos_relay.cluster.broker_clock import BrokerClock
from brewos_relay.cluster.devices import DeviceTable
from brewos_relay.cluster.remote_commands import RemoteCommands
from brewos_relay.cluster.remote_device import RemoteDevice
from brewos_relay.core.relay import open_relay

ID = "BRW-00000001"


async def test_device_that_comes_has_to_be_claimed() -> None:
    table = DeviceTable()
    settled = table.record(ID).settled = trio.Event()
    table.device_came(ID, 5.0)
    [record] = await table.next_marked(10)
    assert record.is_local
    assert record.must_claim
    assert settled.is_set()
    assert record.settled is None
    record.at_us = 7
    table.device_came(ID, 6.0)
    assert record.connected_at == 6.0
    assert record.at_us is None


async def test_device_that_goes_keeps_its_claim_until_that_is_released() -> None:
    table = DeviceTable()
    table.device_went(ID)
    table.device_came(ID, 5.0)
    [record] = await table.next_marked(10)
    record.claimed, record.must_claim = Since(7, "a"), True
    table.device_went(ID)
    assert (record.is_local, record.must_claim, record.at_us) == (False, False, None)
    table.forget_if_needless(record, 0.0)
    assert table.records == {ID: record}
    record.claimed = None
    table.forget_if_needless(record, 0.0)
    assert table.records == {}
    table.forget_if_needless(record, 0.0)


async def test_device_is_wanted_while_it_has_clients_or_is_held() -> None:
    table = DeviceTable()
    table.device_unwanted(ID)
    assert table.records == {}
    table.device_wanted(ID)
    record = table.record(ID)
    assert record.is_wanted(0.0)
    record.held_until = 5.0
    table.device_unwanted(ID)
    assert record.is_wanted(4.0)
    assert not record.is_wanted(5.0)
    assert record.is_needless(5.0)


async def test_marked_devices_are_given_out_once_and_in_order() -> None:
    table = DeviceTable()
    ids = [f"BRW-0000000{n}" for n in range(3)]
    for device_id in (*ids, ids[0]):
        table.device_wanted(device_id)
    table.mark("BRW-00000009")  # it is not known any more
    assert [record.device_id for record in await table.next_marked(2)] == ids[:2]
    assert [record.device_id for record in await table.next_marked(5)] == ids[2:]
    with trio.move_on_after(0) as scope:
        await table.next_marked(5)
    assert scope.cancelled_caught


async def test_device_that_is_not_followed_any_more_is_closed(autojump_clock: MockClock) -> None:
    record = DeviceTable().record(ID)
    clock = BrokerClock(trio.current_time)
    record.remote = remote = RemoteDevice(ID, Since(1, "b"), RemoteCommands("a", clock, lambda *_: True))
    assert not record.is_needless(0.0)
    async with open_relay() as relay:
        record.attachment = relay.attach_remote_device(ID, remote)
        assert relay.is_online(ID)
        record.unfollow()
        assert not relay.is_online(ID)
    assert remote.is_closed
    assert record.is_needless(0.0)


def test_following_that_has_not_begun_ends_without_effect() -> None:
    record = DeviceTable().record(ID)
    record.unfollow()
    record.settle()
    assert record.is_needless(0.0)

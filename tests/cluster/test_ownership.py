"""Ownership: claims, releases, and the owners that an instance follows."""

import gc
import weakref
from collections.abc import Sequence
from typing import Any, cast

import pytest
import trio
from trio.testing import MockClock

from brewos_relay.cluster.broker import (
    RENEW_EVERY_S,
    BrokerConnection,
    Claim,
    Located,
    OwnerChanged,
    Since,
)
from brewos_relay.core.peer import memory_peer
from brewos_relay.errors import RelayClosing
from support.instances import DEVICE_ID, Instance, connect, contents, open_instances, types
from support.memory_broker import MemoryBroker
from support.peers import ScriptedPeer

OTHER_ID = "BRW-00000002"


def owner_in(broker: MemoryBroker, device_id: str = DEVICE_ID) -> str | None:
    """Return the instance that owns a device."""
    owner = broker.locate(device_id).owner
    return owner.instance if owner is not None else None


async def reconnect(broker: MemoryBroker, name: str) -> None:
    """Cut the connection of an instance, and wait until it is back."""
    broker.cut(name)
    await trio.sleep(1)


# Claims


async def test_claim_whose_result_was_lost_is_released(autojump_clock: MockClock) -> None:
    broker = MemoryBroker()
    async with open_instances("a", broker=broker) as [a]:
        broker.delay_replies("a")
        device = await a.online_device()
        await trio.sleep(0.1)
        assert owner_in(broker) == "a"
        broker.unreachable.add("a")
        broker.cut("a")
        device.close()
        await trio.sleep(0.1)
        broker.unreachable.clear()
        await trio.sleep(2)
        assert owner_in(broker) is None
        assert not a.table.records


async def test_unknown_claim_of_another_instance_is_not_released(autojump_clock: MockClock) -> None:
    broker = MemoryBroker()
    async with open_instances("a", "b", broker=broker) as (a, b):
        broker.delay_replies("a")
        device = await a.online_device()
        await trio.sleep(0.1)
        broker.unreachable.add("a")
        broker.cut("a")
        device.close()
        await b.online_device()
        await trio.sleep(0.1)
        broker.unreachable.clear()
        await trio.sleep(2)
        assert owner_in(broker) == "b"
        assert not a.table.records


async def test_device_that_goes_while_the_broker_is_away_is_released_later(
    autojump_clock: MockClock,
) -> None:
    broker = MemoryBroker()
    async with open_instances("a", broker=broker) as [a]:
        device = await a.online_device()
        await trio.sleep(0.1)
        broker.unreachable.add("a")
        broker.cut("a")
        device.close()
        await trio.sleep(3)
        assert owner_in(broker) == "a"
        broker.unreachable.clear()
        await trio.sleep(2)
        assert owner_in(broker) is None
        assert not a.table.records


async def test_device_that_goes_while_its_claim_is_under_way_is_released(
    autojump_clock: MockClock,
) -> None:
    broker = MemoryBroker()
    async with open_instances("a", broker=broker) as [a]:
        broker.delay_replies("a")
        device = await a.online_device()
        await trio.sleep(0.1)
        device.close()
        await trio.sleep(0.1)
        broker.pass_replies("a")
        await trio.sleep(0.1)
        assert owner_in(broker) is None
        assert not a.table.records


async def test_claim_that_was_late_does_not_end_a_newer_connection(autojump_clock: MockClock) -> None:
    broker = MemoryBroker()
    async with open_instances("a", "b", broker=broker) as (a, b):
        broker.stop("a")
        old = await a.online_device()
        await trio.sleep(0.1)
        new = await b.online_device()
        await trio.sleep(0.1)
        broker.go_on("a")
        await trio.sleep(0.1)
        assert (old.close_code, new.close_code) == (4002, None)
        assert owner_in(broker) == "b"


async def test_later_connection_here_owns_the_device_after_the_brokers_clock_was_set_back(
    autojump_clock: MockClock,
) -> None:
    ahead_s = 100.0
    broker = MemoryBroker(lambda: trio.current_time() + ahead_s)
    async with open_instances("a", broker=broker) as [a]:
        await a.online_device()
        await trio.sleep(9)
        ahead_s = 70.0
        await trio.sleep(5)
        second = await a.online_device()
        await trio.sleep(1)
        [claimed] = [record.claimed for record in a.table.records.values()]
        assert broker.locate(DEVICE_ID).owner == claimed
        second.close()
        await trio.sleep(1)
        assert owner_in(broker) is None


async def test_device_is_claimed_again_after_its_lease_ended_during_a_claim(
    autojump_clock: MockClock,
) -> None:
    broker = MemoryBroker()
    async with open_instances("a", broker=broker) as [a]:
        broker.delay_replies("a")
        await a.online_device()
        await trio.sleep(0.1)
        broker.flush()
        broker.pass_replies("a")
        await trio.sleep(RENEW_EVERY_S + 1)
        assert owner_in(broker) == "a"


async def test_clients_find_a_device_again_after_the_lease_of_its_instance_had_ended(
    autojump_clock: MockClock,
) -> None:
    broker = MemoryBroker()
    async with open_instances("a", "b", broker=broker) as (a, b):
        _, client = await connect(a, b)
        broker.stop("a")
        broker.resign("a")
        broker.cut("b")  # it looks again while the lease has ended
        assert await types(client, within_s=2) == ["device_offline"]
        broker.go_on("a")
        assert (await types(client, within_s=RENEW_EVERY_S + 2))[0] == "device_online"


async def test_clients_are_told_of_devices_of_an_instance_that_hangs(autojump_clock: MockClock) -> None:
    broker = MemoryBroker()
    async with open_instances("a", "b", broker=broker) as (a, b):
        _, client = await connect(a, b)
        broker.stop("a")
        assert await types(client, within_s=RENEW_EVERY_S) == []
        assert await types(client, within_s=20) == ["device_offline"]
        broker.go_on("a")
        assert (await types(client, within_s=RENEW_EVERY_S + 2))[0] == "device_online"


@pytest.mark.parametrize("names", ["ab", "ba"])
async def test_clients_do_not_notice_that_the_broker_loses_its_data(
    autojump_clock: MockClock, names: str
) -> None:
    """The instance of the clients notices it before or after the one of the device."""
    broker = MemoryBroker()
    async with open_instances(*names, broker=broker) as opened:
        a, b = sorted(opened, key=lambda each: each.name)
        device, client = await connect(a, b)
        broker.flush()
        for seq in range(2, 12):
            await device.send({"type": "status_delta", "seq": seq, "machine": {"mode": "on"}})
            await trio.sleep(0.5)
        told = await contents(client)
        assert {each["seq"] for each in told if each["type"] == "status_delta"} == set(range(2, 12))
        assert not {"device_offline", "device_online"} & {each["type"] for each in told}
        assert owner_in(broker) == "a"


async def test_clients_are_not_told_that_a_device_went_because_its_instance_is_back_later(
    autojump_clock: MockClock,
) -> None:
    broker = MemoryBroker()
    async with open_instances("a", "b", broker=broker) as (a, b):
        _, client = await connect(a, b)
        broker.unreachable.add("a")
        for name in "ab":
            broker.cut(name)
        broker.flush()
        await trio.sleep(2)
        broker.unreachable.clear()
        told = await types(client, within_s=3)
        assert "status" in told
        assert not {"device_offline", "device_online"} & set(told)


async def test_device_whose_instance_does_not_come_back_is_offline_soon(autojump_clock: MockClock) -> None:
    broker = MemoryBroker()
    async with open_instances("a", "b", broker=broker) as (a, b):
        _, client = await connect(a, b)
        broker.unreachable.add("a")
        for name in "ab":
            broker.cut(name)
        broker.flush()
        assert await types(client, within_s=RENEW_EVERY_S + 3) == ["device_offline"]


async def test_newest_of_two_owners_wins_after_both_were_apart(autojump_clock: MockClock) -> None:
    broker = MemoryBroker()
    async with open_instances("a", "b", broker=broker) as (a, b):
        broker.unreachable |= {"a", "b"}
        broker.cut("a")
        broker.cut("b")
        newer_first = [await b.online_device(OTHER_ID)]
        older_first = [await a.online_device()]
        await trio.sleep(1)
        newer_first.append(await a.online_device(OTHER_ID))
        older_first.append(await b.online_device())
        broker.unreachable.clear()
        await trio.sleep(2)
        assert [end.close_code for end in newer_first] == [4002, None]
        assert [end.close_code for end in older_first] == [4002, None]
        assert (owner_in(broker, OTHER_ID), owner_in(broker)) == ("a", "b")


async def test_connection_that_waits_ends_if_the_one_elsewhere_is_newer(autojump_clock: MockClock) -> None:
    async with open_instances("a", "b") as (a, b):
        await a.online_device()
        client = await a.client()
        await trio.sleep(0.1)
        waiting = a.device()
        await trio.sleep(0.1)
        newest = await b.online_device()
        await trio.sleep(0.1)
        assert waiting.close_code == 4002
        await types(client)
        await newest.send({"type": "note"})
        assert await types(client) == ["note"]


# Following


async def test_device_that_came_here_from_elsewhere_and_went_is_offline(autojump_clock: MockClock) -> None:
    async with open_instances("a", "b") as (a, b):
        _, client = await connect(a, b)
        here = await b.online_device()
        await trio.sleep(0.1)
        await types(client)
        here.close()
        assert await types(client, within_s=5) == ["device_offline"]


async def test_state_is_saved_with_the_time_of_the_claim(autojump_clock: MockClock) -> None:
    broker = MemoryBroker()
    async with open_instances("a", broker=broker) as [a]:
        await a.online_device()
        await trio.sleep(0.1)
        known, owner = a.relay.state_to_save(DEVICE_ID), broker.locate(DEVICE_ID).owner
        assert known is not None
        assert owner is not None
        assert known.since_us == owner.at_us


async def test_answer_that_a_change_has_overtaken_does_not_count(autojump_clock: MockClock) -> None:
    broker = MemoryBroker()
    async with open_instances("a", "b", "c", broker=broker) as (a, b, c):
        await a.online_device()
        await trio.sleep(0.1)
        broker.delay_replies("c")
        peer, client = memory_peer()
        c.relay.attach_client(DEVICE_ID, peer)
        await trio.sleep(0.1)
        await b.online_device()
        await trio.sleep(0.1)
        broker.pass_replies("c")
        await trio.sleep(0.1)
        record = c.table.records[DEVICE_ID]
        assert record.remote is not None
        assert record.remote.owner.instance == "b"
        assert (await types(client)).count("device_online") == 1


async def test_instance_that_asked_meanwhile_is_not_dropped(autojump_clock: MockClock) -> None:
    broker = MemoryBroker()
    async with open_instances("a", "b", broker=broker) as (a, b):
        device, client = await connect(a, b)
        broker.unreachable.add("b")
        broker.cut("b")
        broker.delay_replies("a")
        await trio.sleep(1.5)  # a has counted: b is not there
        broker.unreachable.clear()
        await trio.sleep(1.5)
        broker.pass_replies("a")
        await trio.sleep(0.1)
        await types(client)
        await device.send({"type": "note"})
        assert await types(client) == ["note"]


async def test_messages_wait_for_the_state_after_a_reconnect(autojump_clock: MockClock) -> None:
    broker = MemoryBroker()
    async with open_instances("a", "b", broker=broker) as (a, b):
        device, client = await connect(a, b)
        broker.unreachable.add("b")
        broker.cut("b")
        await device.send({"type": "note", "n": 1})  # is lost
        await trio.sleep(0.1)
        broker.unreachable.clear()
        while b.member.connection is None:  # noqa: ASYNC110 - the clock jumps
            await trio.sleep(0.01)
        broker.stop("b")
        await device.send({"type": "note", "n": 2})
        await trio.sleep(0.1)
        broker.go_on("b")
        got = await types(client)
        assert "note" not in got[: got.index("status")] if "status" in got else "note" not in got


async def test_device_that_is_not_on_its_instance_is_released(autojump_clock: MockClock) -> None:
    broker = MemoryBroker()
    async with open_instances("a", "b", broker=broker) as (a, b):
        broker.claim("a", Claim(DEVICE_ID, at_us=1))  # it has gone, and the broker has lost the release
        client = await b.client()
        await trio.sleep(0.1)
        told = await contents(client)
        assert told[0]["deviceOnline"] is False or told[-1]["type"] == "device_offline"
        assert owner_in(broker) is None
        assert not a.table.records


async def test_device_that_its_instance_denies_is_looked_for_again(autojump_clock: MockClock) -> None:
    broker = MemoryBroker()
    async with open_instances("a", "b", broker=broker) as (_, b):
        broker.stop("a")
        broker.claim("a", Claim(DEVICE_ID, at_us=1))
        client = await b.client()
        await types(client)
        broker.resign("a")
        broker.go_on("a")
        assert "device_offline" in await types(client, within_s=2)
        assert DEVICE_ID in b.table.records


async def test_state_that_does_not_come_is_asked_for_again(autojump_clock: MockClock) -> None:
    broker = MemoryBroker()
    async with open_instances("a", "b", broker=broker) as (a, b):
        await a.online_device()
        await trio.sleep(0.1)
        broker.full.add("b")
        peer, client = memory_peer()
        b.relay.attach_client(DEVICE_ID, peer)
        assert "status" not in await types(client)
        broker.full.clear()
        assert "status" in await types(client, within_s=4)


async def test_request_for_a_state_that_was_lost_is_repeated(autojump_clock: MockClock) -> None:
    broker = MemoryBroker()
    async with open_instances("a", "b", broker=broker) as (a, b):
        first, client = await connect(a, b)
        broker.full |= {"a", "b"}
        first.close()
        second = await a.online_device()
        await trio.sleep(0.1)
        broker.full.clear()
        await types(client, within_s=4)
        await second.send({"type": "note"})
        assert await types(client) == ["note"]


async def test_new_connection_on_the_same_instance_repeats_no_state(autojump_clock: MockClock) -> None:
    async with open_instances("a", "b") as (a, b):
        await a.online_device()
        await trio.sleep(20)
        client = await b.client()
        await types(client)
        second = a.device()
        await second.receive()
        await second.send({"type": "note"})
        assert await types(client) == ["note"]
        assert [each["type"] for each in await contents(second)] == ["request_state"], "once"
        await second.send({"type": "note"})
        assert await types(client, within_s=5) == ["note"]


async def test_device_is_asked_for_its_state_only_if_clients_have_waited(autojump_clock: MockClock) -> None:
    async with open_instances("a", "b") as (a, b):
        device = await a.online_device()
        await trio.sleep(0.1)
        client = await b.client()
        assert await types(client) == ["connected", "device_status", "status"]
        assert await types(device, within_s=5) == []
        device.close()
        await types(client)
        device = await a.online_device()
        assert await types(device) == ["request_state"]


async def test_full_outbox_drops_messages_and_sends_the_state_later(autojump_clock: MockClock) -> None:
    broker = MemoryBroker()
    async with open_instances("a", "b", broker=broker) as (a, b):
        device, other = await a.online_device(), await a.online_device(OTHER_ID)
        await trio.sleep(0.1)
        clients = [await b.client(), await b.client(OTHER_ID)]
        for client in clients:
            await types(client)
        broker.full.add("a")
        for end in (device, other):
            await end.send({"type": "note"})
            await end.send({"type": "status", "seq": 9, "machine": {"mode": "eco"}})
        for client in clients:
            assert await types(client, within_s=3) == []
        broker.full.clear()
        for client in clients:
            assert (await contents(client, within_s=2))[-1]["machine"] == {"mode": "eco"}
        await device.send({"type": "note"})
        assert await types(clients[0]) == ["note"]


async def test_state_that_cannot_be_exported_does_not_keep_others_waiting(
    autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    broker = MemoryBroker()
    async with open_instances("a", "b", broker=broker) as (a, b):
        device, other = await a.online_device(), await a.online_device(OTHER_ID)
        await trio.sleep(0.1)
        await types(await b.client())
        client = await b.client(OTHER_ID)
        await types(client)
        broker.full.add("a")
        for end in (device, other):
            await end.send({"type": "note"})
        await trio.sleep(0.1)
        export = a.relay.export_state

        def fail_for_one(device_id: str) -> object:
            if device_id == DEVICE_ID:
                raise ValueError("cannot be exported")
            return export(device_id)

        monkeypatch.setattr(a.relay, "export_state", fail_for_one)
        broker.full.clear()
        assert "device_status" in await types(client, within_s=2)


async def test_device_that_fails_does_not_keep_others_from_being_followed(
    autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with open_instances("a", "b") as (a, b):
        await a.online_device()
        await a.online_device(OTHER_ID)
        await trio.sleep(0.1)
        attach = b.relay.attach_remote_device

        def fail_for_one(device_id: str, *args: object, **options: object) -> object:
            if device_id == DEVICE_ID:
                raise ValueError("cannot be attached")
            return attach(device_id, *args, **options)  # type: ignore[arg-type]

        monkeypatch.setattr(b.relay, "attach_remote_device", fail_for_one)
        await b.client()
        client = await b.client(OTHER_ID)
        assert "status" in await types(client)
        assert b.member.reconnects == 0


async def test_nothing_is_followed_while_the_relay_closes(autojump_clock: MockClock) -> None:
    async with open_instances("a", "b") as (a, b):
        await a.online_device()
        await trio.sleep(0.1)
        b.relay.closing = True
        before = trio.current_time()
        await b.view.find(DEVICE_ID)
        assert trio.current_time() - before < 0.1
        with pytest.raises(RelayClosing):
            b.relay.attach_client(DEVICE_ID, ScriptedPeer())


async def test_connection_ends_for_a_newer_one_while_the_relay_closes(autojump_clock: MockClock) -> None:
    async with open_instances("a", "b") as (a, b):
        device, client = await a.online_device(), await a.client()
        await trio.sleep(0.1)
        a.relay.closing = True
        await b.online_device()
        await trio.sleep(0.1)
        assert device.close_code == 4002
        assert "device_online" not in await types(client)


async def test_device_here_is_no_longer_followed_when_its_clients_have_left(
    autojump_clock: MockClock,
) -> None:
    async with open_instances("a", "b") as (a, b):
        await a.online_device()
        await trio.sleep(0.1)
        client = await b.client()
        await b.online_device()
        await trio.sleep(6)
        assert b.table.records[DEVICE_ID].subscribed
        client.close()
        await trio.sleep(0.1)
        assert not b.table.records[DEVICE_ID].subscribed
        assert b.table.records[DEVICE_ID].is_local


async def test_device_that_returns_while_it_is_released_is_claimed(autojump_clock: MockClock) -> None:
    broker = MemoryBroker()
    async with open_instances("a", broker=broker) as [a]:
        first, _ = await a.online_device(), await a.client()
        await trio.sleep(0.1)
        broker.delay_replies("a")
        first.close()
        await trio.sleep(0.1)
        await a.online_device()
        broker.pass_replies("a")
        await trio.sleep(0.1)
        assert owner_in(broker) == "a"
        assert not a.table.records[DEVICE_ID].subscribed


async def test_connection_that_is_lost_while_a_device_is_looked_for_is_used_no_more(
    autojump_clock: MockClock,
) -> None:
    broker = MemoryBroker()
    async with open_instances("a", "b", broker=broker) as (a, b):
        await a.online_device()
        await trio.sleep(0.1)
        broker.delay_replies("b")
        peer, client = memory_peer()
        b.relay.attach_client(DEVICE_ID, peer)
        await trio.sleep(0.1)
        await reconnect(broker, "b")
        assert "status" in await types(client)


async def test_answer_about_a_doubtful_device_that_a_change_has_overtaken_does_not_count(
    autojump_clock: MockClock,
) -> None:
    broker = MemoryBroker()
    async with open_instances("a", "b", "c", broker=broker) as (a, b, c):
        await a.online_device()
        await trio.sleep(0.1)
        client = await c.client()
        broker.unreachable.add("a")
        broker.cut("a")
        await trio.sleep(1.2)  # c doubts it
        broker.delay_replies("c")
        await trio.sleep(1.2)  # it has counted mailboxes
        broker.pass_replies("c")
        broker.delay_replies("c")
        await trio.sleep(0.1)  # it has located the device
        await b.online_device()
        await trio.sleep(0.1)
        broker.pass_replies("c")
        await trio.sleep(0.1)
        remote = c.table.records[DEVICE_ID].remote
        assert remote is not None
        assert remote.owner.instance == "b"
        assert "device_offline" not in await types(client)


class OvertakenConnection:
    """A connection to the broker: a change of the owner overtakes each of its answers."""

    def __init__(self, instance: Instance) -> None:
        self._instance = instance

    async def locate(self, device_ids: Sequence[str]) -> list[Located]:
        for device_id in device_ids:
            self._instance.table.records[device_id].changes += 1
        return [Located(None)] * len(device_ids)


async def test_search_that_a_change_has_overtaken_does_not_count(autojump_clock: MockClock) -> None:
    async with open_instances("a", "b") as (a, b):
        await connect(a, b)
        remote = b.table.records[DEVICE_ID].remote
        assert remote is not None
        remote.deny()
        await b.member._ownership._look_again(cast("BrokerConnection", OvertakenConnection(b)))
        assert b.table.records[DEVICE_ID].remote is remote
        assert not remote.is_closed


async def test_devices_elsewhere_are_offline_when_the_broker_was_away_for_too_long(
    autojump_clock: MockClock,
) -> None:
    broker = MemoryBroker()
    async with open_instances("a", "b", broker=broker) as (a, b):
        _, client = await connect(a, b)
        broker.unreachable.add("b")
        broker.cut("b")
        assert "device_offline" not in await types(client, within_s=19)
        assert await types(client, within_s=3) == ["device_offline"]
        broker.unreachable.clear()
        assert "device_online" in await types(client, within_s=2)


async def test_connection_that_was_silent_ends_without_being_counted_as_a_swap(
    autojump_clock: MockClock,
) -> None:
    broker = MemoryBroker()
    async with open_instances("a", "b", broker=broker) as (a, b):
        peer = ScriptedPeer()
        a.relay.attach_device(DEVICE_ID, peer)
        await trio.sleep(25)
        await b.online_device()
        await trio.sleep(0.1)
        assert peer.close_code == 4002
        assert not broker._swaps[DEVICE_ID]


async def test_changes_that_concern_nothing_here_are_ignored(autojump_clock: MockClock) -> None:
    async with open_instances("a", "b") as (a, b):
        device = await a.online_device()
        await trio.sleep(1)
        take = a.member._ownership.take_change
        older, newer = Since(1, "b"), Since(10**12, "b")
        take(OwnerChanged(OTHER_ID, newer, newer))
        take(OwnerChanged(OTHER_ID, newer, None))
        assert OTHER_ID not in a.table.records
        take(OwnerChanged(DEVICE_ID, older, older))
        take(OwnerChanged(DEVICE_ID, newer, None))
        record = a.table.records[DEVICE_ID]
        a.member._ownership.doubt(DEVICE_ID)
        a.member._ownership.drop_client(record, "b")
        await trio.sleep(0.1)
        assert record.is_local
        assert device.close_code is None
        b.table.record(DEVICE_ID)
        b.member._ownership.take_change(OwnerChanged(DEVICE_ID, Since(2, "a"), Since(2, "a")))
        assert b.table.records[DEVICE_ID].remote is None


async def test_device_that_is_not_claimed_yet_stays_whatever_is_announced(autojump_clock: MockClock) -> None:
    broker = MemoryBroker()
    async with open_instances("a", broker=broker) as [a]:
        broker.unreachable.add("a")
        broker.cut("a")
        await trio.sleep(0.1)
        device = await a.online_device()
        newer = Since(10**12, "b")
        a.member._ownership.take_change(OwnerChanged(DEVICE_ID, newer, newer))
        await trio.sleep(0.1)
        assert device.close_code is None


async def test_one_instance_of_two_is_dropped(autojump_clock: MockClock) -> None:
    broker = MemoryBroker()
    async with open_instances("a", "b", "c", broker=broker) as (a, b, c):
        device = await a.online_device()
        await trio.sleep(0.1)
        client, _ = await b.client(), await c.client()
        broker.unreachable.add("c")
        broker.cut("c")
        await trio.sleep(2)
        clients = a.table.records[DEVICE_ID].clients
        assert clients is not None
        assert clients.instances == ["b"]
        await types(client)
        await device.send({"type": "note"})
        assert await types(client) == ["note"]


# Records


async def test_device_without_the_client_that_was_about_to_come_is_forgotten(
    autojump_clock: MockClock,
) -> None:
    async with open_instances("a", "b") as (a, b):
        await a.online_device()
        await trio.sleep(0.1)
        await b.view.find(DEVICE_ID)
        assert b.relay.session_count == 1
        await trio.sleep(7)
        assert b.relay.session_count == 0
        assert not b.table.records
        assert a.table.records[DEVICE_ID].clients is None


async def test_device_stays_followed_for_a_second_client_while_the_first_one_leaves(
    autojump_clock: MockClock,
) -> None:
    async with open_instances("a", "b") as (a, b):
        await a.online_device()
        await trio.sleep(0.1)
        first = await b.client()
        await b.view.find(DEVICE_ID)
        first.close()
        await trio.sleep(0.5)
        peer, second = memory_peer()
        b.relay.attach_client(DEVICE_ID, peer)
        got = await contents(second)
        assert got[0]["deviceOnline"] is True
        assert [each["type"] for each in got] == ["connected", "device_status", "status"]


async def test_nothing_is_kept_of_devices_that_went_without_the_broker(autojump_clock: MockClock) -> None:
    broker = MemoryBroker()
    async with open_instances("a", "b", broker=broker) as (a, b):
        await a.online_device()
        await trio.sleep(0.1)
        client = await b.client()
        broker.unreachable.add("b")
        broker.cut("b")
        await b.view.find(OTHER_ID)
        (await b.online_device("BRW-00000003")).close()
        client.close()
        await trio.sleep(8)
        assert [record.device_id for record in b.table.records.values() if not record.subscribed] == []
        assert b.relay.session_count == 0
        broker.unreachable.clear()
        await trio.sleep(2)
        assert not b.table.records


async def test_nothing_of_a_followed_device_is_left_when_it_has_ended(autojump_clock: MockClock) -> None:
    async with open_instances("a", "b") as (a, b):
        device, client = await connect(a, b)
        left: list[weakref.ReferenceType[Any]] = [
            weakref.ref(b.table.records[DEVICE_ID].remote or a),
            weakref.ref(a.table.records[DEVICE_ID].clients or a),
        ]
        await trio.sleep(1)
        gc.disable()
        try:
            client.close()
            device.close()
            await trio.sleep(8)
            assert [each() for each in left] == [None, None]
        finally:
            gc.enable()
        assert (a.table.records, b.table.records) == ({}, {})


# Two machines with one id


class FaithfulMachine:
    """A machine as in the contract: it pings every 15 s, and connects again 30.25 s after its end."""

    def __init__(self, instance: Instance) -> None:
        self.instance = instance
        self.accepted_at: list[float] = []
        self.is_refused = False
        self.peer: ScriptedPeer | None = None

    async def run(self) -> None:
        """Stay connected until cancelled."""
        instance = self.instance
        while True:
            local = instance.relay.is_contested(DEVICE_ID)
            self.is_refused = local or await instance.view.is_contested(DEVICE_ID)
            if not self.is_refused:
                await self._stay()
            await trio.sleep(30.25)

    async def _stay(self) -> None:
        self.accepted_at.append(trio.current_time())
        self.peer = peer = ScriptedPeer()
        self.instance.relay.attach_device(DEVICE_ID, peer)
        peer.say({"type": "status", "seq": 1})
        while not peer.acloses:
            with trio.move_on_after(15):
                while not peer.acloses:  # noqa: ASYNC110 - the clock jumps
                    await trio.sleep(0.5)
            peer.say()


async def test_two_machines_with_one_id_on_two_instances_are_damped(autojump_clock: MockClock) -> None:
    async with open_instances("a", "b") as (a, b), trio.open_nursery() as nursery:
        machines = FaithfulMachine(a), FaithfulMachine(b)
        nursery.start_soon(machines[0].run)
        await trio.sleep(10)
        nursery.start_soon(machines[1].run)
        await trio.sleep(130)
        # Three swaps in 70 s: the one that is connected stays, and the other one is refused.
        assert [len(machine.accepted_at) for machine in machines] == [2, 2]
        assert machines[0].is_refused
        assert await b.view.is_contested(DEVICE_ID)
        assert await a.view.is_contested(DEVICE_ID)
        began_at = trio.current_time()
        await trio.sleep(3600)
        later = [at for machine in machines for at in machine.accepted_at if at >= began_at]
        assert len(later) <= 3 * (3600 / 300 + 1), "at most three swaps in 300 s"
        nursery.cancel_scope.cancel()


async def test_id_is_free_as_soon_as_neither_machine_is_connected(autojump_clock: MockClock) -> None:
    async with open_instances("a", "b") as (a, b), trio.open_nursery() as nursery:
        machines = FaithfulMachine(a), FaithfulMachine(b)
        nursery.start_soon(machines[0].run)
        await trio.sleep(10)
        nursery.start_soon(machines[1].run)
        await trio.sleep(130)
        assert await a.view.is_contested(DEVICE_ID)
        nursery.cancel_scope.cancel()
        assert machines[1].peer is not None
        machines[1].peer.leave()
        with trio.CancelScope(shield=True, deadline=trio.current_time() + 1):
            await trio.sleep(0.5)
            assert not await a.view.is_contested(DEVICE_ID)

"""Floods of successful connections, on a virtual clock: which peers are admitted, and which have to wait."""

import pytest
import trio
import trio.testing

from brewos_relay.api import request_limits
from brewos_relay.api.request_limits import NetworkShares
from brewos_relay.core.limits import Limits
from brewos_relay.core.relay import Relay, open_relay
from brewos_relay.dialect import BREWOS
from brewos_relay.networks import network_of
from brewos_relay.server import connection_rates
from brewos_relay.server.connection_rates import DEVICE_BURST, ConnectionRates, PeerBudgets
from brewos_relay.server.incoming import Denied

STEP_S = 0.05


class Gate:
    """Admits devices by the rates alone, in the order of `Admission.check`."""

    def __init__(self, relay: Relay) -> None:
        self.rates = ConnectionRates(relay)

    def connect(self, network: str, device_id: str) -> bool:
        try:
            self.rates.refuse_failing(network)
            self.rates.refuse_repeating_device(device_id)
            self.rates.admit(network)
        except Denied:
            return False
        self.rates.count_device(device_id)
        return True


class Flood:
    """Devices that reconnect as soon as they were admitted, `per_s` times a second together."""

    def __init__(self, gate: Gate, *, devices: int, per_s: float, networks: list[str]) -> None:
        self.gate = gate
        self.devices = [f"BRW-F{number:07X}" for number in range(devices)]
        self.per_s = per_s
        self.networks = networks
        self.count = self.admitted = 0

    def step(self) -> None:
        for _ in range(round(self.per_s * STEP_S)):
            self.count += 1
            device = self.devices[self.count % len(self.devices)]
            self.admitted += self.gate.connect(self.networks[self.count % len(self.networks)], device)


class Street:
    """Machines behind one address after a power cut: each comes back 30.3 s after it was refused."""

    def __init__(self, gate: Gate, *, machines: int, network: str = "198.51.100.7") -> None:
        self.gate = gate
        self.network = network
        began_at = trio.current_time()
        # All boot in the same second; a machine waits 10 s for its first attempt.
        self.due_at = {f"BRW-A{n:07X}": began_at + n / machines for n in range(machines)}
        self.came_at: dict[str, float] = {}

    def step(self) -> None:
        now = trio.current_time()
        for device, due_at in list(self.due_at.items()):
            if due_at <= now:
                if self.gate.connect(self.network, device):
                    self.came_at[device] = now
                    del self.due_at[device]
                else:
                    self.due_at[device] = now + 30.3


async def test_a_reconnect_flood_of_60_machines_does_not_keep_others_out(
    autojump_clock: trio.testing.MockClock,
) -> None:
    async with open_relay(dialect=BREWOS) as relay:
        gate = Gate(relay)
        flood = Flood(gate, devices=60, per_s=515, networks=["203.0.113.66"])
        others = refused = 0
        while trio.current_time() < 60:
            flood.step()
            if others < trio.current_time() * 40 / 60:
                others += 1
                refused += not gate.connect("192.0.2.1", f"BRW-0{others % 20:07X}")
            await trio.sleep(STEP_S)
        assert (others, refused) == (40, 0)
        # They have 10 connections each, 10 a minute more, and all together 50 a second.
        assert flood.admitted < 60 * 10 + 60 * 10 + 51 * 60


@pytest.mark.parametrize(
    "networks",
    [
        ["203.0.113.66"],
        [f"203.0.113.{number}" for number in range(200)],
        [network_of(f"2001:db8:0:{number:x}::1") for number in range(1000)],
    ],
    ids=["one address", "a /24", "a /48"],
)
@pytest.mark.parametrize("devices", [60, 100_000])
async def test_a_street_reconnects_within_60_s_during_a_flood(
    autojump_clock: trio.testing.MockClock, networks: list[str], devices: int
) -> None:
    """With 100,000 devices of its own, the flood stays within every budget of a device."""
    async with open_relay(dialect=BREWOS) as relay:
        gate = Gate(relay)
        flood = Flood(gate, devices=devices, per_s=1000, networks=networks)
        while trio.current_time() < 20:
            flood.step()
            await trio.sleep(STEP_S)
        street = Street(gate, machines=500)
        for _ in range(round(60 / STEP_S)):
            flood.step()
            street.step()
            await trio.sleep(STEP_S)
        assert len(street.came_at) == 500
        # Few needed a second attempt.
        assert sum(at < 22 for at in street.came_at.values()) >= 450


async def test_a_street_reconnects_even_if_the_flood_is_behind_the_same_address(
    autojump_clock: trio.testing.MockClock,
) -> None:
    async with open_relay(dialect=BREWOS) as relay:
        gate = Gate(relay)
        flood = Flood(gate, devices=60, per_s=515, networks=["198.51.100.7"])
        while trio.current_time() < 20:
            flood.step()
            await trio.sleep(STEP_S)
        street = Street(gate, machines=500)
        for _ in range(round(60 / STEP_S)):
            flood.step()
            street.step()
            await trio.sleep(STEP_S)
        assert len(street.came_at) == 500


async def test_a_network_alone_has_the_whole_rate(autojump_clock: trio.testing.MockClock) -> None:
    async with open_relay(dialect=BREWOS) as relay:
        gate = Gate(relay)
        flood = Flood(gate, devices=1_000_000, per_s=1000, networks=["192.0.2.1"])
        while trio.current_time() < 60:
            flood.step()
            await trio.sleep(STEP_S)
        assert flood.admitted >= 0.98 * 60 * relay.limits.admit_rate


async def test_competing_networks_reach_the_same_rate(autojump_clock: trio.testing.MockClock) -> None:
    async with open_relay(dialect=BREWOS) as relay:
        gate = Gate(relay)
        fast = Flood(gate, devices=1_000_000, per_s=4000, networks=["192.0.2.1"])
        slow = Flood(gate, devices=1_000_000, per_s=400, networks=["198.51.100.1"])
        slow.count = 500_000  # other devices
        for second in range(60):
            if second == 30:
                fast.admitted = slow.admitted = 0
            for _ in range(round(1 / STEP_S)):
                fast.step()
                slow.step()
                await trio.sleep(STEP_S)
        assert slow.admitted == pytest.approx(fast.admitted, rel=0.1)


async def test_a_correct_machine_is_never_refused(autojump_clock: trio.testing.MockClock) -> None:
    """Not even one whose line breaks whenever it can: it comes back at once, and again after 30 s."""
    async with open_relay(dialect=BREWOS, limits=Limits(admit_rate=10)) as relay:
        gate = Gate(relay)
        for _ in range(100):
            assert gate.connect("192.0.2.1", "BRW-00000001")
            assert gate.connect("192.0.2.1", "BRW-00000001")
            await trio.sleep(30.25)


async def test_peers_beyond_their_budget_share_a_tenth(autojump_clock: trio.testing.MockClock) -> None:
    budgets = PeerBudgets(Limits(admit_rate=100.0))
    device = budgets.of_device("BRW-00000001")
    for _ in range(int(DEVICE_BURST)):
        assert device.admit()
        device.count()
    assert [device.admit() for _ in range(12)] == [True] * 10 + [False] * 2
    other = budgets.of_device("BRW-00000002")
    assert other.admit(), "it is within its own"
    await trio.sleep(60)
    assert device.admit()


async def test_clients_have_a_budget_by_user_or_by_the_device_that_their_token_names(
    autojump_clock: trio.testing.MockClock,
) -> None:
    budgets = PeerBudgets(Limits(admit_rate=10.0, clients_per_user=3, clients_per_device=5))
    for by_token, at_once in ((False, 3), (True, 5)):
        client = budgets.of_client("ada", "BRW-00000001", by_token=by_token)
        admitted = 0
        while client.admit():
            client.count()
            admitted += 1
        assert admitted == at_once + (1 if not by_token else 0), "one for both that are beyond it"
    assert budgets.of_client("eve", "BRW-00000001", by_token=False).admit()
    assert budgets.of_client(None, "BRW-00000002", by_token=False).admit()


async def test_without_a_rate_there_is_no_budget_and_no_bucket() -> None:
    budgets = PeerBudgets(Limits(admit_rate=0.0))
    device = budgets.of_device("BRW-00000001")
    for _ in range(100):
        assert device.admit()
        device.count()
    assert len(budgets._devices) == 0


async def test_the_number_of_remembered_networks_and_peers_is_limited(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(request_limits, "_NETWORKS_KEPT", 10)
    monkeypatch.setattr(connection_rates, "_PEERS_KEPT", 10)
    networks, peers = NetworkShares(reserve_s=1.0), PeerBudgets(Limits())
    for number in range(100):
        networks.count(f"10.0.{number}.1")
        peers.of_device(f"BRW-{number:08X}").count()
    assert len(networks._rates) == 10
    assert len(peers._devices) == 10

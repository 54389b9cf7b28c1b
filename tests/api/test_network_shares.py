import pytest
import trio
import trio.testing

from brewos_relay.api.answers import Refused
from brewos_relay.api.network_shares import FairRate


def admitted(rate: FairRate, count: int, network: str) -> int:
    let_in = 0
    for _ in range(count):
        try:
            rate.admit(network)
        except Refused as refusal:
            if (refusal.status, refusal.reason) == (503, "too_many_tries_at_once"):
                continue
            raise
        let_in += 1
    return let_in


async def test_a_rate_is_used_up_by_one_network_but_for_what_it_leaves_to_others(
    autojump_clock: trio.testing.MockClock,
) -> None:
    rate = FairRate("tries", rate_per_s=10, burst=200, reserve_s=10)
    first = admitted(rate, 1000, "192.0.2.1")
    assert first == pytest.approx(150, abs=2)
    assert admitted(rate, 20, "198.51.100.1") == 20
    # Alone, it comes to the whole rate.
    let_in = 0
    for _ in range(100):
        await trio.sleep(1)
        let_in += admitted(rate, 100, "192.0.2.1")
    assert let_in == pytest.approx(1000, rel=0.1)
    assert admitted(rate, 50, "203.0.113.1") >= 45


async def test_a_48_shares_as_one_network(autojump_clock: trio.testing.MockClock) -> None:
    rate = FairRate("tries", rate_per_s=10, burst=200, reserve_s=10)
    let_in = sum(admitted(rate, 1, f"2001:db8:0:{number:x}::") for number in range(1000))
    assert let_in < 195
    assert admitted(rate, 5, "192.0.2.1") == 5


async def test_the_refusal_says_when_to_come_back() -> None:
    rate = FairRate("tries", rate_per_s=1, burst=1, reserve_s=1)
    rate.admit("192.0.2.1")
    with pytest.raises(Refused, match="Too many tries at once") as refused:
        rate.admit("192.0.2.1")
    assert refused.value.headers["Retry-After"] == "30"

import pytest
import trio
import trio.testing

from brewos_relay.api.payloads import Refused
from brewos_relay.api.request_limits import FairRate, RequestLimit, RequestLimits
from brewos_relay.errors import QuotaReached, RegistryBusy, RegistryError
from brewos_relay.networks import network_of


def admitted(limit: RequestLimit, key: str) -> bool:
    try:
        limit.admit(key)
    except Refused as refusal:
        return not (refusal.status == 429 and int(refusal.headers["Retry-After"]) >= 1)
    return True


def count(limit: RequestLimit, key: str) -> int:
    admitted_so_far = 0
    while admitted(limit, key):
        admitted_so_far += 1
    return admitted_so_far


async def test_a_bucket_is_emptied_and_fills_again(autojump_clock: trio.testing.MockClock) -> None:
    limit = RequestLimit("tries", burst=3, each_minute=6)
    assert count(limit, "a") == 3
    await trio.sleep(9.9)
    assert not admitted(limit, "a")
    await trio.sleep(0.2)
    assert admitted(limit, "a")
    assert not admitted(limit, "a")
    await trio.sleep(3600)
    assert count(limit, "a") == 3


async def test_retry_after_is_exact(
    autojump_clock: trio.testing.MockClock,
) -> None:
    limit = RequestLimit("attempts to pair", burst=2, each_minute=4)
    count(limit, "a")
    with pytest.raises(Refused) as refused:
        limit.admit("a")
    assert refused.value.problem == "Too many attempts to pair. Try again in 15 seconds."
    await trio.sleep(int(refused.value.headers["Retry-After"]))
    assert admitted(limit, "a")


@pytest.mark.parametrize(
    ("each_minute", "words"), [(60, "a second"), (0.6, "100 seconds"), (0.4, "3 minutes")]
)
async def test_wait_is_written_in_words(
    autojump_clock: trio.testing.MockClock, each_minute: float, words: str
) -> None:
    limit = RequestLimit("tries", burst=1, each_minute=each_minute)
    limit.admit("a")
    with pytest.raises(Refused, match=f"Try again in {words}."):
        limit.admit("a")


async def test_keys_have_separate_buckets(autojump_clock: trio.testing.MockClock) -> None:
    limit = RequestLimit("tries", burst=3, each_minute=6)
    count(limit, "a")
    assert count(limit, "b") == 3


async def test_returned_tokens_never_exceed_the_burst(
    autojump_clock: trio.testing.MockClock,
) -> None:
    limit = RequestLimit("tries", burst=3, each_minute=6)
    for _ in range(20):
        limit.admit("a")
        limit.give_back("a")
    limit.give_back("a")
    assert count(limit, "a") == 3


async def test_number_of_buckets_is_bounded_and_recent_ones_stay(
    autojump_clock: trio.testing.MockClock,
) -> None:
    limit = RequestLimit("tries", burst=2, each_minute=6, kept=10)
    count(limit, "watched")
    for number in range(1000):
        limit.admit(f"stranger {number}")
        assert not admitted(limit, "watched") or number > 500
        limit.give_back("watched")
        count(limit, "watched")
    assert len(limit) <= 10
    assert count(limit, "stranger 0") == 2


async def test_ten_tabs_behind_one_address_never_reach_a_limit(
    autojump_clock: trio.testing.MockClock,
) -> None:
    """Each polls every 10 s and renews its tokens. For a minute, all of them reload repeatedly."""
    request_limits = RequestLimits()
    for second in range(3600):
        for tab in range(10):
            if (second + tab) % 10 == 0:
                request_limits.requests.admit("home")
            if (second + tab * 7) % 300 == 0:
                request_limits.requests.admit("home")
                request_limits.refreshes.admit("home")
            if 600 <= second < 660 and second % 5 == 0:
                for _request in range(8):
                    request_limits.requests.admit("home")
        await trio.sleep(1)


async def test_a_street_registers_after_a_power_cut(autojump_clock: trio.testing.MockClock) -> None:
    request_limits = RequestLimits()
    for machine in range(500):
        request_limits.register_by_device.admit(f"BRW-{machine:08X}")
        request_limits.register_by_address.admit("street")
    assert not admitted(request_limits.register_by_address, "street")


async def test_a_machine_that_tries_every_30_s_is_never_limited(
    autojump_clock: trio.testing.MockClock,
) -> None:
    request_limits = RequestLimits()
    for _ in range(500):
        request_limits.register_by_device.admit("BRW-00000001")
        await trio.sleep(30)


@pytest.mark.parametrize(
    ("pattern", "networks", "shares"),
    [
        ("2001:db8:0:{:x}::1", 256, 2),  # a /56
        ("2001:db8:0:{:x}01::1", 256, 3),  # a /48
        ("192.0.2.{}", 256, 16),
    ],
)
async def test_a_wider_network_has_a_few_times_the_budget_of_one_address(
    autojump_clock: trio.testing.MockClock, pattern: str, networks: int, shares: int
) -> None:
    limit = RequestLimit("tries", burst=4, each_minute=4, by_network=True)
    keys = [network_of(pattern.format(number)) for number in range(networks)]
    assert sum(count(limit, key) for key in keys) == shares * 4
    await trio.sleep(60)
    assert sum(count(limit, key) for key in keys) == shares * 4


async def test_refusal_by_a_wider_network_costs_the_narrow_one_nothing(
    autojump_clock: trio.testing.MockClock,
) -> None:
    limit = RequestLimit("tries", burst=4, each_minute=4, by_network=True)
    first, second, third = [network_of(f"2001:db8:0:{number}::1") for number in range(3)]
    assert (count(limit, first), count(limit, second), count(limit, third)) == (4, 4, 0)
    limit.give_back(first)
    assert count(limit, third) == 1


async def test_keys_about_different_subjects_have_separate_buckets(
    autojump_clock: trio.testing.MockClock,
) -> None:
    limit = RequestLimit("tries", burst=1, each_minute=1, by_network=True)
    for about in ("ada", "eve"):
        limit.admit("192.0.2.1", about=about)
        with pytest.raises(Refused):
            limit.admit("192.0.2.1", about=about)
        limit.give_back("192.0.2.1", about=about)
        limit.admit("192.0.2.1", about=about)


@pytest.mark.parametrize(
    ("problem", "given_back"),
    [
        (Refused("busy", status=503), True),
        (RegistryError("the disk is gone"), True),
        (RegistryBusy("another process writes"), True),
        (QuotaReached(50), False),
        (Refused("wrong", status=401), False),
        (ValueError("a defect"), False),
    ],
)
async def test_an_attempt_that_ends_in_503_is_given_back(
    autojump_clock: trio.testing.MockClock, problem: Exception, given_back: bool
) -> None:
    limit = RequestLimit("tries", burst=1, each_minute=0.001)
    with pytest.raises(type(problem)):
        async with limit.attempt("a"):
            raise problem
    assert admitted(limit, "a") is given_back


async def test_check_refuses_without_taking_a_token(
    autojump_clock: trio.testing.MockClock,
) -> None:
    request_limits = RequestLimits()
    for path, limit in (
        ("/api/auth/password", request_limits.sign_ins),
        ("/api/auth/refresh", request_limits.refreshes),
        ("/api/devices", request_limits.requests),
        ("/", request_limits.pages),
        ("/livez", request_limits.health),
    ):
        for _ in range(3 * limit.burst):
            request_limits.check_request(path, "192.0.2.1")
        assert count(limit, "192.0.2.1") == limit.burst
        with pytest.raises(Refused) as refused:
            request_limits.check_request(path, "192.0.2.1")
        assert (refused.value.status, refused.value.reason) == (429, limit._refusal(1).reason)
        request_limits.check_request(path, "192.0.2.2")
    # A machine with its working key may always register.
    count(request_limits.register_by_address, "192.0.2.1")
    request_limits.check_request("/api/devices/register-claim", "192.0.2.1")


def admitted_of(rate: FairRate, count: int, network: str) -> int:
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


async def test_one_network_leaves_a_reserve_to_others(
    autojump_clock: trio.testing.MockClock,
) -> None:
    rate = FairRate("tries", rate_per_s=10, burst=200, reserve_s=10)
    first = admitted_of(rate, 1000, "192.0.2.1")
    assert first == pytest.approx(150, abs=2)
    assert admitted_of(rate, 20, "198.51.100.1") == 20
    # A network alone gets the whole rate.
    let_in = 0
    for _ in range(100):
        await trio.sleep(1)
        let_in += admitted_of(rate, 100, "192.0.2.1")
    assert let_in == pytest.approx(1000, rel=0.1)
    assert admitted_of(rate, 50, "203.0.113.1") >= 45


async def test_a_48_counts_as_one_network(autojump_clock: trio.testing.MockClock) -> None:
    rate = FairRate("tries", rate_per_s=10, burst=200, reserve_s=10)
    let_in = sum(admitted_of(rate, 1, f"2001:db8:0:{number:x}::") for number in range(1000))
    assert let_in < 195
    assert admitted_of(rate, 5, "192.0.2.1") == 5


async def test_refusal_has_retry_after() -> None:
    rate = FairRate("tries", rate_per_s=1, burst=1, reserve_s=1)
    rate.admit("192.0.2.1")
    with pytest.raises(Refused, match="Too many tries at once") as refused:
        rate.admit("192.0.2.1")
    assert refused.value.headers["Retry-After"] == "30"

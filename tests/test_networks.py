import pytest

from brewos_relay.networks import network_of, networks_of


@pytest.mark.parametrize(
    ("address", "network"),
    [
        ("192.0.2.7", "192.0.2.7"),
        ("::ffff:192.0.2.7", "192.0.2.7"),
        ("2001:db8:1:2:3:4:5:6", "2001:db8:1:2::"),
        ("2001:db8:1:2::9", "2001:db8:1:2::"),
        ("2001:db8:1:3::9", "2001:db8:1:3::"),
        ("fe80::1%eth0", "fe80::"),
        ("", ""),
        ("<local>", "<local>"),
    ],
)
def test_network_of_an_address_is_its_ipv4_address_or_its_ipv6_64(address: str, network: str) -> None:
    assert network_of(address) == network


@pytest.mark.parametrize(
    ("network", "around"),
    [
        ("2001:db8:1:2::", ("2001:db8:1::/48", "2001:db8:1::/56", "2001:db8:1:2::")),
        ("192.0.2.7", ("192.0.2.0/24", "192.0.2.7")),
        ("<local>", ("<local>",)),
    ],
)
def test_the_networks_around_an_address(network: str, around: tuple[str, ...]) -> None:
    assert tuple(networks_of(network)) == around

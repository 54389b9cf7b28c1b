import ipaddress
from collections.abc import Iterable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from brewos_relay.auth import proxy_trust
from brewos_relay.auth.proxy_trust import Caller, ProxyTrust

PROXY = "10.0.0.1"
NETWORKS = [ipaddress.ip_network("10.0.0.0/8"), ipaddress.ip_network("fd00::/8")]
FRONT = ProxyTrust(NETWORKS)


def address_of(peer: str, *forwarded: str, proxy_trust: ProxyTrust = FRONT) -> str:
    address = proxy_trust.caller(peer, False, [("X-Forwarded-For", value) for value in forwarded]).address
    assert proxy_trust.address(peer, ", ".join(forwarded)) == address
    return address


def called(*headers: tuple[str, str], peer: str = "192.0.2.9", secure: bool = False) -> tuple[str, str]:
    caller = FRONT.caller(peer, secure, headers)
    return caller.scheme, caller.host


# The address


def test_few_parsed_addresses_are_kept() -> None:
    for number in range(5000):
        address_of(PROXY, f"198.18.{number // 256}.{number % 256}")
    assert proxy_trust._parse_address.cache_info().currsize == 4096


def test_direct_caller_is_the_peer() -> None:
    assert address_of("192.0.2.9") == "192.0.2.9"
    assert address_of("2001:db8::0009") == "2001:db8::9"


def test_untrusted_peer_cannot_set_the_caller_address() -> None:
    assert address_of("192.0.2.9", "198.51.100.1") == "192.0.2.9"
    assert address_of("192.0.2.9", "10.0.0.1") == "192.0.2.9"
    assert address_of(PROXY, "198.51.100.1", proxy_trust=ProxyTrust()) == PROXY


@pytest.mark.parametrize(
    ("forwarded", "address"),
    [
        (["198.51.100.1"], "198.51.100.1"),
        (["203.0.113.5, 198.51.100.1"], "198.51.100.1"),  # the caller made the left one up
        (["203.0.113.5", "198.51.100.1"], "198.51.100.1"),  # the proxy may add a line of its own
        (["198.51.100.1, 10.0.0.3, 10.0.0.2"], "198.51.100.1"),
        (["198.51.100.1", "10.0.0.3 ,\t10.0.0.2"], "198.51.100.1"),
        (["10.0.0.4, 10.0.0.3"], "10.0.0.4"),  # all are trusted
        (["198.51.100.1, fd00::3"], "198.51.100.1"),
        (["198.51.100.1:4711"], "198.51.100.1"),
        (["[2001:db8::1]:4711"], "2001:db8::1"),
        (["[2001:db8::1]"], "2001:db8::1"),
        (["2001:DB8::1"], "2001:db8::1"),
        (["::ffff:198.51.100.1"], "198.51.100.1"),
        (["[::ffff:198.51.100.1]:80"], "198.51.100.1"),
        (["198.51.100.1, ::ffff:10.0.0.3"], "198.51.100.1"),
        ([""], PROXY),
        ([], PROXY),
        (["unknown"], PROXY),
        (["198.51.100.1, unknown"], PROXY),
        (["198.51.100.1,"], "198.51.100.1"),  # empty elements count for nothing
        ([",198.51.100.1, ,", " ", ","], "198.51.100.1"),
        (["198.51.100.1,, 10.0.0.3,"], "198.51.100.1"),
        ([", ,"], PROXY),
        (["198.51.100.1, unknown, 10.0.0.7"], "10.0.0.7"),
        (["300.1.1.1"], PROXY),
        (["1.2.3"], PROXY),
        (["01.02.03.04"], PROXY),
        (["198.51.100.1:port"], PROXY),
        (["198.51.100.1:4711:1"], PROXY),
        (["[198.51.100.1"], PROXY),
        (["[2001:db8::1"], PROXY),
        (["fe80::1%eth0"], PROXY),
        (["::1::"], PROXY),
        (["for=198.51.100.1"], PROXY),
        (['"198.51.100.1"'], PROXY),
        (["198.51.100.1\n"], "198.51.100.1"),
        (["\uff11\uff19\uff18.51.100.1"], PROXY),
    ],
)
def test_caller_is_the_rightmost_untrusted_address(forwarded: list[str], address: str) -> None:
    assert address_of(PROXY, *forwarded) == address


def test_header_names_are_case_insensitive() -> None:
    assert FRONT.caller(PROXY, False, [("x-FORWARDED-for", "198.51.100.1")]).address == "198.51.100.1"


@pytest.mark.parametrize("peer", ["::ffff:10.0.0.1", "fd00::1", "fd00::1%eth0", "10.255.255.255"])
def test_proxy_address_matches_in_any_notation(peer: str) -> None:
    assert FRONT.trusts(peer)
    assert address_of(peer, "198.51.100.1") == "198.51.100.1"


@pytest.mark.parametrize("peer", ["10.0.0.1", "::ffff:10.0.0.1", "::ffff:a00:1"])
@pytest.mark.parametrize(
    "network", ["::ffff:10.0.0.0/104", "::ffff:a00:0/104", "::ffff:0:0/96", "10.0.0.0/8"]
)
def test_mapped_network_equals_its_ipv4_network(network: str, peer: str) -> None:
    proxy_trust = ProxyTrust([ipaddress.ip_network(network)])
    assert proxy_trust.trusts(peer)
    assert address_of(peer, "198.51.100.1", proxy_trust=proxy_trust) == "198.51.100.1"
    assert not proxy_trust.trusts("::a00:1")


@pytest.mark.parametrize("network", ["::ffff:10.0.0.1/128", "10.0.0.1/32"])
def test_mapped_address_equals_its_ipv4_address(network: str) -> None:
    proxy_trust = ProxyTrust([ipaddress.ip_network(network)])
    assert proxy_trust.trusts("10.0.0.1")
    assert not proxy_trust.trusts("10.0.0.2")


@pytest.mark.parametrize("network", ["::/0", "::/64", "2001:db8::/32"])
def test_wider_network_than_the_mapped_one_contains_no_ipv4(network: str) -> None:
    assert not ProxyTrust([ipaddress.ip_network(network)]).trusts("10.0.0.1")


@pytest.mark.parametrize("peer", ["", "11.0.0.1", "fe80::1%eth0", "/run/relay.sock", "10.0.0", "::1"])
def test_other_peers_are_not_trusted(peer: str) -> None:
    assert not FRONT.trusts(peer)
    assert address_of(peer, "198.51.100.1") == peer.removesuffix("%eth0")


def test_an_ipv4_caller_of_a_socket_for_both_families() -> None:
    assert address_of("::ffff:192.0.2.9") == "192.0.2.9"


# The scheme and the host


def test_direct_request_uses_its_own_scheme_and_host() -> None:
    assert called(("Host", "relay.example")) == ("http", "relay.example")
    assert called(("Host", "relay.example"), secure=True) == ("https", "relay.example")


def test_trusted_proxy_sets_scheme_and_host() -> None:
    headers = [
        ("Host", "backend:3001"),
        ("X-Forwarded-Proto", "https"),
        ("X-Forwarded-Host", "Relay.Example"),
    ]
    assert called(*headers, peer=PROXY) == ("https", "relay.example")
    assert called(*headers) == ("http", "backend:3001")


def test_value_of_the_nearest_proxy_counts() -> None:
    proto, host = ("X-Forwarded-Proto", "http, HTTPS"), ("X-Forwarded-Host", "evil.example, relay.example")
    assert called(proto, host, peer=PROXY) == ("https", "relay.example")
    more = ("X-Forwarded-Proto", "http"), ("X-Forwarded-Host", "other.example")
    assert called(proto, host, *more, peer=PROXY) == ("http", "other.example")


@pytest.mark.parametrize(
    ("proto", "scheme"),
    [("wss", "https"), ("WSS", "https"), ("ws", "http"), ("https,", "https"), (",", "http")],
)
def test_a_proxy_may_name_the_scheme_of_the_websocket(proto: str, scheme: str) -> None:
    assert called(("X-Forwarded-Proto", proto), peer=PROXY)[0] == scheme
    plain = called(("X-Forwarded-Proto", "ws"), ("Host", "relay.example:80"), peer=PROXY, secure=True)
    assert plain == ("http", "relay.example")


@pytest.mark.parametrize("proto", ["", "ftp", "javascript", "https "])
def test_unknown_scheme_is_ignored(proto: str) -> None:
    expected = proto.strip() if proto.strip() == "https" else "http"
    assert called(("X-Forwarded-Proto", proto), peer=PROXY)[0] == expected


def test_proxy_can_report_http_over_an_encrypted_connection() -> None:
    assert called(("X-Forwarded-Proto", "http"), peer=PROXY, secure=True)[0] == "http"


@pytest.mark.parametrize(
    ("host", "secure", "expected"),
    [
        ("relay.example:443", True, "relay.example"),
        ("relay.example:80", False, "relay.example"),
        ("relay.example:443", False, "relay.example:443"),
        ("relay.example:080", False, "relay.example"),
        ("RELAY.example:3001", False, "relay.example:3001"),
        ("brewos_relay:3001", False, "brewos_relay:3001"),
        ("192.0.2.1", False, "192.0.2.1"),
        ("[::1]:3001", False, "[::1]:3001"),
        ("[2001:DB8::1]", False, "[2001:db8::1]"),
        ("relay.example.", False, "relay.example"),
        ("Relay.Example.:443", True, "relay.example"),
        ("relay.example.:3001", False, "relay.example:3001"),
        ("192.0.2.1.", False, "192.0.2.1"),
    ],
)
def test_valid_host_is_used(host: str, secure: bool, expected: str) -> None:
    assert called(("Host", host), secure=secure)[1] == expected


BAD_HOSTS = [
    "",
    " ",
    "relay.example/evil",
    "relay.example?x",
    "relay.example#x",
    "user@relay.example",
    "relay.example\\evil",
    "relay.example:0",
    "relay.example:65536",
    "relay.example:123456",
    "relay.example:x",
    "relay.example:",
    "-relay",
    "relay-",
    ".relay",
    ".",
    "relay..",
    "relay.example..:80",
    "[::1].",
    "[::1].:80",
    "relay example",
    "relay,example",
    "a.example, b.example",
    "<script>",
    '"',
    "rélay.example",
    "relay.example\x00",
    "[::1",
    "::1",
    "[relay]",
    "x" * 254,
]


@pytest.mark.parametrize("host", BAD_HOSTS)
def test_a_host_that_could_poison_a_link_is_dropped(host: str) -> None:
    assert called(("Host", host)) == ("http", "")
    headers = ("Host", "relay.example"), ("X-Forwarded-Host", host)
    fallen_back = called(*headers, peer=PROXY)[1]
    assert fallen_back == (
        "b.example"
        if host == "a.example, b.example"
        else "example"
        if host == "relay,example"
        else "relay.example"
    )
    assert FRONT.base_url(FRONT.caller("192.0.2.9", False, [("Host", host)])) == "http://localhost"


def test_peer_without_an_address_still_has_a_host() -> None:
    assert called(("Host", "relay.example"), peer="") == ("http", "relay.example")


# Links


def test_links_use_the_host_of_the_request() -> None:
    assert FRONT.base_url(Caller("192.0.2.9", "https", "relay.example:3001")) == "https://relay.example:3001"


def test_links_go_to_the_public_address_if_there_is_one() -> None:
    proxy_trust = ProxyTrust(NETWORKS, "https://relay.example")
    assert proxy_trust.base_url(Caller("192.0.2.9", "http", "evil.example")) == "https://relay.example"


# Origins

HERE = Caller("192.0.2.9", "https", "relay.example")


@pytest.mark.parametrize(
    "origin",
    [
        None,
        "https://relay.example",
        "https://relay.example:443",
        "HTTPS://Relay.Example",
        "https://relay.example.",
        "https://relay.example.:443",
    ],
)
def test_our_own_origin(origin: str | None) -> None:
    assert FRONT.origin_allowed(origin, HERE)


def test_origin_with_a_trailing_dot_is_our_own() -> None:
    dotted = FRONT.caller("192.0.2.9", True, [("Host", "relay.example.:443")])
    assert FRONT.origin_allowed("https://relay.example.", dotted)
    assert FRONT.base_url(dotted) == "https://relay.example"
    assert FRONT.origin_allowed("https://app.example.", HERE, ["https://app.example"])
    assert FRONT.origin_allowed("https://app.example", HERE, ["https://app.example."])


@pytest.mark.parametrize(
    "origin",
    [
        "",
        "null",
        "NULL",
        "file://",
        "file://relay.example",
        "https://evil.example",
        "https://relay.example.evil.example",
        "https://evil-relay.example",
        "https://relay.example:444",
        "http://relay.example",
        "http://relay.example:443",
        "https://relay.example/",
        "https://relay.example..",
        "https://relay.example.evil.example.",
        "https://relay.example@evil.example",
        "https://relay.example https://evil.example",
        "https://relay.example:99999",
        "relay.example",
        "chrome-extension://abc",
        "https://",
    ],
)
def test_a_foreign_origin(origin: str) -> None:
    assert not FRONT.origin_allowed(origin, HERE)
    assert not FRONT.origin_allowed(origin, HERE, ["https://app.example", "null", "*", ""])


def test_https_origin_is_allowed_behind_a_tls_terminating_proxy() -> None:
    plain = Caller("192.0.2.9", "http", "relay.example:3001")
    assert FRONT.origin_allowed("https://relay.example:3001", plain)
    assert FRONT.origin_allowed("http://relay.example:3001", plain)
    assert not FRONT.origin_allowed("http://relay.example", plain)


def test_origins_that_are_allowed() -> None:
    allowed = ["https://app.example", "HTTP://Home.Example:80", "http://localhost:5173"]
    for origin in ("https://app.example:443", "http://home.example", "http://localhost:5173"):
        assert FRONT.origin_allowed(origin, HERE, allowed)
        assert not FRONT.origin_allowed(origin, HERE)
    for origin in ("http://app.example", "https://home.example", "http://localhost:5174"):
        assert not FRONT.origin_allowed(origin, HERE, allowed)


@pytest.mark.parametrize("origin", ["capacitor://localhost", "ionic://localhost", "tauri://localhost"])
def test_origin_of_an_app_shell_has_to_be_allowed(origin: str) -> None:
    for scheme in ("http", "https"):
        local = Caller("192.0.2.1", scheme, "localhost")
        assert not FRONT.origin_allowed(origin, local)
        assert FRONT.origin_allowed(origin, local, [origin])
        assert not FRONT.origin_allowed(origin, local, ["http://localhost", "https://localhost"])
    assert not FRONT.origin_allowed(origin + ":80", local, [origin])


def test_the_public_address_is_our_own_origin() -> None:
    proxy_trust = ProxyTrust(NETWORKS, "https://public.example")
    assert proxy_trust.origin_allowed("https://public.example", HERE)
    assert not proxy_trust.origin_allowed("http://public.example", HERE)


def test_without_a_host_nothing_is_our_own() -> None:
    nowhere = Caller("192.0.2.9", "http", "")
    assert not FRONT.origin_allowed("https://relay.example", nowhere)
    assert not FRONT.origin_allowed("http://", nowhere)


# Properties

addresses = st.ip_addresses()
untrusted = addresses.filter(lambda address: not FRONT.trusts(str(address)))
trusted = st.ip_addresses(network="10.0.0.0/8") | st.ip_addresses(network="fd00::/8")


def written(address: object) -> st.SearchStrategy[str]:
    text = str(address)
    if ":" in text:
        return st.sampled_from([text, f"[{text}]", f"[{text}]:443", text.upper()])
    return st.sampled_from([text, f"{text}:443", f"::ffff:{text}", f"[::ffff:{text}]:443"])


def unmapped(address: ipaddress.IPv4Address | ipaddress.IPv6Address) -> str:
    return str(getattr(address, "ipv4_mapped", None) or address)


empty_elements = st.sampled_from(["", " ", ",", ", ,\t"])


@given(untrusted, st.lists(trusted, max_size=4), trusted, st.text(max_size=40), st.data())
def test_headers_of_the_caller_never_change_its_address(
    caller: ipaddress.IPv4Address | ipaddress.IPv6Address,
    proxies: Iterable[object],
    nearest: object,
    invented: str,
    data: st.DataObject,
) -> None:
    chain = [data.draw(written(address)) + data.draw(empty_elements) for address in (caller, *proxies)]
    assert address_of(str(nearest), ", ".join([invented, *chain])) == unmapped(caller)
    assert address_of(str(nearest), invented, *chain) == unmapped(caller)


@given(
    st.text(),
    st.booleans(),
    st.lists(
        st.tuples(
            st.sampled_from(["Host", "X-Forwarded-For", "X-Forwarded-Proto", "X-Forwarded-Host", "Origin"]),
            st.text(),
        )
    ),
    st.booleans(),
)
def test_garbage_headers_still_give_a_valid_link(
    peer: str, secure: bool, headers: list[tuple[str, str]], through_proxy: bool
) -> None:
    caller = FRONT.caller(PROXY if through_proxy else peer, secure, headers)
    assert caller.scheme in ("http", "https")
    assert set(FRONT.base_url(caller).partition("://")[2]) <= set(
        "abcdefghijklmnopqrstuvwxyz0123456789._-:[]"
    )
    if through_proxy:
        ipaddress.ip_address(caller.address)


@given(st.text())
def test_no_text_is_an_origin_by_accident(origin: str) -> None:
    assert not FRONT.origin_allowed(origin, HERE) or origin.lower() == "https://relay.example"

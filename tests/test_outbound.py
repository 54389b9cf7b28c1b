"""Outgoing requests: where they go, and their limits."""

import ssl
from collections.abc import AsyncIterator, Sequence
from pathlib import Path

import pytest
import trio

from brewos_relay import outbound
from brewos_relay.errors import OutboundFailed
from brewos_relay.outbound import (
    Address,
    Outbound,
    OutboundAnswer,
    check_operator_url,
    check_url,
    is_public,
)
from support.https_server import Asked, HttpsServer, answer, open_https_server

HOST = "push.example"


class Answers:
    """What the server answers, and when."""

    def __init__(self) -> None:
        self.next = answer(200, b"fine", X_Kind="a")
        self.delay_s = 0.0

    async def __call__(self, _asked: Asked) -> bytes:
        await trio.sleep(self.delay_s)
        return self.next


@pytest.fixture
def answers() -> Answers:
    return Answers()


@pytest.fixture
async def server(tmp_path: Path, answers: Answers) -> AsyncIterator[HttpsServer]:
    async with open_https_server(tmp_path, answers, names=(HOST,)) as server:
        yield server


@pytest.fixture
def names(monkeypatch: pytest.MonkeyPatch) -> dict[str, list[str]]:
    """The addresses of each host; the last one is repeated. Each look-up takes the next list."""
    known: dict[str, list[str]] = {HOST: ["127.0.0.1"]}

    async def resolve(host: str, port: int) -> Sequence[tuple[int, Address]]:
        await trio.lowlevel.checkpoint()
        looked.append(host)
        return [(trio.socket.AF_INET, (address, port)) for address in known[host]]

    looked: list[str] = []
    known["looked"] = looked
    monkeypatch.setattr(outbound, "resolve", resolve)
    return known


async def send(server: HttpsServer, url: str = "", **changed: object) -> OutboundAnswer:
    chosen: dict[str, object] = {"most_bytes": 1000, "timeout_s": 2.0, "public_only": False, **changed}
    return await Outbound(server.tls).send(
        "POST",
        url or server.url("/sub?x=1", host=HOST),
        headers={"TTL": "60"},
        body=b"hi",
        **chosen,  # type: ignore[arg-type]
    )


async def test_request_and_answer(server: HttpsServer, names: dict[str, list[str]]) -> None:
    got = await send(server)
    assert (got.status, got.headers["x-kind"], got.body) == (200, "a", b"fine")
    [asked] = server.asked
    assert (asked.method, asked.target, asked.body) == ("POST", "/sub?x=1", b"hi")
    assert asked.headers["host"] == f"{HOST}:{server.port}"
    assert asked.headers["ttl"] == "60"


@pytest.mark.parametrize(
    "url",
    [
        "http://push.example/",
        "ftp://push.example/",
        "https:///path",
        "https://push.example:0/",
        "https://push.example:99999/",
        "https://user:secret@push.example/",
        "https://push.example/ a",
        "https://push.example/\nX: y",
        "https://push.example\\@evil.example/",
        "https://pü.example/",
        "https://[::1/",
        "https://push.example/" + "x" * 2048,
        "",
    ],
)
async def test_other_urls_are_refused_before_a_look_up(names: dict[str, list[str]], url: str) -> None:
    with pytest.raises(ValueError):  # noqa: PT011 - the text differs
        _ = check_url(url).port
    with pytest.raises(OutboundFailed):
        await Outbound().send("GET", url, most_bytes=1, timeout_s=1)
    assert names["looked"] == []


@pytest.mark.parametrize(
    "url",
    [
        "https://issuer.example",
        "https://issuer.example:8443/a?b=" + "c" * 20_000,
        "http://localhost:8080",
        "http://127.0.0.1",
        "http://127.8.9.1/x",
        "http://[::1]:8080/",
    ],
)
def test_https_and_local_http_urls_of_the_operator_are_accepted(url: str) -> None:
    assert check_operator_url(url).geturl() == url


@pytest.mark.parametrize(
    "url",
    [
        "",
        "issuer.example",
        "http://issuer.example",
        "http://localhost.evil.example",
        "http://127.0.0.1.evil.example",
        "http://192.168.1.2",
        "http://127.0.0.1@evil.example/",
        "https://user:secret@issuer.example/",
        "http://",
        "https://",
        "https:///path",
        "https://issuer.example:0",
        "https://issuer.example:port",
        "https://issuer.example:99999",
        "file:///etc/passwd",
        "ftp://127.0.0.1/x",
        "javascript:alert(1)",
        "https://[::1",
    ],
)
def test_other_urls_of_the_operator_are_refused(url: str) -> None:
    with pytest.raises(ValueError):  # noqa: PT011 - some of it is said by the standard library
        check_operator_url(url)


async def test_unencrypted_requests_stay_on_this_computer(names: dict[str, list[str]]) -> None:
    names["localhost"] = ["127.0.0.1", "192.168.1.2"]
    with pytest.raises(OutboundFailed, match="not of this computer"):
        await Outbound().send("GET", "http://localhost/", most_bytes=1, timeout_s=1, public_only=False)


@pytest.mark.parametrize(
    "address",
    [
        *("127.0.0.1", "10.1.2.3", "172.16.0.1", "192.168.1.1", "169.254.169.254", "100.64.0.1", "0.0.0.0"),
        *("192.0.2.1", "198.18.0.1", "224.0.0.1", "240.0.0.1", "255.255.255.255", "192.0.0.8"),
        *("::", "::1", "fe80::1", "fe80::1%eth0", "fc00::1", "ff02::1", "2001:db8::1", "::ffff:10.0.0.1"),
        *(
            "64:ff9b::a00:1",
            "64:ff9b::7f00:1",
            "2002:a00:1::1",
            "2001:0:a00:1::1",
            "::ffff:127.0.0.1",
            "x",
            "",
        ),
    ],
)
def test_addresses_that_are_not_public(address: str) -> None:
    assert not is_public(address)


@pytest.mark.parametrize("address", ["8.8.8.8", "2606:4700::1111", "::ffff:8.8.8.8", "64:ff9b::808:808"])
def test_public_addresses(address: str) -> None:
    assert is_public(address)


@pytest.mark.parametrize("addresses", [["127.0.0.1"], ["10.0.0.1"], ["8.8.8.8", "192.168.0.1"]])
async def test_private_addresses_are_refused_without_a_connection(
    server: HttpsServer, names: dict[str, list[str]], addresses: list[str]
) -> None:
    names[HOST] = addresses
    with pytest.raises(OutboundFailed, match="not public"):
        await send(server, public_only=True)
    assert server.connections == 0


@pytest.mark.parametrize("host", ["127.0.0.1", "2130706433", "0x7f.1", "[::1]", "localhost"])
async def test_other_forms_of_private_addresses_are_refused(server: HttpsServer, host: str) -> None:
    with pytest.raises(OutboundFailed):
        await send(server, server.url(host=host), public_only=True)
    assert server.connections == 0


async def test_name_that_changes_after_the_check_leads_nowhere_else(
    server: HttpsServer, names: dict[str, list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    connected: list[str] = []

    async def open_first(addresses: Sequence[tuple[int, Address]]) -> trio.SocketStream:
        names[HOST] = ["10.0.0.1"]  # the next look-up gives another address
        connected.extend(address[0] for _, address in addresses)
        raise ConnectionRefusedError(111, "refused")

    names[HOST] = ["8.8.8.8"]
    monkeypatch.setattr(outbound, "_open_first", open_first)
    with pytest.raises(OutboundFailed):
        await send(server, public_only=True)
    assert (connected, names["looked"]) == (["8.8.8.8"], [HOST])


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
async def test_redirects_are_refused(
    server: HttpsServer, names: dict[str, list[str]], answers: Answers, status: int
) -> None:
    answers.next = answer(status, Location=server.url("/elsewhere", host=HOST))
    with pytest.raises(OutboundFailed, match="redirect"):
        await send(server)
    assert [asked.target for asked in server.asked] == ["/sub?x=1"]


async def test_large_and_late_answers_are_refused(
    server: HttpsServer, names: dict[str, list[str]], answers: Answers
) -> None:
    answers.next = answer(200, b"x" * 1001)
    with pytest.raises(OutboundFailed, match="more than 1000 bytes"):
        await send(server)
    answers.next = answer(200, b"x" * 1000)
    assert len((await send(server)).body) == 1000
    answers.delay_s = 5
    with pytest.raises(OutboundFailed, match=r"within 0\.2 s"):
        await send(server, timeout_s=0.2)


@pytest.mark.parametrize(
    "flood",
    [
        b"HTTP/1.1 100 Continue\r\n\r\n" * 2000 + answer(200),
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n" + b"1;%b\r\n \r\n" % (b"x" * 1000) * 50,
    ],
)
async def test_framing_of_an_answer_is_limited_too(
    server: HttpsServer, names: dict[str, list[str]], answers: Answers, flood: bytes
) -> None:
    answers.next = flood
    with pytest.raises(OutboundFailed, match="more than 1000 bytes"):
        await send(server)


@pytest.mark.parametrize(
    "wrong", [b"", b"nonsense\r\n\r\n", b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nshort", b"x" * 100_000]
)
async def test_wrong_answers_are_failures(
    server: HttpsServer, names: dict[str, list[str]], answers: Answers, wrong: bytes
) -> None:
    answers.next = wrong
    with pytest.raises(OutboundFailed) as problem:
        await send(server)
    assert "sub" not in str(problem.value)


async def test_certificate_must_be_for_the_host(server: HttpsServer, names: dict[str, list[str]]) -> None:
    names["other.example"] = ["127.0.0.1"]
    with pytest.raises(OutboundFailed, match="CERTIFICATE_VERIFY_FAILED"):
        await send(server, server.url(host="other.example"))
    with pytest.raises(OutboundFailed, match="CERTIFICATE_VERIFY_FAILED"):
        await Outbound().send("GET", server.url(host=HOST), most_bytes=1, timeout_s=2, public_only=False)
    assert server.asked == []


async def test_next_address_is_tried_if_one_refuses(server: HttpsServer, names: dict[str, list[str]]) -> None:
    names[HOST] = ["127.0.0.2", "127.0.0.1"]
    assert (await send(server)).status == 200
    names[HOST] = []
    with pytest.raises(OutboundFailed, match=f"cannot reach {HOST}"):
        await send(server)


async def test_unknown_name_is_a_failure() -> None:
    tls = ssl.create_default_context()
    with pytest.raises(OutboundFailed, match=r"cannot reach nowhere\.invalid"):
        await Outbound(tls).send("GET", "https://nowhere.invalid/", most_bytes=1, timeout_s=5)

import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from brewos_relay.auth.outbound_http import MAX_ANSWER_BYTES, check_url, fetch_json
from brewos_relay.errors import IdentityUnavailable
from support.issuer import Answer, Issuer, open_issuer


@pytest.fixture
def issuer() -> Iterator[Issuer]:
    with open_issuer() as opened:
        yield opened


def unavailable(url: str, *, timeout_s: float = 5.0) -> str:
    with pytest.raises(IdentityUnavailable) as caught:
        fetch_json(url, timeout_s=timeout_s)
    return str(caught.value)


@pytest.mark.parametrize(
    "url",
    [
        "https://issuer.example",
        "https://issuer.example:8443/a?b=c",
        "http://localhost:8080",
        "http://127.0.0.1",
        "http://127.8.9.1/x",
        "http://[::1]:8080/",
    ],
)
def test_a_url_to_ask(url: str) -> None:
    check_url(url)


@pytest.mark.parametrize(
    "url",
    [
        "",
        "issuer.example",
        "http://issuer.example",
        "http://localhost.evil.example",
        "http://127.0.0.1.evil.example",
        "http://192.168.1.2",
        "http://127.0.0.1@evil.example",
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
def test_a_url_that_is_not_asked(url: str) -> None:
    with pytest.raises(ValueError):  # noqa: PT011 - some of it is said by the standard library
        check_url(url)


def test_the_answer_comes_with_its_status(issuer: Issuer) -> None:
    issuer.answers = {"/fine": Answer({"a": [1]}), "/bad": Answer({"error": "no"}, status=400)}
    assert fetch_json(f"{issuer.url}/fine") == (200, {"a": [1]})
    assert fetch_json(f"{issuer.url}/bad") == (400, {"error": "no"})


def test_what_is_asked(issuer: Issuer) -> None:
    issuer.answers = {"/": Answer(1), "/x": Answer(2)}
    assert fetch_json(issuer.url) == (200, 1)
    assert fetch_json(f"{issuer.url}/x?a=1", query={"token": "a b&c|d"}) == (200, 2)
    assert issuer.queries == [{}, {"a": "1", "token": "a b&c|d"}]


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
def test_no_redirect_is_followed(issuer: Issuer, status: int) -> None:
    with open_issuer() as other:
        other.answers = {"/keys": Answer({})}
        issuer.answers = {"/keys": Answer({}, status=status, location=other.keys_url)}
        assert "the answer is a redirect" in unavailable(issuer.keys_url)
        assert other.asked == []


def test_an_answer_that_is_too_large_is_not_read_to_its_end(issuer: Issuer) -> None:
    issuer.answers = {"/huge": Answer(b" " * 50_000_000), "/large": Answer("x" * (MAX_ANSWER_BYTES - 2))}
    assert "more than 262144 bytes" in unavailable(f"{issuer.url}/huge")
    assert fetch_json(f"{issuer.url}/large")[0] == 200


@pytest.mark.parametrize("body", [b"", b"<html>", b"{", b"\xff\xfe\xff", b"[" * 100_000, b"9" * 10_000])
def test_an_answer_that_is_not_json(issuer: Issuer, body: bytes) -> None:
    issuer.answers = {"/x": Answer(body)}
    assert "not JSON" in unavailable(f"{issuer.url}/x")


def test_an_answer_that_does_not_come(issuer: Issuer) -> None:
    issuer.answers = {"/slow": Answer({}, delay_s=30)}
    began_s = time.monotonic()
    assert "127.0.0.1 did not answer in time" in unavailable(f"{issuer.url}/slow", timeout_s=0.1)
    assert time.monotonic() - began_s < 5


@contextmanager
def open_port(reply: bytes, *, pause_s: float = 0.0) -> Iterator[str]:
    """Open a port that answers one request with these bytes, one at a time if there is a pause."""
    done = threading.Event()

    def answer() -> None:
        connection, _ = listening.accept()
        with connection:
            connection.recv(65_536)
            try:
                for index in range(0, len(reply), 1 if pause_s else len(reply)):
                    connection.sendall(reply[index : index + (1 if pause_s else len(reply))])
                    if pause_s and done.wait(pause_s):
                        return
            except OSError:
                pass

    with socket.create_server(("127.0.0.1", 0)) as listening:
        thread = threading.Thread(target=answer)
        thread.start()
        try:
            yield f"http://127.0.0.1:{listening.getsockname()[1]}/?secret=1"
        finally:
            done.set()
            thread.join(5)


@pytest.mark.parametrize("head", [b"HTTP/1.1 200 OK\r\n\r\n", b"HTTP/1.1 200 OK\r\nX: ", b""])
def test_an_answer_that_drips(head: bytes) -> None:
    threads = threading.active_count()
    with open_port(head + b" " * 1000, pause_s=0.01) as url:
        began_s = time.monotonic()
        assert "did not answer in time" in unavailable(url, timeout_s=0.2)
        assert time.monotonic() - began_s < 5
    assert threading.active_count() <= threads


def test_nothing_is_left_of_a_fetch(issuer: Issuer) -> None:
    issuer.answers = {"/x": Answer({})}
    began_s = time.monotonic()
    threads = threading.active_count()
    fetch_json(f"{issuer.url}/x", timeout_s=60)
    assert time.monotonic() - began_s < 5
    assert threading.active_count() <= threads + 1  # the one that answers


@pytest.mark.parametrize(
    "reply", [b"garbage\r\n\r\n", b"HTTP/1.1 200 OK\r\nx" + b"x" * 70_000 + b"\r\n\r\n", b"\r\n"]
)
def test_an_answer_that_is_not_http(reply: bytes) -> None:
    with open_port(reply) as url:
        problem = unavailable(url)
    assert "cannot fetch from 127.0.0.1" in problem
    assert "secret" not in problem


def test_nobody_there() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listening:
        port = listening.getsockname()[1]
    problem = unavailable(f"http://127.0.0.1:{port}/?secret=1")
    assert problem == "cannot fetch from 127.0.0.1: Connection refused"


def test_a_certificate_that_nobody_vouches_for_is_not_taken(issuer: Issuer) -> None:
    assert "cannot fetch from" in unavailable(issuer.url.replace("http:", "https:"))


def test_a_url_that_cannot_be_sent() -> None:
    assert "cannot fetch from" in unavailable("http://127.0.0.1:1/a b")

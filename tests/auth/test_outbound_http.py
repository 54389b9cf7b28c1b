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
def test_https_and_local_http_urls_are_accepted(url: str) -> None:
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
def test_other_urls_are_refused(url: str) -> None:
    with pytest.raises(ValueError):  # noqa: PT011 - some of it is said by the standard library
        check_url(url)


def test_answer_is_returned_with_its_status(issuer: Issuer) -> None:
    issuer.answers = {"/fine": Answer({"a": [1]}), "/bad": Answer({"error": "no"}, status=400)}
    assert fetch_json(f"{issuer.url}/fine") == (200, {"a": [1]})
    assert fetch_json(f"{issuer.url}/bad") == (400, {"error": "no"})


def test_form_is_posted(issuer: Issuer) -> None:
    issuer.codes["c"] = {}
    form = {"client_id": "x", "code": "a b&c=d"}
    assert fetch_json(f"{issuer.url}/token", form=form) == (401, {"error": "invalid_client"})
    basic = fetch_json(f"{issuer.url}/token", form=form, authorization="Basic eDp5")
    assert basic == (401, {"error": "invalid_client"})
    assert issuer.asked == ["/token", "/token"]


def test_request_has_path_query_and_headers(issuer: Issuer) -> None:
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


def test_large_answer_is_not_read_completely(issuer: Issuer) -> None:
    issuer.answers = {"/huge": Answer(b" " * 50_000_000), "/large": Answer("x" * (MAX_ANSWER_BYTES - 2))}
    assert "more than 262144 bytes" in unavailable(f"{issuer.url}/huge")
    assert fetch_json(f"{issuer.url}/large")[0] == 200


@pytest.mark.parametrize("body", [b"", b"<html>", b"{", b"\xff\xfe\xff", b"[" * 100_000, b"9" * 10_000])
def test_answer_must_be_json(issuer: Issuer, body: bytes) -> None:
    issuer.answers = {"/x": Answer(body)}
    assert "not JSON" in unavailable(f"{issuer.url}/x")


def test_missing_answer_times_out(issuer: Issuer) -> None:
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
def test_slowly_arriving_answer_times_out(head: bytes) -> None:
    threads = threading.active_count()
    with open_port(head + b" " * 1000, pause_s=0.01) as url:
        began_s = time.monotonic()
        assert "did not answer in time" in unavailable(url, timeout_s=0.2)
        assert time.monotonic() - began_s < 5
    assert threading.active_count() <= threads


def test_fetch_leaves_no_thread_or_socket(issuer: Issuer) -> None:
    issuer.answers = {"/x": Answer({})}
    began_s = time.monotonic()
    threads = threading.active_count()
    fetch_json(f"{issuer.url}/x", timeout_s=60)
    assert time.monotonic() - began_s < 5
    assert threading.active_count() <= threads + 1  # the one that answers


@pytest.mark.parametrize(
    "reply", [b"garbage\r\n\r\n", b"HTTP/1.1 200 OK\r\nx" + b"x" * 70_000 + b"\r\n\r\n", b"\r\n"]
)
def test_answer_must_be_http(reply: bytes) -> None:
    with open_port(reply) as url:
        problem = unavailable(url)
    assert "cannot fetch from 127.0.0.1" in problem
    assert "secret" not in problem


def test_refused_connection_is_unavailable() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listening:
        port = listening.getsockname()[1]
    problem = unavailable(f"http://127.0.0.1:{port}/?secret=1")
    assert problem == "cannot fetch from 127.0.0.1: Connection refused"


def test_untrusted_certificate_is_refused(issuer: Issuer) -> None:
    assert "cannot fetch from" in unavailable(issuer.url.replace("http:", "https:"))


def test_invalid_url_is_unavailable() -> None:
    assert "cannot fetch from" in unavailable("http://127.0.0.1:1/a b")

import socket
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import pytest

from brewos_relay.auth.outbound_http import MAX_ANSWER_BYTES, fetch_json
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
        assert "answered with a redirect" in unavailable(issuer.keys_url)
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
    assert "127.0.0.1 did not answer within 0.1 s" in unavailable(f"{issuer.url}/slow", timeout_s=0.1)
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


@pytest.mark.parametrize("head", [b"HTTP/1.1 200 OK\r\n\r\n", b"HTTP/1.1 200 OK\r\nX: ", b"HTTP/1.1 200 "])
def test_slowly_arriving_answer_times_out(head: bytes) -> None:
    threads = threading.active_count()
    with open_port(head + b" " * 1000, pause_s=0.01) as url:
        began_s = time.monotonic()
        assert "did not answer within 0.2 s" in unavailable(url, timeout_s=0.2)
        assert time.monotonic() - began_s < 5
    assert threading.active_count() <= threads


def test_hanging_resolver_times_out(monkeypatch: pytest.MonkeyPatch) -> None:
    released = threading.Event()

    def resolve(_host: str, _port: int, *given: int) -> list[Any]:
        if not given[3] & socket.AI_NUMERICHOST:
            released.wait(30)
        raise socket.gaierror(socket.EAI_NONAME, "not known")

    monkeypatch.setattr(socket, "getaddrinfo", resolve)
    began_s = time.monotonic()
    assert "did not answer within 0.1 s" in unavailable("https://issuer.example", timeout_s=0.1)
    released.set()
    assert time.monotonic() - began_s < 5


def test_addresses_that_do_not_answer_share_the_time(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.create_server(("127.0.0.1", 0), backlog=0) as deaf, ExitStack() as stack:
        for _ in range(4):  # they fill the queue, so the next ones get no answer
            waiting = stack.enter_context(socket.socket())
            waiting.setblocking(False)
            waiting.connect_ex(deaf.getsockname())
        found = [(socket.AF_INET, socket.SOCK_STREAM, 6, "", deaf.getsockname())] * 20
        monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: found)
        began_s = time.monotonic()
        problem = unavailable(f"http://127.0.0.1:{deaf.getsockname()[1]}", timeout_s=0.3)
        assert "did not answer within 0.3 s" in problem
        assert time.monotonic() - began_s < 2


@pytest.mark.parametrize(
    ("head", "repeated"),
    [
        (b"", b"HTTP/1.1 100 Continue\r\n\r\n"),
        (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n", b"1;" + b"x" * 200 + b"\r\n \r\n"),
    ],
)
def test_flood_of_interim_responses_and_small_chunks_is_cut_off(head: bytes, repeated: bytes) -> None:
    with open_port(head + repeated * (400_000 // len(repeated))) as url:
        assert "more than 262144 bytes" in unavailable(url)


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
    assert problem == "the answer of 127.0.0.1 is not HTTP"


def test_refused_connection_is_unavailable() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listening:
        port = listening.getsockname()[1]
    problem = unavailable(f"http://127.0.0.1:{port}/?secret=1")
    assert problem.startswith("cannot reach 127.0.0.1: ")
    assert problem.endswith("Connection refused")
    assert "secret" not in problem


def test_untrusted_certificate_is_refused(issuer: Issuer) -> None:
    assert "cannot reach 127.0.0.1" in unavailable(issuer.url.replace("http:", "https:"))


def test_invalid_url_is_unavailable() -> None:
    assert "printable ASCII" in unavailable("http://127.0.0.1:1/a b")
    assert "must begin with https://" in unavailable("http://issuer.example")
